//! Carries what the script writes from its pipes to the spool, on a thread of its own.
//!
//! The pipes are read only as quickly as the spool takes them: a chatty script waits in `write`, nothing is
//! dropped. While the disk is full the pump does not read at all, and goes on when there is room.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    pipe::fcntl_setpipe_size,
};
use tokio::sync::{mpsc, oneshot};
use tpi_store::log::Stream;

use super::spool::Writer;
use crate::{
    clock::Clock,
    supervisor::{Concern, Event},
};

const READ_BYTES: usize = 128 << 10;
/// Room in a pipe: what a script may write ahead before the pump has to have its turn. As much as anybody may ask for.
const PIPE_BYTES: usize = 1 << 20;
/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// The reading ends of the script's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdout: PipeReader,
    pub(crate) stderr: PipeReader,
}

/// The writing ends, for the script.
#[derive(Debug)]
pub(crate) struct PipeEnds {
    pub(crate) stdout: PipeWriter,
    pub(crate) stderr: PipeWriter,
}

/// A pair of pipes.
pub(crate) fn pipes() -> io::Result<(Pipes, PipeEnds)> {
    let (stdout, stdout_end) = io::pipe()?;
    let (stderr, stderr_end) = io::pipe()?;
    Ok((Pipes { stdout, stderr }, PipeEnds { stdout: stdout_end, stderr: stderr_end }))
}

/// A running pump.
#[derive(Debug)]
pub(crate) struct Pump {
    /// Closed to say that nobody will write any more, whoever holds the pipes open.
    cut: Option<PipeWriter>,
    /// Closed to say that a full disk is not worth waiting for any more.
    abandon: Option<PipeWriter>,
    done: oneshot::Receiver<Writer>,
    finished: Option<Writer>,
}

impl Pump {
    /// Starts the thread.
    pub(crate) fn start(
        writer: Writer,
        pipes: Pipes,
        clock: Clock,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        for pipe in [&pipes.stdout, &pipes.stderr] {
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
            // A pipe of the usual size is only slower.
            let _usual = fcntl_setpipe_size(pipe, PIPE_BYTES);
        }
        let (cut_seen, cut) = io::pipe()?;
        let (abandon_seen, abandon) = io::pipe()?;
        let (report, done) = oneshot::channel();
        let body =
            Body { writer, clock, events, cut: cut_seen, abandon: abandon_seen, buffer: BytesMut::new() };
        // Detached on purpose: the thread ends when its pipes do, and reports through `done`.
        thread::Builder::new().name("log-pump".to_owned()).spawn(move || {
            // The receiver is gone when nobody wants the log any more; the writer is dropped then.
            drop(report.send(body.run(pipes)));
        })?;
        Ok(Self { cut: Some(cut), abandon: Some(abandon), done, finished: None })
    }

    /// Waits until both pipes are at their end. May be dropped and called again.
    pub(crate) async fn drained(&mut self) {
        if self.finished.is_none() {
            self.finished = (&mut self.done).await.ok();
        }
    }

    /// Takes what is in the pipes now and ends, whoever still holds them.
    pub(crate) fn cut(&mut self) {
        self.cut = None;
    }

    /// Waits for the end and closes the log.
    pub(crate) async fn finish(mut self) {
        self.cut();
        self.drained().await;
        if let Some(writer) = self.finished.take() {
            writer.complete();
        }
        drop(self.abandon.take());
    }
}

struct Body {
    writer: Writer,
    clock: Clock,
    events: mpsc::Sender<Event>,
    cut: PipeReader,
    abandon: PipeReader,
    buffer: BytesMut,
}

impl Body {
    fn run(mut self, pipes: Pipes) -> Writer {
        let mut sources = vec![
            (Stream::Stdout, OwnedFd::from(pipes.stdout)),
            (Stream::Stderr, OwnedFd::from(pipes.stderr)),
        ];
        while !sources.is_empty() {
            let (ready, cut) = match wait(&sources, &self.cut) {
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(%error, "the script's output cannot be waited for");
                    break;
                }
            };
            let mut ended = Vec::new();
            let mut read = 0;
            for index in ready {
                let Some((stream, fd)) = sources.get(index) else { continue };
                match self.read(fd) {
                    Ok(Some(data)) if data.is_empty() => ended.push(index),
                    Ok(Some(data)) => {
                        read += data.len();
                        if !self.keep(*stream, &data) {
                            return self.writer;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::error!(%error, "the script's output cannot be read");
                        ended.push(index);
                    }
                }
            }
            for index in ended.into_iter().rev() {
                drop(sources.remove(index));
            }
            if cut && read == 0 {
                break;
            }
        }
        self.writer
    }

    /// What is there; empty at the end; `None` when there is nothing now.
    fn read(&mut self, fd: &OwnedFd) -> Result<Option<Bytes>, Errno> {
        self.buffer.resize(READ_BYTES, 0);
        match rustix::io::read(fd, &mut self.buffer[..]) {
            Ok(n) => Ok(Some(self.buffer.split_to(n).freeze())),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Appends until it works; false when the wait was given up.
    fn keep(&mut self, stream: Stream, data: &Bytes) -> bool {
        let mut troubled = false;
        loop {
            match self.writer.append(self.clock.now_nanos(), stream, data.clone()) {
                Ok(()) => break,
                Err(error) => {
                    self.writer.make_room();
                    if !troubled {
                        troubled = true;
                        let text = format!(
                            "the script's output waits because it cannot be written to the machine's disk: {error}"
                        );
                        self.concern(Some(text));
                    }
                    if closed_within(&self.abandon, RETRY) {
                        return false;
                    }
                }
            }
        }
        if troubled {
            self.concern(None);
        }
        true
    }

    fn concern(&self, text: Option<String>) {
        // The supervisor is gone only when nobody is to be told any more.
        drop(self.events.blocking_send(Event::Concern { concern: Concern::Spool, text }));
    }
}

/// Which sources can be read (or are at their end), and whether to cut.
fn wait(sources: &[(Stream, OwnedFd)], cut: &PipeReader) -> Result<(Vec<usize>, bool), Errno> {
    let mut fds: Vec<_> = sources.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)).collect();
    fds.push(PollFd::new(cut, PollFlags::IN));
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok((Vec::new(), false)),
        Err(error) => return Err(error),
    }
    let cut = fds.pop().is_some_and(|fd| !fd.revents().is_empty());
    let ready = fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(i, _)| i).collect();
    Ok((ready, cut))
}

fn closed_within(fd: &PipeReader, time: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) };
    poll(&mut fds, Some(&timeout)).is_ok_and(|n| n > 0)
}
