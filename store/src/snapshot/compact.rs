//! Packs of earlier saves that are mostly dead, or small and many: their living contents are sent anew, from the
//! files that are there anyway, and the packs die with the last save that names them.

use std::collections::{HashMap, HashSet};

use super::{
    Space,
    objects::Objects,
    tree::{Content, Kind, Tree},
};
use crate::layout::CACHE;

/// A pack is written anew when less than this part of it lives.
const LIVING: u64 = 4;
/// Most bytes that are sent for this by one push.
const BUDGET: u64 = 8 << 20;
/// A pack with less living content is small.
const SMALL: u64 = 1 << 20;
/// So many small packs may be there.
const FEW: usize = 64;

/// The packs whose living contents are to be sent again. None when the content is shared with others.
pub(super) fn worn(space: &Space, tree: &Tree, objects: &Objects) -> HashSet<u32> {
    if matches!(space, Space::Cache) {
        return HashSet::new();
    }
    let mut living: HashMap<u32, u64> = HashMap::new();
    for entry in tree.iter() {
        if let Kind::File { size, content: Content::Pack(pack), .. } = entry.kind {
            *living.entry(pack).or_default() += size;
        }
    }
    chosen(living.into_iter().filter_map(|(pack, living)| {
        let object = objects.get(pack)?;
        // The cache is everybody's.
        let own = objects.folder(object).is_some_and(|folder| folder != CACHE);
        own.then_some((pack, living, Some(object.size).filter(|size| *size > 0)))
    }))
}

/// Of packs with their living and, where it is known, whole bytes: those to be written anew, the emptiest first.
fn chosen(packs: impl Iterator<Item = (u32, u64, Option<u64>)>) -> HashSet<u32> {
    let mut packs: Vec<_> = packs.collect();
    packs.sort_by_key(|(pack, living, _)| (*living, *pack));
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
        .map(|(pack, ..)| pack)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worn_packs_are_chosen_within_the_budget() {
        let chosen = |packs: &[(u32, u64, Option<u64>)]| {
            let mut chosen: Vec<_> = chosen(packs.iter().copied()).into_iter().collect();
            chosen.sort_unstable();
            chosen
        };
        assert!(chosen(&[(0, 25, Some(100)), (1, 5, None), (2, 100, Some(100))]).is_empty());
        assert_eq!(chosen(&[(0, 24, Some(100)), (1, 26, Some(100))]), [0]);
        let large = 5 << 20;
        assert_eq!(chosen(&[(0, large, Some(large * 5)), (1, large + 1, Some(large * 5))]), [0]);
        let many: Vec<_> = (0..65).map(|pack| (pack, 10, Some(10))).collect();
        assert!(chosen(&many[..64]).is_empty());
        assert_eq!(chosen(&many).len(), 65);
    }
}
