//! The provider of Terraform; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // One TLS provider for everything, before anything can want another one. It fails only when there is one.
    drop(rustls::crypto::ring::default_provider().install_default());
    tpi_controller::cli::provider::main(std::env::args_os())
}
