//! A small guest: one page of code, some RAM, one vCPU on this thread, and a watchdog around every run.

use std::ffi::c_void;
use std::fmt::Display;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use applevisor::prelude::*;

use crate::asm::hvc;

/// Where RAM is.
pub const RAM: u64 = 0x4000_0000;
/// How much of it there is.
pub const RAM_SIZE: u64 = 0x10_0000;
/// Free for data.
pub const DATA: u64 = RAM + 0x4_0000;
/// The exception vectors, when a test has some.
pub const VECTORS: u64 = RAM + 0x8_0000;
/// What the vectors say where a test has nothing of its own: an exception that the guest should not have met, by its place in the table.
const UNEXPECTED: u32 = 0xee00;
/// Nothing is mapped here.
pub const NOWHERE: u64 = 0x2000_0000;

/// GIC addresses.
pub const GICD: u64 = 0x0800_0000;
pub const GICR: u64 = 0x1000_0000;
pub const MSI: u64 = 0x0900_0000;
/// MSIs take so many of the last SPIs.
pub const MSI_COUNT: u32 = 40;

/// No run of these guests takes this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a guest is watched that is expected to do nothing.
const A_MOMENT: Duration = Duration::from_millis(10);
/// How many of them it takes to believe it.
const MOMENTS: u32 = 10;
/// An `hv_vcpus_exit` that nothing has come of for so long is taken for lost.
const LOST: Duration = Duration::from_millis(200);
/// What is done [`alone`] ends in this time, or is ended.
const ALONE_FOR: Duration = Duration::from_secs(60);
/// How often, and how long apart, a busy framework is asked again.
const BUSY_TRIES: u32 = 400;
const BUSY_WAIT: Duration = Duration::from_millis(5);

/// Exception classes (ESR_EL2.EC).
pub mod ec {
    pub const WFX: u64 = 0x01;
    pub const HVC: u64 = 0x16;
    pub const SMC: u64 = 0x17;
    pub const SYSTEM_REGISTER: u64 = 0x18;
    pub const INSTRUCTION_ABORT: u64 = 0x20;
    pub const DATA_ABORT: u64 = 0x24;
    pub const BREAKPOINT: u64 = 0x30;
    pub const SOFTWARE_STEP: u64 = 0x32;
    pub const WATCHPOINT: u64 = 0x34;
    pub const BRK: u64 = 0x3c;
}

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The right to have the process's virtual machine. Dropped last: the machine is gone before the next turn.
pub struct Turn(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Turn {
    pub fn take() -> Turn {
        Turn(ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        really_destroyed();
    }
}

/// The machine, just dropped, is gone, even where `hv_vm_destroy` says busy for a while: the binding does not ask again.
pub fn really_destroyed() {
    for _ in 0..BUSY_TRIES {
        // SAFETY: nothing of the machine is used any more; usually there is none.
        if unsafe { applevisor_sys::hv_vm_destroy() } != applevisor_sys::hv_error_t::HV_BUSY as i32 {
            return;
        }
        thread::sleep(BUSY_WAIT);
    }
}

/// Says what was found where the facts leave it open; `make conformance-report` collects it.
pub fn probe(what: &str, found: impl Display) {
    println!("probe: {what}: {found}");
}

/// Says where this machine has a switch of the stand-in, for the same report.
pub fn switch(key: &str, position: impl Display) {
    println!("{}", squib_tests::switches::line(key, &position.to_string()));
}

/// The same of a switch that is off or on.
pub fn switch_is_on(key: &str, on: bool) {
    switch(key, if on { "on" } else { "off" });
}

/// The name of a return code.
pub fn name(code: i32) -> String {
    use applevisor_sys::hv_error_t::*;
    let known = [
        (HV_SUCCESS as i32, "HV_SUCCESS"),
        (HV_ERROR as i32, "HV_ERROR"),
        (HV_BUSY as i32, "HV_BUSY"),
        (HV_BAD_ARGUMENT as i32, "HV_BAD_ARGUMENT"),
        (HV_ILLEGAL_GUEST_STATE as i32, "HV_ILLEGAL_GUEST_STATE"),
        (HV_NO_RESOURCES as i32, "HV_NO_RESOURCES"),
        (HV_NO_DEVICE as i32, "HV_NO_DEVICE"),
        (HV_DENIED as i32, "HV_DENIED"),
        (HV_FAULT as i32, "HV_FAULT"),
        (HV_UNSUPPORTED as i32, "HV_UNSUPPORTED"),
    ];
    known.iter().find(|(known, _)| *known == code).map_or(format!("{code:#x}"), |(_, name)| (*name).to_owned())
}

/// Tries again while the framework is busy.
pub fn patiently<T>(mut create: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..BUSY_TRIES {
        match create() {
            Err(HypervisorError::Busy) => thread::sleep(BUSY_WAIT),
            result => return result,
        }
    }
    Err(HypervisorError::Busy)
}

/// Says to a copy of this program that it is one.
const ALONE: &str = "SQUIB_CONFORMANCE_ALONE";

/// What became of a process that did something alone.
#[derive(Debug, PartialEq)]
pub enum Alone {
    /// It ended by itself.
    Ended,
    /// The system ended it.
    Killed,
    /// It did not end.
    Endless,
}

/// Does what may never come back, or be punished by the system, in a process of its own: a copy of this program that runs nothing
/// but `test`, the test that calls this. What it says is said here. Sooner or later it is ended.
pub fn alone(test: &str, what: impl FnOnce()) -> Alone {
    alone_for(ALONE_FOR, test, what)
}

fn alone_for(limit: Duration, test: &str, what: impl FnOnce()) -> Alone {
    if std::env::var_os(ALONE).is_some() {
        what();
        return Alone::Ended;
    }
    let mut copy = Command::new(std::env::current_exe().unwrap());
    let copy = copy.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ALONE, "1");
    let mut copy = copy.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let collect = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut said = Vec::new();
            // What was said before an error counts.
            let _ = from.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        })
    };
    let said = collect(Box::new(copy.stdout.take().unwrap()));
    let errors = collect(Box::new(copy.stderr.take().unwrap()));
    let start = Instant::now();
    let ended = loop {
        match copy.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if start.elapsed() > limit => {
                copy.kill().unwrap();
                copy.wait().unwrap();
                break None;
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    let (said, errors) = (said.join().unwrap(), errors.join().unwrap());
    for line in said.lines().filter(|line| line.contains("probe: ") || line.contains("switch: ")) {
        println!("{line}");
    }
    match ended {
        None => Alone::Endless,
        Some(status) if status.signal().is_some() => Alone::Killed,
        Some(status) => {
            assert!(status.success() && said.contains("1 passed"), "alone, {status}: {said}{errors}");
            Alone::Ended
        }
    }
}

#[test]
fn what_does_not_end_alone_is_ended() {
    let test = "guest::what_does_not_end_alone_is_ended";
    let ended = alone_for(Duration::from_secs(1), test, || thread::sleep(Duration::from_secs(600)));
    assert_eq!(ended, Alone::Endless);
}

#[test]
fn what_is_killed_alone_is_killed_alone() {
    let ended = alone("guest::what_is_killed_alone_is_killed_alone", || std::process::abort());
    assert_eq!(ended, Alone::Killed);
}

/// All that does not hold, as one failure: a report shall not know of the first only.
#[track_caller]
pub fn nothing_of(failures: Vec<String>) {
    assert!(failures.is_empty(), "{}", failures.join("; "));
}

/// A virtual machine without a GIC.
pub fn machine() -> VirtualMachineInstance<GicDisabled> {
    patiently(VirtualMachine::new).unwrap()
}

/// A virtual machine with a GIC, as these tests have it.
pub fn gic_machine() -> VirtualMachineInstance<GicEnabled> {
    patiently(|| VirtualMachine::with_gic(VirtualMachineConfig::new(), gic_config())).unwrap()
}

/// A guest with its vCPU on this thread. Fields are dropped in this order.
pub struct Guest<G> {
    pub vcpu: Vcpu,
    pub ram: Memory,
    pub vm: VirtualMachineInstance<G>,
    _turn: Turn,
}

/// The first of the MSIs.
pub fn msi_first() -> u32 {
    let (first, count) = GicConfig::get_spi_interrupt_range().unwrap();
    first + count - MSI_COUNT
}

/// The GIC as these tests have it.
pub fn gic_config() -> GicConfig {
    let mut config = GicConfig::new();
    config.set_distributor_base(GICD).unwrap();
    config.set_redistributor_base(GICR).unwrap();
    config.set_msi_region_base(MSI).unwrap();
    config.set_msi_interrupt_range(msi_first(), MSI_COUNT).unwrap();
    config
}

/// A guest without a GIC, about to execute `code`.
pub fn guest(code: &[u32]) -> Guest<GicDisabled> {
    let turn = Turn::take();
    Guest::with(turn, machine(), code)
}

/// A guest with a GIC, MPIDR 0, about to execute `code`.
pub fn gic_guest(code: &[u32]) -> Guest<GicEnabled> {
    let turn = Turn::take();
    let guest = Guest::with(turn, gic_machine(), code);
    guest.vcpu.set_sys_reg(SysReg::MPIDR_EL1, 0x8000_0000).unwrap();
    guest
}

impl<G> Guest<G> {
    /// A guest in a virtual machine that is already there.
    pub fn with(turn: Turn, vm: VirtualMachineInstance<G>, code: &[u32]) -> Guest<G> {
        let mut ram = vm.memory_create(RAM_SIZE as usize).unwrap();
        ram.map(RAM, MemPerms::RWX).unwrap();
        for vector in 0..16 {
            write_code(&mut ram, VECTORS + 0x80 * u64::from(vector), &[hvc(UNEXPECTED + vector)]);
        }
        write_code(&mut ram, RAM, code);
        let vcpu = vm.vcpu_create().unwrap();
        prepare(&vcpu, RAM);
        Guest { vcpu, ram, vm, _turn: turn }
    }

    /// Runs to the next exit.
    pub fn run(&self) -> VcpuExit {
        run(&self.vm, &self.vcpu)
    }

    /// Runs until `during`, done a moment later on another thread, has happened and the vCPU was told to exit.
    pub fn run_stopped(&self, during: impl FnOnce() + Send) -> VcpuExit {
        run_watched(&self.vm, &self.vcpu, Waiting::IsTheEnd, A_MOMENT, during)
    }

    /// Runs to the next exit, or finds that none comes (`CANCELED`). A busy host may let one moment pass before the guest has begun;
    /// not several.
    pub fn run_or_give_up(&self) -> VcpuExit {
        let pc = self.pc();
        for _ in 0..MOMENTS {
            if self.run_stopped(|| ()).reason != ExitReason::CANCELED {
                break;
            }
            self.vcpu.set_reg(Reg::PC, pc).unwrap();
        }
        self.vcpu.get_exit_info()
    }

    /// Runs for a moment, or to an exit that is not about waiting.
    pub fn run_on_stopped(&self) -> VcpuExit {
        run_watched(&self.vm, &self.vcpu, Waiting::GoesOn, A_MOMENT, || ())
    }

    /// Runs to the next exit that is not about waiting.
    pub fn run_on(&self) -> VcpuExit {
        run_on(&self.vm, &self.vcpu)
    }

    /// Runs to `HVC #imm`, over exits that are about waiting.
    #[track_caller]
    pub fn run_to(&self, imm: u64) {
        let exit = self.run_on();
        self.is_hvc(exit, imm);
    }

    /// Runs to the next exit, whatever it is about, which must be `HVC #imm`.
    #[track_caller]
    pub fn run_straight_to(&self, imm: u64) {
        let exit = self.run();
        self.is_hvc(exit, imm);
    }

    #[track_caller]
    fn is_hvc(&self, exit: VcpuExit, imm: u64) {
        let wanted = (ExitReason::EXCEPTION, hvc_syndrome(imm));
        assert_eq!((exit.reason, exit.exception.syndrome), wanted, "{}", self.dump());
    }

    /// Runs to the next exit, which must be an exception of this class, and returns it.
    #[track_caller]
    pub fn run_to_class(&self, class: u64) -> VcpuExitException {
        let exit = self.run();
        assert_eq!(exit.reason, ExitReason::EXCEPTION, "{}", self.dump());
        assert_eq!(exit.exception.syndrome >> 26, class, "{:#x}: {}", exit.exception.syndrome, self.dump());
        exit.exception
    }

    pub fn pc(&self) -> u64 {
        self.vcpu.get_reg(Reg::PC).unwrap()
    }

    /// Steps over the instruction at PC.
    pub fn skip(&self) {
        self.vcpu.set_reg(Reg::PC, self.pc() + 4).unwrap();
    }

    pub fn x(&self, register: Reg) -> u64 {
        self.vcpu.get_reg(register).unwrap()
    }

    pub fn write_code(&mut self, at: u64, code: &[u32]) {
        write_code(&mut self.ram, at, code);
    }

    pub fn dump(&self) -> String {
        let exit = self.vcpu.get_exit_info();
        let mut text = format!("pc {:#x}, x0 {:#x}, {exit:?}", self.pc(), self.x(Reg::X0));
        if exit.exception.syndrome & !0xf == hvc_syndrome(UNEXPECTED.into()) {
            let [esr, elr, far] =
                [SysReg::ESR_EL1, SysReg::ELR_EL1, SysReg::FAR_EL1].map(|register| self.vcpu.get_sys_reg(register));
            let vector = 0x80 * (exit.exception.syndrome & 0xf);
            text += &format!(
                ": the guest took an exception by vector {vector:#x}, ESR {esr:x?}, ELR {elr:x?}, FAR {far:x?}"
            );
        }
        text
    }
}

/// X0 to X30.
pub const GENERAL: [Reg; 31] = {
    use applevisor_sys::hv_reg_t::*;
    [
        X0, X1, X2, X3, X4, X5, X6, X7, X8, X9, X10, X11, X12, X13, X14, X15, X16, X17, X18, X19, X20, X21, X22, X23,
        X24, X25, X26, X27, X28, X29, X30,
    ]
};

/// ESR_EL2 of `HVC #imm`.
pub fn hvc_syndrome(imm: u64) -> u64 {
    ec::HVC << 26 | 1 << 25 | imm
}

/// EL1h, everything masked, at `pc`, X0 to X30 zero; FP allowed.
pub fn prepare(vcpu: &Vcpu, pc: u64) {
    GENERAL.iter().for_each(|&register| vcpu.set_reg(register, 0).unwrap());
    vcpu.set_reg(Reg::PC, pc).unwrap();
    vcpu.set_reg(Reg::CPSR, 0x3c5).unwrap();
    vcpu.set_sys_reg(SysReg::CPACR_EL1, 3 << 20).unwrap();
    vcpu.set_sys_reg(SysReg::VBAR_EL1, VECTORS).unwrap();
}

/// Sets a vector register. Its value travels in q0 on Apple silicon, where the type is a vector, whatever the binding says.
pub fn set_q(vcpu: &Vcpu, register: SimdFpReg, value: u128) -> i32 {
    #[cfg(all(target_arch = "aarch64", target_vendor = "apple"))]
    // SAFETY: the framework's function with its arguments where AAPCS64 has them; the vCPU belongs to this thread.
    unsafe {
        let code: u64;
        std::arch::asm!(
            "ldr q0, [{value}]",
            "bl {function}",
            value = in(reg) &value,
            function = sym applevisor_sys::hv_vcpu_set_simd_fp_reg,
            inlateout("x0") vcpu.id() => code,
            in("x1") register as u64,
            clobber_abi("C"),
        );
        code as i32
    }
    #[cfg(not(all(target_arch = "aarch64", target_vendor = "apple")))]
    // SAFETY: the vCPU belongs to this thread.
    unsafe {
        applevisor_sys::hv_vcpu_set_simd_fp_reg(vcpu.id(), register, value)
    }
}

/// Puts instructions into guest memory.
pub fn write_code(ram: &mut Memory, at: u64, code: &[u32]) {
    let bytes: Vec<u8> = code.iter().flat_map(|instruction| instruction.to_le_bytes()).collect();
    ram.write(at, &bytes).unwrap();
    let offset = (at - ram.guest_addr().unwrap()) as usize;
    forget_instructions(ram.host_addr().wrapping_add(offset), bytes.len());
}

/// What was written there may be instructions: what caches have of older ones is forgotten. A line is more than one instruction, so
/// they may have some of code that has never been executed.
pub fn forget_instructions(at: *mut u8, len: usize) {
    // SAFETY: memory of the test's own, which is mapped and was just written.
    unsafe { sys_icache_invalidate(at.cast(), len) };
}

#[cfg(all(target_arch = "aarch64", target_vendor = "apple"))]
unsafe extern "C" {
    fn sys_icache_invalidate(start: *mut c_void, len: usize);
}

/// The stand-in on other processors needs no such call before code is executed for the first time.
#[cfg(not(all(target_arch = "aarch64", target_vendor = "apple")))]
unsafe fn sys_icache_invalidate(_start: *mut c_void, _len: usize) {}

/// Runs to the next exit that is not about waiting. Whether WFx and the virtual timer exit where there is a GIC is not known;
/// a host must put up with either.
pub fn run_on<G>(vm: &VirtualMachineInstance<G>, vcpu: &Vcpu) -> VcpuExit {
    run_watched(vm, vcpu, Waiting::GoesOn, PATIENCE, || ())
}

/// Runs to the next exit; if none comes for too long, ends the run with `CANCELED`.
pub fn run<G>(vm: &VirtualMachineInstance<G>, vcpu: &Vcpu) -> VcpuExit {
    run_watched(vm, vcpu, Waiting::IsTheEnd, PATIENCE, || ())
}

/// What an exit for WFx or the virtual timer is to a run.
#[derive(Clone, Copy, PartialEq)]
enum Waiting {
    GoesOn,
    IsTheEnd,
}

/// Runs to the next exit. If none has come after `patience`, does `during` and tells the vCPU to exit, again and again if it has to.
fn run_watched<G>(
    _: &VirtualMachineInstance<G>,
    vcpu: &Vcpu,
    waiting: Waiting,
    patience: Duration,
    during: impl FnOnce() + Send,
) -> VcpuExit {
    let id = vcpu.id();
    let (done, watch) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if watch.recv_timeout(patience) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            // The run is ended whatever becomes of it.
            let during = catch_unwind(AssertUnwindSafe(during));
            loop {
                // SAFETY: an array of one id; the vCPU lives until the scope ends.
                unsafe { applevisor_sys::hv_vcpus_exit(&id, 1) };
                if watch.recv_timeout(LOST) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            during.unwrap_or_else(|panic| resume_unwind(panic));
        });
        loop {
            vcpu.run().unwrap();
            if waiting == Waiting::IsTheEnd || !goes_on(vcpu) {
                break;
            }
        }
        drop(done);
    });
    vcpu.get_exit_info()
}

/// Whether the last exit was about waiting; what it asks of the host is done.
fn goes_on(vcpu: &Vcpu) -> bool {
    let exit = vcpu.get_exit_info();
    match exit.reason {
        ExitReason::VTIMER_ACTIVATED => vcpu.set_vtimer_mask(false).unwrap(),
        ExitReason::EXCEPTION if exit.exception.syndrome >> 26 == ec::WFX => {
            vcpu.set_reg(Reg::PC, vcpu.get_reg(Reg::PC).unwrap() + 4).unwrap();
            // Another vCPU may be what it waits for.
            thread::yield_now();
        }
        _ => return false,
    }
    true
}
