//! RAM that is filled before the guest runs, checked against its checksums.

use std::sync::atomic::{AtomicU64, Ordering};

use squib_snapshot::Chain;

use crate::error::{Error, Result};
use crate::memory::{GuestRam, is_hole};

/// Threads that read memory files, and how much each takes at a time.
const THREADS: usize = 8;
const PART: u64 = 2 << 20;

/// Reads all of RAM. Zeros need no reading: RAM starts as zeros.
pub fn copy(ram: &GuestRam, chain: &Chain) -> Result<()> {
    in_parts(ram.size(), |start, part| match chain.is_known_zero(start, part.len() as u64) {
        true => check_zero(chain, start, part),
        false => fill(ram, chain, start, part),
    })
}

/// Reads the pages of the diffs. Those of the base are in place already.
pub fn overlay(ram: &GuestRam, chain: &Chain) -> Result<()> {
    if chain.links().len() == 1 {
        return Ok(());
    }
    in_parts(ram.size(), |start, part| {
        let (mut at, end) = (start, start + part.len() as u64);
        while at < end {
            let (link, stop) = chain.locate(at, end);
            if link > 0 {
                fill(ram, chain, at, &mut part[..(stop - at) as usize])?;
            }
            at = stop;
        }
        Ok(())
    })
}

/// Handles all of RAM in parts, by several threads. `part` is given the offset and a buffer as long as the part.
fn in_parts(size: u64, part: impl Fn(u64, &mut [u8]) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU64::new(0);
    let work = || -> Result<()> {
        let mut buf = vec![0; PART as usize];
        loop {
            let start = next.fetch_add(PART, Ordering::Relaxed);
            if start >= size {
                return Ok(());
            }
            part(start, &mut buf[..PART.min(size - start) as usize])?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| match thread.join() {
            Ok(result) => result,
            Err(_) => Err(Error::State("a thread that reads a memory file panicked".into())),
        };
        threads.into_iter().try_for_each(join)
    })
}

fn fill(ram: &GuestRam, chain: &Chain, start: u64, part: &mut [u8]) -> Result<()> {
    chain.read_checked(start, part)?;
    ram.write_fill(start, part).map_err(|source| Error::System { action: "fill guest RAM".into(), source })
}

/// Checks that a part of RAM that was zero when it was saved is zero in the file. A hole is, and is not read.
fn check_zero(chain: &Chain, start: u64, part: &mut [u8]) -> Result<()> {
    let pair = &chain.links()[0];
    if is_hole(pair.memory_file(), start, part.len() as u64) {
        return Ok(());
    }
    chain.read_unchecked(start, part)?;
    if part.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "the memory file {} has been altered since it was saved: {start:#x} to {end:#x} were all zero",
        pair.memory_path().display(),
        end = start + part.len() as u64,
    )))
}
