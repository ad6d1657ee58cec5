//! What is rendered, byte by byte, and what is refused.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use proptest::prelude::*;
use tpi_cloud_init::{AgentSource, Bootstrap, LIMIT, PowerOff, RenderError, render};
use tpi_proto::{
    id::TaskId,
    machine::{
        Addresses, Credentials, HttpCall, MACHINE_CONFIG_VERSION, MachineConfig, MachineName, NoticeEffect,
        PreemptionNotice, Signing, Timings, TokenCall,
    },
};

const SHA256: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn metadata(path: &str) -> HttpCall {
    HttpCall {
        method: "GET".to_owned(),
        url: format!("http://169.254.169.254/latest/meta-data/{path}"),
        headers: BTreeMap::new(),
        body: String::new(),
        token: Some(TokenCall {
            method: "PUT".to_owned(),
            url: "http://169.254.169.254/latest/api/token".to_owned(),
            headers: [("x-aws-ec2-metadata-token-ttl-seconds".to_owned(), "60".to_owned())].into(),
            header: "x-aws-ec2-metadata-token".to_owned(),
        }),
        signing: Signing::None,
    }
}

fn bootstrap() -> Bootstrap {
    let task = TaskId::deterministic("golden").expect("a name");
    let key = format!("tasks/{task}/agent/{SHA256}");
    let notice = |path, effect| PreemptionNotice {
        call: metadata(path),
        contains: None,
        interval_millis: 5_000,
        effect,
    };
    let deadline = "2031-02-03T04:05:06Z".parse().expect("a time");
    Bootstrap {
        config: MachineConfig {
            version: MACHINE_CONFIG_VERSION,
            task,
            machine: MachineName::Ask { ask: metadata("instance-id") },
            slots: 2,
            store: "s3://tpi-0123456789ab-eu-west-1".parse().expect("an address"),
            credentials: Credentials::AwsInstance {
                endpoint: None,
                region: "eu-west-1".to_owned(),
                store_endpoint: None,
            },
            deadline,
            preemption: vec![
                notice("spot/instance-action", NoticeEffect::Interrupt),
                notice("events/recommendations/rebalance", NoticeEffect::Save),
            ],
            release: Some(HttpCall {
                method: "POST".to_owned(),
                url: "https://autoscaling.eu-west-1.amazonaws.com/".to_owned(),
                headers: [("content-type".to_owned(), "application/x-www-form-urlencoded".to_owned())].into(),
                body: "Action=TerminateInstanceInAutoScalingGroup&InstanceId={machine}".to_owned(),
                token: None,
                signing: Signing::AwsV4 { service: "autoscaling".to_owned(), region: "eu-west-1".to_owned() },
            }),
            power_off: true,
            listen: Some("0.0.0.0:10250".parse().expect("an address")),
            addresses: Addresses::Metadata { calls: vec![metadata("public-ipv4"), metadata("local-ipv4")] },
            root: "/opt/tpi".into(),
            timings: Timings::default(),
            environment: [("TPI_REGION".to_owned(), "eu-west".to_owned())].into(),
        },
        agent_sha256: SHA256.to_owned(),
        agent: AgentSource::S3 {
            bucket: "tpi-0123456789ab-eu-west-1".to_owned(),
            key,
            region: "eu-west-1".to_owned(),
            endpoint: None,
            metadata: None,
        },
        power_off: PowerOff {
            at: "2031-02-03T05:05:06Z".parse().expect("a time"),
            after_boot_seconds: 90_000,
        },
    }
}

fn text(bootstrap: &Bootstrap) -> Result<String> {
    Ok(String::from_utf8(render(bootstrap)?)?)
}

/// The two scripts, as they are after YAML.
fn scripts(user_data: &str) -> Result<[String; 2]> {
    let (_, rest) = user_data.split_once("bootcmd:\n  - |\n").context("no bootcmd")?;
    let (boot, run) = rest.split_once("runcmd:\n  - |\n").context("no runcmd")?;
    let plain = |block: &str| {
        block.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect()
    };
    Ok([plain(boot), plain(run)])
}

/// What a script writes to a file.
fn file(script: &str, path: &str) -> Result<String> {
    let (_, rest) = script.split_once(&format!("cat > {path}")).with_context(|| format!("no {path}"))?;
    let (_, rest) = rest.split_once("<<'TPI'\n").context("no here-document")?;
    let (content, _) = rest.split_once("\nTPI\n").context("it has no end")?;
    Ok(format!("{content}\n"))
}

#[test]
fn golden() -> Result<()> {
    let rendered = text(&bootstrap())?;
    assert!(!rendered.contains('@'), "a placeholder is left");
    insta::assert_snapshot!("aws", rendered);
    Ok(())
}

#[test]
fn the_timer_is_armed_before_anything_else_and_needs_nothing() -> Result<()> {
    let [arm, start] = scripts(&text(&bootstrap())?)?;
    let does: String = arm.lines().filter(|line| !line.starts_with('#')).collect();
    for far in ["curl", "python", "http", "network"] {
        assert!(!does.contains(far), "{far:?} before the timer is armed");
    }
    let timer = file(&arm, "/etc/systemd/system/tpi-power-off.timer")?;
    for line in ["OnCalendar=2031-02-03 05:05:06 UTC", "OnBootSec=90000s", "Persistent=true"] {
        assert!(timer.lines().any(|l| l == line), "{line}");
    }
    assert!(arm.contains("-ge 1927861506 ]"), "{arm}");
    assert!(
        start.find("is-active") < start.find("machine.json"),
        "work begins on a machine that is not armed"
    );
    for unit in ["tpi-install.service", "tpi-agent.service"] {
        let unit = file(&start, &format!("/etc/systemd/system/{unit}"))?;
        assert!(unit.contains("\nOnFailure=tpi-power-off.service\n"), "{unit}");
    }
    Ok(())
}

#[test]
fn what_the_agent_reads_is_what_was_given() -> Result<()> {
    let mut given = bootstrap();
    given
        .config
        .environment
        .insert("ODD".to_owned(), "'\"\\ $HOME `id` \n\tTPI\n ü \u{2028} 🦀 \u{7f}".to_owned());
    let rendered = text(&given)?;
    assert!(rendered.is_ascii());
    let [_, start] = scripts(&rendered)?;
    let config: MachineConfig<MachineName> = serde_json::from_str(&file(&start, "/etc/tpi/machine.json)")?)?;
    assert_eq!(config, given.config);
    Ok(())
}

#[test]
fn what_does_not_fit_is_compressed_or_refused() -> Result<()> {
    let mut large = bootstrap();
    large.config.environment.insert("LONG".to_owned(), "0123456789".repeat(2_000));
    let packed = render(&large)?;
    assert!(packed.len() <= LIMIT && packed.starts_with(&[0x1f, 0x8b]));
    let unpacked = through("gzip", &["-dc"], &packed)?;
    let [_, start] = scripts(&unpacked)?;
    assert_eq!(
        serde_json::from_str::<MachineConfig<MachineName>>(&file(&start, "/etc/tpi/machine.json)")?)?,
        large.config
    );
    let mut state = 1_u64;
    let noise: String = (0..40_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'0' + u8::try_from(state % 64).unwrap_or_default())
        })
        .collect();
    large.config.environment.insert("LONG".to_owned(), noise);
    match render(&large) {
        Err(RenderError::TooLarge { bytes, limit: LIMIT }) => assert!(bytes > LIMIT),
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
    Ok(())
}

#[test]
fn values_that_break_out_and_secrets_are_refused() {
    type Change = fn(&mut Bootstrap);
    fn source(bootstrap: &mut Bootstrap, change: impl FnOnce(&mut String, &mut String)) {
        let AgentSource::S3 { bucket, key, .. } = &mut bootstrap.agent;
        change(bucket, key);
    }
    fn release(bootstrap: &mut Bootstrap) -> &mut HttpCall {
        bootstrap.config.release.as_mut().expect("there is one")
    }
    let changes: &[(&str, Change)] = &[
        ("agent.bucket", |b| source(b, |bucket, _| bucket.push('\''))),
        ("agent.key", |b| source(b, |_, key| key.push_str("'; reboot; '"))),
        ("agent.key", |b| source(b, |_, key| *key = "a/../b".to_owned())),
        ("agent_sha256", |b| b.agent_sha256 = "0".repeat(63)),
        ("agent_sha256", |b| b.agent_sha256 = SHA256.to_uppercase()),
        ("power_off.at", |b| b.power_off.at = "2031-01-01T00:00:00Z".parse().expect("a time")),
        ("power_off.after_boot_seconds", |b| b.power_off.after_boot_seconds = 0),
        ("config.release", |b| {
            release(b).headers.insert("Authorization".to_owned(), "Bearer x".to_owned());
        }),
        ("config.release", |b| release(b).url = "https://user:word@example.org/".to_owned()),
        ("config.release", |b| release(b).url = "https://example.org/?X-Amz-Signature=0".to_owned()),
        ("config.store", |b| b.config.store = "s3://key:word@bucket/".parse().expect("an address")),
        ("user-data", |b| {
            b.config.environment.insert("A".to_owned(), "AKIAIOSFODNN7EXAMPLE".to_owned());
        }),
        ("user-data", |b| {
            b.config.environment.insert("A".to_owned(), "-----BEGIN PRIVATE KEY-----".to_owned());
        }),
    ];
    for (wanted, change) in changes {
        let mut bad = bootstrap();
        change(&mut bad);
        match render(&bad) {
            Err(RenderError::Invalid { field, .. }) => assert_eq!(field, *wanted),
            other => panic!("{wanted}: {other:?}"),
        }
    }
}

/// This process has secrets in its environment, as a user's shell has.
#[test]
fn nothing_of_the_environment_of_whoever_renders_is_in_it() -> Result<()> {
    if std::env::var_os("TPI_MARKED_SECRET").is_none() {
        let again = Command::new(std::env::current_exe()?)
            .args(["--exact", "nothing_of_the_environment_of_whoever_renders_is_in_it"])
            .envs([
                ("TPI_MARKED_SECRET", "marked-value-1"),
                ("AWS_ACCESS_KEY_ID", "marked-value-2"),
                ("AWS_SECRET_ACCESS_KEY", "marked-value-3"),
                ("AWS_SESSION_TOKEN", "marked-value-4"),
            ])
            .output()?;
        ensure!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
        return Ok(());
    }
    assert!(!text(&bootstrap())?.contains("marked-value"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_value_of_the_configuration_becomes_script(value in "\\PC{0,40}", name in "[A-Z]{1,8}") {
        let mut given = bootstrap();
        let plain = text(&given).expect("it renders");
        given.config.environment.insert(name, value);
        if let Ok(rendered) = text(&given) {
            // One line differs: that of the configuration.
            let differing = plain.lines().zip(rendered.lines()).filter(|(a, b)| a != b).count();
            prop_assert_eq!(differing, 1);
            prop_assert_eq!(plain.lines().count(), rendered.lines().count());
        }
    }
}

fn through(program: &str, arguments: &[&str], input: &[u8]) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("it was piped")?.write_all(input)?;
    let output = child.wait_with_output()?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{program}: {told}{}", String::from_utf8_lossy(&output.stderr));
    Ok(told)
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn there_is(program: &str, argument: &str) -> bool {
    let there = Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("SKIPPED: there is no {program} here");
    }
    there
}

#[test]
fn yaml_gives_the_scripts_back() -> Result<()> {
    if !there_is("python3", "-cimport yaml") {
        return Ok(());
    }
    let rendered = text(&bootstrap())?;
    let read = "import json, sys, yaml; d = yaml.safe_load(sys.stdin.buffer); \
                json.dump([d['bootcmd'], d['runcmd'], sorted(d)], sys.stdout)";
    let read: Vec<Vec<String>> =
        serde_json::from_str(&through("python3", &["-c", read], rendered.as_bytes())?)?;
    let [boot, run] = scripts(&rendered)?;
    assert_eq!(read, [vec![boot], vec![run], vec!["bootcmd".to_owned(), "runcmd".to_owned()]]);
    Ok(())
}

#[test]
fn shells_and_python_accept_the_scripts() -> Result<()> {
    let [arm, start] = scripts(&text(&bootstrap())?)?;
    let install = file(&start, "/usr/local/lib/tpi/install")?;
    for script in [&arm, &start, &install] {
        through("sh", &["-n"], script.as_bytes())?;
    }
    if there_is("shellcheck", "--version") {
        for script in [&arm, &start, &install] {
            through("shellcheck", &["--shell=sh", "--severity=style", "-"], script.as_bytes())?;
        }
    }
    if there_is("python3", "--version") {
        let compile = "import sys; compile(sys.stdin.read(), 'fetch', 'exec')";
        through("python3", &["-c", compile], file(&start, "/usr/local/lib/tpi/fetch.py")?.as_bytes())?;
    }
    Ok(())
}

#[test]
fn systemd_accepts_the_units() -> Result<()> {
    if !there_is("systemd-analyze", "--version") {
        return Ok(());
    }
    let [arm, start] = scripts(&text(&bootstrap())?)?;
    let folder = tempfile::tempdir()?;
    let units = [
        (&arm, "tpi-power-off.service"),
        (&arm, "tpi-power-off.timer"),
        (&start, "tpi-install.service"),
        (&start, "tpi-agent.service"),
    ];
    let mut files = Vec::new();
    for (script, unit) in units {
        let content = file(script, &format!("/etc/systemd/system/{unit}"))?;
        let path = folder.path().join(unit);
        // The agent is not installed here.
        std::fs::write(&path, content.replace("/usr/local/bin/tpi-agent", "/bin/sh"))?;
        files.push(path);
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(files.iter().map(|f| f.as_path()).collect::<Vec<&Path>>())
        .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()))
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = told.lines().filter(|line| line.contains("tpi-")).collect();
    assert!(ours.is_empty(), "{told}");
    Ok(())
}
