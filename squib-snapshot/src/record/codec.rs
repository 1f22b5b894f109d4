//! The bytes of a [`SnapshotRecord`]: tagged sections of [fields](super::wire), each with its length in front.

use super::wire::{In, Out};
use super::{
    BlockSums, ClockMode, ClockRecord, HostRecord, MachineRecord, MemoryRecord, SnapshotRecord, VcpuRecord,
    check_block_size,
};
use crate::dirty::{PageSet, PageSetBuilder};
use crate::error::{Result, SnapshotError};
use crate::identity::SnapshotId;

const MAGIC: &[u8; 8] = b"SQUIBREC";
const LAYOUT: u16 = 1;
/// Flag of a section that a reader may skip if it does not know its tag.
const OPTIONAL: u16 = 1;

const FULL: u8 = 0;
const DIFF_RUNS: u8 = 1;
const DIFF_BITMAP: u8 = 2;

pub(super) fn encode(record: &SnapshotRecord) -> Vec<u8> {
    let mut out = Out(Vec::new());
    out.bytes(MAGIC);
    out.u16(LAYOUT);
    out.u16(0); // Reserved.
    out.section(b"IDEN", |s| {
        s.bytes(&record.identity.0);
        s.bytes(&record.parent.map_or([0; 16], |p| p.0));
        s.u8(u8::from(record.parent.is_some()));
    });
    out.section(b"MEMO", |s| memory(s, &record.memory));
    out.section(b"VCPU", |s| {
        s.u32(record.machine.vcpus.len() as u32);
        record.machine.vcpus.iter().for_each(|v| vcpu(s, v));
    });
    out.section(b"HOST", |s| {
        let host = &record.machine.host;
        s.u64(host.counter_frequency);
        [&host.os, &host.os_build, &host.cpu, &host.vmm].into_iter().for_each(|t| s.blob(t.as_bytes()));
    });
    out.section(b"CLCK", |s| {
        let clock = &record.machine.clock;
        s.u64(clock.wall_clock_ns);
        s.u64(clock.guest_counter);
        s.u64(clock.instructions);
        s.u8(match clock.mode {
            ClockMode::Host => 0,
            ClockMode::Deterministic => 1,
        });
    });
    out.section(b"BLOB", |s| s.named(&record.machine.blobs));
    out.0
}

fn memory(s: &mut Out, memory: &MemoryRecord) {
    s.u64(memory.ram_start);
    s.u64(memory.ram_size);
    s.u64(memory.sums.block_size);
    match &memory.pages {
        None => s.u8(FULL),
        Some(pages) => page_set(s, pages),
    }
    memory.sums.present.iter().for_each(|w| s.u64(*w));
    memory.sums.sums.iter().for_each(|v| s.u64(*v));
}

/// Runs as pairs of variable-length numbers (gap since the last run, length), or one bit per page: the shorter of both.
fn page_set(s: &mut Out, pages: &PageSet) {
    let bitmap_len = pages.page_count().div_ceil(64).saturating_mul(8);
    let mut runs = Out(Vec::new());
    let mut end = 0;
    let mut count = 0u64;
    let shorter = pages.runs().all(|(first, len)| {
        runs.varint(first - end);
        runs.varint(len);
        end = first + len;
        count += 1;
        (runs.0.len() as u64) < bitmap_len
    });
    if shorter {
        s.u8(DIFF_RUNS);
        s.u64(pages.page_size());
        s.u64(count);
        s.bytes(&runs.0);
    } else {
        s.u8(DIFF_BITMAP);
        s.u64(pages.page_size());
        let mut words = vec![0u64; pages.page_count().div_ceil(64) as usize];
        for page in pages.iter() {
            words[(page / 64) as usize] |= 1 << (page % 64);
        }
        words.iter().for_each(|w| s.u64(*w));
    }
}

fn vcpu(s: &mut Out, v: &VcpuRecord) {
    let flags = [v.vtimer_masked, v.pending_irq, v.pending_fiq, v.trap_debug_exceptions, v.trap_debug_reg_accesses];
    s.u8(flags.into_iter().enumerate().map(|(bit, set)| u8::from(set) << bit).sum());
    s.u64(v.vtimer_offset);
    s.u32(v.icc_regs.len() as u32);
    for (&reg, &value) in &v.icc_regs {
        s.u16(reg);
        s.u64(value);
    }
    s.named(&v.blobs);
}

pub(super) fn decode(bytes: &[u8]) -> Result<SnapshotRecord> {
    let mut input = In { bytes, section: "header" };
    if input.take(8)? != MAGIC {
        return Err(input.error("wrong magic"));
    }
    let layout = input.u16()?;
    if layout != LAYOUT {
        return Err(input.error(&format!("layout {layout} is unknown")));
    }
    input.u16()?;

    let (mut identity, mut parent, mut memory) = (None, None, None);
    let mut machine = MachineRecord::default();
    let mut seen = Vec::new();
    while !input.bytes.is_empty() {
        let tag: [u8; 4] = input.array()?;
        let flags = input.u16()?;
        let len = input.len64()?;
        let mut s = In { bytes: input.take(len)?, section: name(tag) };
        if seen.contains(&tag) {
            return Err(s.error("appears twice"));
        }
        match &tag {
            b"IDEN" => {
                identity = Some(SnapshotId(s.array()?));
                let id = SnapshotId(s.array()?);
                parent = s.flag()?.then_some(id);
            }
            b"MEMO" => memory = Some(decode_memory(&mut s)?),
            b"VCPU" => {
                let count = s.count(17)?;
                machine.vcpus = (0..count).map(|_| decode_vcpu(&mut s)).collect::<Result<_>>()?;
            }
            b"HOST" => {
                machine.host = HostRecord {
                    counter_frequency: s.u64()?,
                    os: s.text()?,
                    os_build: s.text()?,
                    cpu: s.text()?,
                    vmm: s.text()?,
                };
            }
            b"CLCK" => {
                machine.clock = ClockRecord {
                    wall_clock_ns: s.u64()?,
                    guest_counter: s.u64()?,
                    instructions: s.u64()?,
                    mode: if s.flag()? { ClockMode::Deterministic } else { ClockMode::Host },
                };
            }
            b"BLOB" => machine.blobs = s.named()?,
            _ if flags & OPTIONAL != 0 => s.bytes = &[],
            _ => return Err(s.error(&format!("{:?} is needed and unknown", tag.escape_ascii().to_string()))),
        }
        if !s.bytes.is_empty() {
            return Err(s.error("has bytes left over"));
        }
        // Unknown sections repeat freely; the list of known ones stays short.
        if name(tag) != "unknown section" {
            seen.push(tag);
        }
    }
    let missing = |what: &str| SnapshotError::Record(format!("section {what} is missing"));
    Ok(SnapshotRecord {
        identity: identity.ok_or_else(|| missing("IDEN"))?,
        parent,
        memory: memory.ok_or_else(|| missing("MEMO"))?,
        machine,
    })
}

fn name(tag: [u8; 4]) -> &'static str {
    match &tag {
        b"IDEN" => "IDEN",
        b"MEMO" => "MEMO",
        b"VCPU" => "VCPU",
        b"HOST" => "HOST",
        b"CLCK" => "CLCK",
        b"BLOB" => "BLOB",
        _ => "unknown section",
    }
}

fn decode_memory(s: &mut In<'_>) -> Result<MemoryRecord> {
    let (ram_start, ram_size, block_size) = (s.u64()?, s.u64()?, s.u64()?);
    if check_block_size(block_size).is_err() {
        return Err(s.error(&format!("block size {block_size} is not one of ours")));
    }
    if ram_start.checked_add(ram_size).is_none() {
        return Err(s.error("RAM range overflows"));
    }
    let form = s.u8()?;
    let pages = match form {
        FULL => None,
        DIFF_RUNS | DIFF_BITMAP => {
            let page_size = s.u64()?;
            if !page_size.is_power_of_two() {
                return Err(s.error(&format!("page size {page_size} is not a power of two")));
            }
            let mut builder = PageSetBuilder::new(page_size, ram_size.div_ceil(page_size));
            if form == DIFF_RUNS {
                decode_runs(s, &mut builder)?
            } else {
                decode_bitmap(s, &mut builder)?
            };
            Some(builder.finish())
        }
        other => return Err(s.error(&format!("page set form {other} is unknown"))),
    };
    let block_count = ram_size.div_ceil(block_size);
    let present = s.words(block_count.div_ceil(64))?;
    if let Some(last) = present.last()
        && block_count % 64 != 0
        && last >> (block_count % 64) != 0
    {
        return Err(s.error("a block beyond the end of RAM has a checksum"));
    }
    let count: u64 = present.iter().map(|w| u64::from(w.count_ones())).sum();
    let sums = s.words(count)?;
    Ok(MemoryRecord { ram_start, ram_size, pages, sums: BlockSums::from_parts(block_size, present, sums) })
}

fn decode_runs(s: &mut In<'_>, builder: &mut PageSetBuilder) -> Result<()> {
    let count = s.u64()?;
    if count > s.bytes.len() as u64 / 2 {
        return Err(s.error("more page runs than bytes"));
    }
    let page_count = builder.page_count();
    let mut at = 0u64;
    for i in 0..count {
        let (gap, len) = (s.varint()?, s.varint()?);
        let first = at.checked_add(gap);
        let end = first.and_then(|f| f.checked_add(len));
        match (first, end) {
            (Some(first), Some(end)) if end <= page_count && len > 0 && (i == 0 || gap > 0) => {
                builder.push_run(first, len);
                at = end;
            }
            _ => return Err(s.error("page runs are not ascending within RAM")),
        }
    }
    Ok(())
}

fn decode_bitmap(s: &mut In<'_>, builder: &mut PageSetBuilder) -> Result<()> {
    let page_count = builder.page_count();
    let len = page_count.div_ceil(64);
    let words = s.take(usize::try_from(len.saturating_mul(8)).unwrap_or(usize::MAX))?;
    for (i, word) in words.chunks_exact(8).enumerate() {
        let mut bits = u64::from_le_bytes(word.try_into().unwrap_or_default());
        while bits != 0 {
            let first = bits.trailing_zeros();
            let run = (bits >> first).trailing_ones();
            let page = i as u64 * 64 + u64::from(first);
            if page + u64::from(run) > page_count {
                return Err(s.error("a page beyond the end of RAM is in the set"));
            }
            builder.push_run(page, u64::from(run));
            bits &= u64::MAX.checked_shl(first + run).unwrap_or(0);
        }
    }
    Ok(())
}

fn decode_vcpu(s: &mut In<'_>) -> Result<VcpuRecord> {
    let flags = s.u8()?;
    if flags >> 5 != 0 {
        return Err(s.error(&format!("flags {flags:#x} are unknown")));
    }
    let mut v = VcpuRecord {
        vtimer_masked: flags & 1 != 0,
        pending_irq: flags & 2 != 0,
        pending_fiq: flags & 4 != 0,
        trap_debug_exceptions: flags & 8 != 0,
        trap_debug_reg_accesses: flags & 16 != 0,
        vtimer_offset: s.u64()?,
        ..VcpuRecord::default()
    };
    for _ in 0..s.count(10)? {
        let (reg, value) = (s.u16()?, s.u64()?);
        if v.icc_regs.insert(reg, value).is_some() {
            return Err(s.error(&format!("register {reg:#x} appears twice")));
        }
    }
    v.blobs = s.named()?;
    Ok(v)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn page_sets() -> impl Strategy<Value = (u64, Option<PageSet>)> {
        (1u64..200_000_000, 12u32..22, proptest::option::of(proptest::collection::vec((0u64..400, 1u64..300), 0..300)))
            .prop_map(|(ram_size, shift, runs)| {
                let page_size = 1 << shift;
                let set = runs.map(|runs| {
                    let mut builder = PageSetBuilder::new(page_size, ram_size.div_ceil(page_size));
                    let mut at = 0;
                    for (gap, len) in runs {
                        builder.push_run(at + gap, len);
                        at += gap + len;
                    }
                    builder.finish()
                });
                (ram_size, set)
            })
    }

    fn blobs() -> impl Strategy<Value = BTreeMap<String, Vec<u8>>> {
        proptest::collection::btree_map(".{0,8}", proptest::collection::vec(any::<u8>(), 0..40), 0..4)
    }

    fn vcpus() -> impl Strategy<Value = VcpuRecord> {
        (any::<[bool; 5]>(), any::<u64>(), proptest::collection::btree_map(any::<u16>(), any::<u64>(), 0..12), blobs())
            .prop_map(|(f, vtimer_offset, icc_regs, blobs)| VcpuRecord {
                icc_regs,
                vtimer_offset,
                vtimer_masked: f[0],
                pending_irq: f[1],
                pending_fiq: f[2],
                trap_debug_exceptions: f[3],
                trap_debug_reg_accesses: f[4],
                blobs,
            })
    }

    prop_compose! {
        fn records()(
            (ram_size, pages) in page_sets(),
            identity in any::<[u8; 16]>(),
            parent in proptest::option::of(any::<[u8; 16]>()),
            shift in 12u32..22,
            sums in proptest::collection::btree_map(0u64..100_000, any::<u64>(), 0..40),
            vcpus in proptest::collection::vec(vcpus(), 0..4),
            texts in any::<[String; 4]>(),
            numbers in any::<[u64; 5]>(),
            deterministic in any::<bool>(),
            blobs in blobs(),
        ) -> SnapshotRecord {
            let count = ram_size.div_ceil(1 << shift);
            let [os, os_build, cpu, vmm] = texts;
            SnapshotRecord {
                identity: SnapshotId(identity),
                parent: parent.map(SnapshotId),
                memory: MemoryRecord {
                    ram_start: numbers[0] >> 1,
                    ram_size,
                    pages,
                    sums: BlockSums::new(1 << shift, count, sums.into_iter().filter(|(b, _)| *b < count)),
                },
                machine: MachineRecord {
                    vcpus,
                    host: HostRecord { os, os_build, cpu, vmm, counter_frequency: numbers[1] },
                    clock: ClockRecord {
                        wall_clock_ns: numbers[2],
                        guest_counter: numbers[3],
                        mode: if deterministic { ClockMode::Deterministic } else { ClockMode::Host },
                        instructions: numbers[4],
                    },
                    blobs,
                },
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_written_is_read_back(record in records()) {
            let bytes = encode(&record);
            prop_assert_eq!(decode(&bytes).unwrap(), record);
        }

        #[test]
        fn damage_is_an_error_or_another_record_but_never_a_panic(
            record in records(), at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encode(&record);
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _ = decode(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn checksums_are_found_by_block() {
        let sums = BlockSums::new(4096, 200, [(0, 10), (63, 11), (64, 12), (199, 13)]);
        assert_eq!([0, 63, 64, 199].map(|b| sums.get(b)), [Some(10), Some(11), Some(12), Some(13)]);
        assert_eq!([1, 62, 65, 200, u64::MAX].map(|b| sums.get(b)), [None; 5]);
        assert_eq!(sums.iter().collect::<Vec<_>>(), [(0, 10), (63, 11), (64, 12), (199, 13)]);
        assert_eq!(sums.block_range(199, 199 * 4096 + 5), 199 * 4096..199 * 4096 + 5);
    }

    #[test]
    fn hostile_lengths_fail_before_anything_is_allocated() {
        let header = |tag: &[u8; 4], flags: u16, body: &[u8]| {
            let mut out = Out(Vec::new());
            out.bytes(MAGIC);
            out.u16(LAYOUT);
            out.u16(0);
            out.bytes(tag);
            out.u16(flags);
            out.u64(body.len() as u64);
            out.bytes(body);
            out.0
        };
        let text = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
        let full_of_ones = [0xff; 64];
        for tag in [b"VCPU", b"HOST", b"BLOB", b"MEMO", b"CLCK"] {
            assert!(text(&header(tag, 0, &full_of_ones)).contains(std::str::from_utf8(tag).unwrap()));
        }
        let mut memo = Out(Vec::new());
        [0, 1 << 62, 4096].into_iter().for_each(|v| memo.u64(v));
        memo.u8(DIFF_BITMAP);
        memo.u64(1);
        assert!(text(&header(b"MEMO", 0, &memo.0)).contains("cut short"));
        assert!(text(&header(b"NEWS", 0, &[])).contains("needed and unknown"));
        assert!(text(&header(b"NEWS", OPTIONAL, &[1, 2])).contains("IDEN is missing"));
        assert!(text(b"SQUIBREC\x09\0\0\0").contains("layout 9"));
        assert!(text(b"").contains("cut short"));
    }
}
