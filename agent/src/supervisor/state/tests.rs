use proptest::prelude::*;
use tpi_proto::id::{Attempt, MachineId, RunId, SlotIndex};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).expect("in range")
}

fn machine() -> Machine {
    let status = SlotStatus {
        phases: vec![PhaseTiming { phase: Phase::Boot, started: at(0), ended: None, budget_seconds: 300 }],
        ..SlotStatus::claimed(
            RunId { slot: SlotIndex(0), attempt: Attempt(1) },
            MachineId("m".to_owned()),
            1000,
        )
    };
    let budgets = Budgets {
        timings: Timings::default(),
        deadline: at(10_000),
        grace: Duration::from_secs(30),
        timeout: Duration::from_secs(10_000),
    };
    Machine::new(status, budgets)
}

fn running() -> Machine {
    let mut m = machine();
    assert_eq!(m.handle(at(1), Input::Booted(Ok(()))), [Action::Prepare]);
    assert_eq!(m.handle(at(2), Input::Prepared(Ok(()))), [Action::Restore]);
    assert_eq!(m.handle(at(3), Input::Restored(Ok(()))), [Action::Run]);
    m
}

fn outcome(m: &Machine) -> Option<Outcome> {
    match &m.status().state {
        SlotState::Finished { outcome, .. } => Some(outcome.clone()),
        SlotState::Active { .. } | SlotState::Stopping { .. } | SlotState::Interrupted => None,
    }
}

#[test]
fn a_script_that_ends_is_saved_then_settled_then_released() {
    let mut m = running();
    assert_eq!(
        m.handle(at(4), Input::ScriptEnded(ScriptEnd::Exited { code: 3 })),
        [Action::Save { files: true }]
    );
    assert_eq!(m.handle(at(5), Input::Saved(Ok(()))), [Action::Settle]);
    assert_eq!(outcome(&m), Some(Outcome::Exited { code: 3 }));
    assert_eq!(m.handle(at(6), Input::Settled), [Action::Release]);
    let phases: Vec<_> = m.status().phases.iter().map(|p| p.phase).collect();
    assert_eq!(phases, Phase::ALL);
}

#[test]
fn a_failed_save_keeps_the_scripts_result_in_its_message() {
    let mut m = running();
    m.handle(at(4), Input::ScriptEnded(ScriptEnd::Exited { code: 0 }));
    m.handle(at(5), Input::Saved(Err("no space".to_owned())));
    let Some(Outcome::Failed { failure: Failure::Save, message, .. }) = outcome(&m) else { panic!("{m:?}") };
    assert_eq!(message, "the script ended with status 0, but its results could not be saved: no space");
}

#[test]
fn an_interruption_is_not_final_but_a_user_may_still_end_it() {
    let mut m = running();
    m.handle(at(4), Input::Preempted);
    m.handle(at(5), Input::ScriptEnded(ScriptEnd::Signalled { signal: 15 }));
    let mut other = m.clone();
    m.handle(at(6), Input::Saved(Ok(())));
    assert_eq!(m.status().state, SlotState::Interrupted);
    assert_eq!(m.handle(at(7), Input::Settled), [Action::Leave]);
    other.handle(at(6), Input::Stop { grace: None });
    other.handle(at(6), Input::Saved(Ok(())));
    assert_eq!(outcome(&other), Some(Outcome::Stopped));
}

#[test]
fn the_deadline_leaves_time_to_save() {
    let mut m = running();
    assert_eq!(m.wake_at(), Some(at(9_000)));
    assert_eq!(m.handle(at(8_999), Input::Tick), []);
    assert_eq!(m.handle(at(9_000), Input::Tick), [Action::EndScript { grace: Duration::from_secs(30) }]);
    m.handle(at(9_001), Input::ScriptEnded(ScriptEnd::Exited { code: 0 }));
    m.handle(at(9_002), Input::Saved(Ok(())));
    assert_eq!(outcome(&m), Some(Outcome::TimedOut { phase: Phase::Run }));
}

#[test]
fn a_phase_over_its_budget_ends_without_saving_half_a_workspace() {
    let mut m = machine();
    m.handle(at(1), Input::Booted(Ok(())));
    m.handle(at(2), Input::Prepared(Ok(())));
    assert_eq!(m.handle(at(2 + 3_600), Input::Tick), [Action::Abandon, Action::Save { files: false }]);
    m.handle(at(3_700), Input::Saved(Ok(())));
    assert_eq!(outcome(&m), Some(Outcome::TimedOut { phase: Phase::Restore }));
}

#[test]
fn a_fenced_machine_writes_nothing_more() {
    let mut m = running();
    assert_eq!(m.handle(at(4), Input::Superseded), [Action::KillScript, Action::Leave]);
    assert_eq!(m.handle(at(5), Input::ScriptEnded(ScriptEnd::Signalled { signal: 9 })), []);
    assert!(!m.can_stop());
}

fn inputs() -> impl Strategy<Value = Input> {
    let fault = || Fault { failure: Failure::Restore, message: "x".to_owned() };
    prop_oneof![
        3 => prop_oneof![Just(Ok(())), Just(Err(fault()))].prop_map(Input::Booted),
        3 => prop_oneof![4 => Just(Ok(())), 1 => Just(Err(fault()))].prop_map(Input::Prepared),
        3 => prop_oneof![4 => Just(Ok(())), 1 => Just(Err(fault()))].prop_map(Input::Restored),
        2 => any::<i32>().prop_map(|code| Input::ScriptEnded(ScriptEnd::Exited { code })),
        1 => (1..32i32).prop_map(|signal| Input::ScriptEnded(ScriptEnd::Signalled { signal })),
        2 => prop_oneof![Just(Ok(())), Just(Err("y".to_owned()))].prop_map(Input::Saved),
        2 => Just(Input::Settled),
        1 => any::<Option<u16>>().prop_map(|g| Input::Stop { grace: g.map(|g| Duration::from_millis(g.into())) }),
        1 => Just(Input::Preempted),
        1 => Just(Input::Superseded),
        2 => Just(Input::Tick),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_life_of_a_slot_is_in_order(
        sequence in prop::collection::vec((inputs(), 0..2_000i64), 0..40),
    ) {
        let mut m = machine();
        let mut now = 0;
        let (mut runs, mut ends, mut saves, mut settles) = (0, 0, 0, 0);
        let mut fenced = false;
        for (input, step) in sequence {
            now += step;
            let superseded = input == Input::Superseded;
            let before = m.clone();
            let actions = m.handle(at(now), input);
            prop_assert!(m.status().generation >= before.status().generation);
            if before.status().state != m.status().state {
                prop_assert!(m.status().generation > before.status().generation);
            }
            if before.status().state.is_final() {
                prop_assert!(m.status().state.is_final() || superseded);
            }
            if fenced {
                prop_assert!(actions.is_empty());
            }
            fenced |= superseded && m.status().state == SlotState::Stopping { reason: StopReason::Superseded };
            for action in actions {
                match action {
                    Action::Run => {
                        runs += 1;
                        prop_assert_eq!(saves, 0);
                    }
                    Action::Save { files } => {
                        saves += 1;
                        prop_assert_eq!(files, runs == 1);
                    }
                    Action::Settle => {
                        settles += 1;
                        prop_assert_eq!(saves, 1);
                    }
                    Action::Release => {
                        ends += 1;
                        prop_assert!(m.status().state.is_final());
                        prop_assert_eq!(settles, 1);
                    }
                    Action::Leave => {
                        ends += 1;
                        prop_assert!(!m.status().state.is_final());
                    }
                    Action::EndScript { .. } | Action::KillScript => prop_assert_eq!(runs, 1),
                    Action::Prepare | Action::Restore | Action::Abandon | Action::AbandonSave => {
                        prop_assert_eq!(settles, 0);
                    }
                }
            }
            let phases: Vec<_> = m.status().phases.iter().map(|p| p.phase).collect();
            prop_assert!(phases.is_sorted());
            let open = m.status().phases.iter().filter(|p| p.ended.is_none()).count();
            prop_assert_eq!(open, 1);
        }
        prop_assert!(runs <= 1 && saves <= 1 && settles <= 1 && ends <= 1);
    }
}
