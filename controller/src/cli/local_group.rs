//! `local-group`: the scaling group of a local task, as a process of its own. Started by the local cloud.

use std::path::PathBuf;

use super::{error::CliError, exit::Exit};
use crate::cloud::local::group;

/// Keep the machines of a local task (started by the program itself)
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Args {
    /// Directory of the group
    #[arg(long)]
    dir: PathBuf,
}

pub(super) async fn run(args: Args) -> Result<Exit, CliError> {
    group::run(&args.dir).await?;
    Ok(Exit::Success)
}
