//! What has to be done next.

use jiff::Timestamp;
use tpi_proto::state::SlotStatus;
use tpi_store::record::{Intent, TaskRecord};

use super::{
    Machines,
    state::{gave_themselves_back, is_past_deadline, waits_in_vain},
};

/// One thing to do. Every one is idempotent: done twice, or by two controllers, it leaves the same world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Write the script's variables.
    StoreEnvironment,
    /// Send the work directory and write its manifest.
    StoreWorkspace,
    /// Send the agent's program.
    StoreAgent,
    /// Publish this user's certificate.
    PublishClient,
    /// Write the deadline and the intent to run: from here on machines may exist.
    StartClock,
    /// Make the cloud keep the machines.
    EnsureMachines,
    /// Machines work, or give themselves back: there is nothing for a controller to do.
    Wait,
    /// Write that no machine could be had in the time given.
    GiveUp,
    /// Ask the scripts to stop.
    StopSlots,
    /// Let the slots end and save.
    AwaitSaves,
    /// Bring results home and verify them.
    SecureResults,
    /// Remove machines and group.
    RemoveMachines,
    /// Ask the cloud, by tag, whether anything is left.
    Prove,
    /// Delete what is in the store, the record last.
    EraseStore,
    /// Nothing; the task has ended and waits to be destroyed, or is gone.
    Rest,
}

/// What this controller has done by itself, and what cannot be read back from the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// The script's variables are in the store.
    pub environment: bool,
    /// This user's certificate is in the store.
    pub client: bool,
    /// Slots were asked to stop.
    pub stop_asked: bool,
    /// Waiting for the last saves has taken as long as it may.
    pub patience_over: bool,
    /// Results are home and verified, or were given up.
    pub results: bool,
    /// The cloud was told to remove whatever it has; also what is no machine and costs nothing.
    pub removed: bool,
    /// The cloud was asked, and has nothing left.
    pub proved: bool,
}

/// The next thing to do. Total: there is an answer for every combination, also for those that should not be.
#[must_use]
pub fn next_action(
    record: Option<&TaskRecord>,
    slots: &[SlotStatus],
    machines: Machines,
    stop_requested: bool,
    done: Done,
    now: Timestamp,
) -> Action {
    let Some(record) = record else {
        // The record is lost. What is left of results in the store is not touched.
        return if machines.gone() { Action::Rest } else { Action::RemoveMachines };
    };
    let wanted = u32::from(record.spec.parallelism.get());
    let ended = (0..wanted).all(|n| slots.iter().any(|s| s.slot.0 == n && s.state.is_final()));
    let late = is_past_deadline(record, now);
    match record.intent {
        Intent::Submit if !done.environment => Action::StoreEnvironment,
        Intent::Submit if !record.input_stored => Action::StoreWorkspace,
        Intent::Submit if record.agent_sha256.is_none() => Action::StoreAgent,
        Intent::Submit if !done.client => Action::PublishClient,
        Intent::Submit => Action::StartClock,

        Intent::Run if (late || record.gave_up.is_some()) && !machines.gone() => Action::RemoveMachines,
        Intent::Run if record.gave_up.is_some() => Action::Rest,
        Intent::Run if waits_in_vain(record, slots, machines, now) => Action::GiveUp,
        Intent::Run if !late && !stop_requested && gave_themselves_back(slots, machines) => Action::GiveUp,
        Intent::Run if late || ended => {
            if machines.gone() {
                Action::Rest
            } else {
                Action::Wait
            }
        }
        Intent::Run if machines.group => Action::Wait,
        // Without a group nothing replaces a machine; those that are left may work on.
        Intent::Run if stop_requested => {
            if machines.gone() {
                Action::Rest
            } else {
                Action::Wait
            }
        }
        Intent::Run => Action::EnsureMachines,

        Intent::Destroy => destroy(slots, machines, ended || late, done),
    }
}

fn destroy(slots: &[SlotStatus], machines: Machines, ended: bool, done: Done) -> Action {
    let working = machines.alive > 0 && !ended && !slots.is_empty();
    if working && !done.results && !done.stop_asked {
        return Action::StopSlots;
    }
    if working && !done.results && !done.patience_over {
        return Action::AwaitSaves;
    }
    if !done.results {
        return Action::SecureResults;
    }
    if !machines.gone() || !done.removed {
        return Action::RemoveMachines;
    }
    if done.proved { Action::EraseStore } else { Action::Prove }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use proptest::prelude::*;
    use tpi_proto::{
        id::{Attempt, MachineId, RunId, SlotIndex, TaskId},
        spec::{CloudName, Ingress, Spot, StorageSpec, TaskSpec},
        state::{Outcome, Phase, SlotState, StopReason},
    };
    use tpi_store::record::{GaveUp, RECORD_VERSION, Unprovisioned};

    use super::*;
    use crate::task::{TaskOutcome, TaskState, derive};

    const DEADLINE: i64 = 1_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn record(slots: u16) -> TaskRecord {
        let id = TaskId::deterministic("test").expect("a name");
        TaskRecord {
            version: RECORD_VERSION,
            id,
            writer: "test".to_owned(),
            created: at(0),
            spec: TaskSpec {
                name: "test".to_owned(),
                cloud: CloudName::Local,
                region: "local".to_owned(),
                machine: "m".to_owned(),
                image: "ubuntu".to_owned(),
                disk_size: None,
                spot: Spot::OnDemand,
                parallelism: NonZeroU16::new(slots).expect("not 0"),
                permission_set: None,
                tags: std::collections::BTreeMap::new(),
                environment: Vec::new(),
                timeout_seconds: 100,
                grace_seconds: 1,
                script: "#!/bin/sh\n".to_owned(),
                container: None,
                ingress: Ingress::Caller,
                storage: StorageSpec::default(),
                subnets: Vec::new(),
                provision_timeout_seconds: Some(60),
            },
            intent: Intent::Submit,
            deadline: None,
            agent_sha256: None,
            input_stored: false,
            gave_up: None,
        }
    }

    fn slot(index: u32, state: SlotState) -> SlotStatus {
        let run = RunId { slot: SlotIndex(index), attempt: Attempt(1) };
        SlotStatus { state, ..SlotStatus::claimed(run, MachineId("m-1".to_owned()), 1000) }
    }

    fn finished(code: i32) -> SlotState {
        SlotState::Finished { outcome: Outcome::Exited { code }, at: at(1) }
    }

    /// A world in which actions have their effect and other things happen in between.
    #[derive(Debug, Clone)]
    struct World {
        record: Option<TaskRecord>,
        slots: Vec<SlotStatus>,
        machines: Machines,
        stop_requested: bool,
        done: Done,
        now: i64,
        ensured_late: bool,
        ensured_after_destroy: bool,
        erased_unsecured: bool,
        none_free: bool,
        gave_up_on_machines: bool,
    }

    /// What happens by itself, or what somebody else does.
    #[derive(Debug, Clone, Copy)]
    enum Happening {
        Claim(u32),
        Save,
        Finish(u32, i32),
        Interrupt(u32),
        MachineDies,
        GroupVanishes,
        UserStops,
        UserDestroys,
        /// The controller is killed and run again: it forgets what it alone knew.
        ControllerRestarts,
        TimePasses(i64),
        PatienceEnds,
        RecordIsLost,
        NoneIsFree(bool),
    }

    impl World {
        fn new(slots: u16) -> Self {
            Self {
                record: Some(record(slots)),
                slots: Vec::new(),
                machines: Machines::default(),
                stop_requested: false,
                done: Done::default(),
                now: 0,
                ensured_late: false,
                ensured_after_destroy: false,
                erased_unsecured: false,
                none_free: false,
                gave_up_on_machines: false,
            }
        }

        fn next(&self) -> Action {
            next_action(
                self.record.as_ref(),
                &self.slots,
                self.machines,
                self.stop_requested,
                self.done,
                at(self.now),
            )
        }

        fn state(&self) -> TaskState {
            derive(self.record.as_ref(), &self.slots, self.machines, self.stop_requested, at(self.now))
        }

        fn perform(&mut self, action: Action) {
            let now = self.now;
            match (action, self.record.as_mut()) {
                (Action::StoreEnvironment, _) => self.done.environment = true,
                (Action::StoreWorkspace, Some(r)) => r.input_stored = true,
                (Action::StoreAgent, Some(r)) => r.agent_sha256 = Some("00".to_owned()),
                (Action::PublishClient, _) => self.done.client = true,
                (Action::StartClock, Some(r)) => {
                    r.deadline = Some(at(now.max(DEADLINE)));
                    r.intent = Intent::Run;
                }
                (Action::EnsureMachines, Some(r)) => {
                    self.ensured_late |= r.deadline.is_none_or(|d| at(now) >= d);
                    self.ensured_after_destroy |= r.intent == Intent::Destroy;
                    // Sometimes there is none to be had.
                    let alive = if self.none_free { 0 } else { u32::from(r.spec.parallelism.get()) };
                    self.machines = Machines { group: true, alive, seen: alive > 0, ended: false };
                }
                (Action::GiveUp, Some(r)) => {
                    self.gave_up_on_machines |= self.machines.seen || !self.slots.is_empty();
                    let why = vec!["m5.2xlarge in us-west-1a: no capacity".to_owned()];
                    r.gave_up = Some(GaveUp { at: at(now), reason: Unprovisioned::Capacity, why });
                }
                (Action::StopSlots, _) => {
                    self.done.stop_asked = true;
                    self.stop_requested = true;
                }
                (Action::SecureResults, _) => self.done.results = true,
                (Action::RemoveMachines, _) => {
                    self.machines = Machines::default();
                    self.done.removed = true;
                }
                (Action::Prove, _) => self.done.proved = self.machines.gone(),
                (Action::EraseStore, _) => {
                    self.erased_unsecured |= !self.done.results || !self.machines.gone();
                    self.record = None;
                    self.slots.clear();
                }
                (Action::Wait | Action::AwaitSaves | Action::Rest, _) => {}
                (
                    Action::StoreWorkspace
                    | Action::StoreAgent
                    | Action::StartClock
                    | Action::EnsureMachines
                    | Action::GiveUp,
                    None,
                ) => unreachable!("{action:?} without a record"),
            }
        }

        fn happen(&mut self, what: Happening) {
            let machines_are_allowed = self.machines.alive > 0;
            match what {
                Happening::Claim(n) => {
                    if machines_are_allowed && self.slots.iter().all(|s| s.slot.0 != n) {
                        self.slots.push(slot(n, SlotState::Active { phase: Phase::Run }));
                    }
                }
                Happening::Save => {}
                Happening::Finish(n, code) => {
                    if machines_are_allowed {
                        for s in self.slots.iter_mut().filter(|s| s.slot.0 == n && !s.state.is_final()) {
                            s.state = finished(code);
                        }
                    }
                }
                Happening::Interrupt(n) => {
                    for s in self.slots.iter_mut().filter(|s| s.slot.0 == n && !s.state.is_final()) {
                        s.state = SlotState::Interrupted;
                    }
                }
                Happening::MachineDies => self.machines.alive = self.machines.alive.saturating_sub(1),
                Happening::GroupVanishes => self.machines = Machines::default(),
                Happening::UserStops => self.stop_requested = true,
                Happening::UserDestroys => {
                    if let Some(r) = self.record.as_mut() {
                        r.intent = Intent::Destroy;
                    }
                }
                Happening::ControllerRestarts => self.done = Done::default(),
                Happening::TimePasses(seconds) => self.now += seconds,
                Happening::PatienceEnds => self.done.patience_over = true,
                Happening::RecordIsLost => self.record = None,
                Happening::NoneIsFree(none) => self.none_free = none,
            }
        }
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            (0u32..4).prop_map(Happening::Claim),
            Just(Happening::Save),
            (0u32..4, 0i32..2).prop_map(|(n, code)| Happening::Finish(n, code)),
            (0u32..4).prop_map(Happening::Interrupt),
            Just(Happening::MachineDies),
            Just(Happening::GroupVanishes),
            Just(Happening::UserStops),
            Just(Happening::UserDestroys),
            Just(Happening::ControllerRestarts),
            (0i64..400).prop_map(Happening::TimePasses),
            Just(Happening::PatienceEnds),
            Just(Happening::RecordIsLost),
            any::<bool>().prop_map(Happening::NoneIsFree),
        ]
    }

    fn calm(action: Action) -> bool {
        matches!(action, Action::Wait | Action::AwaitSaves | Action::Rest)
    }

    proptest! {
        #[test]
        fn every_history_converges_and_none_breaks_a_promise(
            slots in 1u16..4,
            history in prop::collection::vec(prop_oneof![
                1 => happening().prop_map(Some),
                3 => Just(None),
            ], 0..60),
        ) {
            let mut world = World::new(slots);
            for step in history {
                match step {
                    Some(what) => world.happen(what),
                    None => {
                        let action = world.next();
                        world.perform(action);
                    }
                }
                let _state = world.state();
            }
            // Left alone, the controller has soon nothing to do.
            let mut settled = world.clone();
            let mut rounds = 0;
            while !calm(settled.next()) {
                let action = settled.next();
                settled.perform(action);
                rounds += 1;
                prop_assert!(rounds < 20, "{:?} in {:?}", settled.next(), settled);
            }
            // Past the deadline nothing is left of it.
            settled.happen(Happening::TimePasses(10 * DEADLINE));
            if settled.record.as_ref().is_some_and(|r| r.deadline.is_some()) {
                for _ in 0..20 {
                    let action = settled.next();
                    settled.perform(action);
                }
                prop_assert!(settled.machines.gone());
            }
            // Destroy always reaches the end, once waiting is over.
            world.happen(Happening::UserDestroys);
            world.happen(Happening::PatienceEnds);
            for _ in 0..20 {
                let action = world.next();
                prop_assert_ne!(action, Action::EnsureMachines);
                world.perform(action);
            }
            prop_assert_eq!(world.state(), TaskState::Destroyed);
            prop_assert_eq!(world.next(), Action::Rest);
            for world in [&settled, &world] {
                prop_assert!(!world.ensured_late && !world.ensured_after_destroy && !world.erased_unsecured);
                prop_assert!(!world.gave_up_on_machines);
            }
        }
    }

    #[test]
    fn an_undisturbed_task_goes_through_its_states() {
        let mut world = World::new(2);
        let mut states = vec![world.state()];
        let mut note = |world: &World| {
            if states.last() != Some(&world.state()) {
                states.push(world.state());
            }
        };
        while !calm(world.next()) {
            let action = world.next();
            world.perform(action);
            note(&world);
        }
        for what in
            [Happening::Claim(0), Happening::Claim(1), Happening::Finish(1, 3), Happening::Finish(0, 0)]
        {
            world.happen(what);
            note(&world);
        }
        world.happen(Happening::GroupVanishes);
        world.happen(Happening::UserDestroys);
        note(&world);
        while world.next() != Action::Rest {
            let action = world.next();
            world.perform(action);
            note(&world);
        }
        let failed =
            TaskOutcome::Failed { slot: SlotIndex(1), outcome: Outcome::Exited { code: 3 }, failed: 1 };
        assert_eq!(
            states,
            [
                TaskState::Declared,
                TaskState::Provisioning,
                TaskState::Running,
                TaskState::Finished { outcome: failed },
                TaskState::Stopping { reason: super::super::EndReason::Destroyed },
                TaskState::Destroyed,
            ]
        );
    }

    #[test]
    fn a_first_machine_is_not_waited_for_for_ever() {
        let mut world = World::new(1);
        world.none_free = true;
        while !calm(world.next()) {
            let action = world.next();
            world.perform(action);
        }
        let began = DEADLINE - 100;
        world.now = began + 59;
        assert_eq!((world.next(), world.state()), (Action::Wait, TaskState::Provisioning));
        let mut patient = world.clone();
        patient.record.as_mut().expect("a record").spec.provision_timeout_seconds = None;
        // One that came and was lost is no reason to give up: the group replaces it.
        let mut lucky = world.clone();
        lucky.machines.seen = true;
        for world in [&mut patient, &mut lucky, &mut world] {
            world.now = began + 60;
        }
        assert_eq!(
            (patient.next(), lucky.next(), world.next()),
            (Action::Wait, Action::Wait, Action::GiveUp)
        );
        world.perform(Action::GiveUp);
        let reason = super::super::EndReason::Unprovisioned;
        assert_eq!((world.next(), world.state()), (Action::RemoveMachines, TaskState::Stopping { reason }));
        world.perform(Action::RemoveMachines);
        let why = vec!["m5.2xlarge in us-west-1a: no capacity".to_owned()];
        let outcome = TaskOutcome::Unprovisioned { reason: Unprovisioned::Capacity, why };
        assert_eq!((world.next(), world.state()), (Action::Rest, TaskState::Finished { outcome }));
    }

    #[test]
    fn outcomes_that_no_slot_reports() {
        let mut world = World::new(2);
        while !calm(world.next()) {
            let action = world.next();
            world.perform(action);
        }
        world.happen(Happening::Claim(0));
        world.happen(Happening::Finish(0, 0));
        let mut stopped = world.clone();
        stopped.happen(Happening::UserStops);
        assert_eq!(stopped.state(), TaskState::Stopping { reason: super::super::EndReason::Stopped });
        stopped.happen(Happening::GroupVanishes);
        assert_eq!(stopped.state(), TaskState::Finished { outcome: TaskOutcome::Stopped { unfinished: 1 } });
        assert_eq!(stopped.next(), Action::Rest);
        world.happen(Happening::TimePasses(DEADLINE));
        assert_eq!(world.state(), TaskState::Stopping { reason: super::super::EndReason::Deadline });
        assert_eq!(world.next(), Action::RemoveMachines);
        world.happen(Happening::GroupVanishes);
        assert_eq!(world.state(), TaskState::Finished { outcome: TaskOutcome::TimedOut { unfinished: 1 } });
        let stopping = slot(0, SlotState::Stopping { reason: StopReason::Preempted });
        let record = World::new(1).record.map(|mut r| {
            r.intent = Intent::Run;
            r
        });
        let machines = Machines { group: true, alive: 1, seen: true, ended: false };
        assert_eq!(derive(record.as_ref(), &[stopping], machines, false, at(0)), TaskState::Running);
    }

    #[test]
    fn machines_that_all_gave_themselves_back_are_not_waited_for() {
        let record = World::new(1).record.map(|mut r| {
            r.intent = Intent::Run;
            r.deadline = Some(at(DEADLINE));
            r
        });
        let gone = Machines { group: false, alive: 0, seen: true, ended: true };
        let next = |slots: &[SlotStatus], machines, stop| {
            next_action(record.as_ref(), slots, machines, stop, Done::default(), at(1))
        };
        assert_eq!(next(&[], gone, false), Action::GiveUp);
        // One that was made and not started, or removed by somebody, is made again.
        assert_eq!(next(&[], Machines { seen: false, ..gone }, false), Action::EnsureMachines);
        assert_eq!(next(&[], Machines { ended: false, ..gone }, false), Action::EnsureMachines);
        assert_eq!(next(&[slot(0, SlotState::Interrupted)], gone, false), Action::EnsureMachines);
        assert_eq!(next(&[], gone, true), Action::Rest);
    }
}
