//! A gate before the emulator: it sees every request, can answer in the emulator's place, and can let requests
//! through in waves. A wave is everything that is asked before anything of it is answered, so the number of waves
//! is the number of rounds that depend on each other, however long each takes.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use url::Url;

/// With nothing under way for so long, nobody is about to ask for more.
const QUIET: Duration = Duration::from_millis(400);

/// One request, as far as it matters.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) service: String,
    /// Of S3: method and path with query.
    pub(crate) action: String,
    /// Who signed it.
    pub(crate) key: String,
    pub(crate) head: String,
    /// Counted from 1; all 1 where requests are not held.
    pub(crate) wave: u32,
}

/// An answer in the emulator's place.
pub(crate) type Answer = Box<dyn Fn(&Seen) -> Option<String> + Send + Sync>;

pub(crate) struct Gate {
    pub(crate) endpoint: Url,
    shared: Arc<Shared>,
}

struct Shared {
    behind: String,
    waves: bool,
    answer: Answer,
    state: Mutex<State>,
    changed: Condvar,
    end: AtomicBool,
}

struct State {
    seen: Vec<Seen>,
    wave: u32,
    waiting: u32,
    under_way: u32,
    last: Instant,
}

impl Gate {
    pub(crate) fn new(behind: &Url, waves: bool, answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let behind = format!("{}:{}", behind.host_str().unwrap(), behind.port_or_known_default().unwrap());
        let state = State { seen: Vec::new(), wave: 1, waiting: 0, under_way: 0, last: Instant::now() };
        let shared = Arc::new(Shared {
            behind,
            waves,
            answer,
            state: Mutex::new(state),
            changed: Condvar::new(),
            end: AtomicBool::new(false),
        });
        let of_listener = Arc::clone(&shared);
        let _accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_listener.end.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&of_listener)) else { continue };
                // A client that has gone is no failure.
                let _serving = std::thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        let of_waves = Arc::clone(&shared);
        let _releasing = std::thread::spawn(move || of_waves.release());
        Self { endpoint, shared }
    }

    pub(crate) fn watching(behind: &Url) -> Self {
        Self::new(behind, false, Box::new(|_| None))
    }

    pub(crate) fn in_waves(behind: &Url) -> Self {
        Self::new(behind, true, Box::new(|_| None))
    }

    /// What was asked since the last time, and in how many waves.
    pub(crate) fn take(&self) -> (u32, Vec<Seen>) {
        let mut state = self.shared.state.lock().unwrap();
        let waves = state.wave - 1;
        state.wave = 1;
        (waves, std::mem::take(&mut state.seen))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        drop(TcpStream::connect((self.endpoint.host_str().unwrap(), self.endpoint.port().unwrap())));
    }
}

impl Shared {
    fn release(&self) {
        while !self.end.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
            let mut state = self.state.lock().unwrap();
            if self.waves && state.waiting > 0 && state.under_way == 0 && state.last.elapsed() > QUIET {
                state.wave += 1;
                state.under_way = std::mem::take(&mut state.waiting);
                drop(state);
                self.changed.notify_all();
            }
        }
    }

    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 1 << 16];
        let (head, body) = loop {
            let n = client.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            bytes.extend_from_slice(&buffer[..n]);
            let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
            let told = header(&head, "content-length").and_then(|v| v.parse().ok());
            assert!(header(&head, "transfer-encoding").is_none(), "{head}");
            let length: usize = told.unwrap_or(0);
            if bytes.len() >= at + 4 + length {
                break (head, bytes[at + 4..].to_vec());
            }
        };
        let mut seen = Seen { wave: 1, ..of(&head, &body) };
        {
            let mut state = self.state.lock().unwrap();
            state.last = Instant::now();
            if self.waves {
                seen.wave = state.wave;
                state.waiting += 1;
                while state.wave == seen.wave {
                    state = self.changed.wait(state).unwrap();
                }
            }
            state.seen.push(seen.clone());
        }
        let answer = match (self.answer)(&seen) {
            Some(answer) => answer.into_bytes(),
            None => self.pass(&head, &body)?,
        };
        let written = client.write_all(&answer);
        let mut state = self.state.lock().unwrap();
        state.under_way = state.under_way.saturating_sub(1);
        state.last = Instant::now();
        written
    }

    fn pass(&self, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut emulator = TcpStream::connect(&self.behind)?;
        let kept = head.split("\r\n").filter(|line| !line.to_lowercase().starts_with("connection:"));
        let head: String = kept.map(|line| format!("{line}\r\n")).collect();
        emulator.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
        emulator.write_all(body)?;
        let mut answer = Vec::new();
        let _length = emulator.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn of(head: &str, body: &[u8]) -> Seen {
    let scope = header(head, "authorization")
        .and_then(|value| value.split("Credential=").nth(1))
        .and_then(|rest| rest.split(',').next())
        .unwrap_or_default();
    let mut scope = scope.split('/');
    let key = scope.next().unwrap_or_default().to_owned();
    let service = scope.nth(2).unwrap_or_default().to_owned();
    let text = String::from_utf8_lossy(body);
    let action = text.split('&').find_map(|pair| pair.strip_prefix("Action=")).map(str::to_owned);
    let line = head.split(" HTTP/").next().unwrap_or_default().to_owned();
    Seen {
        action: if service == "s3" { line } else { action.unwrap_or(line) },
        service,
        key,
        head: head.to_owned(),
        wave: 1,
    }
}
