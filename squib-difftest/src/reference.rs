//! The reference side: one persistent `qemu-aarch64` process, fed with batches of cases over pipes.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::case::{BATCH, CODE_LEN, Case, End, FRAME_LEN, INPUT_LEN, OUTPUT_LEN, Outcome, SLOT, State};
use crate::runner;

/// What can go wrong with a differential run, apart from a difference.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The emulator is not there.
    #[error("cannot start {program}: {source}; install Debian's qemu-user, or name the program with --qemu")]
    Start {
        /// What was to be started.
        program: String,
        /// Why it could not be.
        source: std::io::Error,
    },
    /// The emulator died or its pipe broke.
    #[error("the qemu-aarch64 process ended in the middle of a batch: {0}")]
    Pipe(#[from] std::io::Error),
    /// The hypervisor interface refused something.
    #[error("the engine refused {what}: {code}")]
    Engine {
        /// The operation.
        what: &'static str,
        /// The framework's answer.
        code: applevisor::prelude::HypervisorError,
    },
}

/// A running `qemu-aarch64`.
pub struct Reference {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    elf: PathBuf,
}

impl Reference {
    /// Starts `program` with the CPU model `cpu`.
    pub fn start(program: &Path, cpu: &str) -> Result<Reference, Error> {
        let elf = write_exclusively(&runner::elf())?;
        let started = Command::new(program)
            .args(["-cpu", cpu])
            .arg(&elf)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start { program: program.display().to_string(), source });
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                let _ = std::fs::remove_file(&elf);
                return Err(error);
            }
        };
        let input = child.stdin.take();
        let output = child.stdout.take().expect("stdout was asked to be a pipe");
        Ok(Reference { child, input, output, elf })
    }

    /// Sends a batch of at most [`BATCH`] cases; the answer is fetched with [`Reference::receive`].
    pub fn send(&mut self, cases: &[Case]) -> Result<(), Error> {
        assert!(cases.len() <= BATCH);
        let filler = Case { state: blank(), window: vec![0; INPUT_LEN - FRAME_LEN], code: Vec::new() };
        let mut message = Vec::with_capacity(CODE_LEN + BATCH * INPUT_LEN);
        let padded = || cases.iter().chain(std::iter::repeat(&filler)).take(BATCH);
        for case in padded() {
            message.extend_from_slice(&case.slot());
        }
        for (i, case) in padded().enumerate() {
            let mut state = case.state.clone();
            if i >= cases.len() {
                state.pc = crate::case::CODE_BASE + (i * SLOT) as u64;
            }
            state.encode(&mut message);
            message.extend_from_slice(&case.window);
        }
        let input = self.input.as_mut().expect("the pipe is open until drop");
        input.write_all(&message)?;
        input.flush()?;
        Ok(())
    }

    /// The outcomes of the last batch sent, `count` of them.
    pub fn receive(&mut self, count: usize) -> Result<Vec<Outcome>, Error> {
        let mut bytes = vec![0; BATCH * OUTPUT_LEN];
        self.output.read_exact(&mut bytes)?;
        Ok(bytes.chunks(OUTPUT_LEN).take(count).map(outcome).collect())
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        // The closed pipe ends the program.
        self.input = None;
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.elf);
    }
}

fn blank() -> State {
    State { x: [0; 31], sp: 0, pc: 0, nzcv: 0, fpcr: 0, fpsr: 0, v: [0; 32] }
}

fn outcome(record: &[u8]) -> Outcome {
    let signal = u64::from_le_bytes(record[..8].try_into().expect("eight bytes"));
    let (state, fault) = State::decode(&record[16..16 + FRAME_LEN]);
    let end = match signal & 0xffff_ffff {
        4 => End::Undefined,
        5 => End::Breakpoint,
        7 if state.pc & 3 != 0 => End::PcAlignment,
        7 => End::Alignment,
        11 => End::Abort,
        other => End::Other(other),
    };
    Outcome { end, state, fault, window: record[16 + FRAME_LEN..].to_vec() }
}

/// Writes a fresh executable file into the temporary directory.
fn write_exclusively(bytes: &[u8]) -> Result<PathBuf, Error> {
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("squib-difftest-{}-{serial}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path)?;
    file.write_all(bytes)?;
    Ok(path)
}
