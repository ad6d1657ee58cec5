//! `cargo xtask codegen`: writes the Rust side of the `.proto` files, which is checked in.

use std::path::Path;

use anyhow::{Context, Result};

/// Generates into `out`, a folder.
pub fn generate(root: &Path, out: &Path) -> Result<()> {
    let include = root.join("proto");
    let file = include.join("tpi/agent/v1/agent.proto");
    let descriptors = protox::compile([&file], [&include]).context("reading the .proto files")?;
    std::fs::create_dir_all(out)?;
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out)
        .compile_fds(descriptors)
        .context("generating Rust code")?;
    Ok(())
}
