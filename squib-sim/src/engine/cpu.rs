//! The state of one processing element, and the operations instruction handlers are written with.
//!
//! Everything the guest can observe is here or in guest memory; the rest (TLB, block cache) is derived and may be dropped
//! at any time without the guest noticing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::block::{Block, CodeCache};
use super::exception::Fault;
use super::mmu::{FetchTlb, Mmu, Tlb};
use super::op::Op;
use super::run::Exit;
use super::shared::VcpuShared;
use super::sysreg::SysRegs;
use crate::control::{self, Counters};
use crate::machine::Machine;

/// Marker of a synchronous exception in the making; what it is stands in [`Cpu::fault`]. Zero-sized, so that the good path
/// of a memory access costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct Trap;

/// With whose rights an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The current exception level's.
    Current,
    /// EL0's (LDTR, STTR and the like; at EL0 the same as `Current`).
    Unprivileged,
}

/// The local exclusive monitor. A store-exclusive succeeds when the monitor is armed for the same bytes and these still
/// hold the value that was loaded (checked by a host compare-and-exchange).
#[derive(Clone, Copy, Debug, Default)]
pub struct Exclusive {
    /// A load-exclusive armed the monitor and nothing cleared it since.
    pub armed: bool,
    /// Size of the marked access in bytes (both registers of a pair together).
    pub size: u8,
    /// Host address of the marked bytes, as [`Cpu::atomic_ptr`] gave it.
    pub addr: usize,
    /// The value loaded.
    pub value: u128,
}

/// Architectural state of one vCPU. Hot fields first.
#[repr(C)]
pub struct Cpu {
    /// X0..X30, ZR, SP, sink: see [`super::op::slot`]. `x[31]` is always zero.
    pub x: [u64; 34],
    /// Next instruction, valid between blocks. Inside a block use [`Cpu::pc_of`].
    pub pc: u64,
    /// Guest virtual address of the running block's first instruction.
    pub block_va: u64,
    /// N is bit 63 of this.
    pub nf: u64,
    /// Z is set when this is zero.
    pub zf: u64,
    /// C, 0 or 1.
    pub cf: u64,
    /// V, 0 or 1.
    pub vf: u64,
    /// Data TLB of the current exception level (and PSTATE.PAN).
    pub(crate) tlb: *const Tlb,
    /// Data TLB for [`Privilege::Unprivileged`].
    pub(crate) tlb_unprivileged: *const Tlb,
    /// Fetch TLB of the current exception level.
    pub(crate) fetch: *const FetchTlb,
    /// Instructions that may still retire before the run loop must look at clock and limit.
    pub(crate) budget: i64,
    /// A block may go straight on to its successor while `budget` stays at least this after it.
    pub(crate) chain_floor: i64,
    /// The running block.
    pub(crate) block: *const Block,
    /// Misaligned bits of SP that fault: 15 when SCTLR_EL1.SA/SA0 says so for the current exception level, else 0.
    pub sp_align_mask: u64,
    /// The bits of [`VcpuShared::pending`] that interrupt execution now (masked interrupts are not among them).
    pub(crate) poll_mask: u32,
    /// FP/SIMD instructions execute at the current exception level (CPACR_EL1.FPEN).
    pub fp_enabled: bool,
    /// PSTATE.EL: 0 or 1.
    pub el: u8,
    /// PSTATE.SP.
    pub sp_sel: u8,
    /// PSTATE.{D,A,I,F} as bits 3..0.
    pub daif: u8,
    /// V0..V31.
    pub v: [u128; 32],
    /// Floating-point control.
    pub fpcr: u32,
    /// Floating-point status (cumulative exception flags and QC).
    pub fpsr: u32,
    /// PSTATE.PAN.
    pub pan: bool,
    /// PSTATE.SSBS.
    pub ssbs: bool,
    /// PSTATE.IL.
    pub il: bool,
    /// PSTATE.SS.
    pub ss: bool,
    /// Where pointer authentication codes go.
    pub(crate) code_bits: super::a64::pauth::CodeBits,
    /// The local exclusive monitor.
    pub exclusive: Exclusive,
    /// System registers. After writing one directly call [`Cpu::refresh`].
    pub sys: SysRegs,
    /// SP_EL0 and SP_EL1; the one in use lives in `x[slot::SP]` and is stale here.
    pub(crate) sp_bank: [u64; 2],
    /// The synchronous exception in the making, valid while a [`Trap`] is on its way.
    pub fault: Fault,
    /// Why the run loop was left, valid after [`super::op::Next::Stop`].
    pub(crate) exit: Exit,
    /// Instructions retired when `budget` reaches zero.
    pub(crate) slice_end: u64,
    /// Instructions retired when the shared view was last brought up to date.
    pub(crate) published: u64,
    /// What the next DSB waits for.
    pub(crate) awaited: Vec<super::shared::Awaited>,
    /// Debug exceptions go to the host (`hv_vcpu_set_trap_debug_exceptions`).
    pub trap_debug_exceptions: bool,
    /// Debug register accesses go to the host (`hv_vcpu_set_trap_debug_reg_accesses`).
    pub trap_debug_reg_accesses: bool,
    /// The run loop executes instruction by instruction: software step or self-hosted debug is active.
    pub(crate) slow_mode: bool,
    /// The next instruction must be executed alone in its block.
    pub(crate) single: bool,
    /// The slice must end exactly, not at the end of the block that uses it up.
    pub(crate) exact: bool,
    /// What the last software step did.
    pub(crate) stepped: super::debug::Stepped,
    /// Instructions retired when the guest last said that it spins.
    pub(crate) last_spin: u64,
    /// How often it has said so in a row.
    pub(crate) spins: u32,
    /// PC is on a WFI that has not been left yet.
    pub(crate) waiting: bool,
    /// An access has met memory on which it hangs, and an exit request has ended that.
    pub(crate) hung: bool,
    /// Bits of physical address (ID_AA64MMFR0_EL1.PARange).
    pub(crate) pa_bits: u32,
    /// The virtual timer.
    pub(crate) timer: super::timer::VirtualTimer,
    pub(crate) mmu: Box<Mmu>,
    pub(crate) code: CodeCache,
    /// Instruction count and limit, as the host sees them.
    pub(crate) counters: Arc<Counters>,
    /// The part of this vCPU other threads reach.
    pub shared: Arc<VcpuShared>,
    /// What the vCPUs have in common.
    pub machine: Arc<Machine>,
}

/// ID_AA64MMFR0_EL1.PARange for an IPA size, and the physical address size it stands for.
fn pa_range(ipa_bits: u32) -> (u64, u32) {
    const SIZES: [u32; 6] = [32, 36, 40, 42, 44, 48];
    let range = SIZES.iter().rposition(|&size| size <= ipa_bits).unwrap_or(0);
    (range as u64, SIZES[range])
}

impl Cpu {
    /// A vCPU in reset state: EL1h, everything masked, MMU off.
    pub fn new(machine: Arc<Machine>, shared: Arc<VcpuShared>) -> Box<Cpu> {
        let mut mmu = Mmu::new(shared.spaces.clone());
        let (tlb, fetch) = mmu.reset_tables();
        let counters = control::counters(shared.index);
        counters.instructions.store(0, Ordering::SeqCst);
        let (pa_range, pa_bits) = pa_range(machine.ipa_bits);
        let mut sys = SysRegs::reset();
        sys.id_aa64mmfr0 |= pa_range;
        sys.mpidr |= shared.index as u64;
        let mut cpu = Box::new(Cpu {
            x: [0; 34],
            pc: 0,
            block_va: 0,
            nf: 0,
            zf: 1,
            cf: 0,
            vf: 0,
            tlb,
            tlb_unprivileged: tlb,
            fetch,
            budget: 0,
            chain_floor: i64::MAX,
            block: std::ptr::null(),
            sp_align_mask: 0,
            poll_mask: 0,
            fp_enabled: false,
            el: 1,
            sp_sel: 1,
            daif: 15,
            v: [0; 32],
            fpcr: 0,
            fpsr: 0,
            pan: false,
            ssbs: false,
            il: false,
            ss: false,
            code_bits: Default::default(),
            exclusive: Exclusive::default(),
            sys,
            sp_bank: [0; 2],
            fault: Fault::None,
            exit: Exit::Canceled,
            slice_end: 0,
            published: 0,
            awaited: Vec::new(),
            trap_debug_exceptions: false,
            trap_debug_reg_accesses: false,
            slow_mode: false,
            single: false,
            exact: false,
            stepped: Default::default(),
            last_spin: 0,
            spins: 0,
            waiting: false,
            hung: false,
            pa_bits,
            timer: super::timer::VirtualTimer::default(),
            mmu,
            code: CodeCache::default(),
            counters,
            shared,
            machine,
        });
        cpu.refresh();
        cpu
    }

    /// Guest virtual address of the instruction `op` stands for.
    ///
    /// # Safety
    /// `op` is inside the running block.
    #[inline(always)]
    pub unsafe fn pc_of(&self, op: *const Op) -> u64 {
        // SAFETY: the caller's promise.
        self.block_va.wrapping_add(u64::from(unsafe { (*op).off }))
    }

    /// PSTATE.{N,Z,C,V} as bits 3..0.
    #[inline]
    pub fn nzcv(&self) -> u32 {
        ((self.nf >> 63) as u32) << 3 | u32::from(self.zf == 0) << 2 | (self.cf as u32) << 1 | self.vf as u32
    }

    /// Sets PSTATE.{N,Z,C,V} from bits 3..0.
    #[inline]
    pub fn set_nzcv(&mut self, nzcv: u32) {
        self.nf = u64::from(nzcv >> 3 & 1) << 63;
        self.zf = u64::from(nzcv >> 2 & 1 ^ 1);
        self.cf = u64::from(nzcv >> 1 & 1);
        self.vf = u64::from(nzcv & 1);
    }

    /// `ConditionHolds(cond)`, cond in bits 3..0.
    #[inline(always)]
    pub fn condition_holds(&self, cond: u32) -> bool {
        let n = (self.nf as i64) < 0;
        let z = self.zf == 0;
        let (c, v) = (self.cf != 0, self.vf != 0);
        let holds = match cond >> 1 & 7 {
            0 => z,
            1 => c,
            2 => n,
            3 => v,
            4 => c && !z,
            5 => n == v,
            6 => n == v && !z,
            _ => return true,
        };
        holds != (cond & 1 == 1)
    }

    /// `CheckSPAlignment()`: call before using SP as the base of a load or store.
    #[inline(always)]
    pub fn check_sp_alignment(&mut self) -> Result<(), Trap> {
        if self.x[usize::from(super::op::slot::SP)] & self.sp_align_mask != 0 {
            return Err(self.sp_alignment_fault());
        }
        Ok(())
    }
}
