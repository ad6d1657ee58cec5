//! `plan`: what a configuration asks for.

use std::fmt::Write as _;

use serde::Serialize;
use tpi_proto::{
    id::TaskId,
    spec::{Ingress, Spot, TaskSpec},
};

use super::{
    Context,
    configured::Configured,
    error::CliError,
    exit::Exit,
    human,
    ui::{Envelope, Ui},
};
use crate::spec::{Surroundings, hcl::Position};

/// Show what this folder's main.tf asks for, after checking all of it
///
/// Nothing is begun, stored or asked of a cloud. Values of environment variables are never shown.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    configured: Configured,
}

/// A task as it would be submitted.
#[derive(Debug, Serialize)]
struct Planned<'a> {
    address: &'a str,
    position: &'a Position,
    id: &'a TaskId,
    spec: &'a TaskSpec,
    warnings: &'a [String],
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let ui = &context.ui;
    let around = Surroundings::of_process(context.engine.settings().clouds.names())
        .map_err(|error| CliError::file("finding", std::path::Path::new("the current directory"), &error))?;
    let chosen = args.configured.read(context)?;
    let tasks = chosen.tasks();
    let checked = chosen.configuration.check(&tasks, &chosen.inputs, &around)?;
    let planned: Vec<Planned<'_>> = tasks
        .iter()
        .zip(&checked)
        .map(|(task, checked)| Planned {
            address: &task.address,
            position: &task.position,
            id: &checked.id,
            spec: &checked.spec,
            warnings: &checked.warnings,
        })
        .collect();
    if ui.is_json() {
        #[derive(Serialize)]
        struct Plan<'a> {
            tasks: &'a [Planned<'a>],
        }
        ui.json(&Envelope::new("plan", Plan { tasks: &planned }))?;
    } else {
        let texts: Vec<String> = planned.iter().map(|planned| text(ui, planned)).collect();
        ui.data(texts.join("\n").as_bytes())?;
    }
    for planned in &planned {
        for warning in planned.warnings {
            ui.warning(&format!("{} ({}): {warning}", planned.address, planned.position));
        }
    }
    ui.hint(&format!("to have it: {}", context.command("submit")));
    Ok(Exit::Success)
}

fn text(ui: &Ui, planned: &Planned<'_>) -> String {
    let spec = planned.spec;
    let bold = anstyle::Style::new().bold();
    let spot = match spec.spot {
        Spot::OnDemand => "on demand".to_owned(),
        Spot::MarketPrice => "spot, at the market's price".to_owned(),
        Spot::MaxPrice { usd_per_hour } => format!("spot, up to ${usd_per_hour} per hour"),
    };
    let disk = spec.disk_size.map(|size| format!(", disk {size} GB")).unwrap_or_default();
    let mut lines = vec![
        ("task", planned.id.to_string()),
        ("cloud", format!("{}, region {}", spec.cloud, spec.region)),
        ("machines", format!("{} of {}, image {}{disk}, {spot}", spec.parallelism, spec.machine, spec.image)),
        ("ends", format!("{} after it was submitted, at the latest", duration(spec.timeout_seconds))),
        ("script", human::count(u64::try_from(spec.script.lines().count()).unwrap_or(u64::MAX), "line")),
    ];
    let mut more = |name, value: Option<String>| lines.extend(value.map(|value| (name, value)));
    let listed = |names: Vec<String>| (!names.is_empty()).then(|| names.join(", "));
    more("inside", spec.container.as_ref().map(|image| format!("container {image}")));
    more("sends", spec.storage.workdir.clone());
    more("without", listed(spec.storage.exclude.clone()));
    more("brings", spec.storage.output.as_deref().map(brought));
    more("bucket", spec.storage.container.clone());
    more("knows", listed(spec.environment.clone()));
    more("tags", listed(spec.tags.iter().map(|(key, value)| format!("{key}={value}")).collect()));
    more("rights", spec.permission_set.clone());
    more(
        "reached",
        match &spec.ingress {
            Ingress::Caller => None,
            Ingress::Closed => Some("by nobody".to_owned()),
            Ingress::Networks { cidrs } => Some(format!("from {}", cidrs.join(", "))),
        },
    );
    let mut text = format!("{} ({})\n", ui.paint_data(bold, planned.address), planned.position);
    for (name, value) in lines {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "  {name:8} {value}");
    }
    text
}

fn brought(path: &str) -> String {
    if path == "." { "all of it home".to_owned() } else { format!("{path} home") }
}

fn duration(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    human::duration(jiff::SignedDuration::from_secs(seconds))
}
