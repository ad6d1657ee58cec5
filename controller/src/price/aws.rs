//! List prices of AWS. The table beside this file says where they come from.

use std::{collections::BTreeMap, sync::OnceLock};

/// When most of the prices were taken from AWS's list; the table says which are younger.
pub const AS_OF: &str = "2025-03-02";

const TABLE: &str = include_str!("aws_on_demand.tsv");
/// Line of volumes, per GB and month.
const VOLUMES: &str = "gp3";
/// AWS counts months as 730 hours.
const HOURS_OF_A_MONTH: f64 = 730.0;

#[derive(Debug)]
struct Table {
    regions: Vec<&'static str>,
    lines: BTreeMap<&'static str, Vec<Option<f64>>>,
}

/// A line that is no number where there should be one is a price that is not known; a test reads all of them.
fn table() -> &'static Table {
    static READ: OnceLock<Table> = OnceLock::new();
    READ.get_or_init(|| {
        let mut lines = TABLE.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t'));
        let regions = lines.next().map(|head| head.skip(1).collect()).unwrap_or_default();
        let lines = lines
            .filter_map(|mut line| Some((line.next()?, line.map(|price| price.parse().ok()).collect())))
            .collect();
        Table { regions, lines }
    })
}

fn find(line: &str, region: &str) -> Option<f64> {
    let table = table();
    let column = table.regions.iter().position(|r| *r == region)?;
    table.lines.get(line)?.get(column).copied().flatten()
}

/// Linux on demand, in US dollars per hour; `None` when it is not known.
#[must_use]
pub fn on_demand(region: &str, machine: &str) -> Option<f64> {
    find(machine, region).or_else(|| {
        let (family, size) = machine.split_once('.')?;
        Some(find(&format!("{family}.*"), region)? * of_xlarge(size)?)
    })
}

/// Regions where a machine has a price, and so is to be had.
pub fn regions_of(machine: &str) -> impl Iterator<Item = &'static str> {
    table().regions.iter().copied().filter(move |region| on_demand(region, machine).is_some())
}

/// An encrypted gp3 volume with the performance that is included, in US dollars per hour.
#[must_use]
pub fn volume(region: &str, gb: u32) -> Option<f64> {
    Some(find(VOLUMES, region)? * f64::from(gb) / HOURS_OF_A_MONTH)
}

/// Size in xlarges. Bare metal has no size.
fn of_xlarge(size: &str) -> Option<f64> {
    Some(match size {
        "nano" => 1.0 / 32.0,
        "micro" => 1.0 / 16.0,
        "small" => 1.0 / 8.0,
        "medium" => 0.25,
        "large" => 0.5,
        "xlarge" => 1.0,
        _ => f64::from(size.strip_suffix("xlarge")?.parse::<u8>().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: Option<f64>, wanted: f64) {
        let found = found.expect("known");
        assert!((found - wanted).abs() < 1e-6, "{found} instead of {wanted}");
    }

    #[test]
    fn prices_that_anybody_can_look_up() {
        near(on_demand("us-east-1", "m5.2xlarge"), 0.384);
        near(on_demand("us-west-1", "m5.2xlarge"), 0.448);
        near(on_demand("us-east-1", "t2.micro"), 0.0116);
        near(on_demand("eu-north-1", "t3.micro"), 0.0108);
        near(on_demand("us-east-1", "g4dn.xlarge"), 0.526);
        near(on_demand("us-west-2", "p5.48xlarge"), 55.04);
        near(volume("us-east-1", 730), 0.08);
    }

    #[test]
    fn what_is_not_in_the_table_is_not_known() {
        for (region, machine) in [
            ("us-east-1", "m5.metal"),
            ("us-east-1", "x2idn.32xlarge"),
            ("us-west-1", "g5.xlarge"),
            ("mars-north-1", "m5.large"),
            ("us-east-1", "m5"),
            ("us-east-1", ""),
        ] {
            assert_eq!(on_demand(region, machine), None, "{machine} in {region}");
        }
        assert_eq!(volume("mars-north-1", 8), None);
    }

    #[test]
    fn a_machine_is_where_it_has_a_price() {
        let regions: Vec<&str> = regions_of("p4de.24xlarge").collect();
        assert!(regions.contains(&"us-east-1") && !regions.contains(&"us-west-1"), "{regions:?}");
        assert_eq!(regions_of("x9.huge").count(), 0);
    }

    #[test]
    fn every_cell_is_a_price_or_a_dash() {
        let table = table();
        assert!(table.regions.len() >= 15);
        let rows: Vec<&str> = TABLE.lines().filter(|l| !l.starts_with('#')).skip(1).collect();
        assert_eq!(rows.len(), table.lines.len(), "a line is there twice");
        for row in rows {
            let cells: Vec<&str> = row.split('\t').skip(1).collect();
            assert_eq!(cells.len(), table.regions.len(), "{row}");
            for cell in cells {
                let price = cell.parse::<f64>().is_ok_and(|p| (0.001..500.0).contains(&p));
                assert!(price || cell == "-", "{cell:?} in {row}");
            }
        }
    }

    #[cfg(feature = "aws")]
    #[test]
    fn every_machine_of_the_tables_has_a_price_somewhere() {
        for name in crate::cloud::aws::place::aliases() {
            let Ok(types) = crate::cloud::aws::place::machine(name) else { continue };
            for kind in types {
                assert!(on_demand("us-east-1", &kind).is_some(), "{kind}");
            }
        }
    }
}
