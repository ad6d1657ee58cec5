//! `cargo xtask dist`: what is shipped, in `target/dist`, with checksums.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::build::{self, Profile};

pub(crate) fn run(root: &Path) -> Result<()> {
    let built = build::binaries(root, Profile::Dist)?;
    let out = root.join("target/dist");
    std::fs::create_dir_all(&out)?;
    let mut sums = Vec::new();
    for (name, from) in [
        ("tpi-agent", &built.agent),
        ("tpi-controller", &built.controller),
        ("terraform-provider-iterative", &built.provider),
    ] {
        let to = out.join(name);
        let size = std::fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        let sum = sha256(&to)?;
        println!("{:>7.2} MiB  {sum}  {}", size as f64 / f64::from(1 << 20), to.display());
        sums.push(format!("{sum}  {name}\n"));
    }
    let list = out.join("SHA256SUMS");
    std::fs::write(&list, sums.concat())?;
    println!("checksums in {} (check with `sha256sum --check SHA256SUMS`)", list.display());
    Ok(())
}

pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("reading {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex::encode(hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}
