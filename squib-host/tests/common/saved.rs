//! Snapshots of made-up memory: a base, and diffs if wanted.

use std::path::PathBuf;

use squib_snapshot::{
    Chain, Contents, DirtyBitmap, GicState, MachineRecord, MicrovmState, PairRequest, SnapshotId, VcpuState, save_diff,
    save_pair,
};

pub const PAGE: usize = 16 << 10;
pub const MIB: usize = 1 << 20;

/// Bytes that repeat nowhere.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// A chain of snapshots in a directory of its own: a base, and diffs if wanted.
pub struct Saved {
    pub directory: tempfile::TempDir,
    pub ram: Vec<u8>,
    pub links: Vec<(PathBuf, PathBuf, SnapshotId)>,
}

impl Saved {
    /// Block 0 is noise, block 1 zero, block 2 has a few pages, the rest is noise again.
    pub fn new(size: usize, block_size: u64) -> Saved {
        let mut ram = noise(1, size);
        for byte in &mut ram[2 * MIB..(5 * MIB).min(size)] {
            *byte = 0;
        }
        ram[4 * MIB + 5 * PAGE + 100] = 7;
        let mut saved = Saved { directory: tempfile::tempdir().expect("a directory"), ram, links: Vec::new() };
        saved.save(block_size, None);
        saved
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn save(&mut self, block_size: u64, dirty: Option<&DirtyBitmap>) {
        let number = self.links.len();
        let (state_path, memory_path) = (self.file(&format!("{number}.state")), self.file(&format!("{number}.mem")));
        let mut state = MicrovmState {
            vcpu_states: vec![VcpuState::new(0)],
            gic_state: GicState::from_bytes(vec![1]),
            ..MicrovmState::default()
        };
        state.vm_info.track_dirty_pages = true;
        let request = PairRequest {
            state_path: &state_path,
            memory_path: &memory_path,
            state: &state,
            machine: &MachineRecord::default(),
            memory: &self.ram,
            ram_start: 0,
            ram_size: self.ram.len() as u64,
            contents: Contents::Full,
            block_size,
        };
        let report = match (dirty, self.links.last()) {
            (Some(dirty), Some((.., parent))) => save_diff(&request, *parent, dirty),
            _ => save_pair(&request),
        };
        self.links.push((state_path, memory_path, report.expect("saved").identity));
    }

    /// Changes some bytes and saves a diff of pages of `page` bytes.
    pub fn diff(&mut self, seed: u64, page: u64, block_size: u64) {
        let dirty = DirtyBitmap::new(0, self.ram.len() as u64, page).expect("a bitmap");
        for n in 0..40 {
            let at = (u64::from_le_bytes(noise(seed + n, 8).try_into().expect("8")) % self.ram.len() as u64) as usize;
            self.ram[at] ^= 0x55;
            dirty.set_dirty(at as u64);
        }
        self.save(block_size, Some(&dirty));
    }

    pub fn chain(&self) -> Chain {
        let diffs: Vec<_> = self.links[1..].iter().map(|(state, memory, _)| (state, memory)).collect();
        Chain::open((&self.links[0].0, &self.links[0].1), &diffs).expect("a chain")
    }
}
