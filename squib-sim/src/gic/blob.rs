//! The state blob: what `hv_gic_state_get_data` gives and `hv_gic_set_state` takes.
//!
//! ```text
//! magic "SQUIBGIC"  version u32  length u32  GICD_CTLR u32  vCPUs u32
//! SPI bank x 31     GICD_IROUTER u64 x 988
//! per vCPU: affinity u32, GICR_WAKER u32, SGI and PPI bank
//! FNV-1a of all that u64
//! bank: group, enabled, latched, line, active, edge u32, priority u8 x 32
//! ```
//!
//! All little-endian. The CPU interfaces are not in it: they are registers of the vCPUs. Neither are the lines of PPIs,
//! which belong to the timers behind them.

use super::bank::{Bank, PRIORITY_MASK};
use super::state::{Cpu, State};

const MAGIC: &[u8; 8] = b"SQUIBGIC";
const VERSION: u32 = 1;
/// Magic, version and length.
const HEADER: usize = 16;

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn put_bank(blob: &mut Vec<u8>, bank: &Bank) {
    for word in [bank.group, bank.enabled, bank.latched, bank.line, bank.active, bank.edge] {
        blob.extend(word.to_le_bytes());
    }
    blob.extend(bank.priority);
}

/// The state of the distributor and of every redistributor.
pub fn save(state: &State) -> Vec<u8> {
    let mut blob = Vec::new();
    blob.extend(MAGIC);
    blob.extend(VERSION.to_le_bytes());
    blob.extend(0u32.to_le_bytes());
    blob.extend((u32::from(state.group_enabled[0]) | u32::from(state.group_enabled[1]) << 1).to_le_bytes());
    blob.extend((state.cpus.iter().flatten().count() as u32).to_le_bytes());
    state.spis.iter().for_each(|bank| put_bank(&mut blob, bank));
    state.routes.iter().for_each(|route| blob.extend(route.to_le_bytes()));
    for cpu in state.cpus.iter().flatten() {
        blob.extend(cpu.affinity.to_le_bytes());
        blob.extend(u32::from(cpu.asleep).to_le_bytes());
        put_bank(&mut blob, &Bank { line: 0, ..cpu.bank.clone() });
    }
    let length = (blob.len() + 8) as u32;
    blob[12..16].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(&blob);
    blob.extend(sum.to_le_bytes());
    blob
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn bank(&mut self) -> Option<Bank> {
        Some(Bank {
            group: self.word()?,
            enabled: self.word()?,
            latched: self.word()?,
            line: self.word()?,
            active: self.word()?,
            edge: self.word()?,
            priority: self.take()?.map(|priority: u8| priority & PRIORITY_MASK),
        })
    }
}

/// Takes a saved state over. `None`, and nothing changed, if the blob is not whole, is of another version, or was made with
/// other vCPUs than those that are here now.
pub fn load(state: &mut State, blob: &[u8]) -> Option<()> {
    let (header, _) = blob.split_at_checked(HEADER)?;
    let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    if &header[..8] != MAGIC || header[8..12] != VERSION.to_le_bytes() || length != blob.len() {
        return None;
    }
    let (body, sum) = blob.split_last_chunk()?;
    if checksum(body) != u64::from_le_bytes(*sum) {
        return None;
    }
    let mut reader = Reader(body.get(HEADER..)?);
    let ctlr = reader.word()?;
    let count = reader.word()? as usize;
    let mut fresh = State::new();
    fresh.group_enabled = [ctlr & 1 != 0, ctlr & 2 != 0];
    for bank in fresh.spis.iter_mut() {
        *bank = reader.bank()?;
    }
    for route in fresh.routes.iter_mut() {
        *route = reader.take().map(u64::from_le_bytes)?;
    }
    let mut cpus: Vec<(u32, bool, Bank)> = Vec::new();
    for _ in 0..count {
        let (affinity, asleep, bank) = (reader.word()?, reader.word()? != 0, reader.bank()?);
        let here = |cpu: &&Cpu| cpu.affinity == affinity;
        let twice = cpus.iter().any(|&(other, ..)| other == affinity);
        if twice || state.cpus.iter().flatten().filter(here).count() != 1 {
            return None;
        }
        cpus.push((affinity, asleep, bank));
    }
    if !reader.0.is_empty() || count != state.cpus.iter().flatten().count() {
        return None;
    }
    (state.group_enabled, state.spis, state.routes) = (fresh.group_enabled, fresh.spis, fresh.routes);
    for (affinity, asleep, bank) in cpus {
        for cpu in state.cpus.iter_mut().flatten().filter(|cpu| cpu.affinity == affinity) {
            cpu.asleep = asleep;
            cpu.bank = Bank { line: cpu.bank.line, ..bank.clone() };
        }
    }
    state.changed();
    Some(())
}
