//! What machines on AWS are told at boot: all that differs from other clouds, as data.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use base64::Engine as _;
use jiff::SignedDuration;
use tpi_cloud_init::{AgentSource, Bootstrap, PowerOff, RenderError};
use tpi_proto::{
    machine::{
        Addresses, Credentials, HttpCall, MACHINE_CONFIG_VERSION, MachineConfig, MachineName, NoticeEffect,
        PreemptionNotice, Signing, Timings, TokenCall,
    },
    spec::{Ingress, Spot},
};
use tpi_store::layout::TaskKeys;
use url::Url;

use super::policy::Bucket;
use crate::cloud::GroupSpec;

/// Where agents listen; the only port that is ever opened.
pub(super) const AGENT_PORT: u16 = 8474;
/// Everything of the agent on a machine.
const ROOT: &str = "/var/lib/tpi";
/// The instance metadata service, the same address in every instance.
const METADATA: &str = "http://169.254.169.254";
/// How often notices are looked for, as AWS advises.
const NOTICE_INTERVAL_MILLIS: u64 = 5_000;
/// From the deadline to the machine's own power-off: the group's schedule comes first.
const POWER_OFF_GRACE: SignedDuration = SignedDuration::from_secs(120);

/// Where machines find S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StorePlace {
    /// Region of the bucket.
    pub(super) region: String,
    /// Address of S3 when it is not the region's usual one.
    pub(super) endpoint: Option<Url>,
    /// Address of Auto Scaling, which machines release themselves at, when it is not the region's usual one.
    pub(super) scaling_endpoint: Option<Url>,
}

/// User-data as the launch template takes it.
///
/// # Errors
/// When it does not fit.
pub(super) fn user_data(
    want: &GroupSpec,
    region: &str,
    bucket: &Bucket,
    store: &StorePlace,
) -> Result<String, RenderError> {
    let bytes = tpi_cloud_init::render(&bootstrap(want, region, bucket, store))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn bootstrap(want: &GroupSpec, region: &str, bucket: &Bucket, store: &StorePlace) -> Bootstrap {
    let key = TaskKeys::new(&want.task).agent(&want.agent_sha256);
    let grace = POWER_OFF_GRACE.as_secs().unsigned_abs();
    Bootstrap {
        config: config(want, region, store),
        agent_sha256: want.agent_sha256.clone(),
        agent: AgentSource::S3 {
            bucket: bucket.name.clone(),
            key: bucket.key(&key),
            region: store.region.clone(),
            endpoint: store.endpoint.clone(),
            metadata: None,
        },
        power_off: PowerOff {
            at: want.deadline.saturating_add(POWER_OFF_GRACE).unwrap_or(want.deadline),
            after_boot_seconds: want.spec.timeout_seconds.saturating_add(grace),
        },
    }
}

fn config(want: &GroupSpec, region: &str, store: &StorePlace) -> MachineConfig<MachineName> {
    let listen = (want.spec.ingress != Ingress::Closed).then_some((Ipv4Addr::UNSPECIFIED, AGENT_PORT).into());
    let preemption = match want.spec.spot {
        Spot::OnDemand => Vec::new(),
        Spot::MarketPrice | Spot::MaxPrice { .. } => notices(),
    };
    MachineConfig {
        version: MACHINE_CONFIG_VERSION,
        task: want.task.clone(),
        machine: MachineName::Ask { ask: metadata("instance-id") },
        slots: u32::from(want.spec.parallelism.get()),
        store: want.store.clone(),
        credentials: Credentials::AwsInstance {
            endpoint: None,
            region: store.region.clone(),
            store_endpoint: store.endpoint.clone(),
        },
        deadline: want.deadline,
        preemption,
        release: Some(release(region, store.scaling_endpoint.as_ref())),
        power_off: true,
        listen,
        addresses: Addresses::Metadata { calls: vec![metadata("public-ipv4"), metadata("local-ipv4")] },
        root: PathBuf::from(ROOT),
        timings: Timings::default(),
        environment: BTreeMap::from([
            ("TPI_REGION".to_owned(), region.to_owned()),
            ("TPI_MACHINE".to_owned(), want.spec.machine.clone()),
        ]),
    }
}

fn metadata(what: &str) -> HttpCall {
    let ttl = ("X-aws-ec2-metadata-token-ttl-seconds".to_owned(), "60".to_owned());
    HttpCall {
        method: "GET".to_owned(),
        url: format!("{METADATA}/latest/meta-data/{what}"),
        headers: BTreeMap::new(),
        body: String::new(),
        token: Some(TokenCall {
            method: "PUT".to_owned(),
            url: format!("{METADATA}/latest/api/token"),
            headers: BTreeMap::from([ttl]),
            header: "X-aws-ec2-metadata-token".to_owned(),
        }),
        signing: Signing::None,
    }
}

fn notices() -> Vec<PreemptionNotice> {
    let notice = |what: &str, effect| PreemptionNotice {
        call: metadata(what),
        contains: None,
        interval_millis: NOTICE_INTERVAL_MILLIS,
        effect,
    };
    // Two minutes before the end; and, earlier or never, that the end is likely.
    vec![
        notice("spot/instance-action", NoticeEffect::Interrupt),
        notice("events/recommendations/rebalance", NoticeEffect::Save),
    ]
}

/// Ends this instance and makes its group one smaller, so that it is not replaced.
fn release(region: &str, endpoint: Option<&Url>) -> HttpCall {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let url = match endpoint {
        Some(endpoint) => format!("{}/", endpoint.as_str().trim_end_matches('/')),
        None => format!("https://autoscaling.{region}.{domain}/"),
    };
    let form = ("Content-Type".to_owned(), "application/x-www-form-urlencoded".to_owned());
    HttpCall {
        method: "POST".to_owned(),
        url,
        headers: BTreeMap::from([form]),
        body: "Action=TerminateInstanceInAutoScalingGroup&Version=2011-01-01&InstanceId={machine}\
               &ShouldDecrementDesiredCapacity=true"
            .to_owned(),
        token: None,
        signing: Signing::AwsV4 { service: "autoscaling".to_owned(), region: region.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::aws::fixture;

    fn place() -> StorePlace {
        StorePlace { region: "us-west-1".to_owned(), endpoint: None, scaling_endpoint: None }
    }

    #[test]
    fn what_a_spot_machine_is_told() {
        let mut want = fixture::want();
        want.spec.spot = Spot::MarketPrice;
        let bucket = Bucket::of(&want.store).expect("a bucket");
        insta::assert_json_snapshot!(bootstrap(&want, "us-west-1", &bucket, &place()));
    }

    #[test]
    fn machines_that_nobody_reaches_do_not_listen_and_those_on_demand_have_no_notices() {
        let mut want = fixture::want();
        want.spec.ingress = Ingress::Closed;
        let config = config(&want, "us-west-1", &place());
        assert_eq!((config.listen, config.preemption.len()), (None, 0));
    }

    #[test]
    fn machines_release_themselves_where_they_are_told() {
        let told = |endpoint: Option<&str>| {
            release("cn-north-1", endpoint.map(|e| Url::parse(e).expect("a URL")).as_ref()).url
        };
        assert_eq!(told(None), "https://autoscaling.cn-north-1.amazonaws.com.cn/");
        assert_eq!(told(Some("http://192.0.2.1:5000")), "http://192.0.2.1:5000/");
    }

    #[test]
    fn user_data_is_the_same_each_time() {
        let want = fixture::want();
        let bucket = Bucket::of(&want.store).expect("a bucket");
        let of = || user_data(&want, "us-west-1", &bucket, &place()).expect("renders");
        assert_eq!(of(), of());
    }
}
