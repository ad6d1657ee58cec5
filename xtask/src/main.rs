//! `cargo xtask …`: what people and CI run.

mod codegen;

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").to_owned();
    codegen::generate(&root, &root.join("proto/src/gen"))
}
