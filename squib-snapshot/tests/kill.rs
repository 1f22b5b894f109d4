//! Kills a saving process at random moments and looks, each time, whether a whole pair is there.
//!
//! `cargo test -p squib-snapshot --test kill` does a hundred kills; `SQUIB_KILLS=1000` in the environment a thousand. Without the
//! usual harness, because the program starts itself as the process to be killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use squib_snapshot::*;

const RAM: usize = 512 << 10;

fn ram(generation: u64) -> Vec<u8> {
    let mut ram = vec![0; RAM];
    for (page, bytes) in ram.chunks_mut(4096).enumerate() {
        if !(page as u64 + generation).is_multiple_of(3) {
            bytes[..8].copy_from_slice(&(generation << 16 | page as u64).to_le_bytes());
        }
    }
    ram
}

/// Saves one generation after another until it is killed.
fn child(dir: &Path, mut generation: u64) -> ! {
    let (state_path, memory_path) = (dir.join("vm.snap"), dir.join("vm.mem"));
    loop {
        let state = MicrovmState {
            vcpu_states: vec![VcpuState::new(generation)],
            gic_state: GicState::from_bytes(vec![1]),
            ..MicrovmState::default()
        };
        save_pair(&PairRequest {
            state_path: &state_path,
            memory_path: &memory_path,
            state: &state,
            machine: &MachineRecord::default(),
            memory: &ram(generation),
            ram_start: 0,
            ram_size: RAM as u64,
            contents: Contents::Full,
            block_size: 65536,
        })
        .expect("the save works");
        println!("{generation}");
        generation += 1;
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, dir, generation] = args.as_slice()
        && flag == "--child"
    {
        child(Path::new(dir), generation.parse().expect("a number"));
    }
    if args.iter().any(|a| a == "--list") {
        println!("kill: test");
        return;
    }
    let kills: u32 = std::env::var("SQUIB_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let seed: u64 = std::env::var("SQUIB_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x5eed);
    println!("kill: {kills} kills, SQUIB_SEED={seed}");
    // A kill loses nothing that the kernel has, so a file system in memory proves as much and spares the disk.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.expect("a directory");
    let (state_path, memory_path) = (dir.path().join("vm.snap"), dir.path().join("vm.mem"));
    let (mut random, mut last, mut interrupted) = (seed | 1, 0, 0);
    for kill in 0..kills {
        let started = Instant::now();
        let mut saver = Command::new(std::env::current_exe().expect("this program"))
            .args(["--child", dir.path().to_str().expect("a Unicode path"), &(last + 1).to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let mut lines = BufReader::new(saver.stdout.take().expect("its output")).lines();
        let done: u64 = lines.next().expect("a first save").expect("a line").parse().expect("a number");
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Anywhere within the next save, however long saves take here.
        let one_save = started.elapsed().as_micros() as u64;
        std::thread::sleep(Duration::from_micros(random % (one_save * 5 / 4)));
        saver.kill().expect("it is killed");
        saver.wait().expect("it is gone");
        let done = lines.map_while(Result::ok).filter_map(|l| l.parse().ok()).last().unwrap_or(done);

        interrupted += u32::from(dir.path().join("vm.snap.squib-journal").exists());
        let pair = Pair::open(&state_path, &memory_path).unwrap_or_else(|e| panic!("kill {kill}: {e}"));
        pair.verify().unwrap_or_else(|e| panic!("kill {kill}: {e}"));
        let generation = pair.state_file().state().vcpu_states[0].mpidr;
        assert!(generation == done || generation == done + 1, "kill {kill}: saved {done}, found {generation}");
        assert!(fs::read(&memory_path).expect("the memory") == ram(generation), "kill {kill}: mixed pair");
        last = generation;
    }
    recover(dir.path()).expect("recovery works");
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).expect("the directory").map(|e| e.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["vm.mem", "vm.snap"], "nothing is left over");
    println!("kill: ok, {last} saves, {interrupted} of {kills} kills hit a commit");
}
