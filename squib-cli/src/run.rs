//! `squib run`: boots a kernel and stays with it until it ends.

use std::path::PathBuf;
use std::time::Instant;

use squib_host::{DiskConfig, Machine, MachineConfig};

use crate::drive::Plan;
use crate::error::Result;
use crate::exit::Exit;
use crate::interrupt::Interrupts;
use crate::options::{self, Clock, EndArgs, SnapshotArgs};
use crate::tracking::TrackArgs;

const AFTER_HELP: &str = "\
Examples:
  squib run --kernel Image --initrd initramfs.cpio
  squib run --kernel Image --initrd initramfs.cpio --disk root.ext4 --disk data.img,ro --cpus 4 --memory 2048
  squib run --kernel Image --initrd initramfs.cpio --cmdline 'console=ttyAMA0 quiet run=\"uname -a; count 5\"'
  squib run --kernel Image --initrd initramfs.cpio --snapshot-on ready --state vm.state --memory-file vm.mem --then continue
  squib run --kernel Image --initrd initramfs.cpio --track-dirty-pages --snapshot-every 5 --chain vm

A terminal is put into raw mode while the guest runs: Ctrl-C goes to the guest, Ctrl-A x ends squib.
A stopped squib (SIGTSTP, SIGSTOP) leaves the terminal as it was and takes it again with SIGCONT.
A kernel that panics stands still; with panic=-1 on its command line it resets. A reset, whoever asked for it, ends the run with
exit code 0 and a line that says so.";

/// Boot a guest and stay with its console until it ends.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// An arm64 kernel: Image, Image.gz, Image.zst or EFI zboot
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// A raw disk image, /dev/vda and so on in the order given; `,ro` makes it read-only
    #[arg(long = "disk", value_name = "FILE[,ro]", value_parser = options::disk)]
    disks: Vec<DiskConfig>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyAMA0")]
    cmdline: String,
    /// RAM in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = options::mebibytes)]
    memory: u64,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: u32,
    #[command(flatten)]
    track: TrackArgs,
    /// The directory of the chain that --snapshot-every writes: DIR/0000.state, DIR/0000.mem, DIR/0001.state and so on
    #[arg(
        long,
        value_name = "DIR",
        requires = "snapshot_every",
        conflicts_with_all = ["snapshot_on", "snapshot_after_instructions"]
    )]
    chain: Option<PathBuf>,
    /// What drives the guest's clock
    #[arg(long, value_enum, default_value_t)]
    clock: Clock,
    /// Where the snapshot's state goes
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Where the snapshot's memory goes
    #[arg(long, value_name = "FILE")]
    memory_file: Option<PathBuf>,
    #[command(flatten)]
    snapshot: SnapshotArgs,
    #[command(flatten)]
    end: EndArgs,
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let started = Instant::now();
    let files = (args.state, args.memory_file);
    let plan = Plan::new(args.snapshot.plan(files, ("--state", "--memory-file"), args.clock)?, args.end)
        .with_chain(args.track.plan(args.chain)?);
    let (track_dirty_pages, dirty_granule) = args.track.tracking();
    let interrupts = Interrupts::catch()?;
    let machine = Machine::boot(MachineConfig {
        kernel: args.kernel,
        initrd: args.initrd,
        cmdline: args.cmdline,
        memory_mib: args.memory,
        cpus: args.cpus,
        disks: args.disks,
        track_dirty_pages,
        dirty_granule,
        clock: args.clock.into(),
        console: args.clock.console(plan.watches()),
    })?;
    plan.drive(machine, started, interrupts)
}
