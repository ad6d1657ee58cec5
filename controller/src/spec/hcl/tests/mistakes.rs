//! What is refused, and in which words.

use super::{folder, inputs, tasks::read};
use crate::spec::hcl;

/// Errors with their hints, one under the other.
fn told(text: &str) -> String {
    lines(read(text))
}

fn lines(read: Result<hcl::Configuration, hcl::HclErrors>) -> String {
    match read {
        Ok(read) => format!("{} tasks and no error", read.tasks.len()),
        Err(errors) => errors
            .0
            .iter()
            .map(|error| match &error.hint {
                Some(hint) => format!("{error}\n  hint: {hint}\n"),
                None => format!("{error}\n"),
            })
            .collect(),
    }
}

#[test]
fn every_mistake_of_a_resource_is_told_at_once() {
    insta::assert_snapshot!(told(
        r##"resource "iterative_task" "x" {
  clod        = "aws"
  machien     = "m"
  status      = {}
  workdir     = "."
  timeout     = "soon"
  parallelism = 1.5
  spot        = true
  environment = ["A"]
  tags        = { "a=b" = 1 }
  script      = data.local_file.x.content
  name        = aws_instance.y.id
  region      = module.m.region
  image       = iterative_task.z.id
  disk_size   = (1 +
    local.nothing)
  permission_set = upper(lowr("x"))
  container   = uuid()
  ingress     = [each.key, count.index]
  grace       = local.loop
  storage {
    workdir = ["."]
    ouput   = "x"
    container_opts = ["us-east-1"]
  }
  storage {
    workdir = "."
  }
  timeouts {
    create = "long"
    crate  = "1m"
  }
  lifecycle {
    replace = true
  }
  dynamic "storage" {
    for_each = []
  }
  provisioner "local-exec" {
    command = "x"
  }
  storge {}
}
resource "aws_instance" "y" {}
locals {
  loop = local.pool
  pool = [local.loop]
}
"##
    ));
}

#[test]
fn what_is_missing_or_of_another_shape() {
    insta::assert_snapshot!(told("resource \"iterative_task\" \"x\" {\n}\n"));
    insta::assert_snapshot!(told(
        r##"resource "iterative_task" "x" {
  cloud    = null
  script   = null
  storage  = { workdir = "." }
  environment { A = 1 }
}
"##
    ));
    insta::assert_snapshot!(told(
        r##"resource "iterative_task" "a" {
  for_each = ["x"]
  cloud    = "local"
  script   = "x"
}
resource "iterative_task" "b" {
  count  = -1
  cloud  = "local"
  script = "x"
}
resource "iterative_task" "c" {
  count    = 1
  for_each = {}
  cloud    = "local"
  script   = "x"
}
resource "iterative_task" "d" {
  directory = "."
  storage { output = "x" }
  cloud     = "local"
  script    = "x"
}
"##
    ));
}

#[test]
fn blocks_that_are_none() {
    insta::assert_snapshot!(told(
        r##"x = 1
resorce "iterative_task" "x" {}
resource "iterative_task" {}
variable "v" {
  typ     = string
  type    = strin
}
variable "v" {}
locals {
  a = 1
}
locals {
  a = 2
}
"##
    ));
}

#[test]
fn files_that_cannot_be_parsed() {
    let folder = folder(&[
        ("a.tf", "resource \"iterative_task\" \"x\" {\n  cloud = \n}\n"),
        ("b.tf", "locals {\n  a = \"one\ntwo\"\n"),
        ("c.tf.json", "{}"),
        ("override.tf", ""),
        ("d.tf", "locals {\n  x = 1 = 2\n}\n"),
        (".hidden.tf", "not read"),
        ("e.tf~", "not read"),
    ]);
    insta::assert_snapshot!(lines(hcl::read(&inputs(folder.path()))));
    let empty = super::folder(&[]);
    let errors = hcl::read(&inputs(empty.path())).expect_err("nothing").to_string();
    assert!(errors.contains("has no configuration"), "{errors}");
    assert!(!hcl::is_configured(empty.path()) && hcl::is_configured(folder.path()));
}

#[test]
fn expressions_that_cannot_be_used() {
    let of = |expression: &str| {
        let text = format!(
            "resource \"iterative_task\" \"x\" {{\n  cloud = \"local\"\n  script = \"#!/bin/sh\"\n  name = {expression}\n}}\n\
             locals {{\n  map = {{ alpha = 1 }}\n  list = [1]\n}}\nvariable \"known\" {{ default = 1 }}\n"
        );
        told(&text)
    };
    let expressions = [
        "var.knwon",
        "local.lst",
        "local.map.alpa",
        "local.list.a",
        "local.list[1]",
        "known",
        "unknown",
        "self.id",
        "var",
        "1 / 0",
        "1 + [1]",
        "\"${local.map}\"",
        "[for x in 1 : x]",
        "yamlencode({})",
        "regex(\"a\", \"b\")",
        "provider::aws::x()",
        "replace(\"a\", \"/a/\", \"b\")",
        "format(\"%d\", \"x\")",
        "lower()",
        "file(\"nope\")",
        "true ? 1 : [1]",
        "try(data.x.y.z, \"\")",
        "{ a.b = 1 }",
        "\"a\\qb\"",
    ];
    let told: Vec<String> = expressions.iter().map(|expression| of(expression)).collect();
    insta::assert_snapshot!(told.concat());
}

#[test]
fn limits_hold() {
    let of = |text: &str| {
        let told = told(text);
        assert!(!told.contains("no error"), "{told}");
        told
    };
    let task = "resource \"iterative_task\" \"x\" {\n  cloud = \"local\"\n  script = local.last\n}\n";
    let chain = |each: &dyn Fn(usize) -> String, count: usize| {
        let locals: String = (1..count).map(|n| format!("  a{n} = {}\n", each(n - 1))).collect();
        format!("{task}locals {{\n  a0 = \"0123456789abcdef\"\n{locals}  last = a{}\n}}\n", count - 1)
            .replace(&format!("last = a{}", count - 1), &format!("last = local.a{}", count - 1))
    };
    assert!(of(&chain(&|n| format!("\"${{local.a{n}}}${{local.a{n}}}\""), 60)).contains("too large"));
    assert!(of(&chain(&|n| format!("[local.a{n}, local.a{n}]"), 60)).contains("too large"));
    assert!(of(&chain(&|n| format!("[local.a{n}]"), 180)).contains("nested too deeply"));
    assert!(of(&chain(&|n| format!("local.a{n}"), 5000)).contains("nested too deeply"));
    let loops = "locals {\n  last = [for a in range(1000) : [for b in range(1000) : [for c in range(1000) : a]]]\n}\n";
    assert!(of(&format!("{task}{loops}")).contains("too large"));
    let joined = "locals {\n  a = join(\"0123456789\", range(1000))\n  last = replace(replace(local.a, \"0\", local.a), \"1\", local.a)\n}\n";
    assert!(of(&format!("{task}{joined}")).contains("too long"));
    let deep = format!("locals {{\n  last = {}1{}\n}}\n", "(".repeat(100_000), ")".repeat(100_000));
    assert!(of(&format!("{task}{deep}")).contains("nested levels"));
    let chained = format!("locals {{\n  last = 1{}\n}}\n", "+1".repeat(100_000));
    assert!(of(&format!("{task}{chained}")).contains("binary"));
    let many = task.replace("script", "count = 1001\n  script");
    assert!(of(&many).contains("is more than 1000"));
    assert!(of(&"#".repeat(2_000_000)).contains("more than 1048576"));
}
