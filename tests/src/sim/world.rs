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
    front::{EndReason, Front, Options},
    room::{Engine, Network, Room, Seen},
};
use crate::rig::{PATIENCE, Rig, eventually};

/// Where tasks run.
pub const REGION: &str = "us-east-1";
/// The bucket that is there.
pub const BUCKET: &str = "tpi-simulated";
/// That place.
pub const PLACE: &str = "tpi-simulated/some/place";

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

/// An account whose machines boot, with a bucket in it.
pub struct Account {
    /// The machines.
    pub room: Room,
    /// The account.
    pub front: Arc<Front>,
}

impl Account {
    /// Opens one, of what the environment names.
    pub async fn open() -> Result<Self> {
        let engine = super::machines().map_err(anyhow::Error::msg)?;
        let options = Options::of_environment().context("no TPI_TEST_MOTO")?;
        Self::with(engine, options).await
    }

    async fn with(engine: Engine, options: Options) -> Result<Self> {
        let network = Network::make(engine).await?;
        let front = Arc::new(Front::start(SocketAddr::from((network.gateway(), 0)), options).await?);
        let room = Room::open(network, Arc::<Front>::clone(&front));
        let bucket = format!("/{BUCKET}");
        let made = client(&front).send("s3", Method::PUT, &bucket, "", &[], b"").await?;
        ensure!(made.status == 200, "making the bucket: {made:?}");
        Ok(Self { room, front })
    }
}

fn client(front: &Front) -> Client {
    let (key, secret) = front.laptop();
    Client::new(&front.url(), REGION, (&key, &secret, ""))
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

    fn start(engine: Engine, options: Options, controller: PathBuf) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let Account { room, front } = runtime.block_on(Account::with(engine, options))?;
        let mut rig = Rig::with(controller)?;
        let (key, secret) = front.laptop();
        rig.set("AWS_ENDPOINT_URL", &front.url())
            .set("AWS_ACCESS_KEY_ID", &key)
            .set("AWS_SECRET_ACCESS_KEY", &secret)
            .set("AWS_REGION", REGION)
            .set("AWS_EC2_METADATA_DISABLED", "true");
        Ok(Self { rig, room, front, runtime })
    }

    /// The laptop's own access to the account, without the controller.
    #[must_use]
    pub fn client(&self) -> Client {
        client(&self.front)
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
        let _machines =
            self.wait_machines("every machine to be gone", |seen| seen.iter().all(|seen| !seen.alive))?;
        Ok(())
    }

    /// Waits until the machines are as wanted.
    pub fn wait_machines(&self, what: &str, wanted: impl Fn(&[Seen]) -> bool) -> Result<Vec<Seen>> {
        self.wait_for(self.room.wait(what, wanted)).with_context(|| self.diagnosis())
    }

    /// Why an instance has ended, once it has.
    pub fn end_of(&self, id: &str) -> Result<Option<EndReason>> {
        eventually("the instance to end", || {
            let instances = self.wait_for(self.front.instances());
            let found = instances.into_iter().find(|instance| instance.id == id)?;
            (!found.state.is_alive()).then_some(found.ended)
        })
    }

    /// The group's schedule is gone, as if it had never been made.
    pub fn remove_schedule(&self, task: &TaskId) -> Result<()> {
        let name = [("AutoScalingGroupName", task.as_str())];
        let client = self.client();
        let found = self.wait_for(client.done("autoscaling", "DescribeScheduledActions", &name))?;
        let schedule = found.text("ScheduledActionName");
        let both = [name[0], ("ScheduledActionName", schedule.as_str())];
        drop(self.wait_for(client.done("autoscaling", "DeleteScheduledAction", &both))?);
        Ok(())
    }

    /// [`Aws::require_nothing_left`] and [`Aws::require_no_refusal`].
    pub fn require_empty(&self) -> Result<()> {
        self.require_nothing_left()?;
        self.require_no_refusal()
    }

    /// Requires that the account holds nothing but the bucket and in it what all tasks share.
    pub fn require_nothing_left(&self) -> Result<()> {
        let (bucket, shared) = (format!("bucket {BUCKET}"), format!("object {PLACE}/cache"));
        let stays = |left: &String| *left == bucket || left.starts_with(&shared);
        let mut last = Vec::new();
        eventually("the account to be empty", || {
            last = self.wait_for(self.front.everything_left()).ok()?;
            last.iter().all(stays).then_some(())
        })
        .with_context(|| format!("left: {last:?}"))
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

impl Drop for Aws {
    fn drop(&mut self) {
        self.runtime.block_on(self.room.close());
    }
}

/// What the simulated AWS needs, or what of it is not there.
fn parts() -> Result<(Engine, Options, PathBuf), String> {
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
