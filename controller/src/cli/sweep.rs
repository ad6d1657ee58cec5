//! `sweep`: what nobody wants any more.

use std::{fmt::Write as _, time::Duration};

use tpi_proto::spec::CloudName;

use super::{
    Context, PROGRAM,
    error::{CliError, Problem},
    exit::Exit,
    human,
    table::table,
    ui::Envelope,
};
use crate::{
    cloud::Regions,
    engine::{RecordState, SweepOptions, SweepReport, SweptThing, Verdict},
    spec::duration,
};

/// Find what tasks have left behind, and remove it with --yes
///
/// Looks for everything that carries the mark of a task, and for what tasks have in stores, and
/// tells what has no record any more or is past its deadline. Tasks that are wanted and what lacks
/// the mark are never touched. Ends with code 6 when something unwanted is left.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to look: local, aws, gcp, az or k8s (can be repeated) [default: all of this build]
    #[arg(long, value_name = "CLOUD")]
    cloud: Vec<CloudName>,
    /// Region to look in (can be repeated) [default: the usual ones, and those of tasks known here]
    #[arg(long, value_name = "REGION", conflicts_with = "all_regions")]
    region: Vec<String>,
    /// Look in every region that the account has
    #[arg(long)]
    all_regions: bool,
    /// Leave alone what is younger than this, or of unknown age: seconds, or 90s, 15m, 24h
    #[arg(long, value_name = "DURATION")]
    older_than: Option<String>,
    /// Only what belongs to this task: a name or an identifier
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// Remove what nobody wants; without it nothing is changed
    #[arg(long)]
    yes: bool,
    /// With --yes, delete saved results of tasks whose record is lost, too
    #[arg(long, requires = "yes")]
    discard: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Context { ui, engine, interrupt, .. } = context;
    let older_than = args.older_than.as_deref().map(|text| {
        duration::seconds(text).map(Duration::from_secs).map_err(|error| {
            CliError::new(Exit::Request, Problem::text(format!("--older-than {text:?}: {error}")))
                .hint("give seconds, or 90s, 15m, 24h")
        })
    });
    let options = SweepOptions {
        clouds: args.cloud,
        regions: match (args.all_regions, args.region.is_empty()) {
            (true, _) => Regions::All,
            (false, true) => Regions::Usual,
            (false, false) => Regions::Named(args.region),
        },
        older_than: older_than.transpose()?,
        task: args.task,
        remove: args.yes,
        discard: args.discard,
    };
    let Some(report) = interrupt.guard(engine.sweep(&options)).await.transpose()? else {
        return Ok(Exit::Detached);
    };
    if ui.is_json() {
        ui.json(&Envelope::report("sweep", &report))?;
    } else if report.things.is_empty() {
        ui.status("nothing carries the mark of a task");
    } else {
        ui.data(text(&report).as_bytes())?;
    }
    for warning in &report.warnings {
        ui.warning(&context.as_called(warning));
    }
    if report.left > 0 {
        let left = human::count(u64::from(report.left), "thing");
        return Err(told(&report, options.remove, &left));
    }
    Ok(if report.warnings.is_empty() { Exit::Success } else { Exit::Unreachable })
}

fn told(report: &SweepReport, removing: bool, left: &str) -> CliError {
    let is_left = |verdict: Verdict| report.things.iter().any(|t| t.verdict == verdict && !t.removed);
    let mut error = CliError::text(Exit::Leftovers, format!("{left} may be wanted by nobody"));
    if is_left(Verdict::Orphaned) || is_left(Verdict::Overdue) {
        error = error.hint(if removing {
            format!("run it again: `{PROGRAM} sweep --yes`")
        } else {
            format!("to remove what is orphaned or overdue: `{PROGRAM} sweep --yes`, and the same options")
        });
    }
    if is_left(Verdict::Results) {
        error = error.hint(format!(
            "results whose record is lost are deleted by `{PROGRAM} sweep --yes --discard` only"
        ));
    }
    if is_left(Verdict::Unknown) {
        error =
            error.hint("what is unknown has its record, if any, in a store that cannot be read from here");
    }
    error
}

fn text(report: &SweepReport) -> String {
    let dash = || "-".to_owned();
    let rows: Vec<[String; 9]> = report
        .things
        .iter()
        .map(|swept| {
            let thing = &swept.thing;
            [
                thing.kind.to_string(),
                thing.id.clone(),
                thing.region.clone().unwrap_or_else(dash),
                thing.task.to_string(),
                swept.age_seconds.map_or_else(dash, age),
                thing.usd_per_hour.map_or_else(dash, |usd| format!("{usd:.4}")),
                record(swept.record).to_owned(),
                end(swept).to_owned(),
                verdict(swept).to_owned(),
            ]
        })
        .collect();
    let heading = ["TYPE", "ID", "REGION", "TASK", "AGE", "USD/H", "RECORD", "DEADLINE", "VERDICT"];
    let mut text = table(heading, &rows);
    // Writing to a `String` cannot fail.
    let _ = writeln!(
        text,
        "{} found, {} removed, {} left",
        human::count(report.things.len().try_into().unwrap_or(u64::MAX), "thing"),
        report.removed,
        report.left
    );
    text
}

fn age(seconds: f64) -> String {
    human::duration(jiff::SignedDuration::try_from_secs_f64(seconds).unwrap_or_default())
}

fn record(state: RecordState) -> &'static str {
    match state {
        RecordState::Present => "yes",
        RecordState::Absent => "no",
        RecordState::Unknown => "unknown",
    }
}

fn end(swept: &SweptThing) -> &'static str {
    match (swept.thing.deadline, swept.overdue) {
        (None, _) => "-",
        (Some(_), true) => "over",
        (Some(_), false) => "ahead",
    }
}

fn verdict(swept: &SweptThing) -> &'static str {
    match (swept.removed, swept.verdict) {
        (true, _) => "removed",
        (false, Verdict::Wanted) => "wanted",
        (false, Verdict::Orphaned) => "orphaned",
        (false, Verdict::Overdue) => "overdue",
        (false, Verdict::Unknown) => "unknown",
        (false, Verdict::Young) => "too young",
        (false, Verdict::Results) => "orphaned, with results",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_a_table() {
        let report: SweepReport = serde_json::from_str(
            r#"{"version": 1, "removed": 1, "left": 1, "things": [
                {"cloud": "aws", "kind": "machine", "id": "i-0abc", "region": "us-west-1",
                 "task": "tpi-test-3z4xlzwq-3u0vweb4", "created": "2026-11-23T20:00:00Z", "deadline": "2026-11-23T21:00:00Z",
                 "usd_per_hour": 0.384, "age_seconds": 7500.0, "overdue": true, "record": "present",
                 "verdict": "overdue", "removed": true},
                {"cloud": "aws", "kind": "security_group", "id": "sg-0abc", "region": "eu-west-1",
                 "task": "tpi-hello-world-4dl8w653-5lubxln8", "overdue": false, "record": "absent",
                 "verdict": "orphaned", "removed": false}]}"#,
        )
        .expect("is a report");
        insta::assert_snapshot!(text(&report), @r"
        TYPE            ID       REGION     TASK                               AGE    USD/H   RECORD  DEADLINE  VERDICT
        machine         i-0abc   us-west-1  tpi-test-3z4xlzwq-3u0vweb4         2h 5m  0.3840  yes     over      removed
        security group  sg-0abc  eu-west-1  tpi-hello-world-4dl8w653-5lubxln8  -      -       no      -         orphaned
        2 things found, 1 removed, 1 left
        ");
        insta::assert_snapshot!(told(&report, false, "1 thing").render(&|_, text| text.to_owned()), @r"
        error: 1 thing may be wanted by nobody
        hint: to remove what is orphaned or overdue: `tpi-controller sweep --yes`, and the same options
        ");
    }
}
