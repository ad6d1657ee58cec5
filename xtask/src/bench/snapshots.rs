//! Sending and fetching a work directory: 100,000 small files, and one file of 4 GiB; to a folder and to an
//! S3 emulator; once more after one edit. Peers: `rclone copy`, and `tar | zstd`.
//!
//! Our figures are of whole commands, `submit --detach` and `pull`; what a submit of nothing takes is a row of
//! its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::product::Product;
use super::{Bench, corpus, size};
use crate::process::{self, quietly};
use crate::{debian, moto};

/// What the script makes: a work directory that nothing has changed is not saved.
const MARK: &str = "made-by-the-script";

#[derive(Clone, Copy)]
enum Place {
    Folder,
    S3,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Folder => "file",
            Self::S3 => "s3",
        }
    }
}

pub(super) fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let folder = bench.folder("snapshots")?;
    let (small, large) = (folder.join("small"), folder.join("large"));
    std::fs::create_dir_all(&large)?;
    println!("… making the data");
    let (count, bytes) = (bench.scaled(100_000), bench.scaled(4 << 30));
    corpus::small_files(&small, count)?;
    corpus::large_file(&large.join("data.bin"), bytes)?;
    let (few, part) = (folder.join("few"), count.min(2000));
    corpus::small_files(&few, part)?;
    let emulator = moto::start(bench.root);
    let cases = [(format!("{count} small files"), &small), (format!("one file of {}", size(bytes)), &large)];
    for (what, data) in &cases {
        tar(bench, what, data, &folder);
        for place in [Place::Folder, Place::S3] {
            let endpoint = match (place, &emulator) {
                (Place::Folder, _) => String::new(),
                (Place::S3, Ok(emulator)) => emulator.endpoint.clone(),
                (Place::S3, Err(error)) => {
                    let why = format!("{error:#}");
                    bench.part(&format!("{what}, s3"), "tpi", |_| bail!("no S3 emulator: {why}"));
                    continue;
                }
            };
            match place {
                Place::S3 if *data == &small => {
                    // An object for each file: the emulator makes about a hundred a second, so a part has to do.
                    let what = format!("{part} small files");
                    rclone(bench, &what, &few, &folder, place, &endpoint);
                }
                Place::Folder | Place::S3 => rclone(bench, what, data, &folder, place, &endpoint),
            }
            product(bench, what, data, &folder, place, &endpoint);
        }
    }
    Ok(())
}

fn tar(bench: &mut Bench<'_>, what: &str, data: &Path, folder: &Path) {
    bench.part(what, "tar|zstd", |bench| {
        let (archive, back) = (folder.join("peer.tar.zst"), fresh(&folder.join("peer-tar"))?);
        let send = "tar -C \"$1\" -cf - . | zstd -q -f -T0 -o \"$2\"";
        let mut shell = Command::new("sh");
        if process::found("zstd").is_none() {
            debian::environment(&debian::unpack(bench.root, "zstd", &["zstd"], &[])?, &mut shell);
        }
        let time = timed(shell.args(["-ec", send, "sh"]).arg(data).arg(&archive))?;
        seconds(bench, &format!("{what}, file: send"), "tar|zstd", time);
        let fetch = "zstd -q -dc \"$1\" | tar -C \"$2\" -xf -";
        let mut shell = again(&shell);
        let time = timed(shell.args(["-ec", fetch, "sh"]).arg(&archive).arg(&back))?;
        seconds(bench, &format!("{what}, file: fetch"), "tar|zstd", time);
        compare(data, &back)?;
        std::fs::remove_file(archive)?;
        Ok(std::fs::remove_dir_all(back)?)
    });
}

fn rclone(bench: &mut Bench<'_>, what: &str, data: &Path, folder: &Path, place: Place, endpoint: &str) {
    let name = place.name();
    bench.part(&format!("{what}, {name}"), "rclone", |bench| {
        let program = match process::found("rclone") {
            Some(program) => program,
            None => debian::binary(&debian::unpack(bench.root, "rclone", &["rclone"], &[])?, "rclone")?,
        };
        let (there, back) = (folder.join("peer-rclone"), fresh(&folder.join("peer-back"))?);
        let copy = |from: &Path, to: &Path| {
            let mut command = Command::new(&program);
            // A bundle named for other AWS tools keeps rclone from starting.
            command.env_remove("AWS_CA_BUNDLE").env("AWS_CONFIG_FILE", "/dev/null");
            command.env("RCLONE_CONFIG", "/dev/null").args(["copy", "--transfers", "16", "--checkers", "16"]);
            command
                .envs(credentials(endpoint))
                .env("RCLONE_S3_PROVIDER", "Other")
                .env("RCLONE_S3_ENV_AUTH", "true");
            command.env("RCLONE_S3_ENDPOINT", endpoint).env("RCLONE_S3_REGION", "us-east-1");
            timed(command.arg(from).arg(to))
        };
        let remote = match place {
            Place::Folder => fresh(&there)?,
            Place::S3 => PathBuf::from(format!(":s3:{}", bucket(endpoint, "rclone")?)),
        };
        seconds(bench, &format!("{what}, {name}: send"), "rclone", copy(data, &remote)?);
        edit(data)?;
        seconds(bench, &format!("{what}, {name}: send after one edit"), "rclone", copy(data, &remote)?);
        seconds(bench, &format!("{what}, {name}: fetch"), "rclone", copy(&remote, &back)?);
        compare(data, &back)?;
        if there.exists() {
            std::fs::remove_dir_all(there)?;
        }
        Ok(std::fs::remove_dir_all(back)?)
    });
}

fn product(bench: &mut Bench<'_>, what: &str, data: &Path, folder: &Path, place: Place, endpoint: &str) {
    let name = place.name();
    bench.part(&format!("{what}, {name}"), "tpi", |bench| {
        // `destroy` has brought home what an earlier task made.
        drop(std::fs::remove_file(data.join(MARK)));
        let mut product = Product::new(bench, &format!("snapshots-{name}-{}", what.len()))?;
        if let Place::S3 = place {
            product.set("TPI_STORE", &format!("s3://{}/bench", bucket(endpoint, "product")?));
            for (name, value) in credentials(endpoint) {
                product.set(name, &value);
            }
        }
        let (nothing, back) = (fresh(&folder.join("nothing"))?, fresh(&folder.join("back"))?);
        let arguments = |workdir: &Path| {
            ["--workdir", &workdir.to_string_lossy(), "--results", ".", "--", "touch", MARK]
                .map(str::to_owned)
        };
        let mut submit = |name: &str, workdir: &Path| {
            let arguments = arguments(workdir);
            product.submit(name, &arguments.each_ref().map(String::as_str))
        };
        seconds(bench, &format!("{name}: submit of nothing"), "tpi", submit("nothing", &nothing)?);
        seconds(bench, &format!("{what}, {name}: send"), "tpi", submit("first", data)?);
        edit(data)?;
        seconds(bench, &format!("{what}, {name}: send after one edit"), "tpi", submit("second", data)?);
        // To its end, so that all of it has been saved.
        quietly(&mut product.command(&["attach", "first"]))?;
        let mut pull = product.command(&["pull", "first", "--to"]);
        seconds(bench, &format!("{what}, {name}: fetch"), "tpi", timed(pull.arg(&back))?);
        std::fs::remove_file(back.join(MARK)).context("the script's own file did not come back")?;
        compare(data, &back)?;
        Ok(std::fs::remove_dir_all(back)?)
    });
}

/// A command with the program and the environment of another.
fn again(command: &Command) -> Command {
    let mut new = Command::new(command.get_program());
    new.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    new
}

fn seconds(bench: &mut Bench<'_>, what: &str, who: &'static str, time: Duration) {
    bench.row(what, who, time.as_secs_f64(), "s", None);
}

/// Its file system has seen the data either way: what is timed is the tool, not the disk's cache.
fn timed(command: &mut Command) -> Result<Duration> {
    let started = Instant::now();
    quietly(command)?;
    Ok(started.elapsed())
}

fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    Ok(folder.to_owned())
}

/// The same files came back, by number and size; what is in them may have been edited since.
fn compare(data: &Path, back: &Path) -> Result<()> {
    fn sum(folder: &Path, files: &mut u64, bytes: &mut u64) -> Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                sum(&entry.path(), files, bytes)?;
            } else {
                *files += 1;
                *bytes += entry.metadata()?.len();
            }
        }
        Ok(())
    }
    let (mut sent, mut came) = ((0, 0), (0, 0));
    sum(data, &mut sent.0, &mut sent.1)?;
    sum(back, &mut came.0, &mut came.1)?;
    if sent != came {
        bail!("{} files of {} bytes came back of {} of {}", came.0, came.1, sent.0, sent.1);
    }
    Ok(())
}

/// Changes a few bytes in the middle of the first file.
fn edit(data: &Path) -> Result<()> {
    use std::io::{Seek as _, SeekFrom, Write as _};
    let mut path = data.to_owned();
    while path.is_dir() {
        let entries: Result<Vec<_>, _> = std::fs::read_dir(&path)?.collect();
        path = entries?.into_iter().map(|entry| entry.path()).min().context("an empty folder")?;
    }
    let mut file = std::fs::File::options().write(true).open(&path)?;
    file.seek(SeekFrom::Start(file.metadata()?.len() / 2))?;
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    Ok(file.write_all(format!("{stamp}").as_bytes())?)
}

fn credentials(endpoint: &str) -> [(&'static str, String); 4] {
    [
        ("AWS_ACCESS_KEY_ID", "bench".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "bench".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ENDPOINT_URL", endpoint.to_owned()),
    ]
}

/// A new bucket of the emulator, which lets anybody make one.
fn bucket(endpoint: &str, name: &str) -> Result<String> {
    use std::io::{Read as _, Write as _};
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let bucket = format!("{name}-{stamp}");
    let host = endpoint.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(host).context("reaching the S3 emulator")?;
    write!(stream, "PUT /{bucket} HTTP/1.0\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.lines().next().is_some_and(|line| line.contains(" 200")) {
        bail!("the S3 emulator made no bucket: {}", answer.lines().next().unwrap_or("no answer"));
    }
    Ok(bucket)
}
