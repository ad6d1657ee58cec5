//! Where Terraform finds the provider without a registry: the folder of plugins in the user's home, where it looks of
//! itself. Nobody's configuration of Terraform is ever changed; where one says that providers come from elsewhere, this says
//! what has to be added to it.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// The program's name.
pub const PROGRAM: &str = "terraform-provider-iterative";
/// Lies beside the provider, so that it finds the agent; a package without it is not ours.
const AGENT: &str = "tpi-agent";
const SOURCE: [&str; 3] = ["registry.terraform.io", "iterative", "iterative"];
/// Newest minor version of the earlier provider: ours go on from there, so that `>= 0.9` and `~> 0.11` find them.
const EARLIER_MINOR: u32 = 11;

/// Why it cannot be installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Terraform looks in the home folder.
    #[error("HOME is not set, so there is no place where Terraform looks for providers")]
    NoHome,
    /// A program to install is not there.
    #[error("there is no {name} at {path:?}")]
    Missing {
        /// Which.
        name: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Somebody else has put a provider of this version there.
    #[error("{path:?} has a provider that was not installed by tpi-controller")]
    Foreign {
        /// Where.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{operation} {path:?}")]
    File {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { operation, path, source }
}

/// What there was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    /// Nothing.
    Absent,
    /// The same programs.
    Same,
    /// Other programs of the same version.
    Other,
}

/// Where it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// The folder of plugins.
    pub mirror: PathBuf,
    /// The folder of this version.
    pub package: PathBuf,
    /// As Terraform sees it.
    pub version: String,
    /// What there was before.
    pub before: Before,
    /// A configuration of Terraform that says where providers come from, and does not name the folder of plugins.
    pub hidden_by: Option<PathBuf>,
}

/// Where things are, so that nothing is hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Home folder.
    pub home: PathBuf,
    /// `$TF_CLI_CONFIG_FILE`.
    pub config: Option<PathBuf>,
}

impl Places {
    /// Of this process.
    ///
    /// # Errors
    /// [`InstallError::NoHome`].
    pub fn of_process() -> Result<Self, InstallError> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = set("HOME").ok_or(InstallError::NoHome)?;
        Ok(Self { home, config: set("TF_CLI_CONFIG_FILE").or_else(|| set("TERRAFORM_CONFIG")) })
    }

    fn mirror(&self) -> PathBuf {
        self.home.join(".terraform.d/plugins")
    }

    fn versions(&self) -> PathBuf {
        SOURCE.iter().fold(self.mirror(), |path, part| path.join(part))
    }

    /// The files that Terraform reads.
    fn configurations(&self) -> Vec<PathBuf> {
        if let Some(config) = &self.config {
            return vec![config.clone()];
        }
        let mut files = vec![self.home.join(".terraformrc")];
        let more =
            fs::read_dir(self.home.join(".terraform.d")).into_iter().flatten().flatten().map(|e| e.path());
        files.extend(more.filter(|path| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.ends_with(".tfrc") || name.ends_with(".tfrc.json")
        }));
        files
    }

    /// One that says where providers come from. It counts as right when it names the folder, however that is written.
    fn hiding(&self) -> Option<PathBuf> {
        let mirror = self.mirror();
        let names = |text: &str| text.contains(mirror.to_string_lossy().as_ref());
        self.configurations().into_iter().find(|path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let said = text
                .lines()
                .map(str::trim_start)
                .filter(|line| !line.starts_with('#') && !line.starts_with("//"));
            said.clone().any(|line| line.contains("provider_installation")) && !said.into_iter().any(names)
        })
    }
}

/// Version that Terraform is told, which is not this program's: see [`EARLIER_MINOR`].
#[must_use]
pub fn version() -> String {
    let part = |text: &str| text.parse::<u32>().unwrap_or_default();
    let (major, minor) = (part(env!("CARGO_PKG_VERSION_MAJOR")), part(env!("CARGO_PKG_VERSION_MINOR")));
    let minor = if major == 0 { minor + EARLIER_MINOR } else { minor };
    format!("{major}.{minor}.{}", env!("CARGO_PKG_VERSION_PATCH"))
}

/// As Terraform names it.
fn platform() -> String {
    let system = match env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let processor = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{system}_{processor}")
}

/// Puts the provider, and the agent beside it, where Terraform looks. Doing it again changes nothing.
///
/// # Errors
/// [`InstallError`]. What was there before stays whole.
pub fn install(places: &Places, provider: &Path, agent: &Path) -> Result<Installed, InstallError> {
    for (name, path) in [(PROGRAM, provider), (AGENT, agent)] {
        if !path.is_file() {
            return Err(InstallError::Missing { name, path: path.to_owned() });
        }
    }
    let version = version();
    let package = places.versions().join(&version).join(platform());
    let program = package.join(format!("{PROGRAM}_v{version}"));
    let files = [(provider, program), (agent, package.join(AGENT))];
    let before = match (package.is_dir(), package.join(AGENT).is_file()) {
        (false, _) => Before::Absent,
        (true, false) if is_empty(&package) => Before::Absent,
        (true, false) => return Err(InstallError::Foreign { path: package }),
        (true, true) => {
            let mut same = true;
            for (from, to) in &files {
                same &= to.is_file() && digest(from)? == digest(to)?;
            }
            if same { Before::Same } else { Before::Other }
        }
    };
    if before != Before::Same {
        fs::create_dir_all(&package).map_err(file("making", &package))?;
        // The agent first: it says that the folder is ours, should this be cut off.
        for (from, to) in files.iter().rev() {
            put(from, to)?;
        }
    }
    Ok(Installed { mirror: places.mirror(), package, version, before, hidden_by: places.hiding() })
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Never half a program: whoever runs the old one keeps it.
fn put(from: &Path, to: &Path) -> Result<(), InstallError> {
    let part = to.with_extension(format!("part-{}", std::process::id()));
    let write = || {
        let _size = fs::copy(from, &part)?;
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
        fs::rename(&part, to)
    };
    let written = write();
    if written.is_err() {
        // What was copied so far is of no use.
        drop(fs::remove_file(&part));
    }
    written.map_err(file("writing", to))
}

fn digest(path: &Path) -> Result<Vec<u8>, InstallError> {
    let mut hash = Sha256::new();
    let mut source = fs::File::open(path).map_err(file("reading", path))?;
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        let count = io::Read::read(&mut source, &mut buffer).map_err(file("reading", path))?;
        match buffer.get(..count).filter(|piece| !piece.is_empty()) {
            Some(piece) => hash.update(piece),
            None => return Ok(hash.finalize().to_vec()),
        }
    }
}

/// Removes every version that was installed by [`install`], and nothing else; gives their folders.
///
/// # Errors
/// [`InstallError::File`].
pub fn uninstall(places: &Places) -> Result<Vec<PathBuf>, InstallError> {
    let versions = places.versions();
    let entries = match fs::read_dir(&versions) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file("listing", &versions)(error)),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let version = entry.map_err(file("listing", &versions))?.path();
        let package = version.join(platform());
        if package.join(AGENT).is_file() {
            fs::remove_dir_all(&package).map_err(file("removing", &package))?;
            removed.push(package);
            // Another platform's may be in there.
            drop(fs::remove_dir(&version));
        }
    }
    // Folders that are empty now, up to the folder of plugins; the first that is not ends it.
    let mut folder = versions.as_path();
    while folder != places.mirror() && fs::remove_dir(folder).is_ok() {
        let Some(parent) = folder.parent() else { break };
        folder = parent;
    }
    removed.sort();
    Ok(removed)
}

/// What to write into a configuration that says where providers come from.
#[must_use]
pub fn to_add(mirror: &Path) -> String {
    let source = SOURCE.join("/");
    let path = mirror.display();
    format!(
        "filesystem_mirror {{\n  path    = \"{path}\"\n  include = [\"{source}\"]\n}}\n\nand, in each of its other methods:\n\nexclude = [\"{source}\"]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        folder: tempfile::TempDir,
        places: Places,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            for name in [PROGRAM, AGENT] {
                fs::write(folder.path().join(name), name).expect("writes");
            }
            let places = Places { home: folder.path().join("home"), config: None };
            fs::create_dir(&places.home).expect("makes");
            Self { folder, places }
        }

        fn install(&self) -> Result<Installed, InstallError> {
            install(&self.places, &self.folder.path().join(PROGRAM), &self.folder.path().join(AGENT))
        }
    }

    #[test]
    fn installing_twice_changes_nothing_and_removing_leaves_nothing() {
        let world = World::new();
        let first = world.install().expect("installs");
        assert_eq!((first.before, first.hidden_by.clone()), (Before::Absent, None));
        let program = first.package.join(format!("{PROGRAM}_v{}", first.version));
        assert_eq!(fs::metadata(&program).expect("is there").permissions().mode() & 0o777, 0o755);
        assert_eq!(world.install().expect("installs").before, Before::Same);
        fs::write(world.folder.path().join(PROGRAM), "newer").expect("writes");
        assert_eq!(world.install().expect("installs").before, Before::Other);
        assert_eq!(fs::read(&program).expect("reads"), b"newer");
        assert_eq!(uninstall(&world.places).expect("removes"), [first.package]);
        assert!(!world.places.mirror().join(SOURCE[0]).exists());
        assert!(uninstall(&world.places).expect("removes").is_empty());
    }

    #[test]
    fn what_others_have_put_there_is_left_alone() {
        let world = World::new();
        let package = world.places.versions().join(version()).join(platform());
        fs::create_dir_all(&package).expect("makes");
        fs::write(package.join("theirs"), "x").expect("writes");
        assert!(matches!(world.install(), Err(InstallError::Foreign { .. })));
        assert!(uninstall(&world.places).expect("removes").is_empty());
        assert!(package.join("theirs").exists());
    }

    #[test]
    fn a_configuration_that_hides_the_folder_is_named_and_not_changed() {
        let world = World::new();
        let config = world.places.home.join(".terraformrc");
        let write = |text: &str| fs::write(&config, text).expect("writes");
        write("plugin_cache_dir = \"/x\"\n# provider_installation {}\n");
        assert_eq!(world.install().expect("installs").hidden_by, None);
        let hiding = "provider_installation {\n  direct {}\n}\n";
        write(hiding);
        assert_eq!(world.install().expect("installs").hidden_by, Some(config.clone()));
        assert_eq!(fs::read_to_string(&config).expect("reads"), hiding);
        write(&format!("provider_installation {{\n{}}}\n", to_add(&world.places.mirror())));
        assert_eq!(world.install().expect("installs").hidden_by, None);
    }

    #[test]
    fn a_missing_program_is_named() {
        let world = World::new();
        fs::remove_file(world.folder.path().join(AGENT)).expect("removes");
        assert!(matches!(world.install(), Err(InstallError::Missing { name: AGENT, .. })));
    }
}
