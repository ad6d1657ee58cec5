//! Processes that are killed with SIGKILL while they write to a folder store or restore from it.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "conformance/trees.rs"]
#[expect(dead_code, reason = "shared with the conformance suite")]
mod trees;

use std::{
    fs,
    path::Path,
    process::{Child, Command},
};

use futures::TryStreamExt;
use tempfile::tempdir;
use tpi_store::{
    Store,
    snapshot::{self, Manifest, PushOptions, Quiet},
};
use url::Url;

const WORK: &str = "__TPI_TEST_STORE_CHILD";

fn open(folder: &Path) -> Store {
    Store::open(&Url::from_directory_path(folder.join("store")).unwrap()).unwrap()
}

/// This test program again, doing one thing in a folder.
fn start(work: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(WORK, work)
        .current_dir(folder)
        .spawn()
        .unwrap()
}

fn push_options(folder: &Path) -> PushOptions {
    PushOptions { index: Some(folder.join("state/index")), ..trees::options() }
}

/// What the processes that are killed do.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(work) = std::env::var(WORK) else { return };
    let folder = std::env::current_dir().unwrap();
    let store = open(&folder);
    match work.as_str() {
        "push" => drop(trees::send(&store, &folder.join("data"), push_options(&folder)).await.unwrap()),
        "restore" => {
            let manifest = Manifest::from_bytes(&store.get("manifest").await.unwrap()).unwrap();
            let to = folder.join("restored");
            snapshot::restore(&store, &manifest, &to, &trees::machine(), &Quiet).await.unwrap();
        }
        "count" => loop {
            let (value, version) = store.get_json::<u64>("counter").await.unwrap().unwrap();
            store.update_json("counter", &(value + 1), &version).await.unwrap();
        },
        other => panic!("{other}"),
    }
}

fn fill(folder: &Path) {
    fs::create_dir(folder.join("data")).unwrap();
    for i in 0..60 {
        fs::write(folder.join(format!("data/{i}")), trees::noise(1 << 20, i)).unwrap();
    }
    fs::write(folder.join("data/large"), trees::noise(24 << 20, 1000)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_push_is_finished_by_the_next() {
    let folder = tempdir().unwrap();
    fill(folder.path());
    let store = open(folder.path());
    for objects in [1, 2, 4, 6] {
        let mut child = start("push", folder.path());
        while store.list("", None).try_collect::<Vec<_>>().await.unwrap().len() < objects
            && child.try_wait().unwrap().is_none()
        {
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let data = folder.path().join("data");
    let (_, manifest) = trees::send(&store, &data, push_options(folder.path())).await.unwrap();
    let back = tempdir().unwrap();
    trees::restore(&store, &manifest, back.path(), &trees::machine()).await.unwrap();
    assert_eq!(trees::contents(&data), trees::contents(back.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_is_finished_by_the_next() {
    let folder = tempdir().unwrap();
    fill(folder.path());
    let store = open(folder.path());
    let data = folder.path().join("data");
    let (_, manifest) = trees::send(&store, &data, push_options(folder.path())).await.unwrap();
    store.put("manifest", manifest.to_bytes()).await.unwrap();
    let restored = folder.path().join("restored");
    let names = || fs::read_dir(&restored).map_or(0, Iterator::count);
    for files in [1, 10, 30, 61] {
        let mut child = start("restore", folder.path());
        while names() < files && child.try_wait().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What is there is whole.
        for entry in fs::read_dir(&restored).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.metadata().unwrap().is_file() {
                assert!(fs::read(entry.path()).unwrap() == fs::read(data.join(entry.file_name())).unwrap());
            }
        }
    }
    trees::restore(&store, &manifest, &restored, &trees::machine()).await.unwrap();
    // Nothing unfinished is left.
    assert_eq!(trees::look(&data), trees::look(&restored));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_writer_holds_no_lock_and_leaves_whole_objects() {
    let folder = tempdir().unwrap();
    let store = open(folder.path());
    store.create_json("counter", &0u64).await.unwrap();
    for _ in 0..10 {
        let before = store.get_json::<u64>("counter").await.unwrap().unwrap().0;
        let mut child = start("count", folder.path());
        while store.get_json::<u64>("counter").await.unwrap().unwrap().0 < before + 5 {
            assert!(child.try_wait().unwrap().is_none());
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (value, version) = store.get_json::<u64>("counter").await.unwrap().unwrap();
        store.update_json("counter", &(value + 1), &version).await.unwrap();
    }
    let keys: Vec<_> = store.list("", None).map_ok(|info| info.key).try_collect().await.unwrap();
    assert_eq!(keys, ["counter"]);
}
