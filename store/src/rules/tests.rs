use std::{ffi::OsStr, path::PathBuf};

use proptest::prelude::*;

use super::*;

fn rules(entries: &[&str]) -> Rules {
    let entries: Vec<String> = entries.iter().map(|&entry| entry.to_owned()).collect();
    Rules::new(&entries, false).unwrap()
}

/// Entries, then paths with whether they are excluded; a path with a slash at its end is a folder.
type Case = (&'static [&'static str], &'static [(&'static str, bool)]);

const CASES: &[Case] = &[
    (
        &[],
        &[
            ("main.tf", true),
            ("sub/main.tf", false),
            ("terraform.tfstate", true),
            ("terraform.tfstate.backup", true),
            ("sub/terraform.tfstate", false),
            (".terraform/", true),
            (".terraform/providers/x", true),
            (".terraform.lock.hcl", true),
            ("main.tf.json", false),
            (".git/config", false),
        ],
    ),
    // The built-in rules come first, whatever is asked.
    (&["+ main.tf", "+ .terraform/**"], &[("main.tf", true), (".terraform/x", true)]),
    (
        &[".dvc/cache"],
        &[
            (".dvc/cache/", true),
            (".dvc/cache/00/abc", true),
            (".dvc/config", false),
            (".dvc/cache2", false),
            ("x/.dvc/cache/y", false),
        ],
    ),
    (&["/.dvc/cache/"], &[(".dvc/cache/", true), (".dvc/cache/00/abc", true), (".dvc", false)]),
    (&["./data"], &[("data/", true), ("data/x", true), ("x/data", false), ("database", false)]),
    (
        &["*.pyc"],
        &[("a.pyc", true), ("x/a.pyc", true), ("x/y/z.pyc", true), ("a.py", false), ("odd.pyc/x", true)],
    ),
    (&["/*.pyc"], &[("a.pyc", true), ("x/a.pyc", false)]),
    (&["out/*.log"], &[("out/a.log", true), ("out/x/a.log", false), ("x/out/a.log", false)]),
    (&["out/**/*.log"], &[("out/a.log", true), ("out/x/y/a.log", true), ("a.log", false)]),
    (&["**/cache"], &[("cache/x", true), ("a/b/cache/x", true), ("a/cached", false)]),
    (&["build*/"], &[("build-1/", true), ("x/build-1/y", true), ("build.py", false)]),
    (&["- __pycache__"], &[("__pycache__/x", true), ("a/__pycache__/x", true)]),
    (&["- __pycache__/"], &[("a/__pycache__/x", true), ("__pycache__", false)]),
    (&["- /.dvc/cache/"], &[(".dvc/cache/x", true), ("x/.dvc/cache/y", false)]),
    (
        &["+ a/keep", "- a/**"],
        &[("a/keep", false), ("a/keep/below", false), ("a/other", true), ("a/b/c", true), ("a/", false)],
    ),
    (&["- a/**", "+ a/keep"], &[("a/keep", true)]),
    (&["+ *.csv", "data"], &[("data/x.csv", false), ("data/x.bin", true), ("data/deep/y.csv", false)]),
    (&["+ data/**", "- *"], &[("data/x", false), ("code.py", true)]),
    (&["{a,b}.txt"], &[("a.txt", true), ("x/b.txt", true), ("c.txt", false)]),
    (&["file[0-9]"], &[("file1", true), ("filex", false)]),
    (&["ä ö"], &[("ä ö", true), ("ä ö/x", true), ("ä", false)]),
];

#[test]
fn the_table() {
    for (entries, paths) in CASES {
        let rules = rules(entries);
        for (path, excluded) in *paths {
            let is_dir = path.ends_with('/');
            let path = path.trim_end_matches('/');
            assert_eq!(rules.excludes(Path::new(path), is_dir), *excluded, "{entries:?} on {path}");
        }
    }
}

#[test]
fn all_wrong_entries_are_named() {
    let entries = ["fine", "", "../out", "a/../../b", "/", ".", "[z", "+ ", "!keep"];
    let errors = Rules::new(&entries.map(str::to_owned), false).unwrap_err();
    let wrong: Vec<&str> = errors.iter().map(|e| e.rule.as_str()).collect();
    assert_eq!(wrong, &entries[1..]);
    assert!(errors[7].to_string().contains("+ keep"), "{}", errors[7]);
}

#[test]
fn names_that_are_not_unicode_match_by_their_bytes() {
    let rules = rules(&["*.bin", "d?ta"]);
    assert!(rules.excludes(Path::new(OsStr::from_bytes(b"x/\xff\xfe.bin")), false));
    assert!(!rules.excludes(Path::new(OsStr::from_bytes(b"\xff\xfe")), false));
}

fn path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec("[ab*.]{1,2}".prop_filter("dots", |p| p != "." && p != ".."), 1..4)
        .prop_map(|parts| parts.iter().collect())
}

fn entry() -> impl Strategy<Value = String> {
    ("(\\+ |- |)", "/?", prop::collection::vec("[ab*?]{1,3}", 1..3))
        .prop_map(|(sign, slash, parts)| format!("{sign}{slash}{}", parts.join("/")))
}

proptest! {
    /// What lies below an excluded folder is excluded when nothing says to take it along.
    #[test]
    fn folders_decide_for_what_is_below(entries in prop::collection::vec(entry(), 0..5), path in path(), below in path()) {
        let entries: Vec<String> = entries.into_iter().filter(|e| !e.starts_with('+')).collect();
        let rules = Rules::new(&entries, false).unwrap();
        if rules.excludes(&path, true) {
            prop_assert!(rules.excludes(&path.join(below), false));
        }
    }

    /// Deciding step by step while walking down gives the same as deciding about the whole path.
    #[test]
    fn walking_gives_the_same(entries in prop::collection::vec(entry(), 0..5), path in path()) {
        let rules = Rules::new(&entries, false).unwrap();
        let mut decision = Decision::NONE;
        let mut at = PathBuf::new();
        let depth = path.components().count();
        for (i, part) in path.components().enumerate() {
            at.push(part);
            let parent = decision;
            decision = decision.min(rules.own_decision(&at, i + 1 < depth));
            // A walk that turns back at a folder misses nothing.
            if rules.leaves_out(parent) && !rules.may_take_below(parent) {
                prop_assert!(rules.leaves_out(decision));
            }
        }
        prop_assert_eq!(rules.leaves_out(decision), rules.excludes(&path, false));
    }

    /// The first entry that matches decides: what follows it changes nothing.
    #[test]
    fn the_first_match_wins(first in entry(), rest in prop::collection::vec(entry(), 0..4), path in path()) {
        let alone = Rules::new(std::slice::from_ref(&first), false).unwrap();
        let mut entries = vec![first];
        entries.extend(rest);
        let all = Rules::new(&entries, false).unwrap();
        if alone.excludes(&path, false) {
            prop_assert!(all.excludes(&path, false));
        }
    }
}
