//! What is left of tasks on this computer: folders of groups, and agents whose folder somebody has removed.

use std::{fs, io, path::Path, time::SystemTime};

use jiff::Timestamp;
use tpi_proto::id::TaskId;

use super::{files::Files, machine::GROUP_VARIABLE, process};
use crate::cloud::{GroupState, Leftover, Observed, ResourceKind};

const REGION: &str = "local";

/// Of a group that has a folder.
pub(super) fn of_group(
    root: &Path,
    task: &TaskId,
    seen: &Observed,
) -> io::Result<impl Iterator<Item = Leftover>> {
    let files = Files::new(root, task);
    let config = files.read_config()?;
    let made = fs::metadata(files.dir()).and_then(|m| m.created().or_else(|_| m.modified()));
    let created = made.ok().and_then(|made: SystemTime| Timestamp::try_from(made).ok());
    let idle = !matches!(seen.group, GroupState::Active { .. });
    let group = Leftover {
        kind: ResourceKind::ScalingGroup,
        id: files.dir().display().to_string(),
        region: Some(REGION.to_owned()),
        task: task.clone(),
        created,
        deadline: config.as_ref().map(|c| c.deadline),
        store: config.map(|c| c.store),
        usd_per_hour: idle.then_some(0.0),
    };
    let of_machine = group.clone();
    let machines: Vec<Leftover> = seen
        .alive()
        .map(|machine| Leftover {
            kind: ResourceKind::Machine,
            id: machine.id.to_string(),
            created: Some(machine.launched),
            usd_per_hour: machine.usd_per_hour,
            ..of_machine.clone()
        })
        .collect();
    Ok(std::iter::once(group).chain(machines))
}

/// Processes of groups of this root that have no folder any more.
pub(super) fn homeless(root: &Path) -> Vec<Leftover> {
    let of_process = |(dir, process): (String, process::ProcessId)| {
        let dir = Path::new(&dir);
        let task: TaskId = dir.strip_prefix(root).ok()?.to_str()?.parse().ok()?;
        (!dir.exists()).then(|| Leftover {
            kind: ResourceKind::Machine,
            id: format!("process {}", process.pid),
            region: Some(REGION.to_owned()),
            task,
            created: None,
            deadline: None,
            store: None,
            usd_per_hour: Some(0.0),
        })
    };
    process::values_of(GROUP_VARIABLE).into_iter().filter_map(of_process).collect()
}
