//! The simulated AWS by hand: started by `cargo xtask sim aws`, which sets what it needs. Says on stdout what to export,
//! and what happens to machines, until it is interrupted.

use std::{collections::BTreeMap, io::Write as _};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tpi_tests::sim::world::{Account, BUCKET, PLACE, REGION};

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut account = Account::open().await?;
        let (key, secret) = account.front.laptop();
        say(&format!(
            "export AWS_ENDPOINT_URL={}\nexport AWS_ACCESS_KEY_ID={key}\nexport AWS_SECRET_ACCESS_KEY={secret}\n\
             export AWS_REGION={REGION}\nexport AWS_EC2_METADATA_DISABLED=true\n\n\
             # There is a bucket, {BUCKET}. Submit with\n\
             #   --cloud aws --region {REGION} --storage {PLACE} --ingress {}/32\n\
             # Ctrl-C ends it all.",
            account.front.url(),
            account.room.gateway(),
        ))?;
        let ended = watch(&account).await;
        account.room.close().await;
        ended
    })
}

/// Says what becomes of machines until a signal comes.
async fn watch(account: &Account) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut changes = account.room.changes();
    let mut said = BTreeMap::new();
    loop {
        for seen in account.room.machines() {
            let place = seen.address.map_or_else(|| "starting".to_owned(), |address| address.to_string());
            let now = if seen.alive { place } else { "ended".to_owned() };
            let before = said.insert(seen.instance.id.clone(), now.clone());
            if before.as_ref() != Some(&now) {
                say(&format!("{}  {now}", seen.instance.id))?;
            }
        }
        tokio::select! {
            changed = changes.changed() => changed.context("the room is closed")?,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
