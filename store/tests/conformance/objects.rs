use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use tpi_store::{Store, StoreErrorKind};

use crate::backends::Backend;

async fn keys(store: &Store, prefix: &str, after: Option<&str>) -> Vec<String> {
    store.list(prefix, after).map_ok(|info| info.key).try_collect().await.unwrap()
}

pub(crate) async fn read_and_write(backend: Backend) {
    let store = backend.store;
    assert_eq!(store.get("a/b").await.unwrap_err().kind, StoreErrorKind::NotFound);
    assert!(store.get_versioned("a/b").await.unwrap().is_none());
    assert!(store.head("a/b").await.unwrap().is_none());
    let first = store.put("a/b", Bytes::from_static(b"one")).await.unwrap();
    let second = store.put("a/b", Bytes::from_static(b"second")).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(store.get("a/b").await.unwrap(), "second");
    assert_eq!(store.get_versioned("a/b").await.unwrap().unwrap(), (Bytes::from_static(b"second"), second));
    let info = store.head("a/b").await.unwrap().unwrap();
    assert_eq!((info.key.as_str(), info.size), ("a/b", 6));
    let pieces: Vec<Bytes> = store.get_stream("a/b").await.unwrap().try_collect().await.unwrap();
    assert_eq!(pieces.concat(), b"second");
    store.put("empty", Bytes::new()).await.unwrap();
    assert_eq!(store.get("empty").await.unwrap(), "");
}

pub(crate) async fn odd_keys_are_refused(backend: Backend) {
    let store = backend.store;
    for key in ["", "/a", "a//b", "../a", "a/../../b", "a/.", ".tpi-store/locks/00"] {
        let refused = store.put(key, Bytes::new()).await.unwrap_err();
        assert_eq!(refused.kind, StoreErrorKind::Unsupported, "{key}");
        assert_eq!(store.get(key).await.unwrap_err().kind, StoreErrorKind::Unsupported, "{key}");
        assert_eq!(store.delete(key).await.unwrap_err().kind, StoreErrorKind::Unsupported, "{key}");
    }
}

pub(crate) async fn conditional_writes(backend: Backend) {
    let store = backend.store;
    let one = store.create("slot", Bytes::from_static(b"1")).await.unwrap();
    let again = store.create("slot", Bytes::from_static(b"other")).await.unwrap_err();
    assert_eq!(again.kind, StoreErrorKind::AlreadyExists);
    let two = store.update("slot", Bytes::from_static(b"2"), &one).await.unwrap();
    let stale = store.update("slot", Bytes::from_static(b"stale"), &one).await.unwrap_err();
    assert_eq!(stale.kind, StoreErrorKind::Conflict);
    assert_eq!(store.get_versioned("slot").await.unwrap().unwrap(), (Bytes::from_static(b"2"), two.clone()));
    store.delete("slot").await.unwrap();
    let gone = store.update("slot", Bytes::from_static(b"3"), &two).await.unwrap_err();
    assert_eq!(gone.kind, StoreErrorKind::Conflict);
    assert!(store.head("slot").await.unwrap().is_none());
    store.create("slot", Bytes::from_static(b"4")).await.unwrap();
}

pub(crate) async fn one_of_many_creators_wins(backend: Backend) {
    for round in 0..5 {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..16 {
            let store = backend.store.clone();
            writers.spawn(async move {
                let result = store.create(&format!("race/{round}"), format!("{writer}").into()).await;
                (writer, result)
            });
        }
        let mut winners = Vec::new();
        for (writer, result) in writers.join_all().await {
            match result {
                Ok(_) => winners.push(writer),
                Err(e) => assert_eq!(e.kind, StoreErrorKind::AlreadyExists, "{e:?}"),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(backend.store.get(&format!("race/{round}")).await.unwrap(), winners[0].to_string());
    }
}

pub(crate) async fn counting_with_swaps_loses_nothing(backend: Backend) {
    backend.store.create("counter", Bytes::from_static(b"0")).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let store = backend.store.clone();
        writers.spawn(async move {
            let mut done = 0;
            while done < 8 {
                let (content, version) = store.get_versioned("counter").await.unwrap().unwrap();
                let value: u64 = std::str::from_utf8(&content).unwrap().parse().unwrap();
                match store.update("counter", (value + 1).to_string().into(), &version).await {
                    Ok(_) => done += 1,
                    Err(e) => assert_eq!(e.kind, StoreErrorKind::Conflict, "{e:?}"),
                }
            }
        });
    }
    writers.join_all().await;
    assert_eq!(backend.store.get("counter").await.unwrap(), "48");
}

/// Whoever swaps, creates, overwrites or deletes at the same time: a swap that succeeded saw what it replaced.
pub(crate) async fn swaps_and_overwrites_do_not_mix(backend: Backend) {
    let store = Arc::new(backend.store);
    for round in 0..20 {
        let key = format!("mix/{round}");
        let first = store.put(&key, Bytes::from_static(b"first")).await.unwrap();
        let (swap, overwrite) = tokio::join!(
            store.update(&key, Bytes::from_static(b"swapped"), &first),
            store.put(&key, Bytes::from_static(b"overwritten")),
        );
        overwrite.unwrap();
        // The overwrite came first (the swap failed) or last (it replaced the swap): never the swap on top.
        assert_eq!(store.get(&key).await.unwrap(), "overwritten", "{swap:?}");
        let last = store.get_versioned(&key).await.unwrap().unwrap().1;
        let (swap, delete, create) = tokio::join!(
            store.update(&key, Bytes::from_static(b"swapped"), &last),
            store.delete(&key),
            store.create(&key, Bytes::from_static(b"created")),
        );
        delete.unwrap();
        if create.is_ok() {
            assert_eq!(store.get(&key).await.unwrap(), "created", "{swap:?}");
        } else {
            assert!(store.head(&key).await.unwrap().is_none());
        }
    }
}

pub(crate) async fn lists_are_in_order(backend: Backend) {
    let store = backend.store;
    let mut all: Vec<String> =
        ["a/x", "a-b/x", "a/b/c", "a0", "a/y", "b/1", "a/b-c", "a/b/d"].map(str::to_owned).to_vec();
    for key in &all {
        store.put(key, Bytes::from_static(b"x")).await.unwrap();
    }
    all.sort();
    assert_eq!(keys(&store, "", None).await, all);
    assert_eq!(keys(&store, "a", None).await, ["a/b-c", "a/b/c", "a/b/d", "a/x", "a/y"]);
    assert_eq!(keys(&store, "a/", None).await, ["a/b-c", "a/b/c", "a/b/d", "a/x", "a/y"]);
    assert_eq!(keys(&store, "a", Some("a/b/c")).await, ["a/b/d", "a/x", "a/y"]);
    assert_eq!(keys(&store, "a", Some("a/b/zzz")).await, ["a/x", "a/y"]);
    assert_eq!(keys(&store, "a", Some("z")).await, [""; 0]);
    assert_eq!(keys(&store, "nothing/here", None).await, [""; 0]);
    assert_eq!(store.list_folders("").await.unwrap(), ["a", "a-b", "b"]);
    assert_eq!(store.list_folders("a").await.unwrap(), ["b"]);
    assert_eq!(store.list_folders("nothing").await.unwrap(), [""; 0]);
}

pub(crate) async fn deleting(backend: Backend) {
    let store = backend.store;
    store.delete("never/was").await.unwrap();
    assert_eq!(store.delete_prefix("never").await.unwrap(), 0);
    for i in 0..40 {
        store.put(&format!("t/1/{}/{i}", i % 3), Bytes::from_static(b"x")).await.unwrap();
    }
    store.put("t/10/kept", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(store.delete_prefix("t/1").await.unwrap(), 40);
    assert_eq!(keys(&store, "", None).await, ["t/10/kept"]);
    assert_eq!(store.list_folders("t").await.unwrap(), ["10"]);
    store.delete("t/10/kept").await.unwrap();
    store.delete("t/10/kept").await.unwrap();
    assert_eq!(store.list_folders("").await.unwrap(), [""; 0]);
}

pub(crate) async fn large_objects(backend: Backend) {
    let store = backend.store;
    let content = crate::trees::noise(25_000_000, 1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    std::fs::write(&file, &content).unwrap();
    store.put_file("large", &file).await.unwrap();
    assert_eq!(store.head("large").await.unwrap().unwrap().size, content.len() as u64);
    let pieces: Vec<Bytes> = store.get_stream("large").await.unwrap().try_collect().await.unwrap();
    assert!(pieces.concat() == content);
    store.put("large2", content.clone().into()).await.unwrap();
    assert!(store.get("large2").await.unwrap() == content);
    std::fs::write(&file, b"small").unwrap();
    store.put_file("large", &file).await.unwrap();
    assert_eq!(store.get("large").await.unwrap(), "small");
}

pub(crate) async fn json_objects(backend: Backend) {
    let store = backend.store;
    assert!(store.get_json::<Vec<u32>>("json").await.unwrap().is_none());
    store.create_json("json", &vec![1, 2]).await.unwrap();
    let (value, version) = store.get_json::<Vec<u32>>("json").await.unwrap().unwrap();
    assert_eq!(value, [1, 2]);
    store.update_json("json", &"text", &version).await.unwrap();
    let damaged = store.get_json::<Vec<u32>>("json").await.unwrap_err();
    assert_eq!((damaged.kind, damaged.key.as_str()), (StoreErrorKind::Corrupt, "json"));
}

pub(crate) async fn clock(backend: Backend) {
    let offset = backend.store.clock_offset("tasks").await.unwrap();
    assert!(offset.abs() < jiff::SignedDuration::from_secs(5), "{offset}");
    assert_eq!(keys(&backend.store, "", None).await, [""; 0]);
}
