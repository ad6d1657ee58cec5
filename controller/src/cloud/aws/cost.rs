//! What machines cost: the list's price on demand, the market's at the time of launch for spot machines. Estimates:
//! the market moves while a machine runs, and disks are not in them.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{Instance, InstanceLifecycleType};
use jiff::Timestamp;

use super::{
    client::Clients,
    market::Market,
    observe::{Sight, time},
};
use crate::{cloud::Observed, price};

/// Launches within this time count as one: the market moves slowly.
const TOGETHER_SECONDS: i64 = 3600;
/// Times that the market is asked about at most, for one task; later machines have no price.
const QUESTIONS_MAX: usize = 8;

fn is_spot(instance: &Instance) -> bool {
    instance.instance_lifecycle() == Some(&InstanceLifecycleType::Spot)
}

fn kind(instance: &Instance) -> Option<&str> {
    Some(instance.instance_type()?.as_str())
}

fn zone(instance: &Instance) -> &str {
    instance.placement().and_then(|p| p.availability_zone()).unwrap_or_default()
}

/// When a machine was launched, as far as the market is asked.
fn moment(instance: &Instance) -> Option<i64> {
    Some(time(instance.launch_time()?)?.as_second().div_euclid(TOGETHER_SECONDS) * TOGETHER_SECONDS)
}

impl Clients {
    /// What there is, with what it costs as far as that is known. A market that does not answer costs nothing but
    /// the estimate.
    pub(super) async fn priced(&self, sight: &Sight) -> Observed {
        let mut spot: BTreeMap<i64, BTreeSet<String>> = BTreeMap::new();
        for instance in sight.instances.iter().filter(|i| is_spot(i)) {
            if let (Some(at), Some(kind)) = (moment(instance), kind(instance)) {
                let _new = spot.entry(at).or_default().insert(kind.to_owned());
            }
        }
        let asked = spot.into_iter().take(QUESTIONS_MAX).map(async |(at, kinds)| {
            let types: Vec<String> = kinds.into_iter().collect();
            // The end of that time: a price holds until the next one.
            let when =
                Timestamp::from_second(at + TOGETHER_SECONDS).unwrap_or_default().min(Timestamp::now());
            let market = self.market(&types, when).await;
            let market = market.unwrap_or_else(|error| {
                tracing::debug!(%error, "no price of spot machines");
                Market::new()
            });
            (at, market)
        });
        let markets: BTreeMap<i64, Market> = futures::future::join_all(asked).await.into_iter().collect();
        let mut observed = sight.observed();
        for machine in &mut observed.machines {
            let instance = sight.instances.iter().find(|i| i.instance_id() == Some(machine.id.0.as_str()));
            machine.usd_per_hour = instance.and_then(|i| of(i, &self.region, &markets));
        }
        observed
    }
}

fn of(instance: &Instance, region: &str, markets: &BTreeMap<i64, Market>) -> Option<f64> {
    let kind = kind(instance)?;
    if !is_spot(instance) {
        return price::aws::on_demand(region, kind);
    }
    let pool = (kind.to_owned(), zone(instance).to_owned());
    Some(markets.get(&moment(instance)?)?.get(&pool)?.usd_per_hour)
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::{
        primitives::DateTime,
        types::{InstanceType, Placement},
    };

    use super::{super::market::Quote, *};

    fn instance(kind: &str, spot: bool, launched: i64) -> Instance {
        Instance::builder()
            .instance_type(InstanceType::from(kind))
            .placement(Placement::builder().availability_zone("us-west-1a").build())
            .launch_time(DateTime::from_secs(launched))
            .set_instance_lifecycle(spot.then_some(InstanceLifecycleType::Spot))
            .build()
    }

    #[test]
    fn on_demand_is_listed_and_spot_is_what_the_market_asked_at_launch() {
        let quote = Quote { usd_per_hour: 0.2, since: Timestamp::UNIX_EPOCH };
        let pool = ("m5.2xlarge".to_owned(), "us-west-1a".to_owned());
        let markets = BTreeMap::from([(7200, Market::from([(pool, quote)]))]);
        let price = |kind, spot, launched| of(&instance(kind, spot, launched), "us-west-1", &markets);
        assert_eq!(price("m5.2xlarge", false, 9000), Some(0.448));
        assert_eq!(price("m5.2xlarge", true, 9000), Some(0.2));
        assert_eq!(price("m5.2xlarge", true, 90_000), None, "nobody was asked about that time");
        assert_eq!(price("x9.huge", false, 9000), None);
    }
}
