//! A socket in another network namespace.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where every instance finds its metadata service.
pub(super) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// How long a machine may take until its network has that address.
const PATIENCE: Duration = Duration::from_secs(60);

/// Listens where a metadata service does, in the network of the process `pid`. What is sent makes at most `hops`
/// hops.
///
/// A namespace belongs to a thread, so a thread is made for it; the socket stays in that namespace wherever it is
/// used.
pub(super) fn listen(pid: u32, hops: u8) -> Result<TcpListener> {
    let thread = std::thread::spawn(move || -> Result<TcpListener> {
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering the network of the machine")?;
        let begun = Instant::now();
        let listener = loop {
            match TcpListener::bind((METADATA, 80)) {
                Ok(listener) => break listener,
                // The address is made by the machine itself.
                Err(error)
                    if error.kind() == std::io::ErrorKind::AddrNotAvailable && begun.elapsed() < PATIENCE =>
                {
                    std::thread::park_timeout(Duration::from_millis(5));
                }
                Err(error) => return Err(error).context("listening in the network of the machine"),
            }
        };
        listener.set_ttl(u32::from(hops))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    thread.join().map_err(|_| anyhow!("the thread in the machine's network has panicked"))?
}
