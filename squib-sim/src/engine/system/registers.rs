//! MRS and MSR (Arm ARM C5.3): stored registers by the table, computed ones here.

use super::{access_iss, ending, plain};
use crate::engine::cpu::{Cpu, Trap};
use crate::engine::op::{Decoded, Handler, Next, Op, slot};
use crate::engine::pstate::{sctlr, spsr};
use crate::engine::shared::pending;
use crate::engine::syndrome::ec;
use crate::engine::sysreg::table::{Register, find, rights};
use crate::engine::timer::ctl;
use std::sync::atomic::Ordering::SeqCst;

/// Encodings of the registers that are computed.
mod enc {
    pub const SP_SEL: u16 = 0xc210;
    pub const CURRENT_EL: u16 = 0xc212;
    pub const PAN: u16 = 0xc213;
    pub const REVIDR: u16 = 0xc006;
    pub const SP_EL0: u16 = 0xc208;
    pub const SP_EL1: u16 = 0xe208;
    pub const ISR: u16 = 0xc608;
    pub const CCSIDR: u16 = 0xc800;
    pub const CLIDR: u16 = 0xc801;
    pub const AIDR: u16 = 0xc807;
    pub const CTR: u16 = 0xd801;
    pub const DCZID: u16 = 0xd807;
    pub const NZCV: u16 = 0xda10;
    pub const DAIF: u16 = 0xda11;
    pub const SSBS: u16 = 0xda16;
    pub const FPCR: u16 = 0xda20;
    pub const FPSR: u16 = 0xda21;
    pub const CNTFRQ: u16 = 0xdf00;
    pub const CNTPCT: u16 = 0xdf01;
    pub const CNTVCT: u16 = 0xdf02;
    pub const CNTV_TVAL: u16 = 0xdf18;
    pub const CNTV_CTL: u16 = 0xdf19;
    pub const CNTV_CVAL: u16 = 0xdf1a;
    // The debug communications channel and its kin: there is no external debugger.
    pub const OSDTRRX: u16 = 0x8002;
    pub const OSDTRTX: u16 = 0x801a;
    pub const MDRAR: u16 = 0x8080;
    pub const DBGCLAIMSET: u16 = 0x83c6;
    pub const DBGCLAIMCLR: u16 = 0x83ce;
    pub const DBGAUTHSTATUS: u16 = 0x83f6;
    pub const MDCCSR: u16 = 0x9808;
    pub const DBGDTR: u16 = 0x9820;
    pub const DBGDTRRX: u16 = 0x9828;
}

/// CTR_EL0: 64-byte lines, PIPT, DIC = IDC = 0: code needs both cleaning and invalidation.
pub const CTR: u64 = 0x8444_c004;
/// CLIDR_EL1: split level 1, unified level 2, coherency at level 2.
pub const CLIDR: u64 = 1 << 27 | 2 << 24 | 1 << 21 | 4 << 3 | 3;
/// FPCR bits that exist: AHP, DN, FZ, RMode, FZ16.
const FPCR: u64 = 0x07c8_0000;
/// FPSR bits that exist: QC and the cumulative exceptions.
const FPSR: u64 = 0x0800_009f;

/// Decodes an instruction with op0 = 2 or 3.
pub(super) fn decode(insn: u32) -> Option<Decoded> {
    let encoding = encoding(insn);
    let read = insn >> 21 & 1 == 1;
    // EL2 and EL3 registers are UNDEFINED at EL1, not trapped.
    if matches!(insn >> 16 & 7, 4..=7) {
        return None;
    }
    let fpsr = matches!(encoding, enc::FPCR | enc::FPSR);
    let rd = if read { slot::dst(insn) } else { slot::src(insn) };
    let op = |run: Handler, imm: u64| Op { rd, imm, ..Op::new(run, insn) };
    if let Some(register) = find(encoding) {
        let has = |right| register.rights & right != 0;
        let imm = u64::from(register.offset);
        let traps_debug = has(rights::DEBUG);
        return Some(match read {
            _ if traps_debug => Decoded::end(op(if read { mrs_slow } else { msr_slow }, 0)),
            true if has(rights::E0R) => Decoded::plain(op(mrs_stored::<0>, imm)),
            true => Decoded::plain(op(mrs_stored::<1>, imm)),
            false if encoding == 0xde82 => Decoded::plain(op(msr_tpidr_el0, imm)),
            false => Decoded::end(op(msr_slow, 0)),
        });
    }
    let decoded = match (encoding, read) {
        (enc::NZCV, true) => Decoded::plain(op(mrs_nzcv, 0)),
        (enc::NZCV, false) => Decoded::plain(op(msr_nzcv, 0)),
        (enc::FPCR | enc::FPSR, true) => Decoded::plain(op(mrs_computed, 0)),
        (enc::FPCR | enc::FPSR, false) => Decoded::plain(op(msr_fp, 0)),
        (enc::SP_EL0, true) => Decoded::plain(op(mrs_sp_el0, 0)),
        (enc::DAIF, true) => Decoded::plain(op(mrs_daif, 0)),
        (_, true) => Decoded::plain(op(mrs_computed, 0)),
        (_, false) => Decoded::end(op(msr_slow, 0)),
    };
    Some(Decoded { needs_fp: fpsr, ..decoded })
}

fn encoding(insn: u32) -> u16 {
    (insn >> 5) as u16 | 0x8000
}

plain! {
    /// A stored register that EL `EL` and above may read.
    fn mrs_stored<const EL: u8>(cpu, op) {
        if EL > cpu.el {
            return Err(cpu.undefined());
        }
        let value = cpu.sys.at(op.imm as u16);
        cpu.x[usize::from(op.rd)] = value;
        Ok(())
    }
    fn mrs_nzcv(cpu, op) {
        cpu.x[usize::from(op.rd)] = u64::from(cpu.nzcv()) << 28;
        Ok(())
    }
    fn msr_nzcv(cpu, op) {
        cpu.set_nzcv((cpu.x[usize::from(op.rd)] >> 28) as u32 & 15);
        Ok(())
    }
    fn mrs_sp_el0(cpu, op) {
        if cpu.el == 0 || cpu.sp_sel == 0 {
            return Err(cpu.undefined());
        }
        cpu.x[usize::from(op.rd)] = cpu.sp_el(0);
        Ok(())
    }
    fn mrs_daif(cpu, op) {
        if cpu.el == 0 && cpu.sys.sctlr & sctlr::UMA == 0 {
            return Err(cpu.guest_fault(ec::SYSTEM_REGISTER, access_iss(op.insn), None));
        }
        cpu.x[usize::from(op.rd)] = u64::from(cpu.daif) << 6;
        Ok(())
    }
    fn msr_tpidr_el0(cpu, op) {
        cpu.sys.tpidr_el0 = cpu.x[usize::from(op.rd)];
        Ok(())
    }
    fn msr_fp(cpu, op) {
        let value = cpu.x[usize::from(op.rd)];
        match encoding(op.insn) {
            enc::FPCR => cpu.fpcr = (value & FPCR) as u32,
            _ => cpu.fpsr = (value & FPSR) as u32,
        }
        Ok(())
    }
    fn mrs_computed(cpu, op) {
        let timer = encoding(op.insn) >> 5 == enc::CNTVCT >> 5;
        // SAFETY: `op` is inside the running block.
        let count = if timer { unsafe { cpu.virtual_count_at(op) } } else { 0 };
        let value = cpu.read_computed(op.insn, count)?;
        cpu.x[usize::from(op.rd)] = value;
        Ok(())
    }
}

ending! {
    /// A register whose read may leave to the host.
    fn mrs_slow(cpu, op) {
        let register = cpu.stored_register(op.insn, rights::E1R)?;
        cpu.x[usize::from(op.rd)] = cpu.sys.get(register);
        Ok(Next::Taken)
    }
    /// A register whose write may change how execution goes on.
    fn msr_slow(cpu, op) {
        let value = cpu.x[usize::from(op.rd)];
        if find(encoding(op.insn)).is_none() {
            cpu.write_computed(op.insn, value)?;
            return Ok(Next::Lookup);
        }
        let register = cpu.stored_register(op.insn, rights::E1W)?;
        cpu.sys.set(register, register.mask(value));
        if register.rights & rights::CONTEXT == 0 {
            return Ok(Next::Taken);
        }
        cpu.refresh();
        Ok(Next::Lookup)
    }
}

impl Cpu {
    /// The stored register an instruction names, if the current exception level has the right.
    fn stored_register(&mut self, insn: u32, right: u16) -> Result<&'static Register, Trap> {
        let right = if self.el == 0 { right >> 2 } else { right };
        match find(encoding(insn)) {
            Some(register) if register.rights & right != 0 => {
                if register.rights & rights::DEBUG != 0 && self.trap_debug_reg_accesses {
                    return Err(self.host_fault(ec::SYSTEM_REGISTER, access_iss(insn)));
                }
                Ok(register)
            }
            _ => Err(self.undefined()),
        }
    }

    /// Raises UNDEFINED at EL0; at EL1 goes on.
    fn demand_el1(&mut self) -> Result<(), Trap> {
        if self.el == 0 { Err(self.undefined()) } else { Ok(()) }
    }

    /// Traps to EL1 unless a bit that opens the register to EL0 is set.
    fn demand_open(&mut self, insn: u32, open: bool) -> Result<(), Trap> {
        if self.el == 0 && !open {
            return Err(self.guest_fault(ec::SYSTEM_REGISTER, access_iss(insn), None));
        }
        Ok(())
    }

    /// A register the engine does not have: UNDEFINED at EL0, the host's business at EL1.
    fn unknown_register(&mut self, insn: u32) -> Trap {
        if self.el == 0 {
            return self.undefined();
        }
        self.host_fault(ec::SYSTEM_REGISTER, access_iss(insn))
    }

    /// Reads a register that is not stored; `count` is CNTVCT_EL0.
    fn read_computed(&mut self, insn: u32, count: u64) -> Result<u64, Trap> {
        let cntkctl = self.sys.cntkctl;
        let encoding = encoding(insn);
        match encoding {
            enc::FPCR => return Ok(self.fpcr.into()),
            enc::FPSR => return Ok(self.fpsr.into()),
            enc::DCZID => {
                let prohibited = self.el == 0 && self.sys.sctlr & sctlr::DZE == 0;
                return Ok(4 | u64::from(prohibited) << 4);
            }
            enc::SSBS => return Ok(if self.ssbs { spsr::SSBS } else { 0 }),
            enc::CTR => {
                self.demand_open(insn, self.sys.sctlr & sctlr::UCT != 0)?;
                return Ok(CTR);
            }
            enc::CNTFRQ => {
                self.demand_open(insn, cntkctl & 3 != 0)?;
                return Ok(self.machine.clock.frequency());
            }
            // The physical timer is the host's; EL1 decides first whether EL0 may ask.
            enc::CNTPCT if self.el == 0 => {
                self.demand_open(insn, cntkctl & 1 != 0)?;
                return Err(self.host_fault(ec::SYSTEM_REGISTER, access_iss(insn)));
            }
            enc::CNTVCT => {
                self.demand_open(insn, cntkctl & 2 != 0)?;
                return Ok(count);
            }
            enc::CNTV_CTL | enc::CNTV_CVAL | enc::CNTV_TVAL => {
                self.demand_open(insn, cntkctl & 1 << 8 != 0)?;
                return Ok(match encoding {
                    enc::CNTV_CTL => self.timer_ctl(count),
                    enc::CNTV_CVAL => self.timer.cval,
                    _ => u64::from(self.timer.cval.wrapping_sub(count) as u32),
                });
            }
            enc::MDCCSR | enc::DBGDTR | enc::DBGDTRRX if self.sys.mdscr & 1 << 12 == 0 => return Ok(0),
            _ => self.demand_el1()?,
        }
        Ok(match encoding {
            enc::CURRENT_EL => u64::from(self.el) << 2,
            enc::SP_SEL => self.sp_sel.into(),
            enc::PAN => u64::from(self.pan) << 22,
            enc::CLIDR => CLIDR,
            enc::CCSIDR => self.ccsidr(),
            enc::ISR => {
                let raised = self.shared.pending.load(SeqCst);
                let bit = |mask: u32, bit: u64| if raised & mask != 0 { 1 << bit } else { 0 };
                bit(pending::IRQ | pending::IRQ_ONCE, 7) | bit(pending::FIQ | pending::FIQ_ONCE, 6)
            }
            enc::REVIDR | enc::AIDR | enc::MDRAR | enc::DBGAUTHSTATUS | enc::DBGCLAIMCLR => 0,
            enc::OSDTRRX | enc::OSDTRTX | enc::MDCCSR | enc::DBGDTR | enc::DBGDTRRX => 0,
            enc::DBGCLAIMSET => 0xff,
            // The rest of the ID space.
            0xc008..=0xc03f => 0,
            _ => {
                let gic = self.machine.gic.get().filter(|_| is_icc(encoding));
                match gic.and_then(|gic| gic.icc_read(self.shared.index, encoding)) {
                    Some(value) => value,
                    None => return Err(self.unknown_register(insn)),
                }
            }
        })
    }

    /// Writes a register that is not stored. Ends the block.
    fn write_computed(&mut self, insn: u32, value: u64) -> Result<(), Trap> {
        let encoding = encoding(insn);
        match encoding {
            enc::SSBS => {
                self.ssbs = value & spsr::SSBS != 0;
                return Ok(());
            }
            enc::DAIF => {
                self.demand_open(insn, self.sys.sctlr & sctlr::UMA != 0)?;
                self.daif = (value >> 6) as u8 & 15;
                self.interrupt_masks_changed();
                return Ok(());
            }
            enc::CNTV_CTL | enc::CNTV_CVAL | enc::CNTV_TVAL => {
                self.demand_open(insn, self.sys.cntkctl & 1 << 8 != 0)?;
                match encoding {
                    enc::CNTV_CTL => self.timer.ctl = value & (ctl::ENABLE | ctl::IMASK),
                    enc::CNTV_CVAL => self.timer.cval = value,
                    // The MSR ends its block, so the count is exact once the instruction itself is left out.
                    _ => {
                        let own = u64::from(self.machine.clock.is_deterministic());
                        let count = self.virtual_count().wrapping_sub(own);
                        self.timer.cval = count.wrapping_add(value as i32 as u64);
                    }
                }
                self.end_slice();
                return Ok(());
            }
            enc::DBGDTR | enc::DBGDTRRX if self.sys.mdscr & 1 << 12 == 0 => return Ok(()),
            _ => self.demand_el1()?,
        }
        match encoding {
            enc::SP_EL0 if self.sp_sel == 1 => self.set_sp_el(0, value),
            enc::SP_EL0 => return Err(self.undefined()),
            enc::SP_SEL => self.switch_sp(1, value as u8 & 1),
            enc::PAN => {
                self.pan = value & spsr::PAN != 0;
                self.refresh();
            }
            enc::OSDTRRX | enc::OSDTRTX | enc::DBGDTR | enc::DBGDTRRX | enc::DBGCLAIMSET | enc::DBGCLAIMCLR => {}
            _ => {
                let gic = self.machine.gic.get().filter(|_| is_icc(encoding));
                if !gic.is_some_and(|gic| gic.icc_write(self.shared.index, encoding, value)) {
                    return Err(self.unknown_register(insn));
                }
            }
        }
        Ok(())
    }

    /// CCSIDR_EL1 for the cache CSSELR_EL1 selects: 64 KiB 4-way level 1, 4 MiB 16-way level 2, 64-byte lines.
    fn ccsidr(&self) -> u64 {
        let geometry = |sets: u64, ways: u64| (sets - 1) << 13 | (ways - 1) << 3 | 2;
        match self.sys.csselr {
            0 | 1 => geometry(256, 4),
            2 => geometry(4096, 16),
            _ => 0,
        }
    }

    /// The value of a register for `hv_vcpu_get_sys_reg`; `None` if the framework does not know it.
    pub fn host_get_sys_reg(&self, encoding: u16) -> Option<u64> {
        match encoding {
            enc::SP_EL0 => Some(self.sp_el(0)),
            enc::SP_EL1 => Some(self.sp_el(1)),
            enc::CNTV_CTL => Some(self.timer_ctl(self.virtual_count())),
            enc::CNTV_CVAL => Some(self.timer.cval),
            _ => find(encoding).filter(|r| r.rights & rights::HOST != 0).map(|register| self.sys.get(register)),
        }
    }

    /// Sets a register for `hv_vcpu_set_sys_reg`; `false` if the framework does not know it.
    pub fn host_set_sys_reg(&mut self, encoding: u16, value: u64) -> bool {
        match encoding {
            enc::SP_EL0 => self.set_sp_el(0, value),
            enc::SP_EL1 => self.set_sp_el(1, value),
            enc::CNTV_CTL => self.timer.ctl = value & (ctl::ENABLE | ctl::IMASK),
            enc::CNTV_CVAL => self.timer.cval = value,
            _ => match find(encoding).filter(|register| register.rights & rights::HOST != 0) {
                Some(register) => {
                    self.sys.set(register, register.mask(value));
                    self.refresh();
                }
                None => return false,
            },
        }
        true
    }
}

/// ICC_PMR_EL1, and CRn = 12, CRm = 8 to 12.
fn is_icc(encoding: u16) -> bool {
    encoding == 0xc230 || (0xc640..=0xc667).contains(&encoding)
}
