//! Stores that cannot be reached, are full, or are not there: what callers are told.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "conformance/backends.rs"]
#[expect(dead_code, reason = "shared with the conformance suite")]
mod backends;
#[path = "conformance/trees.rs"]
#[expect(dead_code, reason = "shared with the conformance suite")]
mod trees;

use std::{fs, process::Command};

use bytes::Bytes;
use futures::TryStreamExt;
use tempfile::tempdir;
use tpi_store::{
    Store, StoreError, StoreErrorKind,
    snapshot::{self, Quiet, SnapshotError},
};
use url::Url;

fn s3(url: &str, endpoint: &str) -> Result<Store, StoreError> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let settings = [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Store::open_with(&Url::parse(url).unwrap(), settings)
}

#[test]
fn urls_that_are_no_store() {
    for url in ["ftp://host/x", "s3://", "s3:///x", "s3://bucket/a//b", "http://localhost", "data:x"] {
        let error = s3(url, "http://127.0.0.1:1").unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unsupported, "{url}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    // Bound, so that nobody else has the port; not listening.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let store = s3("s3://bucket", &format!("http://{}", socket.local_addr().unwrap())).unwrap();
    let (get, create, list) = tokio::join!(
        store.get("key"),
        store.create("key", Bytes::from_static(b"x")),
        store.list("", None).try_collect::<Vec<_>>()
    );
    for error in [get.unwrap_err(), create.unwrap_err(), list.unwrap_err()] {
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error:?}");
        assert!(error.is_retryable());
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_no_missing_object() {
    let Ok(endpoint) = std::env::var("TPI_TEST_S3_ENDPOINT") else {
        eprintln!("SKIPPED: missing bucket: TPI_TEST_S3_ENDPOINT names no emulator");
        return;
    };
    let store = s3("s3://tpi-test-never-made", &endpoint).unwrap();
    for error in [
        store.get_versioned("key").await.unwrap_err(),
        store.put("key", Bytes::from_static(b"x")).await.unwrap_err(),
        store.list("", None).try_collect::<Vec<_>>().await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::Unsupported, "{error:?}");
    }
}

/// A folder that was unmounted or moved away is neither empty nor made anew.
#[tokio::test]
async fn a_folder_that_has_gone_is_unavailable() {
    let all = tempdir().unwrap();
    let folder = all.path().join("store");
    let store = Store::open(&Url::from_directory_path(&folder).unwrap()).unwrap();
    store.put("a/b", Bytes::from_static(b"x")).await.unwrap();
    fs::rename(&folder, all.path().join("moved")).unwrap();
    let errors = [
        store.get("a/b").await.unwrap_err(),
        store.get_versioned("a/b").await.unwrap_err(),
        store.head("a/b").await.unwrap_err(),
        store.put("a/b", Bytes::from_static(b"y")).await.unwrap_err(),
        store.create("c", Bytes::from_static(b"y")).await.unwrap_err(),
        store.delete("a/b").await.unwrap_err(),
        store.list("a", None).try_collect::<Vec<_>>().await.unwrap_err(),
        store.list_folders("").await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error:?}");
    }
    assert!(!folder.exists());
    fs::rename(all.path().join("moved"), &folder).unwrap();
    assert_eq!(store.get("a/b").await.unwrap(), "x");
}

/// A small file system of its own, where this process may have one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        let folder = tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tpi-test"])
            .arg(folder.path())
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_leaves_nothing_half() {
    let Some(disk) = SmallDisk::new() else {
        eprintln!("SKIPPED: full disk: this user may not mount a small one");
        return;
    };
    let url = Url::from_directory_path(disk.0.path().join("store")).unwrap();
    let store = Store::open(&url).unwrap();
    store.put("small", Bytes::from_static(b"x")).await.unwrap();
    let content = Bytes::from(trees::noise(3 << 20, 1));
    for error in [
        store.put("small", content.clone()).await.unwrap_err(),
        store.create("other", content.clone()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::NoSpace, "{error:?}");
    }
    assert_eq!(store.get("small").await.unwrap(), "x");
    assert!(store.head("other").await.unwrap().is_none());
    // What did not fit takes no room.
    store.put("fits", content.slice(..1 << 20)).await.unwrap();

    let memory = Store::memory();
    let here = tempdir().unwrap();
    fs::write(here.path().join("f"), &content).unwrap();
    let (_, manifest) = trees::send(&memory, here.path(), trees::options()).await.unwrap();
    let there = disk.0.path().join("there");
    let result = snapshot::restore(&memory, &manifest, &there, &trees::machine(), &Quiet).await;
    assert!(matches!(result, Err(SnapshotError::NoSpace { .. })), "{result:?}");
    assert!(trees::contents(&there).is_empty());
}
