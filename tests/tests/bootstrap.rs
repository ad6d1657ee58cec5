//! User-data, run: the scripts of a machine against a metadata service and a bucket that refuse whatever AWS may
//! refuse. systemd is a list of what it was asked for; real ones boot elsewhere.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use tpi_cloud_init::{AgentSource, Bootstrap, PowerOff, render};
use tpi_proto::{
    id::TaskId,
    machine::{Addresses, Credentials, MACHINE_CONFIG_VERSION, MachineConfig, MachineName, Timings},
};
use tpi_tests::instance::{BUCKET, Instance, REGION};

const AGENT: &[u8] = b"#!/bin/sh\necho the agent\n";

struct Machine {
    folder: tempfile::TempDir,
    instance: Instance,
    key: String,
    user_data: String,
}

impl Machine {
    async fn new() -> Result<Self> {
        let instance = Instance::start(Duration::from_secs(3600)).await?;
        let task = TaskId::deterministic("bootstrap")?;
        let sha256 = hex::encode(Sha256::digest(AGENT));
        let key = format!("some/prefix/tasks/{task}/agent/{sha256}");
        let deadline = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let bootstrap = Bootstrap {
            config: MachineConfig {
                version: MACHINE_CONFIG_VERSION,
                task,
                machine: MachineName::Ask { ask: instance.metadata("instance-id") },
                slots: 1,
                store: format!("s3://{BUCKET}/some/prefix").parse()?,
                credentials: Credentials::AwsInstance {
                    endpoint: Some(instance.url().parse()?),
                    region: REGION.to_owned(),
                    store_endpoint: Some(instance.url().parse()?),
                },
                deadline,
                preemption: Vec::new(),
                release: Some(instance.release()),
                power_off: true,
                listen: None,
                addresses: Addresses::default(),
                root: "/opt/tpi".into(),
                timings: Timings::default(),
                environment: [("TPI_REGION".to_owned(), "eu-west".to_owned())].into(),
            },
            agent_sha256: sha256,
            agent: AgentSource::S3 {
                bucket: BUCKET.to_owned(),
                key: key.clone(),
                region: REGION.to_owned(),
                endpoint: Some(instance.url().parse()?),
                metadata: Some(instance.url().parse()?),
            },
            power_off: PowerOff { at: deadline, after_boot_seconds: 7200 },
        };
        let folder = tempfile::tempdir()?;
        for name in ["bin", "etc/systemd/system", "usr/local"] {
            std::fs::create_dir_all(folder.path().join(name))?;
        }
        let calls = folder.path().join("calls");
        let stub = format!("#!/bin/sh\necho \"$@\" >> '{}'\n", calls.display());
        write_program(&folder.path().join("bin/systemctl"), stub.as_bytes())?;
        let user_data = String::from_utf8(render(&bootstrap)?)?;
        Ok(Self { folder, instance, key, user_data })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One of the two scripts, at home in the machine's folder.
    fn script(&self, name: &str) -> Result<String> {
        let (_, rest) = self.user_data.split_once(&format!("{name}:\n  - |\n")).context("no such script")?;
        let lines = rest
            .lines()
            .map_while(|line| if line.is_empty() { Some(line) } else { line.strip_prefix("    ") });
        let script: String = lines.map(|line| format!("{line}\n")).collect();
        let here = self.folder.path().display();
        Ok(script
            .replace("/usr/local/", &format!("{here}/usr/local/"))
            .replace(" /usr/local", &format!(" {here}/usr/local"))
            .replace("/etc/", &format!("{here}/etc/")))
    }

    async fn shell(&self, script: &str, path: &str) -> Result<Output> {
        let output = tokio::process::Command::new("/bin/sh")
            .args(["-c", script])
            .env_clear()
            .env("PATH", path)
            .output()
            .await?;
        Ok(output)
    }

    fn usual_path(&self) -> String {
        let rest = std::env::var("PATH").unwrap_or_default();
        format!("{}:{rest}", self.path("bin").display())
    }

    async fn start(&self) -> Result<()> {
        let output = self.shell(&self.script("runcmd")?, &self.usual_path()).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    async fn install(&self, path: &str) -> Result<Output> {
        let script = std::fs::read_to_string(self.path("usr/local/lib/tpi/install"))?;
        self.shell(&script, path).await
    }

    fn agent(&self) -> PathBuf {
        self.path("usr/local/bin/tpi-agent")
    }

    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().map(ToOwned::to_owned).collect()
    }

    fn goes_off(&self) -> bool {
        self.calls().iter().any(|call| call == "--no-block start tpi-power-off.service")
    }
}

fn write_program(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o777)
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn there_is(program: &str) -> bool {
    let there =
        std::process::Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        eprintln!("SKIPPED: there is no {program} here");
    }
    there
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_armed_then_configured_then_started() -> Result<()> {
    let machine = Machine::new().await?;
    let armed = machine.shell(&machine.script("bootcmd")?, &machine.usual_path()).await?;
    assert!(armed.status.success(), "{}", String::from_utf8_lossy(&armed.stderr));
    assert_eq!(
        machine.calls(),
        ["daemon-reload", "enable tpi-power-off.timer", "--no-block start tpi-power-off.timer"]
    );
    machine.start().await?;
    let config = machine.path("etc/tpi/machine.json");
    assert_eq!(mode(&config)?, 0o600);
    let config: MachineConfig<MachineName> = serde_json::from_slice(&std::fs::read(config)?)?;
    assert!(matches!(config.machine, MachineName::Ask { .. }));
    assert_eq!(
        machine.calls().split_off(3),
        [
            "start tpi-power-off.timer",
            "is-active --quiet tpi-power-off.timer",
            "daemon-reload",
            "enable tpi-agent.service",
            "--no-block start tpi-agent.service",
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_begins_after_the_end_goes_off_at_once() -> Result<()> {
    let machine = Machine::new().await?;
    let script = machine.script("bootcmd")?;
    let at = script.split("-ge ").nth(1).and_then(|rest| rest.split(' ').next()).context("no time")?;
    machine.shell(&script.replace(at, "1700000000"), &machine.usual_path()).await?;
    assert!(machine.goes_off());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_starts_on_a_machine_without_its_timer() -> Result<()> {
    let machine = Machine::new().await?;
    let stub =
        format!("#!/bin/sh\necho \"$@\" >> '{}'\n[ \"$1\" != is-active ]\n", machine.path("calls").display());
    write_program(&machine.path("bin/systemctl"), stub.as_bytes())?;
    assert!(machine.start().await.is_err());
    assert!(machine.goes_off());
    assert!(!machine.path("etc/tpi/machine.json").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn python_fetches_the_agent_with_the_role_of_the_machine() -> Result<()> {
    if !there_is("python3") {
        return Ok(());
    }
    let machine = Machine::new().await?;
    machine.instance.put(&machine.key, AGENT);
    machine.instance.sulk(1);
    machine.start().await?;
    let output = machine.install(&machine.usual_path()).await?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(machine.agent())?, AGENT);
    assert_eq!(mode(&machine.agent())?, 0o755);
    assert_eq!(machine.instance.refusals(), Vec::<String>::new());
    assert_eq!(machine.instance.used().len(), 1);
    assert!(!machine.goes_off());

    // After a reboot: it is there, nobody is asked.
    machine.instance.close();
    let again = machine.install(&machine.usual_path()).await?;
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_clock_is_wrong_goes_by_that_of_the_bucket() -> Result<()> {
    if !there_is("python3") {
        return Ok(());
    }
    let machine = Machine::new().await?;
    machine.instance.put(&machine.key, AGENT);
    machine.instance.differ(jiff::SignedDuration::from_hours(-5));
    machine.start().await?;
    let output = machine.install(&machine.usual_path()).await?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(machine.instance.refusals().len(), 1, "{:?}", machine.instance.refusals());
    assert!(machine.instance.refusals()[0].ends_with("the time is off"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_fetches_the_agent_where_there_is_no_python() -> Result<()> {
    let signs = std::process::Command::new("curl").args(["--help", "all"]).output();
    if !signs.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("--aws-sigv4")) {
        eprintln!("SKIPPED: there is no curl here that signs");
        return Ok(());
    }
    let machine = Machine::new().await?;
    machine.instance.put(&machine.key, AGENT);
    machine.start().await?;
    for name in ["cat", "chmod", "curl", "cut", "mv", "rm", "sed", "sha256sum", "sleep", "timeout", "tr"] {
        let found = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(name));
        let found = found.iter().find(|path| path.exists()).with_context(|| format!("no {name}"))?;
        std::os::unix::fs::symlink(found, machine.path("bin").join(name))?;
    }
    let output = machine.install(&machine.path("bin").display().to_string()).await?;
    assert!(
        output.status.success(),
        "{}{:?}",
        String::from_utf8_lossy(&output.stderr),
        machine.instance.refusals()
    );
    assert_eq!(std::fs::read(machine.agent())?, AGENT);
    assert_eq!(machine.instance.refusals(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_than_the_agent_is_refused_and_the_machine_goes_off() -> Result<()> {
    let machine = Machine::new().await?;
    machine.instance.put(&machine.key, [AGENT, b"# and more\n"].concat());
    machine.start().await?;
    let output = machine.install(&machine.usual_path()).await?;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(machine.goes_off());
    assert!(!machine.agent().exists() && !machine.path("usr/local/bin/tpi-agent.new").exists());
    // The next one would fare no better: it is not replaced.
    let released = machine.instance.released();
    assert_eq!(released.len(), 1, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(released[0].contains(&format!("InstanceId={}&", machine.instance.id())), "{released:?}");
    assert_eq!(machine.instance.refusals(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_gets_no_agent_goes_off() -> Result<()> {
    let machine = Machine::new().await?;
    machine.start().await?;
    let install = machine.path("usr/local/lib/tpi/install");
    let script = std::fs::read_to_string(&install)?;
    assert!(script.contains("\nseconds=600\n"));
    std::fs::write(&install, script.replace("\nseconds=600\n", "\nseconds=3\n"))?;
    let output = machine.install(&machine.usual_path()).await?;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(machine.goes_off());
    // The store may be back for the next one.
    assert_eq!(machine.instance.released(), Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_of_the_role_is_left_behind_or_shown() -> Result<()> {
    let machine = Machine::new().await?;
    machine.instance.put(&machine.key, AGENT);
    machine.start().await?;
    let output = machine.install(&machine.usual_path()).await?;
    let told = [output.stdout, output.stderr].concat();
    let mut texts = vec![String::from_utf8_lossy(&told).into_owned(), machine.user_data.clone()];
    for path in tpi_tests::rig::walk(machine.folder.path()) {
        texts.push(String::from_utf8_lossy(&std::fs::read(path)?).into_owned());
    }
    let secrets = machine.instance.secrets();
    assert!(secrets.len() >= 3);
    for text in &texts {
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{text}");
    }
    Ok(())
}
