//! An exit of `hv_vcpu_run`, decoded once, here, from the syndrome (ESR_ELx, Arm ARM D24.2) into what the run loop acts on.

use applevisor::prelude::{ExitReason, VcpuExit};

/// Why the vCPU left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `hv_vcpus_exit` was called.
    Canceled,
    /// The virtual timer fired and was masked by the framework.
    VtimerActivated,
    /// The framework does not say.
    Unknown,
    /// HVC: PC is already behind it.
    Hvc,
    /// SMC: PC is on it.
    Smc,
    /// WFI or WFE: PC is on it.
    Wfx,
    /// MSR, MRS or a system instruction: PC is on it.
    SysReg(SysRegAccess),
    /// Data abort on stage 2: PC is on the instruction.
    DataAbort(DataAbort),
    /// Instruction fetch that stage 2 refused.
    InstructionAbort {
        /// The IPA. With `s1ptw` only its page part is reliable.
        ipa: u64,
        /// The fault was met by a stage-1 table walk.
        s1ptw: bool,
        /// A permission fault: the IPA is mapped. RAM that is can always be read and executed, so a walk that meets one was to update
        /// a descriptor.
        permission: bool,
    },
    /// A debug exception (BRK, breakpoint, watchpoint, single step) that was routed to us: it belongs to the guest.
    Debug {
        /// Exception class.
        ec: u8,
    },
    /// An exception class this host has no answer to.
    Other {
        /// Exception class.
        ec: u8,
    },
}

/// ISS of a trapped system-register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysRegAccess {
    /// `op0<<14 | op1<<11 | CRn<<7 | CRm<<3 | op2`.
    pub encoding: u16,
    /// Transfer register, 31 = XZR.
    pub rt: u8,
    /// MRS.
    pub read: bool,
}

/// ISS of a data abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort {
    /// The IPA. With [`DataAbort::s1ptw`] only its page part is reliable.
    pub ipa: u64,
    /// WnR. Reads 1 for cache maintenance too.
    pub write: bool,
    /// Cache maintenance or address translation instruction.
    pub cache_maintenance: bool,
    /// The fault was met by a stage-1 table walk.
    pub s1ptw: bool,
    /// A permission fault: the IPA is mapped.
    pub permission: bool,
    /// The instruction's fields, where the syndrome has them (ISV).
    pub access: Option<Access>,
}

/// A single-register load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Loads: sign-extend.
    pub sign_extend: bool,
    /// Transfer register, 31 = XZR.
    pub register: u8,
    /// The transfer register is 64 bits wide.
    pub sixty_four: bool,
}

impl DataAbort {
    /// For an IPA in RAM: whether the guest was about to change it. RAM that is mapped can always be read, so whatever meets a
    /// permission fault writes, a walk too, except cache maintenance.
    pub fn is_store(&self) -> bool {
        match self.permission {
            true => self.s1ptw || !self.cache_maintenance,
            false => self.write && !self.cache_maintenance,
        }
    }
}

impl Access {
    /// What a load puts into the 64-bit register, given the bytes read.
    pub fn extend(&self, value: u64) -> u64 {
        let bits = u32::from(self.size) * 8;
        let value = if bits == 64 { value } else { value & ((1 << bits) - 1) };
        let value = if self.sign_extend { ((value << (64 - bits)) as i64 >> (64 - bits)) as u64 } else { value };
        if self.sixty_four { value } else { value & 0xffff_ffff }
    }
}

impl Exit {
    /// Decodes an exit record.
    pub fn decode(exit: &VcpuExit) -> Exit {
        match exit.reason {
            ExitReason::CANCELED => Exit::Canceled,
            ExitReason::VTIMER_ACTIVATED => Exit::VtimerActivated,
            ExitReason::UNKNOWN => Exit::Unknown,
            ExitReason::EXCEPTION => Exit::decode_syndrome(exit.exception.syndrome, exit.exception.physical_address),
        }
    }

    fn decode_syndrome(syndrome: u64, ipa: u64) -> Exit {
        let bit = |n: u32| syndrome >> n & 1 == 1;
        // DFSC or IFSC: permission fault, at any level.
        let permission = syndrome & 0x3c == 0x0c;
        match (syndrome >> 26 & 0x3f) as u8 {
            0x01 => Exit::Wfx,
            0x16 => Exit::Hvc,
            0x17 => Exit::Smc,
            0x18 => {
                let field = |at: u32, mask: u64| (syndrome >> at & mask) as u16;
                let (op0, op2, op1) = (field(20, 3), field(17, 7), field(14, 7));
                let (crn, rt, crm) = (field(10, 15), field(5, 31), field(1, 15));
                Exit::SysReg(SysRegAccess {
                    encoding: op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2,
                    rt: rt as u8,
                    read: bit(0),
                })
            }
            0x20 => Exit::InstructionAbort { ipa, s1ptw: bit(7), permission },
            0x24 => Exit::DataAbort(DataAbort {
                ipa,
                write: bit(6),
                cache_maintenance: bit(8),
                s1ptw: bit(7),
                permission,
                access: bit(24).then(|| Access {
                    size: 1 << (syndrome >> 22 & 3),
                    sign_extend: bit(21),
                    register: (syndrome >> 16 & 31) as u8,
                    sixty_four: bit(15),
                }),
            }),
            ec @ (0x30 | 0x32 | 0x34 | 0x3c) => Exit::Debug { ec },
            ec => Exit::Other { ec },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_registers_decode_to_the_framework_encoding() {
        // MSR OSLAR_EL1, X3: op0=2 op1=0 CRn=1 CRm=0 op2=4.
        let syndrome = 0x18 << 26 | 1 << 25 | 2 << 20 | 4 << 17 | 1 << 10 | 3 << 5;
        let expected = SysRegAccess { encoding: 0x8084, rt: 3, read: false };
        assert_eq!(Exit::decode_syndrome(syndrome, 0), Exit::SysReg(expected));
        // MRS X30, PMCCFILTR_EL0: op0=3 op1=3 CRn=14 CRm=15 op2=7.
        let syndrome = 0x18 << 26 | 1 << 25 | 3 << 20 | 7 << 17 | 3 << 14 | 14 << 10 | 30 << 5 | 15 << 1 | 1;
        let expected = SysRegAccess { encoding: 0xdf7f, rt: 30, read: true };
        assert_eq!(Exit::decode_syndrome(syndrome, 0), Exit::SysReg(expected));
    }

    #[test]
    fn data_aborts_carry_the_access() {
        // LDRSH X5, [..]: SAS=1 SSE=1 SRT=5 SF=1.
        let syndrome = 0x24 << 26 | 1 << 25 | 1 << 24 | 1 << 22 | 1 << 21 | 5 << 16 | 1 << 15 | 0b000111;
        let Exit::DataAbort(abort) = Exit::decode_syndrome(syndrome, 0x900_0018) else { panic!() };
        let access = abort.access.unwrap();
        assert_eq!((abort.ipa, abort.write, access.size, access.register), (0x900_0018, false, 2, 5));
        assert_eq!(access.extend(0x1_8001), 0xffff_ffff_ffff_8001);
        assert_eq!(Access { sixty_four: false, ..access }.extend(0x8001), 0xffff_8001);
        assert_eq!(Access { sign_extend: false, ..access }.extend(0x1_8001), 0x8001);
        assert_eq!(Access { size: 8, ..access }.extend(u64::MAX), u64::MAX);
        let Exit::DataAbort(pair) = Exit::decode_syndrome(0x24 << 26 | 1 << 6 | 1 << 8 | 1 << 7, 1) else { panic!() };
        let expected =
            DataAbort { ipa: 1, write: true, cache_maintenance: true, s1ptw: true, permission: false, access: None };
        assert_eq!(pair, expected);
    }

    #[test]
    fn what_stores_is_told_from_what_does_not() {
        const PERMISSION: u64 = 0b001111;
        const TRANSLATION: u64 = 0b000111;
        let store = |iss: u64| match Exit::decode_syndrome(0x24 << 26 | 1 << 25 | iss, 0) {
            Exit::DataAbort(abort) => abort.is_store(),
            other => panic!("{other:?}"),
        };
        let (write, walk, maintenance) = (1 << 6, 1 << 7, 1 << 8);
        assert!(store(PERMISSION | write) && store(PERMISSION), "an atomic may report a read");
        assert!(store(PERMISSION | walk) && store(PERMISSION | walk | write), "a descriptor's update");
        assert!(store(PERMISSION | walk | maintenance), "an update by an address translation instruction");
        assert!(!store(PERMISSION | maintenance | write));
        assert!(store(TRANSLATION | write) && !store(TRANSLATION));
        assert!(!store(TRANSLATION | maintenance | write) && !store(TRANSLATION | walk));
        let fetch = |iss: u64| Exit::decode_syndrome(0x20 << 26 | iss, 7);
        let abort = |s1ptw, permission| Exit::InstructionAbort { ipa: 7, s1ptw, permission };
        assert_eq!(fetch(PERMISSION | walk), abort(true, true));
        assert_eq!(fetch(TRANSLATION | walk), abort(true, false));
        assert_eq!(fetch(PERMISSION), abort(false, true));
    }

    #[test]
    fn classes_are_told_apart() {
        let ec = |ec: u64| Exit::decode_syndrome(ec << 26, 7);
        assert_eq!(ec(0x01), Exit::Wfx);
        assert_eq!(ec(0x16), Exit::Hvc);
        assert_eq!(ec(0x17), Exit::Smc);
        assert_eq!(ec(0x20), Exit::InstructionAbort { ipa: 7, s1ptw: false, permission: false });
        assert_eq!(ec(0x3c), Exit::Debug { ec: 0x3c });
        assert_eq!(ec(0x2f), Exit::Other { ec: 0x2f });
    }
}
