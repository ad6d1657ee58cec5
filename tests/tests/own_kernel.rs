//! The main job on the simulated AWS, on a machine with firmware, a kernel and a disk of its own: what a container
//! cannot show is that user-data works where nothing was prepared for it.

use anyhow::{Context as _, Result, ensure};
use tpi_tests::sim::{
    room::{Hardware, Parts},
    world::Aws,
};

#[test]
fn a_machine_with_its_own_kernel_does_the_job() -> Result<()> {
    let Some(parts) = Parts::of_environment() else {
        println!("SKIPPED: no TPI_TEST_KERNEL_MACHINE (cargo xtask test --slow makes one)");
        return Ok(());
    };
    let Some(aws) = Aws::with(Hardware::Emulated(parts))? else { return Ok(()) };
    aws.rig.file("data/in.txt", "some data")?;
    let script = "#!/bin/sh\nuname -srm\nsystemd-detect-virt\nsystemctl is-active tpi-power-off.timer\n\
                  mkdir results\ncat data/in.txt > results/out.txt\n";
    aws.rig.file("train.sh", script)?;
    let place = aws.place();
    let mut words = vec!["submit", "--verbose", "--name", "kernel", "--workdir", ".", "--results", "results"];
    words.extend(place.iter().map(String::as_str));
    words.extend(["--script", "train.sh"]);
    let begun = std::time::Instant::now();
    let done = aws.rig.start(words)?.wait().and_then(|done| done.success().context(""));
    let done = done.with_context(|| aws.diagnosis())?;
    println!("submit to results: {} s\n{}", begun.elapsed().as_secs(), done.stdout_text());
    let said: Vec<&str> = std::str::from_utf8(&done.stdout)?.lines().collect();
    ensure!(said.len() == 3, "{}", done.description());
    ensure!(said[0].starts_with("Linux ") && said[0].contains("cloud"), "its kernel is its own: {}", said[0]);
    ensure!(["qemu", "amazon", "kvm"].contains(&said[1]), "{}", said[1]);
    ensure!(said[2] == "active", "the timer that ends it is armed: {}", said[2]);
    ensure!(std::fs::read(aws.rig.work().join("results/out.txt"))? == b"some data");
    aws.wait_no_machine()?;
    println!("{}", aws.diagnosis());
    let destroyed = aws.rig.run(["destroy", "kernel"])?.success()?;
    ensure!(destroyed.stderr.contains("nothing is left"), "{}", destroyed.description());
    aws.require_empty()
}
