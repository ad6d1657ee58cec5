//! `cargo xtask codegen`: writes the Rust side of the `.proto` files, which is checked in, so that no build
//! needs a protocol compiler.
//!
//! The files are taken into `proto/src/*.rs` by `include!`, which `cargo fmt` does not follow: their bytes
//! are exactly what the generator writes, and comparing bytes is a fair check.

use std::path::Path;

use anyhow::{Result, bail};

#[cfg(any(test, feature = "codegen"))]
const GENERATED: &str = "proto/src/gen";
/// Below `proto/`.
#[cfg(any(test, feature = "codegen"))]
const SOURCES: [&str; 3] =
    ["tpi/agent/v1/agent.proto", "tfplugin/provider.proto", "tfplugin/controller.proto"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write nothing; fail where the checked-in files differ.
    #[arg(long)]
    check: bool,
}

/// Without the feature this starts the same command again with it.
#[cfg(not(any(test, feature = "codegen")))]
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let mut command = crate::build::cargo(root);
    command.args(["run", "--quiet", "--package", "xtask", "--features", "codegen", "--", "codegen"]);
    if options.check {
        command.arg("--check");
    }
    if !command.status()?.success() {
        bail!("codegen failed");
    }
    Ok(())
}

#[cfg(any(test, feature = "codegen"))]
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    if options.check {
        return check(root);
    }
    generate(root, &root.join(GENERATED))
}

/// Generates into `out`, a folder.
#[cfg(any(test, feature = "codegen"))]
fn generate(root: &Path, out: &Path) -> Result<()> {
    use anyhow::Context as _;

    let include = root.join("proto");
    let files = SOURCES.map(|source| include.join(source));
    let descriptors = protox::compile(&files, [&include]).context("reading the .proto files")?;
    std::fs::create_dir_all(out)?;
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out)
        .compile_fds(descriptors)
        .context("generating Rust code")?;
    Ok(())
}

/// Fails, with the command that repairs it, where the checked-in files are not what the generator writes.
#[cfg(any(test, feature = "codegen"))]
fn check(root: &Path) -> Result<()> {
    let fresh = tempfile::tempdir()?;
    generate(root, fresh.path())?;
    let (expected, found) = (contents(fresh.path())?, contents(&root.join(GENERATED))?);
    if expected != found {
        let names: Vec<_> = expected
            .keys()
            .chain(found.keys())
            .filter(|name| expected.get(*name) != found.get(*name))
            .map(|name| name.to_string_lossy().into_owned())
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        bail!(
            "{GENERATED} is not what the .proto files generate ({}): run `cargo xtask codegen` and commit what it writes",
            names.join(", ")
        );
    }
    Ok(())
}

#[cfg(any(test, feature = "codegen"))]
fn contents(folder: &Path) -> Result<std::collections::BTreeMap<std::ffi::OsString, Vec<u8>>> {
    std::fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name(), std::fs::read(entry.path())?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{check, generate};

    #[test]
    fn checked_in_code_is_what_the_proto_files_generate() {
        if let Err(error) = check(&crate::root()) {
            panic!("{error:#}");
        }
    }

    #[test]
    fn a_stale_file_is_found_and_the_repair_is_named() {
        let copy = tempfile::tempdir().unwrap();
        for source in super::SOURCES {
            let to = copy.path().join("proto").join(source);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(crate::root().join("proto").join(source), to).unwrap();
        }
        let generated = copy.path().join(super::GENERATED);
        generate(copy.path(), &generated).unwrap();
        check(copy.path()).unwrap();

        append(&generated.join("tpi.agent.v1.rs"), "// by hand\n");
        let error = check(copy.path()).unwrap_err().to_string();
        assert!(error.contains("tpi.agent.v1.rs") && error.contains("cargo xtask codegen"), "{error}");
    }

    fn append(path: &Path, text: &str) {
        let mut content = std::fs::read_to_string(path).unwrap();
        content.push_str(text);
        std::fs::write(path, content).unwrap();
    }
}
