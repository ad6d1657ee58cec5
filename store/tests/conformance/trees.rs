//! Folders to send, and what is found in them.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::{
        ffi::OsStringExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use proptest::prelude::*;
use tpi_store::{
    Store,
    rules::Rules,
    snapshot::{
        self, Existing, Manifest, OutsideLinks, PlanSummary, PushOptions, Quiet, RestoreOptions,
        RestoreReport, SnapshotError, Space,
    },
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Folder,
    File(Vec<u8>),
    Link(PathBuf),
}

/// Mode, time and content by path.
pub(crate) type Tree = BTreeMap<PathBuf, (u32, (i64, i64), Node)>;

pub(crate) fn look(root: &Path) -> Tree {
    fn walk(root: &Path, folder: &Path, tree: &mut Tree) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let node = if meta.is_symlink() {
                Node::Link(fs::read_link(&path).unwrap())
            } else if meta.is_dir() {
                walk(root, &path, tree);
                Node::Folder
            } else {
                Node::File(fs::read(&path).unwrap())
            };
            let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 };
            let name = path.strip_prefix(root).unwrap().to_owned();
            tree.insert(name, (mode, (meta.mtime(), meta.mtime_nsec()), node));
        }
    }
    let mut tree = Tree::new();
    walk(root, root, &mut tree);
    tree
}

/// Contents only.
pub(crate) fn contents(root: &Path) -> BTreeMap<PathBuf, Node> {
    look(root).into_iter().map(|(path, (_, _, node))| (path, node)).collect()
}

/// Names, some of them not UTF-8, few enough to meet.
fn name() -> impl Strategy<Value = OsString> {
    prop_oneof![
        4 => "[ab .#~]{1,3}".prop_filter("dots", |n| n != "." && n != "..").prop_map(OsString::from),
        1 => Just(OsString::from_vec(vec![0xff, 0xfe, b'x'])),
        1 => Just(OsString::from("ünïcode\nand \"more\"")),
        1 => "[a-z]{200}".prop_map(OsString::from),
    ]
}

fn node() -> impl Strategy<Value = (Node, u32, u32)> {
    let bytes = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..2000),
        1 => Just(b"the same content".to_vec()),
        1 => (8_388_608usize..9_500_000, any::<u8>()).prop_map(|(size, seed)| noise(size, u32::from(seed))),
    ];
    let node = prop_oneof![
        2 => Just(Node::Folder),
        5 => bytes.prop_map(Node::File),
        1 => prop_oneof![Just("a"), Just("../b"), Just("nowhere"), Just("a/b")]
            .prop_map(|target| Node::Link(target.into())),
    ];
    (
        node,
        prop_oneof![Just(0o644u32), Just(0o755), Just(0o444), Just(0o500), Just(0o600)],
        0u32..1_000_000_000,
    )
}

/// Path; content, mode and nanoseconds of the time.
pub(crate) type Wish = (Vec<OsString>, (Node, u32, u32));

pub(crate) fn trees() -> impl Strategy<Value = Vec<Wish>> {
    prop::collection::vec((prop::collection::vec(name(), 1..4), node()), 0..25)
}

/// Makes what can be made of it: names that clash are passed over.
pub(crate) fn make(root: &Path, tree: &[Wish]) {
    let mut folders = Vec::new();
    for (path, (node, mode, nanos)) in tree {
        let path = root.join(path.iter().collect::<PathBuf>());
        if fs::create_dir_all(path.parent().unwrap()).is_err() || fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match node {
            Node::Folder => {
                fs::create_dir(&path).unwrap();
                folders.push((path, *mode));
            }
            Node::File(content) => {
                fs::write(&path, content).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, *nanos);
                fs::File::open(&path).unwrap().set_modified(time).unwrap();
            }
            Node::Link(target) => symlink(target, &path).unwrap(),
        }
    }
    for (path, mode) in folders {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o300)).unwrap();
    }
}

pub(crate) fn noise(size: usize, seed: u32) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn options() -> PushOptions {
    PushOptions { rules: Rules::everything(), space: Space::Cache, index: None, base: None }
}

pub(crate) async fn send(
    store: &Store,
    root: &Path,
    options: PushOptions,
) -> Result<(PlanSummary, Manifest), SnapshotError> {
    let plan = snapshot::plan(store, root, options, &Quiet).await?;
    let summary = plan.summary();
    let manifest = snapshot::push(store, plan, &Quiet).await?;
    // What is stored is what comes back.
    let back = Manifest::from_bytes(&manifest.to_bytes())?;
    assert_eq!(back, manifest);
    Ok((summary, back))
}

pub(crate) fn machine() -> RestoreOptions {
    RestoreOptions {
        only: None,
        rules: Rules::everything(),
        existing: Existing::Replace,
        outside_links: OutsideLinks::Keep,
        base: None,
    }
}

pub(crate) fn laptop(base: Option<Manifest>) -> RestoreOptions {
    RestoreOptions {
        existing: Existing::KeepBoth,
        outside_links: OutsideLinks::Skip,
        base: base.map(Arc::new),
        ..machine()
    }
}

pub(crate) async fn restore(
    store: &Store,
    manifest: &Manifest,
    root: &Path,
    options: &RestoreOptions,
) -> Result<RestoreReport, SnapshotError> {
    let report = snapshot::restore(store, manifest, root, options, &Quiet).await?;
    let differing = snapshot::verify(manifest, root, options, &report).await?;
    assert!(differing.is_empty(), "{differing:?}");
    Ok(report)
}
