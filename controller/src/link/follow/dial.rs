//! Dialling an agent again and again, beside something else.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;
use tpi_proto::id::RunId;

use super::{Shared, backoff::Backoff};
use crate::link::connect::{ConnectError, Connection};

/// Between dials.
const DIAL_FIRST: Duration = Duration::from_millis(50);
const DIAL_LIMIT: Duration = Duration::from_secs(2);

/// Dials until there is a connection; says on `report` why there is none yet. `later`: waits before the first try.
pub(super) fn dial(
    shared: Arc<Shared>,
    run: RunId,
    report: watch::Sender<Option<String>>,
    later: bool,
) -> BoxFuture<'static, Connection> {
    async move {
        let mut pause = Backoff::new(DIAL_FIRST, DIAL_LIMIT);
        if later {
            pause.wait().await;
        }
        loop {
            let Some(identity) = shared.options.identity.clone() else { break };
            match shared.connect(run, &identity).await {
                Ok(connection) => return connection,
                Err(error) => {
                    report.send_replace(Some(one_line(&error)));
                    match error {
                        // Neither side will learn another one.
                        ConnectError::VersionMismatch { .. } => break,
                        ConnectError::NoIdentity { .. }
                        | ConnectError::Unreachable { .. }
                        | ConnectError::Refused { .. }
                        | ConnectError::WrongCertificate { .. }
                        | ConnectError::Store(_)
                        | ConnectError::Identity { .. } => {}
                    }
                }
            }
            pause.wait().await;
        }
        // The store is all there is.
        std::future::pending().await
    }
    .boxed()
}

/// The connection, or `None` with the first report of a failure.
pub(super) async fn first_of(
    dial: &mut BoxFuture<'static, Connection>,
    mut reports: watch::Receiver<Option<String>>,
) -> Option<Connection> {
    tokio::select! {
        connection = dial => Some(connection),
        failed = reports.wait_for(Option::is_some) => match failed {
            Ok(_) | Err(_) => None,
        },
    }
}

/// An error and its causes.
pub(super) fn one_line(error: &dyn std::error::Error) -> String {
    tpi_proto::fault::chain(error).replace('\n', " ")
}
