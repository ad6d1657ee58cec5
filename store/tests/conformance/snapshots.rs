use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::TryStreamExt;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use tempfile::tempdir;
use tpi_proto::id::TaskId;
use tpi_store::{
    Store,
    rules::Rules,
    snapshot::{self, Manifest, PushOptions, Quiet, SnapshotError, Space},
};

use crate::{
    backends::Backend,
    trees::{contents, laptop, look, machine, make, noise, options, restore, send, trees},
};

async fn count(store: &Store, prefix: &str) -> usize {
    store.list(prefix, None).try_collect::<Vec<_>>().await.unwrap().len()
}

pub(crate) async fn folders_come_back(backend: Backend) {
    let mut runner = TestRunner::deterministic();
    for _ in 0..10 {
        let tree = trees().new_tree(&mut runner).unwrap().current();
        let (here, there) = (tempdir().unwrap(), tempdir().unwrap());
        make(here.path(), &tree);
        let (_, manifest) = send(&backend.store, here.path(), options()).await.unwrap();
        let first = restore(&backend.store, &manifest, there.path(), &machine()).await.unwrap();
        assert_eq!(look(here.path()), look(there.path()));
        assert_eq!((first.written, first.bytes), manifest.totals());
        // Once more: everything is there.
        let again = restore(&backend.store, &manifest, there.path(), &machine()).await.unwrap();
        assert_eq!((again.written, again.unchanged), (0, first.written));
        assert_eq!(look(here.path()), look(there.path()));
        // And sent again, nothing travels.
        let (summary, same) = send(&backend.store, there.path(), options()).await.unwrap();
        assert_eq!((summary.changed, summary.send_bytes), (0, 0));
        assert!(same.same_content(&manifest));
    }
}

pub(crate) async fn one_edit_sends_that_file(backend: Backend) {
    let store = backend.store;
    let folder = tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for i in 0..50 {
        fs::write(at(&format!("small-{i}")), format!("content {i}")).unwrap();
    }
    fs::write(at("twin"), "content 1").unwrap();
    let mut large = noise(20 << 20, 1);
    fs::write(at("large"), &large).unwrap();
    let state = tempdir().unwrap();
    let options = || PushOptions { index: Some(state.path().join("deep/index")), ..options() };
    let (first, _) = send(&store, folder.path(), options()).await.unwrap();
    assert_eq!((first.files, first.changed), (52, 52));
    let (same, _) = send(&store, folder.path(), options()).await.unwrap();
    assert_eq!((same.changed, same.send_bytes), (0, 0));
    fs::write(at("small-7"), "edited").unwrap();
    let (edited, _) = send(&store, folder.path(), options()).await.unwrap();
    assert_eq!((edited.changed, edited.send_bytes), (1, 6));
    // An insertion at the front of a large file sends a chunk or two.
    large.splice(0..0, *b"inserted");
    fs::write(at("large"), &large).unwrap();
    let (inserted, manifest) = send(&store, folder.path(), options()).await.unwrap();
    assert_eq!(inserted.changed, 1);
    assert!(inserted.send_bytes < 17 << 20, "{inserted:?}");
    let back = tempdir().unwrap();
    restore(&store, &manifest, back.path(), &machine()).await.unwrap();
    assert_eq!(contents(folder.path()), contents(back.path()));
    // What another computer sent is known, too.
    let (elsewhere, _) = send(&store, back.path(), self::options_without_index()).await.unwrap();
    assert_eq!((elsewhere.changed, elsewhere.send_bytes), (0, 0));
    // Content that has expired is sent again, whatever the index says.
    store.delete_prefix("cache").await.unwrap();
    let (expired, manifest) = send(&store, folder.path(), options()).await.unwrap();
    assert_eq!(expired.changed, 52);
    let back = tempdir().unwrap();
    restore(&store, &manifest, back.path(), &machine()).await.unwrap();
    assert_eq!(contents(folder.path()), contents(back.path()));
}

fn options_without_index() -> PushOptions {
    options()
}

/// A machine saves again and again, with the last manifest as its base and no right to list the cache.
pub(crate) async fn machines_save_what_changed(backend: Backend) {
    let store = backend.store;
    let task = TaskId::deterministic("test").unwrap();
    let (laptop_folder, work) = (tempdir().unwrap(), tempdir().unwrap());
    fs::write(laptop_folder.path().join("data"), noise(9 << 20, 3)).unwrap();
    fs::write(laptop_folder.path().join("script"), "#!/bin/sh").unwrap();
    let (_, input) = send(&store, laptop_folder.path(), options()).await.unwrap();
    let shared = count(&store, "cache").await;
    restore(&store, &input, work.path(), &machine()).await.unwrap();
    let save = |base: Manifest| {
        let options = PushOptions {
            rules: Rules::everything(),
            space: Space::Save { task: task.clone(), run: "0-1".parse().unwrap(), save: 1 },
            index: None,
            base: Some(Arc::new(base)),
        };
        send(&store, work.path(), options)
    };
    let (summary, same) = save(input.clone()).await.unwrap();
    assert_eq!((summary.changed, summary.send_bytes), (0, 0));
    assert!(same.same_content(&input));
    fs::create_dir(work.path().join("results")).unwrap();
    fs::write(work.path().join("results/metrics.json"), "{}").unwrap();
    let (summary, first) = save(same).await.unwrap();
    assert_eq!((summary.changed, summary.send_bytes), (1, 2));
    assert!(!first.same_content(&input));
    fs::write(work.path().join("results/metrics.json"), "[]").unwrap();
    fs::remove_file(work.path().join("script")).unwrap();
    let (summary, second) = save(first).await.unwrap();
    assert_eq!((summary.files, summary.changed, summary.send_bytes), (2, 1, 2));
    assert_eq!(count(&store, "cache").await, shared);
    assert_eq!(count(&store, &format!("tasks/{task}/packs")).await, 2);
    let back = tempdir().unwrap();
    restore(&store, &second, back.path(), &machine()).await.unwrap();
    assert_eq!(contents(work.path()), contents(back.path()));
}

pub(crate) async fn rules_decide_what_travels(backend: Backend) {
    let store = backend.store;
    let folder = tempdir().unwrap();
    for path in [
        ".git/config",
        ".gitignore",
        ".tpiignore",
        "main.tf",
        "data/raw/keep.csv",
        "data/raw/x.bin",
        "data/ignored.by.git",
        "a/b/c.pyc",
        "a/b/c.py",
        "a/tmp/x",
        "a/tmp2/x",
        "a/.tpiignore",
        "a/note.tmp",
        "a/keep.tmp",
    ] {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, path.to_str().unwrap()).unwrap();
    }
    fs::write(folder.path().join(".gitignore"), "*.git\nconfig\n").unwrap();
    fs::write(folder.path().join(".tpiignore"), "*.tmp\na/tmp/\n").unwrap();
    fs::write(folder.path().join("a/.tpiignore"), "!keep.tmp\n").unwrap();
    let exclude = ["+ data/raw/*.csv", "data/raw", "*.pyc"].map(str::to_owned);
    for gitignore in [false, true] {
        let options = PushOptions { rules: Rules::new(&exclude, gitignore).unwrap(), ..options() };
        let (_, manifest) = send(&store, folder.path(), options).await.unwrap();
        let names: Vec<&str> = manifest.files().map(|(path, _)| path.to_str().unwrap()).collect();
        let mut expected = vec![
            ".git/config",
            ".gitignore",
            ".tpiignore",
            "a/.tpiignore",
            "a/b/c.py",
            "a/keep.tmp",
            "a/tmp2/x",
            "data/ignored.by.git",
            "data/raw/keep.csv",
        ];
        if gitignore {
            expected.retain(|name| *name != "data/ignored.by.git");
        }
        assert_eq!(names, expected);
        let back = tempdir().unwrap();
        restore(&store, &manifest, back.path(), &machine()).await.unwrap();
        assert!(!back.path().join("a/tmp").exists());
    }
}

pub(crate) async fn downloads_overwrite_nothing(backend: Backend) {
    let store = backend.store;
    let (here, there) = (tempdir().unwrap(), tempdir().unwrap());
    for name in ["same", "changed-there", "changed-here", "changed-both", "gone-here", "turned"] {
        fs::write(here.path().join(name), "sent").unwrap();
    }
    let (_, sent) = send(&store, here.path(), options()).await.unwrap();
    restore(&store, &sent, there.path(), &machine()).await.unwrap();
    for name in ["changed-there", "changed-both"] {
        fs::write(there.path().join(name), "by the machine").unwrap();
    }
    fs::write(there.path().join("new-both"), "by the machine").unwrap();
    fs::create_dir(there.path().join("results")).unwrap();
    fs::write(there.path().join("results/r"), "result").unwrap();
    fs::remove_file(there.path().join("turned")).unwrap();
    fs::create_dir(there.path().join("turned")).unwrap();
    fs::write(there.path().join("turned/inside"), "x").unwrap();
    let (_, saved) = send(&store, there.path(), options()).await.unwrap();
    for name in ["changed-here", "changed-both", "new-both", "results"] {
        fs::write(here.path().join(name), "by me").unwrap();
    }
    fs::remove_file(here.path().join("gone-here")).unwrap();

    let options = laptop(Some(sent));
    let report = restore(&store, &saved, here.path(), &options).await.unwrap();
    let text = |path: &Path| fs::read_to_string(here.path().join(path)).unwrap();
    assert_eq!(text(Path::new("same")), "sent");
    assert_eq!(text(Path::new("changed-there")), "by the machine");
    for name in ["changed-here", "changed-both", "new-both", "results"] {
        assert_eq!(text(Path::new(name)), "by me", "{name}");
    }
    assert_eq!(text(Path::new("gone-here")), "sent");
    assert_eq!(text(Path::new("turned")), "sent");
    let kept: Vec<&str> = report.kept.iter().map(|(from, _)| from.to_str().unwrap()).collect();
    assert_eq!(kept, ["changed-both", "new-both", "results", "turned"]);
    assert_eq!(report.changed_here, [PathBuf::from("changed-here")]);
    assert_eq!(report.unchanged, 1, "only `same` is what was saved");
    for (from, to) in &report.kept {
        assert!(to.to_str().unwrap().starts_with(&format!("{}.tpi-", from.display())), "{to:?}");
    }
    assert_eq!(text(&report.kept[0].1), "by the machine");
    assert_eq!(text(&report.kept[2].1.join("r")), "result");
    assert_eq!(text(&report.kept[3].1.join("inside")), "x");
    // Again: the same names, nothing new.
    let before = contents(here.path());
    let again = restore(&store, &saved, here.path(), &options).await.unwrap();
    assert_eq!((again.written, &again.kept), (0, &report.kept));
    assert_eq!(contents(here.path()), before);
    // Verification notices.
    fs::write(here.path().join(&report.kept[2].1).join("r"), "damage").unwrap();
    fs::remove_file(here.path().join("same")).unwrap();
    let differing = snapshot::verify(&saved, here.path(), &options, &report).await.unwrap();
    assert_eq!(differing, [PathBuf::from("results/r"), PathBuf::from("same")]);
}

pub(crate) async fn parts_can_be_restored(backend: Backend) {
    let store = backend.store;
    let (here, there) = (tempdir().unwrap(), tempdir().unwrap());
    for path in ["out/deep/a", "out/b.log", "out2/c", "d"] {
        let path = here.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let (_, manifest) = send(&store, here.path(), options()).await.unwrap();
    let mut options = laptop(None);
    options.only = Some("out".into());
    options.rules = Rules::new(&["*.log".to_owned()], false).unwrap();
    let report = restore(&store, &manifest, there.path(), &options).await.unwrap();
    assert_eq!(report.written, 1);
    assert_eq!(
        contents(there.path()).keys().collect::<Vec<_>>(),
        [Path::new("out"), Path::new("out/deep"), Path::new("out/deep/a")]
    );
}

pub(crate) async fn links_and_read_only_folders(backend: Backend) {
    let store = backend.store;
    let (here, there, home) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
    fs::create_dir_all(here.path().join("locked/inner")).unwrap();
    fs::write(here.path().join("locked/inner/file"), "x").unwrap();
    symlink("inner/file", here.path().join("locked/in")).unwrap();
    symlink("/etc/passwd", here.path().join("out")).unwrap();
    symlink("inner/../../../../x", here.path().join("locked/tricky")).unwrap();
    for folder in ["locked/inner", "locked"] {
        fs::set_permissions(here.path().join(folder), fs::Permissions::from_mode(0o555)).unwrap();
    }
    let plan = snapshot::plan(&store, here.path(), options(), &Quiet).await.unwrap();
    assert_eq!(plan.warnings().len(), 2, "{:?}", plan.warnings());
    let manifest = snapshot::push(&store, plan, &Quiet).await.unwrap();
    restore(&store, &manifest, there.path(), &machine()).await.unwrap();
    assert_eq!(look(here.path()), look(there.path()));
    restore(&store, &manifest, there.path(), &machine()).await.unwrap();
    assert_eq!(look(here.path()), look(there.path()));
    let report = restore(&store, &manifest, home.path(), &laptop(None)).await.unwrap();
    assert_eq!(report.skipped_links, [PathBuf::from("locked/tricky"), PathBuf::from("out")]);
    assert!(fs::symlink_metadata(home.path().join("out")).is_err());
    for root in [&here, &there, &home] {
        for folder in ["locked", "locked/inner"] {
            fs::set_permissions(root.path().join(folder), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}

/// A push that ends anywhere leaves nothing that a second one trips over.
pub(crate) async fn interrupted_pushes(backend: Backend) {
    let store = backend.store;
    let folder = tempdir().unwrap();
    for i in 0..20 {
        fs::write(folder.path().join(format!("{i}")), noise(5 << 20, i)).unwrap();
    }
    fs::write(folder.path().join("large"), noise(20 << 20, 99)).unwrap();
    let state = tempdir().unwrap();
    let options = || PushOptions { index: Some(state.path().join("index")), ..options() };
    for objects in [1, 3, 5] {
        let plan = snapshot::plan(&store, folder.path(), options(), &Quiet).await.unwrap();
        let enough = async {
            while count(&store, "").await < objects {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            manifest = snapshot::push(&store, plan, &Quiet) => { manifest.unwrap(); }
            () = enough => {}
        }
    }
    let (_, manifest) = send(&store, folder.path(), options()).await.unwrap();
    let back = tempdir().unwrap();
    restore(&store, &manifest, back.path(), &machine()).await.unwrap();
    assert_eq!(contents(folder.path()), contents(back.path()));
}

pub(crate) async fn files_that_change_meanwhile(backend: Backend) {
    let store = backend.store;
    let folder = tempdir().unwrap();
    for name in ["changes", "grows", "vanishes", "stays"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    fs::write(folder.path().join("large"), noise(10 << 20, 1)).unwrap();
    let plan = snapshot::plan(&store, folder.path(), options(), &Quiet).await.unwrap();
    fs::write(folder.path().join("changes"), "after the plan").unwrap();
    fs::write(folder.path().join("grows"), "grows and grows").unwrap();
    fs::remove_file(folder.path().join("vanishes")).unwrap();
    fs::write(folder.path().join("large"), noise(11 << 20, 2)).unwrap();
    let manifest = snapshot::push(&store, plan, &Quiet).await.unwrap();
    let back = tempdir().unwrap();
    restore(&store, &manifest, back.path(), &machine()).await.unwrap();
    let text = |name: &str| fs::read_to_string(back.path().join(name)).unwrap();
    assert_eq!(text("changes"), "after the plan");
    // Its beginning is what it was when it was hashed.
    assert_eq!(text("grows"), "grows");
    assert!(!back.path().join("vanishes").exists());
    assert!(fs::read(back.path().join("large")).unwrap() == noise(11 << 20, 2));
}

/// An edit right after a push, of the same length, is not taken for the file that was sent.
pub(crate) async fn quick_edits_are_noticed(backend: Backend) {
    let folder = tempdir().unwrap();
    let index = folder.path().join("index");
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let mut base = None;
    let mut last: Option<Manifest> = None;
    for round in 0..30 {
        fs::write(data.join("file"), format!("{round:04}")).unwrap();
        // In turn with an index and with the last manifest only.
        let index = (round % 3 != 0).then(|| index.clone());
        let (_, manifest) =
            send(&backend.store, &data, PushOptions { index, base: base.clone(), ..options() })
                .await
                .unwrap();
        let back = tempdir().unwrap();
        restore(&backend.store, &manifest, back.path(), &machine()).await.unwrap();
        assert_eq!(fs::read_to_string(back.path().join("file")).unwrap(), format!("{round:04}"));
        assert!(last.is_none_or(|last| !last.same_content(&manifest)));
        base = Some(Arc::new(manifest.clone()));
        last = Some(manifest);
    }
}

/// A store inside the folder that is sent, as in a home directory.
pub(crate) async fn the_store_is_not_sent_into_itself(_backend: Backend) {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("file"), "x").unwrap();
    let url = url::Url::from_directory_path(folder.path().join("state/store")).unwrap();
    let store = Store::open(&url).unwrap();
    for _ in 0..2 {
        let plan = snapshot::plan(&store, folder.path(), options(), &Quiet).await.unwrap();
        assert_eq!(plan.warnings().len(), 1);
        assert_eq!(snapshot::push(&store, plan, &Quiet).await.unwrap().totals(), (1, 1));
    }
}

pub(crate) async fn what_cannot_be_read_is_named(backend: Backend) {
    let missing = tempdir().unwrap().path().join("missing");
    let error = snapshot::plan(&backend.store, &missing, options(), &Quiet).await.unwrap_err();
    let SnapshotError::File { path, .. } = error else { panic!("{error:?}") };
    assert_eq!(path, missing);
}
