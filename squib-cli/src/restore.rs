//! `squib restore`: brings a snapshot back, in this new process.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use squib_host::pager::WorkingSetFile;
use squib_host::{ChainDir, Machine, PagerConfig, RestoreBackend, RestoreConfig, SaveTarget};

use crate::backend;
use crate::drive::Plan;
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::interrupt::Interrupts;
use crate::merge::{Files, files};
use crate::options::{Clock, EndArgs, SnapshotArgs, seconds};
use crate::tracking::TrackArgs;

const AFTER_HELP: &str = "\
Examples:
  squib restore --state vm.state --memory-file vm.mem
  squib restore --state vm.state --memory-file vm.mem --backend copy --timeout 60
  squib restore --state vm.state --backend uffd --backend-path pages.sock
  squib restore --state vm.state --memory-file vm.mem --backend file --working-set record --exit-on ready
  squib restore --state vm.state --memory-file vm.mem --snapshot-on done --state-out vm2.state --memory-out vm2.mem
  squib restore --state vm.state --memory-file vm.mem --diff vm1.state --diff vm2.state
  squib restore --chain vm --at 3
  squib restore --chain vm --track-dirty-pages --snapshot-every 5

One snapshot can be restored any number of times, at the same time too: its files are only read. Disks that the guest
may write to are the exception: give each restore its own copy with --disk.

The guest's time goes on where it stopped. The host's is in its real-time clock (hwclock -s) and in /dev/ptp0 (chrony).";

/// How long a page server may be away if nobody says otherwise.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(60);
const NO_SOCKET: &str = "--backend uffd needs the socket of a page server: --backend-path";

/// How RAM arrives.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Backend {
    /// Map the memory file: the guest starts at once, pages arrive when it touches them (those of diffs are read first)
    #[default]
    Map,
    /// Read everything before the guest starts
    Copy,
    /// Read each page when it is first needed, and compare it with its checksum
    File,
    /// Fetch each page from a page server (--backend-path) when it is first needed, and compare it with its checksum
    Uffd,
}

/// What to do with the snapshot's working set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum WorkingSetUse {
    /// Bring its pages first, if the file is there
    #[default]
    Use,
    /// Write down, at the end of the run, which pages were needed; brings nothing but these (as --no-stream --fault-around 1)
    Record,
    /// Leave it alone
    Ignore,
}

/// How a pager works.
#[derive(clap::Args, Debug)]
struct LazyArgs {
    /// Bring in only what is needed, nothing in the background (--backend file, uffd)
    #[arg(long)]
    no_stream: bool,
    /// The pages that an earlier run needed, in its order (--backend file, uffd): bring them first if they were recorded, record
    /// them, or neither
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    working_set: WorkingSetUse,
    /// Where the working set is [default: beside the state file, STATE.working-set]
    #[arg(long, value_name = "FILE")]
    working_set_file: Option<PathBuf>,
    /// How many neighbouring pages of 16 KiB one access may bring along where they cost nothing (--backend file, uffd) [default: 8]
    #[arg(long, value_name = "PAGES", value_parser = clap::value_parser!(u32).range(1..))]
    fault_around: Option<u32>,
}

impl LazyArgs {
    /// How the pager of `config`'s machine works, if it is to be `lazy`; and the working set to record.
    fn pager(self, config: &RestoreConfig, lazy: bool, plan: &Plan) -> Result<(PagerConfig, Option<WorkingSetFile>)> {
        let record = self.working_set == WorkingSetUse::Record;
        if !lazy && (record || self.working_set_file.is_some()) {
            let text = "--working-set is about memory that arrives on demand: it goes with --backend file or uffd";
            return Err(Error::Usage(text.into()));
        }
        let stream = !self.no_stream && !record;
        let file = match self.working_set {
            WorkingSetUse::Record => Some(WorkingSetFile::new(config, self.working_set_file)?),
            WorkingSetUse::Use if lazy && stream => Some(WorkingSetFile::new(config, self.working_set_file)?),
            _ => None,
        };
        let first = match &file {
            Some(file) if stream => recorded(file, plan),
            Some(file) => check_writable(file.path()).map(|()| Vec::new())?,
            None => Vec::new(),
        };
        let fault_around =
            if record { 1 } else { self.fault_around.unwrap_or_else(|| PagerConfig::default().fault_around) };
        let pager = PagerConfig { stream, fault_around, first, observer: Some(plan.observer()) };
        Ok((pager, file.filter(|_| record)))
    }
}

/// Bring a snapshot back and go on from there.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// The snapshot's state file
    #[arg(long, value_name = "FILE", required_unless_present = "chain")]
    state: Option<PathBuf>,
    /// The snapshot's memory file; a page server has it for --backend uffd
    #[arg(long, value_name = "FILE")]
    memory_file: Option<PathBuf>,
    /// A diff on top of that snapshot; again for the next one, oldest first
    #[arg(long = "diff", value_name = "STATE[,MEMORY]", value_parser = files, requires = "state", conflicts_with = "chain")]
    diffs: Vec<Files>,
    /// A chain in place of single files: what --snapshot-every wrote. With --snapshot-every it is continued
    #[arg(long, value_name = "DIR", conflicts_with_all = ["state", "memory_file"])]
    chain: Option<PathBuf>,
    /// Which link of the chain [default: the last]
    #[arg(long, value_name = "N", requires = "chain", conflicts_with = "state")]
    at: Option<usize>,
    /// How RAM arrives
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// The socket of the page server (--backend uffd); see squib page-server
    #[arg(long, value_name = "SOCKET")]
    backend_path: Option<PathBuf>,
    /// How long the page server may be away: the guest stands still and goes on when it is back (--backend uffd) [default: 60]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    backend_timeout: Option<Duration>,
    #[command(flatten)]
    lazy: LazyArgs,
    /// Say at the end what the pager did, on standard error (--backend file, uffd)
    #[arg(long)]
    stats: bool,
    /// Use FILE in place of the snapshot's first disk; again for the second, and so on
    #[arg(long = "disk", value_name = "FILE")]
    disks: Vec<PathBuf>,
    #[command(flatten)]
    track: TrackArgs,
    /// Begin a new chain in DIR with --snapshot-every, and leave the one restored from as it is
    #[arg(
        long,
        value_name = "DIR",
        requires = "snapshot_every",
        conflicts_with_all = ["snapshot_on", "snapshot_after_instructions"]
    )]
    chain_out: Option<PathBuf>,
    /// What drives the guest's clock from here on
    #[arg(long, value_enum, default_value_t)]
    clock: Clock,
    /// Where the new snapshot's state goes
    #[arg(long, value_name = "FILE")]
    state_out: Option<PathBuf>,
    /// Where the new snapshot's memory goes
    #[arg(long, value_name = "FILE")]
    memory_out: Option<PathBuf>,
    #[command(flatten)]
    snapshot: SnapshotArgs,
    #[command(flatten)]
    end: EndArgs,
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let started = Instant::now();
    let lazy = matches!(args.backend, Backend::File | Backend::Uffd);
    check(&args, lazy)?;
    let files = (args.state_out, args.memory_out);
    let plan = Plan::new(args.snapshot.plan(files, ("--state-out", "--memory-out"), args.clock)?, args.end)
        .with_pager_stats(args.stats)
        .with_chain(args.track.plan(args.chain_out.or_else(|| args.chain.clone()))?);
    let mut config = match (args.chain, args.state) {
        (Some(dir), _) => ChainDir::open(dir)?.restore_config(args.at)?,
        (None, Some(state)) => RestoreConfig::new(state, args.memory_file.unwrap_or_default()),
        (None, None) => {
            return Err(Error::Usage("what is to be restored? Give --chain, or --state and --memory-file".into()));
        }
    };
    config.diffs.extend(args.diffs.into_iter().map(|(state, memory)| SaveTarget { state, memory }));
    let (backend, server) = match (args.backend, args.backend_path) {
        (Backend::Map, None) => (RestoreBackend::Map, None),
        (Backend::Copy, None) => (RestoreBackend::Copy, None),
        (Backend::File, None) => (RestoreBackend::File, None),
        (Backend::Uffd, Some(path)) => {
            let diffs: Vec<_> = config.diffs.iter().map(|diff| diff.state.clone()).collect();
            let timeout = args.backend_timeout.unwrap_or(BACKEND_TIMEOUT);
            let (backend, server) = backend::connect(path, &config.state, &diffs, timeout)?;
            (backend, Some(server))
        }
        (Backend::Uffd, None) => return Err(Error::Usage(NO_SOCKET.into())),
        (_, Some(_)) => return Err(Error::Usage("--backend-path goes with --backend uffd".into())),
    };
    let plan = plan.with_server(server);
    config.backend = backend;
    let (pager, working_set) = args.lazy.pager(&config, lazy, &plan)?;
    let plan = plan.recording(working_set).with_streaming(pager.stream);
    config.pager = pager;
    config.disks = args.disks.into_iter().map(Some).collect();
    config.clock = args.clock.into();
    (config.track_dirty_pages, config.dirty_granule) = args.track.tracking();
    config.console = args.clock.console(plan.watches());
    let interrupts = Interrupts::catch()?;
    let machine = Machine::restore(config)?;
    plan.drive(machine, started, interrupts)
}

/// Refuses options that would do nothing, and a restore that lacks its memory.
fn check(args: &Args, lazy: bool) -> Result<()> {
    let usage = |text: String| Err(Error::Usage(text));
    let on_demand = [
        (args.lazy.no_stream, "--no-stream"),
        (args.lazy.fault_around.is_some(), "--fault-around"),
        (args.stats, "--stats"),
    ];
    if let (false, Some((_, option))) = (lazy, on_demand.iter().find(|(given, _)| *given)) {
        return usage(format!("{option} is about memory that arrives on demand: it goes with --backend file or uffd"));
    }
    let uffd = matches!(args.backend, Backend::Uffd);
    if !uffd && args.backend_timeout.is_some() {
        return usage("--backend-timeout is about a page server: it goes with --backend uffd".into());
    }
    if args.chain.is_none() && args.memory_file.is_none() {
        return match (uffd, &args.backend_path) {
            (true, Some(_)) => Ok(()),
            (true, None) => usage(NO_SOCKET.into()),
            (false, Some(_)) => usage("--backend-path goes with --backend uffd".into()),
            (false, None) => usage("where is the memory of this snapshot? Give --memory-file".into()),
        };
    }
    Ok(())
}

/// Finds the likeliest mistakes before the run whose end they would spoil.
fn check_writable(file: &Path) -> Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let text = match (directory.is_dir(), file.is_dir()) {
        (true, false) => return Ok(()),
        (true, true) => "it is a directory".into(),
        (false, _) => format!("there is no directory {}", directory.display()),
    };
    Err(Error::Message(format!("the working set cannot be written to {}: {text}", file.display())))
}

/// What the working set says is to be brought first. One that cannot be used is told, and the restore goes on without it.
fn recorded(file: &WorkingSetFile, plan: &Plan) -> Vec<Range<u64>> {
    match file.load() {
        Ok(ranges) => ranges.unwrap_or_default(),
        Err(error) => {
            plan.report().working_set_ignored(&error);
            Vec::new()
        }
    }
}
