//! A shell as a person has it: on a real terminal.

use std::{
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result, ensure};
use pty_process::Size;
use rustix::{
    fs::{Mode, OFlags},
    process::{Signal, kill_process},
    termios::{LocalModes, Termios},
};
use tpi_proto::id::TaskId;
use tpi_tests::{Rig, eventually};

/// A terminal with a program in it.
struct Terminal {
    pty: Arc<pty_process::blocking::Pty>,
    /// Kept open, so that the modes can be looked at after the program.
    _other_side: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    before: Termios,
    child: Child,
}

impl Terminal {
    fn start(command: &Command, size: Size) -> Result<Self> {
        let (pty, pts) = pty_process::blocking::open()?;
        pty.resize(size)?;
        let name = rustix::pty::ptsname(&pty, Vec::new())?;
        let other_side = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
        let before = rustix::termios::tcgetattr(&other_side)?;
        let mut inside = pty_process::blocking::Command::new(command.get_program())
            .args(command.get_args())
            .env_clear()
            .env("TERM", "xterm");
        for (name, value) in command.get_envs() {
            inside = inside.env(name, value.unwrap_or_default());
        }
        if let Some(folder) = command.get_current_dir() {
            inside = inside.current_dir(folder);
        }
        let child = inside.spawn(pts)?;
        let pty = Arc::new(pty);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (from, to) = (Arc::clone(&pty), Arc::clone(&shown));
        // Ends with the test: the terminal is open until then.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = (&*from).read(&mut buffer) {
                if let (Ok(mut shown), Some(read)) = (to.lock(), buffer.get(..count)) {
                    shown.extend_from_slice(read);
                }
            }
        });
        Ok(Self { pty, _other_side: other_side, shown, before, child })
    }

    fn shown(&self) -> String {
        self.shown.lock().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn types(&self, text: &str) -> Result<()> {
        Ok((&*self.pty).write_all(text.as_bytes())?)
    }

    /// Waits until a text is on the screen.
    fn shows(&self, text: &str) -> Result<()> {
        eventually("a text on the terminal", || self.shown().contains(text).then_some(()))
            .with_context(|| format!("wanted {text:?} in {:?}", self.shown()))
    }

    fn modes(&self) -> Result<Termios> {
        Ok(rustix::termios::tcgetattr(&self._other_side)?)
    }

    /// Waits for the program's end; the terminal must be as it was before.
    fn ends_with(&mut self, code: i32) -> Result<()> {
        let status = eventually("the command to end", || self.child.try_wait().ok().flatten())
            .with_context(|| format!("the terminal shows {:?}", self.shown()))?;
        ensure!(status.code() == Some(code), "{status}: {:?}", self.shown());
        let (before, after) = (&self.before, self.modes()?);
        ensure!(
            before.input_modes == after.input_modes
                && before.output_modes == after.output_modes
                && before.control_modes == after.control_modes
                && before.local_modes == after.local_modes,
            "{before:?} became {after:?}"
        );
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A failed test leaves no program behind.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn waiting(rig: &Rig, name: &str) -> Result<TaskId> {
    let task = rig.submit(name, "#!/bin/sh\nwhile ! test -e go; do sleep 0.05; done\n", &[])?;
    rig.wait_running(&task)?;
    Ok(task)
}

#[test]
fn a_shell_on_a_terminal_behaves_like_one() -> Result<()> {
    let rig = Rig::new()?;
    waiting(&rig, "shell")?;
    let mut terminal = Terminal::start(&rig.command(["shell", "shell"]), Size::new(24, 80))?;
    // What is typed is shown as well: only the results are looked for.
    terminal.types("echo $((40+2))\r")?;
    terminal.shows("42\r\n")?;
    ensure!(
        !terminal.modes()?.local_modes.contains(LocalModes::ICANON),
        "the terminal here is raw meanwhile"
    );

    terminal.types("stty size\r")?;
    terminal.shows("24 80\r\n")?;
    terminal.types("until [ \"$(stty size)\" = '40 100' ]; do sleep 0.05; done; echo re''sized\r")?;
    terminal.pty.resize(Size::new(40, 100))?;
    terminal.shows("resized")?;

    terminal.types("echo be''gun; sleep 1000; echo not''reached\r")?;
    terminal.shows("begun")?;
    terminal.types("\x03")?;
    terminal.types("echo still he''re: $?\r")?;
    terminal.shows("still here: 130")?;
    ensure!(!terminal.shown().contains("notreached"), "{:?}", terminal.shown());

    terminal.types("exit 3\r")?;
    terminal.ends_with(3)?;
    rig.run(["destroy", "shell"])?.success()?;
    Ok(())
}

#[test]
fn a_terminal_is_put_in_order_when_the_connection_ends() -> Result<()> {
    let rig = Rig::new()?;
    let task = waiting(&rig, "cut")?;
    let mut terminal = Terminal::start(&rig.command(["shell", "cut"]), Size::new(24, 80))?;
    terminal.types("echo re''ady\r")?;
    terminal.shows("ready")?;
    for pid in rig.processes("agent-") {
        kill_process(pid, Signal::KILL)?;
    }
    terminal.ends_with(4)?;
    ensure!(terminal.shown().contains("hint:"), "{:?}", terminal.shown());
    rig.wait_slot(&task, 0, "another machine", |slot| slot.attempt.0 == 2)?;
    rig.run(["destroy", "cut"])?.success()?;
    Ok(())
}

#[test]
fn leaving_a_shell_from_outside_puts_the_terminal_in_order() -> Result<()> {
    let rig = Rig::new()?;
    waiting(&rig, "ended")?;
    let mut terminal = Terminal::start(&rig.command(["shell", "ended"]), Size::new(24, 80))?;
    terminal.types("echo re''ady; sleep 1000\r")?;
    terminal.shows("ready")?;
    let pid = i32::try_from(terminal.child.id()).ok().and_then(rustix::process::Pid::from_raw);
    kill_process(pid.context("the pid of the command")?, Signal::TERM)?;
    terminal.ends_with(130)?;
    rig.run(["destroy", "ended"])?.success()?;
    Ok(())
}
