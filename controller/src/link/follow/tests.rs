//! Through the store alone: slots that change hands while they are followed.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tpi_proto::{
    id::MachineId,
    state::{Failure, Outcome, Phase, SlotState},
};
use tpi_store::log::{Stream, encode_frame, encode_segment};

use super::*;

const SLOT: SlotIndex = SlotIndex(0);

struct Rig {
    store: Store,
    task: TaskId,
    keys: TaskKeys,
}

impl Rig {
    fn new() -> Self {
        let task = TaskId::deterministic("follow").expect("a name");
        Self { store: Store::memory(), keys: TaskKeys::new(&task), task }
    }

    async fn segment(&self, attempt: u32, offset: u64, text: &str) {
        let record = Record {
            offset,
            time_unix_nanos: i64::from(attempt) * 1_000_000_000,
            stream: Stream::Stdout,
            data: Bytes::copy_from_slice(text.as_bytes()),
        };
        let mut frames = Vec::new();
        encode_frame(&record, &mut frames);
        let key = self.keys.log_segment(SLOT, Attempt(attempt), offset);
        self.store.put(&key, encode_segment(&frames).expect("fits")).await.expect("written");
    }

    async fn status(&self, attempt: u32, generation: u64, state: SlotState, complete: Option<u64>) {
        let status = SlotStatus {
            generation,
            state,
            log_stored: complete.unwrap_or_default(),
            log_complete: complete,
            ..SlotStatus::claimed(
                RunId { slot: SLOT, attempt: Attempt(attempt) },
                MachineId("m".to_owned()),
                1000,
            )
        };
        self.store.put_json(&self.keys.slot(SLOT), &status).await.expect("written");
    }

    fn follow(&self, start: Start, follows: bool) -> Follow {
        let options =
            FollowOptions { slots: vec![SLOT], start, follow: follows, telemetry: false, identity: None };
        follow(&self.store, &self.task, options)
    }
}

fn at_work() -> SlotState {
    SlotState::Active { phase: Phase::Run }
}

fn finished() -> SlotState {
    SlotState::Finished { outcome: Outcome::Exited { code: 0 }, at: Timestamp::UNIX_EPOCH }
}

/// One line for each event.
async fn next(events: &mut Follow) -> String {
    let event = tokio::time::timeout(Duration::from_secs(60), events.next()).await.expect("in time");
    match event.expect("an event").expect("no error") {
        Event::Log { attempt, records, .. } => {
            let text: Vec<u8> = records.iter().flat_map(|record| record.data.to_vec()).collect();
            format!("log {attempt} {} {}", records[0].offset, String::from_utf8_lossy(&text))
        }
        Event::Status(status) => format!("status {} {}", status.attempt, status.generation),
        Event::Sample { .. } => "sample".to_owned(),
        Event::Source { source, .. } => format!("{source:?}"),
        Event::Lost { attempt, from, .. } => format!("lost {attempt} {from}"),
        Event::Complete { attempt, length, .. } => format!("complete {attempt} {length}"),
        Event::End => "end".to_owned(),
    }
}

async fn expect(events: &mut Follow, wanted: &[&str]) {
    for wanted in wanted {
        assert_eq!(next(events).await, *wanted);
    }
}

#[tokio::test]
async fn a_slot_is_followed_through_kill_interruption_and_end() {
    let rig = Rig::new();
    let mut events = rig.follow(Start::Beginning, true);
    expect(&mut events, &["Waiting"]).await;
    rig.segment(1, 0, "one ").await;
    rig.status(1, 1, at_work(), None).await;
    expect(&mut events, &["status 1 1", "Store { why: NotWanted }", "log 1 0 one "]).await;
    // More, in a segment that overlaps what was shown (as after a recovery of the spool).
    rig.segment(1, 2, "e more").await;
    expect(&mut events, &["log 1 4 more"]).await;

    // Killed; its successor runs already.
    rig.segment(2, 0, "two").await;
    rig.status(2, 1, at_work(), None).await;
    expect(&mut events, &["status 2 1", "Store { why: Ended }", "lost 1 8"]).await;
    expect(&mut events, &["Store { why: NotWanted }", "log 2 0 two"]).await;

    // Taken away in good order: the rest of its log first.
    rig.segment(2, 3, "!").await;
    rig.status(2, 7, SlotState::Interrupted, Some(4)).await;
    expect(&mut events, &["status 2 7", "Store { why: Ended }", "log 2 3 !", "complete 2 4", "Waiting"])
        .await;

    rig.segment(3, 0, "three").await;
    rig.status(3, 9, finished(), Some(5)).await;
    expect(&mut events, &["status 3 9", "Store { why: Ended }", "log 3 0 three", "complete 3 5", "end"])
        .await;
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_promised_log_that_is_not_there_is_lost() {
    let rig = Rig::new();
    rig.segment(1, 0, "half").await;
    rig.status(1, 3, finished(), Some(8)).await;
    let mut events = rig.follow(Start::Beginning, true);
    expect(&mut events, &["status 1 3", "Store { why: Ended }", "log 1 0 half", "lost 1 4", "end"]).await;
}

#[tokio::test]
async fn the_log_of_a_slot_that_was_given_up_is_not_called_complete() {
    let rig = Rig::new();
    rig.segment(1, 0, "half").await;
    rig.status(1, 3, at_work(), None).await;
    let mut events = rig.follow(Start::Beginning, true);
    expect(&mut events, &["status 1 3", "Store { why: NotWanted }", "log 1 0 half"]).await;
    let message = "3 in a row".to_owned();
    let outcome = Outcome::Failed { phase: Phase::Run, failure: Failure::AgentLost, message };
    // No newer than what was seen: the lost machine had told more than it wrote.
    rig.status(1, 3, SlotState::Finished { outcome, at: Timestamp::UNIX_EPOCH }, None).await;
    expect(&mut events, &["status 1 3", "Store { why: Ended }", "lost 1 4", "end"]).await;
}

#[tokio::test]
async fn a_gap_is_not_skipped_and_does_not_hide_the_next_attempt() {
    let rig = Rig::new();
    rig.segment(1, 0, "a").await;
    rig.segment(1, 5, "f").await;
    rig.status(1, 1, at_work(), None).await;
    let mut events = rig.follow(Start::Beginning, true);
    expect(&mut events, &["status 1 1", "Store { why: NotWanted }", "log 1 0 a"]).await;
    rig.segment(2, 0, "b").await;
    rig.status(2, 1, finished(), Some(1)).await;
    expect(&mut events, &["status 2 1", "Store { why: Ended }", "lost 1 1"]).await;
    expect(&mut events, &["log 2 0 b", "complete 2 1", "end"]).await;
}

#[tokio::test]
async fn following_begins_where_it_is_asked_to() {
    let rig = Rig::new();
    rig.segment(1, 0, "one").await;
    rig.segment(2, 0, "two").await;
    rig.status(2, 4, finished(), Some(3)).await;
    let ended = "Store { why: Ended }";
    for (start, wanted) in [
        (Start::Beginning, vec!["status 2 4", ended, "log 1 0 one", "log 2 0 two", "complete 2 3", "end"]),
        (Start::NewestAttempt, vec!["status 2 4", ended, "log 2 0 two", "complete 2 3", "end"]),
        (
            Start::Cursors(vec![Cursor { slot: SLOT, attempt: Attempt(1), offset: 1 }]),
            vec!["status 2 4", ended, "log 1 1 ne", "log 2 0 two", "complete 2 3", "end"],
        ),
        (
            Start::Since(Timestamp::from_second(2).expect("a time")),
            vec!["status 2 4", ended, "log 2 0 two", "complete 2 3", "end"],
        ),
    ] {
        for follows in [true, false] {
            expect(&mut rig.follow(start.clone(), follows), &wanted).await;
        }
    }
    // Nothing there: nothing shown, and no waiting.
    let empty = Rig::new();
    expect(&mut empty.follow(Start::Beginning, false), &["Waiting", "end"]).await;
}

#[tokio::test]
async fn damaged_status_and_dropped_readers_end_the_work() {
    let rig = Rig::new();
    rig.store.put(&rig.keys.slot(SLOT), Bytes::from_static(b"{")).await.expect("written");
    let mut events = rig.follow(Start::Beginning, true);
    let error = events.next().await.expect("an item").expect_err("damaged");
    let FollowError::Store { slot, source } = error;
    assert_eq!((slot, source.kind), (SLOT, tpi_store::StoreErrorKind::Corrupt));
    assert!(events.next().await.is_none());
    drop(rig.follow(Start::Beginning, true));
}
