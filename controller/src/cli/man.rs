//! `man`: manual pages.

use std::path::PathBuf;

use super::{error::CliError, exit::Exit, ui::Ui};

/// Print the manual page, or write the pages of all commands
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory for one page per command [default: the main page on stdout]
    dir: Option<PathBuf>,
}

pub(super) fn run(ui: &Ui, args: &Args) -> Result<Exit, CliError> {
    match &args.dir {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(super::command()).render(&mut page)?;
            ui.data(&page)?;
        }
        Some(dir) => {
            let failed = |error: std::io::Error| CliError::file("writing manual pages to", dir, &error);
            std::fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(super::command(), dir).map_err(failed)?;
            ui.status(&format!("wrote manual pages to {}", dir.display()));
        }
    }
    Ok(Exit::Success)
}
