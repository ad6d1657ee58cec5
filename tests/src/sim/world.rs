//! A test's world on the simulated AWS: the account, its machines, a bucket, and a laptop with the real controller.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use serde_json::Value;
use tokio::runtime::Runtime;
use tpi_proto::id::TaskId;

use super::{
    client::Client,
    front::{Front, Options},
    room::{Network, Room, Seen},
};
use crate::rig::{PATIENCE, Rig, eventually};

/// Where tasks run.
pub const REGION: &str = "us-east-1";
/// The bucket that is there, and the place in it that tasks are given.
pub const BUCKET: &str = "tpi-simulated";
const PLACE: &str = "tpi-simulated/some/place";

/// All of it; nothing is left when it is dropped.
pub struct Aws {
    /// The laptop.
    pub rig: Rig,
    /// The machines.
    pub room: Room,
    /// The account.
    pub front: Arc<Front>,
    /// What the account and the machines run on: the last to go.
    runtime: Runtime,
}

impl Aws {
    /// Opens one; `None`, and a word about it, where there is not all that it needs.
    #[expect(clippy::print_stdout, reason = "says what is skipped")]
    pub fn open() -> Result<Option<Self>> {
        match parts() {
            Ok((engine, options, controller)) => Self::start(engine, options, controller).map(Some),
            Err(why) => {
                println!("SKIPPED: {why}: nothing was tried on the simulated AWS");
                Ok(None)
            }
        }
    }

    fn start(engine: super::room::Engine, options: Options, controller: PathBuf) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (front, room) = runtime.block_on(async {
            let network = Network::make(engine).await?;
            let front = Arc::new(Front::start(SocketAddr::from((network.gateway(), 0)), options).await?);
            let room = Room::open(network, Arc::<Front>::clone(&front));
            anyhow::Ok((front, room))
        })?;
        let mut rig = Rig::with(controller)?;
        let (key, secret) = front.laptop();
        rig.set("AWS_ENDPOINT_URL", &front.url())
            .set("AWS_ACCESS_KEY_ID", &key)
            .set("AWS_SECRET_ACCESS_KEY", &secret)
            .set("AWS_REGION", REGION)
            .set("AWS_EC2_METADATA_DISABLED", "true");
        let world = Self { rig, room, front, runtime };
        let bucket = format!("/{BUCKET}");
        let client = world.client();
        let made = world.wait_for(client.send("s3", Method::PUT, &bucket, "", &[], b""))?;
        ensure!(made.status == 200, "making the bucket: {made:?}");
        Ok(world)
    }

    /// The laptop's own access to the account, without the controller.
    #[must_use]
    pub fn client(&self) -> Client {
        let (key, secret) = self.front.laptop();
        Client::new(&self.front.url(), REGION, (&key, &secret, ""))
    }

    /// Runs what is asynchronous.
    pub fn wait_for<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// This computer's address for machines.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.room.gateway()
    }

    /// What `submit` needs to be told here.
    #[must_use]
    pub fn place(&self) -> Vec<String> {
        let ingress = format!("{}/32", self.gateway());
        ["--cloud", "aws", "--region", REGION, "--machine", "s", "--storage", PLACE, "--ingress", &ingress]
            .map(str::to_owned)
            .into()
    }

    /// Submits a script with the laptop's work directory, which runs by itself; gives the task.
    pub fn submit(&self, name: &str, script: &str, flags: &[&str]) -> Result<TaskId> {
        let place = self.place();
        let mut all: Vec<&str> = place.iter().map(String::as_str).collect();
        all.extend(["--workdir", ".", "--results", "results"]);
        all.extend(flags);
        self.rig.submit(name, script, &all)
    }

    /// What `status` says.
    pub fn status(&self, task: &str) -> Result<Value> {
        self.rig.run(["status", task, "--output", "json"])?.json()
    }

    /// Waits until `status` is as wanted.
    pub fn wait_status<T>(&self, task: &str, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let mut last = None;
        let found = eventually(what, || {
            last = self.status(task).ok();
            last.as_ref().and_then(&wanted)
        });
        found.with_context(|| {
            let last = last.map(|status| status.to_string());
            format!("status: {}\n{}", last.unwrap_or_default(), self.diagnosis())
        })
    }

    /// Waits until a slot has been in that state, by its attempt.
    pub fn wait_slot(
        &self,
        task: &str,
        slot: u32,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.wait_status(task, what, |status| {
            let slots = status["slots"].as_array()?;
            slots.iter().find(|found| found["slot"] == slot && wanted(found)).cloned()
        })
    }

    /// Machines that run, or are about to.
    #[must_use]
    pub fn alive(&self) -> Vec<Seen> {
        self.room.machines().into_iter().filter(|machine| machine.alive).collect()
    }

    /// Waits until no machine runs any more.
    pub fn wait_no_machine(&self) -> Result<()> {
        let gone = self.room.wait("every machine to be gone", |seen| seen.iter().all(|seen| !seen.alive));
        drop(self.wait_for(gone).with_context(|| self.diagnosis())?);
        Ok(())
    }

    /// Requires that the account holds nothing but the bucket, and that nothing was refused on the way.
    pub fn require_empty(&self) -> Result<()> {
        let bucket = |left: &String| left.contains(BUCKET) && !left.contains("some/");
        let mut last = Vec::new();
        eventually("the account to be empty", || {
            last = self.wait_for(self.front.everything_left()).ok()?;
            last.iter().all(bucket).then_some(())
        })
        .with_context(|| format!("left: {last:?}"))?;
        self.require_no_refusal()
    }

    /// Requires that nobody was refused anything: not by the account and not by a metadata service.
    pub fn require_no_refusal(&self) -> Result<()> {
        let (account, machines) = (self.front.refused(), self.room.refusals());
        ensure!(account.is_empty() && machines.is_empty(), "refused: {account:?} {machines:?}");
        ensure!(self.room.troubles().is_empty(), "{:?}", self.room.troubles());
        Ok(())
    }

    /// What helps to understand a failure.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let refused = format!("refused: {:?}\n", self.front.refused());
        refused + &self.wait_for(self.room.consoles())
    }

    /// Runs a shell's words on a machine until they succeed.
    pub fn until(&self, machine: &str, words: &str) -> Result<String> {
        eventually(words, || self.wait_for(self.room.exec(machine, &["sh", "-c", words])).ok())
            .with_context(|| format!("within {PATIENCE:?}\n{}", self.diagnosis()))
    }
}

/// What the simulated AWS needs, or what of it is not there.
fn parts() -> Result<(super::room::Engine, Options, PathBuf), String> {
    let engine = super::machines()?;
    let options = Options::of_environment().ok_or("no TPI_TEST_MOTO")?;
    let named = |name: &str| {
        let found = std::env::var_os(name).filter(|path| !path.is_empty());
        found.map(PathBuf::from).ok_or_else(|| format!("no {name}"))
    };
    let controller = named("TPI_TEST_AWS_CONTROLLER")?;
    let _agent = named("TPI_AGENT")?;
    Ok((engine, options, controller))
}
