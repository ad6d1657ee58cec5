//! The program in a folder with a `main.tf`: what it reads, refuses and, with the real agent on the local cloud,
//! runs from the first line of the file to the proof that nothing is left.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command};

use serde_json::Value;

use super::place::Place;

const BEES: &str = r##"
terraform {
  required_providers { iterative = { source = "iterative/iterative" } }
}
provider "iterative" {}

variable "greeting" { default = "hello" }
variable "hives" {
  type    = map(number)
  default = { a = 1, b = 2 }
}

locals {
  minutes = 10
}

resource "iterative_task" "hive" {
  for_each = var.hives
  name     = "hive-${each.key}"
  cloud    = "local"
  machine  = "s"
  timeout  = local.minutes * 60
  environment = {
    GREETING = var.greeting
    QUEEN    = ""
    "BEE_*"  = ""
  }
  storage {
    workdir = "${path.module}/work-${each.key}"
    output  = "out"
    exclude = ["secret"]
  }
  script = <<-END
    #!/bin/sh
    echo "$GREETING from ${each.key} with ${each.value} $${HIVE:-queens} ($QUEEN, $BEE_ONE)"
    ls
    mkdir -p out
    echo "${jsonencode(each.value)}" > out/count
  END
}
"##;

/// Where the agent is, or a word about that there is none.
fn agent() -> Option<PathBuf> {
    let beside = || {
        let tests = std::env::current_exe().expect("this program");
        tests.ancestors().nth(2).expect("a target directory").join("tpi-agent")
    };
    let agent = std::env::var_os("TPI_AGENT").map_or_else(beside, PathBuf::from);
    // An empty program is what a crate without a `main` leaves.
    let usable = fs::metadata(&agent).is_ok_and(|about| about.len() > 10_000_000);
    if !usable {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: there is no agent at {}: `cargo build -p tpi-agent`", agent.display());
        }
    }
    usable.then_some(agent)
}

#[test]
fn mistakes_name_file_and_resource() {
    let place = Place::new();
    place.file(
        "main.tf",
        r##"resource "iterative_task" "train" {
  cloud   = "aws"
  machine = "m"
  timeuot = 60
  region  = data.aws_region.current.name
  script  = <<-END
    echo no shebang
  END
}
resource "iterative_task" "other" {
  cloud   = "local"
  machine = var.size
  script  = "#!/bin/sh"
}
variable "size" {}
"##,
    );
    let submit = place.seen(&["submit"]);
    insta::assert_snapshot!(format!("$ submit\n{submit}\n$ status\n{}", place.seen(&["status"])));
    place.file(
        "main.tf",
        r##"resource "iterative_task" "train" {
  cloud       = "gcp"
  parallelism = 0
  script      = <<-END
    echo no shebang
  END
  storage {
    workdir = "absent"
    output  = "../x"
  }
}
"##,
    );
    insta::assert_snapshot!(place.seen(&["submit"]));
    let output = place.run(&["submit", "--output", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .or_else(|_| serde_json::from_slice(&output.stderr))
        .expect("JSON");
    assert_eq!(report["exit_code"], 1);
    assert_eq!(report["errors"].as_array().map(Vec::len), Some(5), "{report}");
    // Refused means that nothing has begun.
    assert!(!place.path().join(".local/state/tpi/store").exists());
}

#[test]
fn what_goes_together() {
    let place = Place::new();
    let mut all = String::new();
    let mut see = |arguments: &[&str]| {
        writeln!(all, "$ {}\n{}", arguments.join(" "), place.seen(arguments)).expect("writes");
    };
    see(&["status"]);
    see(&["destroy", "--file", "absent"]);
    place.file("main.tf", BEES);
    see(&["submit", "--machine", "s"]);
    see(&["submit", "--task", "hive", "--", "true"]);
    see(&["status", "x", "--task", "hive"]);
    see(&["status", "--task", "hvie"]);
    see(&["logs"]);
    see(&["status", "--file", "main.tf"]);
    see(&["status", "--task", "iterative_task.hive[\"a\"]"]);
    see(&["status", "--var", "x"]);
    see(&["status", "-var", "nope=1"]);
    place.file("main.tf", &BEES.replace("storage {", "lifecycle { prevent_destroy = true }\n  storage {"));
    see(&["destroy"]);
    place.file("main.tf", "output \"x\" { value = 1 }\n");
    see(&["submit"]);
    insta::assert_snapshot!(all);
}

#[test]
fn a_plan_shows_what_would_be_asked_for() {
    let Some(agent) = agent() else { return };
    let place = Place::new();
    let run = |arguments: &[&str]| {
        place.command(arguments).env("TPI_AGENT", &agent).output().expect("the program starts")
    };
    let basic = r##"
resource "iterative_task" "tpi-examples-basic" {
    name      = "tpi-examples-basic "
    cloud     = "local"
    region    = "us-east"
    directory = "."

    script = <<-END
    #!/bin/bash
    python3 src/train.py
    END
}
resource "iterative_task" "sweep" {
  count       = 2
  name        = "sweep-${count.index}"
  cloud       = "local"
  spot        = 0.5
  disk_size   = 30
  parallelism = 2
  tags        = { team = "bees" }
  environment = { LEARNING_RATE = pow(10, -(count.index + 1)), TOKEN = "" }
  container   = "python:3.12-slim"
  ingress     = ["none"]
  script      = file("run.sh")
}
"##;
    place.file("main.tf", basic).file("run.sh", "#!/bin/sh\nenv\n");
    let seen = place.show(&run(&["plan"]));
    for said in [
        "iterative_task.tpi-examples-basic (main.tf:2:1) is task tpi-tpi-examples-basic-",
        "iterative_task.sweep[0] (main.tf:13:1) is task tpi-sweep-0-",
        "iterative_task.sweep[1] (main.tf:13:1) is task tpi-sweep-1-",
        "nothing was made and nothing was sent",
    ] {
        assert!(seen.contains(said), "{said}: {seen}");
    }
    let output = run(&["plan", "--output", "json", "--task", "sweep-1"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["kind"], "task_plan");
    assert_eq!(report["plan"]["machines"], 2, "{report}");
    // An empty store may be there; in it is nothing.
    let stored = fs::read_dir(place.path().join(".local/state/tpi/store")).into_iter().flatten();
    assert_eq!(stored.count(), 0, "{}", place.show(&output));
}

#[test]
fn a_folder_of_tasks_from_beginning_to_end() {
    let Some(agent) = agent() else { return };
    let place = Place::new();
    place.file("main.tf", BEES).file("more.auto.tfvars", "greeting = \"good day\"\n");
    for hive in ["a", "b"] {
        let work = place.path().join(format!("work-{hive}"));
        fs::create_dir(&work).expect("makes");
        fs::write(work.join("data"), hive).expect("writes");
        fs::write(work.join("secret"), "not to be sent").expect("writes");
    }
    let run = |arguments: &[&str], code: i32| -> (String, String) {
        let mut command: Command = place.command(arguments);
        command
            .env("TPI_AGENT", &agent)
            .env("QUEEN", "Maja")
            .env("BEE_ONE", "1")
            .env("TF_VAR_greeting", "never seen");
        let output = command.output().expect("the program starts");
        let seen = place.show(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {seen}");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (text(output.stdout), text(output.stderr))
    };
    let (stdout, stderr) = run(&["submit"], 0);
    assert_eq!(
        stdout,
        "good day from a with 1 queens (Maja, 1)\ndata\ngood day from b with 2 queens (Maja, 1)\ndata\n"
    );
    assert!(stderr.contains("iterative_task.hive[\"a\"] (main.tf:17:1) is task tpi-hive-a-"), "{stderr}");
    assert!(stderr.contains("(2 of 2)"), "{stderr}");
    for (hive, count) in [("a", "1\n"), ("b", "2\n")] {
        let result = fs::read_to_string(place.path().join(format!("work-{hive}/out/count")));
        assert_eq!(result.expect("a result"), count);
    }
    // Another run of the same file finds the same tasks.
    let (_, stderr) = run(&["submit", "--task", "hive-b"], 0);
    assert!(stderr.contains("had ended before") && !stderr.contains("hive-a"), "{stderr}");
    let (stdout, _) = run(&["status"], 0);
    assert_eq!(stdout.matches("state    succeeded").count(), 2, "{stdout}");
    let (_, stderr) = run(&["logs"], 1);
    assert!(stderr.contains("choose one with --task"), "{stderr}");
    let (stdout, _) = run(&["logs", "--task", "hive[\"b\"]"], 0);
    assert!(stdout.starts_with("good day from b"), "{stdout}");
    fs::remove_dir_all(place.path().join("work-a/out")).expect("removes");
    run(&["pull"], 0);
    assert!(place.path().join("work-a/out/count").exists());
    // From elsewhere, and with a hive that was never there.
    let folder = place.path().display().to_string();
    let hives = ["--var", "hives={ a = 1, b = 2, c = 3 }"];
    let (_, stderr) = run(&[&["destroy", "--file", &folder], &hives[..]].concat(), 0);
    assert_eq!(stderr.matches("is gone; ").count(), 2, "{stderr}");
    assert!(stderr.contains("is not there"), "{stderr}");
    run(&["destroy"], 7);
    let (stdout, _) = run(&["list"], 0);
    assert_eq!(stdout, "");
}

#[test]
fn tasks_of_a_folder_are_ordered_before_any_is_followed() {
    let Some(agent) = agent() else { return };
    let place = Place::new();
    place.file(
        "main.tf",
        &BEES.replace("workdir = \"${path.module}/work-${each.key}\"", "").replace("output  = \"out\"", ""),
    );
    let mut command = place.command(&["submit", "--detach"]);
    let output = command.env("TPI_AGENT", &agent).output().expect("the program starts");
    let seen = place.show(&output);
    assert!(output.status.success(), "{seen}");
    let ids: Vec<&str> = seen.lines().filter(|line| line.starts_with("tpi-hive-")).collect();
    assert_eq!(ids.len(), 2, "{seen}");
    let attached = place.run(&["attach", "--task", "hive-a"]);
    assert!(attached.status.success(), "{}", place.show(&attached));
    assert!(
        String::from_utf8_lossy(&attached.stdout).starts_with("hello from a"),
        "{}",
        place.show(&attached)
    );
    let stopped = place.run(&["stop"]);
    assert!(stopped.status.success(), "{}", place.show(&stopped));
    let gone = place.run(&["destroy"]);
    assert!(gone.status.success(), "{}", place.show(&gone));
}
