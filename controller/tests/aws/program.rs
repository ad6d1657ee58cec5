//! The program itself on the emulator, as a user calls it, from a computer that has nothing of ours.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use url::Url;

use super::Place;

/// A user's computer.
pub(crate) struct Computer {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) region: String,
}

impl Computer {
    pub(crate) fn new(place: &Place, endpoint: &Url) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        fs::write(dir.path().join("work/data.txt"), "data").unwrap();
        fs::write(dir.path().join("agent"), "#!/bin/sh\nexec sleep 100000\n").unwrap();
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint.as_str().trim_end_matches('/')),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self { dir, variables, region: place.api.region.clone() }
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn unset(&mut self, name: &str) {
        self.variables.retain(|(there, _)| there != name);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn script(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    pub(crate) fn run_until(&self, arguments: &[&str], stop_at: Option<&str>) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tpi-controller"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("TPI_AGENT", self.path("agent"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .envs(stop_at.map(|point| ("__TPI_TEST_STOP_AT", point)))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .args(arguments)
            .output()
            .unwrap()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.run_until(arguments, None)
    }

    /// Submits, until a point where that is given.
    pub(crate) fn submit(&self, name: &str, stop_at: Option<&str>) -> Output {
        let region = self.region.clone();
        self.run_until(
            &[
                "submit",
                "--detach",
                "--cloud",
                "aws",
                "--region",
                &region,
                "--ingress",
                "none",
                "--name",
                name,
                "--workdir",
                "work",
                "--",
                "true",
            ],
            stop_at,
        )
    }
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub(crate) fn told(output: &Output) -> String {
    format!(
        "{:?}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// What was printed by a program that has to succeed.
pub(crate) fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", told(output));
    out(output)
}

pub(crate) fn fresh(name: &str) -> String {
    format!("{name}{:08x}", rand::random::<u32>())
}
