//! Runs on the rented machine: takes a slot of the task, prepares the machine, restores the workspace, runs
//! the script, streams what it prints, saves what it makes, and gives the machine back.
//!
//! One task, the [`supervisor`], owns the state and handles one closed `enum Event`. Everything else tells it
//! what happened or is told what to do. The network gets a [`supervisor::Handle`] and nothing more.

mod boot;
mod call;
pub mod clock;
pub mod config;
mod container;
mod credentials;
mod environment;
mod exec;
pub mod identity;
mod journal;
pub mod logs;
mod losses;
mod preemption;
mod release;
pub mod rpc;
mod save;
mod slots;
pub mod supervisor;
pub mod telemetry;
pub mod tls;

use std::time::Instant;

use tpi_proto::machine::{MachineConfig, MachineName};

pub use crate::boot::BootError;
use crate::{
    boot::Booted,
    config::TestHooks,
    supervisor::{End, give_back},
};

/// Why an agent ended without having done its work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It never held a slot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Its own parts could not be started.
    #[error("starting the agent")]
    Start(#[source] std::io::Error),
}

/// The whole life of an agent: takes a slot, if there is one, and lives it. The machine was given back when this
/// returns [`End::Finished`].
///
/// # Errors
/// [`AgentError`]: the machine was not given back.
pub async fn run(config: MachineConfig<MachineName>, hooks: TestHooks) -> Result<End, AgentError> {
    exec::leftovers::adopt_orphans().map_err(AgentError::Start)?;
    let started = Instant::now();
    let config = boot::name(config, started).await?;
    match boot::boot(&config, &hooks, started).await? {
        Booted::Held(held) => supervisor::drive(config, hooks, *held).await.map_err(AgentError::Start),
        Booted::NothingToDo(cause) => {
            tracing::info!("there is nothing to do: {cause}");
            give_back(&config, &call::Names::new(&config, None), None).await;
            Ok(End::Finished)
        }
    }
}
