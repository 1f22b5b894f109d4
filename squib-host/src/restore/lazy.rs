//! What a restored guest is going to touch first, for the prefetcher.

use std::ops::Range;
use std::sync::Arc;

use squib_snapshot::{MicrovmState, SysReg, VcpuState};

use super::regime;
use crate::build::Parts;
use crate::devices::virtio::mmio;
use crate::error::Result;
use crate::layout::RAM_BASE;
use crate::pager::Prefetcher;

/// Bytes of an exception vector table.
const VECTORS: u64 = 0x800;
/// Bytes of stack and of code that are brought around SP and PC.
const AROUND: u64 = 4 << 10;

/// Starts bringing in what is absent; nothing if nothing is.
pub fn stream(parts: &mut Parts, state: &MicrovmState, working_set: Vec<Range<u64>>) -> Result<()> {
    let Some(pager) = parts.shared.faults.pager().filter(|pager| !pager.is_done()) else { return Ok(()) };
    let vcpus = state.vcpu_states.clone();
    let queues = queues(state);
    let plan = move |read: &mut dyn FnMut(u64) -> Option<u64>| {
        let mut first: Vec<Range<u64>> = vcpus.iter().flat_map(|vcpu| working_with(vcpu, &mut *read)).collect();
        first.extend(queues);
        first.extend(working_set);
        first
    };
    parts.prefetcher = Some(Prefetcher::start(Arc::clone(pager), plan)?);
    Ok(())
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
    let found = areas.into_iter().filter_map(|(address, len)| {
        let ipa = regime.walk(address, |ipa| read(ipa.checked_sub(RAM_BASE)?))?;
        let start = ipa.checked_sub(RAM_BASE)?;
        Some(start..start.saturating_add(len))
    });
    found.collect()
}

/// The rings of all virtio queues.
fn queues(state: &MicrovmState) -> Vec<Range<u64>> {
    let rings = state.device_states.devices.iter().flat_map(|device| mmio::rings(&device.kind, &device.blob));
    let in_ram = |(address, len): (u64, u64)| {
        let start = address.checked_sub(RAM_BASE)?;
        Some(start..start.saturating_add(len))
    };
    rings.filter_map(in_ram).collect()
}
