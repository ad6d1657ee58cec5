//! `forward`: a port of a machine as a port of this computer.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Serialize;
use tpi_proto::id::SlotIndex;

use super::{
    Context,
    error::{CliError, Problem},
    exit::Exit,
    shell,
    ui::Envelope,
    value::{self, Forwarding},
};
use crate::link::forward::Listener;

/// Make a port of a machine a port of this computer, until Ctrl-C
///
/// stdout carries the local address. Nothing is opened to the network on either side.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or identifier
    task: String,
    /// Port here and port there; LOCAL 0 chooses a free one, HOST is an IP address as the machine sees it
    #[arg(value_name = "LOCAL:[HOST:]REMOTE", value_parser = value::forwarding)]
    ports: Forwarding,
    /// Which slot, counted from 0 [default: the first one at work]
    #[arg(long, value_name = "N")]
    slot: Option<u32>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Context { ui, interrupt, .. } = context;
    let Some(task) = context.locate(&args.task).await? else { return Ok(Exit::Detached) };
    let Some((connection, identity)) =
        interrupt.guard(shell::dial(context, &task, args.slot)).await.transpose()?
    else {
        return Ok(Exit::Detached);
    };
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, args.ports.local));
    let listener = Listener::bind(wanted).await.map_err(|error| {
        CliError::file("listening at", std::path::Path::new(&wanted.to_string()), &error)
            .hint("LOCAL 0 chooses a free port")
    })?;
    let (local, run) = (listener.local_addr(), connection.run());
    if ui.is_json() {
        #[derive(Serialize)]
        struct Listening {
            local: SocketAddr,
            slot: SlotIndex,
            remote: u16,
        }
        let listening = Listening { local, slot: run.slot, remote: args.ports.port };
        ui.json(&Envelope::new("forwarding", listening))?;
    } else {
        ui.data(format!("{local}\n").as_bytes())?;
    }
    ui.status("Ctrl-C ends it");
    let failed = |error: &(dyn std::error::Error + 'static)| ui.warning(&Problem::of(error).one_line());
    let host = args.ports.host.as_deref().unwrap_or_default();
    listener
        .serve(&task.store, &task.id, run, &identity, host, args.ports.port, interrupt.token(), failed)
        .await;
    Ok(Exit::Success)
}
