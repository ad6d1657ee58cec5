//! `terraform`: puts the provider where Terraform finds it, and takes it away again.

use std::path::PathBuf;

use serde::Serialize;

use super::{
    PROGRAM,
    error::{CliError, Problem},
    exit::Exit,
    ui::{Envelope, Ui},
};
use crate::terraform::install::{self, Before, InstallError, Installed, Places};

/// Use tasks from Terraform, as the provider iterative/iterative
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: TerraformCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TerraformCommand {
    Install(InstallArgs),
    /// Take away what `install` has put there, and nothing else
    Uninstall,
}

/// Put the provider where `terraform init` finds it, for every project of this user
///
/// It goes into ~/.terraform.d/plugins, where Terraform looks of itself. No configuration of Terraform is
/// changed; where one says that providers come from elsewhere, this prints what to add, and ends with code 1.
#[derive(Debug, clap::Args)]
struct InstallArgs {
    /// The provider's program [default: terraform-provider-iterative beside this program]
    #[arg(long, env = "TPI_PROVIDER", hide_env_values = true, value_name = "FILE")]
    provider: Option<PathBuf>,
}

#[derive(Serialize)]
struct Uninstalled {
    version: u32,
    removed: Vec<PathBuf>,
}

pub(super) fn run(ui: &Ui, args: Args, agent: Option<PathBuf>) -> Result<Exit, CliError> {
    let places = Places::of_process().map_err(explained)?;
    match args.command {
        TerraformCommand::Install(args) => {
            let beside = |name: &str| -> Result<PathBuf, CliError> {
                let program =
                    std::env::current_exe().map_err(|e| CliError::internal("finding this program", &e))?;
                Ok(program.with_file_name(name))
            };
            let provider = args.provider.map_or_else(|| beside(install::PROGRAM), Ok)?;
            let agent = agent.map_or_else(|| beside("tpi-agent"), Ok)?;
            let installed = install::install(&places, &provider, &agent).map_err(explained)?;
            told(ui, &installed)
        }
        TerraformCommand::Uninstall => {
            let removed = install::uninstall(&places).map_err(explained)?;
            if ui.is_json() {
                ui.json(&Envelope::new("uninstalled", Uninstalled { version: 1, removed: removed.clone() }))?;
            }
            for package in &removed {
                ui.status(&format!("removed {}", package.display()));
            }
            if removed.is_empty() {
                ui.status("the provider was not installed: nothing was changed");
            }
            Ok(Exit::Success)
        }
    }
}

fn told(ui: &Ui, installed: &Installed) -> Result<Exit, CliError> {
    if ui.is_json() {
        ui.json(&Envelope::new("installed", installed))?;
    }
    let Installed { package, version, before, .. } = installed;
    let place = package.display();
    ui.status(&match before {
        Before::Absent => format!("installed iterative/iterative {version} in {place}"),
        Before::Same => format!("iterative/iterative {version} is in {place} already: nothing was changed"),
        Before::Other => format!("replaced iterative/iterative {version} in {place}"),
    });
    if *before == Before::Other {
        ui.hint("in projects that were initialised with the one before: delete .terraform.lock.hcl, then `terraform init`");
    }
    if let Some(config) = &installed.hidden_by {
        let text = install::to_add(&installed.mirror);
        return Err(CliError::text(
            Exit::Request,
            format!(
                "Terraform does not look there, because {} says where providers come from",
                config.display()
            ),
        )
        .hint(format!("that file was not changed; add to its provider_installation:\n\n{text}")));
    }
    ui.hint("in a folder with a main.tf: `terraform init`, then `terraform apply`");
    Ok(Exit::Success)
}

fn explained(error: InstallError) -> CliError {
    let report = CliError::new(Exit::Request, Problem::of(&error));
    match error {
        InstallError::Missing { name: install::PROGRAM, .. } => report.hint(
            "name it with `--provider FILE` or TPI_PROVIDER, or build it: `cargo build -p tpi-controller`",
        ),
        InstallError::Missing { .. } => {
            report.hint("name it with TPI_AGENT, or build it: `cargo build -p tpi-agent`")
        }
        InstallError::Foreign { path } => {
            report.hint(format!("move {} away, then run `{PROGRAM} terraform install` again", path.display()))
        }
        InstallError::NoHome | InstallError::File { .. } => report,
    }
}
