//! Old saves are taken away, and never one that anybody could need: whoever else writes, is replaced, or dies.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "conformance/backends.rs"]
mod backends;
#[path = "conformance/trees.rs"]
#[expect(dead_code, reason = "shared with the conformance suite")]
mod trees;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures::TryStreamExt;
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};
use tpi_proto::id::{Attempt, RunId, SlotIndex, TaskId};
use tpi_store::{
    Store, StoreErrorKind,
    layout::TaskKeys,
    rules::Rules,
    snapshot::{self, Collected, Collector, Manifest, PushOptions, Quiet, SnapshotError, Space},
};
use url::Url;

const HOUR: Duration = Duration::from_secs(3600);

fn task() -> TaskId {
    TaskId::deterministic("test").unwrap()
}

fn keys() -> TaskKeys {
    TaskKeys::new(&task())
}

async fn listed(store: &Store, prefix: &str) -> Vec<String> {
    store.list(prefix, None).map_ok(|info| info.key).try_collect().await.unwrap()
}

async fn generations(store: &Store, slot: u32) -> Vec<u64> {
    let keys = listed(store, &keys().saved(SlotIndex(slot))).await;
    keys.iter().map(|key| TaskKeys::generation(key).unwrap()).collect()
}

async fn read(store: &Store, slot: u32, generation: u64) -> Manifest {
    let key = keys().saved_generation(SlotIndex(slot), generation);
    Manifest::from_bytes(&store.get(&key).await.unwrap()).unwrap()
}

/// Every save that is there is whole, and what is not named by one is gone when nothing is to be left over.
async fn whole(store: &Store, slots: u32, nothing_over: bool) {
    let mut named: Vec<String> = Vec::new();
    for slot in 0..slots {
        for generation in generations(store, slot).await {
            let manifest = read(store, slot, generation).await;
            let back = tempdir().unwrap();
            trees::restore(store, &manifest, back.path(), &trees::machine()).await.unwrap();
            named.extend(manifest.objects());
        }
    }
    named.sort();
    named.dedup();
    if nothing_over {
        named.retain(|key| key.starts_with("tasks/"));
        assert_eq!(listed(store, &keys().packs()).await, named);
    }
}

/// A machine that saves a folder, as the agent does.
struct Machine {
    store: Store,
    run: RunId,
    work: TempDir,
    base: Option<Arc<Manifest>>,
    generation: u64,
    collector: Collector,
}

impl Machine {
    /// Claims the slot (that it does is the test's business) and restores what was saved last.
    async fn start(store: &Store, slot: u32, attempt: u32, grace: Duration) -> Self {
        let run = RunId { slot: SlotIndex(slot), attempt: Attempt(attempt) };
        let work = tempdir().unwrap();
        let newest = generations(store, slot).await.last().copied();
        let mut base = None;
        if let Some(generation) = newest {
            let manifest = read(store, slot, generation).await;
            trees::restore(store, &manifest, work.path(), &trees::machine()).await.unwrap();
            base = Some(Arc::new(manifest));
        }
        Self {
            store: store.clone(),
            run,
            work,
            base,
            generation: newest.unwrap_or(0),
            collector: Collector::new(store.clone(), &task(), run, grace),
        }
    }

    fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        fs::write(self.work.path().join(name), content).unwrap();
    }

    fn options(&self) -> PushOptions {
        PushOptions {
            rules: Rules::everything(),
            space: Space::Save { task: task(), run: self.run, save: self.generation + 1 },
            index: None,
            base: self.base.clone(),
        }
    }

    async fn push(&mut self) -> Option<Manifest> {
        let plan = snapshot::plan(&self.store, self.work.path(), self.options(), &Quiet).await.unwrap();
        if plan.is_base() {
            return None;
        }
        Some(snapshot::push(&self.store, plan, &Quiet).await.unwrap())
    }

    /// `confirmed`: whether the slot is still this machine's, each time that is asked.
    async fn commit(&mut self, manifest: Manifest, mut confirmed: impl FnMut() -> bool) -> bool {
        let mut generation = self.generation + 1;
        while confirmed() {
            let key = keys().saved_generation(self.run.slot, generation);
            match self.store.create(&key, manifest.to_bytes()).await {
                Ok(_) => {
                    self.collector.committed(generation, &manifest);
                    self.generation = generation;
                    self.base = Some(Arc::new(manifest));
                    return true;
                }
                Err(e) if e.kind == StoreErrorKind::AlreadyExists => generation += 1,
                Err(e) => panic!("{e}"),
            }
        }
        self.collector.failed();
        false
    }

    async fn save(&mut self) {
        if let Some(manifest) = self.push().await {
            self.commit(manifest, || true).await;
        }
    }

    async fn collect(&mut self) -> Collected {
        self.collector.collect().await.unwrap()
    }
}

async fn backends(test: &str) -> Vec<backends::Backend> {
    [Some(backends::memory()), Some(backends::folder()), backends::s3(test).await]
        .into_iter()
        .flatten()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_written_again_and_again_takes_no_more_room() {
    for backend in backends("rewriting").await {
        let store = backend.store;
        let mut machine = Machine::start(&store, 0, 1, Duration::ZERO).await;
        machine.write("kept", trees::noise(100_000, 1000));
        for round in 0..6 {
            machine.write("large", trees::noise(9 << 20, round));
            machine.write("small", trees::noise(1000, round));
            machine.save().await;
            machine.collect().await;
            whole(&store, 1, true).await;
            assert!(generations(&store, 0).await.len() <= 2);
        }
        assert!(!machine.collector.is_due());
        // Nothing new, nothing to do.
        machine.save().await;
        assert_eq!(machine.collect().await, Collected::default());
        assert_eq!(generations(&store, 0).await, [5, 6]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_replaced_just_now_stays() {
    let store = Store::memory();
    let mut machine = Machine::start(&store, 0, 1, HOUR).await;
    for round in 0..5 {
        machine.write("file", format!("{round}"));
        machine.save().await;
        assert_eq!(machine.collect().await, Collected::default());
    }
    assert!(machine.collector.is_due());
    whole(&store, 1, true).await;
    assert_eq!(generations(&store, 0).await, [1, 2, 3, 4, 5]);
    // The next machine, for whom they are old enough.
    let mut next = Machine::start(&store, 0, 2, Duration::ZERO).await;
    assert_eq!(next.collect().await, Collected::default(), "it has committed nothing");
    next.write("file", "next");
    next.save().await;
    assert_eq!(next.collect().await, Collected { generations: 4, objects: 4 });
    whole(&store, 1, true).await;
}

/// Slots write the same contents at the same time, and each takes away its own only.
#[tokio::test(flavor = "multi_thread")]
async fn slots_do_not_touch_each_other() {
    for backend in backends("slots").await {
        let store = backend.store;
        let mut machines = [
            Machine::start(&store, 0, 1, Duration::ZERO).await,
            Machine::start(&store, 1, 1, Duration::ZERO).await,
        ];
        for round in 0..6u32 {
            let [a, b] = &mut machines;
            for (machine, seed) in [(&*a, round), (&*b, round / 2)] {
                machine.write("same", "the same");
                machine.write("small", trees::noise(5000, seed));
                machine.write("large", trees::noise(9 << 20, seed));
            }
            tokio::join!(a.save(), b.save());
            tokio::join!(a.collect(), b.save());
            tokio::join!(a.save(), b.collect());
            whole(&store, 2, true).await;
        }
    }
}

/// A machine that was replaced but does not know yet: its push, commit and collection come late.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_machine_harms_nothing() {
    let store = Store::memory();
    let mut old = Machine::start(&store, 0, 1, Duration::ZERO).await;
    for round in 0..3 {
        old.write("early", format!("{round}"));
        old.write(format!("file-{round}"), "stays");
        old.save().await;
    }
    old.write("early", "late");
    fs::remove_file(old.work.path().join("file-0")).unwrap();
    let late = old.push().await.unwrap();
    // Renewed just before the other claims, and committed after the other has looked.
    let mut new = Machine::start(&store, 0, 2, Duration::ZERO).await;
    new.write("mine", "new");
    let first = new.push().await.unwrap();
    assert!(old.commit(late, || true).await);
    old.collect().await;
    whole(&store, 1, false).await;
    // Its generation has a number that is taken: the next one counts.
    assert!(new.commit(first, || true).await);
    assert_eq!(generations(&store, 0).await, [3, 4, 5]);
    assert_eq!(read(&store, 0, 5).await.files().count(), 5);
    old.collector.failed();
    assert_eq!(old.collect().await, Collected::default());
    old.write("early", "even later");
    let never = old.push().await.unwrap();
    assert!(!old.commit(never, || false).await);
    assert_eq!(old.collect().await, Collected::default());
    whole(&store, 1, false).await;
    new.collect().await;
    whole(&store, 1, true).await;
    new.write("mine", "newer");
    new.save().await;
    new.collect().await;
    assert_eq!(generations(&store, 0).await, [5, 6]);
    whole(&store, 1, true).await;
}

/// Nothing is deleted on the word of a listing that lacks what is needed.
#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_is_not_whole_stops_everything() {
    let store = Store::memory();
    let mut machine = Machine::start(&store, 0, 1, Duration::ZERO).await;
    for round in 0..4 {
        machine.write("file", format!("{round}"));
        machine.save().await;
    }
    let lost = read(&store, 0, 4).await.objects().remove(0);
    let content = store.get(&lost).await.unwrap();
    store.delete(&lost).await.unwrap();
    let before = listed(&store, "").await;
    for _ in 0..2 {
        let error = machine.collector.collect().await.unwrap_err();
        assert!(matches!(error, SnapshotError::Damaged { .. }), "{error:?}");
        assert_eq!(listed(&store, "").await, before);
    }
    store.put(&lost, content).await.unwrap();
    assert_eq!(machine.collect().await.generations, 2);
    whole(&store, 1, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mostly_dead_packs_are_packed_anew() {
    let store = Store::memory();
    let mut machine = Machine::start(&store, 0, 1, Duration::ZERO).await;
    for file in 0..10 {
        machine.write(format!("{file}"), trees::noise(100_000, file));
    }
    machine.save().await;
    let pack = read(&store, 0, 1).await.objects();
    for file in 0..7 {
        fs::remove_file(machine.work.path().join(format!("{file}"))).unwrap();
    }
    machine.save().await;
    assert_eq!(read(&store, 0, 2).await.objects(), pack, "three of ten live");
    fs::remove_file(machine.work.path().join("7")).unwrap();
    machine.save().await;
    let anew = read(&store, 0, 3).await.objects();
    assert_eq!(anew.len(), 1);
    assert_ne!(anew, pack);
    machine.write("another", "x");
    machine.save().await;
    machine.collect().await;
    assert!(store.head(&pack[0]).await.unwrap().is_none());
    whole(&store, 1, true).await;
    // Many small packs become few.
    for round in 0..80 {
        machine.write(format!("n{round}"), format!("{round}"));
        machine.save().await;
    }
    assert!(read(&store, 0, machine.generation).await.objects().len() <= 66);
    machine.collect().await;
    whole(&store, 1, true).await;
}

fn folder_store(folder: &Path) -> Store {
    Store::open(&Url::from_directory_path(folder.join("store")).unwrap()).unwrap()
}

/// Given up at every point where it waits for the store, with what it had asked for still going on.
#[tokio::test(flavor = "multi_thread")]
async fn given_up_at_every_call() {
    let folder = tempdir().unwrap();
    let store = folder_store(folder.path());
    let mut attempt = 0;
    let mut finished = false;
    for calls in 0.. {
        attempt += 1;
        let mut machine = Machine::start(&store, 0, attempt, Duration::ZERO).await;
        for round in 0..3u32 {
            machine.write("a", trees::noise(2000, calls * 10 + round));
            machine.write(format!("b{}", calls % 3), trees::noise(2000, calls * 20 + round));
            machine.save().await;
        }
        {
            let mut left = calls;
            let mut collecting = pin!(machine.collector.collect());
            std::future::poll_fn(|context| match collecting.as_mut().poll(context) {
                Poll::Ready(result) => {
                    result.unwrap();
                    finished = true;
                    Poll::Ready(())
                }
                Poll::Pending if left == 0 => Poll::Ready(()),
                Poll::Pending => {
                    left -= 1;
                    Poll::Pending
                }
            })
            .await;
        }
        whole(&store, 1, false).await;
        if finished {
            break;
        }
        if calls % 2 == 0 {
            // The same one goes on.
            machine.collect().await;
            whole(&store, 1, true).await;
        }
    }
    let mut last = Machine::start(&store, 0, attempt + 1, Duration::ZERO).await;
    last.write("last", "x");
    last.save().await;
    last.collect().await;
    whole(&store, 1, true).await;
    assert_eq!(generations(&store, 0).await.len(), 2);
}

const WORK: &str = "__TPI_TEST_STORE_CHILD";

fn start(attempt: u32, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(WORK, attempt.to_string())
        .current_dir(folder)
        .spawn()
        .unwrap()
}

/// What the processes that are killed do: save and take away as fast as they can.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(attempt) = std::env::var(WORK) else { return };
    let store = folder_store(&std::env::current_dir().unwrap());
    let mut machine = Machine::start(&store, 0, attempt.parse().unwrap(), Duration::ZERO).await;
    for round in 0u32.. {
        machine.write("a", trees::noise(200_000, round));
        machine.write(format!("b{}", round % 5), trees::noise(1000, round));
        machine.save().await;
        machine.collect().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment() {
    let folder = tempdir().unwrap();
    let store = folder_store(folder.path());
    for attempt in 1..=12 {
        let before = generations(&store, 0).await.last().copied().unwrap_or(0);
        let mut child = start(attempt, folder.path());
        // Each one a little further into what it does than the last.
        let mut looks = 0;
        loop {
            assert!(child.try_wait().unwrap().is_none());
            let newest = generations(&store, 0).await.last().copied().unwrap_or(0);
            if newest >= before + 3 {
                looks += 1;
                if looks > attempt * 2 {
                    break;
                }
            }
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        whole(&store, 1, false).await;
    }
    let mut last = Machine::start(&store, 0, 100, Duration::ZERO).await;
    last.write("last", "x");
    last.save().await;
    last.collect().await;
    whole(&store, 1, true).await;
}

#[derive(Debug, Clone)]
enum Step {
    Write(u8, u8),
    Remove(u8),
    /// Pushes and commits.
    Save,
    /// Pushes, and keeps what it has for later.
    Push,
    /// Commits what was pushed, if the slot is still its own.
    Commit,
    Collect,
    /// Collects until that many times the store was waited for.
    GiveUp(u8),
    /// Another machine takes the slot over; the old one lives on.
    Replace,
}

fn steps() -> impl Strategy<Value = Vec<(u8, bool, Step)>> {
    let step = prop_oneof![
        6 => (0u8..6, any::<u8>()).prop_map(|(name, seed)| Step::Write(name, seed % 8)),
        2 => (0u8..6).prop_map(Step::Remove),
        6 => Just(Step::Save),
        2 => Just(Step::Push),
        2 => Just(Step::Commit),
        4 => Just(Step::Collect),
        1 => (0u8..12).prop_map(Step::GiveUp),
        1 => Just(Step::Replace),
    ];
    // Which slot, and whether the machine that was replaced does it.
    prop::collection::vec((0u8..2, prop::bool::weighted(0.2), step), 0..50)
}

/// A machine, what it has pushed, and whether it was told that the slot is its own right before it was replaced.
struct Actor {
    machine: Machine,
    pushed: Option<Manifest>,
    /// Commits that may still be under way.
    allowed: usize,
}

async fn act(actor: &mut Actor, step: &Step) {
    let machine = &mut actor.machine;
    match step {
        Step::Write(name, seed) => {
            let size = if *name == 0 { 9 << 20 } else { 3000 * usize::from(*name) };
            machine.write(format!("{name}"), trees::noise(size, u32::from(*seed)));
        }
        Step::Remove(name) => drop(fs::remove_file(machine.work.path().join(format!("{name}")))),
        Step::Save | Step::Push | Step::Commit => {
            if !matches!(step, Step::Commit) && actor.pushed.is_none() {
                actor.pushed = machine.push().await;
            }
            if matches!(step, Step::Push) {
                return;
            }
            if let Some(pushed) = actor.pushed.take() {
                let allowed = &mut actor.allowed;
                machine
                    .commit(pushed, || {
                        let may = *allowed > 0;
                        *allowed = allowed.saturating_sub(1);
                        may
                    })
                    .await;
            }
        }
        Step::Collect => drop(machine.collect().await),
        Step::GiveUp(calls) => {
            let mut left = *calls;
            let mut collecting = pin!(machine.collector.collect());
            std::future::poll_fn(|context| match collecting.as_mut().poll(context) {
                Poll::Pending if left > 0 => {
                    left -= 1;
                    Poll::Pending
                }
                Poll::Ready(_) | Poll::Pending => Poll::Ready(()),
            })
            .await;
        }
        Step::Replace => {}
    }
}

async fn run(steps: Vec<(u8, bool, Step)>) {
    let folder = tempdir().unwrap();
    let store = folder_store(folder.path());
    let mut slots = Vec::new();
    for slot in 0..2 {
        let machine = Machine::start(&store, slot, 1, Duration::ZERO).await;
        slots.push((None::<Actor>, Actor { machine, pushed: None, allowed: usize::MAX }));
    }
    // What the newest save of each slot has to hold.
    let mut expected: BTreeMap<usize, (u64, BTreeMap<PathBuf, trees::Node>)> = BTreeMap::new();
    for (slot, by_old, step) in steps {
        let slot = usize::from(slot);
        let (old, new) = &mut slots[slot];
        if matches!(step, Step::Replace) {
            let attempt = new.machine.run.attempt.0 + 1;
            let machine = Machine::start(&store, u32::try_from(slot).unwrap(), attempt, Duration::ZERO).await;
            let replaced = std::mem::replace(new, Actor { machine, pushed: None, allowed: usize::MAX });
            // One commit of it may have been confirmed just before.
            *old = Some(Actor { allowed: usize::from(replaced.pushed.is_some()), ..replaced });
            continue;
        }
        let actor = match old {
            Some(old) if by_old => old,
            Some(_) | None => new,
        };
        let before = actor.machine.generation;
        act(actor, &step).await;
        if actor.machine.generation > before {
            let manifest = actor.machine.base.as_ref().unwrap();
            let back = tempdir().unwrap();
            trees::restore(&store, manifest, back.path(), &trees::machine()).await.unwrap();
            let saved = expected.entry(slot).or_default();
            if actor.machine.generation > saved.0 {
                *saved = (actor.machine.generation, trees::contents(back.path()));
            }
        }
        for (slot, (generation, content)) in &expected {
            let index = u32::try_from(*slot).unwrap();
            let all = generations(&store, index).await;
            assert_eq!(all.last(), Some(generation));
            for generation in all.iter().rev().take(2) {
                let back = tempdir().unwrap();
                let manifest = read(&store, index, *generation).await;
                trees::restore(&store, &manifest, back.path(), &trees::machine()).await.unwrap();
                if Some(generation) == all.last() {
                    assert!(trees::contents(back.path()) == *content);
                }
            }
            // What the machine that has the slot goes on from.
            if let Some(base) = &slots[*slot].1.machine.base {
                for object in base.objects() {
                    assert!(store.head(&object).await.unwrap().is_some(), "{object} is needed");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, max_shrink_iters: 60, ..ProptestConfig::default() })]
    #[test]
    fn saves_that_count_are_always_whole(steps in steps()) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(run(steps));
    }
}
