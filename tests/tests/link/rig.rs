//! A task in a store of its own, agents as processes, and a user.

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tpi_controller::link::{UserIdentity, follow::FollowOptions};
use tpi_proto::{
    id::{Attempt, MachineId, RunId, SlotIndex, TaskId},
    machine::{Addresses, Credentials, MACHINE_CONFIG_VERSION, MachineConfig, Timings},
    spec::{CloudName, Ingress, Spot, StorageSpec, TaskSpec},
    state::SlotStatus,
};
use tpi_store::{
    Store,
    layout::TaskKeys,
    record::{Environment, Identity, Intent, RECORD_VERSION, TaskRecord},
};

/// Far longer than anything takes, also on a machine that does other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn run(slot: u32, attempt: u32) -> RunId {
    RunId { slot: SlotIndex(slot), attempt: Attempt(attempt) }
}

/// The agent's program: `$TPI_AGENT`, or built now.
fn agent() -> Result<&'static Path> {
    static AGENT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    AGENT
        .get_or_init(|| find_agent().map_err(|e| format!("{e:#}")))
        .as_deref()
        .map_err(|e| anyhow::anyhow!("{e}"))
}

fn find_agent() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("TPI_AGENT").filter(|v| !v.is_empty()) {
        return Ok(given.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", "tpi-agent", "--bin", "tpi-agent"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    ensure!(built.success(), "building tpi-agent failed");
    // target/debug/deps/link-… -> target/debug/tpi-agent
    let here = std::env::current_exe()?;
    let folder = here.ancestors().nth(2).context("the target folder")?;
    Ok(folder.join("tpi-agent"))
}

pub(crate) struct Rig {
    dir: TempDir,
    pub(crate) store: Store,
    pub(crate) task: TaskId,
    pub(crate) keys: TaskKeys,
    pub(crate) user: UserIdentity,
    slots: u16,
}

impl Rig {
    pub(crate) async fn new(script: &str, slots: u16) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let url = folder_url(&dir.path().join("store"))?;
        let store = Store::open(&url)?;
        let task = TaskId::seeded("link", dir.path().as_os_str().as_encoded_bytes())?;
        let keys = TaskKeys::new(&task);
        let spec = TaskSpec {
            name: "link".to_owned(),
            cloud: CloudName::Local,
            region: String::new(),
            machine: String::new(),
            image: String::new(),
            disk_size: None,
            spot: Spot::OnDemand,
            parallelism: NonZeroU16::new(slots).context("at least one slot")?,
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
        let now = Timestamp::now();
        let record = TaskRecord {
            version: RECORD_VERSION,
            id: task.clone(),
            writer: "test".to_owned(),
            created: now,
            spec,
            intent: Intent::Run,
            deadline: Some(now + SignedDuration::from_hours(1)),
            agent_sha256: None,
            input_stored: false,
            gave_up: None,
        };
        store.create_json(&keys.record(), &record).await?;
        let environment = Environment { version: RECORD_VERSION, variables: BTreeMap::new() };
        store.put_json(&keys.environment(), &environment).await?;
        let user = UserIdentity::load_or_create(&dir.path().join("state"))?;
        Ok(Self { dir, store, task, keys, user, slots })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Another user with another key.
    pub(crate) fn stranger(&self, name: &str) -> Result<UserIdentity> {
        Ok(UserIdentity::load_or_create(&self.path(name))?)
    }

    pub(crate) fn start(&self, machine: &str, listens: bool) -> Result<Agent> {
        let config = MachineConfig {
            version: MACHINE_CONFIG_VERSION,
            task: self.task.clone(),
            machine: MachineId(format!("{machine}-{}", self.task.short())),
            slots: self.slots.into(),
            store: self.store.url().clone(),
            credentials: Credentials::Environment,
            deadline: Timestamp::now() + SignedDuration::from_hours(1),
            preemption: Vec::new(),
            release: None,
            power_off: false,
            listen: listens.then_some(([127, 0, 0, 1], 0).into()),
            addresses: Addresses::Static { hosts: vec!["127.0.0.1".to_owned()] },
            root: self.path(machine),
            timings: Timings {
                lease_ttl: 3_000,
                lease_renew: 200,
                save_interval: 60_000,
                log_flush: 200,
                ..Timings::default()
            },
            environment: BTreeMap::from([("RIG".to_owned(), self.dir.path().display().to_string())]),
        };
        std::fs::create_dir_all(&config.root)?;
        let path = config.root.join("machine.json");
        std::fs::write(&path, serde_json::to_vec(&config)?)?;
        let log = config.root.join("agent.log");
        let child = Command::new(agent()?)
            .args(["run", "--config"])
            .arg(path)
            .env("TPI_MACHINE_ID", &config.machine.0)
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        Ok(Agent { child, log })
    }

    /// Waits for a published identity.
    pub(crate) async fn identity(&self, run: RunId) -> Result<Identity> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some((identity, _)) = self.store.get_json(&self.keys.identity(run)).await? {
                return Ok(identity);
            }
            ensure!(Instant::now() < end, "run {run} never published its identity");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn rewrite_identity(&self, identity: &Identity) -> Result<()> {
        self.store.put_json(&self.keys.identity(identity.run), identity).await?;
        Ok(())
    }

    pub(crate) async fn status(&self, slot: u32, wanted: impl Fn(&SlotStatus) -> bool) -> Result<SlotStatus> {
        let end = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < end {
            let key = self.keys.slot(SlotIndex(slot));
            if let Some((status, _)) = self.store.get_json::<SlotStatus>(&key).await? {
                if wanted(&status) {
                    return Ok(status);
                }
                last = Some(status);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("slot {slot} never came to be as wanted: {last:#?}")
    }

    pub(crate) fn options(&self) -> FollowOptions {
        FollowOptions {
            slots: (0..self.slots).map(|slot| SlotIndex(slot.into())).collect(),
            start: tpi_controller::link::Start::Beginning,
            follow: true,
            telemetry: false,
            identity: Some(self.user.clone()),
        }
    }
}

fn folder_url(folder: &Path) -> Result<url::Url> {
    std::fs::create_dir_all(folder)?;
    url::Url::from_directory_path(folder).ok().context("an absolute path")
}

/// A running agent; killed with everything of it when dropped.
pub(crate) struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) async fn ended(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the agent failed: {}", self.log());
                return Ok(());
            }
            ensure!(Instant::now() < end, "the agent did not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Ended already, mostly.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
