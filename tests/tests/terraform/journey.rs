//! From `init` to `destroy`.

use anyhow::{Result, ensure};
use serde_json::json;

use super::world::{World, quick};

#[test]
fn from_init_to_destroy_with_the_results_at_home() -> Result<()> {
    let Some(world) = World::bare()? else { return Ok(()) };
    let provider = tpi_tests::program("TPI_PROVIDER", "terraform-provider-iterative")?;
    let install = ["terraform", "install", "--provider", &provider.to_string_lossy()];
    world.rig.run(install)?.success()?.says("installed iterative/iterative")?;
    world.rig.run(install)?.success()?.says("nothing was changed")?;
    world.main(&quick("train", "journey"))?;
    world.run(&["init", "-no-color"])?.success()?;
    world.run(&["validate", "-no-color"])?.success()?;
    world.run(&["plan", "-detailed-exitcode", "-no-color"])?.code(2)?;
    let applied = world.apply()?.success()?;
    ensure!(!applied.stdout_text().contains("Warning"), "{}", applied.description());

    let task = World::task("journey")?;
    world.rig.wait_finished(&task)?;
    world.run(&["refresh", "-no-color"])?.success()?;
    let state = world.state("train")?;
    ensure!(state["id"] == task.as_str(), "{state}");
    ensure!(state["status"] == json!({"running": 0, "succeeded": 1, "failed": 0}), "{state}");
    ensure!(state["logs"] == json!(["hello from train\n"]), "{state}");
    ensure!(state["events"].as_array().is_some_and(|events| !events.is_empty()), "{state}");
    ensure!(state["addresses"] == json!([]), "{state}");
    world.plan_is_empty()?;

    world.destroy()?.success()?;
    ensure!(world.read("results-train/said")? == "hello from train\n");
    ensure!(world.listed()?.is_empty());
    world.nothing_left()?;
    world.rig.run(["terraform", "uninstall"])?.success()?.says("removed")?;
    ensure!(!world.rig.folder().join(".terraform.d/plugins/registry.terraform.io").exists());
    Ok(())
}

#[test]
fn two_tasks_of_one_file_run_side_by_side() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    // Each waits for the other, so one after the other would never end.
    let task = |own: &str, other: &str| {
        format!(
            r#"
resource "iterative_task" "{own}" {{
  cloud  = "local"
  name   = "pair-{own}"
  script = <<-END
    #!/bin/bash
    touch "{folder}/{own}"
    until [ -e "{folder}/{other}" ]; do sleep 0.05; done
    echo "met {other}"
  END
}}
"#,
            folder = world.rig.folder().display()
        )
    };
    world.main(&format!("{}{}", task("one", "two"), task("two", "one")))?;
    world.apply()?.success()?;
    for name in ["pair-one", "pair-two"] {
        world.rig.wait_finished(&World::task(name)?)?;
    }
    world.run(&["refresh", "-no-color"])?.success()?;
    ensure!(world.state("one")?["logs"] == json!(["met two\n"]));
    ensure!(world.state("two")?["logs"] == json!(["met one\n"]));
    world.destroy()?.success()?;
    world.nothing_left()
}

#[test]
fn a_state_holds_the_end_of_a_long_log_and_says_where_the_rest_is() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(
        r##"
resource "iterative_task" "long" {
  cloud       = "local"
  name        = "long"
  parallelism = 2
  script      = "#!/bin/sh\nseq 1 100000\n"
}
"##,
    )?;
    world.apply()?.success()?;
    let task = World::task("long")?;
    for slot in 0..2 {
        world.rig.wait_slot(&task, slot, "the slot to end", |s| s.state.is_final())?;
    }
    world.run(&["refresh", "-no-color"])?.success()?;
    let state = world.state("long")?;
    let logs: Vec<&str> =
        state["logs"].as_array().into_iter().flatten().filter_map(|log| log.as_str()).collect();
    ensure!(logs.len() == 2, "{}", logs.len());
    for (slot, log) in logs.iter().enumerate() {
        let first = log.lines().next().unwrap_or_default();
        ensure!(first.contains(&format!("tpi-controller logs {task} --slot {slot}")), "{first}");
        ensure!(log.ends_with("99999\n100000\n") && log.len() < 66_000, "{} bytes", log.len());
    }
    ensure!(state["status"] == json!({"running": 0, "succeeded": 2, "failed": 0}));
    world.destroy()?.success()?;
    world.nothing_left()
}

#[test]
fn results_that_were_edited_here_are_kept() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.rig.file("results-edit/said", "as sent")?;
    world.main(&quick("edit", "edited"))?;
    world.apply()?.success()?;
    world.rig.wait_finished(&World::task("edited")?)?;
    world.rig.file("results-edit/said", "mine")?;
    let destroyed = world.destroy()?.success()?;
    let told = destroyed.stdout_text();
    ensure!(told.contains("changed here and are kept"), "{}", destroyed.description());
    ensure!(world.read("results-edit/said")? == "mine");
    let beside = tpi_tests::rig::walk(&world.rig.work().join("results-edit"));
    let found =
        beside.iter().any(|path| std::fs::read_to_string(path).is_ok_and(|text| text == "hello from edit\n"));
    ensure!(found, "{beside:?}");
    world.nothing_left()
}

#[test]
fn a_destroy_that_cannot_bring_results_home_deletes_nothing() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.rig.file("project/in.txt", "x")?;
    world.main(&quick("far", "far").replace(r#"workdir = ".""#, r#"workdir = "project""#))?;
    world.apply()?.success()?;
    let task = World::task("far")?;
    world.rig.wait_finished(&task)?;
    let (here, there) = (world.rig.work().join("project"), world.rig.work().join("elsewhere"));
    std::fs::rename(&here, &there)?;
    let failed = world.destroy()?.code(1)?;
    ensure!(failed.stderr.contains("is not on this computer"), "{}", failed.description());
    ensure!(failed.stderr.contains("tpi-controller destroy --discard"), "{}", failed.description());
    ensure!(world.listed()? == ["iterative_task.far"]);
    ensure!(world.rig.slot(&task, 0).is_some(), "nothing was deleted");
    std::fs::rename(&there, &here)?;
    world.destroy()?.success()?;
    ensure!(world.read("project/results-far/said")? == "hello from far\n");
    world.nothing_left()
}
