//! Numbers, durations and tags.

use std::{collections::BTreeMap, num::NonZeroU16};

use tpi_proto::spec::{CloudName, Spot};

use super::{
    Field, Findings,
    duration::{DAY, seconds},
};

/// Longest timeout: a year. A longer one is a mistake, and no machine should be ordered by mistake.
const TIMEOUT_MAX: u64 = 365 * DAY;
const GRACE_DEFAULT: u64 = 30;
const GRACE_MAX: u64 = 3600;
const DISK_MAX: i64 = 65_536;
/// Machines that one computer is made to play.
const LOCAL_PARALLELISM_MAX: u16 = 64;

/// How long a first machine is waited for.
const PROVISION_DEFAULT: u64 = 1800;

const DURATION_HINT: &str = "give seconds, or numbers with s, m, h or d, such as 3600 or 1h30m";

pub(super) fn timeout(text: Option<&str>, found: &mut Findings) -> u64 {
    let Some(text) = text else { return DAY };
    match seconds(text) {
        Ok(0) => found.error(
            Field::Timeout,
            Some(text),
            "is 0, which would end the task before it starts",
            format!("{DURATION_HINT}; leave it out for 24 hours"),
        ),
        Ok(n) if n > TIMEOUT_MAX => {
            found.error(Field::Timeout, Some(text), "is longer than a year", "give at most 365d");
        }
        Ok(n) => return n,
        Err(error) => found.error(Field::Timeout, Some(text), error.to_string(), DURATION_HINT),
    }
    DAY
}

pub(super) fn grace(text: Option<&str>, timeout: u64, found: &mut Findings) -> u64 {
    let Some(text) = text else { return GRACE_DEFAULT.min(timeout) };
    match seconds(text) {
        Ok(n) if n > GRACE_MAX => {
            found.error(Field::Grace, Some(text), "is longer than an hour", "give at most 1h");
        }
        Ok(n) if n > timeout => {
            found.error(Field::Grace, Some(text), "is longer than the timeout", "give less than the timeout");
        }
        Ok(n) => return n,
        Err(error) => found.error(Field::Grace, Some(text), error.to_string(), DURATION_HINT),
    }
    GRACE_DEFAULT
}

/// `None`: as long as the task may exist. A computer needs no time to play a machine.
pub(super) fn provision_timeout(
    text: Option<&str>,
    cloud: Option<CloudName>,
    found: &mut Findings,
) -> Option<u64> {
    let hint = "give a duration such as 30m, or none to wait as long as the task may exist";
    match text.map(|text| (text, seconds(text))) {
        None if cloud == Some(CloudName::Local) => None,
        None => Some(PROVISION_DEFAULT),
        Some(("none", _)) => None,
        Some((text, Ok(n))) if !(1..=TIMEOUT_MAX).contains(&n) => {
            found.error(Field::ProvisionTimeout, Some(text), "is not between a second and a year", hint);
            None
        }
        Some((_, Ok(n))) => Some(n),
        Some((text, Err(error))) => {
            found.error(Field::ProvisionTimeout, Some(text), error.to_string(), hint);
            None
        }
    }
}

pub(super) fn disk_size(text: Option<&str>, cloud: Option<CloudName>, found: &mut Findings) -> Option<u32> {
    let text = text?;
    let hint = "give whole gigabytes, such as 100; leave it out for the image's own size";
    match text.trim().parse::<i64>() {
        Ok(n) if n > DISK_MAX => {
            found.error(Field::DiskSize, Some(text), format!("is more than {DISK_MAX} GB"), hint);
            None
        }
        Ok(n) => {
            let size = u32::try_from(n).ok().filter(|&n| n > 0);
            if size.is_some() && cloud == Some(CloudName::Local) {
                found.warn("disk_size has no effect on the local cloud: machines share this computer's disk");
            }
            size
        }
        Err(_) => {
            found.error(Field::DiskSize, Some(text), "is not a whole number", hint);
            None
        }
    }
}

pub(super) fn spot(text: Option<&str>, cloud: Option<CloudName>, found: &mut Findings) -> Option<Spot> {
    let Some(text) = text else { return Some(Spot::OnDemand) };
    let hint = "give US dollars per hour: -1 for on-demand, 0 for the market price, 0.5 for at most 0.5";
    let spot = match text.trim().parse::<f64>() {
        Ok(price) if !price.is_finite() => {
            found.error(Field::Spot, Some(text), "is not a price", hint);
            return None;
        }
        Ok(price) if price < 0.0 => Spot::OnDemand,
        Ok(0.0) => Spot::MarketPrice,
        Ok(price) => Spot::MaxPrice { usd_per_hour: price },
        Err(_) => {
            found.error(Field::Spot, Some(text), "is not a number", hint);
            return None;
        }
    };
    match (cloud, spot) {
        (Some(CloudName::Gcp), Spot::MaxPrice { .. }) => {
            found.error(Field::Spot, Some(text), "gcp has no price limit for spot machines", "give 0 or -1");
        }
        (Some(CloudName::Local | CloudName::K8s), Spot::MarketPrice | Spot::MaxPrice { .. }) => {
            found.warn("spot has no effect on this cloud");
        }
        _ => {}
    }
    Some(spot)
}

pub(super) fn parallelism(
    text: Option<&str>,
    cloud: Option<CloudName>,
    found: &mut Findings,
) -> Option<NonZeroU16> {
    let Some(text) = text else { return Some(NonZeroU16::MIN) };
    let limit = if cloud == Some(CloudName::Local) { LOCAL_PARALLELISM_MAX } else { u16::MAX };
    let hint = format!("give a whole number from 1 to {limit}");
    let cause = match text.trim().parse::<i64>() {
        Ok(0) => "is 0, so nothing would run".to_owned(),
        Ok(n) if n < 0 => "is negative".to_owned(),
        Ok(n) => match u16::try_from(n).ok().filter(|&n| n <= limit).and_then(NonZeroU16::new) {
            Some(n) => return Some(n),
            None if limit < u16::MAX => format!("is more than {limit}, the most that one computer plays"),
            None => format!("is more than {limit}"),
        },
        Err(_) => "is not a whole number".to_owned(),
    };
    found.error(Field::Parallelism, Some(text), cause, hint);
    None
}

pub(super) fn tags(texts: &[String], found: &mut Findings) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    for text in texts {
        let hint = "give KEY=VALUE, a key of 1 to 128 and a value of at most 256 characters";
        let Some((key, value)) = text.split_once('=') else {
            found.error(Field::Tags, Some(text), "has no '='", hint);
            continue;
        };
        let key = key.trim();
        let lower = key.to_lowercase();
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
            found.error(Field::Tags, Some(text), "has an empty or too long key, or a too long value", hint);
        } else if text.chars().any(char::is_control) {
            found.error(Field::Tags, Some(text), "contains control characters", hint);
        } else if lower.starts_with("tpi-") || lower.starts_with("aws:") || lower == "tpi" {
            found.error(
                Field::Tags,
                Some(text),
                "uses a reserved key",
                "choose a key that does not begin with tpi- or aws:",
            );
        } else if tags.get(key).is_some_and(|old| old != value) {
            found.error(Field::Tags, Some(text), "repeats a key with another value", "give each key once");
        } else {
            let _same = tags.insert(key.to_owned(), value.to_owned());
        }
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text: String) {
            let mut found = Findings::default();
            let _timeout = timeout(Some(&text), &mut found);
            let _wait = provision_timeout(Some(&text), None, &mut found);
            let _disk = disk_size(Some(&text), None, &mut found);
            let _spot = spot(Some(&text), None, &mut found);
            let _parallelism = parallelism(Some(&text), None, &mut found);
            drop(tags(&[text], &mut found));
        }
    }
}
