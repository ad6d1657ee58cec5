//! Prices: what the market of spot machines asks, and what the list says.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::{primitives::DateTime, types::InstanceType};
use jiff::{SignedDuration, Timestamp};

use super::{client::Clients, error::failed, observe::time};
use crate::cloud::{CloudError, Leftovers};

const PRODUCT: &str = "Linux/UNIX";
/// The market notes each price at least daily and remembers them for 90 days: one that is older is none.
const OLDEST: SignedDuration = SignedDuration::from_hours(24 * 90);
/// Nothing is sold for less.
const LEAST: f64 = 0.0001;

/// The price of a type in a zone, and since when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quote {
    pub(super) usd_per_hour: f64,
    pub(super) since: Timestamp,
}

/// By type and zone.
pub(super) type Market = BTreeMap<(String, String), Quote>;

impl Clients {
    /// What the market asked for these types at a time: the newest price of each that had been noted by then.
    pub(super) async fn market(&self, types: &[String], at: Timestamp) -> Result<Market, CloudError> {
        let moment = DateTime::from_secs(at.as_second());
        let rows = self
            .ec2
            .describe_spot_price_history()
            .set_instance_types(Some(types.iter().map(|kind| InstanceType::from(kind.as_str())).collect()))
            .product_descriptions(PRODUCT)
            .start_time(moment)
            .end_time(moment)
            .into_paginator()
            .items()
            .send()
            .try_collect()
            .await
            .map_err(failed(format!("asking for spot prices in {}", self.region), Leftovers::None))?;
        let rows = rows.into_iter().filter_map(|row| {
            let kind = row.instance_type()?.as_str().to_owned();
            let quote =
                Quote { usd_per_hour: row.spot_price()?.parse().ok()?, since: time(row.timestamp()?)? };
            // An emulator may know of other types and products only.
            let ours = types.contains(&kind) && row.product_description()?.as_str() == PRODUCT;
            ours.then(|| ((kind, row.availability_zone().unwrap_or_default().to_owned()), quote))
        });
        Ok(newest(rows, at))
    }
}

/// The newest usable price of each type and zone.
fn newest(rows: impl Iterator<Item = ((String, String), Quote)>, at: Timestamp) -> Market {
    let mut market = Market::new();
    for (pool, quote) in rows {
        let usable = quote.usd_per_hour >= LEAST && at.duration_since(quote.since) < OLDEST;
        if usable && market.get(&pool).is_none_or(|known| known.since < quote.since) {
            let _older = market.insert(pool, quote);
        }
    }
    market
}

/// What comes of a highest price, given what the market asks.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// Machines can be had, or it is not known whether.
    Fine,
    /// None can: the least that is asked, and for what.
    TooLow { least: f64, machine: String, zone: String },
    /// None of those whose price is known can.
    Doubtful { least: f64 },
}

/// Judges a highest price against every type and zone that qualifies.
pub(super) fn judge(highest: f64, pools: &BTreeSet<(String, String)>, market: &Market) -> Verdict {
    let known = pools.iter().filter_map(|pool| Some((pool, market.get(pool)?.usd_per_hour)));
    let Some(((machine, zone), least)) = known.clone().min_by(|a, b| a.1.total_cmp(&b.1)) else {
        return Verdict::Fine;
    };
    if least <= highest {
        Verdict::Fine
    } else if known.count() == pools.len() {
        Verdict::TooLow { least, machine: machine.clone(), zone: zone.clone() }
    } else {
        Verdict::Doubtful { least }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + hours * 3600).expect("in range")
    }

    fn pool(zone: &str) -> (String, String) {
        ("m5.2xlarge".to_owned(), zone.to_owned())
    }

    fn quote(usd_per_hour: f64, hours: i64) -> Quote {
        Quote { usd_per_hour, since: at(hours) }
    }

    #[test]
    fn the_newest_price_counts_and_nonsense_does_not() {
        let rows = [
            (pool("a"), quote(0.2, -3)),
            (pool("a"), quote(0.1, -5)),
            (pool("b"), quote(0.000_01, -1)),
            (pool("c"), quote(0.3, -24 * 200)),
        ];
        let market = newest(rows.into_iter(), at(0));
        assert_eq!(market.into_iter().collect::<Vec<_>>(), [(pool("a"), quote(0.2, -3))]);
    }

    #[test]
    fn a_highest_price_is_judged_by_what_is_known() {
        let pools = BTreeSet::from([pool("a"), pool("b")]);
        let all = Market::from([(pool("a"), quote(0.2, 0)), (pool("b"), quote(0.3, 0))]);
        assert_eq!(judge(0.2, &pools, &all), Verdict::Fine);
        let (machine, zone) = pool("a");
        assert_eq!(judge(0.1, &pools, &all), Verdict::TooLow { least: 0.2, machine, zone });
        let some = Market::from([(pool("b"), quote(0.3, 0))]);
        assert_eq!(judge(0.1, &pools, &some), Verdict::Doubtful { least: 0.3 });
        assert_eq!(judge(0.1, &pools, &Market::new()), Verdict::Fine);
    }
}
