//! The engine side: a vCPU of the genuine `applevisor`, running the cases at EL0 behind an identity translation.
//!
//! EL1 holds only what the cases need: page tables that map code and scratch memory where the reference has them, vectors
//! that turn every exception into an `HVC` exit, and a stub that makes freshly written code visible to instruction fetch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use applevisor::prelude::{
    ExitReason, GicDisabled, HypervisorError, MemPerms, Memory, Reg, SimdFpReg, SysReg, Vcpu, VcpuHandle,
    VirtualMachine, VirtualMachineInstance,
};

use crate::case::{
    CODE_BASE, CODE_LEN, Case, End, Outcome, READ_ONLY_BASE, READ_ONLY_LEN, SCRATCH_BASE, SCRATCH_LEN, SLOT, State,
    WINDOW_BASE, WINDOW_LEN,
};
use crate::reference::Error;

/// Page tables, vectors and the stub.
const SUPER_BASE: u64 = 0x4000_0000;
const SUPER_LEN: usize = 0x1_0000;
const VECTORS: u64 = SUPER_BASE;
const STUB: u64 = SUPER_BASE + 0x800;
const TABLES: u64 = SUPER_BASE + 0x4000;
/// The immediate of the vectors' `HVC`; the stub's is 1.
const HVC_VECTOR: u32 = 0xd400_0002;
const HVC_STUB: u32 = 0xd400_0022;
const HVC_SYNDROME: u64 = 0x5a00_0000;

/// `ic ialluis; tlbi vmalle1is; dsb ish; isb; hvc #1`.
const STUB_CODE: [u32; 5] = [0xd508_711f, 0xd508_831f, 0xd503_3b9f, 0xd503_3fdf, HVC_STUB];

// SCTLR_EL1: M, C, I; DZE, UCT, UCI, nTWI, nTWE (EL0 may do what it may do under Linux); the bits that are RES1 in ARMv8.0.
// SA0 is clear: qemu's user mode does not check the alignment of SP.
const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 18 | 1 << 26;
/// SCTLR_EL1.{EnIA, EnIB, EnDA, EnDB}.
const SCTLR_PAUTH: u64 = 1 << 31 | 1 << 30 | 1 << 27 | 1 << 13;
// TCR_EL1: 48 bits, 4 KiB granule, inner shareable write-back walks, no TTBR1, 40-bit addresses, top byte ignored.
const TCR: u64 = 16 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32 | 1 << 37;
/// CNTKCTL_EL1: the virtual counter for EL0, not the physical one.
const EL0VCTEN: u64 = 1 << 1;
const PSTATE_EL0T: u64 = 0x3c0;
const PSTATE_EL1H: u64 = 0x3c5;

const PAGE: u64 = 0x1000;
const AF_SHAREABLE_PAGE: u64 = 1 << 10 | 3 << 8 | 3;
const EL0_RW: u64 = 1 << 6;
const EL1_RO: u64 = 2 << 6;
const EL0_RO: u64 = 3 << 6;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;

const X: [Reg; 31] = [
    Reg::X0,
    Reg::X1,
    Reg::X2,
    Reg::X3,
    Reg::X4,
    Reg::X5,
    Reg::X6,
    Reg::X7,
    Reg::X8,
    Reg::X9,
    Reg::X10,
    Reg::X11,
    Reg::X12,
    Reg::X13,
    Reg::X14,
    Reg::X15,
    Reg::X16,
    Reg::X17,
    Reg::X18,
    Reg::X19,
    Reg::X20,
    Reg::X21,
    Reg::X22,
    Reg::X23,
    Reg::X24,
    Reg::X25,
    Reg::X26,
    Reg::X27,
    Reg::X28,
    Reg::X29,
    Reg::X30,
];

const Q: [SimdFpReg; 32] = [
    SimdFpReg::Q0,
    SimdFpReg::Q1,
    SimdFpReg::Q2,
    SimdFpReg::Q3,
    SimdFpReg::Q4,
    SimdFpReg::Q5,
    SimdFpReg::Q6,
    SimdFpReg::Q7,
    SimdFpReg::Q8,
    SimdFpReg::Q9,
    SimdFpReg::Q10,
    SimdFpReg::Q11,
    SimdFpReg::Q12,
    SimdFpReg::Q13,
    SimdFpReg::Q14,
    SimdFpReg::Q15,
    SimdFpReg::Q16,
    SimdFpReg::Q17,
    SimdFpReg::Q18,
    SimdFpReg::Q19,
    SimdFpReg::Q20,
    SimdFpReg::Q21,
    SimdFpReg::Q22,
    SimdFpReg::Q23,
    SimdFpReg::Q24,
    SimdFpReg::Q25,
    SimdFpReg::Q26,
    SimdFpReg::Q27,
    SimdFpReg::Q28,
    SimdFpReg::Q29,
    SimdFpReg::Q30,
    SimdFpReg::Q31,
];

/// A VM with one vCPU, made and used on one thread. There can be one in a process.
pub struct Engine {
    watchdog: Watchdog,
    vcpu: Vcpu,
    code: Memory,
    scratch: Memory,
    _read_only: Memory,
    _super: Memory,
    _vm: VirtualMachineInstance<GicDisabled>,
}

fn refused(what: &'static str) -> impl FnOnce(HypervisorError) -> Error {
    move |code| Error::Engine { what, code }
}

impl Engine {
    /// Builds the VM.
    pub fn new() -> Result<Engine, Error> {
        let vm = VirtualMachine::new().map_err(refused("a virtual machine"))?;
        let map = |base: u64, len: usize| -> Result<Memory, HypervisorError> {
            let mut memory = vm.memory_create(len)?;
            memory.map(base, MemPerms::ReadWriteExec)?;
            Ok(memory)
        };
        let code = map(CODE_BASE, CODE_LEN).map_err(refused("the code area"))?;
        let scratch = map(SCRATCH_BASE, SCRATCH_LEN).map_err(refused("the scratch area"))?;
        let read_only = map(READ_ONLY_BASE, READ_ONLY_LEN).map_err(refused("the read-only area"))?;
        let mut supervisor = map(SUPER_BASE, SUPER_LEN).map_err(refused("the supervisor area"))?;
        fill_supervisor(&mut supervisor).map_err(refused("a write to the supervisor area"))?;
        let vcpu = vm.vcpu_create().map_err(refused("a vCPU"))?;
        for (register, value) in [
            (SysReg::SCTLR_EL1, SCTLR),
            (SysReg::CPACR_EL1, 3 << 20),
            (SysReg::MAIR_EL1, 0xff),
            (SysReg::TCR_EL1, TCR),
            (SysReg::TTBR0_EL1, TABLES),
            (SysReg::VBAR_EL1, VECTORS),
            (SysReg::CNTKCTL_EL1, EL0VCTEN),
        ] {
            vcpu.set_sys_reg(register, value).map_err(refused("a system register"))?;
        }
        let watchdog = Watchdog::start(vm.clone(), vcpu.get_handle());
        Ok(Engine { vcpu, code, scratch, _read_only: read_only, _super: supervisor, watchdog, _vm: vm })
    }

    /// Turns the pointer-authentication keys on or off.
    pub fn set_pointer_authentication(&mut self, on: bool) -> Result<(), Error> {
        let value = if on { SCTLR | SCTLR_PAUTH } else { SCTLR };
        self.vcpu.set_sys_reg(SysReg::SCTLR_EL1, value).map_err(refused("SCTLR_EL1"))
    }

    /// Runs a batch of cases, each in the slot its `pc` names.
    pub fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Error> {
        self.load_code(cases).map_err(refused("a batch of code"))?;
        cases.iter().map(|case| self.run_case(case).map_err(refused("a case"))).collect()
    }

    fn load_code(&mut self, cases: &[Case]) -> Result<(), HypervisorError> {
        for case in cases {
            self.code.write(case.state.pc, &case.slot())?;
        }
        self.vcpu.set_reg(Reg::PC, STUB)?;
        self.vcpu.set_reg(Reg::CPSR, PSTATE_EL1H)?;
        self.watchdog.guard(|| self.vcpu.run())?;
        let exit = self.vcpu.get_exit_info();
        assert_eq!(exit.exception.syndrome, HVC_SYNDROME | 1, "the cache maintenance stub runs to its HVC");
        Ok(())
    }

    fn run_case(&mut self, case: &Case) -> Result<Outcome, HypervisorError> {
        self.scratch.write(WINDOW_BASE, &case.window)?;
        self.load_state(&case.state)?;
        self.watchdog.guard(|| self.vcpu.run())?;
        let (end, pc, fault, pstate) = self.read_end()?;
        let mut window = vec![0; WINDOW_LEN];
        self.scratch.read(WINDOW_BASE, &mut window)?;
        Ok(Outcome { end, state: self.save_state(pc, pstate)?, fault, window })
    }

    fn load_state(&self, state: &State) -> Result<(), HypervisorError> {
        for (register, value) in X.iter().zip(state.x) {
            self.vcpu.set_reg(*register, value)?;
        }
        for (register, value) in Q.iter().zip(state.v) {
            self.vcpu.set_simd_fp_reg(*register, value)?;
        }
        self.vcpu.set_reg(Reg::PC, state.pc)?;
        self.vcpu.set_reg(Reg::CPSR, PSTATE_EL0T | u64::from(state.nzcv))?;
        self.vcpu.set_reg(Reg::FPCR, u64::from(state.fpcr))?;
        self.vcpu.set_reg(Reg::FPSR, u64::from(state.fpsr))?;
        self.vcpu.set_sys_reg(SysReg::SP_EL0, state.sp)
    }

    fn save_state(&self, pc: u64, pstate: u64) -> Result<State, HypervisorError> {
        let mut state = State {
            x: [0; 31],
            sp: self.vcpu.get_sys_reg(SysReg::SP_EL0)?,
            pc,
            nzcv: pstate as u32 & 0xf000_0000,
            fpcr: self.vcpu.get_reg(Reg::FPCR)? as u32,
            fpsr: self.vcpu.get_reg(Reg::FPSR)? as u32,
            v: [0; 32],
        };
        for (register, value) in X.iter().zip(&mut state.x) {
            *value = self.vcpu.get_reg(*register)?;
        }
        for (register, value) in Q.iter().zip(&mut state.v) {
            *value = self.vcpu.get_simd_fp_reg(*register)?;
        }
        Ok(state)
    }

    /// Why the case ended: kind, PC, faulting address, PSTATE.
    fn read_end(&self) -> Result<(End, u64, u64, u64), HypervisorError> {
        let exit = self.vcpu.get_exit_info();
        if exit.reason != ExitReason::EXCEPTION {
            return Ok((End::Other(exit.reason as u64), self.vcpu.get_reg(Reg::PC)?, 0, self.vcpu.get_reg(Reg::CPSR)?));
        }
        // An exception taken to EL1 ends in the vectors' HVC; what goes straight to the host is told apart by its class.
        if exit.exception.syndrome == HVC_SYNDROME {
            let get = |register| self.vcpu.get_sys_reg(register);
            let end = classify(get(SysReg::ESR_EL1)?);
            return Ok((end, get(SysReg::ELR_EL1)?, get(SysReg::FAR_EL1)?, get(SysReg::SPSR_EL1)?));
        }
        let end = classify(exit.exception.syndrome);
        Ok((end, self.vcpu.get_reg(Reg::PC)?, exit.exception.virtual_address, self.vcpu.get_reg(Reg::CPSR)?))
    }
}

/// What a syndrome is, in the reference's terms.
fn classify(syndrome: u64) -> End {
    let fault_status = syndrome & 0x3f;
    match syndrome >> 26 & 0x3f {
        0x3c => End::Breakpoint,
        // Linux answers a trapped EL0 access to a system register with SIGILL, like an UNDEFINED instruction.
        0x00 | 0x18 => End::Undefined,
        0x24 | 0x25 if fault_status == 0x21 => End::Alignment,
        0x20 | 0x21 | 0x24 | 0x25 => End::Abort,
        0x22 => End::PcAlignment,
        _ => End::Other(syndrome),
    }
}

fn fill_supervisor(memory: &mut Memory) -> Result<(), HypervisorError> {
    for vector in 0..16 {
        memory.write_u32(VECTORS + vector * 0x80, HVC_VECTOR)?;
    }
    for (i, word) in (0..).zip(STUB_CODE) {
        memory.write_u32(STUB + 4 * i, word)?;
    }
    let table = |n: u64| TABLES + n * PAGE;
    // Everything is in the first GiB-sized slots of one level 2 table: level 0, 1, 2, then level 3 tables; the last two areas share one.
    memory.write_u64(table(0), table(1) | 3)?;
    memory.write_u64(table(1) + 8 * (SUPER_BASE >> 30), table(2) | 3)?;
    for (n, base, len, flags) in [
        (3, SUPER_BASE, SUPER_LEN, EL1_RO | UXN),
        (4, CODE_BASE, CODE_LEN, EL0_RW | PXN),
        (5, SCRATCH_BASE, SCRATCH_LEN, EL0_RW | PXN | UXN),
        (5, READ_ONLY_BASE, READ_ONLY_LEN, EL0_RO | PXN | UXN),
    ] {
        memory.write_u64(table(2) + 8 * (base >> 21 & 0x1ff), table(n) | 3)?;
        for page in 0..len as u64 / PAGE {
            let address = base + page * PAGE;
            memory.write_u64(table(n) + 8 * (address >> 12 & 0x1ff), address | flags | AF_SHAREABLE_PAGE)?;
        }
    }
    Ok(())
}

/// Ends a run that does not end by itself: no case contains a loop, so a long one is a defect of the engine.
struct Watchdog {
    /// Odd while a case runs.
    epoch: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    fn start(vm: VirtualMachineInstance<GicDisabled>, handle: VcpuHandle) -> Watchdog {
        let epoch = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (watched, stopped) = (epoch.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut last = 0;
            while !stopped.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_secs(10));
                let now = watched.load(Ordering::Relaxed);
                if now == last && now & 1 == 1 {
                    // A vCPU that is gone has nothing to be stopped.
                    let _ = vm.vcpus_exit(std::slice::from_ref(&handle));
                }
                last = now;
            }
        });
        Watchdog { epoch, stop, thread: Some(thread) }
    }

    fn guard<T>(&self, run: impl FnOnce() -> T) -> T {
        self.epoch.fetch_add(1, Ordering::Relaxed);
        let result = run();
        self.epoch.fetch_add(1, Ordering::Relaxed);
        result
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread holds a reference to the VM, which must be gone when the engine is.
            let _ = thread.join();
        }
    }
}

const _: () = assert!(CODE_BASE >> 30 == SUPER_BASE >> 30 && SCRATCH_BASE >> 30 == SUPER_BASE >> 30);
const _: () = assert!(READ_ONLY_BASE >> 21 == SCRATCH_BASE >> 21);
const _: () = assert!(CODE_LEN <= 1 << 21 && SLOT.is_multiple_of(4));
