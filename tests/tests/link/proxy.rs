//! A TCP proxy that cuts connections after some bytes, in the middle of whatever they are.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use rand::RngExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    cuts: Arc<AtomicUsize>,
    _serving: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Cuts each of the first `cuts` connections after 1 to `most` bytes from the server.
    pub(crate) async fn start(target: SocketAddr, cuts: usize, most: usize) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let done = Arc::new(AtomicUsize::new(0));
        let serving = tokio::spawn(serve(listener, target, cuts, most, done.clone()));
        Ok(Self { address, cuts: done, _serving: AbortOnDropHandle::new(serving) })
    }

    /// Connections cut so far.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, cuts: usize, most: usize, done: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(target).await else { continue };
        let done = done.clone();
        let budget = (done.load(Ordering::Relaxed) < cuts).then(|| rand::rng().random_range(1..=most));
        connections.spawn(async move {
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                () = copy(from_client, to_server, None) => {}
                () = copy(from_server, to_client, budget) => {}
            }
            if budget.is_some() {
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Until either side ends, or the budget is used up.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut budget: Option<usize>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let count = budget.map_or(read, |budget| budget.min(read));
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        if let Some(budget) = &mut budget {
            *budget -= count;
            if *budget == 0 {
                return;
            }
        }
    }
}
