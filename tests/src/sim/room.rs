//! The machine room: for each instance of an [`Account`] it boots a machine, which is a container with systemd and
//! cloud-init of its own, and a metadata service at 169.254.169.254 in its own network.
//!
//! ```text
//!            account says                     room does
//! pending, running  ──► container created ──► metadata service listens in its network ──► /sbin/init
//! shutting-down     ──► asked to power off, then cut off ──► kept for its console, until the room ends
//!
//!            machine does                     account is told
//! powers off        ──────────────────────►  PoweredOff
//! reboots           ──► started again, same disk, same metadata service
//!
//!            test says                        account is told
//! kill              ──► cut off ──────────►  Died
//! reclaim           ──► cut off ──────────►  SpotReclaimed
//! spot_notice       ──► it is in the metadata service
//! ```
//!
//! Differs from AWS:
//! - A machine has no kernel and no firmware of its own: cloud-init is told by a file that this is AWS, modules of
//!   the kernel are this computer's, and its memory and disk are not limited.
//! - cloud-init runs what a task's user-data is made of (`bootcmd`, `write_files`, `runcmd`) and no module for users,
//!   locales, packages, disks or keys; networks are configured before it starts.
//! - `local-ipv4` and `public-ipv4` are one address, which this computer reaches. It is not the one that EC2's API
//!   tells.
//! - No name is known in it but its own: whatever it has to reach, it is told by address.
//! - Nothing filters packets: security groups are kept by the account and not enforced here.
//! - An instance that is stopped, not terminated, does not come back.
//! - Capacity that is reclaimed is taken at once, without the seconds in which a system may shut down.

mod engine;
mod machine;
mod metadata;
mod namespace;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures::future::BoxFuture;
use tokio::{sync::watch, task::JoinSet};

pub use self::engine::Engine;
use self::machine::{Machine, Order};
use super::front::{EndReason, Front, Instance, RoleCredentials};

/// How often the account is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// Whose machines they are.
pub trait Account: Send + Sync + 'static {
    /// Every instance that there is or was.
    fn instances(&self) -> BoxFuture<'_, Vec<Instance>>;
    /// An instance has ended by itself.
    fn ended<'a>(&'a self, id: &'a str, reason: EndReason) -> BoxFuture<'a, Result<()>>;
    /// Credentials for the role of an instance.
    fn credentials<'a>(&'a self, instance: &'a Instance) -> BoxFuture<'a, Result<RoleCredentials>>;
}

impl Account for Front {
    fn instances(&self) -> BoxFuture<'_, Vec<Instance>> {
        Box::pin(Front::instances(self))
    }

    fn ended<'a>(&'a self, id: &'a str, reason: EndReason) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.end_instance(id, reason))
    }

    fn credentials<'a>(&'a self, instance: &'a Instance) -> BoxFuture<'a, Result<RoleCredentials>> {
        Box::pin(async move {
            let role = instance.profile.as_deref().or(instance.role.as_deref());
            self.role_credentials(role.context("the instance has no role")?).await
        })
    }
}

/// The network that the machines of a room are in. This computer is in it too, at [`Network::gateway`]: what
/// listens there has the same address for machines and for a laptop.
#[derive(Debug)]
pub struct Network {
    engine: Engine,
    name: String,
    gateway: Ipv4Addr,
}

impl Network {
    /// Makes one, once what crashed runs have left is removed.
    pub async fn make(engine: Engine) -> Result<Self> {
        engine.remove_leftovers().await?;
        let name = engine.new_name();
        let gateway = engine.make_network(&name).await?;
        Ok(Self { engine, name, gateway })
    }

    /// This computer's address in it.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.engine.remove_all_of(&self.name);
    }
}

/// A machine room; machines and network are gone when it is dropped.
pub struct Room {
    shared: Arc<Shared>,
    /// Ends with this value, and its machines with it.
    watcher: tokio::task::JoinHandle<()>,
    /// Dropped last: it takes the containers with it.
    network: Network,
}

struct Shared {
    account: Arc<dyn Account>,
    engine: Engine,
    network: String,
    machines: Mutex<BTreeMap<String, Arc<Machine>>>,
    /// Counts changes of machines.
    changes: watch::Sender<u64>,
    troubles: Mutex<Vec<String>>,
}

impl Shared {
    fn machines(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Machine>>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self, id: &str) -> Result<Arc<Machine>> {
        self.machines().get(id).cloned().with_context(|| format!("there is no machine {id}"))
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn trouble(&self, what: String) {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        self.changed();
    }
}

/// What there is to know about a machine.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The instance, as it was when the machine was made.
    pub instance: Instance,
    /// Where it is reached, once it has started.
    pub address: Option<Ipv4Addr>,
    /// Whether it still runs, or is about to.
    pub alive: bool,
}

impl Room {
    /// Opens one. Must be called in a tokio runtime.
    #[must_use]
    pub fn open(network: Network, account: Arc<dyn Account>) -> Self {
        let shared = Arc::new(Shared {
            account,
            engine: network.engine.clone(),
            network: network.name.clone(),
            machines: Mutex::default(),
            changes: watch::Sender::new(0),
            troubles: Mutex::default(),
        });
        let watcher = tokio::spawn(watch_account(Arc::clone(&shared)));
        Self { shared, watcher, network }
    }

    /// This computer's address in the machines' network.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.network.gateway
    }

    /// Counts whatever happens to machines.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Every machine that there is or was, in the order of their names.
    #[must_use]
    pub fn machines(&self) -> Vec<Seen> {
        self.shared.machines().values().map(|machine| machine.seen()).collect()
    }

    /// What the room could not do. A test that fails for no reason of its own finds it here.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        self.shared.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the metadata services have refused: each is a fault of whoever asked.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        let machines = self.shared.machines();
        machines.values().flat_map(|machine| machine.metadata.refusals()).collect()
    }

    /// Waits until the machines are as wanted; longer than others, because some things on a machine take minutes.
    pub async fn wait(&self, what: &str, wanted: impl Fn(&[Seen]) -> bool) -> Result<Vec<Seen>> {
        let mut changes = self.shared.changes.subscribe();
        let waiting = async {
            loop {
                let machines = self.machines();
                if wanted(&machines) {
                    return Ok(machines);
                }
                changes.changed().await.context("the room is closed")?;
            }
        };
        match tokio::time::timeout(crate::rig::PATIENCE * 3, waiting).await {
            Ok(found) => found,
            Err(_) => {
                bail!("waited in vain for {what}; machines: {:?}; {:?}", self.machines(), self.troubles())
            }
        }
    }

    /// The machine dies: it is cut off between two instructions.
    pub fn kill(&self, id: &str) -> Result<()> {
        self.shared.machine(id)?.order(Order::CutOff(EndReason::Died));
        Ok(())
    }

    /// The machine's capacity goes to somebody else, now.
    pub fn reclaim(&self, id: &str) -> Result<()> {
        self.shared.machine(id)?.order(Order::CutOff(EndReason::SpotReclaimed));
        Ok(())
    }

    /// The machine is told that it will be taken at that time. It is not taken by this: [`Room::reclaim`].
    pub fn spot_notice(&self, id: &str, at: jiff::Timestamp) -> Result<()> {
        let notice = serde_json::json!({ "action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() });
        let metadata = &self.shared.machine(id)?.metadata;
        metadata.tell("spot/instance-action", &notice.to_string());
        metadata.tell("spot/termination-time", &at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        Ok(())
    }

    /// The machine is told that it may soon be taken.
    pub fn rebalance(&self, id: &str) -> Result<()> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let notice = serde_json::json!({ "noticeTime": now }).to_string();
        self.shared.machine(id)?.metadata.tell("events/recommendations/rebalance", &notice);
        Ok(())
    }

    /// Nothing reaches the machine and it reaches nothing, but for its metadata service.
    pub async fn cut_network(&self, id: &str) -> Result<()> {
        let _none = self.exec(id, &["ip", "link", "set", "eth0", "down"]).await?;
        Ok(())
    }

    /// Undoes [`Room::cut_network`].
    pub async fn heal_network(&self, id: &str) -> Result<()> {
        let _none = self.exec(id, &["ip", "link", "set", "eth0", "up"]).await?;
        let gateway = self.network.gateway.to_string();
        let _none = self.exec(id, &["ip", "route", "replace", "default", "via", &gateway]).await?;
        Ok(())
    }

    /// Runs a program as root in a machine and gives what it printed.
    pub async fn exec(&self, id: &str, argv: &[&str]) -> Result<String> {
        let machine = self.shared.machine(id)?;
        let mut arguments = vec!["exec", &machine.container];
        arguments.extend(argv);
        self.shared.engine.run(&arguments).await
    }

    /// The last of what a machine has said, for people.
    pub async fn console(&self, id: &str) -> String {
        let journal = ["journalctl", "--no-pager", "--lines=120", "--output=short-precise"];
        match self.exec(id, &journal).await {
            Ok(text) => text,
            // It does not run any more.
            Err(_) => match self.shared.machine(id) {
                Ok(machine) => {
                    let logs = ["logs", "--tail", "200", &machine.container];
                    self.shared.engine.run(&logs).await.unwrap_or_else(|error| format!("{error:#}"))
                }
                Err(error) => format!("{error:#}"),
            },
        }
    }

    /// The last of what all machines have said, for people.
    pub async fn consoles(&self) -> String {
        let mut text = String::new();
        for seen in self.machines() {
            let id = &seen.instance.id;
            let state = if seen.alive { "alive" } else { "ended" };
            text.push_str(&["--- machine ", id, " (", state, ")\n", &self.console(id).await, "\n"].concat());
        }
        for trouble in self.troubles().iter().chain(&self.refusals()) {
            text.push_str(&["--- ", trouble, "\n"].concat());
        }
        text
    }

    /// Closes the room: no machine is started any more. What there is goes when it is dropped.
    pub async fn close(&mut self) {
        self.watcher.abort();
        if !self.watcher.is_finished() {
            // It was aborted, or it has ended: either is an end.
            drop((&mut self.watcher).await);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Owns the life of each machine.
async fn watch_account(shared: Arc<Shared>) {
    let mut lives = JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut refused = BTreeSet::new();
    loop {
        tokio::select! {
            _ = look.tick() => {}
            Some(ended) = lives.join_next(), if !lives.is_empty() => {
                let told: Result<Result<()>, tokio::task::JoinError> = ended;
                match told {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => shared.trouble(format!("{error:#}")),
                    Err(error) => shared.trouble(format!("{error}")),
                }
                continue;
            }
        }
        let instances = shared.account.instances().await;
        for instance in &instances {
            let known = shared.machines().get(&instance.id).cloned();
            match (known, instance.state.is_alive()) {
                (None, true) => {
                    let machine = Arc::new(Machine::of(instance.clone(), &shared));
                    drop(shared.machines().insert(instance.id.clone(), Arc::clone(&machine)));
                    shared.changed();
                    let _handle = lives.spawn(machine::live(machine, Arc::clone(&shared)));
                }
                (Some(machine), false) => machine.order(Order::PowerOff),
                (None, false) | (Some(_), true) => {}
            }
        }
        // An emulator that forgets what it has ended ends it as well.
        let named: BTreeSet<&String> = instances.iter().map(|instance| &instance.id).collect();
        for (id, machine) in shared.machines().iter() {
            if !named.contains(id) && refused.insert(id.clone()) {
                machine.order(Order::PowerOff);
            }
        }
    }
}
