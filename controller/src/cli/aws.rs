//! `aws`: what is only about Amazon Web Services.

use super::{error::CliError, exit::Exit, ui::Ui};
use crate::cloud::aws;

/// What is only about Amazon Web Services
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: AwsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AwsCommand {
    Policy(PolicyArgs),
}

/// Print the least that credentials have to allow, as a policy in JSON
#[derive(Debug, clap::Args)]
struct PolicyArgs {
    /// Of machines, for a role of one's own that is passed with --permission-set
    #[arg(long)]
    machine: bool,
    /// Bucket and path of the store, for --machine
    #[arg(long, requires = "machine", value_name = "BUCKET[/PATH]", default_value = "BUCKET")]
    storage: String,
    /// aws, aws-cn or aws-us-gov
    #[arg(long, default_value = "aws")]
    partition: String,
}

pub(super) fn run(ui: &Ui, args: &Args) -> Result<Exit, CliError> {
    let AwsCommand::Policy(PolicyArgs { machine, storage, partition }) = &args.command;
    let policy =
        if *machine { aws::any_machine_policy(partition, storage) } else { aws::caller_policy(partition) };
    ui.data(format!("{policy:#}\n").as_bytes())?;
    Ok(Exit::Success)
}
