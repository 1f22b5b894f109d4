//! SYS instructions: cache and TLB maintenance, DC ZVA, address translation (Arm ARM C5.3, C5.4, C5.5).
//!
//! Guest data caches do not exist, so cleaning is nothing but the translation it is checked by; instruction cache
//! invalidation drops decoded code, here and, being broadcast in the Inner Shareable domain, on every vCPU.

use super::{access_iss, ending, plain};
use crate::engine::cpu::{Cpu, Privilege, Trap};
use crate::engine::mmu::walk::{Access, Kind};
use crate::engine::mmu::{PAGE_MASK, SLOW};
use crate::engine::op::{Decoded, Handler, Next, Op, slot};
use crate::engine::pstate::sctlr;
use crate::engine::shared::Request;
use crate::engine::syndrome::{ec, fsc, iss};

/// Decodes SYS.
pub(super) fn decode(insn: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> Option<Decoded> {
    let op = |run: Handler| Op { rd: slot::src(insn), ..Op::new(run, insn) };
    let end = |run: Handler| Some(Decoded::end(op(run)));
    let plain = |run: Handler| Some(Decoded::plain(op(run)));
    match (op1, crn, crm, op2) {
        (3, 7, 4, 1) => plain(dc_zva),
        (3, 7, 10 | 11 | 14, 1) => plain(dc_clean),
        (3, 7, 5, 1) => end(ic_ivau),
        (0, 7, 1 | 5, 0) => end(ic_iallu),
        (0, 7, 6, 1) => plain(dc_ivac),
        (0, 7, 6 | 10 | 14, 2) => plain(dc_set_way),
        (0, 7, 8, 0..=3) | (0, 7, 9, 0 | 1) => plain(at),
        // Inner Shareable, and local.
        (0, 8, 3 | 7, 0) => end(tlbi_all),
        (0, 8, 3 | 7, 2) => end(tlbi_asid),
        (0, 8, 3 | 7, 1 | 3 | 5 | 7) => end(tlbi_va),
        _ => None,
    }
}

plain! {
    fn dc_zva(cpu, op) {
        const BLOCK: u64 = 64;
        cpu.demand_el0_bit(op.insn, sctlr::DZE)?;
        let named = cpu.x[usize::from(op.rd)];
        let va = named & !(BLOCK - 1);
        // SAFETY: `tlb` points into the vCPU's own tables.
        let entry = unsafe { (*cpu.tlb).entry(va) };
        if entry.write == va & PAGE_MASK {
            let host = entry.addend.wrapping_add(va) as *mut u64;
            for i in 0..BLOCK as usize / 8 {
                // SAFETY: a valid entry maps its whole page; the block is aligned and inside it.
                unsafe { host.add(i).write_volatile(0) };
            }
            return Ok(());
        }
        cpu.check_zero_block(named)?;
        (0..BLOCK / 8).try_for_each(|i| cpu.store(va + 8 * i, 0u64, Privilege::Current))
    }
    /// DC CVAC, CVAU, CIVAC.
    fn dc_clean(cpu, op) {
        cpu.demand_el0_bit(op.insn, sctlr::UCI)?;
        let va = cpu.x[usize::from(op.rd)];
        cpu.maintained_page(va, Kind::Read).map(drop)
    }
    fn dc_ivac(cpu, op) {
        cpu.demand_el1_instruction()?;
        let va = cpu.x[usize::from(op.rd)];
        cpu.maintained_page(va, Kind::Write).map(drop)
    }
    /// DC ISW, CSW, CISW.
    fn dc_set_way(cpu, _op) { cpu.demand_el1_instruction() }
    fn at(cpu, op) {
        cpu.demand_el1_instruction()?;
        let va = cpu.x[usize::from(op.rd)];
        let (_, _, _, crm, op2) = super::fields(op.insn);
        let kind = if op2 & 1 == 1 { Kind::Write } else { Kind::Read };
        let access = Access { kind, privileged: op2 & 2 == 0, pan: crm == 9 && cpu.pan, update: false };
        cpu.sys.par = match cpu.walk(va, access) {
            Ok(found) => {
                let attr = if found.is_device() { found.attr & 0xc } else { found.attr };
                // Device and Non-cacheable memory is Outer Shareable whatever the descriptor says.
                let shareability = if found.is_device() || found.attr == 0x44 { 2 } else { found.shareability };
                u64::from(attr) << 56 | found.ipa & 0x0000_ffff_ffff_f000 | 1 << 11 | u64::from(shareability) << 7
            }
            Err(fault) if fault.stage2.is_some() => return Err(cpu.walk_fault(va, fault, iss::CM | iss::WNR)),
            Err(fault) => 1 << 11 | u64::from(fault.fsc) << 1 | 1,
        };
        Ok(())
    }
}

ending! {
    fn ic_ivau(cpu, op) {
        cpu.demand_el0_bit(op.insn, sctlr::UCI)?;
        let va = cpu.x[usize::from(op.rd)];
        let ipa = cpu.maintained_page(va, Kind::Read)?;
        cpu.broadcast(Request::Code(ipa), None);
        Ok(Next::Lookup)
    }
    /// IC IALLU, IALLUIS.
    fn ic_iallu(cpu, op) {
        cpu.demand_el1_instruction()?;
        cpu.maintain(op.insn, Request::CodeAll, None);
        Ok(Next::Lookup)
    }
    fn tlbi_all(cpu, op) {
        cpu.demand_el1_instruction()?;
        cpu.maintain(op.insn, Request::TlbAll, None);
        Ok(Next::Lookup)
    }
    fn tlbi_asid(cpu, op) {
        cpu.demand_el1_instruction()?;
        let asid = cpu.operand_asid(op);
        cpu.maintain(op.insn, Request::TlbAsid(asid), Some(asid));
        Ok(Next::Lookup)
    }
    /// VAE1, VAAE1, VALE1, VAALE1: whoever holds translations of the ASID invalidates all of the page, whatever their ASID.
    fn tlbi_va(cpu, op) {
        cpu.demand_el1_instruction()?;
        let va = cpu.x[usize::from(op.rd)] << 12;
        let (upper, any_asid) = (va >> 55 & 1 == 1, op.insn >> 5 & 3 == 3);
        let asid = (!upper && !any_asid).then(|| cpu.operand_asid(op));
        cpu.maintain(op.insn, Request::TlbVa(va), asid);
        Ok(Next::Lookup)
    }
}

impl Cpu {
    fn demand_el1_instruction(&mut self) -> Result<(), Trap> {
        if self.el == 0 { Err(self.undefined()) } else { Ok(()) }
    }

    /// At EL0 traps to EL1 unless the bit of SCTLR_EL1 allows the instruction.
    #[inline(always)]
    fn demand_el0_bit(&mut self, insn: u32, bit: u64) -> Result<(), Trap> {
        if self.el == 0 && self.sys.sctlr & bit == 0 {
            return Err(self.guest_fault(ec::SYSTEM_REGISTER, access_iss(insn), None));
        }
        Ok(())
    }

    /// Whether `DC IVAC` needs the right to write at stage 2.
    fn strict_ivac(&self) -> bool {
        self.machine.config.ivac_needs_write
    }

    /// The ASID a TLBI names; of 8 bits if TCR_EL1.AS says so.
    fn operand_asid(&self, op: &Op) -> u16 {
        let asid = (self.x[usize::from(op.rd)] >> 48) as u16;
        if self.sys.tcr & 1 << 36 != 0 { asid } else { asid & 0xff }
    }

    /// Carries out a request here, and on the other vCPUs if the instruction is an Inner Shareable one.
    fn maintain(&mut self, insn: u32, request: Request, asid: Option<u16>) {
        let (_, _, _, crm, _) = super::fields(insn);
        if matches!(crm, 1 | 3) { self.broadcast(request, asid) } else { self.carry_out(request) }
    }

    /// Translates the address of a cache maintenance instruction; the answer is the IPA of its page. What faults does so with
    /// CM and WnR set.
    fn maintained_page(&mut self, va: u64, kind: Kind) -> Result<u64, Trap> {
        // SAFETY: `tlb` points into the vCPU's own tables.
        let entry = unsafe { (*self.tlb).entry(va) };
        if entry.tag(kind == Kind::Write) & !SLOW == va & PAGE_MASK {
            return Ok(entry.info & PAGE_MASK);
        }
        let bits = iss::CM | iss::WNR;
        let access = Access { pan: false, update: false, ..self.access(kind, Privilege::Current) };
        let found = match self.walk(va, access) {
            Ok(found) => found,
            Err(fault) => return Err(self.walk_fault(va, fault, bits)),
        };
        match self.stage2(found.ipa) {
            // Without the right to write, invalidation cleans as well (DC IVAC becomes DC CIVAC), which reading is enough for.
            Some((_, perms)) if perms.readable() && (perms.writable() || kind == Kind::Read || !self.strict_ivac()) => {
                Ok(found.ipa & PAGE_MASK)
            }
            Some(_) => Err(self.stage2_data_fault(va, found.ipa, fsc::PERMISSION | 3 | bits, true)),
            None => {
                let ram = self.is_ram(found);
                Err(self.stage2_data_fault(va, found.ipa, fsc::TRANSLATION | 3 | bits, ram))
            }
        }
    }
}
