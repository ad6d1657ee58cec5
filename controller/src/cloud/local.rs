//! This computer, behaving like a cloud.

use std::path::PathBuf;

use async_trait::async_trait;
use tpi_proto::{id::TaskId, spec::CloudName};

use super::{Cloud, CloudError, GroupSpec, Observed};
use crate::home::Home;

pub mod group;

/// The local cloud of one state directory.
#[derive(Debug, Clone)]
pub struct Local {
    root: PathBuf,
    program: Option<PathBuf>,
}

impl Local {
    /// Keeps groups below the state directory; each is a process of this same program.
    #[must_use]
    pub fn new(home: &Home) -> Self {
        Self { root: home.local_dir(), program: None }
    }

    /// Runs groups with another program that has the `local-group` command: for programs that only link
    /// this library.
    #[must_use]
    pub fn with_program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }
}

#[async_trait]
impl Cloud for Local {
    fn name(&self) -> CloudName {
        CloudName::Local
    }
    async fn ensure(&self, _want: &GroupSpec) -> Result<Observed, CloudError> {
        let _ = (&self.root, &self.program);
        unimplemented!()
    }
    async fn observe(&self, _task: &TaskId) -> Result<Observed, CloudError> {
        unimplemented!()
    }
    async fn destroy(&self, _task: &TaskId) -> Result<Observed, CloudError> {
        unimplemented!()
    }
    async fn list(&self) -> Result<Vec<TaskId>, CloudError> {
        unimplemented!()
    }
}
