//! The agent on an instance of AWS that it knows nothing of: all it needs is in its configuration. The services around
//! it refuse whatever AWS may refuse.

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use jiff::{SignedDuration, Timestamp};
use tpi_proto::{
    id::{Attempt, SlotIndex, TaskId},
    machine::{
        Addresses, Credentials, MACHINE_CONFIG_VERSION, MachineConfig, MachineName, NoticeEffect,
        PreemptionNotice, Timings,
    },
    spec::{CloudName, Ingress, Spot, StorageSpec, TaskSpec},
    state::{Outcome, SlotState, SlotStatus},
};
use tpi_store::{
    Store,
    layout::TaskKeys,
    record::{Identity, Intent, RECORD_VERSION, TaskRecord},
};
use tpi_tests::instance::{BUCKET, INTERRUPTION, Instance, REBALANCE, REGION};

const PATIENCE: Duration = Duration::from_secs(120);

struct World {
    folder: tempfile::TempDir,
    instance: Instance,
    store: Store,
    keys: TaskKeys,
    config: MachineConfig<MachineName>,
}

impl World {
    async fn new(script: &str, lifetime: Duration) -> Result<Self> {
        // Another test of this process may have been first.
        drop(rustls::crypto::ring::default_provider().install_default());
        let instance = Instance::start(lifetime).await?;
        let folder = tempfile::tempdir()?;
        let task = TaskId::seeded("instance", folder.path().as_os_str().as_encoded_bytes())?;
        let keys = TaskKeys::new(&task);
        let url = format!("s3://{BUCKET}/some/prefix").parse()?;
        // The user's side has credentials of its own; here it borrows the instance's.
        let settings = [
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_METADATA_ENDPOINT", instance.url()),
            ("AWS_ENDPOINT_URL_S3", instance.url()),
        ];
        let store = Store::open_with(&url, settings.map(|(name, value)| (name.to_owned(), value)))?;
        let deadline = Timestamp::now() + SignedDuration::from_hours(1);
        let spec = TaskSpec {
            name: "instance".to_owned(),
            cloud: CloudName::Local,
            region: "here".to_owned(),
            machine: "m".to_owned(),
            image: String::new(),
            disk_size: None,
            spot: Spot::OnDemand,
            parallelism: NonZeroU16::MIN,
            permission_set: None,
            tags: BTreeMap::new(),
            environment: Vec::new(),
            timeout_seconds: 3600,
            grace_seconds: 5,
            script: script.to_owned(),
            container: None,
            ingress: Ingress::Closed,
            storage: StorageSpec::default(),
            subnets: Vec::new(),
            provision_timeout_seconds: None,
        };
        let record = TaskRecord {
            version: RECORD_VERSION,
            id: task.clone(),
            writer: "test".to_owned(),
            created: Timestamp::now(),
            spec,
            intent: Intent::Run,
            deadline: Some(deadline),
            agent_sha256: None,
            input_stored: false,
            gave_up: None,
        };
        let _version = store.create_json(&keys.record(), &record).await?;
        let notice = |path, effect| PreemptionNotice {
            call: instance.metadata(path),
            contains: None,
            interval_millis: 100,
            effect,
        };
        let config = MachineConfig {
            version: MACHINE_CONFIG_VERSION,
            task,
            machine: MachineName::Ask { ask: instance.metadata("instance-id") },
            slots: 1,
            store: url,
            credentials: Credentials::AwsInstance {
                endpoint: Some(instance.url().parse()?),
                region: REGION.to_owned(),
                store_endpoint: Some(instance.url().parse()?),
            },
            deadline,
            preemption: vec![
                notice(INTERRUPTION, NoticeEffect::Interrupt),
                notice(REBALANCE, NoticeEffect::Save),
            ],
            release: Some(instance.release()),
            power_off: false,
            listen: Some("127.0.0.1:0".parse()?),
            addresses: Addresses::Metadata {
                calls: vec![instance.metadata("public-ipv4"), instance.metadata("not/there")],
            },
            root: folder.path().join("disk"),
            timings: Timings {
                lease_ttl: 30_000,
                lease_renew: 500,
                // Only a notice and the end are reasons to save.
                save_interval: 3_600_000,
                log_flush: 200,
                boot_budget: 60_000,
                ..Timings::default()
            },
            environment: BTreeMap::new(),
        };
        Ok(Self { folder, instance, store, keys, config })
    }

    fn start(&self) -> Result<Agent> {
        let config = self.folder.path().join("machine.json");
        std::fs::write(&config, serde_json::to_vec(&self.config)?)?;
        let log = self.folder.path().join("agent.log");
        let child = Command::new(tpi_tests::program("TPI_AGENT", "tpi-agent")?)
            .args(["run", "--config"])
            .arg(config)
            .env_clear()
            // These are not the instance's, and must not be used.
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "not the instance's")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(log)?)
            .spawn()?;
        Ok(Agent(child))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    async fn status(&self, what: &str, wanted: impl Fn(&SlotStatus) -> bool) -> Result<SlotStatus> {
        let end = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < end {
            let found = self.store.get_json::<SlotStatus>(&self.keys.slot(SlotIndex(0))).await?;
            if let Some((status, _)) = found {
                if wanted(&status) {
                    return Ok(status);
                }
                last = Some(status);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("waited in vain for {what}: {last:#?}\n{}", self.log())
    }

    fn work(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("disk/work").join(name)
    }
}

struct Agent(Child);

impl Agent {
    async fn ended(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the agent did not end")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Ended already, mostly.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_learns_who_it_is_and_takes_itself_out_of_its_group() -> Result<()> {
    let world = World::new("#!/bin/sh\necho $TPI_MACHINE_ID\n", Duration::from_secs(3600)).await?;
    // A machine that is younger than its network.
    world.instance.sulk(2);
    let mut agent = world.start()?;
    let status = world.status("the end", |s| s.state.is_final()).await?;
    assert!(
        matches!(status.state, SlotState::Finished { outcome: Outcome::Exited { code: 0 }, .. }),
        "{status:?}\n{}",
        world.log()
    );
    assert_eq!(agent.ended().await?.code(), Some(0), "{}", world.log());
    let id = world.instance.id();
    assert_eq!(status.machine.0, id);
    assert_eq!(status.log_complete, Some(id.len() as u64 + 1));
    let identity = world.store.get_json::<Identity>(&world.keys.identity(status.run())).await?;
    let (identity, _) = identity.context("it was published")?;
    assert_eq!(identity.machine.0, id);
    assert_eq!(identity.addresses.len(), 1);
    assert!(identity.addresses[0].starts_with("192.0.2.7:"), "{:?}", identity.addresses);
    assert_eq!(
        world.instance.released(),
        [format!(
            "Action=TerminateInstanceInAutoScalingGroup&InstanceId={id}\
             &ShouldDecrementDesiredCapacity=true&Version=2011-01-01"
        )]
    );
    assert_eq!(world.instance.refusals(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_saves_and_a_notice_interrupts() -> Result<()> {
    let script = "#!/bin/sh\n[ $TPI_ATTEMPT = 1 ] || { cat made; exit 0; }\n\
                  trap 'echo late >> made; exit 1' TERM\necho early > made\n\
                  while :; do sleep 0.05; done\n";
    let world = World::new(script, Duration::from_secs(3600)).await?;
    let mut agent = world.start()?;
    world.status("the run", |s| s.phases.iter().any(|p| p.phase == tpi_proto::state::Phase::Run)).await?;
    tpi_tests::eventually("the script's file", || {
        std::fs::read(world.work("made")).ok().filter(|made| made == b"early\n")
    })?;
    world.instance.tell(REBALANCE, r#"{"noticeTime": "2031-01-01T00:00:00Z"}"#);
    let warned = world.status("a save", |s| s.saved == Some(1)).await?;
    assert!(matches!(warned.state, SlotState::Active { .. }), "{warned:?}");

    world.instance.tell(INTERRUPTION, r#"{"action": "terminate", "time": "2031-01-01T00:02:00Z"}"#);
    let left = world.status("the interruption", |s| matches!(s.state, SlotState::Interrupted)).await?;
    assert_eq!(left.saved, Some(2));
    assert_eq!(agent.ended().await?.code(), Some(75), "{}", world.log());
    assert_eq!(world.instance.released(), Vec::<String>::new());

    // The next machine: no notices.
    let mut next = world;
    next.config.preemption.clear();
    let mut agent = next.start()?;
    let status = next.status("the end", |s| s.state.is_final()).await?;
    assert_eq!(status.attempt, Attempt(2));
    assert_eq!(status.log_complete, Some("early\nlate\n".len() as u64), "{}", next.log());
    assert_eq!(agent.ended().await?.code(), Some(0), "{}", next.log());
    assert_eq!(next.instance.refusals(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_renewed_before_they_expire() -> Result<()> {
    let script = "#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.05; done\n";
    let world = World::new(script, Duration::from_secs(12)).await?;
    let mut agent = world.start()?;
    world.status("the run", |s| s.phases.iter().any(|p| p.phase == tpi_proto::state::Phase::Run)).await?;
    // The lease is renewed all the time: with ever new credentials, of which the first have expired by then.
    tpi_tests::eventually("new credentials", || (world.instance.used().len() > 9).then_some(()))
        .with_context(|| format!("{:?}\n{}", world.instance.refusals(), world.log()))?;
    std::fs::write(world.work("go"), "")?;
    world.status("the end", |s| s.state.is_final()).await?;
    assert_eq!(agent.ended().await?.code(), Some(0), "{}", world.log());
    assert_eq!(world.instance.released().len(), 1);
    assert_eq!(world.instance.refusals(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_nothing_is_asked() -> Result<()> {
    let mut world = World::new("#!/bin/sh\n", Duration::from_secs(3600)).await?;
    world.instance.close();
    world.config.timings.boot_budget = 2_000;
    let mut agent = world.start()?;
    assert_eq!(agent.ended().await?.code(), Some(1), "{}", world.log());
    assert!(world.log().contains("for this machine's name: no token from"), "{}", world.log());
    // With a known name the store is next, and wants credentials.
    world.config.machine = MachineName::Fixed(tpi_proto::id::MachineId(world.instance.id()));
    let mut agent = world.start()?;
    assert_eq!(agent.ended().await?.code(), Some(1), "{}", world.log());
    // A question without a token would have been refused, and kept.
    assert_eq!(world.instance.refusals(), Vec::<String>::new());
    Ok(())
}
