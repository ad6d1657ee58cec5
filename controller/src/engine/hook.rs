//! Where a test can make this process abort: the one reader of `__TPI_TEST_STOP_AT` in this crate.

use super::Step;

/// Part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Before,
    /// After the work, before the record says so (or between two halves of the work).
    During,
    After,
}

impl Moment {
    const ALL: [Self; 3] = [Self::Before, Self::During, Self::After];

    fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::During => "during",
            Self::After => "after",
        }
    }
}

fn has_middle(step: Step) -> bool {
    match step {
        Step::Workspace | Step::Agent | Step::Results | Step::Erase => true,
        Step::Record
        | Step::Environment
        | Step::Client
        | Step::Clock
        | Step::Machines
        | Step::Intent
        | Step::Stop
        | Step::Saves
        | Step::Remove
        | Step::Proof => false,
    }
}

/// Values of `__TPI_TEST_STOP_AT` for these steps, in the order in which they are reached: `before-record`,
/// `after-record`, … A process with that variable aborts there.
#[must_use]
pub fn stop_points(steps: &[Step]) -> Vec<String> {
    steps
        .iter()
        .flat_map(|&step| {
            Moment::ALL
                .into_iter()
                .filter(move |&m| m != Moment::During || has_middle(step))
                .map(move |moment| format!("{}-{}", moment.as_str(), step.as_str()))
        })
        .collect()
}

pub(super) fn reached(moment: Moment, step: Step) {
    let Some(point) = std::env::var_os("__TPI_TEST_STOP_AT") else { return };
    if point.to_str() == Some(format!("{}-{}", moment.as_str(), step.as_str()).as_str()) {
        std::process::abort();
    }
}
