//! Cloud, region, machine, image, and what else depends on the place. The tables of aliases are data that
//! the clouds themselves use.

use std::{collections::BTreeMap, ffi::OsString, net::IpAddr};

use tpi_proto::spec::{CloudName, Ingress};

use super::{Field, Findings};

/// An alias, and what it stands for in each cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alias {
    /// As users write it.
    pub alias: &'static str,
    /// In AWS.
    pub aws: &'static str,
    /// In Google Cloud: for regions, a zone.
    pub gcp: &'static str,
    /// In Azure.
    pub az: &'static str,
    /// In Kubernetes; empty where it means nothing.
    pub k8s: &'static str,
}

impl Alias {
    /// What it stands for; `None` where it means nothing.
    #[must_use]
    pub fn native(&self, cloud: CloudName) -> Option<&'static str> {
        let native = match cloud {
            CloudName::Local => self.alias,
            CloudName::Aws => self.aws,
            CloudName::Gcp => self.gcp,
            CloudName::Az => self.az,
            CloudName::K8s => self.k8s,
        };
        (!native.is_empty()).then_some(native)
    }
}

const fn alias(
    alias: &'static str,
    aws: &'static str,
    gcp: &'static str,
    az: &'static str,
    k8s: &'static str,
) -> Alias {
    Alias { alias, aws, gcp, az, k8s }
}

/// Regions.
pub const REGIONS: [Alias; 4] = [
    alias("us-east", "us-east-1", "us-east1-c", "eastus", ""),
    alias("us-west", "us-west-1", "us-west1-b", "westus2", ""),
    alias("eu-north", "eu-north-1", "europe-north1-a", "northeurope", ""),
    alias("eu-west", "eu-west-1", "europe-west1-d", "westeurope", ""),
];

/// Machines. `m+v100` names a type that AWS does have; the table that users know does not.
pub const MACHINES: [Alias; 11] = [
    alias("s", "t2.micro", "g1-small", "Standard_B1s", "1-1000"),
    alias("m", "m5.2xlarge", "e2-custom-8-32768", "Standard_F8s_v2", "8-32000"),
    alias("l", "m5.8xlarge", "e2-custom-32-131072", "Standard_F32s_v2", "32-128000"),
    alias("xl", "m5.16xlarge", "n2-custom-64-262144", "Standard_F64s_v2", "64-256000"),
    alias(
        "m+t4",
        "g4dn.xlarge",
        "n1-standard-4+nvidia-tesla-t4*1",
        "Standard_NC4as_T4_v3",
        "4-16000+nvidia*1",
    ),
    alias("m+k80", "p2.xlarge", "custom-8-53248+nvidia-tesla-k80*1", "Standard_NC6", "4-64000+nvidia*1"),
    alias(
        "l+k80",
        "p2.8xlarge",
        "custom-32-131072+nvidia-tesla-k80*4",
        "Standard_NC12",
        "32-512000+nvidia*8",
    ),
    alias(
        "xl+k80",
        "p2.16xlarge",
        "custom-64-212992-ext+nvidia-tesla-k80*8",
        "Standard_NC24",
        "64-768000+nvidia*16",
    ),
    alias(
        "m+v100",
        "p3.2xlarge",
        "custom-8-65536-ext+nvidia-tesla-v100*1",
        "Standard_NC6s_v3",
        "8-64000+nvidia*1",
    ),
    alias(
        "l+v100",
        "p3.8xlarge",
        "custom-32-262144-ext+nvidia-tesla-v100*4",
        "Standard_NC12s_v3",
        "32-256000+nvidia*4",
    ),
    alias(
        "xl+v100",
        "p3.16xlarge",
        "custom-64-524288-ext+nvidia-tesla-v100*8",
        "Standard_NC24s_v3",
        "64-512000+nvidia*8",
    ),
];

/// Names subnets where no flag does, separated by commas.
pub const SUBNETS_VARIABLE: &str = "TPI_AWS_SUBNETS";

/// Images that every cloud knows by these names.
pub const IMAGES: [&str; 2] = ["ubuntu", "nvidia"];

fn names(of: &[Alias]) -> String {
    of.iter().map(|a| a.alias).collect::<Vec<_>>().join(", ")
}

pub(super) fn cloud(text: Option<&str>, carried: &[CloudName], found: &mut Findings) -> Option<CloudName> {
    let carried_names = carried.iter().map(|c| c.as_str()).collect::<Vec<_>>().join(", ");
    let text = text.unwrap_or(CloudName::Local.as_str());
    let Ok(cloud) = text.parse::<CloudName>() else {
        let known = CloudName::ALL.map(CloudName::as_str).join(", ");
        let hint = match text.to_lowercase().as_str() {
            "azure" => "did you mean az?".to_owned(),
            "google" | "gce" => "did you mean gcp?".to_owned(),
            "amazon" | "ec2" => "did you mean aws?".to_owned(),
            "kubernetes" => "did you mean k8s?".to_owned(),
            lower if lower != text && lower.parse::<CloudName>().is_ok() => format!("did you mean {lower}?"),
            _ => format!("choose one of {known}"),
        };
        found.error(Field::Cloud, Some(text), "is not a cloud", hint);
        return None;
    };
    if !carried.contains(&cloud) {
        found.error(
            Field::Cloud,
            Some(text),
            "is not part of this build",
            format!("this build carries: {carried_names}; build with the feature {cloud:?} to have it",)
                .to_lowercase(),
        );
        return None;
    }
    Some(cloud)
}

pub(super) fn region(text: Option<&str>, cloud: Option<CloudName>, found: &mut Findings) -> String {
    let text = text.unwrap_or("us-west");
    if text.trim().is_empty() {
        found.error(
            Field::Region,
            Some(text),
            "is empty",
            format!("give one of {} or a name that the cloud knows", names(&REGIONS)),
        );
    } else if cloud == Some(CloudName::Local)
        && text != CloudName::Local.as_str()
        && !REGIONS.iter().any(|r| r.alias == text)
    {
        found.error(
            Field::Region,
            Some(text),
            "is not a region of the local cloud",
            format!(
                "give local, {} (all are this computer), or name the cloud it belongs to",
                names(&REGIONS)
            ),
        );
    }
    #[cfg(feature = "aws")]
    if cloud == Some(CloudName::Aws)
        && !text.trim().is_empty()
        && let Err(error) = crate::cloud::aws::place::region(text)
    {
        found.error(Field::Region, Some(text), "is not a region of AWS", error.hint());
    }
    text.to_owned()
}

pub(super) fn machine(
    text: Option<&str>,
    cloud: Option<CloudName>,
    gpu: bool,
    found: &mut Findings,
) -> String {
    let text = text.unwrap_or("m");
    if text.trim().is_empty() {
        found.error(Field::Machine, Some(text), "is empty", format!("give one of {}", names(&MACHINES)));
    } else if cloud == Some(CloudName::Local) && text != CloudName::Local.as_str() {
        let known = MACHINES.iter().any(|m| m.alias == text);
        if !known {
            found.error(
                Field::Machine,
                Some(text),
                "is not a machine of the local cloud",
                "give local, s, m, l or xl (all are this computer), or name the cloud it belongs to",
            );
        } else if text.contains('+') && !gpu {
            found.error(
                Field::Machine,
                Some(text),
                "has a GPU and this computer has none",
                "give local, s, m, l or xl, or choose a cloud that has GPUs",
            );
        }
    }
    #[cfg(feature = "aws")]
    if cloud == Some(CloudName::Aws)
        && !text.trim().is_empty()
        && let Err(error) = crate::cloud::aws::place::machine(text)
    {
        found.error(Field::Machine, Some(text), "is not a machine that AWS has", error.hint());
    }
    text.to_owned()
}

pub(super) fn image(text: Option<&str>, cloud: Option<CloudName>, found: &mut Findings) -> String {
    let text = text.unwrap_or("ubuntu");
    if text.trim().is_empty() {
        found.error(
            Field::Image,
            Some(text),
            "is empty",
            format!("give one of {} or a name that the cloud knows", IMAGES.join(", ")),
        );
    } else if cloud == Some(CloudName::Local) && !IMAGES.contains(&text) && text != "local" {
        found.warn(format!(
            "image {text:?} has no effect on the local cloud: scripts run on this computer (use a container for another system)"
        ));
    }
    #[cfg(feature = "aws")]
    if cloud == Some(CloudName::Aws)
        && !text.trim().is_empty()
        && let Err(error) = crate::cloud::aws::image::check(text)
    {
        found.error(Field::Image, Some(text), "is not an image of AWS", error.to_string());
    }
    text.to_owned()
}

pub(super) fn permission_set(
    text: Option<&str>,
    cloud: Option<CloudName>,
    found: &mut Findings,
) -> Option<String> {
    let text = text.filter(|t| !t.is_empty())?;
    if cloud == Some(CloudName::Local) {
        found.warn("permission_set has no effect on the local cloud: scripts run with your own permissions");
    }
    Some(text.to_owned())
}

/// Those given, else those that the environment names: they are recorded with the task, so that another computer
/// does the same.
pub(super) fn subnets(
    texts: &[String],
    cloud: Option<CloudName>,
    environment: &BTreeMap<OsString, OsString>,
    found: &mut Findings,
) -> Vec<String> {
    match cloud {
        Some(CloudName::Aws) => {}
        Some(CloudName::Local | CloudName::Gcp | CloudName::Az | CloudName::K8s) | None => {
            if !texts.is_empty() {
                found.warn("subnets have no effect on this cloud");
            }
            return Vec::new();
        }
    }
    let named =
        environment.get(&OsString::from(SUBNETS_VARIABLE)).and_then(|v| v.to_str()).unwrap_or_default();
    let named = named.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty());
    let mut subnets: Vec<String> = if texts.is_empty() { named.collect() } else { texts.to_vec() };
    subnets.sort();
    subnets.dedup();
    for text in &subnets {
        let hex = text.strip_prefix("subnet-").unwrap_or_default();
        if !(8..=17).contains(&hex.len()) || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            found.error(
                Field::Subnets,
                Some(text),
                "is not a subnet",
                "give its identifier, such as subnet-0a1b2c3d",
            );
        }
    }
    subnets
}

pub(super) fn container(text: Option<&str>, found: &mut Findings) -> Option<String> {
    let text = text?;
    let wrong = text.is_empty()
        || text.starts_with(['-', '/', ':', '@'])
        || text.contains(|c: char| c.is_whitespace() || c.is_control())
        || text.contains("://");
    if wrong {
        found.error(
            Field::Container,
            Some(text),
            "is not the name of a container image",
            "give an image such as python:3.12-slim or ghcr.io/owner/image@sha256:…",
        );
        return None;
    }
    Some(text.to_owned())
}

fn is_network(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(length) = length.parse::<u8>() else { return false };
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => length <= 32,
        Ok(IpAddr::V6(_)) => length <= 128,
        Err(_) => false,
    }
}

pub(super) fn ingress(texts: &[String], cloud: Option<CloudName>, found: &mut Findings) -> Ingress {
    let hint = "give caller, closed, or networks such as 203.0.113.0/24";
    match texts {
        [] => return Ingress::Caller,
        [one] if one == "caller" => return Ingress::Caller,
        [one] if one == "closed" => return Ingress::Closed,
        _ => {}
    }
    let mut cidrs = Vec::new();
    for text in texts {
        if text == "caller" || text == "closed" {
            found.error(Field::Ingress, Some(text), "cannot be combined with anything else", hint);
        } else if is_network(text) {
            if text.ends_with("/0") {
                found.warn(format!("ingress {text} lets every computer try to connect"));
            }
            cidrs.push(text.clone());
        } else {
            found.error(Field::Ingress, Some(text), "is not a network", hint);
        }
    }
    if cloud == Some(CloudName::Local) {
        found.warn("ingress networks have no effect on the local cloud: agents listen on this computer only");
    }
    Ingress::Networks { cidrs }
}

pub(super) fn storage_container(
    text: Option<&str>,
    cloud: Option<CloudName>,
    found: &mut Findings,
) -> Option<String> {
    let text = text.filter(|t| !t.is_empty())?;
    if cloud == Some(CloudName::Local) {
        found.error(
            Field::StorageContainer,
            Some(text),
            "the local cloud has no buckets of its own",
            "leave it out, or name a store by its URL with `--store`",
        );
        return None;
    }
    let bucket = text.split('/').next().unwrap_or_default();
    if bucket.is_empty() || text.contains("://") || text.split('/').any(|part| part == "..") {
        found.error(
            Field::StorageContainer,
            Some(text),
            "is not a bucket with an optional path",
            "give BUCKET or BUCKET/PATH",
        );
        return None;
    }
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_alias_twice_and_no_empty_name() {
        for table in [&REGIONS[..], &MACHINES[..]] {
            for (n, entry) in table.iter().enumerate() {
                assert!(table.iter().skip(n + 1).all(|e| e.alias != entry.alias), "{}", entry.alias);
                for cloud in [CloudName::Aws, CloudName::Gcp, CloudName::Az] {
                    assert!(entry.native(cloud).is_some(), "{} in {cloud}", entry.alias);
                }
            }
        }
    }

    #[test]
    fn networks() {
        for good in ["203.0.113.0/24", "0.0.0.0/0", "2001:db8::/32"] {
            assert!(is_network(good), "{good}");
        }
        for bad in ["203.0.113.0", "203.0.113.0/33", "::/129", "x/8", "/8", "1.2.3.4/"] {
            assert!(!is_network(bad), "{bad}");
        }
    }
}
