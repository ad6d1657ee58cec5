//! Records to a cursor: no byte twice, and none left out unnoticed.

use tpi_store::log::Record;

/// Bytes are missing before a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    /// First missing byte.
    pub(super) at: u64,
    /// Where records go on.
    pub(super) next: u64,
}

/// What of `records` begins exactly at `cursor`; moves the cursor behind it.
pub(super) fn cut(records: Vec<Record>, cursor: &mut u64) -> Result<Vec<Record>, Gap> {
    let mut kept = Vec::with_capacity(records.len());
    for mut record in records {
        if record.offset > *cursor {
            return Err(Gap { at: *cursor, next: record.offset });
        }
        let length = record.data.len() as u64;
        let known = *cursor - record.offset;
        if known >= length {
            continue;
        }
        // Below the length of a buffer, so it fits.
        let known_bytes = usize::try_from(known).unwrap_or(record.data.len());
        record.data = record.data.split_off(known_bytes);
        record.offset = *cursor;
        *cursor += length - known;
        kept.push(record);
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use tpi_store::log::Stream;

    use super::*;

    fn record(offset: u64, data: &[u8]) -> Record {
        Record { offset, time_unix_nanos: 0, stream: Stream::Stdout, data: Bytes::copy_from_slice(data) }
    }

    #[test]
    fn a_gap_is_told() {
        let mut cursor = 3;
        assert_eq!(cut(vec![record(0, b"abcd"), record(5, b"f")], &mut cursor), Err(Gap { at: 4, next: 5 }));
    }

    proptest! {
        #[test]
        fn overlapping_deliveries_give_the_log_once(
            log in proptest::collection::vec(any::<u8>(), 1..300),
            starts in proptest::collection::vec((any::<u16>(), 1usize..40, 1usize..80), 1..40),
        ) {
            let mut cursor = 0;
            let mut seen = Vec::new();
            // Each delivery begins somewhere at or before the cursor, as after a reconnect.
            for (back, piece, length) in starts {
                let start = (usize::try_from(cursor).unwrap_or_default()).saturating_sub(usize::from(back) % 64);
                let end = (start + length).min(log.len());
                let mut at = start;
                let mut records = Vec::new();
                while at < end {
                    let to = (at + piece).min(end);
                    records.push(record(at as u64, &log[at..to]));
                    at = to;
                }
                for kept in cut(records, &mut cursor).expect("no gap") {
                    prop_assert_eq!(kept.offset, seen.len() as u64);
                    prop_assert!(!kept.data.is_empty());
                    seen.extend_from_slice(&kept.data);
                }
            }
            prop_assert_eq!(&seen[..], &log[..seen.len()]);
            prop_assert_eq!(cursor, seen.len() as u64);
        }
    }
}
