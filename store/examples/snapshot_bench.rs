//! Times sending and restoring many small files and one large one, to a folder store or to `TPI_BENCH_STORE`.
//!
//! `cargo run --release -p tpi-store --example snapshot_bench -- [FILES] [MIB]`
#![expect(clippy::print_stdout, reason = "this is what it is for")]

use std::{fs, io::Write, path::Path, time::Instant};

use tpi_store::{
    Store,
    rules::Rules,
    snapshot::{self, Existing, OutsideLinks, PushOptions, Quiet, RestoreOptions, Space},
};

fn noise(bytes: &mut [u8], seed: u64) {
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(bytes);
}

fn peak_memory_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

async fn push(name: &str, store: &Store, root: &Path, index: &Path) -> anyhow::Result<snapshot::Manifest> {
    let options = PushOptions {
        rules: Rules::everything(),
        space: Space::Cache,
        index: Some(index.to_owned()),
        base: None,
    };
    let start = Instant::now();
    let plan = snapshot::plan(store, root, options, &Quiet).await?;
    let planned = start.elapsed();
    let summary = plan.summary();
    let manifest = snapshot::push(store, plan, &Quiet).await?;
    println!(
        "{name}: plan {planned:.2?}, all {:.2?}, {} files, {} changed, {:.1} MiB sent, peak {} MiB",
        start.elapsed(),
        summary.files,
        summary.changed,
        summary.send_bytes as f64 / 1_048_576.0,
        peak_memory_mib()
    );
    Ok(manifest)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut arguments = std::env::args().skip(1);
    let files: u64 = arguments.next().map_or(Ok(20_000), |text| text.parse())?;
    let mebibytes: u64 = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("data");
    for i in 0..files {
        let path = root.join(format!("folder-{}/file-{i}", i / 100));
        if i % 100 == 0 {
            fs::create_dir_all(path.parent().unwrap_or(&root))?;
        }
        let mut content = vec![0; 200 + usize::try_from(i * 37 % 4000)?];
        noise(&mut content[..100], i);
        fs::write(path, content)?;
    }
    fs::create_dir_all(&root)?;
    let mut large = fs::File::create(root.join("large"))?;
    let mut block = vec![0; 1 << 20];
    for i in 0..mebibytes {
        noise(&mut block, 1_000_000_000 + i);
        large.write_all(&block)?;
    }
    drop(large);
    let store = match std::env::var("TPI_BENCH_STORE") {
        Ok(url) => Store::open(&url.parse()?)?,
        Err(_) => {
            let url = url::Url::from_directory_path(folder.path().join("store"));
            Store::open(&url.map_err(|()| anyhow::anyhow!("no URL for a temporary folder"))?)?
        }
    };
    let index = folder.path().join("index");
    push("first push", &store, &root, &index).await?;
    // Older than the step of the file system's clock, so that the index may speak for the files.
    push("same again", &store, &root, &index).await?;
    fs::write(root.join("folder-0/file-7"), "edited")?;
    let manifest = push("after one edit", &store, &root, &index).await?;
    println!("manifest: {} bytes", manifest.to_bytes().len());
    let start = Instant::now();
    let options = RestoreOptions {
        only: None,
        rules: Rules::everything(),
        existing: Existing::Replace,
        outside_links: OutsideLinks::Keep,
        base: None,
    };
    let back = folder.path().join("back");
    let report = snapshot::restore(&store, &manifest, &back, &options, &Quiet).await?;
    println!("pull: {:.2?}, {} files, peak {} MiB", start.elapsed(), report.written, peak_memory_mib());
    let start = Instant::now();
    let differing = snapshot::verify(&manifest, &back, &options, &report).await?;
    println!("verify: {:.2?}, {} differ", start.elapsed(), differing.len());
    let start = Instant::now();
    let report = snapshot::restore(&store, &manifest, &back, &options, &Quiet).await?;
    println!("pull again: {:.2?}, {} written", start.elapsed(), report.written);
    Ok(())
}
