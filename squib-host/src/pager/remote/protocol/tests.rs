//! Decoders against arbitrary bytes: they answer or refuse, and never panic or allocate for what is not there.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Counts what is asked of it, and refuses to be asked for too much at once.
struct Announced<'a>(&'a [u8]);

impl Read for Announced<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        assert!(buf.len() <= MAX_REQUEST as usize, "a buffer of {} bytes", buf.len());
        self.0.read(buf)
    }
}

fn segment(kind: u32, bytes: &[u8]) -> Segment {
    let sum = if kind == 1 { checksum(bytes) } else { 0 };
    Segment { kind: U32::new(kind), len: U32::new(bytes.len() as u32), checksum: U64::new(sum) }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_trouble(bytes in vec(any::<u8>(), 0..600), len in 0usize..20_000) {
        let _ = Hello::decode(&bytes);
        let _ = Welcome::decode(&bytes);
        let _ = decode_read(&bytes);
        let _ = decode_sums(&bytes);
        let _ = decode_sums_data(&bytes, len as u32);
        let _ = decode_data(&bytes, &mut vec![0; len]);
        if let Ok((_, text)) = decode_error(&bytes) {
            prop_assert!(!text.contains(char::is_control));
        }
        let mut from = Announced(&bytes);
        while let Ok(Some(header)) = read_header(&mut from) {
            let limit = MAX_REQUEST.min(header.len.get());
            if read_body(&mut from, &header, limit).is_err() {
                break;
            }
        }
    }

    #[test]
    fn a_changed_frame_is_the_same_or_refused(at in 0usize..10_000, bit in 0u8..8, data in vec(1u8..=255, 8192)) {
        let segments = [segment(1, &data[..4096]), segment(0, &[0; 4096]), segment(1, &data[4096..])];
        let mut body = encode_data(1, &segments, &data).split_off(HEADER);
        let expected = [&data[..4096], &[0; 4096], &data[4096..]].concat();
        let mut out = vec![0xee; expected.len()];
        prop_assert_eq!(decode_data(&body, &mut out), Ok(false));
        prop_assert!(out == expected);
        let at = at % body.len();
        body[at] ^= 1 << bit;
        if decode_data(&body, &mut out).is_ok() {
            // The reserved word and the unused checksum of zeros.
            prop_assert!(out == expected, "bit {} of byte {}", bit, at);
        }
    }

    #[test]
    fn hello_and_welcome_come_back(versions in any::<(u16, u16)>(), size in any::<u64>(), ids in vec(any::<[u8; 16]>(), 1..9)) {
        let layers: Vec<_> = ids.iter().copied().map(SnapshotId).collect();
        let hello = Hello { versions, ram_size: size, layers };
        prop_assert_eq!(Hello::decode(&hello.encode()[HEADER..]), Ok(hello.clone()));
        let welcome = Welcome { version: versions.0, ram_size: size, page: PAGE as u32, max_read: MAX_READ, layers: &ids };
        let frame = welcome.encode();
        prop_assert_eq!(Welcome::decode(&frame[HEADER..]), Ok(welcome));
        for cut in [0, 10, 31, frame.len() - HEADER - 1] {
            prop_assert!(Welcome::decode(&frame[HEADER..HEADER + cut]).is_err());
        }
    }

    #[test]
    fn an_error_is_one_line(code in any::<u16>(), text in "\\PC{0,600}[\n\t\u{1b}]?\\PC{0,600}") {
        let frame = encode_error(7, code, &text);
        prop_assert!(frame.len() <= HEADER + 8 + MAX_TEXT);
        let (found, line) = decode_error(&frame[HEADER..]).unwrap();
        prop_assert_eq!(found, code);
        prop_assert!(!line.contains(char::is_control) && text.replace(char::is_control, " ").starts_with(&line));
    }
}

#[test]
fn lengths_are_looked_at_before_anything_is_allocated() {
    let header = |len: u32| Header { len: U32::new(len), kind: U16::new(3), zero: U16::ZERO, id: U64::new(1) };
    let error = read_body(&mut Announced(&[]), &header(u32::MAX), MAX_REQUEST).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    // More segments, layers, ranges than there can be.
    let data = |count: u32| [&count.to_le_bytes()[..], &[0; 36]].concat();
    assert!(decode_data(&data(u32::MAX), &mut [0; 4096]).is_err());
    assert!(decode_data(&data(2), &mut [0; 4096]).is_err());
    let mut hello = Hello { versions: (1, 1), ram_size: 0, layers: Vec::new() }.encode().split_off(HEADER);
    hello[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Hello::decode(&hello).is_err());
    assert!(decode_read(&[0; 16 * (MAX_RANGES + 1)]).is_err());
}

#[test]
fn the_layout_is_the_documented_one() {
    let hello = Hello { versions: (1, 2), ram_size: 0x0102_0304, layers: vec![SnapshotId([9; 16])] }.encode();
    let expected = [
        &[40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        b"SQUIBPGS",
        &[1, 0, 2, 0, 1, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0],
        &[9; 16],
    ];
    assert_eq!(hello, expected.concat());
    assert_eq!((size_of::<WelcomeHead>(), size_of::<Range>(), size_of::<Sums>()), (32, 16, 16));
    assert_eq!((size_of::<Segment>(), size_of::<DataHead>(), size_of::<ErrorHead>()), (16, 8, 8));
}
