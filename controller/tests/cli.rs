//! The program as people and programs meet it, as far as no agent is needed: help, usage, bad input, and what
//! errors look like. What happens with agents is in the end-to-end suites.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    process::Stdio,
};

use place::Place;

#[path = "cli/configured.rs"]
mod configured;
#[path = "cli/place.rs"]
mod place;
#[path = "cli/stored.rs"]
mod stored;

#[test]
fn the_whole_help() {
    let place = Place::new();
    let mut all = String::new();
    let commands = [
        "",
        "submit",
        "plan",
        "attach",
        "logs",
        "status",
        "list",
        "stop",
        "pull",
        "destroy",
        "sweep",
        "shell",
        "forward",
        "completions",
        "man",
    ];
    for command in commands {
        let arguments: Vec<&str> = [command, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        let output = place.run(&arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{command}");
        // What every command repeats is shown once.
        let text = String::from_utf8(output.stdout).expect("text");
        let text = match (command, text.split_once("\nEverywhere:\n")) {
            ("", _) | (_, None) => text.clone(),
            (_, Some((own, everywhere))) => {
                let codes = everywhere.find("Exit codes:").map_or("", |_| "\n(exit codes)\n");
                let examples = everywhere
                    .split_once("Examples:")
                    .and_then(|(_, rest)| rest.split_once("\n\n"))
                    .map_or(String::new(), |(examples, _)| format!("\nExamples:{examples}\n"));
                format!("{own}\n(everywhere)\n{examples}{codes}")
            }
        };
        writeln!(all, "===== {command}\n{text}").expect("writes");
    }
    insta::assert_snapshot!(all);
}

#[test]
fn command_lines_that_cannot_be_used() {
    let place = Place::new();
    let mut all = String::new();
    for arguments in [
        &["stats"][..],
        &["submit", "--timeuot", "5"],
        &["submit", "--script", "a", "--", "b"],
        &["submit", "--detach", "--exit-with-task-code", "--", "true"],
        &["list", "--output", "yaml"],
        &["--quiet", "--verbose", "list"],
        &["attach"],
        &["destroy"],
        &["logs", "x", "--since", "yesterday"],
        &["stop", "x", "--grace", "soon"],
        &["forward", "x", "http"],
        &["completions", "tcsh"],
        &["list", "--output", "json", "--nope"],
    ] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        writeln!(all, "$ {}\n{}", arguments.join(" "), place.show(&output)).expect("writes");
    }
    insta::assert_snapshot!(all);
}

#[test]
fn requests_that_cannot_be_met() {
    let place = Place::new();
    place.file("plain.py", "print('no shebang')\n").file("good.sh", "#!/bin/sh\ntrue\n");
    fs::create_dir(place.path().join("work")).expect("makes");
    let long = "x".repeat(80);
    let mut all = String::new();
    for arguments in [
        &["submit"][..],
        &["submit", "--cloud", "azure", "--", "true"],
        &["submit", "--cloud", "aws", "--", "true"],
        &["submit", "--machine", "m+t4x", "--", "true"],
        &["submit", "--script", "plain.py"],
        &["submit", "--script", "absent.sh"],
        &["submit", "--workdir", "absent", "--", "true"],
        &["submit", "--workdir", "good.sh", "--", "true"],
        &["submit", "--workdir", "work", "--results", "../out", "--", "true"],
        &["submit", "--results", "out", "--", "true"],
        &["submit", "--timeout", "0", "--", "true"],
        &["submit", "--timeout", "-5", "--", "true"],
        &["submit", "--grace", "soon", "--", "true"],
        &["submit", "--name", &long, "--", "true"],
        &["submit", "--name", "…", "--", "true"],
        &["submit", "--parallelism", "0", "--", "true"],
        &["submit", "--disk-size", "huge", "--", "true"],
        &["submit", "--spot", "cheap", "--", "true"],
        &["submit", "--tags", "novalue", "--", "true"],
        &["submit", "-e", "=x", "--", "true"],
        &["submit", "--ingress", "everyone", "--", "true"],
        &["submit", "--workdir", "work", "--exclude", "a[", "--", "true"],
        &["submit", "--timeout", "0", "--cloud", "azure", "--output", "json", "--", "true"],
    ] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", place.show(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
        writeln!(all, "$ {}\n{}", arguments.join(" "), place.show(&output)).expect("writes");
    }
    insta::assert_snapshot!(all);
    // Refused means that nothing has begun.
    assert!(!place.path().join(".local/state/tpi/store").exists());
}

#[test]
fn a_script_from_stdin_is_checked_like_a_file() {
    let place = Place::new();
    for (script, wanted) in [(&b"echo no shebang\n"[..], "shebang"), (b"#!/bin/sh\n\xff\xfe\n", "UTF-8")] {
        let mut child = place
            .command(&["submit", "--script", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        child.stdin.take().expect("a pipe").write_all(script).expect("writes");
        let output = child.wait_with_output().expect("ends");
        let seen = place.show(&output);
        assert_eq!(output.status.code(), Some(1), "{seen}");
        assert!(seen.contains(wanted), "{seen}");
    }
}

#[test]
fn a_work_directory_that_cannot_be_read_is_named() {
    use std::os::unix::{fs::PermissionsExt as _, process::CommandExt as _};
    let place = Place::new();
    let closed = place.path().join("closed");
    fs::create_dir(&closed).expect("makes");
    let mode = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changes the mode");
    };
    mode(&closed, 0o000);
    let mut command = place.command(&["submit", "--workdir", "closed", "--", "true"]);
    if fs::read_dir(&closed).is_ok() {
        // Root reads everything, so nobody has to try, with a copy of the program where nobody may go.
        let copy = place.path().join("tpi-controller");
        fs::copy(command.get_program(), &copy).expect("copies");
        mode(place.path(), 0o777);
        mode(&copy, 0o755);
        let mut unprivileged = std::process::Command::new(copy);
        unprivileged.args(command.get_args()).env_clear().current_dir(place.path()).stdin(Stdio::null());
        unprivileged.env("HOME", place.path()).uid(65534).gid(65534);
        command = unprivileged;
    }
    let output = command.output().expect("the program starts");
    mode(&closed, 0o700);
    let seen = place.show(&output);
    assert_eq!(output.status.code(), Some(1), "{seen}");
    assert!(seen.contains("closed") && seen.contains("denied"), "{seen}");
}

#[test]
fn a_place_for_state_is_needed() {
    let place = Place::new();
    let output = place.command(&["list"]).env_remove("HOME").output().expect("the program starts");
    insta::assert_snapshot!(place.show(&output), @r"
    exit: 1
    --- stderr
    error: there is no place to keep state: none of --state-dir, TPI_STATE_DIR, XDG_STATE_HOME and HOME is set
    hint: --state-dir chooses another directory
    ");
}

#[test]
fn a_plan_of_the_local_cloud_makes_nothing() {
    let place = Place::new();
    std::fs::create_dir(place.path().join("work")).expect("makes a folder");
    std::fs::write(place.path().join("work/data"), "some data").expect("writes");
    let agent = place.path().join("agent");
    std::fs::write(&agent, "an agent").expect("writes");
    let agent = agent.to_str().expect("text");
    let plan =
        ["--agent", agent, "--output", "json", "plan", "--name", "bees", "--workdir", "work", "--", "true"];
    let output = place.run(&plan);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("is JSON");
    assert_eq!(
        (&report["kind"], &report["sends"]["files"]["files"], &report["plan"]["ceiling"]["usd"]),
        (&"task_plan".into(), &1.into(), &0.0.into()),
        "{report}"
    );
    let listed = place.run(&["--output", "json", "list"]);
    let report: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("is JSON");
    assert_eq!(report["tasks"], serde_json::json!([]), "{report}");
}

#[test]
fn manual_pages_and_completions() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = place.run(&["completions", shell]);
        let script = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success() && script.contains("submit"), "{shell}");
    }
    assert!(place.run(&["man"]).stdout.starts_with(b".ie "));
    let output = place.run(&["man", "pages"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    for page in ["tpi-controller.1", "tpi-controller-submit.1"] {
        assert!(place.path().join("pages").join(page).exists(), "{page}");
    }
    place.file("taken", "");
    insta::assert_snapshot!(place.seen(&["man", "taken"]), @r"
    exit: 1
    --- stderr
    error: writing manual pages to taken
      caused by: File exists (os error 17)
    ");
}

#[test]
fn a_reader_that_goes_away_is_a_quiet_end() {
    let place = Place::new();
    let mut child = place
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("reads");
    assert_eq!(child.wait().expect("ends").code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
}

#[test]
fn colours_are_used_when_asked_for_only() {
    let place = Place::new();
    let escapes = |arguments: &[&str], variable: Option<(&str, &str)>| {
        let mut command = place.command(arguments);
        let output = command.envs(variable).output().expect("the program starts");
        output.stderr.contains(&0x1b)
    };
    let bad = ["submit", "--timeout", "0", "--", "true"];
    assert!(!escapes(&bad, None));
    assert!(escapes(&[&["--color", "always"], &bad[..]].concat(), None));
    assert!(escapes(&[&["--color", "always"], &bad[..]].concat(), Some(("NO_COLOR", "1"))));
    assert!(escapes(&bad, Some(("CLICOLOR_FORCE", "1"))));
    assert!(!escapes(&[&["--color", "never"], &bad[..]].concat(), Some(("CLICOLOR_FORCE", "1"))));
}
