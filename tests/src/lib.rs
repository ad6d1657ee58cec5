//! The rig of the end-to-end suites: the real `tpi-controller` and the real `tpi-agent`, each test with a
//! state directory, a store and a work directory of its own. Nothing of ours is
//! faked; [`instance`] stands in for what surrounds a machine in a cloud.
//!
//! `cargo xtask test` builds both programs and names them in `TPI_CONTROLLER` and `TPI_AGENT`; without these
//! the rig looks beside the test's own executable.

pub mod instance;
pub mod rig;
pub mod sim;

pub use rig::{Finished, Rig, Running, eventually, program};
