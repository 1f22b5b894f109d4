//! Layouts against the numbers of `mach_exc.defs`, and messages that are not what they should be.

use super::*;

const REPLY_TO: ReplyPort = ReplyPort { name: 0x1403, disposition: 18 };

/// A request as a kernel sends it: 68 words of state, bits as received (remote move-send-once, local move-send).
fn request() -> Buffer {
    let mut buffer = Buffer::default();
    let words: [u32; 6] = [18 | 17 << 8, 336, 0x1403, 0x903, 0, 2406];
    for (at, word) in words.into_iter().enumerate() {
        buffer.put(4 * at, word);
    }
    buffer.0[24..32].copy_from_slice(&NDR_RECORD);
    buffer.put(32, 1);
    buffer.put(36, 2);
    buffer.0[40..48].copy_from_slice(&2i64.to_ne_bytes());
    buffer.0[48..56].copy_from_slice(&0x1_2345_4000i64.to_ne_bytes());
    buffer.put(56, 6);
    buffer.put(60, 68);
    for word in 0..68 {
        buffer.put(64 + 4 * word, 0xabc0_0000 + word as u32);
    }
    // A trailer, which is not part of the message.
    buffer.put(336, 0);
    buffer.put(340, 8);
    buffer
}

#[test]
fn a_request_is_read_at_its_offsets() {
    let expected = Exception { exception: 1, reason: 2, address: 0x1_2345_4000 };
    assert_eq!(request().read(), Incoming::Exception(expected));
    assert_eq!((REQUEST_ID, REPLY_ID), (2406, 2506));
    assert_eq!((HEADER, REQUEST_STATE, REPLY_STATE, ERROR_REPLY), (24, 64, 44, 36));
    assert_eq!(size_of::<Buffer>(), (64 + 4 * 1296 + 68usize).next_multiple_of(8));
    assert_eq!(align_of::<Buffer>(), 8);
}

#[test]
fn a_reply_is_written_at_its_offsets_with_the_state_as_it_came() {
    let mut buffer = request();
    let to = buffer.take_reply_port();
    assert_eq!(to, REPLY_TO);
    assert_eq!(buffer.reply(to, KERN_SUCCESS), 44 + 4 * 68);
    let words: Vec<u32> = (0..44 / 4 + 68).map(|at| buffer.word(4 * at)).collect();
    assert_eq!(words[..6], [18, 316, 0x1403, 0, 0, 2506], "bits, size, remote, local, voucher, id");
    assert_eq!(buffer.0[24..32], NDR_RECORD);
    assert_eq!(words[8..11], [0, 6, 68], "RetCode, flavor, new_stateCnt");
    for (at, word) in words[11..].iter().enumerate() {
        assert_eq!(*word, 0xabc0_0000 + at as u32);
    }
}

#[test]
fn an_error_reply_is_36_bytes() {
    let mut buffer = request();
    buffer.put(20, 2405);
    assert_eq!(buffer.read(), Incoming::Foreign(MIG_BAD_ID));
    let to = buffer.take_reply_port();
    assert_eq!(buffer.refuse(to, MIG_BAD_ID), 36);
    let words: Vec<u32> = (0..9).map(|at| buffer.word(4 * at)).collect();
    assert_eq!(words[..6], [18, 36, 0x1403, 0, 0, 2505]);
    assert_eq!(words[8] as i32, -303);
}

#[test]
fn taking_the_reply_port_leaves_none_behind() {
    let mut buffer = request();
    buffer.put(0, buffer.word(0) | MACH_MSGH_BITS_COMPLEX);
    assert!(buffer.take_reply_port().is_valid());
    assert!(!buffer.take_reply_port().is_valid());
    assert!(buffer.is_complex(), "only the reply port's bits are cleared");
    buffer.put(8, MACH_PORT_DEAD);
    assert!(!buffer.take_reply_port().is_valid());
}

#[test]
fn every_unsound_request_is_refused() {
    let cases: [(&str, usize, u32); 12] = [
        ("complex", 0, 18 | 0x8000_0000),
        ("a byte short", 4, 335),
        ("a byte long", 4, 337),
        ("shorter than its fixed part", 4, 60),
        ("size zero", 4, 0),
        ("a size beyond any buffer", 4, u32::MAX),
        ("integers in the other order", 28, 0),
        ("one code", 36, 1),
        ("codes without end", 36, u32::MAX),
        ("no state, but its size", 60, 0),
        ("more state than there is", 60, 69),
        ("a state that overflows the size", 60, u32::MAX),
    ];
    for (what, at, word) in cases {
        let mut buffer = request();
        buffer.put(at, word);
        assert_eq!(buffer.read(), Incoming::Foreign(MIG_BAD_ARGUMENTS), "{what}");
    }
}

#[test]
fn other_ids_are_refused_by_id() {
    for id in [0, 71, 2401, 2402, 2405, 2407, 2408, 2506, -1] {
        let mut buffer = request();
        buffer.put(20, id as u32);
        assert_eq!(buffer.read(), Incoming::Foreign(MIG_BAD_ID), "{id}");
    }
}

#[test]
fn a_stop_is_a_bare_header() {
    let mut buffer = request();
    assert_eq!(buffer.stop(0x903), 24);
    assert_eq!(buffer.read(), Incoming::Stop);
    assert_eq!((buffer.word(0), buffer.word(4), buffer.word(8)), (19, 24, 0x903), "copy-send, size, port");
    buffer.put(4, 28);
    assert_eq!(buffer.read(), Incoming::Foreign(MIG_BAD_ID));
}

#[test]
fn the_largest_request_fits_with_the_largest_trailer() {
    let mut buffer = request();
    buffer.put(60, 1296);
    buffer.put(4, 64 + 4 * 1296);
    assert!(matches!(buffer.read(), Incoming::Exception(_)));
    assert_eq!(buffer.reply(REPLY_TO, KERN_SUCCESS), 44 + 4 * 1296);
    assert_eq!(BUFFER - (64 + 4 * 1296), 68, "mach_msg_max_trailer_t");
}
