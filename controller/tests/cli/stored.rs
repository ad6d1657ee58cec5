//! Tasks that are nowhere but in the store: they have ended, or their machines cannot be reached. That is enough.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    num::NonZeroU16,
    process::{Child, Stdio},
};

use jiff::Timestamp;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tpi_proto::{
    id::{Attempt, MachineId, RunId, SlotIndex, TaskId},
    spec::TaskSpec,
    state::{Outcome, Phase, SlotState, SlotStatus},
};
use tpi_store::{
    Store,
    layout::TaskKeys,
    log::{Record, Stream, encode_frame, encode_segment},
    record::{Intent, RECORD_VERSION, TaskRecord},
};
use url::Url;

use super::place::Place;

/// Seconds since 1970 of the first record; each next one is a minute later.
const BEGAN: i64 = 1_700_000_000;

/// One slot: how it ended, if it did, and what it printed.
type Slot<'a> = (Option<Outcome>, &'a [(Stream, &'a [u8])]);

struct Stored {
    place: Place,
    store: Url,
    id: TaskId,
}

impl Stored {
    /// Writes what agents and controllers would have written.
    fn new(slots: &[Slot<'_>]) -> Self {
        let place = Place::new();
        let store = Url::from_directory_path(place.path().join("store")).expect("absolute");
        let id = TaskId::deterministic("ended").expect("a name");
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        runtime.block_on(write(&Store::open(&store).expect("opens"), &id, slots));
        Self { place, store, id }
    }

    fn run(&self, arguments: &[&str]) -> std::process::Output {
        self.place.run(&[&["--store", self.store.as_str()], arguments].concat())
    }
}

async fn write(store: &Store, id: &TaskId, slots: &[Slot<'_>]) {
    let keys = TaskKeys::new(id);
    let spec = TaskSpec {
        parallelism: NonZeroU16::new(slots.len().try_into().expect("few")).expect("some"),
        ..serde_json::from_value(serde_json::json!({
            "name": "ended", "cloud": "local", "region": "us-west", "machine": "m", "image": "ubuntu",
            "spot": {"kind": "on_demand"}, "parallelism": 1, "timeout_seconds": 3600, "grace_seconds": 5,
            "script": "#!/bin/sh\n", "storage": {}
        }))
        .expect("a specification")
    };
    let began = Timestamp::from_second(BEGAN).expect("a time");
    let record = TaskRecord {
        version: RECORD_VERSION,
        id: id.clone(),
        writer: "test".to_owned(),
        created: began,
        spec,
        intent: Intent::Run,
        deadline: Timestamp::from_second(BEGAN + 3600).ok(),
        agent_sha256: None,
        input_stored: false,
        gave_up: None,
    };
    drop(store.create_json(&keys.record(), &record).await.expect("writes"));
    for (index, (outcome, printed)) in (0u32..).zip(slots) {
        let run = RunId { slot: SlotIndex(index), attempt: Attempt(1) };
        let mut frames = Vec::new();
        let mut offset = 0;
        for (minute, (stream, data)) in (0i64..).zip(*printed) {
            let time_unix_nanos = (BEGAN + minute * 60) * 1_000_000_000;
            let data = bytes::Bytes::copy_from_slice(data);
            let length = data.len() as u64;
            encode_frame(&Record { offset, time_unix_nanos, stream: *stream, data }, &mut frames);
            offset += length;
        }
        if offset > 0 {
            let segment = encode_segment(&frames).expect("encodes");
            drop(store.put(&keys.log_segment(run.slot, run.attempt, 0), segment).await.expect("writes"));
        }
        let state = match outcome.clone() {
            Some(outcome) => SlotState::Finished { outcome, at: began },
            None => SlotState::Active { phase: Phase::Run },
        };
        let log_complete = state.is_final().then_some(offset);
        let status = SlotStatus {
            generation: 9,
            state,
            log_stored: offset,
            log_complete,
            ..SlotStatus::claimed(run, MachineId(format!("m-{index}")), 1000)
        };
        drop(store.create_json(&keys.slot(run.slot), &status).await.expect("writes"));
    }
}

const OK: Option<Outcome> = Some(Outcome::Exited { code: 0 });

#[test]
fn the_bytes_of_one_slot_are_passed_unchanged() {
    let binary: Vec<u8> = (0u8..=255).cycle().take(300_000).collect();
    let printed = [(Stream::Stdout, &binary[..]), (Stream::Stderr, b"oops\r"), (Stream::Stdout, b"no end")];
    let stored = Stored::new(&[(OK, &printed)]);
    for command in ["logs", "attach"] {
        let output = stored.run(&["--quiet", command, "ended"]);
        assert_eq!(output.status.code(), Some(0), "{}", stored.place.show(&output));
        assert_eq!(output.stdout, [&binary[..], b"no end"].concat(), "{command}");
        assert_eq!(output.stderr, b"oops\r", "{command}");
    }
}

#[test]
fn lines_of_several_slots_begin_with_their_slot() {
    let stored = Stored::new(&[
        (OK, &[(Stream::Stdout, b"a\rb\n"), (Stream::Stdout, b"c")]),
        (OK, &[(Stream::Stdout, b"d\ne\n")]),
    ]);
    let output = stored.run(&["logs", "ended"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let mut lines: Vec<&str> = text.split('\n').collect();
    lines.sort_unstable();
    assert_eq!(lines, ["", "[0] a\rb", "[0] c", "[1] d", "[1] e"]);
    assert_eq!(stored.run(&["logs", "ended", "--slot", "0"]).stdout, b"a\rb\nc");
    let wrong = stored.run(&["logs", "ended", "--slot", "2"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stored.place.show(&wrong).contains("the last one is 1"), "{}", stored.place.show(&wrong));
}

#[test]
fn what_was_printed_before_is_left_out() {
    let printed = [(Stream::Stdout, &b"one\n"[..]), (Stream::Stdout, b"two\n"), (Stream::Stdout, b"three\n")];
    let stored = Stored::new(&[(OK, &printed)]);
    let since =
        |when: &str| String::from_utf8(stored.run(&["logs", "ended", "--since", when]).stdout).expect("text");
    assert_eq!(since("2023-11-14T22:14:20Z"), "two\nthree\n");
    assert_eq!(since("2023-11-14T22:14:21Z"), "three\n");
    assert_eq!(since("1h"), "");
}

#[test]
fn attach_ends_as_the_task_did() {
    let failed = Stored::new(&[(Some(Outcome::Exited { code: 3 }), &[(Stream::Stdout, b"x\n")])]);
    let output = failed.run(&["attach", "ended"]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(output.stdout, b"x\n");
    let seen = failed.place.show(&output);
    assert!(seen.contains("did not succeed: slot 0 exited with status 3"), "{seen}");
    assert_eq!(failed.run(&["attach", "ended", "--exit-with-task-code"]).status.code(), Some(3));
    let killed = Stored::new(&[(OK, &[]), (Some(Outcome::Signalled { signal: 9 }), &[])]);
    assert_eq!(killed.run(&["attach", "ended", "--exit-with-task-code"]).status.code(), Some(137));
    assert_eq!(killed.run(&["attach", "ended", "--slot", "0"]).status.code(), Some(0));
    assert_eq!(killed.run(&["logs", "ended"]).status.code(), Some(0));
}

#[test]
fn every_line_is_json_when_asked_for() {
    let stored = Stored::new(&[(OK, &[(Stream::Stdout, b"epoch 1\n"), (Stream::Stderr, b"\xff")])]);
    let output = stored.run(&["attach", "ended", "--output", "json"]);
    let seen = stored.place.show(&output);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{seen}");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.iter().all(|line| line["version"] == 1), "{text}");
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).cloned().collect::<Vec<_>>();
    let logs = of("log");
    assert_eq!((logs[0]["text"].as_str(), logs[0]["stream"].as_str()), (Some("epoch 1\n"), Some("stdout")));
    assert_eq!((logs[1]["base64"].as_str(), logs[1]["offset"].as_u64()), (Some("/w=="), Some(8)));
    assert_eq!(of("slot").last().map(|line| line["status"]["state"].clone()), Some("finished".into()));
    let finished = serde_json::json!({
        "version": 1, "kind": "finished", "id": stored.id, "outcome": {"result": "succeeded"}, "exit_code": 0
    });
    assert_eq!(of("finished"), [finished]);
}

#[test]
fn a_reader_that_goes_away_ends_attach_quietly() {
    let much = vec![b'x'; 4 << 20];
    let stored = Stored::new(&[(OK, &[(Stream::Stdout, &much)])]);
    let mut child = stored
        .place
        .command(&["--store", stored.store.as_str(), "--quiet", "attach", "ended"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn progress_bars_collapse_on_a_terminal() {
    let printed = [
        (Stream::Stdout, &b"  1%\r 50%"[..]),
        (Stream::Stdout, b"\r100%\ndone\n"),
        (Stream::Stderr, b"careful\n"),
        (Stream::Stdout, b"no end"),
    ];
    let stored = Stored::new(&[(OK, &printed), (OK, &[(Stream::Stdout, b"a\rb\n")])]);
    let screen = |arguments: &[&str]| {
        stored
            .place
            .on_terminal(&[&["--store", stored.store.as_str(), "--color", "never"], arguments].concat())
    };
    let one = screen(&["attach", "ended", "--slot", "0"]);
    assert!(one.contains("100%\r\ndone\r\n") && one.contains("no end\r\n"), "{one:?}");
    assert!(!one.contains("50%") && one.contains("careful\r\n"), "{one:?}");
    let both = screen(&["attach", "ended"]);
    assert!(both.contains("[0] 100%\r\n") && both.contains("[1] b\r\n") && !both.contains("50%"), "{both:?}");
    // Asked for plainly, the terminal itself does what a carriage return does.
    let plain = screen(&["--output", "text", "attach", "ended", "--slot", "0"]);
    assert!(plain.contains("  1%\r 50%\r100%\r\n"), "{plain:?}");
}

#[test]
fn status_and_list_show_it() {
    let stored = Stored::new(&[(Some(Outcome::Exited { code: 3 }), &[(Stream::Stdout, b"x\n")])]);
    let status = stored.run(&["status", "ended"]);
    let seen = stored.place.show(&status);
    assert_eq!(status.status.code(), Some(0), "{seen}");
    assert!(seen.contains("exited with status 3") && seen.contains("no machine is there"), "{seen}");
    let list = stored.run(&["list", "--ids"]);
    assert_eq!(String::from_utf8(list.stdout).expect("text"), format!("{}\n", stored.id));
    for command in ["status", "list"] {
        let output =
            stored.run(&["--output", "json", command, "ended"][..if command == "list" { 3 } else { 4 }]);
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((json["kind"].as_str(), json["version"].as_u64()), (Some(command), Some(1)));
    }
}

#[test]
fn a_task_that_is_not_there_is_an_error_of_its_own() {
    let stored = Stored::new(&[(OK, &[])]);
    for command in ["attach", "logs", "status", "stop", "pull", "destroy", "shell"] {
        let output = stored.run(&[command, "absent"]);
        let seen = stored.place.show(&output);
        assert_eq!(output.status.code(), Some(7), "{command}: {seen}");
        assert!(output.stdout.is_empty(), "{command}: {seen}");
        // Hints can be copied: they name the same store.
        assert!(seen.contains("--store") && seen.contains(" list`"), "{command}: {seen}");
    }
    let output = stored.run(&["--output", "json", "status", "absent"]);
    let json: Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!((json["kind"].as_str(), json["exit_code"].as_u64()), (Some("error"), Some(7)));
}

#[test]
fn a_task_that_cannot_be_read_is_told_with_cause_and_hint() {
    let stored = Stored::new(&[(OK, &[])]);
    let record = stored.place.path().join("store").join(TaskKeys::new(&stored.id).record());
    std::fs::write(&record, "{\"version\": 1, \"id\": 7").expect("writes");
    let output = stored.run(&["list"]);
    let seen = stored.place.show(&output);
    assert_eq!(output.status.code(), Some(4), "{seen}");
    let doing = format!("warning: reading the record of {}: ", stored.id);
    assert!(seen.contains(&doing) && seen.contains("invalid type: integer `7`"), "{seen}");
    assert!(seen.contains("hint: the object is damaged"), "{seen}");

    // Nothing at all but a stray object: the hint can be copied as it is.
    std::fs::remove_file(&record).expect("removes");
    let seen = stored.place.show(&stored.run(&["list"]));
    assert!(seen.contains("and no record"), "{seen}");
    let command = format!(" destroy --discard {}`", stored.id);
    assert!(seen.contains(&command) && seen.contains("`tpi-controller --store "), "{seen}");
    let output = stored.run(&["--output", "json", "list"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(json["hints"][0].as_str().is_some_and(|hint| hint.contains("--discard")), "{json}");
}

#[test]
fn attach_ends_when_somebody_else_destroys_the_task() {
    let stored = Stored::new(&[(None, &[(Stream::Stdout, b"line\n")])]);
    let (mut child, mut stdout) = attached(&stored, &[]);
    let mut line = String::new();
    stdout.read_line(&mut line).expect("reads");
    assert_eq!(line, "line\n");
    let destroyed = stored.run(&["destroy", "ended"]);
    assert_eq!(destroyed.status.code(), Some(0), "{}", stored.place.show(&destroyed));
    let mut stderr = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("reads");
    assert_eq!(child.wait().expect("ends").code(), Some(7), "{stderr}");
    for wanted in ["was destroyed meanwhile", "hint: ", " list`"] {
        assert!(stderr.contains(wanted), "{wanted}: {stderr}");
    }
}

/// Follows a task that is at work as far as anybody knows, until it has shown what there is.
fn attached(stored: &Stored, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = stored
        .place
        .command(&[&["--store", stored.store.as_str(), "attach", "ended"], arguments].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    (child, stdout)
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("sends");
}

#[test]
fn ctrl_c_detaches_and_says_how_to_come_back() {
    let stored = Stored::new(&[(None, &[(Stream::Stdout, b"line\n")])]);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let (mut child, mut stdout) = attached(&stored, &[]);
        let mut line = String::new();
        stdout.read_line(&mut line).expect("reads");
        assert_eq!(line, "line\n");
        send(&child, signal);
        let mut stderr = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("reads");
        assert_eq!(child.wait().expect("ends").code(), Some(130), "{stderr}");
        for wanted in ["following the store", "goes on", "attach tpi-ended", "destroy tpi-ended", "--store"] {
            assert!(stderr.contains(wanted), "{wanted}: {stderr}");
        }
    }
}

#[test]
fn detaching_is_an_event_in_json() {
    let stored = Stored::new(&[(None, &[(Stream::Stdout, b"line\n")])]);
    let (mut child, mut stdout) = attached(&stored, &["--output", "json"]);
    let mut lines = String::new();
    while !lines.contains("line\\n") {
        assert!(stdout.read_line(&mut lines).expect("reads") > 0, "{lines}");
    }
    send(&child, Signal::INT);
    stdout.read_to_string(&mut lines).expect("reads");
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    let last: Value = serde_json::from_str(lines.lines().last().expect("some")).expect("JSON");
    assert_eq!((last["kind"].as_str(), last["id"].as_str()), (Some("detached"), Some(stored.id.as_str())));
}

#[test]
fn ctrl_c_twice_ends_a_program_that_is_stuck() {
    let much = vec![b'x'; 4 << 20];
    let stored = Stored::new(&[(OK, &[(Stream::Stdout, &much)])]);
    let (mut child, mut stdout) = attached(&stored, &["--quiet"]);
    // It has begun to write, nobody reads on, and so it waits for ever.
    stdout.read_exact(&mut [0]).expect("reads");
    let pid = Pid::from_child(&child);
    let (ended, end) = std::sync::mpsc::sync_channel(1);
    let waiting = std::thread::spawn(move || ended.send(child.wait().expect("ends")));
    // Two that come at once count as one, so they come until they are obeyed.
    let status = loop {
        // It may have ended, and not been waited for, between the two lines.
        let _gone = rustix::process::kill_process(pid, Signal::INT);
        if let Ok(status) = end.recv_timeout(std::time::Duration::from_millis(20)) {
            break status;
        }
    };
    waiting.join().expect("no panic").expect("is received");
    assert_eq!(status.code(), Some(130));
}

#[test]
fn a_script_that_was_taken_away_is_not_shown_as_ended() {
    let stored = Stored::new(&[(None, &[(Stream::Stdout, b"line\n")])]);
    let output = stored.run(&["logs", "ended"]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), b"line\n".to_vec()));
}
