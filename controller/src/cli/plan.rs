//! `plan`: what `submit` would make and send, and what it would cost at most.

use std::fmt::Write as _;

use jiff::SignedDuration;
use tpi_proto::spec::Spot;

use super::{
    Context,
    configured::each,
    error::CliError,
    exit::Exit,
    human,
    progress::plan_line,
    submit::{Requested, WhatArgs, requested},
    table::table,
    ui::Envelope,
};
use crate::{
    cloud::plan::{CloudPlan, Offer, PriceBasis},
    engine::{PlanReport, Silent},
    price,
    spec::Checked,
};

/// Show what submit would make and send, and what it would cost at most
///
/// Takes the arguments of `submit`. Nothing is made and nothing is sent. Whatever would be refused at
/// submit is refused here: credentials, permissions, limits of the account, an image that does not
/// fit the machine, a price below the market's, a work directory larger than the disk.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    what: WhatArgs,
    /// Taken as by submit, without effect
    #[arg(long, short, hide = true)]
    detach: bool,
    /// Taken as by submit, without effect
    #[arg(long, hide = true)]
    exit_with_task_code: bool,
    /// Taken as by submit, without effect
    #[arg(long, hide = true)]
    no_pull: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Args { what, detach: _, exit_with_task_code: _, no_pull: _ } = args;
    match requested(context, what)? {
        Requested::Flags(checked) => one(context, &checked).await,
        Requested::Configured(tasks) => {
            each(context, tasks, async |(origin, checked)| {
                context.ui.status(&format!("{origin} is task {}", checked.id));
                one(context, checked).await
            })
            .await
        }
    }
}

async fn one(context: &Context, checked: &Checked) -> Result<Exit, CliError> {
    let Context { ui, engine, interrupt, .. } = context;
    let Some(report) = interrupt.guard(engine.plan(checked, &Silent)).await.transpose()? else {
        return Ok(Exit::Detached);
    };
    if ui.is_json() {
        ui.json(&Envelope::report("task_plan", &report))?;
    } else {
        ui.data(text(&report).as_bytes())?;
    }
    for warning in report.plan.warnings.iter().chain(&report.warnings) {
        ui.warning(&context.as_called(warning));
    }
    ui.status("nothing was made and nothing was sent");
    Ok(Exit::Success)
}

fn text(report: &PlanReport) -> String {
    let plan = &report.plan;
    let seconds = |n: u64| SignedDuration::from_secs(i64::try_from(n).unwrap_or(i64::MAX));
    let mut lines = vec![
        ("task", report.id.to_string()),
        ("cloud", format!("{}, {}", report.cloud, plan.region)),
        ("store", report.store.to_string()),
        ("sends", sends(report)),
        ("makes", listed(plan.resources.iter().map(|r| format!("{} {}", r.kind, r.name)))),
        ("starts", starts(report)),
    ];
    if let Some(image) = &plan.image {
        let size = image.root_gb.map(|gb| format!(", {gb} GB")).unwrap_or_default();
        lines.push(("image", format!("{} for {}{size}", image.id, image.arch)));
        if !image.name.is_empty() {
            lines.push(("", format!("{} of {}", image.name, image.owner)));
        }
    }
    if let Some(disk) = &plan.disk {
        let size = disk.gb.map_or_else(|| "the image's size".to_owned(), |gb| format!("{gb} GB"));
        let encrypted = if disk.encrypted { "encrypted " } else { "" };
        lines.push(("disk", format!("{encrypted}{}, {size}, {} each", disk.kind, hourly(disk.usd_per_hour))));
    }
    if !plan.subnets.is_empty() {
        lines.push(("network", listed(plan.subnets.iter().map(|s| format!("{} in {}", s.id, s.zone)))));
        let none = || "nothing: machines are followed through the store".to_owned();
        let opened = listed(plan.openings.iter().map(|o| format!("port {} from {}", o.port, o.from)));
        lines.push(("opens", if plan.openings.is_empty() { none() } else { opened }));
    }
    if let Some(identity) = &plan.identity {
        lines.push(("identity", identity.clone()));
    }
    if let Some(boot) = &plan.boot {
        let (bytes, most) = (human::grouped(boot.bytes), human::grouped(boot.most));
        lines.push(("boot", format!("{bytes} bytes of user-data (of at most {most})")));
    }
    for limit in &plan.limits {
        let used = limit.used.map(|used| format!(", {used} in use")).unwrap_or_default();
        lines.push((
            "limit",
            format!("{} ({}): {} vCPUs{used}, {} needed", limit.name, limit.code, limit.vcpus, limit.needed),
        ));
    }
    let waits = match report.provision_timeout_seconds {
        Some(n) => format!("; gives up after {} without a first machine", human::duration(seconds(n))),
        None => String::new(),
    };
    lines.push(("ends", format!("{} after submit{waits}", human::duration(seconds(report.timeout_seconds)))));
    let most = plan.ceiling.usd.map_or_else(|| "not known".to_owned(), |usd| format!("at most ${usd:.2}"));
    lines.push(("costs", most));
    lines.push(("", plan.ceiling.how.clone()));

    // Writing to a `String` cannot fail.
    let mut text = String::new();
    for (name, value) in lines {
        for (index, line) in value.lines().enumerate() {
            let _ = writeln!(text, "{:9} {line}", if index == 0 { name } else { "" });
        }
    }
    text.push('\n');
    text.push_str(&offers(plan));
    for left in &plan.left_out {
        let _ = writeln!(text, "without {}: {}", left.machine, left.why);
    }
    text
}

fn listed(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join("\n")
}

fn sends(report: &PlanReport) -> String {
    let agent = format!("the agent, {}", human::bytes(report.sends.agent_bytes));
    match &report.sends.workdir {
        None => agent,
        Some(workdir) => format!("{workdir}: {}\n{agent}", plan_line(&report.sends.files)),
    }
}

fn starts(report: &PlanReport) -> String {
    let count = |what| human::count(u64::from(report.plan.machines), what);
    match report.buys {
        Spot::OnDemand => count("machine"),
        Spot::MarketPrice => format!("{} at the market's price", count("spot machine")),
        Spot::MaxPrice { usd_per_hour } => {
            format!("{} for at most ${usd_per_hour} per hour each", count("spot machine"))
        }
    }
}

fn hourly(usd: Option<f64>) -> String {
    usd.map_or_else(|| "price not known".to_owned(), |usd| format!("${usd:.4} per hour"))
}

/// One line for the zones where a machine has the same price.
fn offers(plan: &CloudPlan) -> String {
    let mut grouped: Vec<(&Offer, Vec<&str>)> = Vec::new();
    for offer in &plan.offers {
        let same = |(known, _): &&mut (&Offer, Vec<&str>)| {
            known.machine == offer.machine && hourly(known.usd_per_hour) == hourly(offer.usd_per_hour)
        };
        match grouped.iter_mut().find(same) {
            Some((_, zones)) => zones.push(&offer.zone),
            None => grouped.push((offer, vec![&offer.zone])),
        }
    }
    let rows: Vec<[String; 4]> = grouped
        .into_iter()
        .map(|(offer, zones)| {
            let from = match (offer.basis, offer.usd_per_hour) {
                (_, None) => "-".to_owned(),
                (PriceBasis::Free, Some(_)) => "free".to_owned(),
                (PriceBasis::List, Some(_)) => format!("list of {}", price::aws::AS_OF),
                (PriceBasis::Market { since: Some(since) }, Some(_)) => {
                    format!("spot market since {}", human::time(since))
                }
                (PriceBasis::Market { since: None }, Some(_)) => "spot market".to_owned(),
            };
            let price = offer.usd_per_hour.map_or_else(|| "not known".to_owned(), |usd| format!("${usd:.4}"));
            [offer.machine.clone(), zones.join(", "), price, from]
        })
        .collect();
    table(["MACHINE", "ZONES", "PER HOUR", "FROM"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{
        "version": 1, "id": "tpi-test-3z4xlzwq-3u0vweb4", "name": "test", "cloud": "aws", "store": "s3://bucket/path",
        "buys": {"kind": "max_price", "usd_per_hour": 0.5}, "ends_by": "2026-11-24T20:00:00Z", "timeout_seconds": 86400, "provision_timeout_seconds": 1800,
        "sends": {"workdir": "/data/bees", "files": {"files": 4, "bytes": 52000, "changed": 1, "send_bytes": 12000},
            "agent_bytes": 11000000},
        "plan": {
            "region": "us-west-1", "machines": 2,
            "resources": [{"kind": "security group", "name": "tpi-test-3z4xlzwq-3u0vweb4"},
                {"kind": "Auto Scaling group", "name": "tpi-test-3z4xlzwq-3u0vweb4"}],
            "offers": [
                {"machine": "m5.2xlarge", "zone": "us-west-1a", "usd_per_hour": 0.448, "basis": {"from": "list"}},
                {"machine": "m5.2xlarge", "zone": "us-west-1b", "usd_per_hour": 0.448, "basis": {"from": "list"}},
                {"machine": "x9.huge", "zone": "us-west-1b", "usd_per_hour": null, "basis": {"from": "list"}},
                {"machine": "m6i.2xlarge", "zone": "us-west-1a", "usd_per_hour": 0.2, "basis": {"from": "market", "since": "2026-11-23T20:00:00Z"}}],
            "left_out": [{"machine": "m7a.2xlarge", "why": "us-west-1 does not have it"}],
            "image": {"id": "ami-1", "name": "ubuntu-noble", "owner": "099720109477", "arch": "x86_64", "root_device": "/dev/sda1", "root_gb": 8},
            "subnets": [{"id": "subnet-1", "zone": "us-west-1a"}, {"id": "subnet-2", "zone": "us-west-1b"}],
            "openings": [{"port": 8474, "from": "203.0.113.7/32"}],
            "identity": "tpi-test-3z4xlzwq-3u0vweb4",
            "disk": {"kind": "gp3", "encrypted": true, "gb": 40, "usd_per_hour": 0.00526},
            "boot": {"bytes": 7120, "most": 16384},
            "limits": [{"name": "Running On-Demand Standard instances", "code": "L-1216C47A", "vcpus": 64.0, "used": 8.0, "needed": 16.0}],
            "ceiling": {"usd": 21.7565, "how": "2 × …"},
            "warnings": []
        }
    }"#;

    #[test]
    fn a_plan_as_text_and_as_json() {
        let report: PlanReport = serde_json::from_str(REPORT).expect("is a report");
        insta::assert_snapshot!(text(&report), @r"
        task      tpi-test-3z4xlzwq-3u0vweb4
        cloud     aws, us-west-1
        store     s3://bucket/path
        sends     /data/bees: 4 files, 52 kB, 1 changed, sending 12 kB
                  the agent, 11 MB
        makes     security group tpi-test-3z4xlzwq-3u0vweb4
                  Auto Scaling group tpi-test-3z4xlzwq-3u0vweb4
        starts    2 spot machines for at most $0.5 per hour each
        image     ami-1 for x86_64, 8 GB
                  ubuntu-noble of 099720109477
        disk      encrypted gp3, 40 GB, $0.0053 per hour each
        network   subnet-1 in us-west-1a
                  subnet-2 in us-west-1b
        opens     port 8474 from 203.0.113.7/32
        identity  tpi-test-3z4xlzwq-3u0vweb4
        boot      7,120 bytes of user-data (of at most 16,384)
        limit     Running On-Demand Standard instances (L-1216C47A): 64 vCPUs, 8 in use, 16 needed
        ends      1d 0h after submit; gives up after 30m 0s without a first machine
        costs     at most $21.76
                  2 × …

        MACHINE      ZONES                   PER HOUR   FROM
        m5.2xlarge   us-west-1a, us-west-1b  $0.4480    list of 2025-03-02
        x9.huge      us-west-1b              not known  -
        m6i.2xlarge  us-west-1a              $0.2000    spot market since 2026-11-23 20:00:00Z
        without m7a.2xlarge: us-west-1 does not have it
        ");
        insta::assert_json_snapshot!(Envelope::report("task_plan", &report));
    }
}
