//! Create and update.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tpi_proto::{id::TaskId, tfplugin5::Diagnostic};

use super::{Left, Provider, adopt, identifier, limit};
use crate::{
    engine::{Engine, EngineError, Located, Observer, Progress, Step, SubmitOutcome, Submitted},
    spec::{Checked, identity::integration_run},
    terraform::{
        claims::{self, Claim},
        diagnostics,
        observe::observe,
        plan,
        private::Private,
        value::{Object, Value},
    },
};

/// What may differ between a request and the task that is there without its being another task: values taken from the
/// caller's own environment change from run to run, and the other two are changed in place.
const MAY_DIFFER: [&str; 3] = ["environment", "exclude", "output"];

/// Writes down how far an operation has got.
#[derive(Debug, Default)]
pub(super) struct Noted {
    created: AtomicBool,
    begun: AtomicBool,
}

impl Noted {
    /// Whether the record is one that this operation has made.
    fn created(&self) -> bool {
        self.created.load(Ordering::Acquire)
    }

    /// Whether anything was done, be it to a task that was there before.
    fn begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }
}

impl Observer for Noted {
    fn progress(&self, event: Progress) {
        match event {
            Progress::Step { step } => {
                self.begun.store(true, Ordering::Release);
                if step == Step::Record {
                    self.created.store(true, Ordering::Release);
                }
                tracing::info!(step = step.as_str(), "next");
            }
            Progress::SendPlan { plan } => tracing::info!(?plan, "sending"),
            Progress::Warning { message } => tracing::warn!("{message}"),
            Progress::TransferTotal { .. }
            | Progress::TransferAdvance { .. }
            | Progress::TransferDone { .. }
            | Progress::Restored { .. }
            | Progress::StopSent { .. }
            | Progress::WaitingForSlots { .. } => {}
        }
    }
}

/// How work ended.
#[derive(Debug)]
pub(super) enum Ended<T> {
    Done(T),
    Failed(EngineError),
    /// Ctrl-C.
    Stopped,
    /// The user's own limit.
    Late(Duration),
}

impl Provider {
    /// Does work that can be cut off anywhere and finished by doing it again.
    pub(super) async fn within<T>(
        &self,
        limit: Option<Duration>,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Ended<T> {
        let patience = async {
            match limit {
                Some(limit) => {
                    tokio::time::sleep(limit).await;
                    limit
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.0.stop.cancelled() => Ended::Stopped,
            done = work => match done {
                Ok(done) => Ended::Done(done),
                Err(error) => Ended::Failed(error),
            },
            limit = patience => Ended::Late(limit),
        }
    }

    pub(super) async fn create(&self, planned: Object) -> Left {
        let (checked, found) = self.check(&planned, |_| true);
        let Some(mut checked) = checked else { return Left::nothing(found) };
        let claim = match self.identify(&planned, &mut checked) {
            Ok(claim) => claim,
            Err(error) => return Left::nothing(vec![error]),
        };
        if !self.created(&checked.id) {
            let summary = format!("two resources are the same task {}", checked.id);
            return Left::nothing(vec![diagnostics::error(
                summary,
                "hint: give each its own `name`",
                diagnostics::at("name"),
            )]);
        }
        let left = self.submit(checked, planned).await;
        if let Some(claim) = claim {
            // Nothing is left to find, or Terraform is told where it is.
            claim.settle();
        }
        left
    }

    /// A name always gives the same task. Without one, a run of a continuous-integration system has the same task for the
    /// same configuration, and everything else a new one.
    fn identify(&self, planned: &Object, checked: &mut Checked) -> Result<Option<Claim>, Diagnostic> {
        let name = planned.get("name").and_then(Value::as_text).filter(|name| !name.is_empty());
        if let Some(name) = name {
            let id = name.parse().or_else(|_| TaskId::deterministic(name));
            checked.id =
                id.map_err(|error| diagnostics::error(error.to_string(), "", diagnostics::at("name")))?;
            return Ok(None);
        }
        let purpose = claims::purpose(planned, self.here());
        if let Some(run) = integration_run(&self.around().environment) {
            if let Ok(id) = TaskId::seeded(&checked.spec.name, format!("{run}:{purpose}").as_bytes()) {
                checked.id = id;
            }
            return Ok(None);
        }
        let folder = self.engine()?.settings().home.root().join("terraform");
        let own = checked.id.clone();
        let claim = claims::claim(&folder, &purpose, || Some(own)).map_err(|error| {
            diagnostics::error(
                format!("noting an identifier in {}", folder.display()),
                format!("caused by: {error}\nhint: give the task a `name`, or another TPI_STATE_DIR"),
                Vec::new(),
            )
        })?;
        if let Some(claim) = &claim {
            checked.id = claim.id.clone();
        }
        Ok(claim)
    }

    /// Submits, and says what there is afterwards, however far it got.
    async fn submit(&self, checked: Checked, planned: Object) -> Left {
        let engine = match self.engine() {
            Ok(engine) => engine,
            Err(error) => return Left::nothing(vec![error]),
        };
        let limit = match limit(&planned, "create") {
            Ok(limit) => limit,
            Err(error) => return Left::nothing(vec![error]),
        };
        let id = checked.id.clone();
        let noted = Noted::default();
        let ended = self.within(limit, engine.submit(&checked, &noted)).await;
        let next = "`terraform apply` goes on where this ended, `terraform destroy` removes what there is";
        let ours = match &ended {
            Ended::Done(_) => true,
            Ended::Failed(_) | Ended::Stopped | Ended::Late(_) => is_ours(engine, &checked, &noted).await,
        };
        let cut = |diagnostic: Diagnostic| {
            let mut private = Private::new(Some(checked.spec.cloud), None);
            private.unfinished = true;
            if !ours {
                return Left::nothing(vec![diagnostic]);
            }
            Left {
                object: Some(settled(planned.clone(), &id)),
                private: Some(private),
                diagnostics: vec![diagnostic],
            }
        };
        let submitted = match ended {
            Ended::Done(submitted) => submitted,
            Ended::Failed(error) => return cut(diagnostics::of_engine(&error, &[])),
            Ended::Stopped if ours => {
                return cut(diagnostics::warning(
                    format!("submitting the task {id} was interrupted"),
                    format!("hint: {next}"),
                ));
            }
            Ended::Stopped => {
                return cut(diagnostics::error("interrupted", "", Vec::new()));
            }
            Ended::Late(limit) => {
                return cut(diagnostics::error(
                    format!("submitting the task {id} took more than {} s (`timeouts`)", limit.as_secs()),
                    format!("hint: {next}"),
                    Vec::new(),
                ));
            }
        };
        let differs: Vec<&str> = submitted
            .differs
            .iter()
            .map(String::as_str)
            .filter(|field| !MAY_DIFFER.contains(field))
            .collect();
        if !differs.is_empty() {
            let summary =
                format!("there is a task {id} already, with other values of {}", differs.join(", "));
            let detail = format!(
                "hint: choose another `name`\nhint: `terraform import` takes that task over, `tpi-controller destroy {id}` removes it"
            );
            return Left::nothing(vec![diagnostics::error(summary, detail, diagnostics::at("name"))]);
        }
        self.finish(engine, &checked, &submitted, settled(planned, &id)).await
    }

    /// Looks at a task that was submitted.
    async fn finish(
        &self,
        engine: &Engine,
        checked: &Checked,
        submitted: &Submitted,
        mut object: Object,
    ) -> Left {
        let id = &checked.id;
        let private = Private::new(Some(submitted.cloud), Some(submitted.store.clone()));
        let mut found = Vec::new();
        if submitted.outcome == SubmitOutcome::Ended {
            found.push(diagnostics::warning(
                format!("the task {id} has ended before, and was not started again"),
                "hint: `terraform destroy`, then `terraform apply`, run it again",
            ));
        } else if submitted.differs.iter().any(|field| field == "environment") {
            found.push(diagnostics::warning(
                format!("the task {id} runs already, with other values in its environment"),
                "hint: `terraform destroy`, then `terraform apply`, start it with those of now",
            ));
        }
        // The task is there, so nothing that fails from here on is a failure to create it.
        let unseen = |error: EngineError| {
            diagnostics::warning(
                format!("the task {id} was submitted, and cannot be looked at now: {error}"),
                "hint: `terraform refresh` looks again",
            )
        };
        match engine.locate(id.as_str()).await {
            Ok(located) => {
                if submitted.differs.iter().any(|field| field == "output" || field == "exclude") {
                    let storage = &checked.spec.storage;
                    if let Err(error) =
                        engine.amend(&located, storage.output.as_deref(), &storage.exclude).await
                    {
                        found.push(unseen(error));
                    }
                }
                match observe(engine, &located).await {
                    Ok(seen) => adopt(&mut object, seen),
                    Err(error) => found.push(unseen(error)),
                }
            }
            Err(error) => found.push(unseen(error)),
        }
        Left { object: Some(object), private: Some(private), diagnostics: found }
    }

    pub(super) async fn update(&self, prior: &Object, planned: Object, private: Option<Private>) -> Left {
        let keep = |private, diagnostic| Left {
            object: Some(prior.clone()),
            private,
            diagnostics: vec![diagnostic],
        };
        let id = match identifier(prior) {
            Ok(id) => id,
            Err(error) => return keep(private, error),
        };
        let engine = match self.engine() {
            Ok(engine) => engine,
            Err(error) => return keep(private, error),
        };
        if private.as_ref().is_some_and(|private| private.unfinished) {
            let (checked, found) = self.check(&planned, |_| true);
            let Some(mut checked) = checked else {
                return Left { object: Some(prior.clone()), private, diagnostics: found };
            };
            checked.id = id;
            let left = self.submit(checked, planned).await;
            // What was there before is still there.
            return match left {
                Left { object: None, diagnostics, .. } => {
                    Left { object: Some(prior.clone()), private, diagnostics }
                }
                left => left,
            };
        }
        if plan::amends(&planned, prior) {
            let (checked, found) = self.check(&planned, |_| true);
            let Some(checked) = checked else {
                return Left { object: Some(prior.clone()), private, diagnostics: found };
            };
            let storage = &checked.spec.storage;
            let amended = async {
                let located = self.locate(engine, &id, prior, private.as_ref()).await?;
                engine.amend(&located, storage.output.as_deref(), &storage.exclude).await
            };
            match self.within(None, amended).await {
                Ended::Done(()) => {}
                Ended::Failed(error) => return keep(private, diagnostics::of_engine(&error, &[])),
                Ended::Stopped | Ended::Late(_) => {
                    return keep(
                        private,
                        diagnostics::error("interrupted", "hint: run `terraform apply` again", Vec::new()),
                    );
                }
            }
        }
        // Nothing is unknown any more about a task that was imported.
        let mut private = private;
        if let Some(private) = &mut private {
            private.imported = false;
        }
        Left { object: Some(planned), private, diagnostics: Vec::new() }
    }
}

/// Whether what there is after a submission was cut off may be put into the state, from where it is destroyed one day:
/// what this submission has made, or would have taken over. Never somebody else's task of the same name.
async fn is_ours(engine: &Engine, checked: &Checked, noted: &Noted) -> bool {
    if noted.created() || !noted.begun() {
        return noted.created();
    }
    let Ok(Located { record: Some(record), .. }) = engine.locate(checked.id.as_str()).await else {
        return false;
    };
    let mut spec = record.spec;
    spec.name.clone_from(&checked.spec.name);
    spec.environment.clone_from(&checked.spec.environment);
    spec.storage.output.clone_from(&checked.spec.storage.output);
    spec.storage.exclude.clone_from(&checked.spec.storage.exclude);
    spec == checked.spec
}

/// A state: what was planned, with its identifier, and nothing left unknown.
fn settled(mut planned: Object, id: &TaskId) -> Object {
    drop(planned.insert("id".to_owned(), Value::text(id.as_str())));
    for value in planned.values_mut() {
        if *value == Value::Unknown {
            *value = Value::Null;
        }
    }
    planned
}
