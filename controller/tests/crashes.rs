//! The program is killed at every step of submit and destroy, and run again: it finishes, nothing is made
//! twice, and nothing is left. The agent is a shell script that stays; results are another test's matter.
#![cfg(feature = "local")]
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::disallowed_methods, reason = "pauses between looks at a condition of other processes")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use tpi_controller::{
    engine::{Step, stop_points},
    home::Home,
};
use tpi_proto::id::TaskId;

const ABORTED: i32 = 6;
const NOT_FOUND: i32 = 7;

struct Place {
    dir: tempfile::TempDir,
    agent: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(self.home().local_dir()));
    }
}

impl Place {
    /// With the real agent, where one was built.
    fn with_agent() -> Option<Self> {
        let tests = std::env::current_exe().unwrap();
        let beside = tests.ancestors().nth(2).unwrap().join("tpi-agent");
        let agent = std::env::var_os("TPI_AGENT").map_or(beside, PathBuf::from);
        // An empty program is what a crate without a `main` leaves.
        if fs::metadata(&agent).is_ok_and(|m| m.len() > 10_000_000) {
            let mut place = Self::new();
            place.agent = agent;
            return Some(place);
        }
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: there is no agent at {}: `cargo build -p tpi-agent`", agent.display());
        }
        None
    }

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { agent: dir.path().join("agent"), dir };
        fs::create_dir(place.dir.path().join("work")).unwrap();
        fs::write(place.dir.path().join("work/data.txt"), "data").unwrap();
        fs::write(&place.agent, "#!/bin/sh\nexec sleep 100000\n").unwrap();
        fs::set_permissions(&place.agent, fs::Permissions::from_mode(0o700)).unwrap();
        place
    }

    fn home(&self) -> Home {
        Home::at(self.dir.path().join("state"))
    }

    fn task() -> TaskId {
        TaskId::deterministic("crash").unwrap()
    }

    fn command(&self, arguments: &[&str], stop_at: Option<&str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpi-controller"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("TPI_STATE_DIR", self.home().root())
            .env("TPI_AGENT", &self.agent)
            .envs(stop_at.map(|point| ("__TPI_TEST_STOP_AT", point)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str], stop_at: Option<&str>) -> Output {
        self.command(arguments, stop_at).output().unwrap()
    }

    const SUBMIT: [&'static str; 9] =
        ["submit", "--detach", "--name", "crash", "--workdir", "work", "--", "sleep", "100000"];
    const DESTROY: [&'static str; 2] = ["destroy", "crash"];

    fn group(&self) -> PathBuf {
        self.home().local_dir().join(Self::task().as_str())
    }

    /// Machines alive, once there are as many as there should be.
    fn expect_machines(&self, wanted: usize) {
        let begun = Instant::now();
        loop {
            let state = fs::read(self.group().join("state.json")).unwrap_or_default();
            let state: serde_json::Value = serde_json::from_slice(&state).unwrap_or_default();
            let machines = state["machines"].as_array().cloned().unwrap_or_default();
            let agents = machines.iter().filter(|m| m["agent"]["pid"].is_i64()).count();
            if machines.len() == wanted && agents == wanted {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{state:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn expect_nothing(&self, at: &str) {
        assert!(!self.group().exists(), "{at}");
        let left: Vec<_> = fs::read_dir(self.home().root().join("store/tasks"))
            .map(|entries| entries.flatten().map(|e| e.path()).filter(|p| has_files(p)).collect())
            .unwrap_or_default();
        assert_eq!(left, Vec::<PathBuf>::new(), "{at}");
        let mark = format!("TPI_LOCAL_GROUP={}", self.group().display());
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            assert!(
                environ.split(|&b| b == 0).all(|v| v != mark.as_bytes()),
                "{at}: {:?} still runs",
                entry.path()
            );
        }
    }
}

fn has_files(path: &std::path::Path) -> bool {
    fs::read_dir(path)
        .is_ok_and(|entries| entries.flatten().any(|e| e.path().is_file() || has_files(&e.path())))
}

fn expect(output: &Output, codes: &[i32], at: &str) {
    let code = output.status.code();
    assert!(
        code.is_some_and(|c| codes.contains(&c)),
        "{at}: {:?}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn expect_abort(output: &Output, at: &str) {
    assert_eq!(
        output.status.signal(),
        Some(ABORTED),
        "{at} is never reached: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_submit_that_was_killed_anywhere_is_finished_by_another_one() {
    for point in stop_points(&Step::SUBMIT) {
        let place = Place::new();
        expect_abort(&place.run(&Place::SUBMIT, Some(&point)), &point);
        let again = place.run(&Place::SUBMIT, None);
        expect(&again, &[0], &point);
        assert_eq!(String::from_utf8_lossy(&again.stdout).trim(), Place::task().as_str(), "{point}");
        place.expect_machines(1);
        expect(&place.run(&Place::SUBMIT, None), &[0], &point);
        place.expect_machines(1);
        expect(&place.run(&Place::DESTROY, None), &[0], &point);
        place.expect_nothing(&point);
    }
}

#[test]
fn a_submit_that_was_killed_anywhere_can_be_destroyed() {
    for point in stop_points(&Step::SUBMIT) {
        let place = Place::new();
        expect_abort(&place.run(&Place::SUBMIT, Some(&point)), &point);
        let gone = place.run(&Place::DESTROY, None);
        expect(&gone, if point == "before-record" { &[NOT_FOUND] } else { &[0] }, &point);
        place.expect_nothing(&point);
        expect(&place.run(&Place::DESTROY, None), &[NOT_FOUND], &point);
    }
}

#[test]
fn a_destroy_that_was_killed_anywhere_is_finished_by_another_one() {
    for point in stop_points(&Step::DESTROY) {
        // Reached only where slots were claimed or results are to be brought home.
        if ["stop", "saves"].iter().any(|step| point.ends_with(step)) {
            continue;
        }
        let place = Place::new();
        expect(&place.run(&Place::SUBMIT, None), &[0], &point);
        place.expect_machines(1);
        expect_abort(&place.run(&Place::DESTROY, Some(&point)), &point);
        let again = place.run(&Place::DESTROY, None);
        expect(&again, if point == "after-erase" { &[NOT_FOUND] } else { &[0] }, &point);
        place.expect_nothing(&point);
        // The name is free again.
        if point == "during-erase" {
            expect(&place.run(&Place::SUBMIT, None), &[0], &point);
            place.expect_machines(1);
            expect(&place.run(&Place::DESTROY, None), &[0], &point);
        }
    }
}

#[test]
fn two_that_submit_or_destroy_at_once_do_it_once() {
    let place = Place::new();
    let both = |arguments: &[&str]| {
        let children: Vec<_> = (0..2).map(|_| place.command(arguments, None).spawn().unwrap()).collect();
        children.into_iter().map(|c| c.wait_with_output().unwrap()).collect::<Vec<_>>()
    };
    for output in both(&Place::SUBMIT) {
        expect(&output, &[0], "submit");
    }
    place.expect_machines(1);
    let destroyed = both(&Place::DESTROY);
    for output in &destroyed {
        expect(output, &[0, NOT_FOUND], "destroy");
    }
    assert!(destroyed.iter().any(|o| o.status.success()));
    place.expect_nothing("two at once");
}

#[test]
fn results_come_home_wherever_a_destroy_was_killed() {
    let script = "mkdir -p out; trap 'echo last > out/last; exit 0' TERM; echo > out/first; while :; do sleep 0.1; done";
    let submit = [
        "submit",
        "--detach",
        "--name",
        "crash",
        "--workdir",
        "work",
        "--results",
        "out",
        "--",
        "sh",
        "-c",
        script,
    ];
    for point in stop_points(&Step::DESTROY) {
        let Some(place) = Place::with_agent() else { return };
        expect(&place.run(&submit, None), &[0], &point);
        // Running, and its first results are safe.
        let begun = Instant::now();
        loop {
            let status = place.run(&["status", "crash", "--output", "json"], None);
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
            let saved = format!("{status}").contains("\"saved\":");
            if saved
                && place.run(&["pull", "crash", "--to", "peek"], None).status.success()
                && place.dir.path().join("peek/out/first").exists()
            {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{point}: {status:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        expect_abort(&place.run(&Place::DESTROY, Some(&point)), &point);
        // I6: as long as the record is there, results are in the store or at home.
        expect(
            &place.run(&Place::DESTROY, None),
            if point == "after-erase" { &[NOT_FOUND] } else { &[0] },
            &point,
        );
        let last = fs::read_to_string(place.dir.path().join("work/out/last")).unwrap_or_default();
        assert_eq!(last, "last\n", "{point}");
        place.expect_nothing(&point);
    }
}
