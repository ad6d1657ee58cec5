//! What a group would be made of, what it would cost at most, and what is refused before anything is made. Two rounds
//! of requests, none of which makes anything:
//!
//! ```text
//! 1 look up     account, types, zones, subnets, image │ spot prices │ limits │ what runs already
//! 2 ask         may this be made?
//! ```

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use jiff::Timestamp;
use tpi_proto::{fault::chain, spec::Spot};

use super::{
    AwsSettings,
    boot::AGENT_PORT,
    client::Clients,
    ensure::{self, Checked},
    error::refused,
    identity::Profile,
    lookup::Found,
    market::{Market, Verdict, judge},
    names::SCHEDULE,
    quota::{self, Family},
};
use crate::{
    cloud::{
        CloudError, CloudErrorKind, GroupSpec, Leftovers,
        plan::{
            Boot, Ceiling, CloudPlan, Disk, Image, LeftOut, Limit, Offer, Opening, PriceBasis, Resource,
            Subnet,
        },
    },
    price,
};

/// What AWS takes as user-data.
const BOOT_MAX: u64 = 16 << 10;

/// What is good to know and need not be answered.
struct Extra {
    market: Market,
    limits: Vec<(Limit, Vec<String>)>,
    warnings: Vec<String>,
}

pub(super) async fn plan(
    clients: &Clients,
    settings: &AwsSettings,
    want: &GroupSpec,
) -> Result<CloudPlan, CloudError> {
    let checked = ensure::check(settings, &clients.region, want)?;
    let spot = is_spot(want.spec.spot);
    let families: BTreeSet<Family> = checked.types.iter().filter_map(|kind| Family::of(kind, spot)).collect();
    let market = async {
        if spot { clients.market(&checked.types, Timestamp::now()).await } else { Ok(Market::new()) }
    };
    let (found, market, limits, running) = futures::future::join4(
        clients.look_up(settings, want, &checked.types),
        market,
        clients.limits(&families, spot),
        clients.running(),
    )
    .await;
    let found = found?;

    let mut warnings = Vec::new();
    let mut told = |what: &str, error: &CloudError| {
        warnings.push(format!("{what}: {}", chain(error)));
    };
    let market = market.unwrap_or_else(|error| {
        told("spot prices are not known", &error);
        Market::new()
    });
    let running = match &running {
        Ok(running) => Some(quota::used(running, &found.vcpus, spot)),
        Err(error) => {
            told("what runs already is not known", error);
            None
        }
    };
    let limits = limits.unwrap_or_else(|error| {
        told("the account's limits are not known and were not compared", &error);
        Vec::new()
    });
    let machines = u32::from(want.spec.parallelism.get());
    let limits = quota::weighed(&limits, running.as_ref(), &found.types, &found.vcpus, machines, spot);
    refuse_what_exceeds_limits(want, &clients.region, &limits, &found.types)?;
    let extra = Extra { market, limits, warnings };
    let plan = describe(&clients.region, want, &checked, &found, extra)?;
    let asked = clients.check_permissions(&want.task, &found, checked.profile.as_ref()).await?;
    Ok(CloudPlan { warnings: plan.warnings.into_iter().chain(asked).collect(), ..plan })
}

fn is_spot(spot: Spot) -> bool {
    match spot {
        Spot::OnDemand => false,
        Spot::MarketPrice | Spot::MaxPrice { .. } => true,
    }
}

/// No type that qualifies fits below its limit: the group would try for ever.
fn refuse_what_exceeds_limits(
    want: &GroupSpec,
    region: &str,
    limits: &[(Limit, Vec<String>)],
    types: &[String],
) -> Result<(), CloudError> {
    let full: Vec<&(Limit, Vec<String>)> = limits.iter().filter(|(limit, _)| !quota::fits(limit)).collect();
    let stopped: BTreeSet<&String> = full.iter().flat_map(|(_, types)| types).collect();
    if types.iter().any(|kind| !stopped.contains(kind)) {
        return Ok(());
    }
    let causes = full.iter().map(|(limit, _)| {
        let used = limit.used.map(|used| format!(", {used} of them in use")).unwrap_or_default();
        format!(
            "{} ({}) in {region} is {} vCPUs{used}, and {} more are needed",
            limit.name, limit.code, limit.vcpus, limit.needed
        )
    });
    let causes = causes.collect::<Vec<_>>().join("; ");
    Err(CloudError {
        kind: CloudErrorKind::QuotaExceeded,
        operation: format!("comparing the machines of {} with the account's limits", want.task),
        leftovers: Leftovers::None,
        source: Some(
            format!(
                "{causes}: ask for a higher limit (Service Quotas, EC2), or choose fewer or smaller machines or another region"
            )
            .into(),
        ),
    })
}

/// Types and zones that qualify, the preferred type first.
fn pools(found: &Found) -> Vec<(String, String)> {
    let zones: BTreeSet<&String> = found.network.zones.iter().collect();
    let of_type = |kind: &String| {
        let offered = found.offered.get(kind).into_iter().flatten();
        offered
            .filter(|zone| zones.contains(zone))
            .map(|zone| (kind.clone(), zone.clone()))
            .collect::<Vec<_>>()
    };
    found.types.iter().flat_map(of_type).collect()
}

fn describe(
    region: &str,
    want: &GroupSpec,
    checked: &Checked,
    found: &Found,
    extra: Extra,
) -> Result<CloudPlan, CloudError> {
    let Extra { market, limits, mut warnings } = extra;
    let pools = pools(found);
    let spot = is_spot(want.spec.spot);
    if let Spot::MaxPrice { usd_per_hour } = want.spec.spot {
        warnings.extend(judge_highest_price(region, want, usd_per_hour, &pools, &market)?);
    }
    let offers: Vec<Offer> = pools
        .iter()
        .map(|pool @ (machine, zone)| {
            let quote = market.get(pool);
            let (usd_per_hour, basis) = if spot {
                (quote.map(|q| q.usd_per_hour), PriceBasis::Market { since: quote.map(|q| q.since) })
            } else {
                (price::aws::on_demand(region, machine), PriceBasis::List)
            };
            Offer { machine: machine.clone(), zone: zone.clone(), usd_per_hour, basis }
        })
        .collect();
    for (limit, types) in &limits {
        if !quota::fits(limit) {
            warnings.push(format!(
                "{} {} beyond the account's limit {} ({}) of {} vCPUs",
                types.join(", "),
                if types.len() == 1 { "is" } else { "are" },
                limit.name,
                limit.code,
                limit.vcpus
            ));
        }
    }
    let disk_gb = ensure::disk_gb(want, found).and_then(|gb| u32::try_from(gb).ok());
    let disk_price = disk_gb.and_then(|gb| price::aws::volume(region, gb));
    let boot = base64::engine::general_purpose::STANDARD.decode(&checked.user_data);
    let boot = boot.map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    if found.from.is_empty() && want.spec.ingress == tpi_proto::spec::Ingress::Caller {
        warnings.push(
            "the address of this computer is not known: machines accept no connections, and are followed through the store"
                .to_owned(),
        );
    }
    Ok(CloudPlan {
        region: region.to_owned(),
        resources: resources(want, checked.profile.as_ref()),
        machines: u32::from(want.spec.parallelism.get()),
        left_out: left_out(region, &checked.types, found, &pools),
        image: Some(Image {
            id: found.image.id.clone(),
            name: found.image.name.clone(),
            owner: found.image.owner.clone(),
            arch: found.arch.as_str().to_owned(),
            root_device: found.image.root_device.clone(),
            root_gb: found.image.root_gb.and_then(|gb| u32::try_from(gb).ok()),
        }),
        subnets: found
            .network
            .subnets
            .iter()
            .zip(&found.network.zones)
            .map(|(id, zone)| Subnet { id: id.clone(), zone: zone.clone() })
            .collect(),
        openings: found.from.iter().map(|from| Opening { port: AGENT_PORT, from: from.clone() }).collect(),
        identity: Some(match &checked.profile {
            None => want.task.to_string(),
            Some(Profile::Name(name) | Profile::Arn(name)) => name.clone(),
        }),
        disk: Some(Disk { kind: "gp3".to_owned(), encrypted: true, gb: disk_gb, usd_per_hour: disk_price }),
        boot: Some(Boot { bytes: boot, most: BOOT_MAX }),
        limits: limits.into_iter().map(|(limit, _)| limit).collect(),
        ceiling: ceiling(region, want, &found.types, disk_price),
        offers,
        warnings,
    })
}

/// Everything of a task but its machines and their disks, in order of making.
fn resources(want: &GroupSpec, profile: Option<&Profile>) -> Vec<Resource> {
    let task = want.task.as_str();
    let own = match profile {
        None => vec![Resource::new("role", task), Resource::new("instance profile", task)],
        Some(_) => Vec::new(),
    };
    std::iter::once(Resource::new("security group", task))
        .chain(own)
        .chain([
            Resource::new("launch template", task),
            Resource::new("Auto Scaling group", task),
            Resource::new("scheduled action", SCHEDULE),
        ])
        .collect()
}

fn left_out(region: &str, wanted: &[String], found: &Found, pools: &[(String, String)]) -> Vec<LeftOut> {
    let why = |kind: &String| {
        if !found.offered.contains_key(kind) {
            Some(format!("{region} does not have it"))
        } else if !found.types.contains(kind) {
            Some(format!("it is not for {} images", found.arch.as_str()))
        } else if !pools.iter().any(|(machine, _)| machine == kind) {
            Some("no subnet is in a zone that has it".to_owned())
        } else {
            None
        }
    };
    wanted.iter().filter_map(|kind| Some(LeftOut { machine: kind.clone(), why: why(kind)? })).collect()
}

/// A price above the list is a waste of attention; one below the market is a group that waits for ever.
fn judge_highest_price(
    region: &str,
    want: &GroupSpec,
    highest: f64,
    pools: &[(String, String)],
    market: &Market,
) -> Result<Vec<String>, CloudError> {
    let mut warnings = Vec::new();
    match judge(highest, &pools.iter().cloned().collect(), market) {
        Verdict::Fine => {}
        Verdict::TooLow { least, machine, zone } => {
            return Err(refused(
                format!("choosing the highest price of spot machines of {}", want.task),
                format!(
                    "${highest} per hour is below what is asked today in every zone, which is ${least:.4} at least \
                     ({machine} in {zone}): give more, or 0 for the market's price"
                ),
            ));
        }
        Verdict::Doubtful { least } => warnings.push(format!(
            "--spot {highest} is below every price of today that is known, which is ${least:.4} per hour at least"
        )),
    }
    let machines: BTreeMap<&String, f64> =
        pools.iter().filter_map(|(kind, _)| Some((kind, price::aws::on_demand(region, kind)?))).collect();
    let dearest = machines.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((kind, list)) = dearest.filter(|(_, list)| highest > *list) {
        warnings.push(format!(
            "--spot {highest} is above the price on demand of every machine that qualifies (${list:.4} for {kind}): no more than that is ever paid"
        ));
    }
    Ok(warnings)
}

/// Spot machines never cost more than the highest price that was given, nor than the same on demand.
fn ceiling(region: &str, want: &GroupSpec, types: &[String], disk: Option<f64>) -> Ceiling {
    let on_demand = types.iter().map(|kind| (kind, price::aws::on_demand(region, kind)));
    let unknown: Vec<&str> =
        on_demand.clone().filter(|(_, price)| price.is_none()).map(|(kind, _)| kind.as_str()).collect();
    let listed = match unknown.as_slice() {
        [] => on_demand
            .filter_map(|(kind, price)| Some((price?, kind)))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(price, kind)| (price, format!("for {kind} on demand, the dearest that qualifies"))),
        _ => None,
    };
    let dearest = match want.spec.spot {
        Spot::OnDemand | Spot::MarketPrice => listed,
        Spot::MaxPrice { usd_per_hour } => {
            let given = || (usd_per_hour, "for a machine, the highest price that was given".to_owned());
            Some(listed.filter(|(list, _)| *list < usd_per_hour).unwrap_or_else(given))
        }
    };
    let mut missing = Vec::new();
    if dearest.is_none() {
        missing.push(format!("the price of {} in {region}", unknown.join(", ")));
    }
    if disk.is_none() {
        missing.push("the price or the size of the disk".to_owned());
    }
    #[expect(clippy::cast_precision_loss, reason = "no timeout is longer than a year")]
    let hours = want.spec.timeout_seconds as f64 / 3600.0;
    Ceiling::of(u32::from(want.spec.parallelism.get()), dearest, disk, hours, &missing.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::aws::fixture;

    fn types() -> Vec<String> {
        ["m5.2xlarge", "m7i.2xlarge"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_ceiling_takes_the_dearest_machine_unless_the_user_says_less() {
        let mut want = fixture::want();
        let of = |want: &GroupSpec, types: &[String]| ceiling("us-west-1", want, types, Some(0.001)).usd;
        let near = |found: Option<f64>, wanted: f64| found.is_some_and(|f| (f - wanted).abs() < 1e-9);
        assert!(near(of(&want, &types()), 0.4704 + 0.001), "{:?}", of(&want, &types()));
        want.spec.spot = Spot::MaxPrice { usd_per_hour: 0.2 };
        assert!(near(of(&want, &types()), 0.201));
        want.spec.spot = Spot::MaxPrice { usd_per_hour: 9.0 };
        assert!(near(of(&want, &types()), 0.4714));
        let unknown = ["x9.huge".to_owned()];
        want.spec.spot = Spot::MarketPrice;
        let ceiling = ceiling("us-west-1", &want, &unknown, Some(0.001));
        assert_eq!((ceiling.usd, ceiling.how.contains("x9.huge")), (None, true), "{ceiling:?}");
    }

    fn limit(vcpus: f64, used: f64, needed: f64) -> Limit {
        Limit { name: "Standard".to_owned(), code: "L-1".to_owned(), vcpus, used: Some(used), needed }
    }

    #[test]
    fn limits_refuse_only_where_no_type_is_left() {
        let want = fixture::want();
        let refuse = |limits: &[(Limit, Vec<String>)], types: &[String]| {
            refuse_what_exceeds_limits(&want, "us-west-1", limits, types)
        };
        assert!(refuse(&[(limit(16.0, 8.0, 8.0), types())], &types()).is_ok());
        let full = [(limit(16.0, 12.0, 8.0), types())];
        let error = refuse(&full, &types()).expect_err("it does not fit");
        assert_eq!(error.kind, CloudErrorKind::QuotaExceeded);
        insta::assert_snapshot!(chain(&error), @"comparing the machines of tpi-test-3z4xlzwq-3u0vweb4 with the account's limits: Standard (L-1) in us-west-1 is 16 vCPUs, 12 of them in use, and 8 more are needed: ask for a higher limit (Service Quotas, EC2), or choose fewer or smaller machines or another region");
        let more = [types(), vec!["g5.xlarge".to_owned()]].concat();
        assert!(refuse(&full, &more).is_ok(), "another family is left");
        assert!(refuse(&[], &types()).is_ok(), "nothing is known");
    }

    #[test]
    fn a_highest_price_above_the_list_is_a_warning_and_one_below_the_market_a_refusal() {
        let want = fixture::want();
        let pools = [("m5.2xlarge".to_owned(), "us-west-1a".to_owned())];
        let quote = super::super::market::Quote { usd_per_hour: 0.2, since: Timestamp::now() };
        let market = Market::from([(pools[0].clone(), quote)]);
        let judge = |highest| judge_highest_price("us-west-1", &want, highest, &pools, &market);
        assert_eq!(judge(0.3).expect("fine"), Vec::<String>::new());
        assert!(judge(0.5).expect("fine")[0].contains("$0.4480 for m5.2xlarge"));
        let error = judge(0.1).expect_err("below the market");
        assert_eq!(error.kind, CloudErrorKind::InvalidSpec);
        assert!(chain(&error).contains("$0.2000 at least (m5.2xlarge in us-west-1a)"), "{}", chain(&error));
    }
}
