//! What a group's scaling activities say: why machines are missing, and why machines went. AWS tells both as
//! prose, which is read here and nowhere else.

use jiff::Timestamp;

use crate::cloud::{MachineEnd, Shortage, ShortageReason};

/// One activity, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// Begins with what was done, such as `Launching a new EC2 instance: i-0…`.
    pub description: String,
    /// Why it was done.
    pub cause: String,
    /// Whether it failed.
    pub failed: bool,
    /// Why it failed.
    pub message: String,
    /// JSON with the zone.
    pub details: String,
    /// When it began.
    pub began: Timestamp,
    /// When it was over.
    pub ended: Option<Timestamp>,
}

/// Texts that AWS is known to use, the telling ones first.
const REASONS: &[(&str, ShortageReason)] = &[
    ("VcpuLimitExceeded", ShortageReason::Quota),
    ("MaxSpotInstanceCountExceeded", ShortageReason::Quota),
    ("InstanceLimitExceeded", ShortageReason::Quota),
    ("VolumeLimitExceeded", ShortageReason::Quota),
    ("vCPU limit", ShortageReason::Quota),
    ("Max spot instance count exceeded", ShortageReason::Quota),
    ("quota", ShortageReason::Quota),
    ("SpotMaxPriceTooLow", ShortageReason::Price),
    ("lower than the minimum required Spot request fulfillment price", ShortageReason::Price),
    ("InsufficientInstanceCapacity", ShortageReason::Capacity),
    ("InsufficientFreeAddressesInSubnet", ShortageReason::Capacity),
    ("UnfulfillableCapacity", ShortageReason::Capacity),
    ("no Spot capacity available", ShortageReason::Capacity),
    ("do not have sufficient", ShortageReason::Capacity),
    ("UnauthorizedOperation", ShortageReason::Permission),
    ("not authorized to perform", ShortageReason::Permission),
    ("AccessDenied", ShortageReason::Permission),
    ("InvalidAMIID", ShortageReason::Request),
    ("Invalid IamInstanceProfile", ShortageReason::Request),
    ("InvalidParameter", ShortageReason::Request),
    ("Unsupported", ShortageReason::Request),
    ("is not supported", ShortageReason::Request),
    ("architecture", ShortageReason::Request),
    ("launch template", ShortageReason::Request),
];

/// Why a launch failed.
#[must_use]
pub fn reason(message: &str) -> ShortageReason {
    let lower = message.to_lowercase();
    REASONS
        .iter()
        .find(|(text, _)| lower.contains(&text.to_lowercase()))
        .map_or(ShortageReason::Other, |(_, reason)| *reason)
}

/// What was last found missing, one entry for each zone, type and reason, the newest first.
#[must_use]
pub fn shortages(activities: &[Activity]) -> Vec<Shortage> {
    let mut failed: Vec<&Activity> =
        activities.iter().filter(|a| a.failed && a.description.starts_with("Launching")).collect();
    failed.sort_by_key(|a| std::cmp::Reverse(a.began));
    let mut found: Vec<Shortage> = Vec::new();
    for activity in failed {
        let shortage = Shortage {
            reason: reason(&activity.message),
            zone: zone(activity),
            machine: machine_type(&activity.message),
            message: activity.message.clone(),
            at: activity.began,
        };
        let same = |s: &&Shortage| {
            s.reason == shortage.reason && s.zone == shortage.zone && s.machine == shortage.machine
        };
        if !found.iter().any(|s| same(&s)) {
            found.push(shortage);
        }
    }
    found
}

fn zone(activity: &Activity) -> Option<String> {
    let details: Option<serde_json::Value> = serde_json::from_str(&activity.details).ok();
    let told = details.and_then(|d| Some(d.get("Availability Zone")?.as_str()?.to_owned()));
    told.or_else(|| words(&activity.message).find(|w| is_zone(w)).map(str::to_owned))
}

fn machine_type(message: &str) -> Option<String> {
    let is_type = |word: &&str| {
        word.split_once('.').is_some_and(|(family, size)| {
            family.starts_with(|c: char| c.is_ascii_lowercase())
                && family.bytes().any(|b| b.is_ascii_digit())
                && (size.ends_with("large") || ["micro", "small", "medium", "nano", "metal"].contains(&size))
        })
    };
    words(message).find(is_type).map(str::to_owned)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || "()[],\"'".contains(c)).map(|w| w.trim_end_matches('.'))
}

fn is_zone(word: &str) -> bool {
    word.strip_suffix(|c: char| c.is_ascii_lowercase())
        .is_some_and(|region| super::place::region(region).as_deref() == Ok(region))
}

/// Why an instance ended, and when, as far as activities tell. The deadline's schedule is named in the cause
/// of what it ends, and so is a release.
#[must_use]
pub fn end_of(activities: &[Activity], instance: &str) -> Option<(MachineEnd, Option<Timestamp>)> {
    let ended = activities
        .iter()
        .filter(|a| a.description.starts_with("Terminating") && words(&a.description).any(|w| w == instance))
        .max_by_key(|a| a.began)?;
    let cause = &ended.cause;
    let says = |text: &str| cause.contains(text);
    let end = if says("scheduled action") {
        MachineEnd::Deadline
    } else if says("deleted AutoScalingGroup") || says("delete AutoScalingGroup") {
        MachineEnd::Destroyed
    } else if says("in response to a user request") && says("shrinking the capacity") {
        MachineEnd::Released
    } else {
        MachineEnd::Lost
    };
    Some((end, ended.ended))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(message: &str, details: &str, at: i64) -> Activity {
        Activity {
            description: "Launching a new EC2 instance.  Status Reason: …".to_owned(),
            cause: String::new(),
            failed: true,
            message: message.to_owned(),
            details: details.to_owned(),
            began: Timestamp::from_second(at).expect("in range"),
            ended: None,
        }
    }

    const NONE_FREE: &str = "We currently do not have sufficient g5.xlarge capacity in the Availability Zone you requested (us-west-2b). Our system will be working on provisioning additional capacity. Launching EC2 instance failed.";

    #[test]
    fn quota_is_told_apart_from_capacity_and_price() {
        for (message, expected) in [
            (NONE_FREE, ShortageReason::Capacity),
            (
                "Could not launch Spot Instances. InsufficientInstanceCapacity - There is no Spot capacity available that matches your request. Launching EC2 instance failed.",
                ShortageReason::Capacity,
            ),
            (
                "Could not launch On-Demand Instances. VcpuLimitExceeded - You have requested more vCPU capacity than your current vCPU limit of 32 allows for the instance bucket that the specified instance type belongs to. Launching EC2 instance failed.",
                ShortageReason::Quota,
            ),
            (
                "Could not launch Spot Instances. MaxSpotInstanceCountExceeded - Max spot instance count exceeded. Launching EC2 instance failed.",
                ShortageReason::Quota,
            ),
            (
                "Could not launch Spot Instances. SpotMaxPriceTooLow - Your Spot request price of 0.001 is lower than the minimum required Spot request fulfillment price of 0.03. Launching EC2 instance failed.",
                ShortageReason::Price,
            ),
            (
                "Your quota allows for 0 more running instance(s). You requested at least 1. Launching EC2 instance failed.",
                ShortageReason::Quota,
            ),
            (
                "You are not authorized to perform this operation. Launching EC2 instance failed.",
                ShortageReason::Permission,
            ),
            (
                "The requested configuration is currently not supported. Please check the documentation for supported configurations. Launching EC2 instance failed.",
                ShortageReason::Other,
            ),
            ("a reason that nobody knows", ShortageReason::Other),
        ] {
            let found = reason(message);
            if message.contains("configuration is currently not supported") {
                // The same words are used for a type that a zone never has.
                assert!(matches!(found, ShortageReason::Other | ShortageReason::Request), "{message}");
            } else {
                assert_eq!(found, expected, "{message}");
            }
        }
    }

    #[test]
    fn zone_and_type_are_read_and_repetitions_are_one() {
        let details = r#"{"Subnet ID":"subnet-1","Availability Zone":"us-west-2b"}"#;
        let found = shortages(&[
            launch(NONE_FREE, details, 1),
            launch(NONE_FREE, "", 3),
            launch(NONE_FREE, r#"{"Availability Zone":"us-west-2c"}"#, 2),
        ]);
        let seen: Vec<_> =
            found.iter().map(|s| (s.zone.as_deref(), s.machine.as_deref(), s.at.as_second())).collect();
        assert_eq!(
            seen,
            [(Some("us-west-2b"), Some("g5.xlarge"), 3), (Some("us-west-2c"), Some("g5.xlarge"), 2)]
        );
    }

    #[test]
    fn why_a_machine_went() {
        let ended = |cause: &str| {
            let activity = Activity {
                description: "Terminating EC2 instance: i-0abc".to_owned(),
                cause: cause.to_owned(),
                failed: false,
                ..launch("", "", 5)
            };
            end_of(&[activity], "i-0abc").map(|e| e.0)
        };
        for (cause, expected) in [
            (
                "At 2026-01-01T00:00:00Z instance i-0abc was taken out of service in response to a user request, shrinking the capacity from 1 to 0.",
                MachineEnd::Released,
            ),
            (
                "At 2026-01-01T00:00:00Z a scheduled action update of AutoScalingGroup constraints to min: 0, max: 0, desired: 0 changing the desired capacity from 1 to 0.  At 2026-01-01T00:00:05Z instance i-0abc was selected for termination.",
                MachineEnd::Deadline,
            ),
            (
                "At 2026-01-01T00:00:00Z an instance was taken out of service in response to an EC2 health check indicating it has been terminated or stopped.",
                MachineEnd::Lost,
            ),
            (
                "At 2026-01-01T00:00:00Z an instance was taken out of service in response to an EC2 instance interruption notice.",
                MachineEnd::Lost,
            ),
            (
                "At 2026-01-01T00:00:00Z a user request force deleted AutoScalingGroup changing the desired capacity from 1 to 0.",
                MachineEnd::Destroyed,
            ),
        ] {
            assert_eq!(ended(cause), Some(expected), "{cause}");
        }
        assert_eq!(end_of(&[launch(NONE_FREE, "", 1)], "i-0abc"), None);
    }
}
