//! What the links of a chain add up to, kept up to date link by link: the judge of diffs, made of file reads alone.

use std::os::unix::fs::FileExt;

use squib_host::{Machine, PendingSnapshot, SaveTarget, SnapshotKind, SnapshotReport};
use squib_snapshot::Pair;

/// The content of RAM by the links so far.
#[derive(Debug, Default)]
pub struct Shadow {
    ram: Vec<u8>,
    now: Vec<u8>,
}

impl Shadow {
    /// Takes a snapshot of `machine`, which stands still, lets it run while the files are written, and compares RAM as it was with what
    /// the links add up to, byte for byte. The machine runs when this returns.
    #[track_caller]
    pub fn check(&mut self, machine: &mut Machine, kind: SnapshotKind, target: &SaveTarget) -> SnapshotReport {
        let pending = machine.checkpoint(kind, target).expect("a snapshot begins");
        self.check_pending(machine, pending, target)
    }

    /// The same for a snapshot that has been begun.
    #[track_caller]
    pub fn check_pending(
        &mut self,
        machine: &mut Machine,
        pending: PendingSnapshot,
        target: &SaveTarget,
    ) -> SnapshotReport {
        assert!(pending.pause().is_none(), "the machine stands still");
        self.now.resize(machine.ram_size() as usize, 0);
        machine.read_ram(0, &mut self.now).expect("RAM can be read");
        machine.resume().expect("the machine goes on");
        let report = pending.wait().expect("the snapshot is durable");
        self.add(target);
        // Equal is the rule, and slices are compared quickly.
        if self.ram != self.now {
            let differs = |at: &usize| self.ram[*at] != self.now[*at];
            let at = (0..self.now.len()).find(differs).unwrap_or(self.now.len());
            panic!("{}: RAM at offset {at:#x} is not what the links say", target.state.display());
        }
        report
    }

    /// What the links of a chain add up to.
    pub fn of(links: &[SaveTarget]) -> Shadow {
        let mut shadow = Shadow::default();
        links.iter().for_each(|link| shadow.add(link));
        shadow
    }

    /// RAM at the last check.
    pub fn ram(&self) -> &[u8] {
        &self.ram
    }

    fn add(&mut self, target: &SaveTarget) {
        let pair = Pair::open(&target.state, &target.memory).expect("the pair can be opened");
        let size = pair.ram_size().expect("the size of RAM");
        self.ram.resize(size as usize, 0);
        let whole = squib_snapshot::PageSet::full(size, 1);
        let pages = pair.state_file().pages().unwrap_or(&whole);
        for (first, count) in pages.runs() {
            let start = first * pages.page_size();
            let end = ((first + count) * pages.page_size()).min(size);
            let part = &mut self.ram[start as usize..end as usize];
            pair.memory_file().read_exact_at(part, start).expect("the memory file can be read");
        }
    }
}
