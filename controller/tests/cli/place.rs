//! Running the program where nothing else is.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

/// A place of its own: nothing of the developer's account reaches the program, nothing of it stays.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("temporary directory") }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> &Self {
        fs::write(self.path().join(name), content).expect("writes");
        self
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpi-controller"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.path())
            .current_dir(self.path())
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// What is on the screen when stdin, stdout and stderr are a terminal.
    pub(crate) fn on_terminal(&self, arguments: &[&str]) -> String {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&near).expect("grants");
        unlockpt(&near).expect("unlocks");
        let name = ptsname(&near, Vec::new()).expect("has a name");
        let open = || {
            let name = name.to_str().expect("text");
            fs::OpenOptions::new().read(true).write(true).open(name).expect("opens")
        };
        let mut child = self
            .command(arguments)
            .env("TERM", "xterm")
            .stdin(open())
            .stdout(open())
            .stderr(open())
            .spawn()
            .expect("the program starts");
        let mut screen = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            // The other end gone is an error (EIO), and the end.
            match rustix::io::read(&near, &mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => screen.extend_from_slice(&buffer[..length]),
            }
        }
        assert!(child.wait().expect("ends").code().is_some());
        String::from_utf8_lossy(&screen).into_owned()
    }

    /// All that there is to see, with the place's own path taken out.
    pub(crate) fn seen(&self, arguments: &[&str]) -> String {
        self.show(&self.run(arguments))
    }

    pub(crate) fn show(&self, output: &Output) -> String {
        let text = |bytes: &[u8]| {
            let real = self.path().canonicalize().expect("real path");
            String::from_utf8_lossy(bytes)
                .replace(&real.display().to_string(), "[place]")
                .replace(&self.path().display().to_string(), "[place]")
        };
        let mut seen = format!("exit: {}\n", output.status.code().map_or(-1, |code| code));
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            if !bytes.is_empty() {
                write!(seen, "--- {name}\n{}", text(bytes)).expect("writes");
            }
        }
        seen
    }
}
