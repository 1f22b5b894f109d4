//! `ARM_THREAD_STATE64` of a thread interrupted by a signal: 33 registers of 64 bits (x0-x28, fp, lr, sp, pc), CPSR, padding.
//!
//! On aarch64 these are the thread's registers. On x86_64 the general registers take the places of [`REGISTERS`], RFLAGS that
//! of CPSR, and the rest reads 0: enough for a server that returns the state as it came, and for a debugger to see where it was.

use super::types::ARM_THREAD_STATE64_COUNT;

/// Bytes of the state.
pub const BYTES: usize = 4 * ARM_THREAD_STATE64_COUNT as usize;

const CPSR: usize = 33 * 8;

/// Place of each register of the host in the state, in units of 64 bits: 29 fp, 30 lr, 31 sp, 32 pc.
#[cfg(target_arch = "x86_64")]
const REGISTERS: [(usize, libc::c_int); 17] = [
    (0, libc::REG_RAX),
    (1, libc::REG_RBX),
    (2, libc::REG_RCX),
    (3, libc::REG_RDX),
    (4, libc::REG_RDI),
    (5, libc::REG_RSI),
    (6, libc::REG_R8),
    (7, libc::REG_R9),
    (8, libc::REG_R10),
    (9, libc::REG_R11),
    (10, libc::REG_R12),
    (11, libc::REG_R13),
    (12, libc::REG_R14),
    (13, libc::REG_R15),
    (29, libc::REG_RBP),
    (31, libc::REG_RSP),
    (32, libc::REG_RIP),
];

fn put(state: &mut [u8; BYTES], at: usize, value: u64) {
    state[8 * at..8 * at + 8].copy_from_slice(&value.to_ne_bytes());
}

fn get(state: &[u8; BYTES], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&state[8 * at..8 * at + 8]);
    u64::from_ne_bytes(value)
}

fn get_cpsr(state: &[u8; BYTES]) -> u32 {
    get(state, CPSR / 8) as u32
}

/// Fills `state` from the interrupted thread's registers.
#[cfg(target_arch = "x86_64")]
pub fn save(context: &libc::mcontext_t, state: &mut [u8; BYTES]) {
    state.fill(0);
    let registers = &context.gregs;
    for (at, register) in REGISTERS {
        put(state, at, registers[register as usize] as u64);
    }
    put(state, CPSR / 8, u64::from(registers[libc::REG_EFL as usize] as u32));
}

/// Gives the interrupted thread the registers in `state`.
#[cfg(target_arch = "x86_64")]
pub fn restore(state: &[u8; BYTES], context: &mut libc::mcontext_t) {
    let registers = &mut context.gregs;
    for (at, register) in REGISTERS {
        registers[register as usize] = get(state, at) as i64;
    }
    registers[libc::REG_EFL as usize] = i64::from(get_cpsr(state));
}

/// Fills `state` from the interrupted thread's registers.
#[cfg(target_arch = "aarch64")]
pub fn save(context: &libc::mcontext_t, state: &mut [u8; BYTES]) {
    let registers = context;
    for (at, value) in registers.regs.iter().enumerate() {
        put(state, at, *value);
    }
    put(state, 31, registers.sp);
    put(state, 32, registers.pc);
    put(state, CPSR / 8, u64::from(registers.pstate as u32));
}

/// Gives the interrupted thread the registers in `state`.
#[cfg(target_arch = "aarch64")]
pub fn restore(state: &[u8; BYTES], context: &mut libc::mcontext_t) {
    let registers = context;
    for (at, value) in registers.regs.iter_mut().enumerate() {
        *value = get(state, at);
    }
    registers.sp = get(state, 31);
    registers.pc = get(state, 32);
    registers.pstate = u64::from(get_cpsr(state));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_goes_out_and_comes_back() {
        // SAFETY: a context is plain registers and masks, for which zero is a value.
        let (mut context, mut other): (libc::mcontext_t, libc::mcontext_t) = unsafe { std::mem::zeroed() };
        let mut state = [0; BYTES];
        for at in 0..33 {
            put(&mut state, at, 0x1000 + at as u64);
        }
        put(&mut state, CPSR / 8, 0x246);
        restore(&state, &mut context);
        let mut again = [0xff; BYTES];
        save(&context, &mut again);
        for at in [0, 13, 29, 31, 32] {
            assert_eq!(get(&again, at), 0x1000 + at as u64);
        }
        assert_eq!(get_cpsr(&again), 0x246);
        restore(&again, &mut other);
        let mut third = [0; BYTES];
        save(&other, &mut third);
        assert_eq!(again, third);
    }
}
