//! What is left to say when the host gives up on a guest: registers, syndrome and the instruction, in a form people paste
//! into bug reports.

use std::fmt;

use disarm64::{InsnDisplay, decoder};

/// A guest that cannot go on, as its vCPU stood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrashReport {
    /// Index of the vCPU.
    pub vcpu: usize,
    /// What the guest did, in words.
    pub reason: String,
    /// ESR_EL2 of the exit.
    pub syndrome: u64,
    /// FAR_EL2 of the exit.
    pub virtual_address: u64,
    /// The IPA of the exit.
    pub physical_address: u64,
    /// X0..X30.
    pub x: [u64; 31],
    /// Program counter.
    pub pc: u64,
    /// PSTATE in SPSR form.
    pub cpsr: u64,
    /// Named system registers that help: SP_EL0, SP_EL1, ELR_EL1, ESR_EL1, FAR_EL1, ...
    pub system: Vec<(&'static str, u64)>,
    /// The instruction word at PC, where it could be found.
    pub instruction: Option<u32>,
}

impl CrashReport {
    /// The instruction at PC in assembly, or what is known instead.
    pub fn disassembly(&self) -> String {
        match self.instruction {
            None => "(the instruction could not be read)".into(),
            Some(word) => match decoder::decode(word) {
                Some(insn) => format!("{word:08x}  {}", insn.display_at(self.pc)),
                None => format!("{word:08x}  .inst {word:#010x}"),
            },
        }
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vCPU {}: {}", self.vcpu, self.reason)?;
        writeln!(
            f,
            "  syndrome {:#010x} (EC {:#04x}), virtual address {:#x}, IPA {:#x}",
            self.syndrome,
            self.syndrome >> 26 & 0x3f,
            self.virtual_address,
            self.physical_address
        )?;
        writeln!(f, "  pc  {:016x}  cpsr {:08x}", self.pc, self.cpsr)?;
        writeln!(f, "  {}", self.disassembly())?;
        for row in 0..8 {
            write!(f, " ")?;
            for (n, value) in self.x.iter().enumerate().skip(row * 4).take(4) {
                write!(f, " {:>3} {value:016x}", format!("x{n}"))?;
            }
            writeln!(f)?;
        }
        for (name, value) in &self.system {
            writeln!(f, "  {name:<10} {value:016x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_the_instruction_and_every_register() {
        let mut report = CrashReport { reason: "test".into(), instruction: Some(0xa9bf_7bfd), ..Default::default() };
        report.x[30] = 0x1234_5678;
        let text = report.to_string();
        assert!(text.contains("stp"), "{text}");
        assert!(text.contains("x30 0000000012345678"), "{text}");
        report.instruction = Some(0);
        assert!(report.disassembly().starts_with("00000000"));
        report.instruction = None;
        assert!(report.disassembly().contains("could not be read"));
    }
}
