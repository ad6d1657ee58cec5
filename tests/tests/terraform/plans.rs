//! What is checked before anything is done, and what a change comes to.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::world::{HEAD, World, quick};

/// The schema, as Terraform tells it; a change of it is a change of what people may write.
#[test]
fn the_schema_is_what_configurations_rely_on() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main("")?;
    let told = world.run(&["providers", "schema", "-json"])?.success()?.json()?;
    let schemas = told["provider_schemas"].as_object().context("schemas")?;
    let ours = schemas.values().next().context("a schema")?;
    let golden: Value = serde_json::from_str(include_str!("schema.json"))?;
    ensure!(*ours == golden, "tests/tests/terraform/schema.json has to become:\n{ours:#}");
    Ok(())
}

#[test]
fn all_mistakes_are_told_at_once_each_at_its_line() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(
        r#"
resource "iterative_task" "wrong" {
  cloud       = "local"
  script      = "echo no shebang"
  machine     = "giant"
  timeout     = 0
  parallelism = 0
  environment = { "A B" = "x" }
  storage {
    workdir = "."
    output  = "../out"
  }
}
"#,
    )?;
    let told = world.run(&["validate", "-json"])?.code(1)?.json()?;
    let text = world.read("main.tf")?;
    let mut at = Vec::new();
    for diagnostic in
        told["diagnostics"].as_array().into_iter().flatten().filter(|d| d["severity"] == "error")
    {
        let line = diagnostic["range"]["start"]["line"]
            .as_u64()
            .with_context(|| format!("no line: {diagnostic}"))?;
        let line = text.lines().nth(usize::try_from(line)?.saturating_sub(1)).unwrap_or_default();
        at.push(line.split_whitespace().next().unwrap_or_default().to_owned());
        ensure!(
            diagnostic["detail"].as_str().is_some_and(|detail| detail.contains("hint: ")),
            "{diagnostic}"
        );
    }
    at.sort();
    ensure!(
        at == ["environment", "machine", "output", "parallelism", "script", "timeout"],
        "{at:?}: {told:#}"
    );
    Ok(())
}

#[test]
fn what_is_not_known_yet_is_checked_when_it_is() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(
        r##"
resource "terraform_data" "later" {
  input = "#!/bin/sh\necho later"
}
resource "iterative_task" "unknown" {
  cloud       = "local"
  name        = "unknown"
  script      = terraform_data.later.output
  environment = { A = terraform_data.later.id, B = "b" }
  storage {
    workdir = terraform_data.later.id == "" ? "" : "."
  }
}
"##,
    )?;
    world.run(&["plan", "-detailed-exitcode", "-no-color"])?.code(2)?;
    world.apply()?.success()?;
    world.rig.wait_finished(&World::task("unknown")?)?;
    world.plan_is_empty()?;
    ensure!(
        world.state("unknown")?["logs"] == json!(["later\n"]) || world.run(&["refresh"])?.status.success()
    );
    world.destroy()?.success()?;
    world.nothing_left()
}

#[test]
fn output_changes_in_place_and_a_script_makes_a_new_task() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let file = quick("change", "change");
    world.main(&file)?;
    world.apply()?.success()?;
    let task = World::task("change")?;
    world.rig.wait_finished(&task)?;
    let file = file.replace(r#"output  = "results-change""#, "output  = \".\"\n    exclude = [\"main.tf\"]");
    world.main(&file)?;
    let planned = world.run(&["plan", "-detailed-exitcode", "-no-color"])?.code(2)?;
    ensure!(
        planned.stdout_text().contains("0 to add, 1 to change, 0 to destroy"),
        "{}",
        planned.description()
    );
    world.apply()?.success()?;
    let record = std::fs::read(world.rig.store().join(tpi_record(&task)))?;
    let record: Value = serde_json::from_slice(&record)?;
    ensure!(record["spec"]["storage"]["output"] == ".", "{record:#}");
    world.plan_is_empty()?;

    world.main(&file.replace("hello", "goodbye"))?;
    let planned = world.run(&["plan", "-detailed-exitcode", "-no-color"])?.code(2)?;
    let text = planned.stdout_text();
    ensure!(text.contains("must be replaced") && text.contains("# forces replacement"), "{text}");
    world.apply()?.success()?;
    ensure!(world.read("results-change/said")? == "hello from change\n");
    world.rig.wait_finished(&task)?;
    world.destroy()?.success()?;
    world.nothing_left()
}

fn tpi_record(task: &tpi_proto::id::TaskId) -> String {
    tpi_store::layout::TaskKeys::new(task).record()
}

#[test]
fn a_task_that_is_destroyed_elsewhere_leaves_the_state() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(&quick("gone", "gone"))?;
    world.apply()?.success()?;
    world.rig.wait_finished(&World::task("gone")?)?;
    world.rig.run(["destroy", "gone"])?.success()?;
    world.run(&["plan", "-detailed-exitcode", "-no-color"])?.code(2)?;
    world.run(&["refresh", "-no-color"])?.success()?;
    ensure!(world.listed()?.is_empty());
    world.destroy()?.success()?;
    Ok(())
}

#[test]
fn a_task_is_imported_and_not_made_anew() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(&quick("there", "imported"))?;
    let script =
        "#!/bin/bash\nmkdir -p results-there\necho \"$GREETING from there\" | tee results-there/said\n";
    let flags = ["--workdir", ".", "--results", "results-there", "--environment", "GREETING=hello"];
    let task = world.rig.submit("imported", script, &flags)?;
    world.rig.wait_finished(&task)?;
    world.run(&["import", "-no-color", "iterative_task.there", task.as_str()])?.success()?;
    let planned = world.run(&["plan", "-no-color"])?.success()?;
    let text = planned.stdout_text();
    ensure!(!text.contains("replaced") && text.contains("0 to add, 1 to change, 0 to destroy"), "{text}");
    world.apply()?.success()?;
    world.plan_is_empty()?;
    ensure!(world.state("there")?["id"] == task.as_str());
    world.destroy()?.success()?;
    ensure!(world.read("results-there/said")? == "hello from there\n");
    world.nothing_left()
}

#[test]
fn one_name_for_two_resources_is_refused() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.main(&format!("{}{}", quick("one", "same"), quick("two", "same")))?;
    let failed = world.apply()?.code(1)?;
    ensure!(failed.stderr.contains("two resources are the same task"), "{}", failed.description());
    world.destroy()?.success()?;
    world.nothing_left()
}

#[test]
fn a_name_that_another_task_has_is_refused_and_that_task_is_left_alone() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let task = world.rig.submit("taken", "#!/bin/sh\necho other\n", &[])?;
    world.rig.wait_finished(&task)?;
    world.main(&quick("mine", "taken"))?;
    let failed = world.apply()?.code(1)?;
    ensure!(failed.stderr.contains("there is a task"), "{}", failed.description());
    ensure!(world.listed()?.is_empty(), "a task of somebody else's is not ours to destroy");
    ensure!(world.rig.slot(&task, 0).is_some());
    world.rig.run(["destroy", "taken"])?.success()?;
    world.nothing_left()
}

#[test]
fn a_failure_beside_another_task_of_that_name_does_not_make_it_ours() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    let task = world.rig.submit("theirs", "#!/bin/sh\nexec sleep 600\n", &[])?;
    world.rig.wait_running(&task)?;
    world.main(&quick("mine", "theirs"))?;
    // The first thing that is done to a task that runs is to make oneself known to it.
    let (key, away) = (world.rig.state().join("identity"), world.rig.state().join("away"));
    std::fs::rename(&key, &away)?;
    std::fs::write(&key, "in the way")?;
    world.apply()?.code(1)?;
    ensure!(world.listed()?.is_empty(), "a task of somebody else's is not ours to destroy");
    std::fs::remove_file(&key)?;
    std::fs::rename(&away, &key)?;
    world.rig.wait_running(&task)?;
    world.rig.run(["destroy", "theirs"])?.success()?;
    world.nothing_left()
}

#[test]
fn the_file_of_the_tutorial_plans() -> Result<()> {
    let Some(world) = World::new()? else { return Ok(()) };
    world.rig.file("src/x", "")?;
    // As published, but for the cloud.
    let file = r#"
resource "iterative_task" "tpi-examples-basic" {
    cloud   = "local"
    region  = "us-east"
    machine = "l"
    name    = "tpi-examples-basic"

    storage {
        workdir = "src"
        output = "results"
    }
    environment = {
        TF_CPP_MIN_LOG_LEVEL = "3"
    }
    script = <<-END
        #!/bin/bash
        sudo apt-get update -q
        sudo apt-get install -yq python3-pip
        pip3 install -r requirements.txt
        python3 train.py --output results/metrics.json
    END
}
"#;
    world.rig.file("main.tf", format!("{HEAD}{file}"))?;
    let planned = world.run(&["plan", "-detailed-exitcode", "-no-color"])?.code(2)?;
    ensure!(!planned.stdout_text().contains("Warning: in"), "{}", planned.description());
    Ok(())
}
