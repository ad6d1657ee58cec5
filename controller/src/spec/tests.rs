use std::fs;

use super::*;
use tpi_proto::spec::{Ingress, Spot};

fn around(dir: &Path) -> Surroundings {
    Surroundings {
        current_dir: dir.to_path_buf(),
        environment: BTreeMap::new(),
        clouds: vec![CloudName::Local],
        local_gpu: false,
    }
}

fn text(text: &str) -> Request {
    Request { script: Some(ScriptSource::Text(text.to_owned())), ..Request::default() }
}

fn render(errors: &SpecErrors) -> String {
    errors.0.iter().map(|e| format!("{e}\n  hint: {}\n", e.hint)).collect()
}

#[test]
fn defaults_are_those_of_the_resource_except_the_cloud() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let checked = check(&text("#!/bin/sh\ntrue\n"), &around(dir.path())).expect("no mistakes");
    let spec = checked.spec;
    assert_eq!(spec.cloud, CloudName::Local);
    assert_eq!(
        (spec.region.as_str(), spec.machine.as_str(), spec.image.as_str()),
        ("us-west", "m", "ubuntu")
    );
    assert_eq!((spec.timeout_seconds, spec.grace_seconds), (86_400, 30));
    assert_eq!((spec.spot, spec.parallelism.get(), spec.disk_size), (Spot::OnDemand, 1, None));
    assert_eq!((spec.name.as_str(), spec.ingress), ("task", Ingress::Caller));
    assert_eq!(checked.warnings, Vec::<String>::new());
}

#[test]
fn all_mistakes_come_at_once_each_with_a_way_out() {
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::write(dir.path().join("train.py"), "import os\n").expect("writes");
    let request = Request {
        name: Some("x".repeat(64)),
        cloud: Some("azure".to_owned()),
        region: Some(String::new()),
        machine: Some(" ".to_owned()),
        image: Some(String::new()),
        disk_size: Some("big".to_owned()),
        spot: Some("NaN".to_owned()),
        parallelism: Some("0".to_owned()),
        permission_set: None,
        tags: vec!["novalue".to_owned(), "tpi-x=1".to_owned()],
        environment: vec!["=x".to_owned(), "A*=secret".to_owned(), "TPI_SLOT=3".to_owned()],
        timeout: Some("0".to_owned()),
        grace: Some("2h".to_owned()),
        script: Some(ScriptSource::File("train.py".into())),
        workdir: Some("missing".into()),
        output: Some("../out".to_owned()),
        exclude: Vec::new(),
        gitignore: false,
        container: Some("a b".to_owned()),
        ingress: vec!["everyone".to_owned()],
        storage_container: None,
        subnets: Vec::new(),
        provision_timeout: Some("0".to_owned()),
    };
    let errors = check(&request, &around(dir.path())).expect_err("mistakes");
    insta::assert_snapshot!(render(&errors));
}

#[test]
fn a_known_cloud_that_this_build_lacks_says_so() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let request = Request { cloud: Some("aws".to_owned()), ..text("#!/bin/sh\n") };
    let errors = check(&request, &around(dir.path())).expect_err("not in this build");
    insta::assert_snapshot!(render(&errors));
}

#[test]
fn scripts_that_could_not_start_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("writes");
    write("binary", b"\x7fELF\xff\xfe");
    write("dos", b"#!/bin/sh\r\necho\r\n");
    write("bare", b"#!python3\n");
    write("empty", b"");
    let mut all = String::new();
    for name in ["binary", "dos", "bare", "empty", "absent", "."] {
        let request = Request { script: Some(ScriptSource::File(name.into())), ..Request::default() };
        all += &render(&check(&request, &around(dir.path())).expect_err("refused"));
    }
    all += &render(&check(&Request::default(), &around(dir.path())).expect_err("nothing to run"));
    insta::assert_snapshot!(all);
}

#[test]
fn the_local_cloud_refuses_what_this_computer_is_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let with = |machine: &str, region: &str| Request {
        machine: Some(machine.to_owned()),
        region: Some(region.to_owned()),
        ..text("#!/bin/sh\n")
    };
    let mut gpu = around(dir.path());
    gpu.local_gpu = true;
    check(&with("m+t4", "local"), &gpu).expect("this one has a GPU");
    check(&with("local", "eu-west"), &around(dir.path())).expect("this computer");
    let errors = check(&with("m+t4", "us-east-1"), &around(dir.path())).expect_err("refused");
    insta::assert_snapshot!(render(&errors));
    assert!(check(&with("p3.2xlarge", "local"), &gpu).is_err());
}

#[test]
fn output_stays_inside_the_work_directory() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let work = dir.path().canonicalize().expect("real path").join("work");
    fs::create_dir(&work).expect("makes");
    std::os::unix::fs::symlink("/", work.join("out")).expect("links");
    let output = |output: &str| {
        let request =
            Request { workdir: Some("work".into()), output: Some(output.to_owned()), ..text("#!/bin/sh\n") };
        check(&request, &around(dir.path())).map(|c| c.spec.storage.output)
    };
    assert_eq!(output("results/"), Ok(Some("results".to_owned())));
    assert_eq!(output("./a/../b"), Ok(Some("b".to_owned())));
    assert_eq!(output("."), Ok(Some(".".to_owned())));
    assert_eq!(output(""), Ok(None));
    assert_eq!(output(work.join("deep/er").to_str().expect("text")), Ok(Some("deep/er".to_owned())));
    for bad in ["..", "a/../../b", "/etc", "/", "out", "out/etc"] {
        assert!(output(bad).is_err(), "{bad}");
    }
    let lone = Request { output: Some("results".to_owned()), ..text("#!/bin/sh\n") };
    assert!(check(&lone, &around(dir.path())).is_err());
}

#[test]
fn a_command_becomes_a_script() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let request = Request {
        script: Some(ScriptSource::Command(["python3", "-c", "print('a b')"].map(OsString::from).to_vec())),
        ..Request::default()
    };
    let checked = check(&request, &around(dir.path())).expect("no mistakes");
    assert_eq!(checked.spec.script, "#!/bin/sh\nexec python3 -c 'print('\\''a b'\\'')'\n");
    assert_eq!(checked.spec.name, "python3");
}

#[test]
fn the_environment_imports_what_is_asked_and_what_ci_sets() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut around = around(dir.path());
    for (name, value) in [
        ("CI", "true"),
        ("GITHUB_TOKEN", "t"),
        ("REPO_TOKEN", "r"),
        ("WANDB_KEY", "w"),
        ("OTHER", "o"),
        ("PATH", "/bin"),
        ("TPI_SLOT", "9"),
    ] {
        let _new = around.environment.insert(name.into(), value.into());
    }
    let request = Request {
        environment: ["A=1", "EMPTY=", "OTHER", "WANDB_*", "MISSING", "CI=mine", "TPI_*"]
            .map(String::from)
            .to_vec(),
        ..text("#!/bin/sh\n")
    };
    let checked = check(&request, &around).expect("no mistakes");
    let got: Vec<_> = checked.environment.variables.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(got, ["A=1", "CI=mine", "EMPTY=", "GITHUB_TOKEN=t", "OTHER=o", "REPO_TOKEN=r", "WANDB_KEY=w"]);
    assert_eq!(
        checked.spec.environment,
        ["A", "CI", "EMPTY", "GITHUB_TOKEN", "OTHER", "REPO_TOKEN", "WANDB_KEY"]
    );
    assert_eq!(checked.warnings.len(), 2, "{:?}", checked.warnings);
}

#[test]
fn identifiers_come_from_the_name_the_run_or_chance() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let plain = around(dir.path());
    let id = |name: Option<&str>, around: &Surroundings| {
        let request = Request { name: name.map(str::to_owned), ..text("#!/bin/sh\n") };
        check(&request, around).expect("no mistakes").id
    };
    assert_eq!(id(Some("test"), &plain).as_str(), "tpi-test-3z4xlzwq-3u0vweb4");
    assert_eq!(id(Some("tpi-test-3z4xlzwq-3u0vweb4"), &plain).as_str(), "tpi-test-3z4xlzwq-3u0vweb4");
    assert_ne!(id(None, &plain), id(None, &plain));
    let run = |variable: &str, value: &str| {
        let mut around = plain.clone();
        let _new = around.environment.insert(variable.into(), value.into());
        around
    };
    for variable in ["GITHUB_RUN_ID", "CI_PIPELINE_ID", "BITBUCKET_PIPELINE_UUID"] {
        let (one, two) = (run(variable, "1"), run(variable, "2"));
        assert_eq!(id(Some("a"), &one), id(Some("a"), &one));
        assert_eq!(id(None, &one), id(None, &one));
        assert_ne!(id(Some("a"), &one), id(Some("b"), &one));
        assert_ne!(id(Some("a"), &one), id(Some("a"), &two));
    }
    let request = Request { name: Some("tpi-test-3z4xlzwq-3u0vweb5".to_owned()), ..text("#!/bin/sh\n") };
    assert!(check(&request, &plain).is_err());
    let request = Request { name: Some("…".to_owned()), ..text("#!/bin/sh\n") };
    assert!(check(&request, &plain).is_err());
}

#[cfg(feature = "aws")]
#[test]
fn what_aws_does_not_have_is_told_with_the_flags() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let around = Surroundings { clouds: vec![CloudName::Local, CloudName::Aws], ..around(dir.path()) };
    let aws = |region: &str, machine: &str, image: &str| Request {
        cloud: Some("aws".to_owned()),
        region: Some(region.to_owned()),
        machine: Some(machine.to_owned()),
        image: Some(image.to_owned()),
        ..text("#!/bin/sh\ntrue\n")
    };
    let errors =
        check(&aws("us-west-1a", "l+k80", "u@*:x86_64:ubuntu*"), &around).expect_err("three mistakes");
    insta::assert_snapshot!(render(&errors));
    let good = aws("eu-central-1", "c7i.4xlarge", "ami-0123456789abcdef0");
    assert!(check(&good, &around).is_ok());
}
