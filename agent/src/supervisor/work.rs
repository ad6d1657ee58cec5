//! What the phases do, each as one future that ends in an event's content.

use std::{
    panic::AssertUnwindSafe,
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;
use tpi_proto::{
    fault::chain,
    id::RunId,
    machine::{MachineConfig, Timings},
    spec::TaskSpec,
    state::Failure,
};
use tpi_store::{Store, StoreError, StoreErrorKind, layout::TaskKeys, record::Environment};

use super::{
    Event, Prepared,
    state::{Fault, ScriptEnd},
};
use crate::{
    boot::patiently,
    clock::Clock,
    container::{self, Engine},
    environment::{self, Place},
    exec::{self, Job, Order},
    logs::{
        pump::{Pump, pipes},
        spool::Writer,
    },
    save::{self, Command, SaveError},
};

/// How long a multi-slot task waits for the others to have addresses.
const PEERS: Duration = Duration::from_secs(60);

/// The supervisor's budget ends these; this is only "as long as it takes".
fn forever() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

fn fault(failure: Failure, error: &dyn std::error::Error) -> Fault {
    Fault { failure, message: chain(error) }
}

/// Environment, peers and container image.
pub(super) async fn prepare(
    store: Store,
    config: MachineConfig,
    spec: TaskSpec,
    run: RunId,
) -> Result<Prepared, Fault> {
    let keys = TaskKeys::new(&config.task);
    let key = keys.environment();
    let found = patiently(forever(), || store.get_json::<Environment>(&key)).await;
    let user = match found {
        Ok(Some((environment, _))) => environment,
        Ok(None) if spec.environment.is_empty() => Environment::default(),
        Ok(None) => {
            let message = "the values of the task's environment variables are missing from the store";
            return Err(Fault { failure: Failure::Store, message: message.to_owned() });
        }
        Err(error) => return Err(fault(Failure::Store, &error)),
    };
    let peers = if config.slots > 1 {
        let patience = PEERS.min(Timings::of(config.timings.prepare_budget) / 2);
        Some(environment::peers(&store, &config, run, patience).await)
    } else {
        None
    };
    let compose = |place| environment::compose(place, &config, run, config.deadline, &user, peers.as_deref());
    let machine = compose(Place::Machine);
    let script = match &spec.container {
        None => machine.clone(),
        Some(image) => {
            Engine::connect().await?.prepare(image, &config.task, run).await?;
            compose(Place::Container)
        }
    };
    Ok(Prepared { script, machine })
}

/// The workspace.
pub(super) async fn restore(
    store: Store,
    config: MachineConfig,
    run: RunId,
    work: PathBuf,
    input_stored: bool,
) -> Result<save::Restored, Fault> {
    let mut pause = Duration::from_millis(500);
    loop {
        let error = match save::restore_newest(&store, &config.task, run.slot, &work, input_stored).await {
            Ok(restored) => return Ok(restored),
            Err(error) => error,
        };
        let passes = matches!(
            &error,
            SaveError::Store(StoreError { kind: StoreErrorKind::Unavailable, .. })
                | SaveError::Snapshot(tpi_store::snapshot::SnapshotError::Store(StoreError {
                    kind: StoreErrorKind::Unavailable,
                    ..
                }))
        );
        if !passes {
            return Err(fault(Failure::Restore, &error));
        }
        tracing::warn!(error = chain(&error), "restoring the workspace");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

/// The script, from its start until nothing of it is left.
pub(super) async fn run(
    job: Job,
    image: Option<String>,
    writer: Writer,
    clock: Clock,
    events: mpsc::Sender<Event>,
    orders: watch::Receiver<Order>,
) -> (ScriptEnd, Option<Pump>) {
    let not_started = |text: &str, error: std::io::Error| {
        (ScriptEnd::NotStarted { message: format!("{text}: {error}") }, None)
    };
    let (read, ends) = match pipes() {
        Ok(pair) => pair,
        Err(error) => return not_started("making the script's pipes", error),
    };
    let mut pump = match Pump::start(writer, read, clock, events) {
        Ok(pump) => pump,
        Err(error) => return not_started("starting to read the script's output", error),
    };
    let end = match image {
        None => exec::run(&job, ends, &mut pump, orders).await,
        Some(image) => match Engine::connect().await {
            Ok(engine) => container::run(&engine, &image, &job, ends, &mut pump, orders).await,
            Err(fault) => ScriptEnd::NotStarted { message: fault.message },
        },
    };
    (end, Some(pump))
}

/// The work directory for the last time (when it counts), and the log to its last byte.
pub(super) async fn last_save(
    saver: Option<mpsc::Sender<Command>>,
    pump: Option<Pump>,
    writer: Option<Writer>,
    uploader: Option<AbortOnDropHandle<Result<(), String>>>,
) -> Result<(), String> {
    let files = async {
        let Some(saver) = saver else { return Ok(()) };
        let (reply, answer) = oneshot::channel();
        let gone = "the saver ended early";
        saver.send(Command::Last(reply)).await.map_err(|_| gone.to_owned())?;
        answer.await.map_err(|_| gone.to_owned())?
    };
    let log = async {
        if let Some(writer) = writer {
            writer.complete();
        }
        if let Some(pump) = pump {
            pump.finish().await;
        }
        if let Some(uploader) = uploader {
            uploader.await.map_err(|e| format!("bringing the log to the store: {e}"))??;
        }
        Ok::<_, String>(())
    };
    let (files, log) = tokio::join!(files, log);
    files.and(log)
}

/// Work without which the agent cannot go on. When it panics the agent dies at once, as if killed, so that another
/// continues: half an agent would hold a slot that it does not serve.
pub(super) async fn essential<T>(work: impl Future<Output = T>) -> T {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(value) => value,
        // The panic itself was printed already.
        Err(_) => {
            tracing::error!("an essential part of the agent failed");
            std::process::abort()
        }
    }
}
