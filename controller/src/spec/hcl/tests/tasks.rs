//! Configurations, and the requests that they make.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use tpi_proto::{id::TaskId, spec::CloudName};

use super::{environment, folder, inputs};
use crate::spec::{
    Request, ScriptSource, Surroundings,
    hcl::{self, Configuration, HclErrors, Inputs},
};

const PROVIDER: &str = r##"
terraform {
  required_providers { iterative = { source = "iterative/iterative" } }
}
provider "iterative" {}
"##;

pub(super) fn read(text: &str) -> Result<Configuration, HclErrors> {
    let folder = folder(&[("main.tf", text)]);
    hcl::read(&inputs(folder.path()))
}

fn around(caller: &[(&str, &str)]) -> Surroundings {
    Surroundings {
        current_dir: PathBuf::from("/"),
        environment: environment(caller),
        clouds: vec![CloudName::Local, CloudName::Aws, CloudName::Gcp, CloudName::Az, CloudName::K8s],
        local_gpu: false,
    }
}

fn only(text: &str) -> Request {
    let read = read(text).expect("a configuration");
    let [task] = read.tasks.as_slice() else { panic!("{} tasks", read.tasks.len()) };
    task.request.clone()
}

fn script(request: &Request) -> &str {
    match &request.script {
        Some(ScriptSource::Text(text)) => text,
        other => panic!("{other:?}"),
    }
}

const BASIC: &str = r##"
terraform {
    required_providers {
        iterative = {
            source = "iterative/iterative",
        }
    }
}

provider "iterative" {}

resource "iterative_task" "tpi-examples-basic" {
    name      = "tpi-examples-basic "
    cloud     = "aws"
    region    = "us-east-2"
    machine   = "l+k80"
    directory = "."

    script = <<-END
    #!/bin/bash
    sudo apt update
    sudo apt-get install -y software-properties-common build-essential python3-pip
    pip3 install -r requirements.txt
    python3 src/train.py
    END
}
"##;

const GPU: &str = r##"
resource "iterative_task" "tpi-examples-gpu" {
    name      = "tpi-examples-gpu"
    cloud     = "aws"
    region    = "us-east-2"
    machine   = "l+k80"
    directory = "."

    script = <<-END
    #!/bin/bash
    sudo apt update
    sudo ubuntu-drivers autoinstall

    nvidia-smi
    docker run --rm --gpus all -v "$PWD:/tpi" iterativeai/cml:0-dvc2-base1-gpu \
        /bin/bash -c "cd /tpi; pip install -r requirements.txt; python src/train.py"
    END
}
"##;

#[test]
fn the_tutorials_files() {
    for (text, name, id) in [
        (BASIC, "tpi-examples-basic ", TaskId::deterministic("tpi-examples-basic ")),
        (GPU, "tpi-examples-gpu", TaskId::deterministic("tpi-examples-gpu")),
    ] {
        let folder = folder(&[("main.tf", text)]);
        let inputs = inputs(folder.path());
        let read = hcl::read(&inputs).expect("a configuration");
        let [task] = read.tasks.as_slice() else { panic!("{} tasks", read.tasks.len()) };
        let request = &task.request;
        assert_eq!(request.name.as_deref(), Some(name));
        assert_eq!(request.cloud.as_deref(), Some("aws"));
        assert_eq!(request.region.as_deref(), Some("us-east-2"));
        assert_eq!(request.machine.as_deref(), Some("l+k80"));
        assert_eq!(request.workdir.as_deref(), Some(std::path::Path::new(".")));
        assert_eq!(request.output.as_deref(), Some("."));
        assert!(script(request).starts_with("#!/bin/bash\nsudo apt update\n"), "{}", script(request));
        assert!(read.warnings[0].contains("directory is an old name"), "{:?}", read.warnings);
        assert_eq!(task.identifier(&inputs), id.ok());
        // An AWS of today has no K80 any more, which a build with that cloud says.
        if !cfg!(feature = "aws") {
            let checked = read.check(&[task], &inputs, &around(&[])).expect("a specification");
            assert_eq!(checked[0].spec.machine, "l+k80");
            assert_eq!(checked[0].spec.timeout_seconds, 24 * 60 * 60);
        }
    }
    assert!(script(&only(GPU)).contains("\"$PWD:/tpi\" iterativeai/cml:0-dvc2-base1-gpu \\\n    /bin/bash"));
}

#[test]
fn every_argument_and_its_default() {
    let all = only(&format!(
        r##"{PROVIDER}
        resource "iterative_task" "example" {{
          cloud          = "aws"
          machine        = "m"
          image          = "nvidia"
          region         = "us-east"
          disk_size      = 30
          spot           = 0
          parallelism    = 2
          timeout        = 24*60*60
          name           = "example"
          permission_set = "arn:aws:iam::1:instance-profile/x"
          environment    = {{ GREETING = "hi", TOKEN = "", "WANDB_*" = "", N = 1, NOTHING = null }}
          tags           = {{ team = "bees" }}
          container      = "python:3.12"
          ingress        = ["none"]
          subnets        = ["subnet-1", "subnet-2"]
          provision_timeout = "10m"
          grace          = 60
          storage {{
            workdir        = "."
            output         = "results"
            exclude        = [".dvc/cache", "- /secret/"]
            container      = "bucket/path"
            container_opts = {{ region = "us-east-1" }}
            gitignore      = true
          }}
          timeouts {{
            create = "15m"
            delete = "1h30m"
          }}
          lifecycle {{ ignore_changes = [script] }}
          depends_on = [iterative_task.other]
          script = <<-END
            #!/bin/bash
            echo "$GREETING"
          END
        }}"##
    ));
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        all,
        Request {
            name: text("example"),
            cloud: text("aws"),
            region: text("us-east"),
            machine: text("m"),
            image: text("nvidia"),
            disk_size: text("30"),
            spot: text("0"),
            parallelism: text("2"),
            permission_set: text("arn:aws:iam::1:instance-profile/x"),
            tags: vec!["team=bees".to_owned()],
            environment: ["GREETING=hi", "N=1", "NOTHING", "TOKEN", "WANDB_*"].map(str::to_owned).to_vec(),
            timeout: text("86400"),
            grace: text("60"),
            script: Some(ScriptSource::Text("#!/bin/bash\necho \"$GREETING\"\n".to_owned())),
            workdir: Some(PathBuf::from(".")),
            output: text("results"),
            exclude: vec![".dvc/cache".to_owned(), "- /secret/".to_owned()],
            gitignore: true,
            container: text("python:3.12"),
            ingress: vec!["closed".to_owned()],
            subnets: vec!["subnet-1".to_owned(), "subnet-2".to_owned()],
            provision_timeout: text("10m"),
            storage_container: text("bucket/path"),
        }
    );
    // Nothing else is given, so that defaults are those of flags; null and blanks are as if they were not there.
    let least = only(
        r##"
        resource "iterative_task" "x" {
          cloud     = "gcp"
          script    = "#!/bin/sh\n"
          disk_size = null
          spot      = null
          storage {
            workdir = ""
            output  = ""
          }
        }"##,
    );
    let expected = Request {
        cloud: text("gcp"),
        script: Some(ScriptSource::Text("#!/bin/sh\n".to_owned())),
        ..Request::default()
    };
    assert_eq!(least, expected);
}

#[test]
fn values_are_checked_as_those_of_flags() {
    let text = r##"
        resource "iterative_task" "x" {
          name        = "x"
          cloud       = "local"
          spot        = -1
          disk_size   = -1
          environment = { "WANDB_*" = "", HOME_TOWN = "", A = "b" }
          script      = "#!/bin/sh\n"
        }"##;
    let folder = folder(&[("main.tf", text)]);
    let inputs = inputs(folder.path());
    let read = hcl::read(&inputs).expect("a configuration");
    let around = around(&[("WANDB_KEY", "k"), ("WANDB_MODE", "m"), ("HOME_TOWN", "t"), ("OTHER", "o")]);
    let checked = read.check(&[&read.tasks[0]], &inputs, &around).expect("a specification");
    let variables: Vec<(&str, &str)> = checked[0]
        .environment
        .variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(variables, [("A", "b"), ("HOME_TOWN", "t"), ("WANDB_KEY", "k"), ("WANDB_MODE", "m")]);
    assert_eq!(checked[0].id.as_str(), TaskId::deterministic("x").expect("an identifier").as_str());
    assert_eq!(checked[0].spec.disk_size, None);
}

#[test]
fn instances() {
    let text = r##"
        locals {
          models = { small = 1, "big one" = 2 }
          script = "#!/bin/sh\necho"
        }
        resource "iterative_task" "map" {
          for_each    = local.models
          name        = "map-${each.key}"
          cloud       = "local"
          parallelism = each.value
          script      = "${local.script} ${each.key}\n"
        }
        resource "iterative_task" "set" {
          for_each = toset([for n in [2, 1] : "n${n}"])
          name     = each.value
          cloud    = "local"
          script   = local.script
        }
        resource "iterative_task" "count" {
          count  = 2
          name   = "count-${count.index}"
          cloud  = "local"
          script = local.script
        }
        resource "iterative_task" "none" {
          count  = 0
          cloud  = "local"
          script = local.script
        }
        "##;
    let read = read(text).expect("a configuration");
    let found: Vec<(&str, &str)> = read
        .tasks
        .iter()
        .map(|task| (task.address.as_str(), task.request.name.as_deref().expect("a name")))
        .collect();
    assert_eq!(
        found,
        [
            ("iterative_task.map[\"big one\"]", "map-big one"),
            ("iterative_task.map[\"small\"]", "map-small"),
            ("iterative_task.set[\"n1\"]", "n1"),
            ("iterative_task.set[\"n2\"]", "n2"),
            ("iterative_task.count[0]", "count-0"),
            ("iterative_task.count[1]", "count-1"),
        ]
    );
    assert_eq!(read.tasks[0].request.parallelism.as_deref(), Some("2"));
    assert_eq!(script(&read.tasks[0].request), "#!/bin/sh\necho big one\n");
}

#[test]
fn two_instances_cannot_be_one_task() {
    let text = r##"
        resource "iterative_task" "x" {
          count  = 2
          name   = "same"
          cloud  = "local"
          script = "#!/bin/sh"
        }"##;
    let folder = folder(&[("main.tf", text)]);
    let inputs = inputs(folder.path());
    let read = hcl::read(&inputs).expect("a configuration");
    let tasks: Vec<_> = read.tasks.iter().collect();
    let errors = read.check(&tasks, &inputs, &around(&[])).expect_err("one task");
    assert_eq!(
        errors.to_string(),
        "main.tf:4:11: iterative_task.x[1]: has the same name as iterative_task.x[0], so both would be one task"
    );
}

#[test]
fn a_task_without_a_name_is_the_same_each_time() {
    let text = r##"
        resource "iterative_task" "train" {
          cloud  = "local"
          script = "#!/bin/sh"
        }"##;
    let of = |text: &str, caller: BTreeMap<OsString, OsString>| {
        let folder = folder(&[("main.tf", text)]);
        let inputs = Inputs { environment: caller, ..inputs(folder.path()) };
        let read = hcl::read(&inputs).expect("a configuration");
        let first = read.tasks[0].identifier(&inputs).expect("an identifier");
        let again = read.check(
            &[&read.tasks[0]],
            &inputs,
            &Surroundings { environment: inputs.environment.clone(), ..around(&[]) },
        );
        assert_eq!(again.expect("a specification")[0].id, first);
        first
    };
    let here = of(text, BTreeMap::new());
    assert_eq!(here.name(), "train");
    assert_ne!(here, of(text, BTreeMap::new()), "another folder is another task");
    let run = || environment(&[("GITHUB_RUN_ID", "7")]);
    assert_eq!(of(text, run()), of(text, run()), "a run's checkout can be anywhere");
}

#[test]
fn what_no_task_depends_on_is_left_alone() {
    let text = r##"
        data "aws_ami" "x" { owner = data.aws_ami.y.id }
        resource "aws_instance" "x" {
          ami = data.aws_ami.x.id
          user_data = nope("x")
          dynamic "block" { for_each = module.x.y }
        }
        module "other" { source = "./other" }
        output "logs" { value = iterative_task.x.logs }
        variable "unused" {}
        locals {
          unused = data.aws_ami.x.id
          cycle  = local.cycle
        }
        resource "iterative_task" "x" {
          cloud  = "local"
          script = "#!/bin/sh"
        }"##;
    let read = read(text).expect("a configuration");
    assert_eq!(read.tasks.len(), 1);
    assert!(read.warnings[0].contains("module \"other\" is not read"));
}

#[test]
fn a_precondition_and_prevent_destroy() {
    let text = |held: &str| {
        format!(
            r##"
        resource "iterative_task" "x" {{
          cloud  = "local"
          script = "#!/bin/sh"
          lifecycle {{
            prevent_destroy = true
            precondition {{
              condition     = {held}
              error_message = "never ${{1 + 1}}"
            }}
          }}
        }}"##
        )
    };
    assert!(read(&text("1 == 1")).expect("a configuration").tasks[0].prevent_destroy);
    let errors = read(&text("1 == 2")).expect_err("does not hold").to_string();
    assert_eq!(errors, "main.tf:8:15: iterative_task.x: `condition = 1 == 2` does not hold: never 2");
}
