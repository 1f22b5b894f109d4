//! A bare guest for tests: vCPUs at EL1 behind an identity translation, running one assembled program.
#![allow(dead_code, reason = "every test file uses its own part of it")]

extern crate squib_sim as _;

use std::sync::{Mutex, MutexGuard, PoisonError};

use applevisor::prelude::{
    ExitReason, GicDisabled, MemPerms, Memory, Reg, SysReg, Vcpu, VirtualMachine, VirtualMachineInstance,
};
use dynasmrt::VecAssembler;
use dynasmrt::aarch64::Aarch64Relocation;

/// Guest RAM, virtual and intermediate physical. Also visible [`ALIAS`] higher.
pub const RAM: u64 = 0x4000_0000;
/// Bytes of RAM.
pub const RAM_LEN: usize = 0x100_0000;
/// Where programs go.
pub const CODE: u64 = RAM + 0x1_0000;
/// Where their data goes; X1 at the start.
pub const DATA: u64 = RAM + 0x10_0000;
/// Distance to the second virtual address of every byte.
pub const ALIAS: u64 = 0x4000_0000;

const TABLE: u64 = RAM;
// Normal write-back inner-shareable memory that EL1 may write and execute: two blocks of 1 GiB, one memory.
const BLOCK: u64 = RAM | 1 << 10 | 3 << 8 | 1;
// SCTLR_EL1: M, C, I, and the bits that are RES1 in ARMv8.0. With EnIA, EnIB, EnDA, EnDB.
const SCTLR: u64 = 0x30d0_0800 | 1 | 1 << 2 | 1 << 12 | 1 << 31 | 1 << 30 | 1 << 27 | 1 << 13;
// TCR_EL1: 39 bits, 4 KiB granule, write-back shareable walks, no TTBR1, 40-bit addresses.
const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
const HVC_0: u64 = 0x5a00_0000;

/// The assembler of the programs.
pub type Assembler = VecAssembler<Aarch64Relocation>;

/// An assembler for a program at [`CODE`].
pub fn assembler() -> Assembler {
    Assembler::new(CODE as usize)
}

/// A machine with RAM and no vCPU yet. One at a time in a process: tests wait for each other.
pub struct Guest {
    memory: Memory,
    vm: VirtualMachineInstance<GicDisabled>,
    _turn: MutexGuard<'static, ()>,
}

impl Guest {
    /// A machine with a program.
    pub fn new(program: Assembler) -> Guest {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let vm = VirtualMachine::new().unwrap();
        let mut memory = vm.memory_create(RAM_LEN).unwrap();
        memory.map(RAM, MemPerms::ReadWriteExec).unwrap();
        memory.write_u64(TABLE + 8 * (RAM >> 30), BLOCK).unwrap();
        memory.write_u64(TABLE + 8 * ((RAM + ALIAS) >> 30), BLOCK).unwrap();
        memory.write(CODE, &program.finalize().unwrap()).unwrap();
        Guest { memory, vm, _turn: turn }
    }

    /// Runs the program on `count` vCPUs at once, each with its number in X0 and [`DATA`] in X1, until all have reached
    /// `HVC #0`. The answer is each one's X0.
    pub fn run(&self, count: u64) -> Vec<u64> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count)
                .map(|number| {
                    let vm = self.vm.clone();
                    scope.spawn(move || {
                        let vcpu = prepare(&vm);
                        vcpu.set_reg(Reg::X0, number).unwrap();
                        finish(&vcpu)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Runs the program on one vCPU, with system registers set before.
    pub fn run_with(&self, registers: &[(SysReg, u64)]) -> u64 {
        let vcpu = prepare(&self.vm);
        for (register, value) in registers {
            vcpu.set_sys_reg(*register, *value).unwrap();
        }
        finish(&vcpu)
    }

    /// A doubleword of the data area.
    pub fn data(&self, offset: u64) -> u64 {
        self.memory.read_u64(DATA + offset).unwrap()
    }

    /// Words of the data area.
    pub fn words(&self, offset: u64, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        self.memory.read(DATA + offset, &mut bytes).unwrap();
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }
}

fn prepare(vm: &VirtualMachineInstance<GicDisabled>) -> Vcpu {
    let vcpu = vm.vcpu_create().unwrap();
    for (register, value) in [
        (SysReg::SCTLR_EL1, SCTLR),
        (SysReg::TCR_EL1, TCR),
        (SysReg::TTBR0_EL1, TABLE),
        (SysReg::MAIR_EL1, 0xff),
        (SysReg::CPACR_EL1, 3 << 20),
    ] {
        vcpu.set_sys_reg(register, value).unwrap();
    }
    vcpu.set_reg(Reg::X1, DATA).unwrap();
    vcpu.set_reg(Reg::PC, CODE).unwrap();
    vcpu.set_reg(Reg::CPSR, 0x3c5).unwrap();
    vcpu
}

fn finish(vcpu: &Vcpu) -> u64 {
    vcpu.run().unwrap();
    let exit = vcpu.get_exit_info();
    assert_eq!((exit.reason, exit.exception.syndrome), (ExitReason::EXCEPTION, HVC_0), "{exit:x?}");
    vcpu.get_reg(Reg::X0).unwrap()
}
