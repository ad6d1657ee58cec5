//! The program that Terraform starts as its provider `iterative/iterative`.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use super::{diagnostics, error::CliError, exit::Exit};
use crate::terraform::{self, HandshakeError};

/// The whole program: serves Terraform, or says what it is. Needs the TLS provider installed.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Groups of the local cloud are processes of the program that made them.
    if arguments.get(1).is_some_and(|first| first == "local-group") {
        return super::main(arguments);
    }
    diagnostics::explain_panics(false);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return tell(&CliError::internal("starting worker threads", &error)),
    };
    let served = runtime.block_on(terraform::serve(announce));
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => tell(&explained(&error)),
    }
}

/// Terraform reads exactly one line.
fn announce(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()
}

fn explained(error: &HandshakeError) -> CliError {
    let report = CliError::new(Exit::Usage, super::error::Problem::of(error));
    match error {
        HandshakeError::NotTerraform => report
            .hint("`tpi-controller terraform install` puts it where Terraform finds it")
            .hint("then write a main.tf and run `terraform init` and `terraform apply`"),
        HandshakeError::Version { .. } => report.hint("Terraform 0.12 and every newer version speaks it"),
        HandshakeError::Anonymous => report.hint("run Terraform without TF_DISABLE_PLUGIN_TLS"),
        HandshakeError::Certificate(_) | HandshakeError::Socket { .. } | HandshakeError::Tls(_) => report,
    }
}

fn tell(error: &CliError) -> ExitCode {
    // There is nobody to tell when stderr cannot be written.
    drop(io::stderr().write_all(error.render(&|_, text| text.to_owned()).as_bytes()));
    error.exit().into()
}
