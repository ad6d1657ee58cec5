//! What has to be known before anything is made: account, network, types, image. One round of requests, and
//! everything that would fail later is refused here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aws_sdk_ec2::types::{
    ArchitectureType, Filter, Image, ImageState, InstanceTypeInfo, LocationType, Subnet,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tpi_proto::spec::Ingress;

use super::{
    AwsSettings, CallerAddress,
    client::Clients,
    error::{failed, refused},
    image::{Arch, ImageError, ImageQuery, query},
};
use crate::{
    cloud::{CloudError, CloudErrorKind, GroupSpec, Leftovers},
    price,
};

/// Answers with the address that it sees.
const ADDRESS_SERVICE: &str = "checkip.amazonaws.com";
const ADDRESS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
const ADDRESS_ANSWER_MAX: u64 = 4096;

/// Whose account it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) account: String,
    /// `aws`, `aws-cn`, `aws-us-gov`.
    pub(super) partition: String,
    /// Whose they are.
    pub(super) arn: String,
}

/// An image that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BootImage {
    pub(super) id: String,
    /// Empty when it has none.
    pub(super) name: String,
    /// Account that owns it.
    pub(super) owner: String,
    /// Name of its root device.
    pub(super) root_device: String,
    /// Size of its root volume.
    pub(super) root_gb: Option<i32>,
}

/// Subnets that machines can start in, all of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) vpc: String,
    pub(super) subnets: Vec<String>,
    /// Zone of each subnet.
    pub(super) zones: Vec<String>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) caller: Caller,
    pub(super) network: Network,
    /// Types that can be had, the preferred one first.
    pub(super) types: Vec<String>,
    pub(super) arch: Arch,
    /// vCPUs of each type that there is.
    pub(super) vcpus: BTreeMap<String, u32>,
    /// Zones that have each type.
    pub(super) offered: BTreeMap<String, BTreeSet<String>>,
    pub(super) image: BootImage,
    /// Networks that may try to reach the agents.
    pub(super) from: Vec<String>,
}

impl Clients {
    /// One round of requests, all at once.
    ///
    /// # Errors
    /// Whatever would make a group useless; nothing was made.
    pub(super) async fn look_up(
        &self,
        settings: &AwsSettings,
        want: &GroupSpec,
        wanted: &[String],
    ) -> Result<Found, CloudError> {
        let image = &want.spec.image;
        let queries = [Arch::X86_64, Arch::Arm64].map(|arch| query(image, arch));
        let operation = || format!("choosing the image of {}", want.task);
        // A mistake in the request's own words is the same for both.
        if let (Err(error), Err(_)) = (&queries[0], &queries[1]) {
            return Err(refused(operation(), error.clone()));
        }
        let (basics, images, from) = futures::future::join3(
            futures::future::try_join4(
                self.caller(),
                self.types(wanted),
                self.offered(wanted),
                self.subnets(settings, want),
            ),
            self.images(&queries),
            allowed(settings, &want.spec.ingress),
        )
        .await;
        let (caller, infos, offered, subnets) = basics?;
        let mut images = images?;
        let operation = format!("choosing machines for {}", want.task);
        let (types, arch) = usable(&operation, &self.region, wanted, &infos, &offered)?;
        let network = network(&operation, &self.region, subnets, &types, &offered)?;
        let operation = format!("choosing the image of {}", want.task);
        let [x86, arm] = queries;
        let query = match arch {
            Arch::X86_64 => x86,
            Arch::Arm64 => arm,
        }
        .map_err(|error| refused(operation.clone(), error))?;
        let image = images.remove(query_key(&query).as_str()).flatten();
        let image = boot_image(&operation, &self.region, &want.spec.image, arch, image)?;
        if let (Some(asked), Some(least)) = (want.spec.disk_size, image.root_gb)
            && i64::from(asked) < i64::from(least)
        {
            return Err(refused(
                format!("choosing the disk of {}", want.task),
                format!("the image {} needs {least} GB and {asked} GB were asked for", image.id),
            ));
        }
        let vcpus = infos.iter().filter_map(vcpus).collect();
        Ok(Found { caller, network, types, arch, vcpus, offered, image, from })
    }

    pub(super) async fn caller(&self) -> Result<Caller, CloudError> {
        self.caller.get_or_try_init(|| self.ask_caller()).await.cloned()
    }

    async fn ask_caller(&self) -> Result<Caller, CloudError> {
        let operation = "asking AWS whose credentials these are";
        let answer =
            self.sts.get_caller_identity().send().await.map_err(failed(operation, Leftovers::None))?;
        let partition = answer.arn().and_then(|arn| arn.split(':').nth(1)).unwrap_or("aws");
        Ok(Caller {
            account: answer.account().unwrap_or_default().to_owned(),
            partition: partition.to_owned(),
            arn: answer.arn().unwrap_or_default().to_owned(),
        })
    }

    async fn types(&self, wanted: &[String]) -> Result<Vec<InstanceTypeInfo>, CloudError> {
        // A filter answers with those that exist; naming them would fail on the first that does not.
        let filter = Filter::builder().name("instance-type").set_values(Some(wanted.to_vec())).build();
        let pages = self.ec2.describe_instance_types().filters(filter).into_paginator().items().send();
        let operation = format!("looking up {} in {}", wanted.join(", "), self.region);
        pages.try_collect().await.map_err(failed(operation, Leftovers::None))
    }

    /// Zones that have each type.
    async fn offered(&self, wanted: &[String]) -> Result<BTreeMap<String, BTreeSet<String>>, CloudError> {
        let filter = Filter::builder().name("instance-type").set_values(Some(wanted.to_vec())).build();
        let offerings = self
            .ec2
            .describe_instance_type_offerings()
            .location_type(LocationType::AvailabilityZone)
            .filters(filter)
            .into_paginator()
            .items()
            .send()
            .try_collect()
            .await
            .map_err(failed(format!("looking up zones that have {}", wanted.join(", ")), Leftovers::None))?;
        let mut zones: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for offering in offerings {
            if let (Some(kind), Some(zone)) = (offering.instance_type, offering.location) {
                let _new = zones.entry(kind.as_str().to_owned()).or_default().insert(zone);
            }
        }
        Ok(zones)
    }

    async fn subnets(&self, settings: &AwsSettings, want: &GroupSpec) -> Result<Vec<Subnet>, CloudError> {
        let request = self.ec2.describe_subnets();
        // What the task was submitted with counts on every computer.
        let named = if want.spec.subnets.is_empty() { &settings.subnets } else { &want.spec.subnets };
        let request = if named.is_empty() {
            request.filters(Filter::builder().name("default-for-az").values("true").build())
        } else {
            request.set_subnet_ids(Some(named.clone()))
        };
        let operation = format!("looking for subnets in {}", self.region);
        request
            .into_paginator()
            .items()
            .send()
            .try_collect()
            .await
            .map_err(failed(operation, Leftovers::None))
    }

    /// The image for each query.
    async fn images(
        &self,
        queries: &[Result<ImageQuery, ImageError>; 2],
    ) -> Result<BTreeMap<String, Option<Image>>, CloudError> {
        let unique: BTreeMap<String, &ImageQuery> =
            queries.iter().flatten().map(|query| (query_key(query), query)).collect();
        let found = unique.into_iter().map(async |(key, query)| {
            let image = self.newest(query).await?;
            Ok::<_, CloudError>((key, image))
        });
        Ok(futures::future::try_join_all(found).await?.into_iter().collect())
    }

    async fn newest(&self, query: &ImageQuery) -> Result<Option<Image>, CloudError> {
        let filter = |name: &str, value: &str| Filter::builder().name(name).values(value).build();
        let request = self.ec2.describe_images();
        let request = match query {
            ImageQuery::Id(id) => request.filters(filter("image-id", id)),
            ImageQuery::Newest { owner, name, arch } => {
                let request = request.owners(owner).filters(filter("name", name));
                match arch {
                    Some(arch) => request.filters(filter("architecture", arch.as_str())),
                    None => request,
                }
            }
        };
        let operation = format!("looking for an image in {}", self.region);
        let images = request
            .into_paginator()
            .items()
            .send()
            .try_collect()
            .await
            .map_err(failed(operation, Leftovers::None))?;
        let usable =
            images.into_iter().filter(|i| i.state.as_ref().is_none_or(|s| *s == ImageState::Available));
        // Dates are written so that their order is that of their texts.
        Ok(usable
            .max_by(|a, b| a.creation_date.cmp(&b.creation_date).then_with(|| a.image_id.cmp(&b.image_id))))
    }
}

fn query_key(query: &ImageQuery) -> String {
    format!("{query:?}")
}

/// Types that exist here, and the one architecture that they share.
fn usable(
    operation: &str,
    region: &str,
    wanted: &[String],
    infos: &[InstanceTypeInfo],
    offered: &BTreeMap<String, BTreeSet<String>>,
) -> Result<(Vec<String>, Arch), CloudError> {
    let arch_of = |kind: &String| {
        let info = infos.iter().find(|i| i.instance_type().is_some_and(|t| t.as_str() == kind))?;
        let architectures = info.processor_info()?.supported_architectures();
        if architectures.contains(&ArchitectureType::X8664) {
            return Some(Arch::X86_64);
        }
        architectures.contains(&ArchitectureType::Arm64).then_some(Arch::Arm64)
    };
    let here: Vec<(String, Arch)> = wanted
        .iter()
        .filter(|kind| offered.contains_key(*kind))
        .filter_map(|kind| Some((kind.clone(), arch_of(kind)?)))
        .collect();
    let Some((_, arch)) = here.first() else {
        let elsewhere: BTreeSet<&str> =
            wanted.iter().flat_map(|kind| price::aws::regions_of(kind)).filter(|r| *r != region).collect();
        let elsewhere = elsewhere.into_iter().collect::<Vec<_>>().join(", ");
        let elsewhere = if elsewhere.is_empty() { elsewhere } else { format!(", such as {elsewhere}") };
        let cause = format!(
            "{region} has no {}: choose another machine or region{elsewhere}",
            wanted.join(" and no ")
        );
        return Err(refused(operation, cause));
    };
    let types = here.iter().filter(|(_, a)| a == arch).map(|(kind, _)| kind.clone()).collect();
    Ok((types, *arch))
}

/// Subnets in zones that have one of the types.
fn network(
    operation: &str,
    region: &str,
    subnets: Vec<Subnet>,
    types: &[String],
    offered: &BTreeMap<String, BTreeSet<String>>,
) -> Result<Network, CloudError> {
    if subnets.is_empty() {
        return Err(refused(
            operation,
            format!(
                "there is no default network in {region}: make one with `aws ec2 create-default-vpc`, or name \
                 subnets with --subnet"
            ),
        ));
    }
    let vpc = subnets.first().and_then(|s| s.vpc_id.clone()).unwrap_or_default();
    if subnets.iter().any(|s| s.vpc_id.as_ref() != Some(&vpc)) {
        return Err(refused(operation, "the subnets given are not all of one network"));
    }
    let mut usable: Vec<(String, String)> = subnets
        .into_iter()
        .filter(|s| s.available_ip_address_count.is_none_or(|free| free > 0))
        .filter(|s| {
            let zone = s.availability_zone().unwrap_or_default();
            types.iter().any(|kind| offered.get(kind).is_some_and(|zones| zones.contains(zone)))
        })
        .filter_map(|s| Some((s.subnet_id?, s.availability_zone.unwrap_or_default())))
        .collect();
    usable.sort();
    if usable.is_empty() {
        let cause = format!("no usable subnet of {vpc} is in a zone that has {}", types.join(" or "));
        return Err(refused(operation, cause));
    }
    let (subnets, zones) = usable.into_iter().unzip();
    Ok(Network { vpc, subnets, zones })
}

fn vcpus(info: &InstanceTypeInfo) -> Option<(String, u32)> {
    let count = info.v_cpu_info()?.default_v_cpus()?;
    Some((info.instance_type()?.as_str().to_owned(), u32::try_from(count).ok()?))
}

fn boot_image(
    operation: &str,
    region: &str,
    asked: &str,
    arch: Arch,
    image: Option<Image>,
) -> Result<BootImage, CloudError> {
    let Some(image) = image else {
        let more =
            if asked.starts_with("ami-") { " (an image's identifier is of one region only)" } else { "" };
        let cause = format!("{region} has no image {asked:?} for {} machines{more}", arch.as_str());
        return Err(refused(operation, cause));
    };
    let id = image.image_id.clone().unwrap_or_default();
    if let Some(other) = image.architecture.as_ref().filter(|a| Arch::parse(a.as_str()) != Some(arch)) {
        let cause =
            format!("{id} is an image for {other} machines, and the machine asked for is {}", arch.as_str());
        return Err(refused(operation, cause));
    }
    let Some(root_device) = image.root_device_name.clone() else {
        return Err(refused(operation, format!("{id} does not say which its root device is")));
    };
    let root_gb = image
        .block_device_mappings()
        .iter()
        .find(|m| m.device_name() == Some(root_device.as_str()))
        .and_then(|m| m.ebs()?.volume_size());
    let name = image.name.clone().unwrap_or_default();
    let owner = image.owner_id.clone().unwrap_or_default();
    Ok(BootImage { id, name, owner, root_device, root_gb })
}

/// Networks that may try to connect.
async fn allowed(settings: &AwsSettings, ingress: &Ingress) -> Vec<String> {
    match (ingress, &settings.caller_address) {
        (Ingress::Closed, _) => Vec::new(),
        (Ingress::Networks { cidrs }, _) => cidrs.clone(),
        (Ingress::Caller, CallerAddress::Known(address)) => vec![single(*address)],
        (Ingress::Caller, CallerAddress::Ask) => match ask_address().await {
            Ok(address) => vec![single(address)],
            Err(error) => {
                // Plans say so, too.
                tracing::info!(
                    %error,
                    "the address of this computer is not known: machines accept no connections, and are followed through the store"
                );
                Vec::new()
            }
        },
    }
}

fn single(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}/32"),
        IpAddr::V6(v6) => format!("{v6}/128"),
    }
}

/// In the open: the answer only decides who may try a handshake that needs a certificate from the store.
async fn ask_address() -> std::io::Result<IpAddr> {
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect((ADDRESS_SERVICE, 80)).await?;
        let request = format!("GET / HTTP/1.0\r\nHost: {ADDRESS_SERVICE}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let _length = stream.take(ADDRESS_ANSWER_MAX).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = tokio::time::timeout(ADDRESS_TIMEOUT, ask)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))?;
    let text = String::from_utf8_lossy(&answer);
    let strange = || std::io::Error::other(format!("{ADDRESS_SERVICE} did not answer with an address"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(strange)?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(strange());
    }
    body.trim().parse().map_err(|_| strange())
}

/// A price that AWS takes, and nobody regrets.
pub(super) fn max_price(usd_per_hour: f64) -> Result<String, CloudError> {
    let operation = "choosing the highest price of a spot machine";
    // No machine costs a thousand an hour; one that does was meant in cents.
    if !(0.0001..=1000.0).contains(&usd_per_hour) {
        let cause = format!("{usd_per_hour} US dollars per hour is not between 0.0001 and 1000");
        return Err(CloudError { kind: CloudErrorKind::InvalidSpec, ..refused(operation, cause) });
    }
    Ok(format!("{usd_per_hour:.5}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_written_as_aws_takes_them() {
        assert_eq!(max_price(0.25).as_deref().ok(), Some("0.25000"));
        for nonsense in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.000_001, 100_000.0] {
            assert!(max_price(nonsense).is_err(), "{nonsense}");
        }
    }
}
