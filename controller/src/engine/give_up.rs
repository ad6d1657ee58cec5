//! The end of the wait for a first machine, and of a group whose machines all went without having started an agent. No server of ours sees the time pass: whoever looks after it decides, and
//! where nobody looks the task's deadline does, which the cloud itself keeps.

use tpi_proto::id::TaskId;
use tpi_store::{
    Store,
    record::{GaveUp, Intent, Unprovisioned},
};

use super::{
    EngineError,
    facts::{self, Change, Facts},
};
use crate::{
    cloud::{Cloud, Observed, Shortage, ShortageReason},
    task::{Action, Done, Machines},
};

/// Ends a group that never had a machine when its time is up, and finishes an end that was cut off; otherwise leaves
/// the facts as they are. Written before anything is removed, so that nobody orders machines again.
pub(super) async fn where_in_vain(
    store: &Store,
    cloud: &dyn Cloud,
    task: &TaskId,
    facts: Facts,
) -> Result<Facts, EngineError> {
    let gave_up = facts.record.as_ref().is_some_and(|r| r.intent == Intent::Run && r.gave_up.is_some());
    match facts.next(Done::default()) {
        Action::GiveUp => {
            // Slots are read before the cloud is asked: a machine may have done all its work in between.
            let facts = Facts::read(store, cloud, task).await?;
            if facts.next(Done::default()) != Action::GiveUp {
                return Ok(facts);
            }
            // The newest facts count: somebody may have had luck since.
            let written = facts::change_record(store, task, |record| {
                if record.intent != Intent::Run || record.gave_up.is_some() {
                    return Ok(Change::Keep);
                }
                let (reason, why) = match facts.machines() {
                    Machines { seen: true, .. } => (Unprovisioned::Agent, went(&facts.observed)),
                    Machines { seen: false, .. } => verdict(&facts.observed.shortages),
                };
                record.gave_up = Some(GaveUp { at: facts.now, reason, why });
                Ok(Change::Write)
            })
            .await?;
            if !written.is_some_and(|record| record.intent == Intent::Run) {
                return Facts::read(store, cloud, task).await;
            }
        }
        Action::RemoveMachines if gave_up => {}
        Action::RemoveMachines
        | Action::StoreEnvironment
        | Action::StoreWorkspace
        | Action::StoreAgent
        | Action::PublishClient
        | Action::StartClock
        | Action::EnsureMachines
        | Action::Wait
        | Action::StopSlots
        | Action::AwaitSaves
        | Action::SecureResults
        | Action::Prove
        | Action::EraseStore
        | Action::Rest => return Ok(facts),
    }
    let _gone = cloud.destroy(task).await.map_err(EngineError::cloud(task))?;
    Facts::read(store, cloud, task).await
}

/// The machines that came and went.
fn went(observed: &Observed) -> Vec<String> {
    let machines = observed.machines.iter();
    machines.map(|machine| format!("{} started at {}", machine.id, machine.launched)).collect()
}

/// What to do something about, and all that was tried. Of several reasons the one that more waiting helps least.
fn verdict(shortages: &[Shortage]) -> (Unprovisioned, Vec<String>) {
    let order = |reason: ShortageReason| match reason {
        ShortageReason::Quota => (0, Unprovisioned::Quota),
        ShortageReason::Permission => (1, Unprovisioned::Permission),
        ShortageReason::Price => (2, Unprovisioned::Price),
        ShortageReason::Capacity => (3, Unprovisioned::Capacity),
        // One type that a zone does not serve is usual where others are only sold out.
        ShortageReason::Request => (4, Unprovisioned::Request),
        ShortageReason::Other => (5, Unprovisioned::Unknown),
    };
    let first = shortages.iter().map(|s| order(s.reason)).min_by_key(|(rank, _)| *rank);
    let reason = first.map_or(Unprovisioned::Unknown, |(_, reason)| reason);
    (reason, shortages.iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn shortage(reason: ShortageReason, zone: &str) -> Shortage {
        Shortage {
            reason,
            zone: Some(zone.to_owned()),
            machine: Some("g5.xlarge".to_owned()),
            message: "in the cloud's words".to_owned(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_limit_is_told_apart_from_what_is_sold_out() {
        use ShortageReason as R;
        for (reasons, expected) in [
            (vec![R::Capacity, R::Quota], Unprovisioned::Quota),
            (vec![R::Request, R::Capacity, R::Other], Unprovisioned::Capacity),
            (vec![R::Price], Unprovisioned::Price),
            (vec![], Unprovisioned::Unknown),
        ] {
            let shortages: Vec<Shortage> = reasons.iter().map(|r| shortage(*r, "us-west-1a")).collect();
            assert_eq!(verdict(&shortages).0, expected, "{reasons:?}");
        }
        let (_, why) = verdict(&[shortage(R::Capacity, "us-west-1a")]);
        assert_eq!(why, ["no g5.xlarge in us-west-1a: no capacity: in the cloud's words"]);
    }
}
