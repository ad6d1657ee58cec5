//! A folder whose `main.tf` and `terraform.tfvars` are arbitrary bytes.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use tpi_controller::spec::{
    Surroundings,
    hcl::{self, Inputs},
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    // What comes before the first NUL byte is the configuration, the rest are values.
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    for name in ["main.tf", "terraform.tfvars"] {
        if let Some(part) = parts.next() {
            drop(fs::write(folder.path().join(name), part));
        }
    }
    let inputs = Inputs { folder: folder.path().to_owned(), ..Inputs::default() };
    if let Ok(read) = hcl::read(&inputs) {
        let tasks: Vec<_> = read.tasks.iter().collect();
        drop(read.check(&tasks, &inputs, &Surroundings::default()));
    }
});
