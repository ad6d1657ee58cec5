//! Errors of AWS: its codes to what a caller can act on.

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};

use crate::cloud::{CloudError, CloudErrorKind, Leftovers};

/// What AWS answered.
#[derive(Debug, thiserror::Error)]
#[error(
    "{message} ({code}{}{})",
    action.as_deref().map(|action| format!(", action {action}")).unwrap_or_default(),
    request.as_deref().map(|id| format!(", request {id}")).unwrap_or_default()
)]
pub struct Refusal {
    /// Its code.
    pub code: String,
    message: String,
    request: Option<String>,
    /// What the caller would have to be allowed.
    action: Option<String>,
}

/// Codes that begin like this; the first one counts.
const KINDS: &[(&str, CloudErrorKind)] = {
    use CloudErrorKind as K;
    &[
        ("AuthFailure.ServiceLinkedRole", K::PermissionDenied),
        ("AuthFailure", K::Unauthenticated),
        ("ExpiredToken", K::Unauthenticated),
        ("RequestExpired", K::Unauthenticated),
        ("InvalidClientTokenId", K::Unauthenticated),
        ("InvalidAccessKeyId", K::Unauthenticated),
        ("SignatureDoesNotMatch", K::Unauthenticated),
        ("IncompleteSignature", K::Unauthenticated),
        ("MissingAuthenticationToken", K::Unauthenticated),
        ("UnrecognizedClient", K::Unauthenticated),
        ("OptInRequired", K::Unauthenticated),
        ("Blocked", K::PermissionDenied),
        ("PendingVerification", K::PermissionDenied),
        ("UnauthorizedOperation", K::PermissionDenied),
        ("AccessDenied", K::PermissionDenied),
        ("Unauthorized", K::PermissionDenied),
        ("NotAuthorized", K::PermissionDenied),
        ("RequestLimitExceeded", K::Throttled),
        ("Throttl", K::Throttled),
        ("TooManyRequests", K::Throttled),
        ("BandwidthLimitExceeded", K::Throttled),
        ("SlowDown", K::Throttled),
        ("InsufficientInstanceCapacity", K::NoCapacity),
        ("InsufficientHostCapacity", K::NoCapacity),
        ("InsufficientReservedInstanceCapacity", K::NoCapacity),
        ("InsufficientFreeAddressesInSubnet", K::NoCapacity),
        ("InsufficientCapacity", K::NoCapacity),
        ("InsufficientVolumeCapacity", K::NoCapacity),
        ("InsufficientAddressCapacity", K::NoCapacity),
        ("UnfulfillableCapacity", K::NoCapacity),
        ("SpotMaxPriceTooLow", K::NoCapacity),
        ("VcpuLimitExceeded", K::QuotaExceeded),
        ("MaxSpotInstanceCountExceeded", K::QuotaExceeded),
        ("InstanceLimitExceeded", K::QuotaExceeded),
        ("LimitExceeded", K::QuotaExceeded),
        ("ServiceQuotaExceeded", K::QuotaExceeded),
        ("TagLimitExceeded", K::QuotaExceeded),
        ("ReservationCapacityExceeded", K::NoCapacity),
        ("InternalError", K::Unavailable),
        ("InternalFailure", K::Unavailable),
        ("InternalServerError", K::Unavailable),
        ("ServiceUnavailable", K::Unavailable),
        ("ServiceFailure", K::Unavailable),
        ("Unavailable", K::Unavailable),
        ("RequestTimeout", K::Unavailable),
        ("ResourceContention", K::Unavailable),
        ("ScalingActivityInProgress", K::Unavailable),
        ("ConcurrentModification", K::Unavailable),
        ("EntityTemporarilyUnmodifiable", K::Unavailable),
        ("IncorrectState", K::Unavailable),
        ("IncorrectInstanceState", K::Unavailable),
        ("UnsupportedOperation", K::NotSupported),
        ("Unsupported", K::NotSupported),
        ("InvalidAction", K::NotSupported),
        ("InvalidAMIID", K::InvalidSpec),
        ("InvalidAMIName", K::InvalidSpec),
        ("InvalidInstanceType", K::InvalidSpec),
        ("InvalidParameter", K::InvalidSpec),
        ("InvalidUserData", K::InvalidSpec),
        ("InvalidSubnet", K::InvalidSpec),
        ("InvalidVpcID", K::InvalidSpec),
        ("InvalidGroup", K::InvalidSpec),
        ("InvalidIamInstanceProfile", K::InvalidSpec),
        ("InvalidInput", K::InvalidSpec),
        ("InvalidBlockDeviceMapping", K::InvalidSpec),
        ("InvalidLaunchTemplate", K::InvalidSpec),
        ("InvalidPermission", K::InvalidSpec),
        ("InvalidQueryParameter", K::InvalidSpec),
        ("InvalidTag", K::InvalidSpec),
        ("MalformedPolicyDocument", K::InvalidSpec),
        ("MissingParameter", K::InvalidSpec),
        ("NoSuchEntity", K::InvalidSpec),
        ("NoSuchBucket", K::InvalidSpec),
        ("TooManyBuckets", K::QuotaExceeded),
        ("OperationAborted", K::Unavailable),
        ("IllegalLocationConstraint", K::InvalidSpec),
        ("SpotMaxPrice", K::InvalidSpec),
        ("UnknownParameter", K::InvalidSpec),
        ("VPCIdNotSpecified", K::InvalidSpec),
        ("ValidationError", K::InvalidSpec),
    ]
};

/// What a caller can do about a code.
pub(super) fn kind_of(code: &str) -> CloudErrorKind {
    // Some services write `Client.` or `Server.` in front.
    let bare = code.strip_prefix("Client.").or_else(|| code.strip_prefix("Server.")).unwrap_or(code);
    if let Some((_, kind)) = KINDS.iter().find(|(begins, _)| bare.starts_with(begins)) {
        return *kind;
    }
    if bare.ends_with("LimitExceeded") {
        return CloudErrorKind::QuotaExceeded;
    }
    // `.Malformed`, `.NotFound` and the like of whatever else was named.
    if bare.starts_with("Invalid") { CloudErrorKind::InvalidSpec } else { CloudErrorKind::Other }
}

/// For `map_err` on what the SDK answers.
pub(super) fn failed<E, R>(
    operation: impl Into<String>,
    leftovers: Leftovers,
) -> impl FnOnce(SdkError<E, R>) -> CloudError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let operation = operation.into();
    move |error| {
        if let SdkError::ServiceError(service) = &error
            && let Some(code) = service.err().code()
        {
            let message = service.err().message().unwrap_or("refused");
            let kind = kind_of(code);
            let refusal = Refusal {
                action: (kind == CloudErrorKind::PermissionDenied).then(action::<E>).flatten(),
                code: code.to_owned(),
                message: message.trim_end_matches('.').to_owned(),
                request: service.err().meta().extra("aws_request_id").map(str::to_owned),
            };
            return CloudError { kind, operation, leftovers, source: Some(refusal.into()) };
        }
        let kind = match &error {
            // Credentials are looked for when the first request is about to be sent.
            SdkError::DispatchFailure(failure) if failure.is_other() && of_credentials(&error) => {
                CloudErrorKind::Unauthenticated
            }
            SdkError::ConstructionFailure(_) => CloudErrorKind::InvalidSpec,
            SdkError::TimeoutError(_)
            | SdkError::DispatchFailure(_)
            | SdkError::ResponseError(_)
            | SdkError::ServiceError(_) => CloudErrorKind::Unavailable,
            _ => CloudErrorKind::Other,
        };
        CloudError { kind, operation, leftovers, source: Some(error.into()) }
    }
}

/// The IAM action that an operation needs, read off the type of its error, such as
/// `aws_sdk_ec2::operation::create_security_group::CreateSecurityGroupError`: AWS does not always name it.
fn action<E>() -> Option<String> {
    let name = std::any::type_name::<E>();
    let service = name.strip_prefix("aws_sdk_")?.split("::").next()?;
    let operation = name.rsplit("::").next()?.strip_suffix("Error")?;
    Some(format!("{service}:{operation}"))
}

fn of_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |e| e.source())
        .any(|e| e.to_string().contains("credential") || e.to_string().contains("identity"))
}

/// The code that AWS answered with; empty when it did not answer.
pub(super) fn code<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> &str {
    error.code().unwrap_or_default()
}

/// The status that it answered with; some answers have nothing else.
pub(super) fn status_of<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|answer| answer.status().as_u16())
}

/// Whether it said that something is not there. Some services say so in prose only.
pub(super) fn is_absent<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> bool {
    let code = code(error);
    let prose = error.message().unwrap_or_default();
    code.contains("NotFound")
        || code == "NoSuchEntity"
        || code == "InvalidGroupId.Malformed"
        || (code == "ValidationError" && (prose.contains("not found") || prose.contains("does not exist")))
}

/// Whether it said that the caller may not.
pub(super) fn is_denied<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> bool {
    kind_of(code(error)) == CloudErrorKind::PermissionDenied
}

/// A refusal of our own.
pub(super) fn refused(
    operation: impl Into<String>,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> CloudError {
    CloudError {
        kind: CloudErrorKind::InvalidSpec,
        operation: operation.into(),
        leftovers: Leftovers::None,
        source: Some(cause.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_tells_its_action() {
        use aws_sdk_autoscaling::operation::create_auto_scaling_group::CreateAutoScalingGroupError;
        use aws_sdk_ec2::operation::create_security_group::CreateSecurityGroupError;
        let expected = Some("ec2:CreateSecurityGroup".to_owned());
        assert_eq!(action::<CreateSecurityGroupError>(), expected);
        let expected = Some("autoscaling:CreateAutoScalingGroup".to_owned());
        assert_eq!(action::<CreateAutoScalingGroupError>(), expected);
        assert_eq!(action::<std::io::Error>(), None);
    }

    #[test]
    fn codes_that_people_meet() {
        use CloudErrorKind as K;
        for (code, kind) in [
            ("UnauthorizedOperation", K::PermissionDenied),
            ("AccessDenied", K::PermissionDenied),
            ("AccessDeniedException", K::PermissionDenied),
            ("AuthFailure", K::Unauthenticated),
            ("ExpiredToken", K::Unauthenticated),
            ("InvalidClientTokenId", K::Unauthenticated),
            ("InsufficientInstanceCapacity", K::NoCapacity),
            ("Server.InsufficientInstanceCapacity", K::NoCapacity),
            ("VcpuLimitExceeded", K::QuotaExceeded),
            ("MaxSpotInstanceCountExceeded", K::QuotaExceeded),
            ("SecurityGroupLimitExceeded", K::QuotaExceeded),
            ("LimitExceeded", K::QuotaExceeded),
            ("RequestLimitExceeded", K::Throttled),
            ("Throttling", K::Throttled),
            ("InvalidAMIID.NotFound", K::InvalidSpec),
            ("InvalidAMIID.Malformed", K::InvalidSpec),
            ("InvalidInstanceType", K::InvalidSpec),
            ("InvalidKeyPair.NotFound", K::InvalidSpec),
            ("ValidationError", K::InvalidSpec),
            ("Unsupported", K::NotSupported),
            ("InternalError", K::Unavailable),
            ("Unavailable", K::Unavailable),
            ("NobodyKnowsThis", K::Other),
            ("", K::Other),
        ] {
            assert_eq!(kind_of(code), kind, "{code}");
        }
    }
}
