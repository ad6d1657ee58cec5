//! Runs on the rented machine: takes a slot of the task, prepares the machine, restores the workspace, runs
//! the script, streams what it prints, saves what it makes, and gives the machine back.
//!
//! One task, the [`supervisor`], owns the state and handles one closed `enum Event`. Everything else tells it
//! what happened or is told what to do. The network gets a [`supervisor::Handle`] and nothing more.

pub mod identity;
pub mod logs;
pub mod rpc;
pub mod supervisor;
pub mod telemetry;
pub mod tls;
