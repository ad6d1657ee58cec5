//! The provider dies in the middle of an operation; the next command finishes it.

use anyhow::{Result, ensure};
use tpi_tests::Running;

use super::world::{World, quick};

/// Dies at a step of the engine; the same command again finishes.
fn dies_at(world: &World, point: &str, arguments: &[&str]) -> Result<()> {
    let mut command = world.command(arguments);
    command.env("__TPI_TEST_STOP_AT", point);
    let failed = Running::spawn(command)?.wait()?;
    ensure!(!failed.status.success(), "nothing died at {point}: {}", failed.description());
    Ok(())
}

const APPLY: [&str; 3] = ["apply", "-auto-approve", "-no-color"];
const DESTROY: [&str; 3] = ["destroy", "-auto-approve", "-no-color"];

#[test]
fn an_apply_that_died_is_finished_by_another() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    for point in ["after-record", "during-workspace", "after-clock", "before-machines", "after-machines"] {
        world.main(&quick("cut", "cut"))?;
        dies_at(&world, point, &APPLY)?;
        world.apply()?.success()?;
        let task = World::task("cut")?;
        world.rig.wait_finished(&task)?;
        ensure!(world.stored() == [task.as_str()], "{point}: {:?}", world.stored());
        world.plan_is_empty()?;
        world.destroy()?.success()?;
        ensure!(world.read("results-cut/said")? == "hello from cut\n", "{point}");
        world.nothing_left()?;
        std::fs::remove_dir_all(world.rig.work().join("results-cut"))?;
    }
    Ok(())
}

#[test]
fn a_task_without_a_name_is_found_again_too() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(&quick("anonymous", "x").replace("name  = \"x\"", ""))?;
    dies_at(&world, "after-clock", &APPLY)?;
    let stored = world.stored();
    ensure!(stored.len() == 1, "{stored:?}");
    world.apply()?.success()?;
    ensure!(world.stored() == stored, "another task was made: {:?}", world.stored());
    world.plan_is_empty()?;
    let id = world.state("anonymous")?["id"].as_str().unwrap_or_default().to_owned();
    ensure!(stored == [id.as_str()], "{id}");
    world.rig.wait_finished(&id.parse()?)?;
    world.destroy()?.success()?;
    world.nothing_left()
}

#[test]
fn a_destroy_that_died_is_finished_by_another() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    for point in
        ["after-intent", "during-results", "before-remove", "after-proof", "during-erase", "after-erase"]
    {
        world.main(&quick("cut", "undone"))?;
        world.apply()?.success()?;
        world.rig.wait_finished(&World::task("undone")?)?;
        dies_at(&world, point, &DESTROY)?;
        ensure!(world.listed()? == ["iterative_task.cut"], "{point}");
        world.destroy()?.success()?;
        ensure!(world.listed()?.is_empty(), "{point}");
        ensure!(world.read("results-cut/said")? == "hello from cut\n", "{point}");
        world.nothing_left()?;
        std::fs::remove_dir_all(world.rig.work().join("results-cut"))?;
    }
    Ok(())
}
