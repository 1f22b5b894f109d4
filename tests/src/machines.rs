//! Machines in the test's own process, for what the program does not show: one after the other, as the framework allows one at a time.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use squib_host::{ConsoleConfig, Machine, MachineConfig, RunOutcome, Watch, WatchId};

use crate::{PATIENCE, QUICK_BOOT, image};

/// The tests of one file take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

/// A bare-metal guest of `guest-images/bare`.
pub fn bare_image(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/bare").join(name)
}

/// A guest of the cache with shell commands for its `/init`.
pub fn guest(name: &str, memory_mib: u64, commands: &str) -> MachineConfig {
    let how = if name == "minimal" { "make minimal-kernel" } else { "guest-images/fetch.sh" };
    let mut config = MachineConfig::new(image(&format!("{name}/Image"), how));
    config.initrd = Some(image(&format!("{name}/initramfs.cpio"), how));
    config.cmdline = format!("{QUICK_BOOT} run=\"{commands}\"");
    config.memory_mib = memory_mib;
    config
}

/// Lets a machine run for a while. It stands still afterwards.
#[track_caller]
pub fn run_for(machine: &mut Machine, time: Duration) {
    let outcome = machine.run(Some(time)).expect("the machine runs");
    assert!(matches!(outcome, RunOutcome::TimedOut), "{outcome:?}");
}

/// What a guest printed.
#[derive(Clone, Debug, Default)]
pub struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no reader panics").write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    /// All of it so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no writer panics")).replace('\r', "")
    }

    /// A console that prints here and stops the machine at each of `texts`.
    pub fn console(&self, texts: &[&str]) -> ConsoleConfig {
        let watch = |(n, text): (usize, &&str)| Watch { id: WatchId(n as u32), text: (*text).into() };
        let watches = texts.iter().enumerate().map(watch).collect();
        ConsoleConfig { output: Box::new(self.clone()), watches, ..Default::default() }
    }

    /// Waits until a machine that runs meanwhile has printed `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let start = Instant::now();
        while !self.text().contains(text) {
            assert!(start.elapsed() < PATIENCE, "no '{text}' in {}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs until the machine stops at one of its texts.
    #[track_caller]
    pub fn run_to_watch(&self, machine: &mut Machine) {
        let outcome = machine.run(Some(Duration::from_secs(120))).expect("the machine runs");
        assert!(matches!(outcome, RunOutcome::Stopped(_)), "{outcome:?} after {}", self.text());
    }
}

/// How many rounds a test does that could go on for ever: `usual`, `long` with the feature of that name, and a third of them where the
/// suite is run again with switches of the stand-in turned (`SQUIB_SIM`).
pub fn rounds(usual: usize, long: usize) -> usize {
    let rounds = if cfg!(feature = "long") { long } else { usual };
    let again = std::env::var_os("SQUIB_SIM").is_some_and(|switches| !switches.is_empty());
    if again { rounds.div_ceil(3) } else { rounds }
}

/// Numbers that a failed test can be repeated with: SplitMix64 from `SQUIB_SEED`, or any.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Prints the seed.
    pub fn new() -> Random {
        let any = || RandomState::new().hash_one(0);
        let seed = std::env::var("SQUIB_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(any);
        println!("SQUIB_SEED={seed}");
        Random(seed)
    }

    /// The next number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % limit
    }
}

impl Default for Random {
    fn default() -> Self {
        Random::new()
    }
}
