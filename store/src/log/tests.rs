use proptest::prelude::*;

use super::*;

fn records() -> impl Strategy<Value = Vec<Record>> {
    let piece = (any::<bool>(), any::<i64>(), prop::collection::vec(any::<u8>(), 1..200));
    prop::collection::vec(piece, 0..20).prop_map(|pieces| {
        let mut offset = 7;
        pieces
            .into_iter()
            .map(|(stdout, time_unix_nanos, data)| {
                let stream = if stdout { Stream::Stdout } else { Stream::Stderr };
                let record = Record { offset, time_unix_nanos, stream, data: data.into() };
                offset = record.end();
                record
            })
            .collect()
    })
}

fn frames(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        encode_frame(record, &mut bytes);
    }
    bytes
}

proptest! {
    #[test]
    fn frames_come_back(records in records()) {
        let bytes = frames(&records);
        let mut at = 0;
        let mut back = Vec::new();
        while let Some((record, length)) = decode_frame(&bytes[at..]).unwrap() {
            back.push(record);
            at += length;
        }
        prop_assert_eq!(at, bytes.len());
        prop_assert_eq!(&back, &records);
        prop_assert_eq!(&decode_segment(&encode_segment(&bytes).unwrap(), bytes.len()).unwrap(), &records);
    }

    /// Wherever a file is cut, the frames that are whole are found, and nothing else.
    #[test]
    fn a_torn_end_is_found(records in records(), cut in any::<prop::sample::Index>()) {
        let bytes = frames(&records);
        let cut = cut.index(bytes.len() + 1);
        let found = recover(&bytes[..cut]).unwrap();
        let mut whole = 0;
        let mut next = None;
        for record in &records {
            let length = HEADER + record.data.len();
            if whole + length > cut {
                break;
            }
            whole += length;
            next = Some(record.end());
        }
        prop_assert_eq!(found.bytes, whole as u64);
        prop_assert_eq!(found.next_offset, next);
    }

    /// Whatever byte is changed, no frame that differs from the ones written is accepted.
    #[test]
    fn damage_is_found(records in records(), place in any::<prop::sample::Index>(), change in 1u8..) {
        let mut bytes = frames(&records);
        prop_assume!(!bytes.is_empty());
        let place = place.index(bytes.len());
        bytes[place] ^= change;
        let found = recover(&bytes[..]).unwrap();
        prop_assert!(found.bytes <= place as u64);
        let segment = segments::compress(&bytes).unwrap();
        prop_assert!(decode_segment(&segment, SEGMENT_LIMIT).is_err());
    }

    #[test]
    fn anything_else_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        drop(decode_frame(&bytes));
        drop(decode_segment(&bytes, 1000));
        recover(&bytes[..]).unwrap();
    }
}

#[test]
fn a_page_of_zeros_after_a_crash_is_torn() {
    let record = Record { offset: 0, time_unix_nanos: 1, stream: Stream::Stdout, data: "abc".into() };
    let mut bytes = frames(&[record]);
    let whole = bytes.len() as u64;
    bytes.extend([0; 4096]);
    let found = recover(&bytes[..]).unwrap();
    assert_eq!(found, Recovered { bytes: whole, first_offset: Some(0), next_offset: Some(3) });
}

#[test]
fn long_records_become_several_frames() {
    let data = Bytes::from(vec![b'x'; RECORD_LIMIT * 2 + 1]);
    let bytes =
        frames(&[Record { offset: 5, time_unix_nanos: 1, stream: Stream::Stderr, data: data.clone() }]);
    let records = decode_segment(&encode_segment(&bytes).unwrap(), SEGMENT_LIMIT).unwrap();
    assert_eq!(records.len(), 3);
    assert_eq!(records[2].end(), 5 + data.len() as u64);
    let joined: Vec<u8> = records.iter().flat_map(|r| r.data.to_vec()).collect();
    assert!(joined == data);
}

#[test]
fn a_bomb_is_refused() {
    let segment = segments::compress(&vec![0; 50 << 20]).unwrap();
    assert!(segment.len() < 100_000);
    let error = decode_segment(&segment, 1 << 20).unwrap_err().to_string();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
}
