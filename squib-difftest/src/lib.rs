//! Differential test of the squib-sim engine against `qemu-aarch64` (Debian's `qemu-user`).
//!
//! Random instruction sequences of every encoding class the engine implements are run by both, from the same registers,
//! memory and code at the same virtual addresses; general-purpose and FP/SIMD registers, SP, PC, NZCV, FPCR, FPSR and the
//! scratch memory must come out equal, bit for bit. A sequence is a pure function of (seed, class, index), so every
//! failure is repeated by one printed command.
//!
//! * [`encodings`] is the table of A64 encodings: what is generated, and what must be UNDEFINED because it is not there;
//! * [`generator`] draws sequences and initial states, [`values`] the operand values, with [`words`] for the bits of instructions;
//! * [`mod@reference`] drives one persistent qemu process that runs the static program assembled by [`runner`];
//! * [`engine`] drives the engine through the genuine `applevisor`, at EL0 behind an identity translation;
//! * [`translation`] is a test of its own, of the translation regime at EL1, against `qemu-system-aarch64`;
//! * [`campaign`] runs both, compares, and cuts a failing sequence down to the first instruction that differs.

#![forbid(unsafe_code)]

pub mod campaign;
pub mod case;
pub mod encodings;
pub mod engine;
pub mod generator;
pub mod reference;
pub mod rng;
pub mod runner;
pub mod translation;
pub mod values;
pub mod words;

// Linked for the hypervisor symbols it defines.
use squib_sim as _;
