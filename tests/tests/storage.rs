//! Stores other than the default one, and what of a task's files lies where.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt as _;
use tpi_proto::id::SlotIndex;
use tpi_store::{
    Store,
    layout::{TASKS, TaskKeys},
};
use tpi_tests::Rig;
use url::Url;

/// A bucket of its own at the emulator of S3.
struct Bucket {
    endpoint: String,
    url: String,
}

impl Bucket {
    /// `None`, said aloud, where there is no emulator.
    #[expect(clippy::print_stderr, reason = "what was not tested has to be seen")]
    fn make(test: &str) -> Result<Option<Self>> {
        let Some(endpoint) = std::env::var("TPI_TEST_S3_ENDPOINT").ok().filter(|e| !e.is_empty()) else {
            eprintln!("SKIPPED: {test} on S3: TPI_TEST_S3_ENDPOINT names no emulator");
            return Ok(None);
        };
        let name = format!("tpi-test-{}", hex::encode(rand::random::<[u8; 6]>()));
        let host = Url::parse(&endpoint)?;
        let (address, port) =
            (host.host_str().context("host")?, host.port_or_known_default().context("port")?);
        let mut connection = TcpStream::connect((address, port))?;
        write!(
            connection,
            "PUT /{name} HTTP/1.1\r\nHost: {address}:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        let _bytes = connection.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "making the bucket: {answer}");
        Ok(Some(Self { endpoint, url: format!("s3://{name}/some/prefix") }))
    }

    fn settings(&self) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
        ]
    }

    fn rig(&self) -> Result<Rig> {
        let mut rig = Rig::new()?;
        for (name, value) in self.settings() {
            rig.set(name, value);
        }
        Ok(rig)
    }

    /// Everything below a prefix.
    fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        // Fails when it is installed already, by another test of this process.
        drop(rustls::crypto::ring::default_provider().install_default());
        let settings = self.settings().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let store = Store::open_with(&Url::parse(&self.url)?, settings)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listed = runtime.block_on(store.list(prefix, None).try_collect::<Vec<_>>())?;
        Ok(listed.into_iter().map(|object| object.key).collect())
    }
}

#[test]
fn the_main_job_on_a_bucket() -> Result<()> {
    let Some(bucket) = Bucket::make("the main job")? else { return Ok(()) };
    let rig = bucket.rig()?;
    rig.file("data/in.txt", "some data")?;
    let large: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    rig.file("data/large.bin", &large)?;
    rig.file(
        "train.sh",
        "#!/bin/sh\ncat data/in.txt\nmkdir results\ncp data/large.bin results/\necho 42 > results/answer\n",
    )?;
    let store = bucket.url.as_str();
    let arguments =
        ["submit", "--name", "bucket", "--workdir", ".", "--results", "results", "--script", "train.sh"];
    let done = rig.run(arguments.iter().chain(&["--store", store]))?.success()?;
    ensure!(done.stdout == b"some data", "stdout is exactly the script's: {}", done.description());
    ensure!(std::fs::read(rig.work().join("results/large.bin"))? == large);
    rig.wait_empty()?;
    ensure!(!rig.store().exists(), "nothing of it is in the default store");
    ensure!(!bucket.keys(TASKS)?.is_empty(), "the task is in the bucket");

    // Where the task lives is remembered: its name is enough.
    for command in ["logs", "attach"] {
        let shown = rig.run([command, "bucket"])?.success()?;
        ensure!(shown.stdout == b"some data", "{}", shown.description());
    }
    std::fs::remove_dir_all(rig.work().join("results"))?;
    rig.run(["pull", "bucket"])?.success()?;
    ensure!(std::fs::read(rig.work().join("results/large.bin"))? == large);

    // From a computer that knows nothing of it, the store has to be named.
    let elsewhere = bucket.rig()?;
    elsewhere.run(["logs", "bucket"])?.code(7)?;
    let shown = elsewhere.run(["logs", "bucket", "--store", store])?.success()?;
    ensure!(shown.stdout == b"some data", "{}", shown.description());

    let destroyed = rig.run(["destroy", "bucket"])?.success()?.says("nothing is left")?;
    ensure!(std::fs::read(rig.work().join("results/answer"))? == b"42\n", "{}", destroyed.description());
    let left = bucket.keys(TASKS)?;
    ensure!(left.is_empty(), "left in the bucket: {left:?}");
    Ok(())
}

/// Where a task of the same name is in two stores, the one that is named now counts, not the one remembered.
#[test]
fn a_named_store_comes_before_the_remembered_one() -> Result<()> {
    let rig = Rig::new()?;
    rig.run(["submit", "--name", "twice", "--", "echo", "here"])?.success()?;
    rig.wait_empty()?;
    let other =
        Url::from_directory_path(rig.folder().join("other")).map_err(|()| anyhow::anyhow!("a path"))?;
    let from = rig.store();
    for file in tpi_tests::rig::walk(&from) {
        let to = rig.folder().join("other").join(file.strip_prefix(&from)?);
        std::fs::create_dir_all(to.parent().context("a folder")?)?;
        let _bytes = std::fs::copy(&file, to)?;
    }
    for (flags, wanted) in
        [(&[][..], rig.store()), (&["--store", other.as_str()][..], rig.folder().join("other"))]
    {
        let status =
            rig.run(["status", "twice", "--output", "json"].iter().chain(flags))?.success()?.json()?;
        let shown = status.get("store").and_then(|s| s.as_str()).context("the store")?.to_owned();
        let shown = Url::parse(&shown)?.to_file_path().map_err(|()| anyhow::anyhow!("{shown}"))?;
        ensure!(shown == wanted, "{} instead of {}", shown.display(), wanted.display());
    }
    Ok(())
}

/// Results are what is in the work directory at the end, whether or not the script has changed any of it.
#[test]
fn what_the_script_left_alone_comes_home_as_well() -> Result<()> {
    let rig = Rig::new()?;
    rig.file("data/in.txt", "some data")?;
    rig.file("data/old.txt", "before")?;
    let elsewhere = rig.folder().join("elsewhere");
    let to = elsewhere.to_string_lossy().into_owned();
    for (name, script, old) in
        [("untouched", "true", "before"), ("touched", "echo after > data/old.txt", "after\n")]
    {
        let submit = ["submit", "--name", name, "--workdir", ".", "--results", "data", "--no-pull"];
        rig.run(submit.iter().chain(&["--", "sh", "-c", script]))?.success()?;
        rig.run(["pull", name, "--to", &to])?.success()?;
        ensure!(std::fs::read_to_string(elsewhere.join("data/in.txt"))? == "some data", "{name}");
        ensure!(std::fs::read_to_string(elsewhere.join("data/old.txt"))? == old, "{name}");
        std::fs::remove_dir_all(&elsewhere)?;
    }
    Ok(())
}

/// The machine's memory is the script's: saving and restoring take little of it, however much there is to save.
#[test]
fn saves_take_little_memory() -> Result<()> {
    const MOST_KIB: u64 = 64 << 10;
    let rig = Rig::new()?;
    let script = "#!/bin/sh\nhead -c 100000000 /dev/urandom > large\nmkdir small\n\
        head -c 60000000 /dev/urandom | split -a 4 -b 30000 - small/\n";
    let task = rig.submit("memory", script, &[])?;
    let mut highest = 0;
    tpi_tests::eventually("the slot to end", || {
        for agent in rig.processes("agent-") {
            let path = format!("/proc/{}/status", agent.as_raw_nonzero());
            let status = std::fs::read_to_string(path).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<u64>().ok());
            highest = highest.max(kib.unwrap_or(0));
        }
        rig.slot(&task, 0).filter(|slot| slot.state.is_final())
    })?;
    ensure!(highest > 0 && highest <= MOST_KIB, "the agent took {highest} KiB");
    Ok(())
}

/// What a machine had on its disk goes with it; what shows that it was there stays until the task is destroyed.
#[test]
fn the_disk_of_a_released_machine_is_removed() -> Result<()> {
    let rig = Rig::new()?;
    let script =
        "#!/bin/sh\nmkdir -p results/locked\necho 42 > results/locked/answer\nchmod 500 results/locked\n";
    let task = rig.submit("disk", script, &["--workdir", ".", "--results", "results"])?;
    rig.wait_finished(&task)?;
    rig.wait_empty()?;
    let mut machines = 0;
    for machine in std::fs::read_dir(rig.group(&task).join("machines"))? {
        let machine = machine?.path();
        ensure!(!machine.join("root").exists(), "the disk is left in {}", machine.display());
        ensure!(machine.join("agent.log").exists(), "what the machine said stays");
        machines += 1;
    }
    ensure!(machines == 1, "{machines} machines");
    rig.run(["pull", "disk"])?.success()?;
    ensure!(std::fs::read(rig.work().join("results/locked/answer"))? == b"42\n");
    rig.run(["destroy", "disk"])?.success()?;
    ensure!(!rig.group(&task).exists(), "the whole folder of the group is removed");
    Ok(())
}

/// Nobody wants what is saved: once the script had its time to end, its machine is removed.
#[test]
fn a_destroy_without_results_does_not_wait_for_saves() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\ntrap 'echo ended; exit 0' TERM\necho begun\nwhile :; do sleep 0.05; done\n";
    let task = rig.submit("unwanted", script, &[])?;
    rig.wait_running(&task)?;
    // Something in the way of every save, which is tried again until its budget is used up.
    let saved = rig.store().join(TaskKeys::new(&task).saved(SlotIndex(0)));
    tpi_tests::eventually("saves to be impossible", || {
        std::fs::create_dir_all(saved.parent()?).ok()?;
        drop(std::fs::remove_dir_all(&saved));
        std::fs::write(&saved, "in the way").ok()
    })?;
    let done = rig.run(["destroy", "unwanted"])?.success()?;
    ensure!(!done.stderr.contains("did not end in time"), "{}", done.description());
    rig.wait_empty()
}
