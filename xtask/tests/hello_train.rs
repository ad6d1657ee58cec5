//! The example of the README really learns, and really resumes. Run as a machine runs it: through `train.sh`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]
#![expect(clippy::print_stdout, reason = "what is skipped is said")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A copy of the example to work in; `None`, said aloud, where there is no Python.
fn example() -> Option<TempDir> {
    let python = ["python3", "/usr/bin/python3", "/usr/local/bin/python3"];
    if !python.iter().any(|name| Command::new(name).arg("--version").output().is_ok()) {
        println!("SKIPPED: hello-train: there is no python3");
        return None;
    }
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello-train");
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("data")).unwrap();
    for file in ["train.sh", "train.py", "data/moons.csv"] {
        std::fs::copy(from.join(file), copy.path().join(file)).unwrap();
    }
    Some(copy)
}

fn train(folder: &Path, epochs: u32) -> Command {
    let mut command = Command::new(folder.join("train.sh"));
    command.current_dir(folder).env("EPOCHS", epochs.to_string()).env("SEED", "0");
    command.stdin(Stdio::null());
    command
}

fn run(folder: &Path, epochs: u32) -> String {
    let output = train(folder, epochs).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn metrics(folder: &Path) -> Value {
    json(folder.join("results/metrics.json"))
}

fn weights(folder: &Path) -> Value {
    json(folder.join("results/checkpoint.json"))["weights"].clone()
}

fn losses(output: &str) -> Vec<f64> {
    let epochs = output.lines().filter(|line| line.starts_with("epoch"));
    epochs
        .map(|line| line.split("loss ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn it_learns() {
    let Some(copy) = example() else { return };
    let losses = losses(&run(copy.path(), 30));
    assert_eq!(losses.len(), 30);
    assert!(losses[29] < losses[0] / 3.0, "{losses:?}");
    let metrics = metrics(copy.path());
    // A straight line through this data gets 0.88.
    assert!(metrics["test_accuracy"].as_f64().unwrap() > 0.95, "{metrics}");
    assert_eq!(metrics["resumed_from"], Value::Null);
}

#[test]
fn a_resumed_run_ends_where_an_uninterrupted_one_does() {
    let (Some(whole), Some(parts)) = (example(), example()) else { return };
    run(whole.path(), 12);
    run(parts.path(), 7);
    let output = run(parts.path(), 12);
    assert!(output.contains("resuming after epoch 7") && losses(&output).len() == 5, "{output}");
    assert_eq!(weights(parts.path()), weights(whole.path()));
    assert_eq!(metrics(parts.path())["resumed_from"], 7);
    assert_eq!(metrics(parts.path())["loss"], metrics(whole.path())["loss"]);
}

#[test]
fn sigterm_leaves_a_checkpoint_to_resume_from() {
    let Some(copy) = example() else { return };
    let mut child = train(copy.path(), 100_000).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let second = lines.find(|line| line.as_ref().unwrap().starts_with("epoch   2/"));
    assert!(second.is_some());
    let kill =
        Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let seen = lines.filter(|line| line.as_ref().unwrap().starts_with("epoch")).count();
    assert_eq!(child.wait().unwrap().code(), Some(143));

    let done = json(copy.path().join("results/checkpoint.json"))["epoch"].as_u64().unwrap();
    assert_eq!(done, 2 + seen as u64);
    assert!(!copy.path().join("results/metrics.json").exists());
    let target = u32::try_from(done).unwrap() + 3;
    assert_eq!(losses(&run(copy.path(), target)).len(), 3);
}
