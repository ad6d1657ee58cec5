//! Where values of variables come from.

use super::{environment, folder, inputs, var};
use crate::spec::hcl::{self, Inputs, VariableArgument};

const MAIN: &str = r##"
variable "a" { default = "default" }
variable "list" {
  type    = list(string)
  default = ["default"]
}
variable "n" {
  type    = number
  default = 1
}
resource "iterative_task" "x" {
  name        = var.a
  cloud       = "local"
  script      = "#!/bin/sh"
  parallelism = var.n
  tags        = { for i, x in var.list : "t${i}" => x }
}
"##;

/// Name and tags.
fn found(files: &[(&str, &str)], caller: &[(&str, &str)], variables: Vec<VariableArgument>) -> String {
    let all: Vec<(&str, &str)> = [("main.tf", MAIN)].into_iter().chain(files.iter().copied()).collect();
    let folder = folder(&all);
    let inputs = Inputs { environment: environment(caller), variables, ..inputs(folder.path()) };
    match hcl::read(&inputs) {
        Ok(read) => {
            let request = &read.tasks[0].request;
            let warnings: String = read.warnings.iter().map(|warning| format!(" ({warning})")).collect();
            format!("{} {}{warnings}", request.name.as_deref().unwrap_or("-"), request.tags.join(","))
        }
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn what_comes_later_wins() {
    let caller = &[("TF_VAR_a", "caller"), ("TF_VAR_list", "[\"caller\"]"), ("TF_VAR_other", "x")];
    let tfvars = ("terraform.tfvars", "a = \"tfvars\"\n");
    let json = ("terraform.tfvars.json", "{\"a\": \"json\"}");
    let auto_b = ("b.auto.tfvars", "a = \"b\"\nlist = [\"b\", 1]\n");
    let auto_a = ("a.auto.tfvars.json", "{\"a\": \"a\"}");
    let file = ("more.tfvars", "a = \"file\"\n");
    assert_eq!(found(&[], &[], vec![]), "default t0=default");
    assert_eq!(found(&[], caller, vec![]), "caller t0=caller");
    assert_eq!(found(&[tfvars], caller, vec![]), "tfvars t0=caller");
    assert_eq!(found(&[tfvars, json], caller, vec![]), "json t0=caller");
    assert_eq!(found(&[tfvars, json, auto_a], caller, vec![]), "a t0=caller");
    assert_eq!(found(&[tfvars, auto_a, auto_b], caller, vec![]), "b t0=b,t1=1");
    assert_eq!(found(&[auto_b, file], caller, vec![]), "b t0=b,t1=1", "other files are not read");
    let named = || VariableArgument::File("more.tfvars".into());
    assert_eq!(found(&[auto_b, file], caller, vec![named()]), "file t0=b,t1=1");
    assert_eq!(found(&[file], &[], vec![named(), var("a", "argument")]), "argument t0=default");
    assert_eq!(found(&[file], &[], vec![var("a", "argument"), named()]), "file t0=default");
    assert_eq!(found(&[], &[], vec![var("a", "[1]"), var("list", "[1, \"x\"]")]), "[1] t0=1,t1=x");
}

#[test]
fn what_cannot_be_used_is_told() {
    assert_eq!(
        found(&[("terraform.tfvars", "ab = 1\n")], &[], vec![]),
        "default t0=default (terraform.tfvars has a value for \"ab\", which no variable block declares)"
    );
    assert_eq!(found(&[], &[], vec![var("b", "1")]), "--var b: no variable block declares \"b\"");
    assert_eq!(
        found(&[], &[("TF_VAR_n", "many")], vec![]),
        "main.tf:7:1: declares variable \"n\", whose value from TF_VAR_n is a text that is not a number"
    );
    assert_eq!(
        found(&[("terraform.tfvars", "n = \"many\"\n")], &[], vec![]),
        "terraform.tfvars:1:1: `n = \"many\"` is a text that is not a number"
    );
    assert_eq!(found(&[], &[], vec![var("list", "[1,")]).split(": ").next(), Some("--var list:1:3"));
    assert_eq!(
        found(&[("terraform.tfvars", "a = var.n\nn = upper(\"x\")\n")], &[], vec![]),
        "terraform.tfvars:1:5: `var.n` cannot be used here: values of variables refer to nothing\n\
         terraform.tfvars:2:5: `upper(\"x\")` calls a function, and values of variables cannot"
    );
    assert_eq!(
        found(&[], &[], vec![VariableArgument::File("no.tfvars".into())]),
        "no.tfvars: there is no such file"
    );
}

fn read(main: &str, variables: Vec<VariableArgument>) -> Result<hcl::Configuration, hcl::HclErrors> {
    let task = "resource \"iterative_task\" \"x\" {\n  cloud = \"local\"\n  script = \"#!/bin/sh\"\n  name = var.v\n}\n";
    let folder = folder(&[("main.tf", &format!("{main}\n{task}"))]);
    hcl::read(&Inputs { variables, ..inputs(folder.path()) })
}

#[test]
fn a_variable_without_a_value_is_named() {
    let errors = read("variable \"v\" {}", vec![]).expect_err("no value");
    assert_eq!(errors.to_string(), "main.tf:1:1: variable \"v\" has no value");
    let hint = errors.0[0].hint.as_deref().expect("a hint");
    assert!(hint.contains("--var v=…") && hint.contains("TF_VAR_v"), "{hint}");
}

#[test]
fn validations_hold() {
    let main = r##"variable "v" {
      default = "a"
      validation {
        condition     = length(var.v) > 2 && can(tonumber("1"))
        error_message = "too short: ${var.v}"
      }
    }"##;
    let errors = read(main, vec![]).expect_err("too short").to_string();
    assert!(errors.ends_with("does not hold for variable \"v\": too short: a"), "{errors}");
    assert!(read(main, vec![var("v", "abc")]).is_ok());
}

#[test]
fn null_and_nullable() {
    let main = "variable \"v\" {\n  default = \"d\"\n  nullable = false\n  type = any\n}";
    let read_null = read(main, vec![var("v", "null")]).expect("the default");
    assert_eq!(read_null.tasks[0].request.name.as_deref(), Some("d"));
    let main = "variable \"v\" {\n  default = \"d\"\n  type = any\n}";
    let read_null = read(main, vec![var("v", "null")]).expect("null");
    assert_eq!(read_null.tasks[0].request.name, None);
}

#[test]
fn sensitive_values_are_in_no_message() {
    let main = "variable \"v\" {\n  type = number\n  sensitive = true\n}";
    let errors = read(main, vec![var("v", "hunter2")]).expect_err("no number");
    assert!(!format!("{errors}{errors:?}").contains("hunter2"), "{errors}");
    let main = "variable \"v\" {\n  type = number\n  default = \"hunter2\"\n  sensitive = true\n}";
    let errors = read(main, vec![]).expect_err("no number");
    assert!(!format!("{errors}{errors:?}").contains("hunter2"), "{errors}");
    let main = "variable \"v\" {\n  sensitive = true\n}";
    let folder = folder(&[(
        "main.tf",
        &format!(
            "{main}\nresource \"iterative_task\" \"x\" {{\n  cloud = var.v\n  script = \"#!/bin/sh\"\n}}"
        ),
    )]);
    let inputs = Inputs { variables: vec![var("v", "hunter2")], ..inputs(folder.path()) };
    let read = hcl::read(&inputs).expect("a configuration");
    let errors =
        read.check(&[&read.tasks[0]], &inputs, &Default::default()).expect_err("no cloud").to_string();
    assert!(errors.contains("(sensitive)") && !errors.contains("hunter2"), "{errors}");
}
