//! Manifests and packs that somebody made to do harm.

use std::{fs, os::unix::fs::symlink, path::Path};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::tempdir;
use tokio_tar::{EntryType, Header};
use tpi_proto::id::TaskId;
use tpi_store::{
    Store,
    snapshot::{self, Manifest, Quiet, SnapshotError},
};

use crate::{
    backends::Backend,
    trees::{contents, laptop, machine, noise, options, restore, send},
};

const EMPTY: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

fn folder(path: &str) -> Value {
    json!({"path": path, "type": "folder", "mode": 0o755, "mtime": [1, 0]})
}

fn empty(path: &str) -> Value {
    json!({"path": path, "type": "file", "mode": 0o644, "mtime": [1, 0], "size": 0, "hash": EMPTY})
}

fn link(path: &str, target: &str) -> Value {
    json!({"path": path, "type": "link", "mode": 0, "mtime": [1, 0], "target": target})
}

fn lines(lines: &[Value]) -> Vec<u8> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    zstd::bulk::compress(text.as_bytes(), 1).unwrap()
}

fn manifest(objects: &[String], entries: &[Value]) -> Result<Manifest, SnapshotError> {
    let mut folders: Vec<&str> = Vec::new();
    let objects: Vec<Value> = objects
        .iter()
        .map(|key| {
            let (folder, hash) = key.rsplit_once('/').unwrap_or((key, ""));
            let at = folders.iter().position(|known| *known == folder).unwrap_or_else(|| {
                folders.push(folder);
                folders.len() - 1
            });
            json!([at, hash, 0])
        })
        .collect();
    let header =
        json!({"version": 1, "taken": "2026-01-01T00:00:00Z", "folders": folders, "objects": objects});
    Manifest::from_bytes(&lines(&[&[header], entries].concat()))
}

pub(crate) async fn manifests_that_lead_out(_backend: Backend) {
    assert!(manifest(&[], &[folder("a"), empty("a/b"), link("l", "a")]).is_ok());
    let long = "x".repeat(256);
    let deep = "d/".repeat(3000) + "x";
    for path in [
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        ".",
        "./x",
        "a/./x",
        "a//x",
        "a/",
        "",
        "a\0b",
        &long,
        &deep,
        ".tpi-restore-1/x",
    ] {
        for entry in [folder(path), empty(path), link(path, "x")] {
            let result = manifest(&[], &[folder("a"), folder("d"), entry]);
            assert!(matches!(result, Err(SnapshotError::Unsafe { .. })), "{path:?}: {result:?}");
        }
    }
    let refused = [
        // The same path twice, as what it may be.
        vec![empty("a"), empty("a")],
        vec![folder("a"), link("a", "/etc")],
        // Through a link, a file, or what is not listed.
        vec![link("a", "/etc"), empty("a/passwd")],
        vec![empty("a"), empty("a/b")],
        vec![empty("a/b")],
        vec![folder("a"), folder("a/b"), link("a/b/c", "/"), folder("a/b/c/d")],
        // Links to nothing.
        vec![link("a", "")],
        vec![link("a", "x\0y")],
        // Content that does not add up.
        vec![json!({"path": "f", "type": "file", "mode": 0, "mtime": [1, 0], "size": 5, "hash": EMPTY})],
        vec![
            json!({"path": "f", "type": "file", "mode": 0, "mtime": [1, 0], "size": 5, "hash": EMPTY, "pack": 0}),
        ],
        vec![
            json!({"path": "f", "type": "file", "mode": 0, "mtime": [1, 0], "size": 5, "hash": EMPTY, "chunks": []}),
        ],
        vec![json!({"path": "f", "type": "file", "mode": 0, "mtime": [1, 0], "hash": EMPTY})],
        vec![json!({"path": "f", "type": "file", "mode": 0, "mtime": [1, 0], "size": 0, "hash": "zz"})],
        vec![json!({"path": "f", "type": "folder", "mode": 0, "mtime": [1, 0], "size": 3})],
        vec![json!({"type": "folder", "mode": 0, "mtime": [1, 0]})],
    ];
    for entries in refused {
        let result = manifest(&[], &entries);
        assert!(matches!(result, Err(SnapshotError::Unsafe { .. })), "{entries:?}: {result:?}");
    }
    let packs = format!("tasks/{}/packs", TaskId::deterministic("test").unwrap());
    let upper = format!("cache/{}", EMPTY.to_uppercase());
    let mut objects = vec!["cache/../x".to_owned(), "cache/ABC".into(), upper];
    objects.extend(
        [
            "tasks/x/packs/0/1-1".to_owned(),
            "tasks/x".into(),
            "/etc".into(),
            "environment".into(),
            packs.clone(),
            format!("{packs}/0"),
            format!("{packs}/0/1"),
            format!("{packs}/0/1-"),
            format!("{packs}/00/1-1"),
            format!("{packs}/0/1-1/2"),
            format!("{packs}/../1-1"),
        ]
        .map(|folder| format!("{folder}/{EMPTY}")),
    );
    assert!(manifest(&[format!("{packs}/0/1-1/{EMPTY}")], &[]).is_ok());
    for object in objects {
        let result = manifest(std::slice::from_ref(&object), &[]);
        assert!(matches!(result, Err(SnapshotError::Damaged { .. })), "{object}: {result:?}");
    }
    let header = json!({"version": 1, "taken": "2026-01-01T00:00:00Z", "folders": [], "objects": []});
    assert!(Manifest::from_bytes(&lines(std::slice::from_ref(&header))).is_ok());
    let mut newer = header.clone();
    newer["version"] = 2.into();
    let whole = lines(&[header.clone(), folder("a"), folder("b")]);
    let twice = json!({"version": 1, "taken": "2026-01-01T00:00:00Z", "folders": ["cache"],
        "objects": [[0, EMPTY, 1], [0, EMPTY, 1]]});
    for bytes in [
        Vec::new(),
        b"{}".to_vec(),
        header.to_string().into_bytes(),
        lines(&[]),
        lines(&[json!({})]),
        lines(&[json!([])]),
        lines(&[newer]),
        lines(&[twice]),
        lines(&[header.clone(), header.clone()]),
        // Cut off, between lines as well.
        whole[..whole.len() - 5].to_vec(),
        zstd::bulk::compress(header.to_string().as_bytes(), 1).unwrap(),
    ] {
        let result = Manifest::from_bytes(&bytes);
        assert!(matches!(result, Err(SnapshotError::Damaged { .. })), "{bytes:?}: {result:?}");
    }
}

pub(crate) async fn links_on_the_disk_lead_nowhere(backend: Backend) {
    let store = backend.store;
    let here = tempdir().unwrap();
    fs::create_dir_all(here.path().join("a/b")).unwrap();
    fs::write(here.path().join("a/b/file"), "content").unwrap();
    let (_, manifest) = send(&store, here.path(), options()).await.unwrap();
    for options in [machine(), laptop(None)] {
        // A link where a folder has to be, at each depth: to a folder outside, or inside.
        for (at, target) in [("a", "outside"), ("a/b", "outside"), ("a", "root/inside")] {
            let all = tempdir().unwrap();
            let root = all.path().join("root");
            fs::create_dir_all(root.join("inside/b")).unwrap();
            fs::create_dir_all(all.path().join("outside/b")).unwrap();
            fs::create_dir_all(root.join(at).parent().unwrap()).unwrap();
            symlink(all.path().join(target), root.join(at)).unwrap();
            let before = contents(all.path());
            let result = snapshot::restore(&store, &manifest, &root, &options, &Quiet).await;
            assert!(matches!(result, Err(SnapshotError::Unsafe { .. })), "{at}: {result:?}");
            assert_eq!(contents(all.path()), before);
        }
    }
    // A link where a file has to be is replaced, or kept, but never written through.
    let all = tempdir().unwrap();
    fs::create_dir_all(all.path().join("root/a/b")).unwrap();
    fs::write(all.path().join("outside"), "precious").unwrap();
    let place = all.path().join("root/a/b/file");
    symlink("../../../outside", &place).unwrap();
    let report = restore(&store, &manifest, &all.path().join("root"), &laptop(None)).await.unwrap();
    assert_eq!(report.kept.len(), 1);
    assert!(fs::symlink_metadata(&place).unwrap().is_symlink());
    restore(&store, &manifest, &all.path().join("root"), &machine()).await.unwrap();
    assert!(fs::symlink_metadata(&place).unwrap().is_file());
    assert_eq!(fs::read_to_string(all.path().join("outside")).unwrap(), "precious");
}

struct Part<'a> {
    kind: EntryType,
    name: String,
    data: &'a [u8],
    /// Size that the header tells.
    size: u64,
}

fn part<'a>(data: &'a [u8]) -> Part<'a> {
    let name = format!("{}-x", blake3::hash(data).to_hex());
    Part { kind: EntryType::Regular, name, data, size: data.len() as u64 }
}

fn pack(parts: &[Part<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for part in parts {
        let mut header = Header::new_ustar();
        // Past the checks of whoever writes honestly.
        header.as_mut_bytes()[..part.name.len()].copy_from_slice(part.name.as_bytes());
        header.set_entry_type(part.kind);
        header.set_mode(0o644);
        header.set_size(part.size);
        if !matches!(part.kind, EntryType::Regular) {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(part.data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.extend([0; 1024]);
    zstd::bulk::compress(&tar, 3).unwrap()
}

/// A manifest for one file `f` of that content, said to be in that pack; both in the store.
async fn with_pack(store: &Store, content: &[u8], pack: Vec<u8>) -> Manifest {
    let key = format!("cache/{}", blake3::hash(&pack).to_hex());
    store.put(&key, pack.into()).await.unwrap();
    let file = json!({"path": "f", "type": "file", "mode": 0o644, "mtime": [1, 0], "size": content.len(),
        "hash": blake3::hash(content).to_hex().to_string(), "pack": 0});
    manifest(&[key], &[file]).unwrap()
}

async fn refuse(store: &Store, manifest: &Manifest, what: &str) {
    let all = tempdir().unwrap();
    let root = all.path().join("root");
    let result = snapshot::restore(store, manifest, &root, &machine(), &Quiet).await;
    assert!(
        matches!(result, Err(SnapshotError::Unsafe { .. } | SnapshotError::Damaged { .. })),
        "{what}: {result:?}"
    );
    assert_eq!(contents(all.path()).keys().collect::<Vec<_>>(), [Path::new("root")], "{what}");
}

pub(crate) async fn packs_that_hold_something_else(backend: Backend) {
    let store = backend.store;
    let good = b"good content".as_slice();
    let fine = with_pack(&store, good, pack(&[part(b"other"), part(good)])).await;
    restore(&store, &fine, tempdir().unwrap().path(), &machine()).await.unwrap();
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::Directory,
        EntryType::GNULongName,
        EntryType::GNUSparse,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
    ] {
        let bad = Part { kind, ..part(good) };
        refuse(&store, &with_pack(&store, good, pack(&[bad])).await, &format!("{kind:?}")).await;
    }
    for name in ["../../f", "/etc/passwd", "f", &EMPTY[..63], &format!("{EMPTY}x"), &format!("{EMPTY}-a/b")] {
        let bad = Part { name: name.to_owned(), ..part(good) };
        refuse(&store, &with_pack(&store, good, pack(&[bad])).await, name).await;
    }
    refuse(&store, &with_pack(&store, good, pack(&[])).await, "nothing").await;
    refuse(&store, &with_pack(&store, good, pack(&[part(b"x"), part(b"x"), part(good)])).await, "twice")
        .await;
    let name = part(good).name;
    let bad = Part { name: name.clone(), ..part(b"evil content") };
    refuse(&store, &with_pack(&store, good, pack(&[bad])).await, "another content").await;
    let bad = Part { name: name.clone(), ..part(b"good content and more") };
    refuse(&store, &with_pack(&store, good, pack(&[bad])).await, "more content").await;
    let bad = Part { size: 1 << 40, ..part(good) };
    refuse(&store, &with_pack(&store, good, pack(&[bad])).await, "a large size").await;
    let zeros = vec![0; 60 << 20];
    let bomb = Part { name: format!("{EMPTY}-bomb"), ..part(&zeros) };
    refuse(&store, &with_pack(&store, good, pack(&[bomb, part(good)])).await, "a bomb").await;
    let whole = pack(&[part(good)]);
    refuse(&store, &with_pack(&store, good, whole[..whole.len() / 2].to_vec()).await, "half a pack").await;
    refuse(&store, &with_pack(&store, good, b"nonsense".to_vec()).await, "nonsense").await;
    // Damaged where it lies, cut off, gone.
    let key = fine.objects().remove(0);
    let bytes = store.get(&key).await.unwrap();
    let mut flipped = bytes.to_vec();
    flipped[30] ^= 1;
    store.put(&key, flipped.into()).await.unwrap();
    refuse(&store, &fine, "a flipped bit").await;
    store.put(&key, bytes.slice(..20)).await.unwrap();
    refuse(&store, &fine, "cut off").await;
    store.put(&key, Bytes::from(vec![7; 60 << 20])).await.unwrap();
    refuse(&store, &fine, "much too large").await;
    store.delete(&key).await.unwrap();
    refuse(&store, &fine, "gone").await;
}

pub(crate) async fn chunks_that_are_something_else(backend: Backend) {
    let store = backend.store;
    let here = tempdir().unwrap();
    fs::write(here.path().join("f"), noise(10 << 20, 1)).unwrap();
    let (_, manifest) = send(&store, here.path(), options()).await.unwrap();
    let key = manifest.objects().remove(1);
    let good = store.get(&key).await.unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 100 << 20], 3).unwrap();
    for bad in [Bytes::new(), good.slice(1..), bomb.into(), vec![0; good.len()].into()] {
        store.put(&key, bad).await.unwrap();
        refuse(&store, &manifest, "a chunk").await;
    }
    store.put(&key, good).await.unwrap();
    restore(&store, &manifest, tempdir().unwrap().path(), &machine()).await.unwrap();
}

/// More than the disk can hold is refused before anything is written.
pub(crate) async fn more_than_there_is_room_for(backend: Backend) {
    let key = format!("cache/{EMPTY}");
    let chunks: Vec<(u32, u32)> = vec![(0, 8 << 20); 100_000];
    let entries: Vec<Value> = (0..10)
        .map(|i| {
            json!({"path": format!("f{i}"), "type": "file", "mode": 0o644, "mtime": [1, 0],
                "size": (8u64 << 20) * 100_000, "hash": EMPTY, "chunks": chunks})
        })
        .collect();
    let manifest = manifest(&[key], &entries).unwrap();
    let all = tempdir().unwrap();
    let result = snapshot::restore(&backend.store, &manifest, all.path(), &machine(), &Quiet).await;
    let Err(SnapshotError::NoSpace { needed, free, .. }) = result else { panic!("{result:?}") };
    assert!(needed > free);
    assert!(contents(all.path()).is_empty());
}
