//! A table of expressions. Where Terraform is installed it computes the same table, so that what is expected here
//! is what it says and not what we believe.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{evaluated, folder};

/// What the expressions can refer to.
const DECLARATIONS: &str = r#"
variable "name" { default = "bees" }
variable "size" { default = 3 }
variable "hosts" {
  type    = list(object({ name = string, port = optional(number, 80), tags = optional(map(string)) }))
  default = [{ name = "a" }, { name = "b", port = "81" }]
}
variable "strict" {
  type = object({ a = string, b = number })
  default = { a = 1, b = "2", c = true }
}
locals {
  greeting = "hello ${var.name}"
  list     = ["c", "a", "b"]
  map      = { one = 1, two = 2, three = local.one + 2 }
  one      = 1
  users    = [{ name = "x", age = 1 }, { name = "y", age = 2 }]
  nothing  = null
  text     = <<-EOT
    first
      second ${local.one}

    third
  EOT
}
"#;

const FILES: &[(&str, &str)] = &[
    (
        "script.tpl",
        "#!/bin/sh\n%{ for x in items ~}\necho ${x}\n%{ endfor ~}\n%{ if last }echo last%{ else }echo more%{ endif }\n",
    ),
    ("value.tpl", "${jsonencode({ n = n })}"),
    ("plain.txt", "line one\nline two\n"),
];

/// Expressions, and what they are as JSON.
const TABLE: &[(&str, &str)] = &[
    // Numbers.
    ("24*60*60", "86400"),
    ("0.1*3", "0.3"),
    ("0.1+0.2", "0.3"),
    ("10/4", "2.5"),
    ("2.50", "2.5"),
    ("1e3", "1000"),
    ("1.5e-3", "0.0015"),
    ("7%3", "1"),
    ("-7%3", "-1"),
    ("7.5%2", "1.5"),
    ("100000000000000000000000+1", "100000000000000000000001"),
    ("1-2-3", "-4"),
    ("2+3*4", "14"),
    ("(2+3)*4", "20"),
    ("-(2+3)", "-5"),
    ("-local.one", "-1"),
    ("\"5\"+1", "6"),
    ("10-\"3\"", "7"),
    // Texts.
    (r#""a\nb\t\"q\"\\""#, r#""a\nb\t\"q\"\\""#),
    (r#""\u00e9\U0001F41D""#, "\"é🐝\""),
    (r#""$${x} %%{y} $x %x $$ %%""#, r#""${x} %{y} $x %x $$ %%""#),
    (r#""${1}""#, "1"),
    (r#""${1}0""#, "\"10\""),
    (r#""${0.1*3} ${true}""#, "\"0.3 true\""),
    (r#""${"${"deep"}"}""#, "\"deep\""),
    (r#""  ${~ "x" ~}  y""#, "\"xy\""),
    (r#""%{ if true }yes%{ else }no%{ endif }""#, "\"yes\""),
    (r#""%{ if false }yes%{ endif }.""#, "\".\""),
    (r#""%{ for x in ["a", "b"] }<${x}>%{ endfor }""#, r#""\u003ca\u003e\u003cb\u003e""#),
    (r#""%{ for i, x in ["a", "b"] }${i}${x}\n%{ endfor }""#, r#""0a\n1b\n""#),
    (r#""a${""}b""#, "\"ab\""),
    ("<<EOT\none\n  two\nEOT\n", r#""one\n  two\n""#),
    ("<<-EOT\n    one\n      two\n\n    three ${1 + 1}\n    EOT\n", r#""one\n  two\n\nthree 2\n""#),
    ("<<-EOT\n\tone\n\t\ttwo\n\tEOT\n", r#""one\n\ttwo\n""#),
    ("<<-EOT\n    ${\"a\"}\n      b\n    EOT\n", r#""a\n  b\n""#),
    ("<<-EOT\n  a $${HOME} \"$HOME\" \\n %%{if}\n  EOT\n", r#""a ${HOME} \"$HOME\" \\n %{if}\n""#),
    (
        "<<-EOT\n    #!/bin/sh\n    %{ for x in [1, 2] ~}\n    echo ${x}\n    %{ endfor ~}\n    done\n    EOT\n",
        // A marker trims to the end of its line, so the line after it does not count as one that begins.
        r##""#!/bin/sh\n    echo 1\n    echo 2\n    done\n""##,
    ),
    (
        "<<-EOT\n    %{ if true ~}\n    echo yes\n    %{ else ~}\n    echo no\n    %{ endif ~}\n    end\n  EOT\n",
        r#""    echo yes\n    end\n""#,
    ),
    ("<<EOT\n  %{ if true }\n  a\n  %{ endif }\nEOT\n", r#""  \n  a\n  \n""#),
    ("<<EOT\n  a ${~ 1 ~}\n  b\nEOT\n", r#""  a1  b\n""#),
    ("<<-EOT\n    a\n  ${~ 1 }\n    b\n  EOT\n", r#""    a\n1\n    b\n""#),
    ("<<EOT\nEOT\n", "\"\""),
    ("<<EOT\n\nEOT\n", r#""\n""#),
    ("<<EOT\nEOTX\n EOT\n", r#""EOTX\n""#),
    ("local.text", r#""first\n  second 1\n\nthird\n""#),
    // Ways to write.
    ("[ # one\n  1, // two\n  2 /* three */,\n]", "[1,2]"),
    ("{ # one\n  a = 1 # two\n\n  b = 2, // three\n  c = 3 /* four */\n}", r#"{"a":1,"b":2,"c":3}"#),
    ("(\n  true\n  ? 1\n  : 2\n)", "1"),
    ("join(\n  \",\",\n  [\"a\", \"b\"],\n)", "\"a,b\""),
    ("[\n  for x in [1, 2] :\n  x * 2\n  if x > 1\n]", "[4]"),
    ("join(\"+\", [<<EOT\na\nEOT\n, \"b\"])", r#""a\n+b""#),
    (r#""${lookup({ a = "x" }, "a")}-${true ? "b" : "c"}""#, "\"x-b\""),
    (r#"{ "a-b" = 1, a-c = 2 }"#, r#"{"a-b":1,"a-c":2}"#),
    ("{ if = 2, in = 3 }", r#"{"if":2,"in":3}"#),
    ("{ a : { b = [{ c = 1 }] } }.a.b[0].c", "1"),
    ("[[1, 2], [3]][0][1]", "2"),
    ("- 1 - -1", "0"),
    ("!true == false", "true"),
    ("1 + 2 == 3 && 2 * 2 >= 4", "true"),
    ("2 > 1 == true", "true"),
    ("true || false && false", "true"),
    ("-2 * 3 % 4", "-2"),
    (r#""$""#, "\"$\""),
    (r#""%""#, "\"%\""),
    (r#""a$""#, "\"a$\""),
    (r#""$$""#, "\"$$\""),
    (r#""$${""#, "\"${\""),
    (r#""${"$"}{x}""#, "\"${x}\""),
    (r#""\\$${x}\\""#, r#""\\${x}\\""#),
    (r#""%{ if 1 == 1 }a\tb\"%{ else }c%{ endif }""#, r#""a\tb\"""#),
    ("<<EOT\n$ % $$ %% $a %b \\ \" ' ` ~ # //\nEOT\n", r#""$ % $$ %% $a %b \\ \" ' ` ~ # //\n""#),
    ("<<EOT\na\n\n  EOT x\nEOT\n", r#""a\n\n  EOT x\n""#),
    ("<<-EOT\n  a\n\n    \n  b\n  EOT\n", r#""a\n\n    \nb\n""#),
    (
        "<<-EOT\n    if [ -n \"$${X:-}\" ]; then\n      echo \"$X\"\n    fi\n  EOT\n",
        r#""if [ -n \"${X:-}\" ]; then\n  echo \"$X\"\nfi\n""#,
    ),
    ("<<-EOT\n  ${join(\"\\n\", [\"a\", \"b\"])}\n    ${1}${2}\n  EOT\n", r#""a\nb\n  12\n""#),
    ("<<EOT\n%{ for x in [1, 2] }${x}\n%{ endfor }.\nEOT\n", r#""1\n2\n.\n""#),
    ("<<EOT\n%{ for k, v in { a = 1 } ~}\n  ${k}=${v}\n%{~ endfor ~}\n  .\nEOT\n", r#""  a=1  .\n""#),
    (
        "<<-END\n  awk '{ n += $1 }\n  END { print n }' $${FILE} # END\n  END\n",
        r#""awk '{ n += $1 }\nEND { print n }' ${FILE} # END\n""#,
    ),
    // Comparison and logic.
    ("1 == 1.0", "true"),
    ("1 == \"1\"", "false"),
    ("\"a\" != \"b\"", "true"),
    ("[1, 2] == [1, 2]", "true"),
    ("{ a = 1 } == { a = 1 }", "true"),
    ("[1] == tolist([1])", "false"),
    ("null == null", "true"),
    ("local.nothing == null", "true"),
    ("2 > 1 && 1 >= 1", "true"),
    ("1 < 1 || !true", "false"),
    ("!false", "true"),
    ("\"true\" && true", "true"),
    ("1 + 1 == 2 ? \"yes\" : \"no\"", "\"yes\""),
    ("false ? 1 : 2 > 1 ? \"b\" : \"c\"", "\"b\""),
    ("true ? 1 : \"a\"", "\"1\""),
    ("true ? [1] : [\"a\"]", "[\"1\"]"),
    ("true ? [1] : [\"a\", \"b\"]", "[\"1\"]"),
    ("false ? { a = 1 } : { b = 2 }", "{\"b\":2}"),
    ("true ? null : \"a\"", "null"),
    ("true ? 1 : local.list[9]", "1"),
    // Collections.
    ("[1, \"a\", true, null]", "[1,\"a\",true,null]"),
    ("{ a = 1, \"b\" = 2, (\"c\") = 3, 4 = 5 }", "{\"4\":5,\"a\":1,\"b\":2,\"c\":3}"),
    ("{\n  a = 1\n  b : 2\n}", "{\"a\":1,\"b\":2}"),
    ("local.map.two", "2"),
    ("local.map[\"two\"]", "2"),
    ("local.list[0]", "\"c\""),
    ("local.list.1", "\"a\""),
    ("local.list[\"2\"]", "\"b\""),
    ("local.map", "{\"one\":1,\"three\":3,\"two\":2}"),
    ("local.users[*].name", "[\"x\",\"y\"]"),
    ("local.users.*.age", "[1,2]"),
    ("local.nothing[*]", "[]"),
    ("local.one[*]", "[1]"),
    ("[for x in local.list : upper(x)]", "[\"C\",\"A\",\"B\"]"),
    ("[for i, x in local.list : \"${i}${x}\" if x != \"a\"]", "[\"0c\",\"2b\"]"),
    ("{for x in local.users : x.name => x.age}", "{\"x\":1,\"y\":2}"),
    ("{for x in [\"a\", \"b\", \"a\"] : x => 1...}", "{\"a\":[1,1],\"b\":[1]}"),
    ("[for k, v in local.map : \"${k}=${v}\"]", "[\"one=1\",\"three=3\",\"two=2\"]"),
    ("[for x in toset([\"b\", \"a\"]) : x]", "[\"a\",\"b\"]"),
    ("var.hosts", r#"[{"name":"a","port":80,"tags":null},{"name":"b","port":81,"tags":null}]"#),
    ("var.strict", r#"{"a":"1","b":2}"#),
    ("var.name", "\"bees\""),
    ("local.greeting", "\"hello bees\""),
    ("path.module", "\".\""),
    ("terraform.workspace", "\"default\""),
    // Functions.
    ("lower(\"ÄB\")", "\"äb\""),
    ("upper(\"ab\")", "\"AB\""),
    ("title(\"hello big world\")", "\"Hello Big World\""),
    ("trimspace(\"  a b \\n\")", "\"a b\""),
    ("trim(\"?!hello?!\", \"!?\")", "\"hello\""),
    ("trimprefix(\"helloworld\", \"hello\")", "\"world\""),
    ("trimsuffix(\"helloworld\", \"world\")", "\"hello\""),
    ("chomp(\"hello\\n\\n\")", "\"hello\""),
    ("join(\"-\", [\"a\", \"b\"], [\"c\"])", "\"a-b-c\""),
    ("join(\",\", [1, 2])", "\"1,2\""),
    ("split(\",\", \"a,b,,c\")", "[\"a\",\"b\",\"\",\"c\"]"),
    ("split(\"\", \"abc\")", "[\"a\",\"b\",\"c\"]"),
    ("split(\",\", \"\")", "[\"\"]"),
    ("replace(\"1 + 2 + 3\", \"+\", \"-\")", "\"1 - 2 - 3\""),
    ("substr(\"hello world\", 1, 4)", "\"ello\""),
    ("substr(\"hello world\", -5, -1)", "\"world\""),
    ("strrev(\"abc\")", "\"cba\""),
    ("indent(2, \"a\\nb\")", r#""a\n  b""#),
    ("startswith(\"hello\", \"he\")", "true"),
    ("endswith(\"hello\", \"lo\")", "true"),
    ("strcontains(\"hello\", \"ell\")", "true"),
    (
        "format(\"%s-%03d-%5.2f|%-4s|%4s|%t|%%\", \"a\", 7, 3.14159, \"b\", \"c\", true)",
        "\"a-007- 3.14|b   |   c|true|%\"",
    ),
    ("format(\"%v %v %v\", [1, \"a\"], { b = true }, 1.5)", r#""[1,\"a\"] {\"b\":true} 1.5""#),
    ("format(\"%q %x %X %o %b %+d\", \"a\", 255, 255, 8, 5, 3)", r#""\"a\" ff FF 10 101 +3""#),
    ("format(\"%[2]s %[1]s\", \"a\", \"b\")", "\"b a\""),
    ("format(\"%f\", 1)", "\"1.000000\""),
    ("format(\"%s\", 12)", "\"12\""),
    ("formatlist(\"%s-%s\", [\"a\", \"b\"], \"x\")", "[\"a-x\",\"b-x\"]"),
    ("abs(-1.5)", "1.5"),
    ("ceil(1.2)", "2"),
    ("floor(-1.2)", "-2"),
    ("max(1, 3, 2)", "3"),
    ("min([3, 1, 2]...)", "1"),
    ("pow(2, 10)", "1024"),
    ("pow(2, -1)", "0.5"),
    ("signum(-13)", "-1"),
    ("parseint(\"ff\", 16)", "255"),
    ("sum([1, 2.5])", "3.5"),
    ("length(\"héllo\")", "5"),
    ("length(local.map)", "3"),
    ("concat([\"a\"], [1], [])", "[\"a\",1]"),
    ("merge({ a = 1, b = 2 }, { b = 3 }, null)", "{\"a\":1,\"b\":3}"),
    ("lookup(local.map, \"two\", 9)", "2"),
    ("lookup(local.map, \"ten\", 9)", "9"),
    ("keys(local.map)", "[\"one\",\"three\",\"two\"]"),
    ("values(local.map)", "[1,3,2]"),
    ("element([\"a\", \"b\"], 3)", "\"b\""),
    ("index([\"a\", \"b\"], \"b\")", "1"),
    ("contains([\"a\", \"b\"], \"b\")", "true"),
    ("contains(toset([\"a\"]), \"z\")", "false"),
    ("distinct([\"a\", \"b\", \"a\"])", "[\"a\",\"b\"]"),
    ("flatten([[\"a\"], [], [[\"b\"], \"c\"]])", "[\"a\",\"b\",\"c\"]"),
    ("compact([\"a\", \"\", null, \"b\"])", "[\"a\",\"b\"]"),
    ("reverse([1, 2, 3])", "[3,2,1]"),
    ("sort([\"b\", \"a\", \"C\"])", "[\"C\",\"a\",\"b\"]"),
    ("slice([1, 2, 3, 4], 1, 3)", "[2,3]"),
    ("chunklist([1, 2, 3], 2)", "[[1,2],[3]]"),
    ("range(3)", "[0,1,2]"),
    ("range(1, 4)", "[1,2,3]"),
    ("range(4, 1)", "[4,3,2]"),
    ("range(1, 10, 3)", "[1,4,7]"),
    ("zipmap([\"a\", \"b\"], [1, 2])", "{\"a\":1,\"b\":2}"),
    ("setunion([\"a\"], [\"b\", \"a\"])", "[\"a\",\"b\"]"),
    ("setintersection([\"a\", \"b\"], [\"b\"])", "[\"b\"]"),
    ("setsubtract([\"a\", \"b\"], [\"b\"])", "[\"a\"]"),
    ("setproduct([\"a\", \"b\"], [1, 2])", "[[\"a\",1],[\"a\",2],[\"b\",1],[\"b\",2]]"),
    ("transpose({ a = [\"x\", \"y\"], b = [\"y\"] })", "{\"x\":[\"a\"],\"y\":[\"a\",\"b\"]}"),
    ("coalesce(\"\", null, \"b\", \"c\")", "\"b\""),
    ("coalesce(null, 2, \"c\")", "\"2\""),
    ("coalescelist([], [1])", "[1]"),
    ("one([])", "null"),
    ("one([5])", "5"),
    ("alltrue([true, \"true\"])", "true"),
    ("anytrue([])", "false"),
    ("tostring(1.50)", "\"1.5\""),
    ("tonumber(\"0x1\" == \"\" ? \"1\" : \"2\")", "2"),
    ("tobool(\"false\")", "false"),
    ("tolist([1, \"a\"])", "[\"1\",\"a\"]"),
    ("toset([\"b\", \"a\", \"b\"])", "[\"a\",\"b\"]"),
    ("toset([3, 1, 20, 1])", "[1,3,20]"),
    ("tomap({ a = 1, b = \"x\" })", "{\"a\":\"1\",\"b\":\"x\"}"),
    ("try(local.list[9], \"none\")", "\"none\""),
    ("try(local.map.nope, local.map.also, 5)", "5"),
    ("can(local.map.nope)", "false"),
    ("can(tonumber(\"x\"))", "false"),
    ("can(local.map.one)", "true"),
    (
        "jsonencode({ a = [1, null, \"<&>\"], b = \"é\" })",
        r#""{\"a\":[1,null,\"\\u003c\\u0026\\u003e\"],\"b\":\"é\"}""#,
    ),
    ("jsondecode(\"{\\\"a\\\": [1, 2.5, true, null]}\")", "{\"a\":[1,2.5,true,null]}"),
    ("base64encode(\"hello\")", "\"aGVsbG8=\""),
    ("base64decode(\"aGVsbG8=\")", "\"hello\""),
    ("urlencode(\"a b&c/ü~\")", "\"a+b%26c%2F%C3%BC~\""),
    ("sha256(\"hello\")", "\"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824\""),
    ("base64sha256(\"hello\")", "\"LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=\""),
    ("substr(sha512(\"hello\"), 0, 8)", "\"9b71d224\""),
    ("basename(\"/a/b/c.txt\")", "\"c.txt\""),
    ("dirname(\"/a/b/c.txt\")", "\"/a/b\""),
    ("dirname(\"c.txt\")", "\".\""),
    ("basename(abspath(\"./x/../y\"))", "\"y\""),
    ("file(\"plain.txt\")", r#""line one\nline two\n""#),
    ("file(\"${path.module}/plain.txt\")", r#""line one\nline two\n""#),
    ("fileexists(\"plain.txt\")", "true"),
    ("fileexists(\"nope.txt\")", "false"),
    ("filebase64(\"plain.txt\")", "\"bGluZSBvbmUKbGluZSB0d28K\""),
    ("substr(filesha256(\"plain.txt\"), 0, 8)", "\"e9024f1a\""),
    (
        "templatefile(\"script.tpl\", { items = [\"a\", 2], last = true })",
        r##""#!/bin/sh\necho a\necho 2\necho last\n""##,
    ),
    ("templatefile(\"value.tpl\", { n = 1 })", r#""{\"n\":1}""#),
    ("nonsensitive(\"x\")", "\"x\""),
];

/// Expressions without a value, here and there.
const FAILING: &[&str] = &[
    "local.list[3]",
    "local.map.four",
    "tonumber(\"x\")",
    "tobool(\"yes\")",
    "\"${[1]} \"",
    "\"a${null}\"",
    "[for x in 5 : x]",
    "{for x in [\"a\", \"a\"] : x => 1}",
    "element([], 0)",
    "index([\"a\"], \"b\")",
    "format(\"%d\", \"x\")",
    "format(\"%s\")",
    "format(\"\", 1)",
    "lookup({}, \"a\")",
    "one([1, 2])",
    "coalesce(null, \"\")",
    "file(\"nope.txt\")",
    "jsondecode(\"{\")",
    "base64decode(\"*\")",
    "parseint(\"z\", 10)",
    "1 + true",
    "!1",
    "1 && true",
    "\"a\" < 1",
    "local.list.name",
    "range(1, 2, -1)",
    "slice([1], 0, 2)",
    "zipmap([\"a\"], [])",
    "max(\"a\")",
    "toset([3, true])",
    "true ? 1 : true",
    "null ? 1 : 2",
    "keys([1])",
    "local.users.name",
    "templatefile(\"script.tpl\", {})",
];

#[test]
fn expressions_have_their_values() {
    let folder = folder(FILES);
    let mut wrong = Vec::new();
    for (expression, expected) in TABLE {
        let found = evaluated(folder.path(), DECLARATIONS, expression);
        if found.as_deref() != Ok(*expected) {
            wrong.push(format!("{expression}\n  is       {found:?}\n  not      {expected}"));
        }
    }
    for expression in FAILING {
        if let Ok(value) = evaluated(folder.path(), DECLARATIONS, expression) {
            wrong.push(format!("{expression}\n  is       {value}\n  not a failure"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Evaluates one expression with `terraform console`.
fn terraform(folder: &Path, expression: &str) -> Option<String> {
    let configuration = folder.join("terraform.rc");
    fs::write(&configuration, "").expect("a file");
    let mut command = Command::new("terraform");
    command.arg("console").current_dir(folder);
    command
        .env("TF_CLI_CONFIG_FILE", configuration)
        .env("CHECKPOINT_DISABLE", "1")
        .env_remove("TF_WORKSPACE");
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.ok()?;
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(expression.as_bytes()).expect("a question");
    drop(stdin);
    let answer = child.wait_with_output().expect("an answer");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let text = String::from_utf8(answer.stdout).expect("text");
    Some(text.trim().trim_matches('"').to_owned())
}

#[test]
fn terraform_has_the_same_values() {
    let folder = folder(FILES);
    let mut text = format!("{DECLARATIONS}\nlocals {{\n");
    for (n, (expression, _)) in TABLE.iter().enumerate() {
        writeln!(text, "  t{n} = {expression}").expect("a text");
    }
    for (n, expression) in FAILING.iter().enumerate() {
        writeln!(text, "  f{n} = can({expression})").expect("a text");
    }
    text.push_str("}\n");
    fs::write(folder.path().join("main.tf"), text).expect("a file");
    let of = |letter: char, count: usize, each: &str| {
        let items: Vec<String> =
            (0..count).map(|n| each.replace('#', &format!("local.{letter}{n}"))).collect();
        format!("base64encode(jsonencode([{}]))", items.join(", "))
    };
    let Some(answer) = terraform(folder.path(), &of('t', TABLE.len(), "jsonencode(#)")) else {
        eprintln!("SKIPPED: terraform is not installed, so expected values were not compared with its own");
        return;
    };
    let decoded = |answer: &str| STANDARD.decode(answer).unwrap_or_else(|_| panic!("not base64: {answer}"));
    let values: Vec<String> = serde_json::from_slice(&decoded(&answer)).expect("texts");
    assert_eq!(values.len(), TABLE.len());
    let wrong: Vec<String> = TABLE
        .iter()
        .zip(&values)
        .filter(|((_, expected), value)| value != expected)
        .map(|((expression, expected), value)| {
            format!("{expression}\n  is in Terraform {value}\n  not             {expected}")
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let answer = terraform(folder.path(), &of('f', FAILING.len(), "#")).expect("it was there before");
    let can: Vec<bool> = serde_json::from_slice(&decoded(&answer)).expect("bools");
    let succeed: Vec<&&str> = FAILING.iter().zip(can).filter(|(_, can)| *can).map(|(e, _)| e).collect();
    assert!(succeed.is_empty(), "Terraform has values for {succeed:?}");
}
