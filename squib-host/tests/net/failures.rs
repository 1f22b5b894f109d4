//! Pages that cannot be had: each ends the process, unless it catches the signal, so each is tried in a process of its own. By the time of the
//! signal nothing has been allocated.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use squib_host::pager::{LazyMemory, RemoteConfig};

use crate::peer::{self, Fault};
use crate::saved::{MIB, PAGE, Saved};
use crate::watch::{seen, watched};
use crate::{files, remote};

/// Says which failure a child of this test is to try.
const CHILD: &str = "SQUIB_NET_CHILD";
/// Exit code of the child if nothing was allocated.
const QUIET: i32 = 42;

#[test]
fn no_failure_costs_an_allocation_before_the_reply() {
    const NAME: &str = "failures::no_failure_costs_an_allocation_before_the_reply";
    let cases: [(&str, fn() -> !); 8] = [
        ("a damaged page of a file", damaged_file),
        ("a damaged page of a file with small blocks", damaged_small_blocks),
        ("stage 2 refuses", refused_mapping),
        ("the page server is away", || from_server(None)),
        ("the page server lies", || from_server(Some(Fault::Lies))),
        ("the page server never answers", || from_server(Some(Fault::Silent))),
        ("the page server says that its file is damaged", || from_server(Some(Fault::Damaged))),
        ("the page server serves something else now", || from_server(Some(Fault::OtherSnapshot))),
    ];
    if let Some(case) = std::env::var_os(CHILD) {
        let (_, case) = cases.into_iter().find(|(name, _)| *name == case).expect("a known case");
        case();
    }
    for (case, _) in cases {
        let mut command = Command::new(std::env::current_exe().expect("the test program"));
        command.args(["--exact", NAME, "--nocapture"]);
        let output = command.env(CHILD, case).output().expect("the test program starts again");
        let told = (output.status.code(), output.status.signal());
        assert_eq!(told, (Some(QUIET), None), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Touches a page that cannot be had, and ends as the signal's handler finds it.
fn touch(lazy: &LazyMemory, offset: usize) -> ! {
    extern "C" fn tell(_signal: i32) {
        let code = if seen() == 0 { QUIET } else { 1 };
        // SAFETY: async-signal-safe.
        unsafe { libc::_exit(code) };
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the handler only calls `_exit`.
        unsafe { libc::signal(signal, tell as extern "C" fn(i32) as libc::sighandler_t) };
    }
    let toucher = lazy.toucher().expect("registered");
    watched(|| drop(toucher.touch(offset as u64)));
    panic!("a page that cannot be had was read");
}

fn damaged(saved: Saved) -> ! {
    let memory = File::options().write(true).open(&saved.links[0].1).expect("the memory file");
    memory.write_all_at(&[!saved.ram[5 * PAGE]], 5 * PAGE as u64).expect("damage");
    touch(&files::lazy(&saved), 5 * PAGE)
}

fn damaged_file() -> ! {
    damaged(Saved::new(6 * MIB, 0))
}

fn damaged_small_blocks() -> ! {
    damaged(Saved::new(6 * MIB, 4096))
}

/// There is no virtual machine any more to map the page into.
fn refused_mapping() -> ! {
    let saved = Saved::new(6 * MIB, 0);
    let lazy = files::lazy(&saved);
    // It may be busy for a while. A hundred times is more than any switch of the stand-in has it say so.
    // SAFETY: plain call; there is no vCPU, and nothing that is mapped is used any more.
    assert!((0..100).any(|_| unsafe { applevisor_sys::hv_vm_destroy() } == 0));
    touch(&lazy, 5 * PAGE)
}

/// A page server that does this once the machine is there, or is gone.
fn from_server(fault: Option<Fault>) -> ! {
    let saved = Saved::new(6 * MIB, 0);
    let socket = saved.file("socket");
    let server = peer::Server::start(&socket, saved.ram.clone(), saved.links[0].2.0, Fault::None);
    let (answer_timeout, exception_patience) = (Duration::from_millis(50), Duration::from_millis(200));
    let lazy = remote::lazy(&saved, RemoteConfig { answer_timeout, exception_patience, ..RemoteConfig::new(&socket) });
    match fault {
        Some(fault) => server.set(fault),
        None => drop(server),
    }
    touch(&lazy, 5 * PAGE)
}

/// The process has no mappings left (Linux): blocks are opened whole, without an allocation.
#[cfg(target_os = "linux")]
#[test]
fn scarce_mappings_cost_no_allocation() {
    const NAME: &str = "failures::scarce_mappings_cost_no_allocation";
    if std::env::var_os(CHILD).is_none() {
        let mut command = Command::new(std::env::current_exe().expect("the test program"));
        let command = command.args(["--exact", NAME, "--nocapture"]).env(CHILD, "mappings");
        let output = command.output().expect("the test program starts again");
        assert_eq!(output.status.code(), Some(QUIET), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let _turn = crate::watch::turn();
    let saved = Saved::new(6 * MIB, 0);
    let lazy = files::lazy(&saved);
    let toucher = lazy.toucher().expect("registered");
    let right = |page: usize| toucher.touch((page * PAGE) as u64).ok() == Some(saved.ram[page * PAGE]);
    // Lone pages, whose mappings the first block gives back; and what threads and checksums take the first time.
    assert!((1..100).step_by(2).all(right));
    let mut full = false;
    let allocations = watched(|| full = use_up_mappings() && [10, 300, 200, 12].into_iter().all(right));
    let stats = lazy.stats();
    assert!(full && stats.pages_around > 70, "blocks were opened: {stats:?}");
    std::process::exit(if allocations == 0 { QUIET } else { 1 });
}

/// Maps pages that the kernel cannot join, until there is no more.
#[cfg(target_os = "linux")]
fn use_up_mappings() -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
    let len = 1 << 30;
    // SAFETY: a new mapping at an address of the kernel's choice, which stays.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: pages of that mapping, which nobody uses.
    (0..len).step_by(8192).any(|offset| unsafe { libc::mprotect(at.add(offset), 4096, libc::PROT_READ) } != 0)
}
