//! Synchronous exceptions and interrupts: from the fault a handler found to the new PSTATE, or to an exit to the host.
//!
//! Names: `AArch64.TakeException`, `AArch64.ExceptionReturn` of the Arm ARM (J1.1). The host plays EL2: what a hypervisor
//! would trap leaves the run loop with the syndrome ESR_EL2 would hold.

use std::sync::atomic::Ordering;

use super::cpu::{Cpu, Trap};
use super::mmu::PAGE_MASK;
use super::op::{Next, Op};
use super::pstate::{sctlr, spsr};
use super::run::Exit;
use super::shared::pending;
use super::syndrome::{self, ec};
use crate::config::FaultDetails;

/// A synchronous exception in the making.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Nothing yet: the instruction must be executed again, alone in its block.
    Alone,
    /// Taken to EL1; the exception class is the one for "from a lower level" where there are two.
    Guest {
        /// Exception class.
        ec: u32,
        /// Instruction-specific syndrome.
        iss: u32,
        /// FAR_EL1, where the class sets it.
        far: Option<u64>,
    },
    /// A stage-2 fault on data: leaves to the host, the access described from the instruction word.
    Stage2Data {
        /// Faulting virtual address.
        far: u64,
        /// Faulting intermediate physical address.
        ipa: u64,
        /// ISS bits known already: DFSC, WnR, S1PTW, CM.
        iss: u32,
        /// Whether it is memory that is missing or protected, not a device that the host plays.
        ram: bool,
    },
    /// Leaves to the host with exactly this syndrome, PC on the instruction.
    Host {
        /// Exception class.
        ec: u32,
        /// Instruction-specific syndrome.
        iss: u32,
        /// FAR_EL2.
        far: u64,
        /// Intermediate physical address.
        ipa: u64,
    },
}

impl Cpu {
    /// UNDEFINED: EC 0 to EL1.
    #[cold]
    pub fn undefined(&mut self) -> Trap {
        self.guest_fault(ec::UNKNOWN, 0, None)
    }

    /// SP alignment fault.
    #[cold]
    pub fn sp_alignment_fault(&mut self) -> Trap {
        self.guest_fault(ec::SP_ALIGNMENT, 0, None)
    }

    /// PC alignment fault; `target` is the misaligned PC.
    #[cold]
    pub fn pc_alignment_fault(&mut self, target: u64) -> Trap {
        self.guest_fault(ec::PC_ALIGNMENT, 0, Some(target))
    }

    /// Alignment fault of a data access.
    #[cold]
    pub fn alignment_fault(&mut self, va: u64, write: bool) -> Trap {
        self.data_abort(va, syndrome::fsc::ALIGNMENT, write)
    }

    /// Stage-1 data abort with this fault status code.
    #[cold]
    pub fn data_abort(&mut self, va: u64, fsc: u32, write: bool) -> Trap {
        self.guest_fault(ec::DATA_ABORT_LOWER, fsc | u32::from(write) << 6, Some(va))
    }

    /// Access to FP/SIMD registers while CPACR_EL1.FPEN traps it.
    #[cold]
    pub fn fp_access_trap(&mut self) -> Trap {
        self.guest_fault(ec::FP_ACCESS, 0xe << 20 | 1 << 24, None)
    }

    /// Any exception to EL1.
    #[cold]
    pub fn guest_fault(&mut self, ec: u32, iss: u32, far: Option<u64>) -> Trap {
        self.fault = Fault::Guest { ec, iss, far };
        Trap
    }

    /// An exception that leaves to the host with PC on the instruction.
    #[cold]
    pub fn host_fault(&mut self, ec: u32, iss: u32) -> Trap {
        self.fault = Fault::Host { ec, iss, far: 0, ipa: 0 };
        Trap
    }

    /// Ends the block with the synchronous exception recorded in `cpu.fault`.
    ///
    /// # Safety
    /// `op` is inside the running block.
    #[cold]
    #[inline(never)]
    pub unsafe fn take_trap(&mut self, op: *const Op, _trap: Trap) -> Next {
        // SAFETY: the caller's promise.
        let (pc, insn, off) = unsafe { (self.pc_of(op), (*op).insn, (*op).off) };
        self.pc = pc;
        let counted = matches!(self.fault, Fault::Guest { .. });
        self.unretire(u32::from(off) / 4 + u32::from(counted));
        self.deliver(insn)
    }

    /// Delivers `cpu.fault` for the instruction at `cpu.pc`.
    pub(crate) fn deliver(&mut self, insn: u32) -> Next {
        match std::mem::replace(&mut self.fault, Fault::None) {
            Fault::None => {}
            Fault::Alone => self.single = true,
            Fault::Guest { ec, iss, far } => self.take_exception(ec, iss, far, self.pc),
            Fault::Stage2Data { far, ipa, iss, ram } => {
                let iss = syndrome::complete_data_abort(iss, insn, ram && self.vague());
                return self.stop(ec::DATA_ABORT_LOWER, iss, far, ipa);
            }
            Fault::Host { ec, iss, far, ipa } => return self.stop(ec, iss, far, ipa),
        }
        Next::Lookup
    }

    /// Whether a fault of memory tells as little as it may.
    pub(crate) fn vague(&self) -> bool {
        self.machine.config.fault_details == FaultDetails::Vague
    }

    /// Leaves the run loop with an exception syndrome. Of an abort HPFAR_EL2 gives the page alone, and FAR_EL2 the bits below,
    /// which for a fault on a table walk are not those of the descriptor.
    pub(crate) fn stop(&mut self, ec: u32, iss: u32, far: u64, ipa: u64) -> Next {
        let abort = matches!(ec, ec::DATA_ABORT_LOWER | ec::INSTRUCTION_ABORT_LOWER);
        let ipa = if abort { ipa & PAGE_MASK | far & !PAGE_MASK } else { ipa };
        self.exit = Exit::Exception { esr: syndrome::esr(ec, iss), far, ipa };
        if std::mem::take(&mut self.hung) {
            // There was no exception, only an access that did not end.
            self.shared.pending.fetch_and(!pending::EXIT, Ordering::SeqCst);
            self.exit = Exit::Canceled;
        }
        Next::Stop
    }

    /// `AArch64.TakeException` to EL1 for a synchronous exception. `ec` is the lower-level variant of its class.
    pub(crate) fn take_exception(&mut self, ec: u32, iss: u32, far: Option<u64>, return_address: u64) {
        let ec = if self.el == 1 { syndrome::same_level(ec) } else { ec };
        self.sys.esr = syndrome::esr(ec, iss);
        if let Some(far) = far {
            self.sys.far = far;
        }
        self.enter_el1(0, return_address);
    }

    /// Takes a physical interrupt: `vector` is 0x80 for IRQ, 0x100 for FIQ.
    pub(crate) fn take_interrupt(&mut self, vector: u64) {
        self.enter_el1(vector, self.pc);
    }

    fn enter_el1(&mut self, vector: u64, return_address: u64) {
        let from = match (self.el, self.sp_sel) {
            (0, _) => 0x400,
            (_, 0) => 0,
            _ => 0x200,
        };
        self.sys.spsr = self.pstate();
        self.sys.elr = return_address;
        self.switch_sp(1, 1);
        self.daif = 15;
        self.il = false;
        self.ss = false;
        if self.sys.sctlr & sctlr::SPAN == 0 {
            self.pan = true;
        }
        self.ssbs = self.sys.sctlr & sctlr::DSSBS != 0;
        self.exclusive.armed = false;
        self.pc = (self.sys.vbar & !0x7ff).wrapping_add(from + vector);
        self.refresh();
    }

    /// `AArch64.ExceptionReturn`: to `target` with PSTATE from SPSR_EL1. An illegal return keeps the exception level and sets
    /// PSTATE.IL.
    pub(crate) fn exception_return(&mut self, target: u64) {
        let saved = self.sys.spsr;
        let mode = saved & 0x1f;
        let legal = matches!(mode, 0b00000 | 0b00100 | 0b00101);
        let step = self.step_enabled_at(if legal { (mode >> 2) as u8 } else { self.el }, saved);
        let step = step && !self.step_enabled();
        self.exclusive.armed = false;
        if legal {
            self.set_pstate(saved);
        } else {
            let kept = self.pstate() & (0xf | spsr::PAN | spsr::SSBS);
            let taken = saved & (0xf << 28 | 0xf << 6);
            self.set_pstate(kept | taken | spsr::IL | saved & spsr::SS);
        }
        self.ss = step && saved & spsr::SS != 0;
        self.il |= saved & spsr::IL != 0;
        self.pc = self.branch_address(target);
        self.refresh();
    }
}
