//! The local cloud with real processes. The agent is a shell script here: the group does not know what it
//! starts, and these tests are about the group.
#![cfg(feature = "local")]
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::disallowed_methods, reason = "pauses between looks at a condition of other processes")]

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    num::NonZeroU16,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tpi_controller::{
    cloud::{Cloud, GroupSpec, GroupState, MachineEnd, Observed, conformance, local::Local, plan::Resource},
    home::Home,
};
use tpi_proto::{
    id::{MachineId, TaskId},
    machine::MachineConfig,
    spec::{CloudName, Ingress, Spot, StorageSpec, TaskSpec},
};
use tpi_store::{
    Store,
    layout::TaskKeys,
    record::{Intent, RECORD_VERSION, TaskRecord},
};

/// Generous: other tests may keep the computer busy.
const PATIENCE: Duration = Duration::from_secs(60);

struct Place {
    dir: tempfile::TempDir,
    agent: String,
}

impl Drop for Place {
    /// A test that failed leaves no process behind: groups end when their directory is gone.
    fn drop(&mut self) {
        drop(fs::remove_dir_all(self.home().local_dir()));
    }
}

impl Place {
    fn new(agent: &str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), agent: format!("#!/bin/sh\n{agent}\n") }
    }

    fn home(&self) -> Home {
        Home::at(self.dir.path())
    }

    fn local(&self) -> Local {
        Local::new(&self.home()).with_program(PathBuf::from(env!("CARGO_BIN_EXE_tpi-controller")))
    }

    fn store(&self) -> Store {
        Store::open(&self.home().store_url().unwrap()).unwrap()
    }

    fn group(&self, task: &TaskId) -> PathBuf {
        self.home().local_dir().join(task.as_str())
    }

    fn state(&self, task: &TaskId) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.group(task).join("state.json")).unwrap()).unwrap()
    }

    fn config(&self, task: &TaskId, machine: &MachineId) -> MachineConfig {
        let path = self.group(task).join("machines").join(&machine.0).join("machine.json");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn group_pid(&self, task: &TaskId) -> i64 {
        self.state(task)["process"]["pid"].as_i64().unwrap()
    }

    async fn prepare(&self, machines: u16, deadline: Timestamp) -> GroupSpec {
        let task = TaskId::seeded("test", &rand::random::<[u8; 16]>()).unwrap();
        let spec = TaskSpec {
            name: "test".to_owned(),
            cloud: CloudName::Local,
            region: "local".to_owned(),
            machine: "m".to_owned(),
            image: "ubuntu".to_owned(),
            disk_size: None,
            spot: Spot::OnDemand,
            parallelism: NonZeroU16::new(machines).unwrap(),
            permission_set: None,
            tags: std::collections::BTreeMap::new(),
            environment: Vec::new(),
            timeout_seconds: 3600,
            grace_seconds: 1,
            script: "#!/bin/sh\n".to_owned(),
            container: None,
            ingress: Ingress::Caller,
            storage: StorageSpec::default(),
            subnets: Vec::new(),
            provision_timeout_seconds: None,
        };
        let agent_sha256 = hex::encode(Sha256::digest(&self.agent));
        let record = TaskRecord {
            version: RECORD_VERSION,
            id: task.clone(),
            writer: "test".to_owned(),
            created: Timestamp::now(),
            spec: spec.clone(),
            intent: Intent::Run,
            deadline: Some(deadline),
            agent_sha256: Some(agent_sha256.clone()),
            input_stored: true,
            gave_up: None,
        };
        let (store, keys) = (self.store(), TaskKeys::new(&task));
        store.put_json(&keys.record(), &record).await.unwrap();
        store.put(&keys.agent(&agent_sha256), self.agent.clone().into()).await.unwrap();
        GroupSpec { task, spec, store: store.url().clone(), deadline, agent_sha256 }
    }

    async fn hour(&self, machines: u16) -> GroupSpec {
        self.prepare(machines, Timestamp::now() + SignedDuration::from_hours(1)).await
    }

    async fn until(&self, task: &TaskId, is: impl Fn(&Observed) -> bool) -> Observed {
        let begun = Instant::now();
        loop {
            let observed = self.local().observe(task).await.unwrap();
            if is(&observed) {
                return observed;
            }
            let log = fs::read_to_string(self.group(task).join("group.log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "still {observed:?}\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn kill(pid: i64) {
    let status = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    assert!(status.success());
    let begun = Instant::now();
    while fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z")) {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn processes_of(machine: &MachineId) -> usize {
    let variable = format!("TPI_MACHINE_ID={machine}");
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            fs::read(entry.path().join("environ"))
                .is_ok_and(|e| e.split(|&b| b == 0).any(|v| v == variable.as_bytes()))
        })
        .count()
}

struct Conformance {
    place: Place,
}

#[async_trait]
impl conformance::Rig for Conformance {
    fn cloud(&self) -> Arc<dyn Cloud> {
        Arc::new(self.place.local())
    }

    async fn want(&self, machines: u16, deadline: Timestamp) -> GroupSpec {
        self.place.prepare(machines, deadline).await
    }

    async fn take(&self, task: &TaskId, machine: &MachineId) {
        // A machine is alive from its launch on; its agent comes a moment later.
        let begun = Instant::now();
        let agent = loop {
            let state = self.place.state(task);
            let entry = state["machines"].as_array().unwrap().iter().find(|m| m["id"] == machine.0.as_str());
            if let Some(pid) = entry.unwrap()["agent"]["pid"].as_i64() {
                break pid;
            }
            assert!(begun.elapsed() < PATIENCE, "no agent was started on {machine}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        kill(agent);
    }

    async fn break_group(&self, task: &TaskId) -> bool {
        kill(self.place.group_pid(task));
        true
    }

    async fn half_destroy(&self, task: &TaskId) {
        kill(self.place.group_pid(task));
        fs::remove_file(self.place.group(task).join("group.json")).unwrap();
    }

    async fn resources(&self, task: &TaskId) -> Vec<Resource> {
        if !self.place.group(task).is_dir() {
            return Vec::new();
        }
        vec![Resource::new("scaling group", task.as_str())]
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}

const STAY: &str = "exec sleep 100000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_cloud() {
    let rig = Conformance { place: Place::new(STAY) };
    if let Err(violation) = conformance::run(&rig).await {
        panic!("{violation}: {:?}", std::error::Error::source(&violation));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_machine_has_started_dies_with_it() {
    let place = Place::new("setsid sleep 100000 & env -i sleep 100000 & exec sleep 100000");
    let want = place.hour(1).await;
    place.local().ensure(&want).await.unwrap();
    let observed = place.until(&want.task, |o| o.alive().any(|m| processes_of(&m.id) >= 2)).await;
    let machine = observed.machines[0].id.clone();
    kill(place.state(&want.task)["machines"][0]["agent"]["pid"].as_i64().unwrap());
    place.until(&want.task, |o| o.machines.len() == 2 && o.machines[0].ended.is_some()).await;
    assert_eq!(processes_of(&machine), 0);
    let gone = place.local().destroy(&want.task).await.unwrap();
    assert!(gone.is_gone());
    assert!(gone.machines.iter().all(|m| processes_of(&m.id) == 0));
    assert!(!place.group(&want.task).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_gives_itself_back_is_not_replaced() {
    let place = Place::new(STAY);
    let want = place.hour(2).await;
    place.local().ensure(&want).await.unwrap();
    let observed = place
        .until(&want.task, |o| {
            o.alive().count() == 2
                && o.alive().all(|m| {
                    place.group(&want.task).join("machines").join(&m.id.0).join("machine.json").exists()
                })
        })
        .await;
    let release = |machine: &MachineId, token: Option<&str>| {
        let call = place.config(&want.task, machine).release.unwrap();
        let url = url::Url::parse(&call.url.replace("{machine}", &machine.0)).unwrap();
        let (header, own) = call.headers.iter().next().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", url.port().unwrap())).unwrap();
        write!(
            stream,
            "{} {} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{header}: {}\r\ncontent-length: 0\r\n\r\n",
            call.method,
            url.path(),
            token.unwrap_or(own)
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    let (one, two) = (observed.machines[0].id.clone(), observed.machines[1].id.clone());
    let config = place.config(&want.task, &one);
    assert_eq!(config.environment["TPI_REGION"], "local");
    assert!(config.listen.is_some() && !config.power_off);
    assert_eq!(release(&one, Some("wrong")), 403);
    assert_eq!(release(&one, None), 200);
    assert_eq!(release(&one, None), 200, "again is harmless");
    let now = place.local().observe(&want.task).await.unwrap();
    assert_eq!(now.group, GroupState::Active { size: 1 });
    // It does not go by itself, so the group ends it.
    place.until(&want.task, |o| o.machines[0].end == Some(MachineEnd::Released)).await;
    assert_eq!(release(&two, None), 200);
    let ended = place.until(&want.task, |o| o.group == GroupState::Ended).await;
    assert_eq!(ended.machines.len(), 2);
    assert!(ended.machines.iter().all(|m| m.end == Some(MachineEnd::Released)));
    let again = place.local().ensure(&want).await.unwrap();
    assert_eq!(again.group, GroupState::Ended, "a group that has ended is not started again");
    assert!(place.local().destroy(&want.task).await.unwrap().is_gone());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_directory_is_gone_ends_everything() {
    let place = Place::new(STAY);
    let want = place.hour(1).await;
    place.local().ensure(&want).await.unwrap();
    let observed = place.until(&want.task, |o| o.alive().any(|m| processes_of(&m.id) > 0)).await;
    let group = place.group_pid(&want.task);
    let begun = Instant::now();
    // Until the group notices, it may write between the emptying and the removing of its directory.
    while let Err(error) = fs::remove_dir_all(place.group(&want.task)) {
        if error.kind() == io::ErrorKind::NotFound {
            break;
        }
        assert!(error.kind() == io::ErrorKind::DirectoryNotEmpty && begun.elapsed() < PATIENCE, "{error}");
    }
    let lives = |pid: i64| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z"));
    while lives(group) || processes_of(&observed.machines[0].id) > 0 {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_out_of_reach_of_the_terminal_from_its_first_moment() {
    let place = Place::new(STAY);
    let want = place.hour(1).await;
    // What the group's program is before it could do anything about it itself.
    let (program, first) = (place.dir.path().join("program"), place.dir.path().join("first"));
    let real = env!("CARGO_BIN_EXE_tpi-controller");
    let wrapper =
        format!("#!/bin/sh\n[ -e {first:?} ] || cat /proc/$$/stat > {first:?}\nexec {real:?} \"$@\"\n");
    fs::write(&program, wrapper).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    Local::new(&place.home()).with_program(program).ensure(&want).await.unwrap();
    let ids = |stat: String| -> Vec<i64> {
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').skip(2).take(2).map(|id| id.parse().unwrap()).collect()
    };
    let group = place.group_pid(&want.task);
    let own = ids(fs::read_to_string("/proc/self/stat").unwrap());
    assert_eq!(
        ids(fs::read_to_string(&first).unwrap())[0],
        group,
        "it never was in our process group {own:?}"
    );
    assert_eq!(ids(fs::read_to_string(format!("/proc/{group}/stat")).unwrap()), [group, group]);
    assert!(place.local().destroy(&want.task).await.unwrap().is_gone());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_die_at_once_are_started_less_and_less_often() {
    let place = Place::new("exit 1");
    let want = place.hour(1).await;
    place.local().ensure(&want).await.unwrap();
    let observed = place.until(&want.task, |o| o.machines.len() >= 5).await;
    let launched: Vec<Timestamp> = observed.machines.iter().map(|m| m.launched).collect();
    let last = launched[4].duration_since(launched[3]);
    assert!(last > SignedDuration::from_secs(1), "{launched:?}");
    assert!(observed.machines.iter().take(4).all(|m| m.end == Some(MachineEnd::Lost)));
    assert!(place.local().destroy(&want.task).await.unwrap().is_gone());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_not_the_one_promised_is_never_run() {
    let place = Place::new(STAY);
    let want = place.hour(1).await;
    let key = TaskKeys::new(&want.task).agent(&want.agent_sha256);
    place.store().put(&key, "#!/bin/sh\nexec sleep 1\n".into()).await.unwrap();
    place.local().ensure(&want).await.unwrap();
    let log = place.group(&want.task).join("group.log");
    let begun = Instant::now();
    while !fs::read_to_string(&log).unwrap().contains("refusing to run it") {
        assert!(begun.elapsed() < PATIENCE, "{}", fs::read_to_string(&log).unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gone = place.local().destroy(&want.task).await.unwrap();
    assert_eq!(gone.machines, []);
    assert!(gone.is_gone());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_nobody_wants_any_more_ends() {
    let place = Place::new(STAY);
    let want = place.hour(1).await;
    place.store().delete(&TaskKeys::new(&want.task).record()).await.unwrap();
    place.local().ensure(&want).await.unwrap();
    let ended = place.until(&want.task, |o| o.group == GroupState::Ended).await;
    assert_eq!(ended.machines, []);
    assert!(place.local().destroy(&want.task).await.unwrap().is_gone());
}
