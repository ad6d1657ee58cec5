//! The engine on the local cloud with the real agent: `$TPI_AGENT`, or `tpi-agent` where cargo puts it.
#![cfg(feature = "local")]
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tpi_controller::{
    cloud::{MachineEnd, Registry, local::Local},
    engine::{
        DestroyOptions, Engine, EngineError, ErrorKind, Located, Observer, Progress, PullOptions, Settings,
        Silent, Step, StopOptions, SubmitOutcome,
    },
    home::Home,
    spec::{self, Request, ScriptSource, Surroundings},
    task::{EndReason, TaskOutcome, TaskState},
};
use tpi_proto::{
    id::SlotIndex,
    spec::CloudName,
    state::{Outcome, Phase, SlotState},
};
use tpi_store::{Store, layout::TaskKeys};

const PATIENCE: Duration = Duration::from_secs(120);

/// `None`, and a word about it, where no agent was built.
fn agent() -> Option<PathBuf> {
    let beside = || {
        let tests = std::env::current_exe().unwrap();
        tests.ancestors().nth(2).unwrap().join("tpi-agent")
    };
    let agent = std::env::var_os("TPI_AGENT").map_or_else(beside, PathBuf::from);
    // An empty program is what a crate without a `main` leaves.
    let usable = fs::metadata(&agent).is_ok_and(|m| m.len() > 10_000_000);
    if !usable {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: there is no agent at {}: `cargo build -p tpi-agent`", agent.display());
        }
    }
    usable.then_some(agent)
}

struct Place {
    dir: tempfile::TempDir,
    engine: Engine,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(self.engine.settings().home.local_dir()));
    }
}

impl Place {
    fn new() -> Option<Self> {
        let agent = agent()?;
        drop(rustls::crypto::ring::default_provider().install_default());
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        let home = Home::at(dir.path().join("state"));
        let local = Local::new(&home).with_program(env!("CARGO_BIN_EXE_tpi-controller").into());
        let clouds = Registry::empty().with(Arc::new(local));
        let engine = Engine::new(Settings { home, clouds, store: None, agent: Some(agent) });
        Some(Self { dir, engine })
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.work().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn store(&self) -> Store {
        Store::open(&self.engine.settings().home.store_url().unwrap()).unwrap()
    }

    fn request(&self, script: &str) -> Request {
        Request {
            name: Some("test".to_owned()),
            script: Some(ScriptSource::Text(format!("#!/bin/sh\n{script}\n"))),
            workdir: Some(self.work()),
            output: Some("out".to_owned()),
            grace: Some("5".to_owned()),
            timeout: Some("1h".to_owned()),
            ..Request::default()
        }
    }

    fn check(&self, request: &Request) -> spec::Checked {
        let around = Surroundings {
            current_dir: self.dir.path().to_path_buf(),
            clouds: vec![CloudName::Local],
            ..Surroundings::default()
        };
        spec::check(request, &around).unwrap()
    }

    async fn submit(&self, request: &Request) -> Located {
        let submitted = self.engine.submit(&self.check(request), &Silent).await.unwrap();
        assert_eq!(submitted.outcome, SubmitOutcome::New);
        self.engine.locate("test").await.unwrap()
    }

    async fn until(&self, task: &Located, is: impl Fn(&TaskState) -> bool) -> TaskState {
        let begun = Instant::now();
        loop {
            let status = self.engine.status(task).await.unwrap();
            if is(&status.state) {
                return status.state;
            }
            assert!(begun.elapsed() < PATIENCE, "still {status:#?}\n{}", self.logs(task));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn until_there(&self, task: &Located, what: &str, is: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !is().await {
            assert!(begun.elapsed() < PATIENCE, "never {what}\n{}", self.logs(task));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether a slot has saved this many generations.
    async fn saved(&self, task: &Located, slot: u32, generations: u64) -> bool {
        let status = self.engine.status(task).await.unwrap();
        status.slots.iter().any(|s| s.slot.0 == slot && s.saved.is_some_and(|g| g >= generations))
    }

    fn logs(&self, task: &Located) -> String {
        let group = self.engine.settings().home.local_dir().join(task.id.as_str());
        let mut text = fs::read_to_string(group.join("group.log")).unwrap_or_default();
        for entry in fs::read_dir(group.join("machines")).into_iter().flatten().flatten() {
            text += &fs::read_to_string(entry.path().join("agent.log")).unwrap_or_default();
        }
        text
    }

    async fn expect_nothing(&self, task: &Located) {
        assert_eq!(self.engine.status(task).await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(self.engine.list().await.unwrap().tasks, []);
        let cloud = self.engine.settings().clouds.get(CloudName::Local).unwrap();
        assert!(cloud.observe(&task.id).await.unwrap().is_gone());
    }
}

fn succeeded(state: &TaskState) -> bool {
    *state == TaskState::Finished { outcome: TaskOutcome::Succeeded }
}

#[derive(Default)]
struct Steps(Mutex<Vec<Step>>);

impl Observer for Steps {
    fn progress(&self, event: Progress) {
        if let Progress::Step { step } = event {
            self.0.lock().unwrap().push(step);
        }
    }
}

fn said(error: &EngineError) -> String {
    format!("{error}: {:?}\n{:?}", error.source, error.hints)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_goes_out_and_its_results_come_home() {
    let Some(place) = Place::new() else { return };
    fs::write(place.work().join("in.txt"), "41").unwrap();
    let request = place.request("mkdir out; expr $(cat in.txt) + 1 > out/answer");
    let steps = Steps::default();
    let submitted = place.engine.submit(&place.check(&request), &steps).await.unwrap();
    assert_eq!(submitted.outcome, SubmitOutcome::New);
    assert_eq!(*steps.0.lock().unwrap(), Step::SUBMIT);
    let task = place.engine.locate(submitted.id.as_str()).await.unwrap();
    place.until(&task, succeeded).await;

    // The same again says what is there.
    let other = Request { timeout: Some("2h".to_owned()), ..request.clone() };
    let again = place.engine.submit(&place.check(&other), &Silent).await.unwrap();
    assert_eq!((again.outcome, again.differs), (SubmitOutcome::Ended, vec!["timeout".to_owned()]));
    assert_eq!(again.deadline, submitted.deadline);

    let steps = Steps::default();
    let report = place.engine.destroy(&task, &DestroyOptions::default(), &steps).await.unwrap();
    assert_eq!(place.read("out/answer"), "42\n");
    assert!(report.proof.nothing_left && report.proof.usd == Some(0.0), "{report:#?}");
    assert_eq!(report.proof.machines.len(), 1);
    assert_eq!(report.proof.machines[0].end, Some(MachineEnd::Released));
    assert!(report.objects_deleted > 3);
    place.expect_nothing(&task).await;
    // The name is free again.
    let task = place.submit(&request).await;
    place.engine.destroy(&task, &DestroyOptions::default(), &Silent).await.unwrap();
    place.expect_nothing(&task).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destroying_a_running_task_saves_first() {
    let Some(place) = Place::new() else { return };
    let request = place.request(
        "mkdir out; trap 'echo last > out/last; exit 0' TERM; echo first > out/first; while :; do sleep 0.1; done",
    );
    let task = place.submit(&request).await;
    place.until_there(&task, "saved", async || place.saved(&task, 0, 1).await).await;
    let again = place.engine.submit(&place.check(&request), &Silent).await.unwrap();
    assert_eq!((again.outcome, again.differs), (SubmitOutcome::Running, Vec::new()));
    let steps = Steps::default();
    let report = place
        .engine
        .destroy(&task, &DestroyOptions::default(), &steps)
        .await
        .unwrap_or_else(|e| panic!("{}", said(&e)));
    assert_eq!(place.read("out/last"), "last\n", "{report:#?}");
    assert_eq!(place.read("out/first"), "first\n");
    let steps = steps.0.lock().unwrap().clone();
    assert!(steps.starts_with(&[Step::Intent, Step::Stop, Step::Saves, Step::Results]), "{steps:?}");
    place.expect_nothing(&task).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_machine_continues_where_a_lost_one_had_saved() {
    let Some(place) = Place::new() else { return };
    let request = place.request(
        "mkdir -p out; if [ -e out/checkpoint ]; then echo $TPI_ATTEMPT > out/resumed; exit 0; fi; echo > out/checkpoint; while :; do sleep 0.1; done",
    );
    let task = place.submit(&request).await;
    place
        .until_there(&task, "saved", async || {
            // The checkpoint itself has to be in what was saved.
            let options = PullOptions { to: Some(place.dir.path().join("peek")) };
            let there = place.engine.pull(&task, &options, &Silent);
            there.await.is_ok() && place.dir.path().join("peek/out/checkpoint").exists()
        })
        .await;
    let state = place.engine.settings().home.local_dir().join(task.id.as_str()).join("state.json");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
    let pid = state["machines"][0]["agent"]["pid"].as_i64().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    place.until(&task, succeeded).await;
    let report = place.engine.destroy(&task, &DestroyOptions::default(), &Silent).await.unwrap();
    assert_eq!(place.read("out/resumed"), "2\n");
    let ends: Vec<_> = report.proof.machines.iter().map(|m| m.end).collect();
    assert_eq!(ends, [Some(MachineEnd::Lost), Some(MachineEnd::Released)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_end_apart_and_their_results_do_not_mix() {
    let Some(place) = Place::new() else { return };
    let request = Request {
        parallelism: Some("2".to_owned()),
        ..place.request("mkdir out; echo $TPI_SLOT of $TPI_SLOTS > out/rank; exit $TPI_SLOT")
    };
    let task = place.submit(&request).await;
    let state = place.until(&task, TaskState::is_final).await;
    let outcome = TaskOutcome::Failed { slot: SlotIndex(1), outcome: Outcome::Exited { code: 1 }, failed: 1 };
    assert_eq!(state, TaskState::Finished { outcome });
    let report = place.engine.destroy(&task, &DestroyOptions::default(), &Silent).await.unwrap();
    assert_eq!(place.read("slot-0/out/rank"), "0 of 2\n");
    assert_eq!(place.read("slot-1/out/rank"), "1 of 2\n");
    assert_eq!(report.proof.machines.len(), 2, "{report:#?}");
    place.expect_nothing(&task).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_the_script_and_keeps_its_results() {
    let Some(place) = Place::new() else { return };
    let task = place.submit(&place.request("mkdir out; echo 1 > out/x; while :; do sleep 0.1; done")).await;
    place.until(&task, |s| *s == TaskState::Running).await;
    place
        .until_there(&task, "running its script", async || {
            let status = place.engine.status(&task).await.unwrap();
            status.slots.iter().any(|s| s.state == SlotState::Active { phase: Phase::Run })
        })
        .await;
    let options = StopOptions { grace_millis: Some(200), wait: true };
    let report = place.engine.stop(&task, options, &Silent).await.unwrap();
    assert!(report.ended && report.asked.len() + report.left_to_store.len() == 1, "{report:?}");
    assert!(!report.asked.is_empty(), "the agent can be reached: {report:?}");
    let state = place.until(&task, TaskState::is_final).await;
    let outcome = TaskOutcome::Failed { slot: SlotIndex(0), outcome: Outcome::Stopped, failed: 1 };
    assert_eq!(state, TaskState::Finished { outcome });
    place.engine.pull(&task, &PullOptions::default(), &Silent).await.unwrap();
    assert_eq!(place.read("out/x"), "1\n");
    place.engine.destroy(&task, &DestroyOptions::default(), &Silent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_alive_after_the_deadline() {
    let Some(place) = Place::new() else { return };
    let request = Request {
        timeout: Some("6".to_owned()),
        grace: Some("1".to_owned()),
        ..place.request("trap '' TERM; while :; do sleep 0.1; done")
    };
    let task = place.submit(&request).await;
    let deadline = task.record.as_ref().unwrap().deadline.unwrap();
    place.until(&task, TaskState::is_final).await;
    place
        .until_there(&task, "without machines", async || {
            place.engine.status(&task).await.unwrap().proof.nothing_left
        })
        .await;
    // The group's own grace, and some for a busy computer.
    assert!(Timestamp::now().duration_since(deadline) < jiff::SignedDuration::from_secs(30));
    let status = place.engine.status(&task).await.unwrap();
    assert!(!status.overdue && status.proof.machines.iter().all(|m| m.ended.is_some()), "{status:#?}");
    place.engine.destroy(&task, &DestroyOptions::default(), &Silent).await.unwrap();
    place.expect_nothing(&task).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_brought_home_is_not_deleted() {
    let Some(place) = Place::new() else { return };
    let task = place.submit(&place.request("mkdir out; echo 1 > out/x")).await;
    place.until(&task, succeeded).await;
    let store = place.store();
    let keys = TaskKeys::new(&task.id);
    let objects = |prefix: String| {
        let store = store.clone();
        async move {
            use futures::TryStreamExt as _;
            store.list(&prefix, None).map_ok(|o| o.key).try_collect::<Vec<_>>().await.unwrap()
        }
    };
    let newest = objects(keys.saved(SlotIndex(0))).await.pop().unwrap();
    let whole = store.get(&newest).await.unwrap();
    store.put(&newest, "{".into()).await.unwrap();
    let before = objects(keys.root().to_owned()).await;
    let refused = place.engine.destroy(&task, &DestroyOptions::default(), &Silent).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unverified, "{}", said(&refused));
    assert!(refused.hints.iter().any(|h| h.contains("--discard")), "{}", said(&refused));
    assert_eq!(objects(keys.root().to_owned()).await, before);
    assert_eq!(
        place.engine.status(&task).await.unwrap().state,
        TaskState::Stopping { reason: EndReason::Destroyed }
    );
    let resubmitted = place.engine.submit(&place.check(&place.request("true")), &Silent).await.unwrap_err();
    assert_eq!(resubmitted.kind, ErrorKind::BeingDestroyed);
    // Not on this computer any more: refused too.
    store.put(&newest, whole).await.unwrap();
    fs::rename(place.work(), place.dir.path().join("moved")).unwrap();
    let refused = place.engine.destroy(&task, &DestroyOptions::default(), &Silent).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unverified, "{}", said(&refused));
    let to = DestroyOptions { to: Some(place.dir.path().join("elsewhere")), discard: false };
    place.engine.destroy(&task, &to, &Silent).await.unwrap();
    assert!(place.dir.path().join("elsewhere/out/x").exists());
    place.expect_nothing(&task).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_here_is_kept_and_what_we_wrote_is_replaced() {
    let Some(place) = Place::new() else { return };
    fs::create_dir(place.work().join("out")).unwrap();
    fs::write(place.work().join("out/mine"), "sent").unwrap();
    let request = place.request("echo theirs > out/mine; echo 1 > out/count; while [ ! -e /proc/1/never ]; do sleep 0.2; date +%s%N > out/count; cp out/count out/mine; done");
    let task = place.submit(&request).await;
    place
        .until_there(&task, "saved", async || {
            place.engine.pull(&task, &PullOptions::default(), &Silent).await.is_ok()
                && place.work().join("out/count").exists()
        })
        .await;
    assert_ne!(place.read("out/mine"), "sent", "it was as it had been sent, so it was replaced");
    fs::write(place.work().join("out/mine"), "changed here").unwrap();
    let first = place.read("out/count");
    place
        .until_there(&task, "pulled anew", async || {
            place.engine.pull(&task, &PullOptions::default(), &Silent).await.unwrap();
            place.read("out/count") != first
        })
        .await;
    let names = |dir: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let report = place.engine.destroy(&task, &DestroyOptions::default(), &Silent).await.unwrap();
    assert_eq!(place.read("out/mine"), "changed here");
    let there = names(&place.work().join("out"));
    assert!(there.iter().filter(|n| n.starts_with("count")).count() == 1, "{there:?} {report:#?}");
    assert!(there.iter().filter(|n| n.starts_with("mine")).count() > 1, "{there:?} {report:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_without_a_record_are_found_and_removed() {
    let Some(place) = Place::new() else { return };
    let task = place.submit(&place.request("while :; do sleep 0.1; done")).await;
    place.until(&task, |s| *s == TaskState::Running).await;
    place.store().delete_prefix(TaskKeys::new(&task.id).root()).await.unwrap();
    place.engine.settings().home.forget(&task.id).unwrap();
    let found = place.engine.locate("test").await.unwrap();
    assert!(found.record.is_none());
    let status = place.engine.status(&found).await.unwrap();
    assert_eq!(status.state, TaskState::Orphaned);
    let report = place.engine.destroy(&found, &DestroyOptions::default(), &Silent).await.unwrap();
    assert!(report.proof.nothing_left);
    // What is left in the store is not deleted unasked, and can be found.
    let stray = format!("{}/stray", TaskKeys::new(&task.id).root());
    place.store().put(&stray, "x".into()).await.unwrap();
    let list = place.engine.list().await.unwrap();
    assert!(list.tasks.is_empty() && list.hints.iter().any(|h| h.contains("--discard")), "{list:?}");
    let found = place.engine.locate(task.id.as_str()).await.unwrap();
    let kept = place.engine.destroy(&found, &DestroyOptions::default(), &Silent).await.unwrap();
    assert!(kept.objects_deleted == 0 && kept.warnings.iter().any(|w| w.contains("--discard")), "{kept:?}");
    let discard = DestroyOptions { discard: true, ..DestroyOptions::default() };
    let gone = place.engine.destroy(&found, &discard, &Silent).await.unwrap();
    assert!(gone.objects_deleted > 0);
    assert_eq!(place.engine.locate("test").await.unwrap_err().kind, ErrorKind::NotFound);
    place.expect_nothing(&found).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_share_an_identifier_are_not_mistaken() {
    let Some(place) = Place::new() else { return };
    let named = |name: &str| Request { name: Some(name.to_owned()), ..place.request("true") };
    let one = place.check(&named("a-name-that-is-longer-than-an-identifier-1"));
    let two = place.check(&named("a-name-that-is-longer-than-an-identifier-2"));
    assert_eq!(one.id, two.id);
    place.engine.submit(&one, &Silent).await.unwrap();
    let refused = place.engine.submit(&two, &Silent).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::User, "{}", said(&refused));
    let task = place.engine.locate("a-name-that-is-longer-than-an-identifier-1").await.unwrap();
    place.engine.destroy(&task, &DestroyOptions::default(), &Silent).await.unwrap();
    assert_eq!(place.engine.locate("test").await.unwrap_err().kind, ErrorKind::NotFound);
}
