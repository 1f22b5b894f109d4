//! A small guest: one page of code, some RAM, one vCPU on this thread, and a watchdog around every run.

use std::sync::{Mutex, MutexGuard, mpsc};
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

/// The right to have the process's virtual machine.
pub struct Turn(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Turn {
    pub fn take() -> Turn {
        Turn(ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
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
    Guest::with(turn, VirtualMachine::new().unwrap(), code)
}

/// A guest with a GIC, MPIDR 0, about to execute `code`.
pub fn gic_guest(code: &[u32]) -> Guest<GicEnabled> {
    let turn = Turn::take();
    let vm = VirtualMachine::with_gic(VirtualMachineConfig::new(), gic_config()).unwrap();
    let guest = Guest::with(turn, vm, code);
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
    loop {
        let exit = run(vm, vcpu);
        match exit.reason {
            ExitReason::VTIMER_ACTIVATED => vcpu.set_vtimer_mask(false).unwrap(),
            ExitReason::EXCEPTION if exit.exception.syndrome >> 26 == ec::WFX => {
                vcpu.set_reg(Reg::PC, vcpu.get_reg(Reg::PC).unwrap() + 4).unwrap();
            }
            _ => return exit,
        }
    }
}

/// Runs to the next exit; if none comes for too long, ends the run with `CANCELED`.
pub fn run<G>(vm: &VirtualMachineInstance<G>, vcpu: &Vcpu) -> VcpuExit {
    let handle = vcpu.get_handle();
    let (done, watch) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let id = handle.id();
        scope.spawn(move || {
            if watch.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                // SAFETY: an array of one id; the vCPU lives until the scope ends.
                unsafe { applevisor_sys::hv_vcpus_exit(&id, 1) };
            }
        });
        vcpu.run().unwrap();
        drop(done);
    });
    let _ = vm;
    vcpu.get_exit_info()
}
