//! The provider dies in the middle of an operation; the next command finishes it.

use anyhow::{Result, ensure};
use rustix::process::{Signal, kill_process};
use tpi_proto::id::TaskId;
use tpi_tests::{Running, eventually};

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

/// Holds an apply up when its machines are about to be ordered: another program seems to work on the group.
fn hold(world: &World, task: &TaskId) -> Result<std::fs::File> {
    let path = world.rig.state().join("local/.locks").join(task.as_str());
    std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path)?;
    file.lock()?;
    Ok(file)
}

/// Starts an apply, and waits until it is held up.
fn held_up(world: &World, task: &TaskId) -> Result<Running> {
    let applying = Running::spawn(world.command(&APPLY))?;
    let wants_machines = || {
        let bytes =
            std::fs::read(world.rig.store().join(tpi_store::layout::TaskKeys::new(task).record())).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        (record["intent"] == "run").then_some(())
    };
    eventually("the apply to want machines", wants_machines)?;
    Ok(applying)
}

#[test]
fn ctrl_c_leaves_a_task_in_the_state_that_the_next_apply_finishes() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(&quick("interrupted", "interrupted"))?;
    let task = World::task("interrupted")?;
    let lock = hold(&world, &task)?;
    let applying = held_up(&world, &task)?;
    applying.signal(Signal::INT)?;
    let told = applying.wait()?;
    ensure!(told.stdout_text().contains("was interrupted"), "{}", told.description());
    ensure!(world.listed()? == ["iterative_task.interrupted"]);
    drop(lock);
    let applied = world.apply()?.success()?;
    ensure!(applied.stdout_text().contains("0 added, 1 changed, 0 destroyed"), "{}", applied.description());
    world.rig.wait_finished(&task)?;
    world.plan_is_empty()?;
    world.destroy()?.success()?;
    ensure!(world.read("results-interrupted/said")? == "hello from interrupted\n");
    world.nothing_left()
}

#[test]
fn ctrl_c_leaves_a_task_in_the_state_that_destroy_removes() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(&quick("interrupted", "removed"))?;
    let task = World::task("removed")?;
    let lock = hold(&world, &task)?;
    let applying = held_up(&world, &task)?;
    applying.signal(Signal::INT)?;
    let _told = applying.wait()?;
    drop(lock);
    world.destroy()?.success()?;
    ensure!(world.listed()?.is_empty());
    world.nothing_left()
}

#[test]
fn a_provider_that_is_killed_leaves_a_task_that_the_next_apply_adopts() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(&quick("killed", "killed"))?;
    let task = World::task("killed")?;
    let lock = hold(&world, &task)?;
    let applying = held_up(&world, &task)?;
    for provider in world.rig.processes("terraform-provi") {
        kill_process(provider, Signal::KILL)?;
    }
    let _told = applying.wait()?.code(1)?;
    drop(lock);
    world.apply()?.success()?;
    world.rig.wait_finished(&task)?;
    world.plan_is_empty()?;
    world.destroy()?.success()?;
    world.nothing_left()
}

#[test]
fn a_provider_does_not_outlive_a_terraform_that_is_killed() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(&quick("orphan", "orphan"))?;
    let task = World::task("orphan")?;
    let lock = hold(&world, &task)?;
    let applying = held_up(&world, &task)?;
    applying.signal(Signal::KILL)?;
    let _told = applying.wait()?;
    world.rig.wait_empty()?;
    drop(lock);
    // Terraform's own lock went with it.
    world.apply()?.success()?;
    world.rig.wait_finished(&task)?;
    world.destroy()?.success()?;
    world.nothing_left()
}
