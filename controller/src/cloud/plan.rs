//! What would be made, told before anything is: plain data, the same for every cloud.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a group would be made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CloudPlan {
    /// As the cloud calls it.
    pub region: String,
    /// Everything that would be made, in order of making, but for machines and their disks.
    pub resources: Vec<Resource>,
    /// Number of machines.
    pub machines: u32,
    /// What they may be, the preferred type first; the cloud takes what it has.
    pub offers: Vec<Offer>,
    /// What was asked for and does not qualify.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// What they boot; absent where there is nothing to boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Where in the network they start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<Subnet>,
    /// What is opened in the network, and for whom; nothing else can be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub openings: Vec<Opening>,
    /// Identity that machines have; absent where they have none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Disk of each machine; absent where they share this computer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Length of what each machine is told at boot, in bytes, and the most that the cloud takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// Limits of the account that count here, as far as they can be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
    /// Most that everything can cost.
    pub ceiling: Ceiling,
    /// Things the user should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Something that would be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Resource {
    /// In the cloud's words, such as `launch template`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Resource {
    /// One of that kind and name.
    #[must_use]
    pub fn new(kind: &str, name: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), name: name.into() }
    }
}

/// A type of machine in a zone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// As the cloud calls it.
    pub machine: String,
    /// Where.
    pub zone: String,
    /// US dollars per hour, as things are now; absent when not known.
    pub usd_per_hour: Option<f64>,
    /// Where the price is from.
    pub basis: PriceBasis,
}

/// Where a price is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum PriceBasis {
    /// Nothing is paid.
    Free,
    /// A list price, from a table of this program.
    List,
    /// The market, since a time.
    Market {
        /// Absent when the market does not tell a price.
        since: Option<Timestamp>,
    },
}

/// A type of machine that does not qualify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// As the cloud calls it.
    pub machine: String,
    /// Why, as a lower-case fragment.
    pub why: String,
}

/// What machines boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Identifier.
    pub id: String,
    /// Its name; empty when it has none.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// Architecture.
    pub arch: String,
    /// Name of its root device.
    pub root_device: String,
    /// Size of its root volume in GB; absent when it does not say.
    pub root_gb: Option<u32>,
}

/// Part of a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subnet {
    /// Identifier.
    pub id: String,
    /// Its zone.
    pub zone: String,
}

/// A port that can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// TCP port.
    pub port: u16,
    /// From this network, in CIDR notation.
    pub from: String,
}

/// Disk of a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// In the cloud's words.
    pub kind: String,
    /// Whether what is on it is encrypted.
    pub encrypted: bool,
    /// Size; absent when it is the image's own and that does not say.
    pub gb: Option<u32>,
    /// US dollars per hour; absent when not known.
    pub usd_per_hour: Option<f64>,
}

/// What a machine is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Its length.
    pub bytes: u64,
    /// The most that there may be.
    pub most: u64,
}

/// A limit of the account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// In the cloud's words.
    pub name: String,
    /// How the cloud calls it.
    pub code: String,
    /// The limit, in vCPUs.
    pub vcpus: f64,
    /// What runs already; absent when it cannot be told.
    pub used: Option<f64>,
    /// What the machines of the plan come to.
    pub needed: f64,
}

/// Most that something can cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// US dollars; absent when a price is not known.
    pub usd: Option<f64>,
    /// How that was computed, or what is missing for it, as a lower-case fragment.
    pub how: String,
}

impl Ceiling {
    /// `machines` of them with a disk each, for `hours`. A price comes with what it is of; those that are not known
    /// are told by `missing`.
    #[must_use]
    pub fn of(
        machines: u32,
        machine: Option<(f64, String)>,
        disk: Option<f64>,
        hours: f64,
        missing: &str,
    ) -> Self {
        let (Some((machine, of)), Some(disk)) = (machine, disk) else {
            return Self { usd: None, how: format!("not known: {missing}") };
        };
        Self {
            usd: Some(f64::from(machines) * (machine + disk) * hours),
            how: format!("{machines} × (${machine:.4} {of} + ${disk:.4} for its disk) per hour × {hours} h"),
        }
    }
}

/// How much a work directory leaves of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// It fits, as far as can be told.
    Enough,
    /// It may not: beyond what is certain, it depends on how full the image is.
    Doubtful,
    /// It does not.
    TooLittle,
}

/// What any system takes of its disk.
const SYSTEM_BYTES: u64 = 2_000_000_000;
const GB: u64 = 1 << 30;

impl CloudPlan {
    /// Whether a work directory of so many bytes fits on a machine's disk. How full an image is is not known
    /// before it runs: between the size of its root volume and the least that a system takes, it is doubtful.
    #[must_use]
    pub fn room(&self, bytes: u64) -> Room {
        let Some(gb) = self.disk.as_ref().and_then(|disk| disk.gb) else { return Room::Enough };
        let whole = u64::from(gb) * GB;
        let image = self.image.as_ref().and_then(|i| i.root_gb).map_or(0, |gb| u64::from(gb) * GB);
        let certain = whole.saturating_sub(image);
        let most = whole.saturating_sub(SYSTEM_BYTES);
        if bytes > most {
            Room::TooLittle
        } else if bytes > certain && bytes > most / 2 {
            Room::Doubtful
        } else {
            Room::Enough
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(disk: Option<u32>, image: u32) -> CloudPlan {
        CloudPlan {
            region: "us-west-1".to_owned(),
            resources: Vec::new(),
            machines: 1,
            offers: Vec::new(),
            left_out: Vec::new(),
            image: Some(Image {
                id: "ami-1".to_owned(),
                name: String::new(),
                owner: String::new(),
                arch: "x86_64".to_owned(),
                root_device: "/dev/sda1".to_owned(),
                root_gb: Some(image),
            }),
            subnets: Vec::new(),
            openings: Vec::new(),
            identity: None,
            disk: disk.map(|gb| Disk {
                kind: "gp3".to_owned(),
                encrypted: true,
                gb: Some(gb),
                usd_per_hour: None,
            }),
            boot: None,
            limits: Vec::new(),
            ceiling: Ceiling::of(1, None, None, 1.0, "nothing"),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_work_directory_needs_room_beside_the_system() {
        let gb = |n: u64| n * GB;
        assert_eq!(plan(None, 8).room(gb(1000)), Room::Enough, "not of this cloud's making");
        for (disk, image, bytes, room) in [
            (8, 8, gb(1), Room::Enough),
            (8, 8, gb(5), Room::Doubtful),
            (8, 8, gb(7), Room::TooLittle),
            (100, 8, gb(90), Room::Enough),
            (100, 35, gb(90), Room::Doubtful),
            (100, 8, gb(99), Room::TooLittle),
            (1, 1, 1, Room::TooLittle),
        ] {
            assert_eq!(plan(Some(disk), image).room(bytes), room, "{bytes} of {disk} GB");
        }
    }

    #[test]
    fn a_ceiling_is_a_product_or_says_what_is_missing() {
        let dearest = Some((0.448, "for m5.2xlarge on demand".to_owned()));
        let ceiling = Ceiling::of(3, dearest, Some(0.002), 24.0, "");
        assert!(ceiling.usd.is_some_and(|usd| (usd - 32.4).abs() < 1e-9), "{ceiling:?}");
        insta::assert_snapshot!(ceiling.how, @"3 × ($0.4480 for m5.2xlarge on demand + $0.0020 for its disk) per hour × 24 h");
        let unknown = Ceiling::of(3, None, Some(0.002), 24.0, "the price of x9.huge");
        assert_eq!((unknown.usd, unknown.how.as_str()), (None, "not known: the price of x9.huge"));
    }
}
