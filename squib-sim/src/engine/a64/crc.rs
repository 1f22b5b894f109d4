//! CRC32 and CRC32C (C6.2.75, C6.2.76): the reflected polynomials 0x04C11DB7 and 0x1EDC6F41, without pre- or
//! post-inversion, a byte a table step.

/// The eight tables of a slicing CRC: `TABLES[k][b]` is the remainder of byte `b` followed by `k` zero bytes.
type Tables = [[u32; 256]; 8];

static IEEE: Tables = tables(0x04c1_1db7_u32.reverse_bits());
static CASTAGNOLI: Tables = tables(0x1edc_6f41_u32.reverse_bits());

const fn tables(polynomial: u32) -> Tables {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut i = 0;
        while i < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { polynomial } else { 0 };
            i += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[k - 1][byte];
            tables[k][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        k += 1;
    }
    tables
}

/// Goes on with `crc` over the low `1 << SIZE` bytes of `value`, lowest byte first.
#[inline]
pub(super) fn crc32<const C: bool, const SIZE: u32>(crc: u32, value: u64) -> u32 {
    let tables = if C { &CASTAGNOLI } else { &IEEE };
    let len = 1usize << SIZE;
    let mixed = value ^ u64::from(crc);
    // Bytes of `crc` behind the value's end are only shifted.
    let mut result = if SIZE < 2 { crc >> (8 * len) } else { 0 };
    for i in 0..len {
        result ^= tables[len - 1 - i][(mixed >> (8 * i) & 0xff) as usize];
    }
    result
}

#[cfg(test)]
mod tests {
    use super::crc32;

    /// The check value of a CRC catalogue: all ones before, "123456789", inverted after.
    fn check<const C: bool>(sizes: &[u32]) -> u32 {
        let text = b"123456789";
        let (mut crc, mut at) = (u32::MAX, 0);
        for &size in sizes {
            let mut bytes = [0; 8];
            bytes[..1 << size].copy_from_slice(&text[at..at + (1 << size)]);
            let value = u64::from_le_bytes(bytes);
            crc = match size {
                0 => crc32::<C, 0>(crc, value),
                1 => crc32::<C, 1>(crc, value),
                2 => crc32::<C, 2>(crc, value),
                _ => crc32::<C, 3>(crc, value),
            };
            at += 1 << size;
        }
        assert_eq!(at, text.len());
        !crc
    }

    #[test]
    fn published_check_values_in_every_access_size() {
        for sizes in [&[0; 9][..], &[3, 0], &[0, 3], &[2, 1, 1, 0], &[0, 1, 2, 1], &[1, 0, 1, 2]] {
            assert_eq!(check::<false>(sizes), 0xcbf4_3926, "{sizes:?}");
            assert_eq!(check::<true>(sizes), 0xe306_9283, "{sizes:?}");
        }
    }
}
