//! What goes wrong on demand.

use std::time::Duration;

use super::{
    call::Asked,
    model::{Matching, Trouble},
    refusal::Refusal,
};

/// A fault that was planted.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) id: u64,
    pub(super) matching: Matching,
    pub(super) trouble: Trouble,
    /// Matching calls that it lets pass first.
    pub(super) skip: u64,
    /// Calls that it is for; absent: until it is lifted.
    pub(super) times: Option<u64>,
}

/// All that happens to one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) delay: Duration,
    pub(super) cut_before: bool,
    pub(super) cut_after: bool,
    pub(super) hold_before: bool,
    pub(super) hold_after: bool,
    pub(super) refusal: Option<Refusal>,
}

/// What happens to a call; counts it.
pub(super) fn fate(faults: &mut [Fault], asked: &Asked, principal: &str) -> Fate {
    let mut fate = Fate::default();
    for fault in faults {
        if !fault.matching.fits(&asked.service, &asked.action, principal) || fault.times == Some(0) {
            continue;
        }
        if fault.skip > 0 {
            fault.skip -= 1;
            continue;
        }
        fault.times = fault.times.map(|times| times - 1);
        match fault.trouble {
            Trouble::Throttle => fate.refusal = Some(throttle(&asked.service)),
            Trouble::Fail(status) => fate.refusal = Some(failure(&asked.service, status)),
            Trouble::CutBefore => fate.cut_before = true,
            Trouble::CutAfter => fate.cut_after = true,
            Trouble::HoldBefore => fate.hold_before = true,
            Trouble::HoldAfter => fate.hold_after = true,
            Trouble::Delay(by) => fate.delay += by,
        }
    }
    fate
}

fn throttle(service: &str) -> Refusal {
    match service {
        "s3" => Refusal::new(503, "SlowDown", "Please reduce your request rate."),
        "ec2" => Refusal::new(503, "RequestLimitExceeded", "Request limit exceeded."),
        "servicequotas" => Refusal::new(400, "TooManyRequestsException", "Rate exceeded"),
        _ => Refusal::new(400, "Throttling", "Rate exceeded"),
    }
}

fn failure(service: &str, status: u16) -> Refusal {
    let (code, words) = match (service, status) {
        ("s3", 503) => ("ServiceUnavailable", "Service is unable to handle request."),
        ("s3", _) => ("InternalError", "We encountered an internal error. Please try again."),
        ("ec2", 503) => ("Unavailable", "The service is unavailable. Please try again shortly."),
        ("ec2", _) => ("InternalError", "An internal error has occurred"),
        (_, 503) => ("ServiceUnavailable", "Service is unavailable."),
        (_, _) => ("InternalFailure", "The request processing has failed because of an unknown error."),
    };
    Refusal::new(status, code, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_calls_of_a_name_fail() {
        let mut faults = [
            Fault {
                id: 1,
                matching: Matching::action("GetRole").by("user/"),
                trouble: Trouble::Throttle,
                skip: 1,
                times: Some(2),
            },
            Fault {
                id: 2,
                matching: Matching::service("iam"),
                trouble: Trouble::Delay(Duration::from_millis(5)),
                skip: 0,
                times: None,
            },
        ];
        let asked =
            |action: &str| Asked { service: "iam".to_owned(), action: action.to_owned(), ..Asked::default() };
        let mut seen = Vec::new();
        for (action, who) in [
            ("GetRole", "user/laptop"),
            ("GetRole", "role/r"),
            ("GetRole", "user/laptop"),
            ("GetUser", "user/laptop"),
            ("GetRole", "user/laptop"),
            ("GetRole", "user/laptop"),
        ] {
            let fate = fate(&mut faults, &asked(action), who);
            assert_eq!(fate.delay, Duration::from_millis(5));
            seen.push(fate.refusal.map(|r| r.code));
        }
        let throttled = Some("Throttling".to_owned());
        assert_eq!(seen, [None, None, throttled.clone(), None, throttled, None]);
    }
}
