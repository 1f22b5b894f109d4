//! PSCI 1.1 (Arm DEN 0022) and the general part of the SMC calling convention (DEN 0028), as the guest calls them by HVC or
//! SMC. Decides; the run loop and [`Control`](super::control::Control) do.
//!
//! What the firmware of a real machine would know about mitigations is not known here, so the architectural workarounds
//! answer NOT_SUPPORTED, which the convention defines as "nothing is said".

use crate::layout;

/// Return codes.
pub mod code {
    /// Done.
    pub const SUCCESS: i64 = 0;
    /// No such function.
    pub const NOT_SUPPORTED: i64 = -1;
    /// An argument is wrong.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// CPU_OFF of the last vCPU.
    pub const DENIED: i64 = -3;
    /// CPU_ON of a vCPU that is on.
    pub const ALREADY_ON: i64 = -4;
    /// CPU_ON of a vCPU that is being turned on.
    pub const ON_PENDING: i64 = -5;
    /// The entry point is not in RAM.
    pub const INVALID_ADDRESS: i64 = -9;
}

const SMC64: u32 = 1 << 30;

const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
const PSCI_VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_FEATURES: u32 = 0x8400_000a;
const SYSTEM_RESET2: u32 = 0x8400_0012;

/// MIGRATE_INFO_TYPE: there is no trusted OS.
const NO_TRUSTED_OS: i64 = 2;
/// CPU_SUSPEND: bit of `power_state` that asks for power-down rather than standby.
const POWER_DOWN: u64 = 1 << 16;

/// Power state of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Runs, or stands still with the machine.
    On,
    /// Waits for CPU_ON.
    Off,
    /// CPU_ON was called; its thread has not taken it up yet.
    OnPending {
        /// First instruction.
        entry: u64,
        /// X0.
        context: u64,
    },
}

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Put this into X0 and go on.
    Return(i64),
    /// Turn the vCPU with this index on, and return SUCCESS.
    CpuOn {
        /// Index of the target.
        target: usize,
        /// First instruction.
        entry: u64,
        /// X0 of the target.
        context: u64,
    },
    /// Turn the calling vCPU off.
    CpuOff,
    /// Switch the machine off.
    SystemOff,
    /// Reset the machine.
    SystemReset,
}

fn implemented(function: u32) -> bool {
    match function & !SMC64 {
        CPU_SUSPEND | CPU_ON | AFFINITY_INFO | SYSTEM_RESET2 => true,
        _ if function & SMC64 != 0 => false,
        SMCCC_VERSION | PSCI_VERSION | CPU_OFF | MIGRATE_INFO_TYPE | SYSTEM_OFF | SYSTEM_RESET | PSCI_FEATURES => true,
        _ => false,
    }
}

/// Decides a call: `args` are X0..X3, `power` the power state of each vCPU, `in_ram` tells whether an address is RAM.
pub fn call(args: [u64; 4], caller: usize, power: &[Power], in_ram: impl Fn(u64) -> bool) -> Outcome {
    let function = args[0] as u32;
    // A 32-bit call passes 32-bit arguments.
    let [a, b, c] = [args[1], args[2], args[3]].map(|x| if function & SMC64 != 0 { x } else { x & 0xffff_ffff });
    if function == SMCCC_ARCH_FEATURES {
        let known = matches!(a as u32, SMCCC_VERSION | SMCCC_ARCH_FEATURES);
        return Outcome::Return(if known { code::SUCCESS } else { code::NOT_SUPPORTED });
    }
    if !implemented(function) {
        return Outcome::Return(code::NOT_SUPPORTED);
    }
    let find = |affinity: u64| (0..power.len()).find(|&n| layout::affinity(layout::mpidr(n as u32)) == affinity);
    Outcome::Return(match function & !SMC64 {
        SMCCC_VERSION | PSCI_VERSION => 0x1_0001,
        // Standby: coming back at once is a wake-up that had no cause, which the caller must expect.
        CPU_SUSPEND if a & POWER_DOWN == 0 => code::SUCCESS,
        CPU_SUSPEND => code::INVALID_PARAMETERS,
        CPU_OFF => {
            let last = power.iter().enumerate().all(|(n, p)| n == caller || *p == Power::Off);
            if !last {
                return Outcome::CpuOff;
            }
            code::DENIED
        }
        CPU_ON => match find(a) {
            None => code::INVALID_PARAMETERS,
            Some(target) => match power[target] {
                Power::On => code::ALREADY_ON,
                Power::OnPending { .. } => code::ON_PENDING,
                Power::Off if !in_ram(b) => code::INVALID_ADDRESS,
                Power::Off => return Outcome::CpuOn { target, entry: b, context: c },
            },
        },
        AFFINITY_INFO => match (find(a), b) {
            (Some(target), 0) => match power[target] {
                Power::On => 0,
                Power::Off => 1,
                Power::OnPending { .. } => 2,
            },
            _ => code::INVALID_PARAMETERS,
        },
        MIGRATE_INFO_TYPE => NO_TRUSTED_OS,
        SYSTEM_OFF => return Outcome::SystemOff,
        SYSTEM_RESET => return Outcome::SystemReset,
        // SYSTEM_WARM_RESET is the one architectural reset type.
        SYSTEM_RESET2 if a as u32 == 0 => return Outcome::SystemReset,
        SYSTEM_RESET2 => code::INVALID_PARAMETERS,
        PSCI_FEATURES if implemented(a as u32) => code::SUCCESS,
        _ => code::NOT_SUPPORTED,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x4000_1000;

    fn ask(args: [u64; 4], power: &[Power]) -> Outcome {
        call(args, 0, power, |address| address >= 0x4000_0000)
    }

    fn value(args: [u64; 4]) -> i64 {
        match ask(args, &[Power::On, Power::Off]) {
            Outcome::Return(value) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn versions_and_features() {
        assert_eq!(value([PSCI_VERSION.into(), 0, 0, 0]), 0x1_0001);
        assert_eq!(value([SMCCC_VERSION.into(), 0, 0, 0]), 0x1_0001);
        assert_eq!(value([MIGRATE_INFO_TYPE.into(), 0, 0, 0]), 2);
        for known in [CPU_ON | SMC64, CPU_ON, SYSTEM_OFF, PSCI_FEATURES, SMCCC_VERSION, SYSTEM_RESET2 | SMC64] {
            assert_eq!(value([PSCI_FEATURES.into(), known.into(), 0, 0]), code::SUCCESS, "{known:#x}");
        }
        for unknown in [SYSTEM_OFF | SMC64, 0x8400_000e, 0xdead] {
            assert_eq!(value([PSCI_FEATURES.into(), unknown.into(), 0, 0]), code::NOT_SUPPORTED, "{unknown:#x}");
        }
        assert_eq!(value([SMCCC_ARCH_FEATURES.into(), 0x8000_8000, 0, 0]), code::NOT_SUPPORTED);
        assert_eq!(value([SMCCC_ARCH_FEATURES.into(), SMCCC_VERSION.into(), 0, 0]), code::SUCCESS);
        assert_eq!(value([0x8600_0002, 0, 0, 0]), code::NOT_SUPPORTED, "of a vendor's hypervisor");
    }

    #[test]
    fn cpu_on_follows_the_power_state() {
        let on = |target: u64, entry: u64, power: &[Power]| ask([(CPU_ON | SMC64).into(), target, entry, 7], power);
        let off = [Power::On, Power::Off];
        assert_eq!(on(1, ENTRY, &off), Outcome::CpuOn { target: 1, entry: ENTRY, context: 7 });
        assert_eq!(on(0, ENTRY, &off), Outcome::Return(code::ALREADY_ON));
        assert_eq!(on(2, ENTRY, &off), Outcome::Return(code::INVALID_PARAMETERS));
        assert_eq!(on(1, 0x1000, &off), Outcome::Return(code::INVALID_ADDRESS));
        let pending = [Power::On, Power::OnPending { entry: 0, context: 0 }];
        assert_eq!(on(1, ENTRY, &pending), Outcome::Return(code::ON_PENDING));
        // A 32-bit call does not see what is above its arguments.
        let high = 0xdead_beef << 32;
        let narrow = ask([CPU_ON.into(), high | 1, high | ENTRY, high | 7], &off);
        assert_eq!(narrow, Outcome::CpuOn { target: 1, entry: ENTRY, context: 7 });
    }

    /// PSCI 1.1, table 6.
    #[test]
    fn codes_are_those_of_the_specification() {
        use code::*;
        let codes = [NOT_SUPPORTED, INVALID_PARAMETERS, DENIED, ALREADY_ON, ON_PENDING, INVALID_ADDRESS];
        assert_eq!((SUCCESS, codes), (0, [-1, -2, -3, -4, -5, -9]));
    }

    #[test]
    fn affinity_info_and_cpu_off() {
        let info = |target: u64, level: u64| value([(AFFINITY_INFO | SMC64).into(), target, level, 0]);
        assert_eq!((info(0, 0), info(1, 0)), (0, 1));
        assert_eq!((info(9, 0), info(0, 1)), (code::INVALID_PARAMETERS, code::INVALID_PARAMETERS));
        let cpu_off = [CPU_OFF.into(), 0, 0, 0];
        assert_eq!(ask(cpu_off, &[Power::On, Power::On]), Outcome::CpuOff);
        assert_eq!(ask(cpu_off, &[Power::On, Power::Off]), Outcome::Return(code::DENIED));
    }

    #[test]
    fn the_system_goes_off_or_resets() {
        let power = [Power::On];
        assert_eq!(ask([SYSTEM_OFF.into(), 0, 0, 0], &power), Outcome::SystemOff);
        assert_eq!(ask([SYSTEM_RESET.into(), 0, 0, 0], &power), Outcome::SystemReset);
        assert_eq!(ask([(SYSTEM_RESET2 | SMC64).into(), 0, 0, 0], &power), Outcome::SystemReset);
        assert_eq!(value([(SYSTEM_RESET2 | SMC64).into(), 0x8000_0000, 0, 0]), code::INVALID_PARAMETERS);
        assert_eq!(value([(CPU_SUSPEND | SMC64).into(), POWER_DOWN, 0, 0]), code::INVALID_PARAMETERS);
        assert_eq!(value([(CPU_SUSPEND | SMC64).into(), 0, 0, 0]), code::SUCCESS);
    }
}
