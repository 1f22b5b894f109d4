//! `squib bench boot`: boot to user space, beside qemu-system-aarch64.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::median;
use crate::child::{self, Sign, Watched};
use crate::demo::{QUICK_BOOT, USER_SPACE};
use crate::error::{Error, Result};
use crate::exit::Exit;
use crate::guest_cache::{self, Guest, GuestArgs};
use crate::options::mebibytes;
use crate::progress::Spinner;
use crate::report::{micros, millis};

const PATIENCE: Duration = Duration::from_secs(120);

const AFTER_HELP: &str = "\
Examples:
  squib bench boot                       the guests of the cache: minimal, bookworm-cloud
  squib bench boot --runs 9 --json
  squib bench boot --kernel Image --initrd initramfs.cpio --memory 1024

Both run the same kernel, initramfs and command line with the same RAM and vCPUs, alternating; the time is from the start
of the process to the guest's first line from user space; the median counts.";

/// Boot to user space, beside qemu-system-aarch64 (TCG).
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    #[command(flatten)]
    guest: GuestArgs,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = QUICK_BOOT)]
    cmdline: String,
    /// RAM in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = mebibytes)]
    memory: u64,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: u32,
    /// How often each boots
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// The emulator to compare with
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-aarch64")]
    qemu: PathBuf,
    /// The processor that it emulates
    #[arg(long, value_name = "CPU", default_value = "cortex-a57")]
    qemu_cpu: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

struct Row {
    name: String,
    squib: Duration,
    qemu: Duration,
}

impl Row {
    fn ratio(&self) -> f64 {
        self.squib.as_secs_f64() / self.qemu.as_secs_f64()
    }
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    let spinner = Spinner::new("looking for the emulator to compare with");
    if Command::new(&args.qemu).arg("--version").output().is_err() {
        return Err(Error::Message(format!(
            "{} cannot be run: install it (Debian: qemu-system-arm), or name it with --qemu",
            args.qemu.display()
        )));
    }
    let guests = match args.guest.named() {
        Some(guest) => vec![(guest.kernel.display().to_string(), guest)],
        None => ["minimal", "bookworm-cloud"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), guest_cache::find(name).ok()?)))
            .collect(),
    };
    if guests.is_empty() {
        guest_cache::find("bookworm-cloud")?;
    }
    let mut rows = Vec::new();
    for (name, guest) in guests {
        let (mut squib, mut qemu) = (Vec::new(), Vec::new());
        for run in 1..=args.runs {
            spinner.say(&format!("{name}: run {run} of {}, squib", args.runs));
            squib.push(user_space(&mut squib_command(&args, &guest)?)?);
            spinner.say(&format!("{name}: run {run} of {}, qemu", args.runs));
            qemu.push(user_space(&mut qemu_command(&args, &guest))?);
        }
        rows.push(Row { name, squib: median(squib), qemu: median(qemu) });
    }
    drop(spinner);
    match args.json {
        true => print_json(&rows, &args),
        false => print_table(&rows, &args),
    }
    Ok(Exit::Done)
}

fn squib_command(args: &Args, guest: &Guest) -> Result<Command> {
    let mut command = child::myself()?;
    command.arg("run").arg("--kernel").arg(&guest.kernel).arg("--initrd").arg(&guest.initrd);
    command.args(["--cmdline", &args.cmdline, "--memory", &args.memory.to_string(), "--cpus", &args.cpus.to_string()]);
    Ok(command)
}

fn qemu_command(args: &Args, guest: &Guest) -> Command {
    let mut command = Command::new(&args.qemu);
    command.args(["-machine", "virt,gic-version=3", "-accel", "tcg", "-cpu", &args.qemu_cpu]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initrd);
    command.args(["-append", &args.cmdline, "-m", &args.memory.to_string(), "-smp", &args.cpus.to_string()]);
    command
}

/// From the start of the process to the guest's first line from user space. The process is ended then.
fn user_space(command: &mut Command) -> Result<Duration> {
    let program = command.get_program().display().to_string();
    let process = Watched::spawn(command)?;
    let (mut console, mut messages) = (Vec::new(), Vec::new());
    while let Some((at, sign)) = process.next(PATIENCE)? {
        match sign {
            Sign::Console(bytes) => console.extend(bytes),
            Sign::Message(line) => messages.push(line),
        }
        if String::from_utf8_lossy(&console).contains(USER_SPACE) {
            return Ok(at);
        }
    }
    let last = messages.last().map_or("it said nothing", |line| line.trim_start_matches("squib: error: "));
    Err(Error::Message(format!("{program} ended before the guest reached user space: {last}")))
}

fn print_json(rows: &[Row], args: &Args) {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "guest": row.name,
                "squib_us": micros(row.squib),
                "qemu_us": micros(row.qemu),
                "ratio": row.ratio(),
            })
        })
        .collect();
    println!(
        "{:#}",
        json!({"bench": "boot", "runs": args.runs, "memory_mib": args.memory, "cpus": args.cpus,
               "qemu_cpu": args.qemu_cpu, "cmdline": args.cmdline, "guests": rows})
    );
}

fn print_table(rows: &[Row], args: &Args) {
    println!(
        "boot to user space, median of {} runs, {} vCPU, {} MiB ({} {})",
        args.runs,
        args.cpus,
        args.memory,
        args.qemu.display(),
        args.qemu_cpu
    );
    println!("{:<24} {:>10} {:>10} {:>12}", "guest", "squib", "qemu", "squib/qemu");
    for row in rows {
        println!("{:<24} {:>10} {:>10} {:>12.2}", row.name, millis(row.squib), millis(row.qemu), row.ratio());
    }
}
