//! The rules. Each has a message that names the repair.

use std::path::Path;

use anyhow::Result;

use super::Finding;
use super::code::{Named, Source};

const LONGEST: usize = 700;

/// Who may name what. The first matching ban speaks.
struct Ban {
    what: &'static str,
    /// How paths begin (`tokio`, `std::fs`; `aws_sdk_`, with the underscore, for all libraries that begin so),
    /// macros (`println!`) and keywords.
    names: &'static [&'static str],
    /// Only in files that start so; everywhere when empty.
    within: &'static [&'static str],
    /// But not in files that start so.
    except: &'static [&'static str],
    /// Tests are free of it.
    tests_may: bool,
    fix: &'static str,
}

const TASK: &[&str] = &["controller/src/task.rs", "controller/src/task/"];
const PURE: &[&str] = &["controller/src/task.rs", "controller/src/task/", "proto/src/", "cloud-init/src/"];
const SIDE_EFFECTS: &[&str] = &[
    "tokio",
    "tokio_util",
    "tokio_stream",
    "futures",
    "async_trait",
    "reqwest",
    "hyper_util",
    "rustix",
    "object_store",
    "std::env",
    "std::fs",
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
];

const BANS: &[Ban] = &[
    Ban {
        what: "I/O in a crate or module that is pure",
        names: SIDE_EFFECTS,
        within: PURE,
        except: &[],
        tests_may: true,
        fix: "take what it reads as a parameter, and do the I/O in controller/src/engine, store or agent",
    },
    Ban {
        what: "async in controller/src/task, which is pure",
        names: &["async", "await"],
        within: TASK,
        except: &[],
        tests_may: false,
        fix: "decide here, act in controller/src/engine",
    },
    Ban {
        what: "an AWS type outside its cloud's folder",
        names: &["aws_sdk_", "aws_config", "aws_smithy_", "aws_types", "aws_credential_types"],
        within: &[],
        except: &["controller/src/cloud/aws/"],
        tests_may: false,
        fix: "convert to our own type in controller/src/cloud/aws/",
    },
    Ban {
        what: "a Google Cloud type outside its cloud's folder",
        names: &["google_cloud_", "gcp_auth"],
        within: &[],
        except: &["controller/src/cloud/gcp/"],
        tests_may: false,
        fix: "convert to our own type in controller/src/cloud/gcp/",
    },
    Ban {
        what: "an Azure type outside its cloud's folder",
        names: &["azure_"],
        within: &[],
        except: &["controller/src/cloud/azure/"],
        tests_may: false,
        fix: "convert to our own type in controller/src/cloud/azure/",
    },
    Ban {
        what: "a Kubernetes type outside its cloud's folder",
        names: &["kube", "k8s_openapi"],
        within: &[],
        except: &["controller/src/cloud/k8s/"],
        tests_may: false,
        fix: "convert to our own type in controller/src/cloud/k8s/",
    },
    Ban {
        what: "a tonic type outside the edges of the wire",
        names: &["tonic"],
        within: &[],
        except: &[
            "proto/",
            "agent/src/rpc.rs",
            "agent/src/rpc/",
            "controller/src/link.rs",
            "controller/src/link/",
            "controller/src/terraform.rs",
            "controller/src/terraform/",
            "tests/",
        ],
        tests_may: false,
        fix: "convert to our own type in agent/src/rpc, controller/src/link or controller/src/terraform",
    },
    Ban {
        what: "an object_store type outside the store's backends",
        names: &["object_store"],
        within: &[],
        except: &["store/src/backend.rs", "store/src/backend/"],
        tests_may: false,
        fix: "use tpi_store::Store, or add what is missing to store/src/backend",
    },
    Ban {
        what: "printing outside the command line",
        names: &["println!", "eprintln!", "print!", "eprint!", "std::io::stdout", "io::stdout"],
        within: &["proto/src/", "store/src/", "agent/src/", "controller/src/", "cloud-init/src/"],
        except: &["controller/src/cli.rs", "controller/src/cli/"],
        tests_may: true,
        fix: "return it to controller/src/cli, which prints, or say it with tracing",
    },
];

pub(super) fn paths(source: &Source, findings: &mut Vec<Finding>) {
    let starts = |places: &[&str]| places.iter().any(|place| source.name.starts_with(place));
    let bans = BANS.iter().filter(|ban| !starts(ban.except) && (ban.within.is_empty() || starts(ban.within)));
    let bans: Vec<_> = bans.collect();
    let mut told = None;
    for named in source.paths() {
        for ban in &bans {
            if ban.tests_may && source.is_test(named.line) {
                continue;
            }
            // One line is told about once for each ban.
            if told == Some((named.line, ban.what)) {
                continue;
            }
            if let Some(name) = ban.names.iter().find(|name| begins(name, &named)) {
                told = Some((named.line, ban.what));
                findings.push(Finding {
                    file: source.name.clone(),
                    line: named.line + 1,
                    what: format!("{} (`{name}`)", ban.what),
                    fix: ban.fix.to_owned(),
                });
            }
        }
    }
}

/// `named` begins with what is banned.
fn begins(banned: &str, named: &Named) -> bool {
    let parts = &named.parts;
    let banned: Vec<_> = banned.split("::").collect();
    if parts.len() < banned.len() {
        return false;
    }
    let same = |(banned, part): (&&str, &String)| {
        if banned.ends_with('_') { part.starts_with(*banned) } else { part == banned }
    };
    if !banned.iter().zip(parts).all(same) {
        return false;
    }
    // A library alone is also an ordinary name (`let kube = …`); a keyword and a macro are not.
    let alone = parts.len() == 1 && !named.imported;
    !alone || parts[0].ends_with('!') || ["async", "await"].contains(&parts[0].as_str())
}

pub(super) fn length(source: &Source, findings: &mut Vec<Finding>) {
    let count = source.lines.len();
    let excused = source.lines.iter().any(|line| line.trim_start().starts_with("// tidy: long because "));
    if count > LONGEST && !excused {
        findings.push(Finding {
            file: source.name.clone(),
            line: 0,
            what: format!("{count} lines (more than {LONGEST})"),
            fix: "split it where its reader would, or say why not in a line `// tidy: long because …`"
                .to_owned(),
        });
    }
}

pub(super) fn name(file: &str, findings: &mut Vec<Finding>) {
    if !file.ends_with(".rs") {
        return;
    }
    let mut finding = |what: String, fix: &str| {
        findings.push(Finding { file: file.to_owned(), line: 0, what, fix: fix.to_owned() });
    };
    let empty = ["util", "utils", "common", "manager", "helper", "helpers", "misc"];
    for part in file.split('/') {
        let part = part.trim_end_matches(".rs");
        if empty.contains(&part) {
            finding(format!("the name `{part}` says nothing"), "name it after what is in it");
        }
    }
    let folder = file.strip_suffix("/mod.rs");
    let cloud = folder.and_then(|folder| folder.strip_prefix("controller/src/cloud/"));
    if folder.is_some() && cloud.is_none_or(|cloud| cloud.contains('/')) {
        finding(
            "mod.rs".to_owned(),
            "call it after its folder, beside it (foo.rs and foo/); only a cloud's own folder keeps mod.rs",
        );
    }
}

/// Which crates of ours each may depend on.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("store", &["tpi-proto"]),
    ("agent", &["tpi-proto", "tpi-store"]),
    ("cloud-init", &["tpi-proto"]),
    ("controller", &["tpi-proto", "tpi-store", "tpi-cloud-init"]),
    ("tests", &["tpi-proto", "tpi-store", "tpi-agent", "tpi-cloud-init", "tpi-controller"]),
    ("xtask", &[]),
];

pub(super) fn manifest(file: &str, text: &str, findings: &mut Vec<Finding>) {
    let Some(package) = file.strip_suffix("/Cargo.toml") else { return };
    let Some((_, allowed)) = DEPENDENCIES.iter().find(|(name, _)| *name == package) else { return };
    let mut in_dependencies = false;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        let mut section = None;
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            in_dependencies = header.ends_with("dependencies");
            // [dependencies.tpi-store]
            section = header.split_once("dependencies.").map(|(_, name)| name);
        }
        let entry = in_dependencies.then(|| line.split(['=', '.', ' ']).next()).flatten().or(section);
        let Some(name) = entry.map(|name| name.trim_matches('"')) else { continue };
        if name.starts_with("tpi-") && !allowed.contains(&name) {
            let may = if allowed.is_empty() { "none of ours".to_owned() } else { allowed.join(", ") };
            findings.push(Finding {
                file: file.to_owned(),
                line: at + 1,
                what: format!("{package} depends on {name}"),
                fix: format!("it may depend on {may}; move what both need into proto or store"),
            });
        }
    }
}

/// Test-only switches are read in one place of a crate, so that one look shows them all.
pub(super) fn hooks(sources: &[Source], findings: &mut Vec<Finding>) {
    for package in ["proto", "store", "agent", "controller", "cloud-init"] {
        let inside = format!("{package}/src/");
        let uses = |source: &&Source| {
            let shows = |(at, line): (usize, &String)| {
                !source.is_test(at) && !line.trim_start().starts_with("//") && reads_hook(line)
            };
            source.name.starts_with(&inside) && source.lines.iter().enumerate().any(shows)
        };
        let places: Vec<_> = sources.iter().filter(uses).map(|source| source.name.clone()).collect();
        if let [first, rest @ ..] = places.as_slice() {
            findings.extend(rest.iter().map(|place| Finding {
                file: place.clone(),
                line: 0,
                what: "a second place that reads `__TPI_TEST_…`".to_owned(),
                fix: format!("read it in {first} and pass it on"),
            }));
        }
    }
}

/// A whole name; the bare prefix only says which variables are handed on.
fn reads_hook(line: &str) -> bool {
    let mut hooks = line.split("\"__TPI_TEST_").skip(1);
    hooks.any(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// What `deny.toml` bans may not be in the lock file either. This needs no cargo-deny.
pub(super) fn banned_crates(root: &Path, findings: &mut Vec<Finding>) -> Result<()> {
    let (deny, lock) = (root.join("deny.toml"), root.join("Cargo.lock"));
    if !deny.exists() || !lock.exists() {
        return Ok(());
    }
    let deny = std::fs::read_to_string(deny)?;
    let list = deny
        .split_once("\ndeny = [")
        .and_then(|(_, rest)| rest.split_once("\n]"))
        .map_or("", |(list, _)| list);
    let banned: Vec<_> = list
        .lines()
        .filter_map(|line| line.split_once("crate = \"").and_then(|(_, rest)| rest.split('"').next()))
        .collect();
    for (at, line) in std::fs::read_to_string(lock)?.lines().enumerate() {
        let name = line.strip_prefix("name = \"").map(|rest| rest.trim_end_matches('"'));
        if let Some(name) = name.filter(|name| banned.contains(name)) {
            findings.push(Finding {
                file: "Cargo.lock".to_owned(),
                line: at + 1,
                what: format!("the crate {name} is banned by deny.toml, which says why"),
                fix: format!(
                    "see `cargo tree --invert {name}` for who asks for it and choose its features without"
                ),
            });
        }
    }
    Ok(())
}

/// The computer this runs on, which no file may know.
pub(super) struct Machine {
    places: Vec<String>,
}

impl Machine {
    pub(super) fn here(root: &Path) -> Self {
        let home = std::env::var("HOME").unwrap_or_default();
        let own = [root.to_string_lossy().into_owned(), home];
        // A folder right below `/` is too ordinary a name to be looked for (`/src`, `/root`).
        let places = own.into_iter().filter(|place| place.matches('/').count() > 1).map(|place| place + "/");
        Self { places: places.collect() }
    }

    pub(super) fn check(&self, file: &str, text: &str, findings: &mut Vec<Finding>) {
        if file == "Cargo.lock" {
            return;
        }
        for (at, line) in text.lines().enumerate() {
            let found =
                self.places.iter().find(|place| begins_in(line, place)).cloned().or_else(|| home_of(line));
            if let Some(place) = found {
                findings.push(Finding {
                    file: file.to_owned(),
                    line: at + 1,
                    what: format!("a path of one person's computer ({place})"),
                    fix: "make it relative to the checkout, or take it from the environment".to_owned(),
                });
            }
        }
    }
}

/// `place` stands in the line as the start of an absolute path, not inside a longer one or a URL.
fn begins_in(line: &str, place: &str) -> bool {
    let inside = |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || "._-/}".contains(c));
    line.match_indices(place).any(|(at, _)| !inside(&line[..at]))
}

fn home_of(line: &str) -> Option<String> {
    // Names that stand for anyone, and the users that cloud images and containers come with.
    let anyone = ["user", "you", "ubuntu", "someone", "runner", "$USER"];
    ["/home/", "/Users/"].iter().find_map(|homes| {
        let (at, _) = line.match_indices(homes).find(|(at, _)| begins_in(&line[*at..], homes))?;
        if !begins_in(line, homes) {
            return None;
        }
        let rest = &line[at + homes.len()..];
        let (name, _) = rest.split_once('/')?;
        let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "._-".contains(c));
        (plain && !anyone.contains(&name)).then(|| format!("{homes}{name}/"))
    })
}
