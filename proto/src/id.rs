//! Identifiers: which task, which slot of it, which attempt at that slot.
//!
//! A task's long identifier is `{prefix}-{name}-{salt}-{check}` with a three-letter prefix, at most 50
//! characters in all. `check` is derived from name and salt, so that an identifier can be told from any
//! other resource name when a cloud account is listed. `salt` is derived from the name (the same name is
//! the same task) or from randomness (every task is a new one).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256 as Sha256Hasher};

const PREFIX: &str = "tpi";
const NAME_MAX: usize = 28;
const HASH_LEN: usize = 8;

/// Longest name, in characters, before it is shortened to fit the names that clouds allow.
pub const NAME_LIMIT: usize = NAME_MAX;

/// Why a text is not a task identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskIdError {
    /// Wrong number of parts, or a part with characters that never occur in one.
    #[error("{0:?} is not a task identifier (expected tpi-NAME-SALT-CHECK)")]
    Shape(String),
    /// Looks like one, but name and salt do not give this check: a typing error, or another program's resource.
    #[error("{0:?} looks like a task identifier but its last part does not match the rest")]
    Check(String),
    /// Nothing is left of a name when only letters and digits are kept.
    #[error("the name {0:?} has no letter or digit")]
    EmptyName(String),
}

/// A task's long identifier; see the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId {
    long: String,
    name_len: usize,
}

impl TaskId {
    /// The identifier that `name` always gives.
    ///
    /// # Errors
    /// [`TaskIdError::EmptyName`] when the name has no letter or digit.
    pub fn deterministic(name: &str) -> Result<Self, TaskIdError> {
        let normal = normalize(name);
        if normal.is_empty() {
            return Err(TaskIdError::EmptyName(name.to_owned()));
        }
        Ok(Self::build(&normal, &hash8(normal.as_bytes())))
    }

    /// An identifier for `name` that only `seed` gives: the name's salt is taken from the seed.
    ///
    /// # Errors
    /// [`TaskIdError::EmptyName`] when the name has no letter or digit.
    pub fn seeded(name: &str, seed: &[u8]) -> Result<Self, TaskIdError> {
        let normal = normalize(name);
        if normal.is_empty() {
            return Err(TaskIdError::EmptyName(name.to_owned()));
        }
        Ok(Self::build(&normal, &hash8(seed)))
    }

    fn build(name: &str, salt: &str) -> Self {
        let check = hash8(format!("{name}{salt}").as_bytes());
        Self { long: format!("{PREFIX}-{name}-{salt}-{check}"), name_len: name.len() }
    }

    /// The whole identifier; used as the name of resources.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.long
    }

    /// The (normalised) name inside the identifier.
    #[must_use]
    pub fn name(&self) -> &str {
        self.long.get(4..4 + self.name_len).unwrap_or_default()
    }

    /// Salt and check without a separator: 16 characters, for names that must be short.
    #[must_use]
    pub fn short(&self) -> String {
        self.long.get(4 + self.name_len..).unwrap_or_default().replace('-', "")
    }
}

impl FromStr for TaskId {
    type Err = TaskIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = || TaskIdError::Shape(text.to_owned());
        if text.len() > 50 || !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(shape());
        }
        let (prefix, rest) = text.split_once('-').ok_or_else(shape)?;
        let (rest, check) = rest.rsplit_once('-').ok_or_else(shape)?;
        let (name, salt) = rest.rsplit_once('-').ok_or_else(shape)?;
        if prefix.len() != 3 || name.is_empty() || salt.is_empty() || salt.len() > HASH_LEN {
            return Err(shape());
        }
        if hash8(format!("{name}{salt}").as_bytes()) != check {
            return Err(TaskIdError::Check(text.to_owned()));
        }
        Ok(Self { long: text.to_owned(), name_len: name.len() })
    }
}

impl TryFrom<String> for TaskId {
    type Error = TaskIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> Self {
        id.long
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.long)
    }
}

/// Lower case; every run of other characters becomes one dash; at most 28 characters; one dash stripped
/// from each end.
#[must_use]
pub fn normalize(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.to_lowercase().chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('-') {
            out.push('-');
        }
    }
    out.truncate(NAME_MAX);
    let out = out.strip_prefix('-').unwrap_or(&out);
    out.strip_suffix('-').unwrap_or(out).to_owned()
}

/// SHA-256 as a big-endian integer in base 36, without leading zeros, first eight characters.
fn hash8(bytes: &[u8]) -> String {
    let mut number: Vec<u8> = Sha256Hasher::digest(bytes).to_vec();
    let mut digits = Vec::with_capacity(50);
    // Long division by 36; the number is 32 bytes, so this is at most 50 rounds.
    while number.iter().any(|&b| b != 0) {
        let mut remainder = 0u32;
        for byte in &mut number {
            let value = (remainder << 8) | u32::from(*byte);
            *byte = u8::try_from(value / 36).unwrap_or(u8::MAX);
            remainder = value % 36;
        }
        digits.push(char::from_digit(remainder, 36).unwrap_or('0'));
    }
    digits.iter().rev().take(HASH_LEN).collect()
}

/// Rank of a slot: 0 to parallelism - 1. The script sees it as `TPI_SLOT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotIndex(pub u32);

impl fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which try at a slot, counted from 1. Every machine that takes a slot over has the next one, so an older
/// machine that is still alive after a partition can always be told from its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Slot and attempt together, written `0-1`: names one run of the script, and the TLS server that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId {
    /// Rank of the slot.
    pub slot: SlotIndex,
    /// Try at that slot.
    pub attempt: Attempt,
}

impl RunId {
    /// DNS name in the certificate of the agent that serves this run: the task and the run, never an address.
    #[must_use]
    pub fn server_name(&self, task: &TaskId) -> String {
        format!("{self}.{task}.tpi.internal")
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.slot, self.attempt)
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.to_string()
    }
}

/// A text that is not `SLOT-ATTEMPT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not SLOT-ATTEMPT")]
pub struct RunIdError(String);

impl FromStr for RunId {
    type Err = RunIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || RunIdError(text.to_owned());
        let (slot, attempt) = text.split_once('-').ok_or_else(error)?;
        Ok(Self {
            slot: SlotIndex(slot.parse().map_err(|_| error())?),
            attempt: Attempt(attempt.parse().map_err(|_| error())?),
        })
    }
}

impl TryFrom<String> for RunId {
    type Error = RunIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// One machine's boot, chosen by whoever starts the machine; unique within the task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineId(pub String);

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_vectors() {
        let id = |name: &str| TaskId::deterministic(name).map(String::from);
        assert_eq!(id("test").as_deref(), Ok("tpi-test-3z4xlzwq-3u0vweb4"));
        assert_eq!(id("Hello, World!").as_deref(), Ok("tpi-hello-world-4dl8w653-5lubxln8"));
    }

    #[test]
    fn names_are_shortened_and_stripped() {
        assert_eq!(normalize("__Bees & Flowers__"), "bees-flowers");
        assert_eq!(normalize("tpi-examples-basic "), "tpi-examples-basic");
        assert_eq!(normalize(&"x".repeat(60)).len(), 28);
        assert_eq!(TaskId::deterministic("…"), Err(TaskIdError::EmptyName("…".to_owned())));
    }

    #[test]
    fn a_wrong_check_is_told_from_a_wrong_shape() {
        assert!(matches!("tpi-test-3z4xlzwq-3u0vweb5".parse::<TaskId>(), Err(TaskIdError::Check(_))));
        assert!(matches!("my-bucket".parse::<TaskId>(), Err(TaskIdError::Shape(_))));
        assert!(matches!("../../etc".parse::<TaskId>(), Err(TaskIdError::Shape(_))));
    }

    proptest::proptest! {
        #[test]
        fn every_identifier_parses_back(name in "[a-zA-Z0-9 _./-]{0,60}[a-z]", seed: Vec<u8>) {
            let id = TaskId::seeded(&name, &seed).expect("has a letter");
            proptest::prop_assert!(id.as_str().len() <= 50);
            let back: TaskId = id.as_str().parse().expect("parses");
            proptest::prop_assert_eq!(back.name(), id.name());
            proptest::prop_assert_eq!(back, id);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            drop(text.parse::<TaskId>());
            drop(text.parse::<RunId>());
        }
    }
}
