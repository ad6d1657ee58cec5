//! Tasks, machines and agents for tests.

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Once,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tpi_proto::{
    id::{MachineId, RunId, SlotIndex, TaskId},
    machine::{
        Addresses, Credentials, HttpCall, MACHINE_CONFIG_VERSION, MachineConfig, NoticeEffect,
        PreemptionNotice, Signing, Timings,
    },
    spec::{CloudName, Ingress, Spot, StorageSpec, TaskSpec},
    state::{Outcome, SlotState, SlotStatus},
};
use tpi_store::{
    Store,
    layout::TaskKeys,
    log::{Record, Stream, read_stored},
    record::{Environment, Intent, RECORD_VERSION, TaskRecord},
};
use url::Url;

/// Far longer than anything takes, also on a machine that does other things.
const PATIENCE: Duration = Duration::from_secs(90);

/// Names the container engine for the tests: `unix:///…`.
pub(crate) const ENGINE: &str = "TPI_TEST_DOCKER_HOST";

/// A task in a store of its own.
pub(crate) struct Task {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
    pub(crate) id: TaskId,
    pub(crate) keys: TaskKeys,
    pub(crate) deadline: Timestamp,
    pub(crate) slots: u32,
    pub(crate) save_interval: u64,
    pub(crate) lease_ttl: u64,
}

/// What a test may want different.
pub(crate) struct Wants {
    pub(crate) script: String,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) timeout: u64,
    pub(crate) grace: u64,
    pub(crate) container: Option<String>,
    pub(crate) slots: u16,
}

pub(crate) fn script(text: &str) -> Wants {
    Wants {
        script: text.to_owned(),
        environment: BTreeMap::new(),
        timeout: 3600,
        grace: 5,
        container: None,
        slots: 1,
    }
}

impl Task {
    pub(crate) async fn new(wants: Wants) -> Result<Self> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let dir = tempfile::tempdir()?;
        let folder = dir.path().join("store");
        std::fs::create_dir(&folder)?;
        let url = Url::from_directory_path(&folder).ok().context("an absolute path")?;
        let store = Store::open(&url)?;
        let id = TaskId::seeded("test", dir.path().as_os_str().as_encoded_bytes())?;
        let keys = TaskKeys::new(&id);
        let timeout = i64::try_from(wants.timeout)?;
        let deadline = Timestamp::now().checked_add(SignedDuration::from_secs(timeout))?;
        let spec = TaskSpec {
            name: "test".to_owned(),
            cloud: CloudName::Local,
            region: String::new(),
            machine: String::new(),
            image: String::new(),
            disk_size: None,
            spot: Spot::OnDemand,
            parallelism: NonZeroU16::new(wants.slots).context("at least one slot")?,
            permission_set: None,
            tags: BTreeMap::new(),
            environment: wants.environment.keys().cloned().collect(),
            timeout_seconds: wants.timeout,
            grace_seconds: wants.grace,
            script: wants.script,
            container: wants.container,
            ingress: Ingress::Closed,
            storage: StorageSpec::default(),
            subnets: Vec::new(),
            provision_timeout_seconds: None,
        };
        let record = TaskRecord {
            version: RECORD_VERSION,
            id: id.clone(),
            writer: "test".to_owned(),
            created: Timestamp::now(),
            spec,
            intent: Intent::Run,
            deadline: Some(deadline),
            agent_sha256: None,
            input_stored: false,
            gave_up: None,
        };
        store.create_json(&keys.record(), &record).await?;
        let environment = Environment { version: RECORD_VERSION, variables: wants.environment };
        store.put_json(&keys.environment(), &environment).await?;
        let slots = wants.slots.into();
        Ok(Self { dir, store, id, keys, deadline, slots, save_interval: 300, lease_ttl: 30_000 })
    }

    pub(crate) fn config(&self, machine: &str) -> MachineConfig {
        MachineConfig {
            version: MACHINE_CONFIG_VERSION,
            task: self.id.clone(),
            machine: MachineId(format!("{machine}-{}", self.id.short())),
            slots: self.slots,
            store: self.store.url().clone(),
            credentials: Credentials::Environment,
            deadline: self.deadline,
            preemption: Vec::new(),
            release: None,
            power_off: false,
            listen: None,
            addresses: Addresses::default(),
            root: self.dir.path().join(machine),
            timings: Timings {
                lease_ttl: self.lease_ttl,
                lease_renew: 200,
                save_interval: self.save_interval,
                log_flush: 200,
                boot_budget: 60_000,
                prepare_budget: 60_000,
                restore_budget: 60_000,
                save_budget: 60_000,
                release_budget: 10_000,
            },
            environment: BTreeMap::new(),
        }
    }

    /// Starts an agent on a machine.
    pub(crate) fn start(&self, machine: &str) -> Result<Agent> {
        self.start_with(&self.config(machine), &[])
    }

    pub(crate) fn start_with(&self, config: &MachineConfig, variables: &[(&str, &str)]) -> Result<Agent> {
        std::fs::create_dir_all(&config.root)?;
        let path = config.root.join("machine.json");
        std::fs::write(&path, serde_json::to_vec(config)?)?;
        let log = config.root.join("agent.log");
        let engine = std::env::var_os(ENGINE).map(|host| ("DOCKER_HOST", host));
        let child = Command::new(env!("CARGO_BIN_EXE_tpi-agent"))
            .arg("run")
            .arg("--config")
            .arg(path)
            .env("TPI_MACHINE_ID", &config.machine.0)
            .envs(engine)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        Ok(Agent { child, root: config.root.clone(), machine: config.machine.clone() })
    }

    /// Runs the task on one machine to its end.
    pub(crate) async fn run(&self) -> Result<(SlotStatus, Vec<Record>)> {
        let mut agent = self.start("m1")?;
        let status = self.finished(SlotIndex(0)).await.with_context(|| agent.log())?;
        agent.ended().await?;
        Ok((status.clone(), self.log(status.run()).await?))
    }

    /// Waits until the status of a slot is as wanted.
    pub(crate) async fn status(
        &self,
        slot: SlotIndex,
        wanted: impl Fn(&SlotStatus) -> bool,
    ) -> Result<SlotStatus> {
        let end = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < end {
            // The folder may be away for a while in some tests.
            if let Ok(Some((status, _))) = self.store.get_json::<SlotStatus>(&self.keys.slot(slot)).await {
                if wanted(&status) {
                    return Ok(status);
                }
                last = Some(status);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the slot never came to be as wanted: {last:#?}")
    }

    pub(crate) async fn finished(&self, slot: SlotIndex) -> Result<SlotStatus> {
        self.status(slot, |s| s.state.is_final()).await
    }

    pub(crate) async fn log(&self, run: RunId) -> Result<Vec<Record>> {
        Ok(read_stored(&self.store, &self.id, run, 0).try_collect().await?)
    }
}

/// A group's HTTP side: takes machines out, and tells when they are taken back.
pub(crate) struct Group {
    address: std::net::SocketAddr,
    shared: std::sync::Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    preempted: std::sync::atomic::AtomicBool,
    released: std::sync::Mutex<Vec<String>>,
}

impl Group {
    pub(crate) async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = std::sync::Arc::new(Shared::default());
        let state = std::sync::Arc::clone(&shared);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // One request per connection, one after the other: enough for an agent.
                drop(answer(stream, &state).await);
            }
        });
        Ok(Self { address, shared, server })
    }

    fn call(&self, method: &str, path: &str) -> HttpCall {
        HttpCall {
            method: method.to_owned(),
            url: format!("http://{}{path}", self.address),
            headers: BTreeMap::from([("x-token".to_owned(), "t".to_owned())]),
            body: String::new(),
            token: None,
            signing: Signing::None,
        }
    }

    pub(crate) fn notice(&self) -> PreemptionNotice {
        let call = self.call("GET", "/notice");
        PreemptionNotice {
            call,
            contains: Some("terminate".to_owned()),
            interval_millis: 100,
            effect: NoticeEffect::Interrupt,
        }
    }

    pub(crate) fn release(&self) -> HttpCall {
        self.call("POST", "/release/{machine}/{slot}/{attempt}")
    }

    pub(crate) fn preempt(&self) {
        self.shared.preempted.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn released(&self) -> Vec<String> {
        self.shared.released.lock().map(|r| r.clone()).unwrap_or_default()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(mut stream: tokio::net::TcpStream, shared: &Shared) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8(request)?;
    let line = request.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    let preempted = shared.preempted.load(std::sync::atomic::Ordering::Relaxed);
    let (status, body) = match line.as_str() {
        "GET /notice" if preempted => ("200 OK", "terminate at once"),
        "GET /notice" => ("200 OK", "nothing"),
        _ if line.starts_with("POST /release/") && request.contains("x-token: t") => {
            if let Ok(mut released) = shared.released.lock() {
                released.push(line);
            }
            ("200 OK", "")
        }
        _ => ("404 Not Found", ""),
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).await?;
    Ok(())
}

/// Bytes of one stream.
pub(crate) fn bytes(log: &[Record], stream: Stream) -> Vec<u8> {
    log.iter().filter(|r| r.stream == stream).flat_map(|r| r.data.iter().copied()).collect()
}

pub(crate) fn text(log: &[Record]) -> String {
    String::from_utf8_lossy(&bytes(log, Stream::Stdout)).into_owned()
}

pub(crate) fn outcome(status: &SlotStatus) -> Outcome {
    match &status.state {
        SlotState::Finished { outcome, .. } => outcome.clone(),
        other @ (SlotState::Active { .. } | SlotState::Stopping { .. } | SlotState::Interrupted) => {
            panic!("not finished: {other:?}")
        }
    }
}

/// Waits for something outside of the store.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() >= end {
            bail!("waited in vain until {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A running agent.
pub(crate) struct Agent {
    pub(crate) child: Child,
    pub(crate) root: PathBuf,
    pub(crate) machine: MachineId,
}

impl Agent {
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        Ok(rustix::process::kill_process(self.pid(), signal)?)
    }

    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                bail!("the agent did not end: {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("agent.log")).unwrap_or_default()
    }

    /// Processes that carry the machine's mark, except the agent.
    pub(crate) fn marked(&self) -> Vec<i32> {
        let mark = format!("TPI_MACHINE_ID={}", self.machine);
        let own = i32::try_from(self.child.id()).unwrap_or_default();
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| *pid != own)
            .filter(|pid| {
                std::fs::read(format!("/proc/{pid}/environ"))
                    .is_ok_and(|e| e.split(|b| *b == 0).any(|v| v == mark.as_bytes()))
            })
            .collect()
    }

    /// Highest memory use so far, in bytes.
    pub(crate) fn peak_memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        for pid in self.marked().into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
