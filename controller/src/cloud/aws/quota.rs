//! Limits of the account: vCPUs that may run of each family, on demand and as spot machines.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{Filter, Instance, InstanceLifecycleType};

use super::{client::Clients, error::failed};
use crate::cloud::{CloudError, Leftovers, plan::Limit};

const SERVICE: &str = "ec2";

/// Families that share a limit. What is in none of them has limits that are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// A, C, D, H, I, M, R, T, Z.
    Standard,
    /// G and VT.
    Graphics,
    /// P, all generations on demand; up to P4 as spot machines.
    P,
    /// P5 as spot machines.
    SpotP5,
    /// X.
    Memory,
    /// F.
    Fpga,
    /// Inf.
    Inferentia,
    /// Trn.
    Trainium,
    /// DL.
    DeepLearning,
}

impl Family {
    /// Of a type, as its limit is counted.
    pub(super) fn of(machine: &str, spot: bool) -> Option<Self> {
        let family = machine.split('.').next().unwrap_or_default();
        let letters: String = family.chars().take_while(|c| !c.is_ascii_digit()).collect();
        Some(match letters.as_str() {
            "a" | "c" | "d" | "h" | "i" | "im" | "is" | "m" | "r" | "t" | "z" => Self::Standard,
            "g" | "gr" | "vt" => Self::Graphics,
            "p" if !spot || family.starts_with("p2") || family.starts_with("p3") => Self::P,
            "p" if family.starts_with("p4") => Self::P,
            "p" if family.starts_with("p5") => Self::SpotP5,
            "x" => Self::Memory,
            "f" => Self::Fpga,
            "inf" => Self::Inferentia,
            "trn" => Self::Trainium,
            "dl" => Self::DeepLearning,
            _ => return None,
        })
    }

    /// Code of its limit, and its name.
    fn limit(self, spot: bool) -> (&'static str, &'static str) {
        match (self, spot) {
            (Self::Standard, false) => ("L-1216C47A", "Running On-Demand Standard instances"),
            (Self::Standard, true) => ("L-34B43A08", "All Standard Spot Instance Requests"),
            (Self::Graphics, false) => ("L-DB2E81BA", "Running On-Demand G and VT instances"),
            (Self::Graphics, true) => ("L-3819A6DF", "All G and VT Spot Instance Requests"),
            (Self::P | Self::SpotP5, false) => ("L-417A185B", "Running On-Demand P instances"),
            (Self::P, true) => ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
            (Self::SpotP5, true) => ("L-C4BD4855", "All P5 Spot Instance Requests"),
            (Self::Memory, false) => ("L-7295265B", "Running On-Demand X instances"),
            (Self::Memory, true) => ("L-E3A00192", "All X Spot Instance Requests"),
            (Self::Fpga, false) => ("L-74FC7D96", "Running On-Demand F instances"),
            (Self::Fpga, true) => ("L-88CF9481", "All F Spot Instance Requests"),
            (Self::Inferentia, false) => ("L-1945791B", "Running On-Demand Inf instances"),
            (Self::Inferentia, true) => ("L-B5D1601B", "All Inf Spot Instance Requests"),
            (Self::Trainium, false) => ("L-2C3B7624", "Running On-Demand Trn instances"),
            (Self::Trainium, true) => ("L-6B0D517C", "All Trn Spot Instance Requests"),
            (Self::DeepLearning, false) => ("L-6E869C2A", "Running On-Demand DL instances"),
            (Self::DeepLearning, true) => ("L-85EED4F7", "All DL Spot Instance Requests"),
        }
    }
}

/// What was found of a limit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) family: Family,
    pub(super) code: &'static str,
    pub(super) name: &'static str,
    /// vCPUs.
    pub(super) limit: f64,
}

/// Machines of the account that count: vCPUs by family, as far as they can be told.
pub(super) type Running = BTreeMap<Family, f64>;

impl Clients {
    /// Limits of these families. An error does not keep anybody from submitting: it is told as a warning.
    pub(super) async fn limits(
        &self,
        families: &BTreeSet<Family>,
        spot: bool,
    ) -> Result<Vec<Found>, CloudError> {
        let found = families.iter().map(async |family| {
            let (code, name) = family.limit(spot);
            let answer =
                self.quotas.get_service_quota().service_code(SERVICE).quota_code(code).send().await.map_err(
                    failed(format!("reading the limit {code} ({name}) in {}", self.region), Leftovers::None),
                )?;
            let limit = answer.quota().and_then(|quota| quota.value());
            Ok::<_, CloudError>(limit.map(|limit| Found { family: *family, code, name, limit }))
        });
        Ok(futures::future::try_join_all(found).await?.into_iter().flatten().collect())
    }

    /// What runs in this region, whoever started it.
    pub(super) async fn running(&self) -> Result<Vec<Instance>, CloudError> {
        let states = ["pending", "running"].map(str::to_owned).to_vec();
        let reservations = self
            .ec2
            .describe_instances()
            .filters(Filter::builder().name("instance-state-name").set_values(Some(states)).build())
            .into_paginator()
            .items()
            .send()
            .try_collect()
            .await
            .map_err(failed(format!("counting what runs in {}", self.region), Leftovers::None))?;
        Ok(reservations.into_iter().flat_map(|r| r.instances.unwrap_or_default()).collect())
    }
}

/// vCPUs by family. Machines that do not say how many they have are counted by their type where that is known,
/// and not at all where it is not: the count is the least that there is.
pub(super) fn used(instances: &[Instance], known: &BTreeMap<String, u32>, spot: bool) -> Running {
    let mut running = Running::new();
    for instance in instances {
        let is_spot = instance.instance_lifecycle() == Some(&InstanceLifecycleType::Spot);
        let Some(kind) = instance.instance_type().map(|t| t.as_str()) else { continue };
        let Some(family) = Family::of(kind, spot).filter(|_| is_spot == spot) else { continue };
        let told = instance.cpu_options().and_then(|cpu| {
            let threads = cpu.core_count()?.checked_mul(cpu.threads_per_core()?)?;
            u32::try_from(threads).ok().filter(|n| *n > 0)
        });
        let vcpus = told.or_else(|| known.get(kind).copied()).unwrap_or_default();
        *running.entry(family).or_default() += f64::from(vcpus);
    }
    running
}

/// Limits as a plan tells them, each with the least that the machines need of it.
pub(super) fn weighed(
    limits: &[Found],
    used: Option<&Running>,
    types: &[String],
    vcpus: &BTreeMap<String, u32>,
    machines: u32,
    spot: bool,
) -> Vec<(Limit, Vec<String>)> {
    let of_family = |family: Family| {
        types.iter().filter(move |kind| Family::of(kind, spot) == Some(family)).cloned().collect::<Vec<_>>()
    };
    limits
        .iter()
        .filter_map(|found| {
            let types = of_family(found.family);
            let least = types.iter().filter_map(|kind| vcpus.get(kind)).min()?;
            let limit = Limit {
                name: found.name.to_owned(),
                code: found.code.to_owned(),
                vcpus: found.limit,
                used: used.map(|used| used.get(&found.family).copied().unwrap_or_default()),
                needed: f64::from(machines) * f64::from(*least),
            };
            Some((limit, types))
        })
        .collect()
}

/// Whether the machines fit below a limit, beside what runs.
pub(super) fn fits(limit: &Limit) -> bool {
    limit.used.unwrap_or_default() + limit.needed <= limit.vcpus
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{CpuOptions, InstanceType};

    use super::*;

    #[test]
    fn families_by_their_letters() {
        use Family as F;
        for (machine, family) in [
            ("m5.2xlarge", Some(F::Standard)),
            ("t2.micro", Some(F::Standard)),
            ("im4gn.large", Some(F::Standard)),
            ("d3en.xlarge", Some(F::Standard)),
            ("g4dn.xlarge", Some(F::Graphics)),
            ("gr6.4xlarge", Some(F::Graphics)),
            ("vt1.3xlarge", Some(F::Graphics)),
            ("p3.2xlarge", Some(F::P)),
            ("p5.48xlarge", Some(F::P)),
            ("inf2.xlarge", Some(F::Inferentia)),
            ("dl1.24xlarge", Some(F::DeepLearning)),
            ("trn1n.32xlarge", Some(F::Trainium)),
            ("hpc7a.96xlarge", None),
            ("mac2.metal", None),
            ("u-6tb1.metal", None),
        ] {
            assert_eq!(Family::of(machine, false), family, "{machine}");
        }
        assert_eq!(Family::of("p5en.48xlarge", true), Some(F::SpotP5));
        assert_eq!(Family::of("p4d.24xlarge", true), Some(F::P));
        assert_eq!(Family::of("p6-b200.48xlarge", true), None, "its spot limit is not known here");
    }

    #[test]
    fn what_runs_counts_by_family_and_way_of_buying() {
        let machine = |kind: &str, cores: Option<i32>, spot: bool| {
            let cpu = cores.map(|n| CpuOptions::builder().core_count(n).threads_per_core(2).build());
            Instance::builder()
                .instance_type(InstanceType::from(kind))
                .set_cpu_options(cpu)
                .set_instance_lifecycle(spot.then_some(InstanceLifecycleType::Spot))
                .build()
        };
        let instances = [
            machine("m5.2xlarge", Some(4), false),
            machine("c5.large", None, false),
            machine("g5.xlarge", Some(2), false),
            machine("m5.large", Some(1), true),
            machine("x9.unknown", None, false),
        ];
        let known = BTreeMap::from([("c5.large".to_owned(), 2)]);
        let on_demand = used(&instances, &known, false);
        assert_eq!(on_demand.get(&Family::Standard), Some(&10.0));
        assert_eq!(on_demand.get(&Family::Graphics), Some(&4.0));
        assert_eq!(used(&instances, &known, true), Running::from([(Family::Standard, 2.0)]));
    }

    #[test]
    fn the_smallest_type_of_a_family_has_to_fit() {
        let (code, name) = Family::Graphics.limit(false);
        let limits = [Found { family: Family::Graphics, code, name, limit: 12.0 }];
        let types = ["g5.2xlarge".to_owned(), "g5.xlarge".to_owned()];
        let vcpus = BTreeMap::from([(types[0].clone(), 8), (types[1].clone(), 4)]);
        let running = Running::from([(Family::Graphics, 4.0)]);
        let of = |machines| {
            let weighed = weighed(&limits, Some(&running), &types, &vcpus, machines, false);
            weighed.iter().map(|(limit, _)| (limit.needed, fits(limit))).collect::<Vec<_>>()
        };
        assert_eq!(of(2), [(8.0, true)]);
        assert_eq!(of(3), [(12.0, false)]);
    }
}
