//! Violations planted in temporary trees, each beside a twin that is allowed.

use std::path::Path;

use super::check;

/// Findings of a tree of these files, as `file:line`.
fn found(files: &[(&str, &str)]) -> Vec<String> {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    check(root.path()).unwrap().iter().map(|finding| format!("{}:{}", finding.file, finding.line)).collect()
}

#[track_caller]
fn allowed(file: &str, text: &str) {
    assert_eq!(found(&[(file, text)]), Vec::<String>::new(), "{file}: {text}");
}

#[track_caller]
fn refused(file: &str, text: &str) {
    assert_eq!(found(&[(file, text)]).len(), 1, "{file}: {text}");
}

#[test]
fn this_checkout_is_tidy() {
    let findings: Vec<_> = check(&crate::root()).unwrap().iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn the_task_domain_is_pure() {
    for line in [
        "use tokio::sync::mpsc;",
        "use std::fs;",
        "use std::{fmt, fs::File};",
        "use std::{collections::{BTreeMap, BTreeSet}, net::TcpStream};",
        "use std::{\n    fmt,\n    io::Read,\n};",
        "fn f() { let _ = std::net::TcpStream::connect(\"x\"); }",
        "async fn act() {}",
    ] {
        refused("controller/src/task/plan.rs", line);
        allowed("controller/src/engine/act.rs", line);
    }
    refused("controller/src/task.rs", "use std::env;");
    refused("proto/src/id.rs", "use std::fs::File;");
    allowed("controller/src/task/plan.rs", "use std::{fmt, collections::BTreeMap};");
    allowed("controller/src/task/plan.rs", "use std::net::IpAddr;");
    refused("controller/src/task/plan.rs", "use jiff::Timestamp; fn f() { Timestamp::now(); }");
    allowed("controller/src/task/plan.rs", "// tokio::spawn and std::fs are not for here, \"nor async\"");
    allowed("controller/src/task/plan.rs", "const TEXT: &str = \"std::fs\";");
    allowed("controller/src/task/plan.rs", "let std_files = my::tokio::thing; let x = std::format!();");
    allowed("controller/src/task/plan.rs", "#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n");
}

#[test]
fn a_clouds_types_stay_in_its_folder() {
    let cases = [
        ("aws", "use aws_sdk_ec2::Client;"),
        ("aws", "fn f() -> aws_config::SdkConfig {}"),
        ("gcp", "use google_cloud_compute_v1::client::Instances;"),
        ("azure", "use azure_identity::DefaultAzureCredential;"),
        ("k8s", "use kube::Client;"),
    ];
    for (cloud, line) in cases {
        allowed(&format!("controller/src/cloud/{cloud}/machines.rs"), line);
        refused("controller/src/engine.rs", line);
        refused("controller/src/cloud/local/machines.rs", line);
        refused("agent/src/main.rs", line);
    }
    allowed("controller/src/engine.rs", "let azure = kube + kubernetes::x;");
}

#[test]
fn libraries_of_the_wire_and_the_bucket_stay_at_the_edges() {
    let line = "use tonic::Status;";
    for file in ["agent/src/rpc.rs", "agent/src/rpc/logs.rs", "controller/src/link/dial.rs", "proto/src/x.rs"]
    {
        allowed(file, line);
    }
    refused("agent/src/supervisor.rs", line);
    refused("controller/src/cli/attach.rs", "fn f(status: &tonic::Status) {}");
    allowed("xtask/src/codegen.rs", "tonic_prost_build::configure();");
    allowed("store/src/backend/s3.rs", "use object_store::path::Path;");
    refused("store/src/log.rs", "use object_store::path::Path;");
}

#[test]
fn only_the_command_line_prints() {
    for line in ["fn f() { println!(\"x\"); }", "fn f() { eprint!(\"x\"); }", "fn f() { std::io::stdout(); }"]
    {
        refused("agent/src/main.rs", line);
        allowed("controller/src/cli/status.rs", line);
        allowed("xtask/src/main.rs", line);
        allowed("agent/src/main.rs", &format!("#[cfg(test)]\nmod tests {{\n{line}\n}}\n"));
        allowed("agent/tests/real.rs", line);
    }
}

#[test]
fn crates_depend_in_one_direction() {
    allowed(
        "agent/Cargo.toml",
        "[dependencies]\ntpi-proto.workspace = true\ntpi-store = { path = \"../store\" }\n",
    );
    refused("agent/Cargo.toml", "[dependencies]\ntpi-controller.workspace = true\n");
    refused("agent/Cargo.toml", "[dev-dependencies.tpi-controller]\nworkspace = true\n");
    refused("controller/Cargo.toml", "[dev-dependencies]\ntpi-agent = { path = \"../agent\" }\n");
    refused("proto/Cargo.toml", "[dependencies]\ntpi-store.workspace = true\n");
    allowed("proto/Cargo.toml", "[package]\nname = \"tpi-proto\"\n");
}

#[test]
fn names_say_something() {
    for file in
        ["agent/src/utils.rs", "store/src/common/x.rs", "tests/src/helpers.rs", "agent/src/manager.rs"]
    {
        refused(file, "");
    }
    refused("agent/src/phase/mod.rs", "");
    refused("controller/src/cloud/aws/net/mod.rs", "");
    allowed("controller/src/cloud/aws/mod.rs", "");
    allowed("agent/src/phase.rs", "");
    allowed("agent/src/commonly.rs", "");
}

#[test]
fn long_files_say_why() {
    let long = "//\n".repeat(701);
    refused("store/src/log.rs", &long);
    allowed("store/src/log.rs", &format!("// tidy: long because the format is one table\n{long}"));
    allowed("store/src/gen/log.rs", &long);
}

#[test]
fn no_file_knows_somebodys_computer() {
    // Put together here, for this file is looked at too.
    let (alice, bob) = (["", "home", "alice", "tpi"].join("/"), ["", "Users", "bob", "x"].join("/"));
    refused("README.md", &format!("see {alice}/x"));
    refused("xtask/src/x.rs", &format!("const A: &str = \"{bob}\";"));
    allowed("README.md", &format!("see https://example.com{alice}/x"));
    allowed("README.md", "in /home/ubuntu/work or $HOME/x or /home/$NAME/x");

    let root = tempfile::tempdir().unwrap();
    let own = format!("cd {}/agent\n", root.path().display());
    std::fs::write(root.path().join("notes.md"), own).unwrap();
    assert_eq!(check(root.path()).unwrap().len(), 1);
}

#[test]
fn test_switches_are_read_in_one_place() {
    let line = "fn f() { std::env::var_os(\"__TPI_TEST_STOP_AT\"); }";
    allowed("agent/src/testing.rs", line);
    let prefix = "fn f(name: &str) -> bool { name.starts_with(\"__TPI_TEST_\") }";
    assert!(found(&[("agent/src/a.rs", line), ("agent/src/z.rs", prefix)]).is_empty());
    let both = [("agent/src/a.rs", line), ("agent/src/b.rs", line), ("controller/src/c.rs", line)];
    assert_eq!(found(&both), ["agent/src/b.rs:0"]);
}

#[test]
fn banned_crates_are_not_locked() {
    let deny = "[bans]\ndeny = [\n    { crate = \"openssl-sys\", reason = \"one TLS library\" },\n]\n";
    let lock = "[[package]]\nname = \"openssl-sys\"\nversion = \"1.0.0\"\n";
    assert_eq!(found(&[("deny.toml", deny), ("Cargo.lock", lock)]), ["Cargo.lock:2"]);
    assert!(found(&[("deny.toml", deny), ("Cargo.lock", "[[package]]\nname = \"ring\"\n")]).is_empty());
}

#[test]
fn literals_and_comments_are_not_code() {
    let text = "let a = 'x'; let b: &'static str = r#\"tonic::x \" \"#; /* tonic::y /* z */ */ let c = b\"tonic::\\\"z\"; let d = '\\''; tonic_x;";
    allowed("agent/src/main.rs", text);
    refused("agent/src/main.rs", "let d = '\"'; tonic::x();");
}

#[test]
fn every_message_names_file_and_repair() {
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("agent/src");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("main.rs"), "\nuse tonic::Code;\n").unwrap();
    let findings = check(Path::new(root.path())).unwrap();
    let message = findings[0].to_string();
    assert!(message.starts_with("agent/src/main.rs:2: ") && message.contains("agent/src/rpc"), "{message}");
}
