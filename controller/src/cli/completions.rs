//! `completions`: for shells.

use clap_complete::Shell;

use super::{error::CliError, exit::Exit, ui::Ui};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which
    shell: Shell,
}

pub(super) fn run(ui: &Ui, args: &Args) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), super::PROGRAM, &mut script);
    ui.data(&script)?;
    Ok(Exit::Success)
}
