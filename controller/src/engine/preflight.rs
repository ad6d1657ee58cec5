//! Whether a work directory fits on a machine's disk, before it is sent. What the cloud refuses is its own plan's affair.

use super::{EngineError, ErrorKind};
use crate::{
    cloud::plan::{CloudPlan, Room},
    spec::Checked,
};

/// Refuses a work directory that is larger than a machine's disk.
pub(super) fn fits(checked: &Checked, plan: &CloudPlan, bytes: u64) -> Result<(), EngineError> {
    match plan.room(bytes) {
        Room::Enough | Room::Doubtful => return Ok(()),
        Room::TooLittle => {}
    }
    let gb = plan.disk.as_ref().and_then(|disk| disk.gb).unwrap_or_default();
    // What is sent, the system, and as much again for results.
    let enough = bytes.saturating_mul(2).div_ceil(1 << 30) + 8;
    Err(EngineError::new(
        ErrorKind::User,
        format!(
            "the work directory of {} has {:.1} GB and does not fit on a disk of {gb} GB beside the system",
            checked.id,
            gigabytes(bytes)
        ),
    )
    .of(&checked.id)
    .hint(format!("give machines a larger disk: `--disk-size {enough}`"))
    .hint("or leave files out with `--exclude`"))
}

/// What may become a lack of room.
pub(super) fn doubts(plan: &CloudPlan, bytes: u64) -> Option<String> {
    match plan.room(bytes) {
        Room::Enough | Room::TooLittle => None,
        Room::Doubtful => Some(format!(
            "the work directory has {:.1} GB, and how much room the image leaves on a disk of {} GB is not known: --disk-size gives more",
            gigabytes(bytes),
            plan.disk.as_ref().and_then(|disk| disk.gb).unwrap_or_default()
        )),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_directory_that_no_disk_holds_is_refused_with_the_size_that_does() {
        let checked: Checked = {
            let around = crate::spec::Surroundings {
                current_dir: std::env::temp_dir(),
                clouds: vec![tpi_proto::spec::CloudName::Local],
                ..Default::default()
            };
            let script = Some(crate::spec::ScriptSource::Text("#!/bin/sh\n".to_owned()));
            let name = Some("bees".to_owned());
            crate::spec::check(&crate::spec::Request { name, script, ..Default::default() }, &around)
                .expect("a request")
        };
        let plan: CloudPlan = serde_json::from_value(serde_json::json!({
            "region": "us-west-1", "resources": [], "machines": 1, "offers": [],
            "disk": {"kind": "gp3", "encrypted": true, "gb": 8, "usd_per_hour": null},
            "ceiling": {"usd": null, "how": ""}
        }))
        .expect("a plan");
        assert!(fits(&checked, &plan, 1 << 30).is_ok());
        let error = fits(&checked, &plan, 20 << 30).expect_err("too large");
        assert_eq!(error.kind, ErrorKind::User);
        assert!(error.message.contains("20.0 GB") && error.message.contains("8 GB"), "{}", error.message);
        assert!(error.hints[0].contains("--disk-size 48"), "{:?}", error.hints);
    }
}
