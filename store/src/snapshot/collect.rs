//! Taking away saves that nobody can need any more, while the task runs.
//!
//! A slot's saves are numbered manifests (generations), the newest of which counts. Kept are the newest two, and
//! every one whose successor is younger than the grace period; manifests before the oldest that is kept go, and
//! then the objects that only those named. What is left of pushes that were never committed goes as well.
//!
//! # Why nothing goes that somebody needs
//!
//! Who writes what:
//!
//! 1. An object lies in the folder of one push, `packs/{slot}/{attempt}-{save}/`, and only that push writes there:
//!    attempts are never used twice, and a run numbers its saves upwards, each above all it has committed. Slots
//!    share no objects, so nothing that another slot does matters here.
//! 2. A push names objects of its own folder, of its base, and of the cache, where nothing is deleted by us. The
//!    base is the manifest that the run committed last or, at first, the newest one when it began. So an object
//!    that is gone from the base never comes back, and a deletion whose answer was lost, and which the store
//!    carries out late, meets nobody's new object.
//! 3. A manifest is committed by creating it (never over another) under the next number after one that the run has
//!    seen in the store, and right after the slot was renewed. A run that was replaced fails to renew, so of its
//!    commits only the last can come to the store after it was replaced.
//!
//! Let run `a`, whose last commit is generation `g`, collect.
//!
//! * *Its own next push* has `g` as its base, and `g` is kept. Folders with numbers above what was committed are
//!   left alone.
//! * *A successor* claims the slot before it looks for the newest manifest. If it claimed after `g` was committed,
//!   it finds `g` or later. Otherwise, by 3, it claimed when `g - 1` was there, and begins with that or with `g`:
//!   the newest two **that `a` knows of**, which `a` never deletes. Hence generations above `g`, which only a
//!   successor makes, must not count among the two: when one is seen, `a` was replaced and deletes nothing any
//!   more. A frozen `a` that wakes between looking and deleting still deletes only what it had
//!   decided on, which names nothing of those two, nor of any later push (2).
//! * *A predecessor* that is still alive does the same with its own last two, `h - 1` and `h`. By the above the
//!   run that replaced it began with one of them, and by 2 needs nothing else of it. Old generations that it takes
//!   away under our eyes are found missing, and then this collection does nothing. A late commit of its is under a
//!   number that is taken or below ours: it is never the newest.
//! * *Someone who reads* `m`, which was the newest when they chose it, has the grace period from the moment `m` was
//!   replaced: ages are those of the successors, by the store's clock alone. A machine that restores has no end of
//!   time, because nothing is committed meanwhile and the newest two stay.
//! * *An end at any point*: manifests go before what they name, oldest first, so a manifest that is there is whole.
//!   Objects that were to go are found by the next run of the slot, which lists them all once.
//!
//! Before anything goes that a listing decided on, everything that the kept manifests name has to be in that
//! listing. Otherwise nothing is deleted at all.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use tpi_proto::id::{RunId, TaskId};

use super::{
    SnapshotError,
    manifest::Manifest,
    objects::{Objects, Save, object_hash},
};
use crate::{Store, StoreErrorKind, layout::TaskKeys};

/// Newest generations that are never taken away. The safety of everything rests on there being two.
const KEEP: usize = 2;
/// Deletions after which what was done is noted.
const LOT: usize = 1000;

/// What went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Manifests.
    pub generations: u64,
    /// Packs and chunks.
    pub objects: u64,
}

/// An object of the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Object {
    save: Save,
    hash: blake3::Hash,
}

/// Takes away old saves of one run's slot. May be dropped at any await.
#[derive(Debug)]
pub struct Collector {
    store: Store,
    keys: TaskKeys,
    run: RunId,
    grace: Duration,
    /// Newest generation that the run has committed, and since when.
    committed: Option<(u64, Instant)>,
    /// The last generation that names an object; of all objects that kept generations name.
    last: HashMap<Object, u64>,
    /// Whether generations from before this run are in there.
    read: bool,
    /// Whether there may be objects that no manifest names.
    stray: bool,
    /// Whether there is something that will go when it is old enough.
    waiting: bool,
}

impl Collector {
    /// For a run whose pushes go to [`super::Space::Save`]s. What was replaced longer ago than `grace` may go.
    #[must_use]
    pub fn new(store: Store, task: &TaskId, run: RunId, grace: Duration) -> Self {
        Self {
            store,
            keys: TaskKeys::new(task),
            run,
            grace,
            committed: None,
            last: HashMap::new(),
            read: false,
            stray: true,
            waiting: false,
        }
    }

    /// The run has committed a generation; the push had at most that number.
    pub fn committed(&mut self, generation: u64, manifest: &Manifest) {
        self.committed = Some((generation, Instant::now()));
        self.waiting = true;
        self.note(generation, &manifest.objects);
    }

    /// A push or a commit failed: it may have left objects behind.
    pub fn failed(&mut self) {
        self.stray = true;
    }

    /// Whether a collection may find something.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.committed.is_some() && (self.waiting || self.stray)
    }

    fn note(&mut self, generation: u64, objects: &Objects) {
        let saves: Vec<_> = objects.folders.iter().map(|folder| self.save(folder)).collect();
        for object in &objects.list {
            let folder = object.folder.and_then(|folder| saves.get(folder as usize).copied().flatten());
            if let Some(save) = folder {
                let last = self.last.entry(Object { save, hash: object.hash }).or_insert(generation);
                *last = generation.max(*last);
            }
        }
    }

    /// `None` for a folder that is not the slot's.
    fn save(&self, folder: &str) -> Option<Save> {
        let save = folder.strip_prefix(&self.keys.packs())?.strip_prefix('/')?;
        Save::parse(save).filter(|save| save.slot == self.run.slot)
    }

    /// `None` for what is not the slot's.
    fn object(&self, key: &str) -> Option<Object> {
        let (folder, _) = key.rsplit_once('/')?;
        Some(Object { save: self.save(folder)?, hash: object_hash(key)? })
    }

    fn key(&self, object: &Object) -> String {
        format!("{}/{}/{}", self.keys.packs(), object.save, object.hash.to_hex())
    }

    /// Takes away what may go by now; nothing before the run's first commit.
    ///
    /// # Errors
    /// What the store meets; `Damaged` when a kept manifest cannot be read or names what is not there, and then
    /// nothing was deleted. It may be called again.
    pub async fn collect(&mut self) -> Result<Collected, SnapshotError> {
        let mut collected = Collected::default();
        let Some((committed, since)) = self.committed else { return Ok(collected) };
        let found = self.generations().await?;
        let Some((oldest, waiting)) = kept(&found, committed, since.elapsed(), self.grace) else {
            // Replaced: it is the successor's now.
            self.waiting = false;
            self.stray = false;
            return Ok(collected);
        };
        if !self.read {
            self.read_earlier(&found, oldest, committed).await?;
        }
        let strays = if self.stray { self.strays(oldest, committed).await? } else { Vec::new() };
        for (generation, _) in found.iter().filter(|(generation, _)| *generation < oldest) {
            self.store.delete(&self.keys.saved_generation(self.run.slot, *generation)).await?;
            collected.generations += 1;
        }
        for lot in strays.chunks(LOT) {
            self.store.delete_all(lot.to_vec()).await?;
            collected.objects += lot.len() as u64;
        }
        self.stray = false;
        let dead: Vec<Object> =
            self.last.iter().filter(|(_, last)| **last < oldest).map(|(object, _)| *object).collect();
        for lot in dead.chunks(LOT) {
            self.store.delete_all(lot.iter().map(|object| self.key(object)).collect()).await?;
            for object in lot {
                self.last.remove(object);
            }
            collected.objects += lot.len() as u64;
        }
        self.last.shrink_to(self.last.len() * 2);
        self.waiting = waiting;
        Ok(collected)
    }

    /// Number and age of each generation, by number.
    async fn generations(&self) -> Result<Vec<(u64, Timestamp)>, SnapshotError> {
        let mut found = Vec::new();
        let mut listing = self.store.list(&self.keys.saved(self.run.slot), None);
        while let Some(object) = listing.next().await {
            let object = object?;
            found.extend(TaskKeys::generation(&object.key).map(|number| (number, object.modified)));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Notes what the kept generations name that this run has not committed itself.
    async fn read_earlier(
        &mut self,
        found: &[(u64, Timestamp)],
        oldest: u64,
        committed: u64,
    ) -> Result<(), SnapshotError> {
        for (generation, _) in found.iter().filter(|(g, _)| (oldest..committed).contains(g)) {
            let key = self.keys.saved_generation(self.run.slot, *generation);
            match self.store.get(&key).await {
                Ok(bytes) => {
                    self.note(*generation, &Manifest::objects_of(&bytes)?);
                }
                // A predecessor took it away just now.
                Err(error) if error.kind == StoreErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.read = true;
        Ok(())
    }

    /// Keys of the objects that no kept manifest names, of pushes that will not commit any more.
    async fn strays(&mut self, oldest: u64, committed: u64) -> Result<Vec<String>, SnapshotError> {
        let mut strays = Vec::new();
        let mut there = 0;
        let mut listing = self.store.list(&self.keys.slot_packs(self.run.slot), None);
        while let Some(listed) = listing.next().await {
            let key = listed?.key;
            let Some(object) = self.object(&key) else { continue };
            match self.last.get(&object) {
                Some(last) if *last >= oldest => there += 1,
                // Goes with those that are known.
                Some(_) => {}
                None => {
                    let past = (object.save.attempt, object.save.number) <= (self.run.attempt, committed);
                    if past {
                        strays.push(key);
                    }
                }
            }
        }
        let named = self.last.values().filter(|last| **last >= oldest).count();
        if there != named {
            // Perhaps a predecessor has just taken an old save away: everything is read again next time.
            self.read = false;
            self.last.retain(|_, last| *last >= committed);
            return Err(SnapshotError::Damaged {
                name: self.keys.slot_packs(self.run.slot),
                cause: format!("saves that are kept need {named} objects of it, and {there} are there"),
            });
        }
        Ok(strays)
    }
}

/// The oldest generation that is kept, and whether more will go with time; `None` when the run was replaced.
fn kept(found: &[(u64, Timestamp)], committed: u64, since: Duration, grace: Duration) -> Option<(u64, bool)> {
    let (newest, written) = found.last()?;
    if *newest != committed {
        return None;
    }
    // By the store's clock: what it showed at the commit, and the time since then.
    let now = *written + SignedDuration::try_from(since).ok()?;
    let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
    let mut oldest = *newest;
    let mut waiting = false;
    for (at, pair) in found.windows(2).rev().enumerate() {
        let [(generation, _), (_, replaced)] = pair else { break };
        let young = now.duration_since(*replaced) < grace;
        if at + 1 >= KEEP && !young {
            break;
        }
        waiting |= at + 1 >= KEEP;
        oldest = *generation;
    }
    Some((oldest, waiting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept() {
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let oldest = |found: &[(u64, i64)], since: u64, grace: u64| {
            let found: Vec<_> = found.iter().map(|(number, time)| (*number, at(*time))).collect();
            let committed = found.last().unwrap().0;
            kept(&found, committed, Duration::from_secs(since), Duration::from_secs(grace)).unwrap()
        };
        let found = [(1, 0), (2, 10), (4, 20), (5, 3000), (6, 3010)];
        assert_eq!(oldest(&found[..1], 0, 0), (1, false));
        assert_eq!(oldest(&found, 0, 0), (5, false));
        // Long the newest, replaced just now.
        assert_eq!(oldest(&found, 0, 60), (4, true));
        assert_eq!(oldest(&found, 49, 60), (4, true));
        assert_eq!(oldest(&found, 51, 60), (5, false));
        assert_eq!(oldest(&found, 0, 2995), (2, true));
        assert_eq!(oldest(&found, 0, 5000), (1, true));
        // Somebody else has gone on.
        assert_eq!(kept(&[(1, at(0)), (2, at(1))], 1, Duration::ZERO, Duration::ZERO), None);
        assert_eq!(kept(&[], 1, Duration::ZERO, Duration::ZERO), None);
    }
}
