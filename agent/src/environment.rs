//! The environment that the script is given: clean, not the agent's own.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use tpi_proto::{
    id::{RunId, SlotIndex},
    machine::MachineConfig,
    state::SlotStatus,
};
use tpi_store::{
    Store, StoreError,
    layout::TaskKeys,
    record::{Environment, Identity},
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How often the other slots are looked at while their machines start.
const LOOK: Duration = Duration::from_millis(500);

/// Where a process is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the machine itself.
    Machine,
    /// In a container, whose image knows its own `PATH`, `HOME` and language.
    Container,
}

/// Everything that the script sees. Later layers win: defaults, the machine's place, the user, ours.
pub(crate) fn compose(
    place: Place,
    config: &MachineConfig,
    run: RunId,
    deadline: Timestamp,
    user: &Environment,
    peers: Option<&[String]>,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    match place {
        Place::Machine => {
            let home = std::env::var("HOME").ok().filter(|h| !h.is_empty());
            variables.insert("PATH".to_owned(), PATH.to_owned());
            variables.insert("HOME".to_owned(), home.unwrap_or_else(|| "/root".to_owned()));
            variables.insert("LANG".to_owned(), "C.UTF-8".to_owned());
            variables.extend(config.environment.clone());
        }
        Place::Container => {}
    }
    variables.extend(user.variables.clone());
    for name in ["TPI_REGION", "TPI_MACHINE"] {
        if let Some(value) = config.environment.get(name) {
            variables.insert(name.to_owned(), value.clone());
        }
    }
    let ours = [
        ("TPI_TASK", "true".to_owned()),
        ("TPI_TASK_ID", config.task.to_string()),
        ("TPI_SLOT", run.slot.to_string()),
        ("TPI_SLOTS", config.slots.to_string()),
        ("TPI_ATTEMPT", run.attempt.to_string()),
        ("TPI_MACHINE_ID", config.machine.to_string()),
        ("TPI_DEADLINE", deadline.as_second().to_string()),
    ];
    variables.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    if let Some(peers) = peers {
        variables.insert("TPI_PEERS".to_owned(), peers.join(","));
    }
    // Neither can be handed to a process.
    variables.retain(|name, value| !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
    variables
}

/// The host of every slot, by rank. Waits a while for machines that are still starting; a slot that has none by then
/// has an empty place.
pub(crate) async fn peers(
    store: &Store,
    config: &MachineConfig,
    own: RunId,
    patience: Duration,
) -> Vec<String> {
    let keys = TaskKeys::new(&config.task);
    let end = Instant::now() + patience;
    let mut hosts: Vec<Option<String>> = vec![None; config.slots as usize];
    loop {
        for (index, host) in (0u32..).zip(hosts.iter_mut()).filter(|(_, h)| h.is_none()) {
            match host_of(store, &keys, SlotIndex(index), own).await {
                Ok(found) => *host = found,
                Err(error) => tracing::warn!(%error, "looking for the other slots"),
            }
        }
        if hosts.iter().all(Option::is_some) || Instant::now() >= end {
            return hosts.into_iter().map(Option::unwrap_or_default).collect();
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn host_of(
    store: &Store,
    keys: &TaskKeys,
    slot: SlotIndex,
    own: RunId,
) -> Result<Option<String>, StoreError> {
    let run = if slot == own.slot {
        own
    } else {
        match store.get_json::<SlotStatus>(&keys.slot(slot)).await? {
            Some((status, _)) => status.run(),
            None => return Ok(None),
        }
    };
    let identity = store.get_json::<Identity>(&keys.identity(run)).await?;
    // Published, but not reachable: an empty place is all there will be.
    Ok(identity.map(|(identity, _)| {
        identity
            .addresses
            .first()
            .map(|a| a.rsplit_once(':').map_or(a.as_str(), |(host, _)| host).to_owned())
            .unwrap_or_default()
    }))
}
