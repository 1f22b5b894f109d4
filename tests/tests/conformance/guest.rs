//! A small guest: one page of code, some RAM, one vCPU on this thread, and a watchdog around every run.

use std::fmt::Display;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use applevisor::prelude::*;

/// Where RAM is.
pub const RAM: u64 = 0x4000_0000;
/// How much of it there is.
pub const RAM_SIZE: u64 = 0x10_0000;
/// Free for data.
pub const DATA: u64 = RAM + 0x4_0000;
/// The exception vectors, when a test has some.
pub const VECTORS: u64 = RAM + 0x8_0000;
/// Nothing is mapped here.
pub const NOWHERE: u64 = 0x2000_0000;

/// GIC addresses.
pub const GICD: u64 = 0x0800_0000;
pub const GICR: u64 = 0x1000_0000;
pub const MSI: u64 = 0x0900_0000;
/// MSIs take the last SPIs.
pub const MSI_FIRST: u32 = 980;
pub const MSI_COUNT: u32 = 40;

/// No run of these guests takes this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a guest is watched that is expected to do nothing.
const A_MOMENT: Duration = Duration::from_millis(10);
/// How many of them it takes to believe it.
const MOMENTS: u32 = 10;
/// An `hv_vcpus_exit` that nothing has come of for so long is taken for lost.
const LOST: Duration = Duration::from_millis(200);
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

/// The GIC as these tests have it.
pub fn gic_config() -> GicConfig {
    let mut config = GicConfig::new();
    config.set_distributor_base(GICD).unwrap();
    config.set_redistributor_base(GICR).unwrap();
    config.set_msi_region_base(MSI).unwrap();
    config.set_msi_interrupt_range(MSI_FIRST, MSI_COUNT).unwrap();
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

    /// Runs to the next exit, which must be `HVC #imm`.
    pub fn run_to(&self, imm: u64) {
        let exit = self.run_on();
        assert_eq!(
            (exit.reason, exit.exception.syndrome),
            (ExitReason::EXCEPTION, hvc_syndrome(imm)),
            "{}",
            self.dump()
        );
    }

    /// Runs to the next exit, which must be an exception of this class, and returns it.
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

    fn dump(&self) -> String {
        format!("pc {:#x}, x0 {:#x}, {:?}", self.pc(), self.x(Reg::X0), self.vcpu.get_exit_info())
    }
}

/// ESR_EL2 of `HVC #imm`.
pub fn hvc_syndrome(imm: u64) -> u64 {
    ec::HVC << 26 | 1 << 25 | imm
}

/// EL1h, everything masked, at `pc`; FP allowed.
pub fn prepare(vcpu: &Vcpu, pc: u64) {
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
}

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
            during();
            loop {
                // SAFETY: an array of one id; the vCPU lives until the scope ends.
                unsafe { applevisor_sys::hv_vcpus_exit(&id, 1) };
                if watch.recv_timeout(LOST) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
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
