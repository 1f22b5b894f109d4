//! What a restored guest is going to touch first, for the prefetcher.

use std::ops::Range;
use std::sync::Arc;

use squib_snapshot::{MicrovmState, SysReg, VcpuState};

use super::regime;
use crate::boot::fdt::Place;
use crate::build::Parts;
use crate::devices::virtio::saved;
use crate::error::Result;
use crate::layout::RAM_BASE;
use crate::pager::{Prefetcher, StreamObserver};

/// Bytes of an exception vector table.
const VECTORS: u64 = 0x800;
/// Bytes of stack and of code that are brought around SP and PC.
const AROUND: u64 = 4 << 10;

/// What is brought before the rest, in this order.
#[derive(Debug)]
pub struct Plan {
    vcpus: Vec<VcpuState>,
    fdt: Option<Range<u64>>,
    queues: Vec<Range<u64>>,
    working_set: Vec<Range<u64>>,
}

impl Plan {
    /// For a machine in this state, whose device tree lies at `fdt`. `working_set` are bytes of RAM.
    pub fn new(state: &MicrovmState, fdt: Option<Place>, working_set: Vec<Range<u64>>) -> Plan {
        let fdt = fdt.and_then(|place| in_ram(place.ipa, place.len));
        Plan { vcpus: state.vcpu_states.clone(), fdt, queues: queues(state), working_set }
    }

    /// The ranges of bytes of RAM. The translation tables come first, by looking for the others: `read` brings and gives the
    /// eight bytes at an offset.
    fn ranges(self, read: &mut dyn FnMut(u64) -> Option<u64>) -> Vec<Range<u64>> {
        let mut first: Vec<_> = self.vcpus.iter().flat_map(|vcpu| working_with(vcpu, &mut *read)).collect();
        first.extend(self.fdt);
        first.extend(self.queues);
        first.extend(self.working_set);
        first
    }
}

/// Starts bringing in what is absent; nothing if nothing is.
pub fn stream(parts: &mut Parts, observer: Option<StreamObserver>, plan: Plan) -> Result<()> {
    let Some(pager) = parts.shared.faults.pager().filter(|pager| !pager.is_done()) else { return Ok(()) };
    parts.prefetcher = Some(Prefetcher::start(Arc::clone(pager), observer, |read| plan.ranges(read))?);
    Ok(())
}

/// Bytes of RAM at an IPA. What lies beyond its end is left to the prefetcher to leave out.
fn in_ram(ipa: u64, len: u64) -> Option<Range<u64>> {
    let start = ipa.checked_sub(RAM_BASE)?;
    Some(start..start.saturating_add(len))
}

/// What a vCPU works with: the code at PC, the stack, the vectors. The translation tables that lead there are brought by `read`,
/// which takes an offset in RAM.
fn working_with(vcpu: &VcpuState, read: &mut dyn FnMut(u64) -> Option<u64>) -> Vec<Range<u64>> {
    let reg = |reg: SysReg| vcpu.sys_regs.get(&reg.as_encoded()).copied().unwrap_or(0);
    let regime = regime(vcpu);
    let areas = [
        (vcpu.regs.pc, AROUND),
        (vcpu.regs.sp, AROUND),
        (reg(SysReg::VbarEl1), VECTORS),
        (reg(SysReg::ElrEl1), AROUND),
        (reg(SysReg::SpEl0), AROUND),
    ];
    let found = areas
        .into_iter()
        .filter_map(|(address, len)| in_ram(regime.walk(address, |ipa| read(ipa.checked_sub(RAM_BASE)?))?, len));
    found.collect()
}

/// The rings of all virtio queues.
fn queues(state: &MicrovmState) -> Vec<Range<u64>> {
    let rings = state.device_states.devices.iter().flat_map(|device| saved::rings(&device.kind, &device.blob));
    rings.filter_map(|(ipa, len)| in_ram(ipa, len)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use squib_snapshot::{DeviceState, DeviceStates};

    use super::*;
    use crate::devices::Device;
    use crate::devices::testing::Lines;
    use crate::devices::virtio::mmio::VirtioMmio;
    use crate::devices::virtio::rng::{Entropy, Rng};
    use crate::memory::{GRANULE, GuestRam};
    use crate::pager::testing::{LazyRam, TestSource};

    const PAGES: u64 = 256;
    /// Virtual address of RAM's first byte.
    const KERNEL: u64 = 0xffff_0000_0000_0000;
    /// Pages that hold, each, what its name says. The last table reaches 128 of them.
    const TABLES: [u64; 4] = [40, 41, 42, 46];
    const PC: u64 = 100;
    const SP: u64 = 50;
    const VECTORS: u64 = 72;
    const ELR: u64 = 60;
    const SP_EL0: u64 = 90;
    const FDT: u64 = 30;
    const RINGS: [u64; 3] = [110, 20, 17];
    const WORKING_SET: [u64; 2] = [13, 12];

    fn at(page: u64) -> u64 {
        RAM_BASE + page * GRANULE
    }

    /// RAM in which four levels of tables of 4 KiB map what the vCPU works with.
    fn ram() -> Arc<TestSource> {
        let mut bytes = TestSource::pattern(PAGES).bytes().to_vec();
        let mut put = |table: u64, index: u64, value: u64| {
            let at = (table * GRANULE + index * 8) as usize;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        for (level, table) in TABLES.into_iter().enumerate().take(3) {
            put(table, 0, at(TABLES[level + 1]) | 3);
        }
        for page in [PC, SP, VECTORS, ELR, SP_EL0] {
            put(TABLES[3], page * 4, at(page) | 3);
        }
        TestSource::new(bytes)
    }

    fn vcpu() -> VcpuState {
        let va = |page: u64| KERNEL + page * GRANULE;
        let mut vcpu = VcpuState::new(0);
        (vcpu.regs.pc, vcpu.regs.sp) = (va(PC), va(SP));
        let tcr = 16 << 16 | 2 << 30 | 16;
        for (reg, value) in [
            (SysReg::SctlrEl1, 1),
            (SysReg::TcrEl1, tcr),
            (SysReg::Ttbr1El1, at(TABLES[0])),
            (SysReg::VbarEl1, va(VECTORS)),
            (SysReg::ElrEl1, va(ELR)),
            (SysReg::SpEl0, va(SP_EL0)),
        ] {
            vcpu.sys_regs.insert(reg.as_encoded(), value);
        }
        vcpu
    }

    /// A device whose driver has set up one queue at [`RINGS`].
    fn device() -> DeviceState {
        let ram = GuestRam::new(RAM_BASE, PAGES * GRANULE, false).unwrap();
        let rng = Box::new(Rng::new(Entropy::Seeded(1)));
        let device = VirtioMmio::new(rng, ram, Lines::new().line(48), true).unwrap();
        let rings = [0x80, 0x90, 0xa0].into_iter().zip(RINGS).map(|(register, page)| (register, at(page)));
        for (register, value) in [(0x30, 0), (0x38, 16)].into_iter().chain(rings).chain([(0x44, 1)]) {
            device.write(register, 4, value);
        }
        DeviceState { kind: device.kind().into(), id: "rng0".into(), mmio_slot: 31, blob: device.save().unwrap() }
    }

    /// Page tables, PC, SP, vectors, device tree, queues; then what an earlier run touched, in its order; then the rest.
    #[test]
    fn what_the_guest_needs_to_go_on_comes_first() {
        let state = MicrovmState {
            vcpu_states: vec![vcpu()],
            device_states: DeviceStates::from_devices([device()]),
            ..MicrovmState::default()
        };
        let fdt = Some(Place { ipa: at(FDT) + 100, len: 3000 });
        let working_set = WORKING_SET.map(|page| page * GRANULE..(page + 1) * GRANULE).to_vec();
        let plan = Plan::new(&state, fdt, working_set);
        let lazy = LazyRam::new(ram(), 1);
        let prefetcher = Prefetcher::start(Arc::clone(&lazy.pager), None, |read| plan.ranges(read)).unwrap();
        let begun = Instant::now();
        while !lazy.pager.is_done() {
            assert!(begun.elapsed() < Duration::from_secs(60), "all arrives");
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(prefetcher);
        let first: Vec<u64> = [&TABLES[..], &[PC, SP, VECTORS, ELR, SP_EL0, FDT], &RINGS, &WORKING_SET].concat();
        // All of it is in the first 2 MiB: the source is told once, when the tables are known and before anything else is read.
        assert_eq!(*lazy.source.expected.lock().unwrap(), [(0, TABLES.len())]);
        let order = lazy.source.order();
        assert_eq!(order[..first.len()], first);
        // Every fourth page is zero: it is read only where its neighbours are.
        let not_zero = |page: &u64| page % 4 != 3;
        let rest: Vec<u64> = (0..PAGES).filter(|page| not_zero(page) && !first.contains(page)).collect();
        assert_eq!(order[first.len()..].iter().copied().filter(not_zero).collect::<Vec<_>>(), rest);
    }
}
