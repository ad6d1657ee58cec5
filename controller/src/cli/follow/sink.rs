//! Where log records go: as they are, as lines, or as JSON.

use std::{collections::HashMap, io};

use base64::Engine as _;
use jiff::Timestamp;
use serde::Serialize;
use tpi_proto::id::{Attempt, SlotIndex};
use tpi_store::log::{Record, Stream};

use crate::cli::{
    error::CliError,
    screen::{Lines, Returns},
    ui::{Envelope, Streams, Ui},
};

/// The shape of what goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One document per record.
    Json,
    /// The script's bytes, unchanged.
    Raw,
    /// Whole lines.
    Lines {
        /// Whether each begins with its slot.
        prefixed: bool,
        returns: Returns,
    },
}

/// Takes records of all slots.
#[derive(Debug)]
pub(super) struct Sink {
    shape: Shape,
    streams: Streams,
    lines: HashMap<(SlotIndex, Stream), Lines>,
    /// The one that was written last.
    newest: Option<(SlotIndex, Stream)>,
}

/// One record in JSON. Bytes that are no text are base64.
#[derive(Debug, Serialize)]
struct LogLine<'a> {
    slot: SlotIndex,
    attempt: Attempt,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Timestamp>,
    stream: Stream,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl Sink {
    /// Chooses the shape: JSON when asked for; one slot's bytes as they are, except on a terminal where
    /// progress bars have to collapse above the status line; lines with their slot for several.
    pub(super) fn new(ui: &Ui, several: bool) -> Result<Self, CliError> {
        let shape = if ui.is_json() {
            Shape::Json
        } else if several {
            let returns = if ui.stdout_is_screen() { Returns::Collapse } else { Returns::Keep };
            Shape::Lines { prefixed: true, returns }
        } else if ui.is_live() && ui.stdout_is_screen() {
            Shape::Lines { prefixed: false, returns: Returns::Collapse }
        } else {
            Shape::Raw
        };
        Ok(Self { shape, streams: ui.streams()?, lines: HashMap::new(), newest: None })
    }

    pub(super) fn records(
        &mut self,
        slot: SlotIndex,
        attempt: Attempt,
        records: &[Record],
    ) -> Result<(), CliError> {
        for record in records {
            match self.shape {
                Shape::Raw => self.streams.write(record.stream, &record.data)?,
                Shape::Json => {
                    let line = Envelope::new("log", log_line(slot, attempt, record)).line()?;
                    self.streams.write(Stream::Stdout, &line)?;
                }
                Shape::Lines { prefixed, returns } => {
                    let key = (slot, record.stream);
                    self.newest = Some(key);
                    let lines = self.lines.entry(key).or_insert_with(|| Lines::new(returns));
                    let mut whole = Vec::with_capacity(record.data.len() + 16);
                    lines.push(&record.data, |line| append(&mut whole, prefixed, slot, line));
                    self.streams.write(record.stream, &whole)?;
                }
            }
        }
        Ok(())
    }

    /// A line of JSON in its place among the records; nothing in other shapes.
    pub(super) fn json<T: Serialize>(&mut self, kind: &str, body: &T) -> Result<(), CliError> {
        if self.shape == Shape::Json {
            let line = Envelope::new(kind, body).line()?;
            self.streams.write(Stream::Stdout, &line)?;
        }
        Ok(())
    }

    /// What there is of the newest line, for the status line to show.
    pub(super) fn partial(&self) -> &[u8] {
        self.newest.and_then(|key| self.lines.get(&key)).map(Lines::partial).unwrap_or_default()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.streams.flush()
    }

    /// The end of a slot's streams.
    pub(super) fn finish_slot(&mut self, slot: SlotIndex) -> io::Result<()> {
        let Shape::Lines { prefixed, .. } = self.shape else { return self.flush() };
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(mut lines) = self.lines.remove(&(slot, stream)) {
                let mut last = Vec::new();
                lines.finish(|line| append(&mut last, prefixed, slot, line));
                self.streams.write(stream, &last)?;
            }
        }
        self.flush()
    }

    /// The end of everything.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let mut slots: Vec<SlotIndex> = self.lines.keys().map(|(slot, _)| *slot).collect();
        slots.sort_unstable();
        for slot in slots {
            self.finish_slot(slot)?;
        }
        self.flush()
    }
}

fn append(to: &mut Vec<u8>, prefixed: bool, slot: SlotIndex, line: &[u8]) {
    if prefixed {
        to.extend_from_slice(format!("[{slot}] ").as_bytes());
    }
    to.extend_from_slice(line);
    to.push(b'\n');
}

fn log_line(slot: SlotIndex, attempt: Attempt, record: &Record) -> LogLine<'_> {
    let text = std::str::from_utf8(&record.data).ok();
    LogLine {
        slot,
        attempt,
        offset: record.offset,
        time: Timestamp::from_nanosecond(record.time_unix_nanos.into()).ok(),
        stream: record.stream,
        text,
        base64: text.is_none().then(|| base64::engine::general_purpose::STANDARD.encode(&record.data)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_in_json_are_text_or_base64() {
        let mut record = Record {
            offset: 10,
            time_unix_nanos: 1_700_000_000_000_000_000,
            stream: Stream::Stdout,
            data: "epoch 1\n".into(),
        };
        let json = |record: &Record| {
            let line = Envelope::new("log", log_line(SlotIndex(0), Attempt(1), record)).line();
            String::from_utf8(line.expect("is JSON")).expect("is text")
        };
        insta::assert_snapshot!(json(&record), @r#"{"version":1,"kind":"log","slot":0,"attempt":1,"offset":10,"time":"2023-11-14T22:13:20Z","stream":"stdout","text":"epoch 1\n"}"#);
        record.data = vec![0xff, 0].into();
        insta::assert_snapshot!(json(&record), @r#"{"version":1,"kind":"log","slot":0,"attempt":1,"offset":10,"time":"2023-11-14T22:13:20Z","stream":"stdout","base64":"/wA="}"#);
    }

    #[test]
    fn lines_of_several_slots_are_told_apart() {
        let mut out = Vec::new();
        append(&mut out, true, SlotIndex(3), b"hello");
        append(&mut out, false, SlotIndex(3), b"hello");
        assert_eq!(out, b"[3] hello\nhello\n");
    }
}
