//! Differential test of the translation regime: random translation tables, controls and accesses at EL1 and EL0, run by one
//! bare program (`program.rs`) on the engine and on `qemu-system-aarch64`.
//!
//! Compared are ESR_EL1 and FAR_EL1 of the exception an access takes, or what it reads; PAR_EL1 of address translation
//! instructions; the descriptors after the access (hardware updates of access flag and dirty state); and PSTATE.PAN.

mod draw;
mod program;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use applevisor::prelude::{ExitReason, HypervisorError, MemPerms, Reg, VirtualMachine};

pub use draw::{Access, Operation, draw};

use crate::reference::Error;

/// Accesses in one image.
pub const ACCESSES: usize = 4096;

/// Where the image lies, and its size. (At the start of its RAM the reference has a device tree.)
const IMAGE: u64 = 0x4800_0000;
const IMAGE_LEN: usize = 0x80_0000;

/// What an access did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// ESR_EL1, or 0 when no exception was taken.
    pub esr: u64,
    /// FAR_EL1 for an abort.
    pub far: u64,
    /// The loaded value, or PAR_EL1.
    pub value: u64,
    /// PSTATE.PAN in the exception handler.
    pub pan: u64,
    /// The descriptors of the walk afterwards.
    pub descriptors: [u64; 4],
}

/// A difference, in words.
pub fn difference(access: &Access, ours: &Effect, theirs: &Effect) -> Option<String> {
    let (a, b) = (comparable(access, ours), comparable(access, theirs));
    (a != b).then(|| format!("{access:x?}\n  engine    {a:x?}\n  reference {b:x?}\n"))
}

/// The part of an effect that the architecture defines.
fn comparable(access: &Access, effect: &Effect) -> Effect {
    let mut effect = *effect;
    let class = effect.esr >> 26 & 0x3f;
    if !(0x20..=0x25).contains(&class) {
        effect.far = 0;
    }
    if access.operation.translates() {
        // Without a fault only the address: attributes are as the implementation merges them.
        let keep = if effect.value & 1 == 1 { 0x7f } else { 0xf_ffff_ffff_f001 };
        effect.value &= keep;
        // AT may or may not set the access flag.
        effect.descriptors = [0; 4];
    }
    effect
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Numbers and descriptions of the accesses that differ.
    pub different: Vec<(u64, String)>,
    /// How often each syndrome (ESR_EL1) was met; 0 is an access without an exception.
    pub syndromes: BTreeMap<u64, u64>,
}

/// Makes `count` accesses from number `first` on both sides.
pub fn compare(qemu: &Path, seed: u64, first: u64, count: u64) -> Result<Comparison, Error> {
    let accesses: Vec<Access> = (first..first + count).map(|index| draw(seed, index)).collect();
    let theirs = run_reference(qemu, &accesses)?;
    let ours = run_engine(&accesses)?;
    let mut comparison = Comparison::default();
    for (i, access) in accesses.iter().enumerate() {
        let story = difference(access, &ours[i], &theirs[i]);
        comparison.different.extend(story.map(|story| (first + i as u64, story)));
        *comparison.syndromes.entry(theirs[i].esr).or_default() += 1;
    }
    Ok(comparison)
}

/// Runs the accesses on the engine.
pub fn run_engine(accesses: &[Access]) -> Result<Vec<Effect>, Error> {
    let run = || -> Result<Vec<u8>, HypervisorError> {
        let vm = VirtualMachine::new()?;
        let mut memory = vm.memory_create(IMAGE_LEN)?;
        memory.map(IMAGE, MemPerms::ReadWriteExec)?;
        memory.write(IMAGE, &program::image(accesses, Path::new("")))?;
        let vcpu = vm.vcpu_create()?;
        vcpu.set_reg(Reg::PC, IMAGE)?;
        vcpu.set_reg(Reg::CPSR, 0x3c5)?;
        vcpu.set_reg(Reg::X0, 1)?;
        vcpu.run()?;
        let exit = vcpu.get_exit_info();
        let (pc, syndrome) = (vcpu.get_reg(Reg::PC)?, exit.exception.syndrome);
        assert!(exit.reason == ExitReason::EXCEPTION && syndrome == 0x5a00_0000, "at {pc:#x}: {exit:x?}");
        let mut output = vec![0; program::OUTPUT_LEN];
        memory.read(program::OUTPUT, &mut output)?;
        Ok(output)
    };
    let output = run().map_err(|code| Error::Engine { what: "the translation program", code })?;
    Ok(effects(&output, accesses.len()))
}

/// Runs the accesses on the reference.
pub fn run_reference(qemu: &Path, accesses: &[Access]) -> Result<Vec<Effect>, Error> {
    let directory = Directory::new()?;
    let (image, output) = (directory.0.join("image"), directory.0.join("output"));
    std::fs::write(&image, program::image(accesses, &output))?;
    let status = Command::new(qemu)
        .args(["-M", "virt", "-cpu", "max", "-m", "256", "-nodefaults", "-display", "none"])
        .args(["-semihosting-config", "enable=on,target=native", "-device"])
        .arg(format!("loader,file={},addr={IMAGE:#x},force-raw=on", image.display()))
        .args(["-device", &format!("loader,addr={IMAGE:#x},cpu-num=0")])
        .stdin(Stdio::null())
        .status()
        .map_err(|source| Error::Start { program: qemu.display().to_string(), source })?;
    let bytes = std::fs::read(&output)?;
    assert!(status.success() && bytes.len() == program::OUTPUT_LEN, "the program ran to its end: {status}");
    Ok(effects(&bytes, accesses.len()))
}

fn effects(output: &[u8], count: usize) -> Vec<Effect> {
    let records = output.chunks_exact(program::RECORD_LEN).take(count);
    records
        .map(|record| {
            let word = |i: usize| u64::from_le_bytes(record[8 * i..8 * i + 8].try_into().expect("eight bytes"));
            Effect {
                esr: word(0),
                far: word(1),
                value: word(2),
                pan: word(3),
                descriptors: std::array::from_fn(|i| word(4 + i)),
            }
        })
        .collect()
}

/// A fresh directory, gone when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Directory, Error> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("squib-translation-{}-{serial}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
