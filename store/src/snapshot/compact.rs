//! Packs of earlier saves that are mostly dead, or small and many: their living contents are sent anew, from the
//! files that are there anyway, and the packs die with the last save that names them.

use std::collections::{HashMap, HashSet};

use super::{Space, push::Plan};
use crate::layout::CACHE;

/// A pack is written anew when less than this part of it lives.
const LIVING: u64 = 4;
/// Most bytes that are sent for this by one push.
const BUDGET: u64 = 8 << 20;
/// A pack with less living content is small.
const SMALL: u64 = 1 << 20;
/// So many small packs may be there.
const FEW: usize = 64;

/// Forgets where some contents are, so that the push sends them again. Does nothing when there is nothing else to
/// push, or when the content is shared with others.
pub(super) fn compact(plan: &mut Plan) {
    if matches!(plan.options.space, Space::Cache) || plan.is_base() {
        return;
    }
    let sizes: HashMap<blake3::Hash, u64> = plan
        .files
        .iter()
        .filter_map(|file| file.content.as_ref())
        .filter(|content| content.is_small() && content.stat.size > 0)
        .map(|content| (content.hash, content.stat.size))
        .collect();
    let mut living: HashMap<&str, u64> = HashMap::new();
    for (hash, key) in &plan.known.small {
        // The cache is everybody's.
        if !key.starts_with(CACHE)
            && let Some(size) = sizes.get(hash)
        {
            *living.entry(key).or_default() += size;
        }
    }
    let worn =
        chosen(living.iter().map(|(key, living)| (*key, *living, plan.known.sizes.get(*key).copied())));
    if worn.is_empty() {
        return;
    }
    tracing::debug!(packs = worn.len(), "packing what is left of old packs anew");
    plan.known.small.retain(|_, key| !worn.contains(key));
}

/// Of packs with their living and, where it is known, whole bytes: those to be written anew, the emptiest first.
fn chosen<'a>(packs: impl Iterator<Item = (&'a str, u64, Option<u64>)>) -> HashSet<String> {
    let mut packs: Vec<_> = packs.collect();
    packs.sort_by_key(|(key, living, _)| (*living, *key));
    let crowd = packs.iter().filter(|(_, living, _)| *living < SMALL).count() > FEW;
    let mut left = BUDGET;
    packs
        .into_iter()
        .filter(|(_, living, whole)| {
            whole.is_some_and(|whole| living.saturating_mul(LIVING) < whole) || (crowd && *living < SMALL)
        })
        .take_while(|(_, living, _)| {
            let fits = *living <= left;
            left = left.saturating_sub(*living);
            fits
        })
        .map(|(key, ..)| key.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worn_packs_are_chosen_within_the_budget() {
        let chosen = |packs: &[(&'static str, u64, Option<u64>)]| {
            let mut keys: Vec<_> = chosen(packs.iter().copied()).into_iter().collect();
            keys.sort();
            keys
        };
        assert!(chosen(&[("a", 25, Some(100)), ("b", 5, None), ("c", 100, Some(100))]).is_empty());
        assert_eq!(chosen(&[("a", 24, Some(100)), ("b", 26, Some(100))]), ["a"]);
        let large = 5 << 20;
        assert_eq!(chosen(&[("a", large, Some(large * 5)), ("b", large + 1, Some(large * 5))]), ["a"]);
        let names: Vec<&'static str> = (0..65).map(|i| &*format!("{i}").leak()).collect();
        let many: Vec<_> = names.iter().map(|name| (*name, 10, Some(10))).collect();
        assert!(chosen(&many[..64]).is_empty());
        assert_eq!(chosen(&many).len(), 65);
    }
}
