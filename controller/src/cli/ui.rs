//! Where everything that people and programs read goes out: data to stdout, everything else to stderr.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    os::fd::AsFd,
};

use anstyle::{AnsiColor, Style};
use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;
use tpi_store::log::Stream;

use super::error::CliError;

/// Version of every JSON shape that is printed.
pub const JSON_VERSION: u32 = 1;

/// `--output`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text; on a terminal with colours, progress bars and a status line
    #[default]
    Auto,
    /// Plain text, on a terminal too
    Text,
    /// One JSON document, or one per line where things happen over time
    Json,
}

/// `--color`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How to talk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manner {
    /// Shape of data.
    pub format: Format,
    /// Whether colours are used.
    pub color: Color,
    /// Whether chatter is left out.
    pub quiet: bool,
}

/// Both ends of the conversation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ui {
    format: Format,
    quiet: bool,
    colored_out: bool,
    colored_err: bool,
    terminal_out: bool,
    /// Everything that is drawn and redrawn on stderr; hidden where that is no terminal.
    drawing: MultiProgress,
    live: bool,
}

/// Every printed JSON document says its version and what it is.
#[derive(Debug, Serialize)]
pub struct Envelope<'a, T> {
    /// Absent where the body brings its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u32>,
    kind: &'a str,
    #[serde(flatten)]
    body: T,
}

impl<'a, T: Serialize> Envelope<'a, T> {
    /// A document of a kind.
    pub fn new(kind: &'a str, body: T) -> Self {
        Self { version: Some(JSON_VERSION), kind, body }
    }

    /// A document whose body has a `version` of its own.
    pub fn report(kind: &'a str, body: T) -> Self {
        Self { version: None, kind, body }
    }

    /// One line.
    ///
    /// # Errors
    /// When the body cannot be written as JSON.
    pub fn line(&self) -> Result<Vec<u8>, CliError> {
        let mut line =
            serde_json::to_vec(self).map_err(|error| CliError::internal("writing JSON", &error))?;
        line.push(b'\n');
        Ok(line)
    }
}

impl Ui {
    /// Looks at the terminal and the environment once.
    #[must_use]
    pub fn new(manner: Manner) -> Self {
        let terminal_out = io::stdout().is_terminal();
        let terminal_err = io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let live = manner.format == Format::Auto && terminal_err && !dumb && !manner.quiet;
        let drawing = MultiProgress::with_draw_target(if live {
            ProgressDrawTarget::stderr_with_hz(20)
        } else {
            ProgressDrawTarget::hidden()
        });
        Self {
            format: manner.format,
            quiet: manner.quiet,
            colored_out: colored(manner.color, terminal_out && !dumb),
            colored_err: colored(manner.color, terminal_err && !dumb),
            terminal_out,
            drawing,
            live,
        }
    }

    /// Whether data is JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether things may be drawn and redrawn on stderr.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Whether somebody looks at stdout.
    #[must_use]
    pub fn stdout_is_screen(&self) -> bool {
        self.terminal_out && self.format == Format::Auto
    }

    /// What is drawn on stderr.
    #[must_use]
    pub fn drawing(&self) -> &MultiProgress {
        &self.drawing
    }

    /// Chatter: silent with `--quiet`, and in JSON, where stderr carries JSON only.
    pub fn status(&self, text: &str) {
        if !self.quiet && !self.is_json() {
            self.stderr(format_args!("{text}\n"));
        }
    }

    /// Something that the user should know, and where possible act on.
    pub fn warning(&self, text: &str) {
        if self.is_json() {
            #[derive(Serialize)]
            struct Warning<'a> {
                message: &'a str,
            }
            if let Ok(line) = Envelope::new("warning", Warning { message: text }).line() {
                self.stderr(format_args!("{}", String::from_utf8_lossy(&line)));
            }
        } else {
            let label = self.paint(AnsiColor::Yellow.on_default().bold(), "warning:");
            self.stderr(format_args!("{label} {text}\n"));
        }
    }

    /// What to do next. Silent like chatter.
    pub fn hint(&self, text: &str) {
        let label = self.paint(AnsiColor::Cyan.on_default().bold(), "hint:");
        self.status(&format!("{label} {text}"));
    }

    /// An error, as text or as JSON. Printed with `--quiet` too.
    pub fn error(&self, error: &CliError) {
        if self.is_json() {
            if let Ok(line) = error.json().line() {
                self.stderr(format_args!("{}", String::from_utf8_lossy(&line)));
            }
        } else {
            let text = error.render(&|style, text| self.paint(style, text));
            self.stderr(format_args!("{text}"));
        }
    }

    /// Text on stderr, above whatever is drawn there. There is nobody to tell when it cannot be written.
    fn stderr(&self, text: std::fmt::Arguments<'_>) {
        self.drawing.suspend(|| {
            drop(io::stderr().lock().write_fmt(text));
        });
    }

    /// For stderr.
    #[must_use]
    pub fn paint(&self, style: Style, text: &str) -> String {
        if self.colored_err { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// For stdout.
    #[must_use]
    pub fn paint_data(&self, style: Style, text: &str) -> String {
        if self.colored_out { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    /// One JSON document on stdout.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn json<T: Serialize>(&self, document: &Envelope<'_, T>) -> Result<(), CliError> {
        self.data(&document.line()?)
    }

    /// Data on stdout.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn data(&self, bytes: &[u8]) -> Result<(), CliError> {
        self.drawing.suspend(|| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()
        })?;
        Ok(())
    }

    /// Both streams for a script's bytes, buffered and written as they are.
    ///
    /// # Errors
    /// When the process has no more file descriptors.
    pub fn streams(&self) -> Result<Streams, CliError> {
        // The standard library would look for line ends in every piece and flush at each.
        Ok(Streams {
            stdout: duplicate(io::stdout())?,
            stderr: duplicate(io::stderr())?,
            target: Stream::Stdout,
            held: Vec::with_capacity(HELD_BACK),
            drawing: self.drawing.clone(),
        })
    }
}

fn colored(choice: Color, terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match choice {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => !set("NO_COLOR") && (terminal || set("CLICOLOR_FORCE")),
    }
}

fn duplicate(of: impl AsFd) -> io::Result<File> {
    Ok(File::from(of.as_fd().try_clone_to_owned()?))
}

/// Bytes held back before they are written at once.
const HELD_BACK: usize = 256 * 1024;

/// See [`Ui::streams`].
#[derive(Debug)]
pub struct Streams {
    stdout: File,
    stderr: File,
    /// Where `held` goes: one at a time, so that the order between both is kept where they end in one place.
    target: Stream,
    held: Vec<u8>,
    drawing: MultiProgress,
}

impl Streams {
    /// Takes bytes for one of both; they may be held back until [`Streams::flush`].
    ///
    /// # Errors
    /// When one of them cannot be written.
    pub fn write(&mut self, target: Stream, bytes: &[u8]) -> io::Result<()> {
        if self.target != target || self.held.len() + bytes.len() > HELD_BACK {
            self.flush()?;
        }
        self.target = target;
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    /// Lets everything out, above whatever is drawn on the terminal.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let (held, file) = match self.target {
            Stream::Stdout => (&self.held, &mut self.stdout),
            Stream::Stderr => (&self.held, &mut self.stderr),
        };
        let written = self.drawing.suspend(|| file.write_all(held));
        self.held.clear();
        written
    }
}
