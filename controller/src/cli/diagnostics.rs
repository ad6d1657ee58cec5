//! What helps to find defects: the log on stderr, and what is said when the program breaks.

use std::io::{self, Write as _};

use indicatif::MultiProgress;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::{PROGRAM, error::CliError, exit::Exit, ui::Ui};

/// Writes above whatever is drawn on the terminal.
#[derive(Debug, Clone)]
struct Above(MultiProgress);

impl io::Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Above {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// `TPI_LOG` in the syntax of `tracing`'s filters, else `-v` (once: what happens; twice: how; three times: everything).
/// A process that has a log already keeps it.
pub(super) fn log(ui: &Ui, verbosity: u8) {
    let by_flag = match verbosity {
        0 => "error",
        1 => "warn,tpi_controller=info,tpi_store=info",
        2 => "info,tpi_controller=debug,tpi_store=debug",
        _ => "trace",
    };
    let asked = std::env::var("TPI_LOG").ok().filter(|filter| !filter.is_empty());
    let (filter, refused) = match asked.as_deref().map(EnvFilter::try_new) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(by_flag), Some(error)),
        None => (EnvFilter::new(by_flag), None),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Above(ui.drawing().clone()));
    let installed = if ui.is_json() { builder.json().try_init() } else { builder.try_init() };
    if let Err(error) = installed {
        tracing::debug!(error, "another log is installed");
    }
    if let Some(error) = refused {
        ui.warning(&format!("ignoring TPI_LOG: {error}"));
    }
}

/// Says what it means for tasks when this program breaks, and then where it broke.
pub(super) fn explain_panics(json: bool) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let broke =
            CliError::text(Exit::Internal, "tpi-controller broke; this is a defect, please report it")
                .hint(format!(
                    "tasks that run go on and end by their deadline: `{PROGRAM} list` shows them, \
                 `{PROGRAM} destroy TASK` removes one"
                ))
                .hint("the command can be run again: it goes on where it was cut off");
        if json {
            let line = broke.caused_by(info.to_string().replace('\n', " ")).json().line().unwrap_or_default();
            // There is nobody to tell when stderr cannot be written.
            drop(io::stderr().write_all(&line));
        } else {
            drop(io::stderr().write_all(broke.render(&|_, text| text.to_owned()).as_bytes()));
            usual(info);
        }
        if cfg!(panic = "abort") {
            #[expect(clippy::disallowed_methods, reason = "aborting would lose the exit code")]
            std::process::exit(i32::from(Exit::Internal.code()));
        }
    }));
}
