//! Something before the emulator that answers some requests itself, as AWS would and the emulator does not.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use url::Url;

/// A request that contains all of the texts is answered with this.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) to: Vec<String>,
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn new(to: &[&str], status: u16, body: impl Into<String>) -> Self {
        Self { to: to.iter().map(|t| (*t).to_owned()).collect(), status, body: body.into() }
    }
}

#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) endpoint: Url,
    seen: Arc<Mutex<Vec<String>>>,
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Front {
    pub(crate) fn before(emulator: &Url, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let behind = (emulator.host_str().unwrap().to_owned(), emulator.port_or_known_default().unwrap());
        let end = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (ended, noted) = (Arc::clone(&end), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for stream in listener.incoming() {
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                    let (behind, answers, noted) = (&behind, &answers, &noted);
                    // A client that goes away in the middle is its own affair.
                    let _thread = scope.spawn(move || stream.and_then(|s| serve(s, behind, answers, noted)));
                }
            });
        });
        Self { endpoint, seen, end, thread: Some(thread) }
    }

    /// Requests so far, whoever answered them.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // Wakes it up.
        let port = self.endpoint.port().unwrap_or_default();
        drop(TcpStream::connect(("127.0.0.1", port)));
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// One request for each connection.
fn serve(
    mut client: TcpStream,
    behind: &(String, u16),
    answers: &[Answer],
    seen: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    let request = loop {
        let length = client.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or_default() {
                break text;
            }
        }
    };
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
    let own = answers.iter().find(|answer| answer.to.iter().all(|text| request.contains(text)));
    if let Some(Answer { status, body, .. }) = own {
        let kind = if body.starts_with('{') { "application/x-amz-json-1.1" } else { "text/xml" };
        return write!(
            client,
            "HTTP/1.1 {status} Decided\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let mut server = TcpStream::connect((behind.0.as_str(), behind.1))?;
    let (head, body) = request.split_once("\r\n\r\n").unwrap_or((&request, ""));
    write!(server, "{head}\r\nConnection: close\r\n\r\n{body}")?;
    let mut answer = Vec::new();
    let _length = server.read_to_end(&mut answer)?;
    // The emulator may keep connections; here each has one request.
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    write!(client, "{head}\r\nConnection: close\r\n\r\n{body}")
}
