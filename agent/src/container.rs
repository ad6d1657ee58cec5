//! Runs the script in a container.

use tokio::sync::watch;
use tpi_proto::{machine::MachineConfig, state::Failure};

use crate::{
    exec::{Job, Order},
    logs::pump::{PipeEnds, Pump},
    supervisor::state::{Fault, ScriptEnd},
};

pub(crate) struct Engine {}
impl Engine {
    pub(crate) fn connect() -> Result<Self, Fault> {
        Err(Fault { failure: Failure::Prepare, message: "no container engine".to_owned() })
    }
    pub(crate) async fn prepare(&self, _image: &str, _config: &MachineConfig) -> Result<(), Fault> {
        Ok(())
    }
}
pub(crate) async fn run(
    _engine: &Engine,
    _image: &str,
    _job: &Job,
    _config: &MachineConfig,
    _ends: PipeEnds,
    _pump: &mut Pump,
    _orders: watch::Receiver<Order>,
) -> ScriptEnd {
    ScriptEnd::NotStarted { message: String::new() }
}
