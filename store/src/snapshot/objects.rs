//! Names of packs and chunks: the folder they lie in, of which there are few, and a hash.

use std::{collections::HashMap, fmt};

use tpi_proto::id::{Attempt, SlotIndex, TaskId};

use super::Space;
use crate::layout::{CACHE, TASKS, TaskKeys};

/// Which push wrote an object: the folder it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Save {
    pub(super) slot: SlotIndex,
    pub(super) attempt: Attempt,
    pub(super) number: u64,
}

impl Save {
    /// From `{slot}/{attempt}-{save}`, as it is written and no other way.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (slot, rest) = text.split_once('/')?;
        let (attempt, number) = rest.split_once('-')?;
        let save = Self {
            slot: SlotIndex(slot.parse().ok()?),
            attempt: Attempt(attempt.parse().ok()?),
            number: number.parse().ok()?,
        };
        (save.to_string() == text).then_some(save)
    }
}

impl fmt::Display for Save {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.slot, self.attempt, self.number)
    }
}

/// Folder of the objects that are written to a space.
pub(super) fn folder(space: &Space) -> String {
    match space {
        Space::Cache => CACHE.to_owned(),
        Space::Save { task, run, save } => TaskKeys::new(task).save_packs(*run, *save),
    }
}

/// Key of a content object.
pub(super) fn object_key(space: &Space, hash: &blake3::Hash) -> String {
    format!("{}/{}", folder(space), hash.to_hex())
}

/// Whether content objects lie in such a folder.
pub(super) fn is_folder(folder: &str) -> bool {
    folder == CACHE
        || folder
            .strip_prefix(TASKS)
            .and_then(|rest| rest.strip_prefix('/'))
            .and_then(|rest| rest.split_once("/packs/"))
            .is_some_and(|(id, rest)| id.parse::<TaskId>().is_ok() && Save::parse(rest).is_some())
}

/// From hexadecimal, in lower case only.
pub(super) fn hash(name: &str) -> Option<blake3::Hash> {
    let lower = name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if lower { blake3::Hash::from_hex(name).ok() } else { None }
}

/// The hash that a content object is named by; `None` when the key is not that of one.
pub(super) fn object_hash(key: &str) -> Option<blake3::Hash> {
    let (folder, name) = key.rsplit_once('/')?;
    if is_folder(folder) { hash(name) } else { None }
}

/// One object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Object {
    /// Number of the folder; none: it is not in the store.
    pub(super) folder: Option<u32>,
    pub(super) hash: blake3::Hash,
    /// Bytes of the contents that went into it, living or not; 0 where that is not known.
    pub(super) size: u64,
}

/// Objects by number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Objects {
    pub(super) folders: Vec<String>,
    pub(super) list: Vec<Object>,
}

impl Objects {
    pub(super) fn get(&self, number: u32) -> Option<&Object> {
        self.list.get(number as usize)
    }

    pub(super) fn folder(&self, object: &Object) -> Option<&str> {
        self.folders.get(object.folder? as usize).map(String::as_str)
    }

    /// Key of an object; empty for what is not in the store.
    pub(super) fn key(&self, number: u32) -> String {
        self.get(number)
            .and_then(|object| Some(format!("{}/{}", self.folder(object)?, object.hash.to_hex())))
            .unwrap_or_default()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = String> {
        (0u32..).zip(&self.list).map(|(number, _)| self.key(number))
    }

    /// Number of a folder.
    pub(super) fn enter(&mut self, folder: &str) -> u32 {
        let at = self.folders.iter().rposition(|known| known == folder).unwrap_or_else(|| {
            self.folders.push(folder.to_owned());
            self.folders.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }
}

/// Objects that are being collected, each hash once.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) objects: Objects,
    numbers: HashMap<blake3::Hash, u32>,
}

impl Table {
    /// Number of an object, which is added when it is not known, as one that is not in the store.
    pub(super) fn number(&mut self, hash: &blake3::Hash, size: u64) -> u32 {
        *self.numbers.entry(*hash).or_insert_with(|| {
            self.objects.list.push(Object { folder: None, hash: *hash, size });
            u32::try_from(self.objects.list.len() - 1).unwrap_or(u32::MAX)
        })
    }

    /// Says where an object is, unless that is known.
    pub(super) fn place(&mut self, number: u32, folder: &str) {
        let folder = self.objects.enter(folder);
        if let Some(object) = self.objects.list.get_mut(number as usize) {
            object.folder.get_or_insert(folder);
        }
    }

    pub(super) fn is_placed(&self, number: u32) -> bool {
        self.objects.get(number).is_some_and(|object| object.folder.is_some())
    }
}
