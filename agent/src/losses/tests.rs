use proptest::prelude::*;
use tpi_proto::{
    id::{Attempt, MachineId, RunId, SlotIndex},
    state::{Outcome, PhaseTiming},
};

use super::*;

const RUNNING: SlotState = SlotState::Active { phase: Phase::Run };

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).expect("in range")
}

fn status(state: SlotState, progress: Progress, losses: Losses) -> SlotStatus {
    SlotStatus {
        state,
        phases: vec![PhaseTiming { phase: Phase::Run, started: at(0), ended: None, budget_seconds: 300 }],
        progress,
        losses,
        ..SlotStatus::claimed(
            RunId { slot: SlotIndex(0), attempt: Attempt(1) },
            MachineId("m".to_owned()),
            1000,
        )
    }
}

/// Attempts that end like this, until there is no other: how many there were.
fn attempts(ends: impl IntoIterator<Item = (SlotState, Progress)>) -> Option<usize> {
    let mut losses = Losses::default();
    for (index, (state, progress)) in ends.into_iter().enumerate() {
        match judge(&status(state, progress, losses)) {
            Verdict::TakeOver { losses: next } => losses = next,
            Verdict::GiveUp { .. } => return Some(index + 1),
        }
    }
    None
}

#[test]
fn the_third_machine_lost_without_progress_is_the_last() {
    assert_eq!(attempts(vec![(RUNNING, Progress::None); 9]), Some(3));
    let Verdict::GiveUp { losses, message } =
        judge(&status(RUNNING, Progress::None, Losses { idle: 2, early: 2 }))
    else {
        panic!("a third loss");
    };
    assert_eq!(losses, Losses { idle: 3, early: 3 });
    assert_eq!(message, "3 in a row were gone without a word before anything new was saved");
}

#[test]
fn saving_is_progress_but_not_for_ever() {
    assert_eq!(attempts(vec![(RUNNING, Progress::Saved); 99]), Some(10));
    let Verdict::GiveUp { message, .. } =
        judge(&status(RUNNING, Progress::Saved, Losses { idle: 0, early: 9 }))
    else {
        panic!("a tenth loss");
    };
    assert_eq!(message, "10 in a row were gone without a word before the script had run for 5 minutes");
    assert_eq!(attempts(vec![(RUNNING, Progress::Steady); 999]), None);
}

#[test]
fn what_the_cloud_takes_back_is_not_lost() {
    let stopping = |reason| SlotState::Stopping { reason };
    assert_eq!(attempts(vec![(SlotState::Interrupted, Progress::None); 99]), None);
    assert_eq!(attempts(vec![(stopping(StopReason::Preempted), Progress::None); 99]), None);
    assert_eq!(attempts(vec![(stopping(StopReason::User), Progress::None); 99]), Some(3));
    // An interruption in between neither counts nor forgives.
    let mixed = [RUNNING, SlotState::Interrupted, RUNNING, SlotState::Interrupted, RUNNING];
    assert_eq!(attempts(mixed.map(|state| (state, Progress::None))), Some(5));
}

#[test]
fn a_script_that_ran_for_long_is_steady() {
    let mut running = status(RUNNING, Progress::None, Losses::default());
    assert_eq!(progress(&running, at(299)), Progress::None);
    assert_eq!(progress(&running, at(300)), Progress::Steady);
    // Time that the last save takes does not count.
    running.phases[0].ended = Some(at(200));
    assert_eq!(progress(&running, at(400)), Progress::None);
    running.progress = Progress::Saved;
    assert_eq!(progress(&running, at(400)), Progress::Saved);
    running.phases.clear();
    assert_eq!(progress(&running, at(400)), Progress::Saved);
}

fn ends() -> impl Strategy<Value = (SlotState, Progress)> {
    let finished = SlotState::Finished { outcome: Outcome::Stopped, at: at(1) };
    let states = prop_oneof![
        4 => Just(RUNNING),
        1 => Just(SlotState::Active { phase: Phase::Boot }),
        1 => Just(SlotState::Interrupted),
        1 => Just(SlotState::Stopping { reason: StopReason::Preempted }),
        1 => Just(SlotState::Stopping { reason: StopReason::Deadline }),
        1 => Just(finished),
    ];
    let progress = prop_oneof![
        4 => Just(Progress::None),
        2 => Just(Progress::Saved),
        1 => Just(Progress::Steady),
    ];
    (states, progress)
}

proptest! {
    /// Whatever happens to the machines of a slot: it is given up exactly when the last so many were lost alike.
    #[test]
    fn a_slot_is_given_up_for_a_run_of_losses(ends in proptest::collection::vec(ends(), 0..40)) {
        let (mut idle, mut early, mut expected) = (0, 0, None);
        for (index, (state, progress)) in ends.iter().enumerate() {
            let lost = !had_notice(state);
            if *progress != Progress::None {
                idle = 0;
            } else if lost {
                idle += 1;
            }
            if *progress == Progress::Steady {
                early = 0;
            } else if lost {
                early += 1;
            }
            if lost && (idle >= MAX_IDLE || early >= MAX_EARLY) {
                expected = Some(index + 1);
                break;
            }
        }
        prop_assert_eq!(attempts(ends), expected);
    }
}
