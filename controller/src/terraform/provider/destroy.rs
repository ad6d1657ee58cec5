//! Destroy: results home and verified first, and nothing deleted otherwise.

use tpi_proto::tfplugin5::Diagnostic;

use super::{
    Left, Provider,
    create::{Ended, Noted},
    identifier, limit, why_kept,
};
use crate::{
    engine::{DestroyOptions, DestroyReport, ErrorKind},
    terraform::{diagnostics, private::Private, value::Object},
};

/// Files named in one warning.
const FILES_SHOWN: usize = 10;

impl Provider {
    pub(super) async fn destroy(&self, prior: Object, private: Option<Private>) -> Left {
        let work = async {
            let id = identifier(&prior)?;
            let engine = self.engine()?;
            let limit = limit(&prior, "delete")?;
            let again = "`terraform destroy` goes on where this ended; until then everything of the task stays in the state";
            let located = match self.locate(engine, &id, &prior, private.as_ref()).await {
                Ok(located) => located,
                Err(error) if error.kind == ErrorKind::NotFound => {
                    return match why_kept(&id, private.as_ref()) {
                        Some((summary, detail)) => Err(diagnostics::error(summary, detail, Vec::new())),
                        None => Ok(Vec::new()),
                    };
                }
                Err(error) => return Err(diagnostics::of_engine(&error, &[again])),
            };
            let noted = Noted::default();
            let options = DestroyOptions::default();
            match self.within(limit, engine.destroy(&located, &options, &noted)).await {
                Ended::Done(report) => Ok(told(&report)),
                Ended::Failed(error) if error.kind == ErrorKind::NotFound => Ok(Vec::new()),
                Ended::Failed(error) => {
                    let place = "to have the results elsewhere: `tpi-controller destroy --to DIR`, with the identifier";
                    let more =
                        if error.kind == ErrorKind::Unverified { vec![place, again] } else { vec![again] };
                    Err(diagnostics::of_engine(&error, &more))
                }
                Ended::Stopped => Err(diagnostics::error(
                    format!("destroying the task {id} was interrupted"),
                    format!("hint: {again}"),
                    Vec::new(),
                )),
                Ended::Late(limit) => Err(diagnostics::error(
                    format!("destroying the task {id} took more than {} s (`timeouts`)", limit.as_secs()),
                    format!("hint: {again}"),
                    Vec::new(),
                )),
            }
        };
        let done: Result<Vec<Diagnostic>, Diagnostic> = work.await;
        match done {
            Ok(diagnostics) => Left::nothing(diagnostics),
            Err(error) => Left { object: Some(prior), private, diagnostics: vec![error] },
        }
    }
}

/// What the user should know of a destroy that succeeded.
fn told(report: &DestroyReport) -> Vec<Diagnostic> {
    let mut found: Vec<Diagnostic> =
        report.warnings.iter().map(|warning| diagnostics::warning(warning, "")).collect();
    for slot in report.results.iter().flat_map(|results| &results.slots) {
        let done = &slot.report;
        tracing::info!(slot = %slot.slot, to = %slot.to.display(), files = done.written, "results are home");
        if !done.kept.is_empty() {
            let mut lines: Vec<String> = done
                .kept
                .iter()
                .take(FILES_SHOWN)
                .map(|(kept, beside)| {
                    format!(
                        "{} (the result is {})",
                        slot.to.join(kept).display(),
                        slot.to.join(beside).display()
                    )
                })
                .collect();
            if let more @ 1.. = done.kept.len().saturating_sub(FILES_SHOWN) {
                lines.push(format!("and {more} more"));
            }
            found.push(diagnostics::warning(
                "files were changed here and are kept, with the results beside them",
                lines.join("\n"),
            ));
        }
        if !done.changed_here.is_empty() {
            let files = done.changed_here.len();
            tracing::info!(files, "changed here and kept; the task had nothing newer");
        }
    }
    found
}
