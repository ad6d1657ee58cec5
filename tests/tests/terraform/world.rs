//! A project folder, and `terraform` in it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tpi_proto::id::TaskId;
use tpi_tests::{Finished, Rig, Running, program};

/// What every file begins with.
pub(crate) const HEAD: &str = r#"
terraform {
  required_providers {
    iterative = {
      source = "iterative/iterative",
    }
  }
}

provider "iterative" {}
"#;

/// A test's world with Terraform in it.
pub(crate) struct World {
    pub(crate) rig: Rig,
    terraform: PathBuf,
    /// A configuration of Terraform; without one it finds the provider where it is installed.
    config: Option<PathBuf>,
}

impl World {
    /// Where the provider is used right from where it was built; `None`, loudly, without Terraform.
    pub(crate) fn new() -> Result<Option<Self>> {
        let Some(mut world) = Self::bare()? else { return Ok(None) };
        let provider = program("TPI_PROVIDER", "terraform-provider-iterative")?;
        let folder = provider.parent().context("the provider is in a folder")?;
        let config = world.rig.folder().join("terraform.rc");
        let text = format!(
            "provider_installation {{\n  dev_overrides {{\n    \"iterative/iterative\" = \"{}\"\n  }}\n  direct {{}}\n}}\n",
            folder.display()
        );
        std::fs::write(&config, text)?;
        world.config = Some(config);
        Ok(Some(world))
    }

    /// Where nothing is installed.
    #[expect(clippy::print_stdout, reason = "who skips says so")]
    pub(crate) fn bare() -> Result<Option<Self>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|folder| folder.join("terraform")).find(|p| p.is_file());
        let Some(terraform) = found else {
            println!("SKIPPED: terraform is not installed");
            return Ok(None);
        };
        Ok(Some(Self { rig: Rig::new()?, terraform, config: None }))
    }

    /// Writes `main.tf`.
    pub(crate) fn main(&self, resources: &str) -> Result<()> {
        self.rig.file("main.tf", format!("{HEAD}{resources}")).map(drop)
    }

    /// A command that reaches for nothing outside.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.rig.other(&self.terraform, arguments);
        command.env("CHECKPOINT_DISABLE", "1").env("TF_IN_AUTOMATION", "1");
        if let Some(config) = &self.config {
            command.env("TF_CLI_CONFIG_FILE", config);
        } else {
            // Beside the provider, where it is installed.
            command.env_remove("TPI_AGENT");
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Finished> {
        Running::spawn(self.command(arguments))?.wait()
    }

    pub(crate) fn apply(&self) -> Result<Finished> {
        self.run(&["apply", "-auto-approve", "-no-color"])
    }

    pub(crate) fn destroy(&self) -> Result<Finished> {
        self.run(&["destroy", "-auto-approve", "-no-color"])
    }

    /// Requires a plan that finds nothing to do.
    pub(crate) fn plan_is_empty(&self) -> Result<()> {
        self.run(&["plan", "-detailed-exitcode", "-no-color"])?.code(0).map(drop)
    }

    /// What the state has of a resource of ours.
    pub(crate) fn state(&self, name: &str) -> Result<Value> {
        let shown = self.run(&["show", "-json"])?.success()?.json()?;
        let resources = shown["values"]["root_module"]["resources"].as_array().cloned().unwrap_or_default();
        let wanted = format!("iterative_task.{name}");
        let found = resources.into_iter().find(|resource| resource["address"] == wanted.as_str());
        found.map(|mut resource| resource["values"].take()).with_context(|| format!("{wanted} in {shown}"))
    }

    /// Addresses of everything in the state.
    pub(crate) fn listed(&self) -> Result<Vec<String>> {
        let listed = self.run(&["state", "list"])?;
        // Without a state there is nothing to list, which Terraform takes for a mistake.
        Ok(if listed.status.success() {
            listed.stdout_text().lines().map(str::to_owned).collect()
        } else {
            Vec::new()
        })
    }

    /// The task of a name.
    pub(crate) fn task(name: &str) -> Result<TaskId> {
        Ok(TaskId::deterministic(name)?)
    }

    /// Requires that nothing runs and nothing is stored.
    pub(crate) fn nothing_left(&self) -> Result<()> {
        self.rig.wait_empty()?;
        let left = tpi_tests::rig::walk(&self.rig.store().join("tasks"));
        ensure!(left.is_empty(), "left in the store: {left:?}");
        Ok(())
    }

    /// Tasks in the store.
    pub(crate) fn stored(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(self.rig.store().join("tasks")).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            tasks.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// A file of the project.
    pub(crate) fn read(&self, name: impl AsRef<Path>) -> Result<String> {
        let path = self.rig.work().join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }
}

/// A task that writes a file and ends.
pub(crate) fn quick(resource: &str, name: &str) -> String {
    format!(
        r#"
resource "iterative_task" "{resource}" {{
  cloud = "local"
  name  = "{name}"
  storage {{
    workdir = "."
    output  = "results-{resource}"
  }}
  script = <<-END
    #!/bin/bash
    mkdir -p results-{resource}
    echo "$GREETING from {resource}" | tee results-{resource}/said
  END
  environment = {{
    GREETING = "hello"
  }}
}}
"#
    )
}
