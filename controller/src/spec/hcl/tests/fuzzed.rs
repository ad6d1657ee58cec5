//! Arbitrary input: nothing panics, overflows its stack or runs without end. `PROPTEST_CASES` makes it run longer;
//! `fuzz/` has a target that goes on for ever.

use std::fs;

use proptest::prelude::*;

use super::{folder, inputs};
use crate::spec::hcl;

/// What files of this language are made of, so that more than the first byte is reached.
const PIECES: &[&str] = &[
    "resource \"iterative_task\" \"x\" {\n",
    "locals {\n",
    "variable \"v\" {\n",
    "}\n",
    "storage {\n",
    "  a = ",
    "  cloud = ",
    "  script = ",
    "  name = ",
    "  count = ",
    "  for_each = ",
    "  environment = ",
    "\"",
    "${",
    "%{",
    "}",
    "~}",
    "${~",
    "%{ if ",
    "%{ else }",
    "%{ endif }",
    "%{ for x in ",
    "%{ endfor }",
    "<<EOT\n",
    "<<-EOT\n",
    "EOT\n",
    "\n",
    " ",
    "local.a",
    "var.v",
    "each.key",
    "count.index",
    "[for x in ",
    "{for k, v in ",
    " : ",
    " => ",
    "...",
    " if ",
    "]",
    "[",
    "(",
    ")",
    "{",
    ",",
    ".",
    "[*]",
    ".*",
    "0",
    "1e9",
    "1e4000",
    "-",
    "+",
    "*",
    "/",
    "%",
    "!",
    "==",
    "&&",
    "||",
    "?",
    ":",
    "=",
    "null",
    "true",
    "range(",
    "join(",
    "format(\"%s\", ",
    "merge(",
    "flatten(",
    "try(",
    "templatefile(\"main.tf\", {})",
    "file(\"main.tf\")",
    "jsonencode(",
    "jsondecode(",
    "substr(",
    "replace(",
    "setproduct(",
    "\\",
    "\\u",
    "é",
    "🐝",
    "\t",
    "\r\n",
    "#",
    "//",
    "/*",
    "*/",
    "$${",
    "%%{",
    "\0",
];

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(proptest::sample::select(PIECES), 0..60)
        .prop_map(|pieces| pieces.concat().into_bytes())
}

/// An expression that is whole, so that it is evaluated and not only parsed.
fn expressions() -> impl Strategy<Value = String> {
    let leaf = proptest::sample::select(
        &[
            "1",
            "\"a\"",
            "0.5",
            "true",
            "null",
            "[]",
            "{}",
            "local.a",
            "var.v",
            "[1, \"b\"]",
            "{ k = 1 }",
            "range(5)",
            "x",
            "toset([\"p\", \"q\"])",
        ][..],
    )
    .prop_map(str::to_owned);
    leaf.prop_recursive(5, 40, 4, |inner| {
        let names = hcl::functions::names().collect::<Vec<_>>();
        prop_oneof![
            (proptest::sample::select(names), proptest::collection::vec(inner.clone(), 0..4))
                .prop_map(|(name, args)| format!("{name}({})", args.join(", "))),
            (
                inner.clone(),
                proptest::sample::select(&["+", "-", "*", "/", "%", "==", "!=", "<", "&&", "||"][..]),
                inner.clone()
            )
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[for x in {a} : {b}]")),
            (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("{{for k, x in {a} : {b} => {c}...}}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})[{b}]")),
            inner.clone().prop_map(|a| format!("({a})[*].k")),
            inner.clone().prop_map(|a| format!("\"<${{{a}}}>\"")),
            inner.clone().prop_map(|a| format!("-({a})")),
            inner.prop_map(|a| format!("\"%{{ for x in {a} ~}} ${{x}} %{{ endfor }}\"")),
        ]
    })
}

fn survives(bytes: &[u8]) {
    let folder = folder(&[]);
    fs::write(folder.path().join("main.tf"), bytes).expect("a file");
    fs::write(folder.path().join("terraform.tfvars"), bytes).expect("a file");
    let inputs = inputs(folder.path());
    if let Ok(read) = hcl::read(&inputs) {
        let tasks: Vec<_> = read.tasks.iter().collect();
        drop(read.check(&tasks, &inputs, &Default::default()));
    }
}

proptest! {
    #[test]
    fn bytes(bytes: Vec<u8>) {
        survives(&bytes);
    }

    #[test]
    fn texts(text in "\\PC{0,200}") {
        survives(text.as_bytes());
    }

    #[test]
    fn pieces_of_the_language(bytes in pieces()) {
        survives(&bytes);
    }

    #[test]
    fn whole_expressions(value in expressions(), local in expressions()) {
        let text = format!(
            "variable \"v\" {{ default = 3 }}\nlocals {{\n  a = {local}\n}}\n\
             resource \"iterative_task\" \"x\" {{\n  cloud = \"local\"\n  script = jsonencode({value})\n}}\n"
        );
        survives(text.as_bytes());
    }
}
