//! Runs every conformance test in a process of its own and lists each fact with what was found.
//!
//! ```text
//! conformance-report BUILD_MESSAGES OUTPUT_DIRECTORY [SECONDS]
//! ```
//!
//! `BUILD_MESSAGES` are those of `cargo test --no-run --message-format json`, which say where the suite is; a test that takes more than
//! `SECONDS` (120) is ended and counts as failed. `make conformance-report` calls it.
//!
//! On Apple silicon the suite meets Hypervisor.framework: one run there says which facts the stand-in has wrong, and with which
//! `SQUIB_SIM` it behaves like that machine. Ends with 1 when a fact is refuted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use squib_tests::facts::{self, Checked, FACTS};
use squib_tests::switches::{self, Finding};

/// A test that takes longer (if nothing else is said) hangs, as guests on a framework that behaves differently may.
const PATIENCE: Duration = Duration::from_secs(120);

/// How one test went.
struct Run {
    name: String,
    passed: bool,
    /// Why not.
    reason: String,
    /// What it found where the facts are open.
    probes: Vec<String>,
    /// Where it found the stand-in's switches, as it said so.
    switches: Vec<String>,
}

/// What is said of one fact.
struct Row {
    label: String,
    text: &'static str,
    verdict: &'static str,
    details: Vec<String>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (messages, directory, patience) = match arguments.as_slice() {
        [messages, directory] => (messages, directory, Some(PATIENCE)),
        [messages, directory, seconds] => (messages, directory, seconds.parse().ok().map(Duration::from_secs)),
        _ => return usage(),
    };
    let Some(patience) = patience else { return usage() };
    match suite(Path::new(messages)).and_then(|suite| report(&suite, Path::new(directory), patience)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance-report: {error}");
            ExitCode::from(2)
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: conformance-report BUILD_MESSAGES OUTPUT_DIRECTORY [SECONDS] (make conformance-report does it)");
    ExitCode::from(2)
}

/// The suite that cargo has built.
fn suite(messages: &Path) -> Result<PathBuf, String> {
    let text = std::fs::read_to_string(messages).map_err(|error| format!("{}: {error}", messages.display()))?;
    let mut messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let built =
        messages.find(|message| message["target"]["name"] == "conformance" && message["executable"].is_string());
    let path = built.as_ref().and_then(|message| message["executable"].as_str());
    path.map(PathBuf::from).ok_or_else(|| "cargo has built no conformance suite".to_owned())
}

/// Whether nothing was refuted.
fn report(suite: &Path, directory: &Path, patience: Duration) -> Result<bool, String> {
    squib_tests::sign(suite);
    let host = host();
    let run = |name| run(suite, name, &host, patience);
    let runs: Vec<Run> = tests(suite)?.into_iter().map(run).collect::<Result<_, _>>()?;
    let rows: Vec<Row> = FACTS.iter().map(|fact| row(fact, &runs)).collect();
    for row in &rows {
        println!("{:<7} {:<10} {}", row.label, row.verdict, row.text);
        row.details.iter().for_each(|detail| println!("{:19}{detail}", ""));
    }
    let mut verdicts: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *verdicts.entry(row.verdict).or_default() += 1);
    let unnamed: Vec<&Run> = runs.iter().filter(|run| facts::of_test(&run.name).is_empty()).collect();
    let failed = unnamed.iter().filter(|run| !run.passed).count();
    let summary: Vec<String> = verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
    let summary = format!("{}; {} tests of no single fact, {failed} failed", summary.join(", "), unnamed.len());
    println!("\n{host}\n{summary}");
    let failures: Vec<String> =
        unnamed.iter().filter(|run| !run.passed).map(|run| format!("{}: {}", run.name, run.reason)).collect();
    failures.iter().for_each(|failure| println!("failed: {failure}"));
    let findings = switches::findings(runs.iter().flat_map(|run| &run.switches).map(String::as_str));
    println!("\n{}", switch_lines(&findings));
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        println!("written: {}", path.display());
        Ok::<_, String>(())
    };
    write("report.json", format!("{:#}\n", as_json(&host, &rows, &runs, &findings)))?;
    let head = format!("{host}. squib {}.\n\n{summary}.", env!("CARGO_PKG_VERSION"));
    write("report.md", as_markdown(&head, &rows, &failures, &findings))?;
    Ok(runs.iter().all(|run| run.passed))
}

/// The tests of the suite that can run on the framework.
fn tests(suite: &Path) -> Result<Vec<String>, String> {
    let list = Command::new(suite).arg("--list").output().map_err(|error| format!("{}: {error}", suite.display()))?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let names: Vec<String> = names.filter(|name| !name.starts_with("switches::")).map(str::to_owned).collect();
    if names.is_empty() { Err(format!("{} has no tests", suite.display())) } else { Ok(names) }
}

fn run(suite: &Path, name: String, host: &str, patience: Duration) -> Result<Run, String> {
    let mut command = Command::new(suite);
    command.args(["--exact", &name, "--nocapture", "--test-threads=1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Beside the guests: what builds leave is cleaned away between two versions of a system.
    command.env(switches::STATES, squib_tests::guest_cache().join("conformance")).env(switches::SYSTEM, host);
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", suite.display()))?;
    let mut output = child.stdout.take().expect("piped");
    let mut errors = child.stderr.take().expect("piped");
    let output = thread::spawn(move || text(&mut output));
    let errors = thread::spawn(move || text(&mut errors));
    let began = Instant::now();
    let ended = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break Some(status),
            None if began.elapsed() > patience => {
                // It may have ended this very moment.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    let (output, errors) = (output.join().unwrap_or_default(), errors.join().unwrap_or_default());
    let probes = output.lines().filter_map(|line| Some(line.split_once("probe: ")?.1.to_owned())).collect();
    let switches = output.lines().filter(|line| switches::said(line).is_some()).map(str::to_owned).collect();
    let said = errors.lines().skip_while(|line| !line.contains("panicked at")).take(4);
    let said: Vec<&str> = said.map(str::trim).filter(|line| !line.starts_with("note:")).collect();
    let said = said.join(" ");
    let reason = match ended {
        // A thread that failed may be what the others wait for.
        None if said.is_empty() => format!("did not end within {} s", patience.as_secs()),
        None => format!("did not end within {} s: {said}", patience.as_secs()),
        Some(status) if !status.success() && said.is_empty() => status.to_string(),
        Some(status) if !status.success() => said,
        Some(_) => String::new(),
    };
    Ok(Run { name, passed: ended.is_some_and(|status| status.success()), reason, probes, switches })
}

fn text(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    // What was said before an error counts.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn row(fact: &'static facts::Fact, runs: &[Run]) -> Row {
    let (label, text) = (fact.label(), fact.text);
    if let Checked::Elsewhere(place) = fact.checked {
        return Row { label, text, verdict: "elsewhere", details: vec![place.to_owned()] };
    }
    let is_it = |run: &&Run| facts::of_test(&run.name).iter().any(|of| of.id == fact.id);
    let of_it: Vec<&Run> = runs.iter().filter(is_it).collect();
    let failures = of_it.iter().filter(|run| !run.passed).map(|run| format!("{}: {}", run.name, run.reason));
    let failures: Vec<String> = failures.collect();
    let probes: Vec<String> = of_it.iter().flat_map(|run| run.probes.clone()).collect();
    let verdict = match (of_it.is_empty(), failures.is_empty(), probes.is_empty()) {
        (true, ..) => "untested",
        (_, false, _) => "refuted",
        (.., false) => "probed",
        _ => "confirmed",
    };
    Row { label, text, verdict, details: failures.into_iter().chain(probes).collect() }
}

/// What was tested, and on what.
fn host() -> String {
    let framework = cfg!(all(target_os = "macos", target_arch = "aarch64", not(feature = "sim")));
    let provider = if framework { "Hypervisor.framework" } else { "the software stand-in" };
    let mut line = format!("{provider} on {} {}", std::env::consts::OS, std::env::consts::ARCH);
    for (program, arguments) in [
        ("sw_vers", &["-productVersion"][..]),
        ("sw_vers", &["-buildVersion"]),
        ("sysctl", &["-n", "machdep.cpu.brand_string"]),
    ] {
        // Apple's own; elsewhere the line ends here.
        let said = Command::new(program).args(arguments).stderr(Stdio::null()).output();
        if let Some(said) = said.ok().filter(|said| said.status.success()) {
            let _ = write!(line, ", {}", String::from_utf8_lossy(&said.stdout).trim());
        }
    }
    line
}

fn as_json(host: &str, rows: &[Row], runs: &[Run], findings: &[Finding]) -> Value {
    let rows = rows
        .iter()
        .map(|row| json!({ "fact": row.label, "text": row.text, "verdict": row.verdict, "details": row.details }));
    let runs = runs
        .iter()
        .map(|run| json!({ "test": run.name, "passed": run.passed, "reason": run.reason, "probes": run.probes }));
    let switches = findings.iter().map(|Finding { switch, position }| {
        let (position, unknown) = (position.as_ref().ok(), position.as_ref().err());
        json!({ "switch": switch.key, "position": position, "unknown": unknown, "default": switch.default, "fact": switch.probe.ok() })
    });
    json!({
        "host": host,
        "facts": rows.collect::<Vec<_>>(),
        "switches": switches.collect::<Vec<_>>(),
        "SQUIB_SIM": switches::setting(findings),
        "tests": runs.collect::<Vec<_>>(),
    })
}

/// What a reader needs to know who has not seen the suite.
const VERDICTS: &str = "\
Each fact about the framework was tried by the tests named after it (`tests/tests/conformance/`): *confirmed* is as squib believes; *refuted* is \
not, and what was found instead stands beside it: there the stand-in is wrong, and perhaps squib; *probed* is so as far as squib \
relies on it, and what was open about it stands answered beside it; *elsewhere* is about hosts, and what is named there checks it; *untested* should not be. Please send this file and \
`report.json` to the project.";

fn as_markdown(head: &str, rows: &[Row], failures: &[String], findings: &[Finding]) -> String {
    let mut text = format!("# Conformance report\n\n{head}\n\n{VERDICTS}\n\n");
    let _ = write!(text, "| fact | verdict | text | found |\n|---|---|---|---|\n");
    for row in rows {
        let details = row.details.join("; ").replace('|', "\\|");
        let _ = writeln!(text, "| {} | {} | {} | {details} |", row.label, row.verdict, row.text);
    }
    if !failures.is_empty() {
        let _ = write!(text, "\n## Failed, of no single fact\n\n");
        failures.iter().for_each(|failure| {
            let _ = writeln!(text, "- {failure}");
        });
    }
    let _ = write!(text, "\n## Switches\n\n| switch | here | stand-in's default | fact |\n|---|---|---|---|\n");
    for Finding { switch, position } in findings {
        let here = position.as_ref().unwrap_or_else(|why| why).replace('|', "\\|");
        let _ =
            writeln!(text, "| {} | {here} | {} | {} |", switch.key, switch.default, switch.probe.unwrap_or_default());
    }
    let _ = write!(text, "\n{}\n", behaves_like(findings));
    text
}

/// The switches that are not where the stand-in has them, or not known; then the setting that is this machine.
fn switch_lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { switch, position } in findings {
        let _ = match position {
            Ok(position) if position == switch.default => Ok(()),
            Ok(position) => writeln!(text, "switch {}: {position} (default: {})", switch.key, switch.default),
            Err(why) => writeln!(text, "switch {}: {why}", switch.key),
        };
    }
    text + &behaves_like(findings)
}

fn behaves_like(findings: &[Finding]) -> String {
    format!("The stand-in behaves like this machine with SQUIB_SIM={}", switches::setting(findings))
}
