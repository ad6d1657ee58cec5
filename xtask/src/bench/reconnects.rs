//! Reconnecting: a proxy between client and agent breaks the connection after a random number of bytes, 1,000
//! times, while numbered lines flow. Each number has to come once. The script goes on until that has happened.
//!
//! The client finds the agent by what the agent published in the store, so that is where the proxy is put in.
//! Neither side trusts it: the certificates are compared end to end.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::corpus::{LINE, Random};
use super::product::Product;
use super::stream::{self, Client};
use super::{Aim, Bench};
use crate::process;

const WHAT: &str = "reconnects while logs flow";

/// Longest time that lines flow, whatever the number of breaks by then.
const LONGEST: Duration = Duration::from_secs(300);

/// Prints five thousand numbered lines of 100 bytes a second until there is a file STOP, then how many.
const NUMBERS: &str = "
import os, sys, time
count = 0
while not os.path.exists('STOP'):
    for count in range(count + 1, count + 101):
        sys.stdout.write(f'{count - 1:012} '.ljust(99, '.') + '\\n')
    sys.stdout.flush()
    time.sleep(0.02)
print('end', count)
";

pub(super) fn measure(bench: &mut Bench<'_>) -> Result<()> {
    bench.part(WHAT, "tpi", |bench| {
        let folder = bench.folder("reconnects")?;
        let breaks = bench.scaled(1000);
        let (stop, numbers) = (folder.join("stop"), folder.join("numbers.py"));
        std::fs::write(&numbers, NUMBERS.replace("STOP", &stop.to_string_lossy()))?;
        let python = process::found("python3").context("the script of this measure needs python3")?;
        stream::script(&folder, &format!("exec '{}' '{}'", python.display(), numbers.display()))?;

        let mut product = Product::new(bench, "reconnects")?;
        product.submit("reconnects", &["--script", &folder.join("script.sh").to_string_lossy()])?;
        product.wait_agent()?;
        let proxy = put_in(&product, breaks)?;

        let mut client = Client::start(&mut product.command(&["attach", "reconnects"]))?;
        client.wait_ready()?;
        File::create(folder.join("go"))?;
        let started = Instant::now();
        let mut seen = Sequence::default();
        let mut stopped = Ok(());
        client.lines(|line| {
            seen.line(line);
            if (proxy.broken() >= breaks || started.elapsed() > LONGEST || bench.interrupt.happened())
                && !stop.exists()
            {
                stopped = File::create(&stop).map(drop);
            }
        })?;
        stopped.context("stopping the script")?;
        let took = started.elapsed();

        let aim = Some(Aim::AtLeast(breaks as f64));
        bench.row("connections broken while logs flow", "tpi", proxy.broken() as f64, "", aim);
        bench.row("lines meanwhile", "tpi", seen.next as f64, "lines", None);
        bench.row("lines lost meanwhile", "tpi", seen.lost()? as f64, "lines", Some(Aim::AtMost(0.0)));
        bench.row("lines twice meanwhile", "tpi", seen.twice as f64, "lines", Some(Aim::AtMost(0.0)));
        bench.row("time for all of them", "tpi", took.as_secs_f64(), "s", None);
        Ok(())
    });
    Ok(())
}

/// Lines in the order of their numbers.
#[derive(Default)]
struct Sequence {
    next: u64,
    right: u64,
    twice: u64,
    end: Option<u64>,
}

impl Sequence {
    fn line(&mut self, line: &str) {
        if let Some(end) = line.strip_prefix("end ") {
            self.end = end.parse().ok();
            return;
        }
        match line.split(' ').next().and_then(|number| number.parse::<u64>().ok()) {
            Some(number) if number < self.next => self.twice += 1,
            Some(number) if line.len() as u64 == LINE - 1 => {
                self.right += 1;
                self.next = number + 1;
            }
            // A line put together from two: neither of them has come.
            Some(_) | None => {}
        }
    }

    fn lost(&self) -> Result<u64> {
        let written = self.end.context("the script's last line did not come")?;
        Ok(written.saturating_sub(self.right))
    }
}

/// Waits until the agent has said where it is, and says instead where the proxy is.
fn put_in(product: &Product, breaks: u64) -> Result<Proxy> {
    let started = Instant::now();
    let file = loop {
        match product.identity() {
            Ok(file) => break file,
            Err(error) if started.elapsed() > Duration::from_secs(60) => return Err(error),
            Err(_) => process::pause(),
        }
    };
    let mut identity: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let address = identity["addresses"][0].as_str().context("the agent has published no address")?.to_owned();
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    let proxy = Proxy::start(port.with_context(|| format!("no port in {address}"))?, breaks)?;
    identity["addresses"] = serde_json::json!([format!("127.0.0.1:{}", proxy.port)]);
    let part = file.with_extension("part");
    std::fs::write(&part, serde_json::to_vec(&identity)?)?;
    std::fs::rename(part, file)?;
    Ok(proxy)
}

/// Passes connections on to a port, and breaks them, until it has broken enough.
struct Proxy {
    port: u16,
    broken: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start(to: u16, breaks: u64) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        if port == to {
            bail!("the agent has gone");
        }
        let (broken, end) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ended) = (Arc::clone(&broken), Arc::clone(&end));
        let accepting = thread::spawn(move || {
            thread::scope(|scope| {
                let mut random = Random(4);
                while !ended.load(Ordering::SeqCst) {
                    let Ok((client, _)) = listener.accept() else {
                        process::pause();
                        continue;
                    };
                    let allowed = 1 + random.next() % (64 << 10);
                    let (count, ended) = (&count, &ended);
                    scope.spawn(move || pass(&client, to, allowed, breaks, count, ended));
                }
            });
        });
        Ok(Self { port, broken, end, accepting: Some(accepting) })
    }

    fn broken(&self) -> u64 {
        self.broken.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(accepting) = self.accepting.take() {
            // A panic in there has been printed already.
            drop(accepting.join());
        }
    }
}

/// One connection, up to `allowed` bytes from the agent.
fn pass(client: &TcpStream, to: u16, allowed: u64, breaks: u64, broken: &AtomicU64, end: &AtomicBool) {
    let Ok(agent) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else { return };
    let (Ok(up_from), Ok(up_to)) = (client.try_clone(), agent.try_clone()) else { return };
    thread::scope(|scope| {
        scope.spawn(|| copy(&up_from, &up_to, u64::MAX, end));
        let unlimited = broken.load(Ordering::SeqCst) >= breaks;
        if copy(&agent, client, if unlimited { u64::MAX } else { allowed }, end) {
            broken.fetch_add(1, Ordering::SeqCst);
        }
        // Wakes the other direction; a connection that is closed already says so, which is as well.
        drop(client.shutdown(Shutdown::Both));
        drop(agent.shutdown(Shutdown::Both));
    });
}

/// True when it stopped because of the limit.
fn copy(mut from: &TcpStream, mut to: &TcpStream, limit: u64, end: &AtomicBool) -> bool {
    let mut buffer = vec![0; 16 << 10];
    let mut left = limit;
    if from.set_read_timeout(Some(Duration::from_millis(200))).is_err() {
        return false;
    }
    while !end.load(Ordering::SeqCst) {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        let passed = (count as u64).min(left) as usize;
        if to.write_all(&buffer[..passed]).is_err() {
            break;
        }
        left -= passed as u64;
        if left == 0 {
            return true;
        }
    }
    // The other end is told that no more comes.
    drop(to.shutdown(Shutdown::Write));
    false
}
