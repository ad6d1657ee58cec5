//! One machine, from power-on to its end.
//!
//! ```text
//! created ──► started ──► runs ──┬─► exits by itself ──────────────► PoweredOff
//!    ▲                           ├─► reboots ──► started            (the disk stays)
//!    └───────────────────────────┤
//!                                ├─ PowerOff: asked, then cut off ─► (the account knows)
//!                                └─ CutOff(reason) ────────────────► reason
//! ```

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use tokio::sync::watch;

use super::{Seen, Shared, metadata::Metadata, namespace};
use crate::sim::front::{EndReason, Instance};

/// Before the machine's own first program: its network has the address of the metadata service, which is there
/// before anything can ask; and a question for a name is answered at once, with no.
const POWER_ON: &str = "echo nameserver 127.0.0.1 > /etc/resolv.conf; \
    ip address add 169.254.169.254/32 dev lo && \
    until grep -q FEA9FEA9:0050 /proc/net/tcp; do sleep 0.02; done; exec /sbin/init";
/// How an init is told to power off.
const POWER_BUTTON: &str = "SIGRTMIN+4";
/// Seconds from being asked to being cut off.
const SHUTDOWN_SECONDS: &str = "120";
/// Exit status of a container whose system has rebooted: killed by SIGHUP, see reboot(2).
const REBOOTED: &str = "129";

/// What is to be done with a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Its account has ended it.
    PowerOff,
    /// It ends for a reason that is not its own.
    CutOff(EndReason),
}

/// One machine.
pub(super) struct Machine {
    pub(super) instance: Instance,
    pub(super) container: String,
    pub(super) metadata: Arc<Metadata>,
    order: watch::Sender<Option<Order>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    address: Option<Ipv4Addr>,
    ended: bool,
}

impl Machine {
    pub(super) fn of(instance: Instance, shared: &Shared) -> Self {
        Self {
            container: format!("{}-{}", shared.network, instance.id),
            metadata: Arc::new(Metadata::of(instance.clone(), Arc::clone(&shared.account))),
            instance,
            order: watch::Sender::new(None),
            state: Mutex::default(),
        }
    }

    /// The first order counts, but for one that is quicker.
    pub(super) fn order(&self, order: Order) {
        let _changed = self.order.send_if_modified(|current| match (*current, order) {
            (None, _) | (Some(Order::PowerOff), Order::CutOff(_)) => {
                *current = Some(order);
                true
            }
            (Some(_), _) => false,
        });
    }

    pub(super) fn seen(&self) -> Seen {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Seen { instance: self.instance.clone(), address: state.address, alive: !state.ended }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Boots a machine, and ends when it has ended.
pub(super) async fn live(machine: Arc<Machine>, shared: Arc<Shared>) -> Result<()> {
    let ended = run(&machine, &shared).await;
    machine.set(|state| state.ended = true);
    shared.changed();
    let ended = ended.with_context(|| format!("the machine {}", machine.instance.id));
    let reason = match &ended {
        Ok(reason) => *reason,
        // A machine that does not start is a broken one.
        Err(_) => Some(EndReason::Died),
    };
    if let Some(reason) = reason {
        shared.account.ended(&machine.instance.id, reason).await?;
    }
    ended.map(|_| ())
}

/// Until it has ended; why, when the account does not know yet.
async fn run(machine: &Machine, shared: &Shared) -> Result<Option<EndReason>> {
    let engine = &shared.engine;
    let name = machine.container.as_str();
    let label = engine.label();
    let hostname = &machine.instance.id;
    let create = [
        "create",
        "--tty",
        "--name",
        name,
        "--hostname",
        hostname,
        "--label",
        &label,
        "--network",
        &shared.network,
        "--cgroupns=host",
        "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
        "--cap-add=SYS_ADMIN",
        "--cap-add=NET_ADMIN",
        "--cap-add=SYS_PTRACE",
        "--cap-add=SYS_BOOT",
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--env=container=docker",
        "--tmpfs=/run",
        "--tmpfs=/tmp",
        "--stop-signal",
        POWER_BUTTON,
        engine.image(),
        "/bin/sh",
        "-c",
        POWER_ON,
    ];
    let _id = engine.run(&create).await?;
    let mut orders = machine.order.subscribe();
    loop {
        let _name = engine.run(&["start", name]).await?;
        let place = format!(
            "{{{{.State.Pid}}}} {{{{(index .NetworkSettings.Networks \"{}\").IPAddress}}}} {{{{(index \
             .NetworkSettings.Networks \"{}\").MacAddress}}}}",
            shared.network, shared.network
        );
        let place = engine.run(&["inspect", "--format", &place, name]).await?;
        let mut place = place.split_whitespace();
        let pid: u32 = place.next().and_then(|pid| pid.parse().ok()).context("its process")?;
        let address: Ipv4Addr = place.next().and_then(|ip| ip.parse().ok()).context("its address")?;
        machine.metadata.place(address, place.next().unwrap_or_default());
        machine.set(|state| state.address = Some(address));
        shared.changed();
        let served = match machine.instance.metadata.enabled {
            true => {
                let hops = machine.instance.metadata.hop_limit;
                let listener = tokio::task::spawn_blocking(move || namespace::listen(pid, hops)).await??;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                machine.metadata.serve(listener)
            }
            false => machine.metadata.none(),
        };
        let status = until_exit(machine, shared, &mut orders).await?;
        drop(served);
        let order = *orders.borrow();
        match order {
            Some(Order::PowerOff) => return Ok(None),
            Some(Order::CutOff(reason)) => return Ok(Some(reason)),
            None if status.trim() == REBOOTED => {}
            None => return Ok(Some(EndReason::PoweredOff)),
        }
    }
}

/// Its exit status, once it has exited; orders are carried out meanwhile.
async fn until_exit(
    machine: &Machine,
    shared: &Shared,
    orders: &mut watch::Receiver<Option<Order>>,
) -> Result<String> {
    let engine = &shared.engine;
    let name = machine.container.as_str();
    let wait = ["wait", name];
    let exit = engine.run(&wait);
    tokio::pin!(exit);
    let mut done = None;
    loop {
        let order = *orders.borrow_and_update();
        let act = async {
            match order.filter(|_| order != done) {
                None => std::future::pending().await,
                // Either may find it gone already.
                Some(Order::PowerOff) => drop(engine.run(&["stop", "--time", SHUTDOWN_SECONDS, name]).await),
                Some(Order::CutOff(_)) => drop(engine.run(&["kill", "--signal=KILL", name]).await),
            }
        };
        tokio::select! {
            status = &mut exit => return status,
            () = act => done = order,
            // The sender is in `machine`, which is borrowed here.
            _ = orders.changed() => {}
        }
    }
}
