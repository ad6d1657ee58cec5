//! Regions and machine types: aliases to what AWS calls them today.

use crate::spec::place::{MACHINES, REGIONS};

/// A request that names nothing of AWS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Not a region's name.
    #[error("{0:?} is not a region of AWS (one of {known}, or a name such as eu-central-1)", known = known(&REGIONS))]
    Region(String),
    /// Not a machine's name.
    #[error("{0:?} is not a machine of AWS (one of {known}, or a type such as c7i.4xlarge)", known = machine_names())]
    Machine(String),
    /// An alias of machines that AWS has given up.
    #[error("{alias} stands for {family}, which AWS no longer has: use {instead} instead")]
    Retired {
        /// As users write it.
        alias: &'static str,
        /// What it stood for.
        family: &'static str,
        /// What comes closest today.
        instead: &'static str,
    },
}

impl PlaceError {
    /// What to do instead.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Region(_) => format!("give one of {}, or a name such as eu-central-1", known(&REGIONS)),
            Self::Machine(_) => format!("give one of {}, or a type such as c7i.4xlarge", machine_names()),
            Self::Retired { instead, family, .. } => {
                format!("it stood for {family}, which AWS no longer has: use {instead} instead")
            }
        }
    }
}

fn known(table: &[crate::spec::place::Alias]) -> String {
    table.iter().map(|a| a.alias).collect::<Vec<_>>().join(", ")
}

/// Aliases that stand for machines of today.
pub fn aliases() -> impl Iterator<Item = &'static str> {
    let retired = |alias: &str| RETIRED.iter().any(|r| r.0 == alias);
    let old = MACHINES.iter().map(|a| a.alias).filter(move |alias| !retired(alias));
    old.chain(CURRENT.iter().map(|c| c.0))
}

fn machine_names() -> String {
    aliases().collect::<Vec<_>>().join(", ")
}

/// Aliases that AWS can no longer serve: what they stood for, and what comes closest.
const RETIRED: &[(&str, &str, &str)] = &[
    ("m+k80", "p2.xlarge (one K80)", "m+t4 (g4dn.xlarge, one T4)"),
    ("l+k80", "p2.8xlarge (eight K80)", "l+l4 (g6.12xlarge, four L4)"),
    ("xl+k80", "p2.16xlarge (sixteen K80)", "xl+l4 (g6.48xlarge, eight L4)"),
];

/// GPU families of today, in the manner of the documented aliases.
const CURRENT: &[(&str, &[&str])] = &[
    ("l+t4", &["g4dn.12xlarge"]),
    ("xl+t4", &["g4dn.metal"]),
    ("m+a10g", &["g5.xlarge", "g5.2xlarge"]),
    ("l+a10g", &["g5.12xlarge", "g5.24xlarge"]),
    ("xl+a10g", &["g5.48xlarge"]),
    ("m+l4", &["g6.xlarge", "g6.2xlarge"]),
    ("l+l4", &["g6.12xlarge", "g6.24xlarge"]),
    ("xl+l4", &["g6.48xlarge"]),
    ("m+l40s", &["g6e.xlarge", "g6e.2xlarge"]),
    ("l+l40s", &["g6e.12xlarge", "g6e.24xlarge"]),
    ("xl+l40s", &["g6e.48xlarge"]),
    ("xl+a100", &["p4d.24xlarge", "p4de.24xlarge"]),
    ("xl+h100", &["p5.48xlarge"]),
];

/// Types that give at least as much as the documented one, in order of preference after it. More of them is
/// more spot pools, so fewer interruptions.
const ALTERNATIVES: &[(&str, &[&str])] = &[
    ("s", &["t3.micro", "t3a.micro"]),
    ("m", &["m6i.2xlarge", "m6a.2xlarge", "m5a.2xlarge", "m7i.2xlarge", "m7a.2xlarge"]),
    ("l", &["m6i.8xlarge", "m6a.8xlarge", "m5a.8xlarge", "m7i.8xlarge", "m7a.8xlarge"]),
    ("xl", &["m6i.16xlarge", "m6a.16xlarge", "m5a.16xlarge", "m7i.16xlarge", "m7a.16xlarge"]),
    ("m+t4", &["g4dn.2xlarge"]),
];

/// The region that a name stands for.
///
/// # Errors
/// [`PlaceError::Region`] when it can be none.
pub fn region(name: &str) -> Result<String, PlaceError> {
    if let Some(entry) = REGIONS.iter().find(|r| r.alias == name) {
        return Ok(entry.aws.to_owned());
    }
    let parts: Vec<&str> = name.split('-').collect();
    let native = parts.len() >= 3
        && parts.iter().rev().skip(1).all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase()))
        && parts.last().is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    if native { Ok(name.to_owned()) } else { Err(PlaceError::Region(name.to_owned())) }
}

/// Instance types that a name stands for, the preferred one first.
///
/// # Errors
/// When there are none, with what to use instead where something comes close.
pub fn machine(name: &str) -> Result<Vec<String>, PlaceError> {
    if let Some((alias, family, instead)) = RETIRED.iter().find(|r| r.0 == name) {
        return Err(PlaceError::Retired { alias, family, instead });
    }
    let owned = |types: &[&str]| types.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    if let Some(entry) = MACHINES.iter().find(|m| m.alias == name) {
        let more = ALTERNATIVES.iter().find(|a| a.0 == name).map(|a| owned(a.1)).unwrap_or_default();
        return Ok(std::iter::once(entry.aws.to_owned()).chain(more).collect());
    }
    if let Some((_, types)) = CURRENT.iter().find(|c| c.0 == name) {
        return Ok(owned(types));
    }
    let part = |p: &str| {
        !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    match name.split_once('.') {
        Some((family, size)) if part(family) && part(size) => Ok(vec![name.to_owned()]),
        Some(_) | None => Err(PlaceError::Machine(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aliases_or_names_of_aws() {
        assert_eq!(region("us-west").as_deref(), Ok("us-west-1"));
        assert_eq!(region("eu-central-1").as_deref(), Ok("eu-central-1"));
        assert_eq!(region("us-gov-west-1").as_deref(), Ok("us-gov-west-1"));
        for bad in ["", "mars", "us-west-1a", "US-WEST-1", "us--1", "europe-west1-d"] {
            assert!(region(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_documented_alias_has_types_or_says_what_to_use() {
        for entry in MACHINES {
            match machine(entry.alias) {
                Ok(types) => assert_eq!(types.first().map(String::as_str), Some(entry.aws)),
                Err(error) => {
                    assert!(entry.alias.ends_with("+k80"), "{error}");
                    let PlaceError::Retired { instead, .. } = error else { panic!("{error}") };
                    let instead = instead.split(' ').next().expect("an alias");
                    assert!(machine(instead).is_ok(), "{instead}");
                }
            }
        }
    }

    #[test]
    fn native_types_pass_and_nonsense_does_not() {
        assert_eq!(machine("c7i.4xlarge").map(|t| t.len()), Ok(1));
        assert!(machine("u-6tb1.metal").is_ok());
        for bad in ["", "huge", "m+tpu", "m5.", ".large", "M5.large", "m5.2xlarge;x"] {
            assert!(machine(bad).is_err(), "{bad}");
        }
        insta::assert_snapshot!(machine("l+k80").expect_err("retired"), @"l+k80 stands for p2.8xlarge (eight K80), which AWS no longer has: use l+l4 (g6.12xlarge, four L4) instead");
    }

    #[test]
    fn no_type_is_named_twice_in_an_alias() {
        for name in MACHINES.iter().map(|m| m.alias).chain(CURRENT.iter().map(|c| c.0)) {
            let Ok(types) = machine(name) else { continue };
            let unique: std::collections::BTreeSet<_> = types.iter().collect();
            assert_eq!(unique.len(), types.len(), "{name}");
        }
    }
}
