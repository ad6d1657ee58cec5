//! The certificates in `clients/`: read on demand, and regularly while somebody is connected.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, mpsc as blocking},
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tpi_proto::cert::{Fingerprint, PinnedCert};
use tpi_store::{Store, layout::TaskKeys};

use super::Limits;
use crate::supervisor::Handle;

/// A client's certificate is at most this large; larger objects in `clients/` are skipped.
const CERTIFICATE_MAX: u64 = 16 * 1024;

/// One client that may connect.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) cert: Arc<PinnedCert>,
    /// Cancelled when the client may no longer be connected.
    pub(super) revoked: CancellationToken,
}

#[derive(Debug, Default)]
struct Known {
    clients: HashMap<Fingerprint, Client>,
    /// When the reading began that gave `clients`.
    read: Option<Instant>,
}

/// Asks for a reading of `clients/` that began after the question, as far as the rate limit allows.
type Question = blocking::SyncSender<()>;

/// The certificates in `clients/`, and when they were read. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    known: Shared,
    questions: mpsc::Sender<Question>,
}

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Known>>);

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, fingerprint: &Fingerprint) -> Option<Client> {
        self.lock().clients.get(fingerprint).cloned()
    }
}

impl Clients {
    /// Of the task that `handle` belongs to. `everybody` is cancelled when nobody at all may stay connected.
    pub(super) fn new(
        store: &Store,
        handle: &Handle,
        limits: &Limits,
        everybody: CancellationToken,
    ) -> (Self, Reader) {
        let (ask, questions) = mpsc::channel(limits.handshakes.max(1));
        let known = Shared::default();
        let reader = Reader {
            store: store.clone(),
            keys: TaskKeys::new(handle.task()),
            handle: handle.clone(),
            limits: limits.clone(),
            known: known.clone(),
            everybody,
            questions,
        };
        (Self { known, questions: ask }, reader)
    }

    /// A client, by what is known now.
    pub(super) fn find(&self, fingerprint: &Fingerprint) -> Option<Client> {
        self.known.find(fingerprint)
    }

    /// Blocks its thread until `clients/` was read again, or `patience` is over.
    pub(super) fn refresh(&self, patience: Duration) {
        let (done, answer) = blocking::sync_channel(1);
        if self.questions.try_send(done).is_ok() {
            // Not answered in time or never: the caller decides by what is known.
            let (Ok(()) | Err(_)) = answer.recv_timeout(patience);
        }
    }

    pub(super) fn is_older_than(&self, age: Duration) -> bool {
        self.known.lock().read.is_none_or(|read| read.elapsed() > age)
    }
}

/// Keeps [`Clients`] up to date: on demand, and regularly while somebody is connected.
pub(super) struct Reader {
    store: Store,
    keys: TaskKeys,
    handle: Handle,
    limits: Limits,
    known: Shared,
    everybody: CancellationToken,
    questions: mpsc::Receiver<Question>,
}

impl Reader {
    /// Until the last [`Clients`] is gone.
    pub(super) async fn run(mut self) {
        let mut recheck = tokio::time::interval(self.limits.recheck);
        recheck.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut waiting: Vec<Question> = Vec::new();
        loop {
            tokio::select! {
                question = self.questions.recv() => match question {
                    Some(question) => waiting.push(question),
                    None => return,
                },
                _ = recheck.tick() => {
                    self.cut_off_expired();
                    // Nobody is connected: the next handshake will read.
                    if !self.anybody_connected() {
                        continue;
                    }
                }
            }
            let last = self.known.lock().read;
            if let Some(next) = last.map(|read| read + self.limits.reread) {
                tokio::time::sleep_until(next.into()).await;
            }
            // Whoever asked up to here gets this reading; it begins now.
            while let Ok(question) = self.questions.try_recv() {
                waiting.push(question);
            }
            let began = Instant::now();
            let mut failed = false;
            match self.read().await {
                Ok(found) => self.replace(found, began),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot read which clients may attach; those known before stay welcome"
                    );
                    failed = true;
                }
            }
            for question in waiting.drain(..) {
                // A handshake that gave up does not listen any more.
                let (Ok(()) | Err(_)) = question.try_send(());
            }
            if failed {
                // The rate limit holds for failures as well.
                tokio::time::sleep(self.limits.reread).await;
            }
        }
    }

    fn anybody_connected(&self) -> bool {
        // The map holds one reference to each certificate, every connection another.
        self.known.lock().clients.values().any(|client| Arc::strong_count(&client.cert) > 1)
    }

    fn cut_off_expired(&self) {
        let now = self.handle.now();
        for client in self.known.lock().clients.values() {
            if client.cert.check_validity(now).is_err() {
                client.revoked.cancel();
            }
        }
    }

    async fn read(&self) -> Result<Vec<PinnedCert>, tpi_store::StoreError> {
        let mut found = Vec::new();
        let mut listed = self.store.list(&self.keys.clients(), None);
        while let Some(info) = listed.next().await {
            let info = info?;
            let name = info.key.rsplit('/').next().unwrap_or_default();
            let Some(name) = name.strip_suffix(".pem") else { continue };
            let fingerprint = Fingerprint(name.to_owned());
            if info.size > CERTIFICATE_MAX || found.len() >= self.limits.clients {
                tracing::warn!(key = info.key, "not looking at this client's certificate");
                continue;
            }
            // Named by its content, so one that is known need not be fetched again.
            if let Some(client) = self.known.find(&fingerprint) {
                found.push(PinnedCert::clone(&client.cert));
                continue;
            }
            let pem = match self.store.get(&info.key).await {
                Ok(pem) => pem,
                Err(error) if error.kind == tpi_store::StoreErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match PinnedCert::from_pem(&pem) {
                Ok(cert) if cert.fingerprint() == fingerprint => found.push(cert),
                Ok(_) => tracing::warn!(key = info.key, "a client's certificate under another one's name"),
                Err(error) => tracing::warn!(
                    key = info.key,
                    error = &error as &dyn std::error::Error,
                    "not a client's certificate"
                ),
            }
        }
        Ok(found)
    }

    fn replace(&self, found: Vec<PinnedCert>, began: Instant) {
        let mut known = self.known.lock();
        let mut old = std::mem::take(&mut known.clients);
        known.clients = found
            .into_iter()
            .map(|cert| {
                let fingerprint = cert.fingerprint();
                let client =
                    old.remove(&fingerprint).filter(|client| !client.revoked.is_cancelled()).unwrap_or_else(
                        || Client { cert: Arc::new(cert), revoked: self.everybody.child_token() },
                    );
                (fingerprint, client)
            })
            .collect();
        known.read = Some(began);
        drop(known);
        for (fingerprint, client) in old {
            tracing::info!(%fingerprint, "this client may no longer attach");
            client.revoked.cancel();
        }
    }
}
