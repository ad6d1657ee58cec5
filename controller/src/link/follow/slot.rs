//! One slot, from its first wanted byte to its end.
//!
//! ```text
//!            no status              a machine holds this attempt
//!  ┌─► Waiting ◄────┐          ┌──────────────────────────────────────┐
//!  │                │          │        connected                     │
//!  └─────────────── decide ────┴─► Store ────────────► Live ──────────┤
//!                   ▲  │  ▲         │  ▲   dial again   │ broken      │
//!                   │  │  │         │  └────────────────┘             │
//!                   │  │  └─────────┴── status: over or superseded ◄──┘
//!      attempt + 1  │  ▼
//!                   └─ Rest of the attempt from the store ──► end, when Finished
//! ```
//!
//! In `Live` nothing is polled. In `Store` the status and the log are read every second or two while the agent is
//! dialled beside it; an agent that nobody can reach does not hold the store up.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream, stream::BoxStream};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use tpi_proto::{
    id::{Attempt, RunId, SlotIndex},
    state::{Failure, Outcome, SlotState, SlotStatus},
};
use tpi_store::{StoreError, StoreErrorKind, log, log::Record, telemetry, telemetry::Sample};

use super::{
    Event, FollowError, Shared, Source, Start, WhyStore,
    backoff::Backoff,
    cut::{Gap, cut},
    dial::{dial, first_of, one_line},
};
use crate::link::connect::{CallError, Connection, LogItem};

/// Between looks at the store.
const POLL_FIRST: Duration = Duration::from_millis(250);
const POLL_LIMIT: Duration = Duration::from_secs(2);
/// For so long the agent is given the chance to answer before the store is read instead.
const LIVE_FIRST: Duration = Duration::from_millis(1500);
/// Without following: a live log that is silent for so long has been shown as it is now.
const SILENCE: Duration = Duration::from_millis(500);
/// Bytes of stored records in one event.
const BATCH: usize = 256 * 1024;
/// Failures of the store in a row that may still pass.
const TRIES: u32 = 5;
/// The clocks of machine and store may differ by so much when old segments are skipped.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_mins(10);

/// Why a slot is no longer followed.
#[derive(Debug)]
pub(super) enum Halt {
    /// Nobody listens.
    Dropped,
    /// The store.
    Failed(StoreError),
}

pub(super) struct SlotFollower {
    shared: Arc<Shared>,
    slot: SlotIndex,
    out: mpsc::Sender<Result<Event, FollowError>>,
    /// The cursor.
    attempt: Attempt,
    offset: u64,
    /// The same for samples.
    sequence: u64,
    /// Whether the log of this attempt was shown to its end, and that was said.
    complete: bool,
    /// Records before this are passed over.
    since: Option<Timestamp>,
    /// The newest status that was sent of each of the last few attempts.
    seen: Vec<SlotStatus>,
    /// Last source that was sent.
    source: Option<Source>,
    /// Failures of the store in a row.
    failures: u32,
    /// The store has answered once.
    answered: bool,
}

/// How a live connection was left.
enum LiveEnd {
    /// The attempt is over, and its log was shown to the end.
    Over,
    /// What there is now was shown, and no more is wanted.
    Shown,
    /// It broke; whether anything came before that.
    Broken { why: String, progress: bool },
}

/// What came while the store was followed.
enum StoreEnd {
    Connected(Connection),
    /// This attempt is over, or another one has begun: decide anew.
    Decide,
}

impl SlotFollower {
    pub(super) fn new(
        shared: Arc<Shared>,
        slot: SlotIndex,
        out: mpsc::Sender<Result<Event, FollowError>>,
    ) -> Self {
        let (mut attempt, mut offset, mut since) = (Attempt(1), 0, None);
        match &shared.options.start {
            Start::Beginning | Start::NewestAttempt => {}
            Start::Since(time) => since = Some(*time),
            Start::Cursors(cursors) => {
                if let Some(cursor) = cursors.iter().find(|cursor| cursor.slot == slot) {
                    (attempt, offset) = (cursor.attempt, cursor.offset);
                }
            }
        }
        Self {
            shared,
            slot,
            out,
            attempt,
            offset,
            sequence: 0,
            complete: false,
            since,
            seen: Vec::new(),
            source: None,
            failures: 0,
            answered: false,
        }
    }

    fn run_id(&self) -> RunId {
        RunId { slot: self.slot, attempt: self.attempt }
    }

    fn follows(&self) -> bool {
        self.shared.options.follow
    }

    pub(super) async fn run(mut self) -> Result<(), Halt> {
        let mut pause = Backoff::new(POLL_FIRST, POLL_LIMIT);
        let mut begun = false;
        loop {
            let Some(status) = self.look().await? else {
                self.say_source(Source::Waiting).await?;
                if !self.follows() {
                    return Ok(());
                }
                pause.wait().await;
                continue;
            };
            if !begun {
                begun = true;
                if self.shared.options.start == Start::NewestAttempt {
                    self.attempt = status.attempt;
                }
                self.skip_old().await?;
            }
            if status.attempt < self.attempt {
                // This attempt has not begun: its predecessor was taken away.
                self.say_source(Source::Waiting).await?;
                if !self.follows() {
                    return Ok(());
                }
                pause.wait().await;
                continue;
            }
            pause.reset();
            if status.attempt > self.attempt {
                self.superseded().await?;
                self.next_attempt().await?;
                continue;
            }
            match &status.state {
                SlotState::Finished { .. } => return self.rest(&status).await,
                SlotState::Interrupted => {
                    self.rest(&status).await?;
                    if !self.follows() {
                        return Ok(());
                    }
                    self.next_attempt().await?;
                }
                SlotState::Active { .. } | SlotState::Stopping { .. } => {
                    if !self.follows() {
                        return self.as_it_is().await;
                    }
                    self.at_work().await?;
                }
            }
        }
    }

    /// Follows the attempt while a machine holds it; returns when there may be something to decide.
    async fn at_work(&mut self) -> Result<(), Halt> {
        let mut why = match self.shared.options.identity {
            Some(_) => None,
            None => Some(WhyStore::NotWanted),
        };
        // Breaks without a byte in between: then the store is asked, lest a broken agent keep us busy.
        let mut idle_breaks = 0;
        loop {
            let connection = match self.store_until_connected(why.take()).await? {
                StoreEnd::Decide => return Ok(()),
                StoreEnd::Connected(connection) => connection,
            };
            match self.live(&connection).await? {
                LiveEnd::Over | LiveEnd::Shown => return Ok(()),
                LiveEnd::Broken { why: cause, progress } => {
                    tracing::debug!(slot = %self.slot, cause, "a live connection broke");
                    idle_breaks = if progress { 0 } else { idle_breaks + 1 };
                    if idle_breaks > 0 {
                        why = Some(WhyStore::Broken(cause));
                    }
                }
            }
        }
    }

    // === the store ===

    /// Reads the store, round by round, while the agent is dialled. Without a reason to begin with the store, the
    /// agent is given a moment to answer first.
    async fn store_until_connected(&mut self, why: Option<WhyStore>) -> Result<StoreEnd, Halt> {
        let (report, reports) = watch::channel(None);
        let mut dial = dial(self.shared.clone(), self.run_id(), report, why.is_some());
        if why.is_none() {
            let first = tokio::time::timeout(LIVE_FIRST, first_of(&mut dial, reports.clone())).await;
            if let Ok(Some(connection)) = first {
                return Ok(StoreEnd::Connected(connection));
            }
        }
        let mut pause = Backoff::new(POLL_FIRST, POLL_LIMIT);
        loop {
            let reason = match (&why, reports.borrow().clone()) {
                (Some(WhyStore::NotWanted), _) => WhyStore::NotWanted,
                (_, Some(told)) => WhyStore::Unreachable(told),
                (Some(why), None) => why.clone(),
                (None, None) => WhyStore::Unreachable("no answer yet".to_owned()),
            };
            // A broken connection that comes back at once is not worth a word.
            let tells = why.is_none() || reports.borrow().is_some() || reason == WhyStore::NotWanted;
            if tells {
                self.say_source(Source::Store { why: reason }).await?;
            }
            let before = self.offset;
            self.read_log().await?;
            self.read_samples().await?;
            if self.offset > before {
                pause.reset();
            }
            tokio::select! {
                connection = &mut dial => return Ok(StoreEnd::Connected(connection)),
                () = pause.wait() => {}
            }
            match self.look().await? {
                // Still the same, at work.
                Some(status) if status.attempt == self.attempt && !is_over(&status) => {}
                Some(_) | None => return Ok(StoreEnd::Decide),
            }
        }
    }

    /// The slot's status, sent when it is news. `None`: nobody has it.
    async fn look(&mut self) -> Result<Option<SlotStatus>, Halt> {
        let key = self.shared.keys.slot(self.slot);
        let mut pause = Backoff::new(POLL_FIRST, POLL_LIMIT);
        loop {
            match self.shared.store.get_json::<SlotStatus>(&key).await {
                Ok(found) => {
                    self.failures = 0;
                    self.answered = true;
                    let Some((status, _)) = found else { return Ok(None) };
                    self.say_status(&status).await?;
                    return Ok(Some(status));
                }
                Err(error) => self.bear(error)?,
            }
            pause.wait().await;
        }
    }

    /// Whether a failure of the store may pass.
    fn bear(&mut self, error: StoreError) -> Result<(), Halt> {
        self.failures += 1;
        let passes = match error.kind {
            // Later it is waited for: what is shown already is right, and the rest comes when it is back.
            StoreErrorKind::Unavailable => self.answered,
            // Gaps while segments are written; objects that go while a task is destroyed.
            StoreErrorKind::Corrupt | StoreErrorKind::NotFound | StoreErrorKind::Other => {
                self.failures < TRIES
            }
            StoreErrorKind::AlreadyExists
            | StoreErrorKind::Conflict
            | StoreErrorKind::Unauthenticated
            | StoreErrorKind::PermissionDenied
            | StoreErrorKind::NoSpace
            | StoreErrorKind::Unsupported => false,
        };
        if passes {
            tracing::debug!(error = &error as &dyn std::error::Error, "the store fails; trying again");
            Ok(())
        } else {
            Err(Halt::Failed(error))
        }
    }

    /// All that the store has of this attempt's log beyond the cursor.
    async fn read_log(&mut self) -> Result<(), Halt> {
        if self.complete {
            return Ok(());
        }
        let mut records = log::read_stored(&self.shared.store, &self.shared.task, self.run_id(), self.offset);
        let mut batch = Vec::new();
        let mut bytes = 0;
        loop {
            match records.next().await {
                Some(Ok(record)) => {
                    bytes += record.data.len();
                    batch.push(record);
                    if bytes < BATCH {
                        continue;
                    }
                }
                Some(Err(error)) => {
                    if let Err(gap) = self.say_records(batch).await? {
                        tracing::warn!(?gap, "records are missing in a stored log");
                    }
                    if error.kind == StoreErrorKind::Corrupt {
                        // The agent may still have what is damaged here; who is at the end counts the failures.
                        self.failures += 1;
                        return Ok(());
                    }
                    return self.bear(error);
                }
                None => {
                    self.failures = 0;
                    if let Err(gap) = self.say_records(batch).await? {
                        tracing::warn!(?gap, "records are missing in a stored log");
                    }
                    return Ok(());
                }
            }
            bytes = 0;
            if let Err(gap) = self.say_records(std::mem::take(&mut batch)).await? {
                tracing::warn!(?gap, "records are missing in a stored log");
                return Ok(());
            }
        }
    }

    async fn read_samples(&mut self) -> Result<(), Halt> {
        if !self.shared.options.telemetry {
            return Ok(());
        }
        let mut samples =
            telemetry::read_stored(&self.shared.store, &self.shared.task, self.run_id(), self.sequence);
        while let Some(sample) = samples.next().await {
            match sample {
                Ok(sample) => self.say_sample(sample).await?,
                // The log matters more; the next round tries again.
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "reading stored samples");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The rest of an attempt that is over in good order: its status tells how long its log is.
    async fn rest(&mut self, status: &SlotStatus) -> Result<(), Halt> {
        let mut pause = Backoff::new(POLL_FIRST, POLL_LIMIT);
        for _ in 0..TRIES {
            if self.complete {
                break;
            }
            let behind = status.log_complete.is_none_or(|length| self.offset < length);
            if behind {
                self.say_source(Source::Store { why: WhyStore::Ended }).await?;
                self.read_log().await?;
            }
            match status.log_complete {
                Some(length) if self.offset < length => {}
                // Nobody was left to say how long it was.
                None if is_lost(status) => {}
                Some(_) | None => {
                    let length = status.log_complete.unwrap_or(self.offset);
                    self.say_complete(length).await?;
                }
            }
            // Less than was promised, and the agent has said that no more is stored.
            if !self.complete && self.offset >= status.log_stored {
                break;
            }
            if !self.complete {
                pause.wait().await;
            }
        }
        self.read_samples().await?;
        if !self.complete {
            self.say_lost().await?;
        }
        Ok(())
    }

    /// The rest of an attempt that another one has followed.
    async fn superseded(&mut self) -> Result<(), Halt> {
        if !self.complete {
            self.say_source(Source::Store { why: WhyStore::Ended }).await?;
            let mut pause = Backoff::new(POLL_FIRST, POLL_LIMIT);
            self.failures = 0;
            self.read_log().await?;
            // Nothing is skipped for an outage; damage does not pass, and the next attempt must be shown.
            while (1..TRIES).contains(&self.failures) {
                pause.wait().await;
                self.read_log().await?;
            }
            self.read_samples().await?;
        }
        let last = self.newest_of_attempt().map(|status| (status.log_complete, status.state.clone()));
        if self.complete {
            return Ok(());
        }
        match last {
            Some((Some(length), _)) if self.offset >= length => self.say_complete(length).await,
            Some((_, SlotState::Interrupted | SlotState::Finished { .. })) | None => Ok(()),
            // It was at work when it was last heard of, and then somebody else had the slot.
            Some((_, SlotState::Active { .. } | SlotState::Stopping { .. })) => self.say_lost().await,
        }
    }

    /// The last status that was seen of the attempt at the cursor.
    fn newest_of_attempt(&self) -> Option<&SlotStatus> {
        self.seen.iter().rev().find(|status| status.attempt == self.attempt)
    }

    async fn next_attempt(&mut self) -> Result<(), Halt> {
        self.attempt = Attempt(self.attempt.0.saturating_add(1));
        self.offset = 0;
        self.sequence = 0;
        self.complete = false;
        self.skip_old().await
    }

    /// With a time to begin at: passes over segments that were written before it.
    async fn skip_old(&mut self) -> Result<(), Halt> {
        let Some(since) = self.since else { return Ok(()) };
        let before = since.checked_sub(CLOCK_SLACK).unwrap_or(Timestamp::MIN);
        let prefix = self.shared.keys.logs(self.slot, self.attempt);
        let mut segments = self.shared.store.list(&prefix, None);
        let mut start = self.offset;
        while let Some(segment) = segments.next().await {
            let segment = match segment {
                Ok(segment) => segment,
                Err(error) => {
                    drop(segments);
                    return self.bear(error);
                }
            };
            let name = segment.key.rsplit('/').next().unwrap_or_default();
            if let Some(first) = name.strip_suffix(".zst").and_then(|first| first.parse().ok()) {
                start = first;
            }
            if segment.modified >= before {
                break;
            }
        }
        self.offset = start;
        Ok(())
    }

    /// Without following: what there is now of an attempt at work.
    async fn as_it_is(&mut self) -> Result<(), Halt> {
        if self.shared.options.identity.is_none() {
            self.say_source(Source::Store { why: WhyStore::NotWanted }).await?;
        }
        self.read_log().await?;
        self.read_samples().await?;
        if self.shared.options.identity.is_none() {
            return Ok(());
        }
        let (report, reports) = watch::channel(None);
        let mut dial = dial(self.shared.clone(), self.run_id(), report, false);
        match tokio::time::timeout(LIVE_FIRST, first_of(&mut dial, reports)).await {
            Ok(Some(connection)) => match self.live(&connection).await? {
                LiveEnd::Over | LiveEnd::Shown | LiveEnd::Broken { .. } => Ok(()),
            },
            Ok(None) | Err(_) => Ok(()),
        }
    }

    // === the agent ===

    async fn live(&mut self, connection: &Connection) -> Result<LiveEnd, Halt> {
        let after = self.newest_of_attempt().map_or(0, |status| status.generation);
        let telemetry = async {
            if self.shared.options.telemetry {
                connection.telemetry(self.sequence).await
            } else {
                Ok(stream::empty().boxed())
            }
        };
        let logs = async {
            if self.complete { Ok(stream::empty().boxed()) } else { connection.logs(self.offset).await }
        };
        let opened = tokio::try_join!(connection.watch(after), logs, telemetry);
        let (mut statuses, mut logs, mut samples): Streams = match opened {
            Ok(opened) => opened,
            Err(error) => return Ok(LiveEnd::Broken { why: one_line(&error), progress: false }),
        };
        self.say_source(Source::Live { address: connection.address().to_owned() }).await?;
        let mut progress = false;
        let (mut last, mut watching, mut sampling) = (false, true, true);
        let broken = |error: Option<CallError>, progress| {
            let why = error.map_or_else(|| "it ended early".to_owned(), |error| one_line(&error));
            Ok(LiveEnd::Broken { why, progress })
        };
        loop {
            if last && self.complete {
                return Ok(LiveEnd::Over);
            }
            let silence = async {
                if self.shared.options.follow {
                    std::future::pending::<()>().await;
                } else {
                    tokio::time::sleep(SILENCE).await;
                }
            };
            tokio::select! {
                item = logs.next(), if !self.complete => match item {
                    Some(Ok(LogItem::Records(records))) => {
                        progress = true;
                        let is_new = !self.follows()
                            && records.last().is_some_and(|record| is_after(record, connection.agent_time()));
                        if let Err(gap) = self.say_records(records).await? {
                            let why = format!("bytes {} to {} were left out", gap.at, gap.next);
                            return Ok(LiveEnd::Broken { why, progress: false });
                        }
                        if is_new {
                            return Ok(LiveEnd::Shown);
                        }
                    }
                    Some(Ok(LogItem::Complete(length))) if length == self.offset => {
                        self.say_complete(length).await?;
                    }
                    Some(Ok(LogItem::Complete(_))) => return broken(None, false),
                    Some(Err(error)) => return broken(Some(error), progress),
                    None => return broken(None, progress),
                },
                status = statuses.next(), if watching => match status {
                    Some(Ok(status)) => {
                        last |= is_over(&status);
                        self.say_status(&status).await?;
                    }
                    Some(Err(error)) => return broken(Some(error), progress),
                    // Ends after the last status; the rest of the log may still be on its way.
                    None if last => watching = false,
                    None => return broken(None, progress),
                },
                batch = samples.next(), if sampling => match batch {
                    Some(Ok(batch)) => {
                        for sample in batch {
                            self.say_sample(sample).await?;
                        }
                    }
                    // The log matters more; what is missing is in the store at the end.
                    Some(Err(_)) | None => sampling = false,
                },
                () = silence => return Ok(LiveEnd::Shown),
            }
        }
    }

    // === events ===

    async fn say(&self, event: Event) -> Result<(), Halt> {
        self.out.send(Ok(event)).await.map_err(|_| Halt::Dropped)
    }

    async fn say_source(&mut self, source: Source) -> Result<(), Halt> {
        let same = match (&self.source, &source) {
            // The first reason stands: what a dial says differs from one to the next.
            (Some(Source::Store { why: before }), Source::Store { why: now }) => {
                std::mem::discriminant(before) == std::mem::discriminant(now)
            }
            (before, now) => before.as_ref() == Some(now),
        };
        if same {
            return Ok(());
        }
        self.source = Some(source.clone());
        self.say(Event::Source { slot: self.slot, source }).await
    }

    async fn say_status(&mut self, status: &SlotStatus) -> Result<(), Halt> {
        let news = self.seen.last().is_none_or(|newest| {
            // What a machine told last may not have reached the store when another one found it gone.
            let ends = status.attempt == newest.attempt && is_lost(status) && !is_over(newest);
            ends || (status.attempt, status.generation) > (newest.attempt, newest.generation)
        });
        if !news {
            return Ok(());
        }
        // One per attempt, and no more than the last few attempts.
        if self.seen.last().is_some_and(|newest| newest.attempt == status.attempt) {
            self.seen.pop();
        } else if self.seen.len() >= 4 {
            self.seen.remove(0);
        }
        self.seen.push(status.clone());
        self.say(Event::Status(Box::new(status.clone()))).await
    }

    async fn say_records(&mut self, records: Vec<Record>) -> Result<Result<(), Gap>, Halt> {
        let mut records = match cut(records, &mut self.offset) {
            Ok(records) => records,
            Err(gap) => return Ok(Err(gap)),
        };
        if let Some(since) = self.since {
            match records.iter().position(|record| is_after(record, since)) {
                Some(first) => {
                    records.drain(..first);
                    self.since = None;
                }
                None => records.clear(),
            }
        }
        if !records.is_empty() {
            self.say(Event::Log { slot: self.slot, attempt: self.attempt, records }).await?;
        }
        Ok(Ok(()))
    }

    async fn say_sample(&mut self, sample: Sample) -> Result<(), Halt> {
        if sample.sequence < self.sequence {
            return Ok(());
        }
        self.sequence = sample.sequence.saturating_add(1);
        self.say(Event::Sample { slot: self.slot, attempt: self.attempt, sample }).await
    }

    async fn say_complete(&mut self, length: u64) -> Result<(), Halt> {
        self.complete = true;
        self.say(Event::Complete { slot: self.slot, attempt: self.attempt, length }).await
    }

    async fn say_lost(&mut self) -> Result<(), Halt> {
        self.say(Event::Lost { slot: self.slot, attempt: self.attempt, from: self.offset }).await
    }
}

type Streams = (
    BoxStream<'static, Result<SlotStatus, CallError>>,
    BoxStream<'static, Result<LogItem, CallError>>,
    BoxStream<'static, Result<Vec<Sample>, CallError>>,
);

/// The machine is done with this attempt.
fn is_over(status: &SlotStatus) -> bool {
    match &status.state {
        SlotState::Finished { .. } | SlotState::Interrupted => true,
        SlotState::Active { .. } | SlotState::Stopping { .. } => false,
    }
}

/// The machine was gone without a word, and the slot has got no other.
fn is_lost(status: &SlotStatus) -> bool {
    match &status.state {
        SlotState::Finished { outcome: Outcome::Failed { failure, .. }, .. } => match failure {
            Failure::AgentLost => true,
            Failure::Restore | Failure::Start | Failure::Save | Failure::Prepare | Failure::Store => false,
        },
        SlotState::Finished {
            outcome:
                Outcome::Exited { .. } | Outcome::Signalled { .. } | Outcome::TimedOut { .. } | Outcome::Stopped,
            ..
        }
        | SlotState::Active { .. }
        | SlotState::Stopping { .. }
        | SlotState::Interrupted => false,
    }
}

fn is_after(record: &Record, time: Timestamp) -> bool {
    i128::from(record.time_unix_nanos) >= time.as_nanosecond()
}
