//! The rig of the end-to-end suites: the real `tpi-controller` and the real `tpi-agent`, each test with a
//! state directory, a store and a work directory of its own. Nothing is faked.
//!
//! `cargo xtask test` builds both programs and names them in `TPI_CONTROLLER` and `TPI_AGENT`; without these
//! the rig looks beside the test's own executable.

pub mod rig;

pub use rig::{Finished, Rig, Running, eventually};
