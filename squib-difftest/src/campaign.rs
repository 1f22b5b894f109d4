//! Runs cases on both sides and compares; explains a difference down to the instruction.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::case::{BATCH, CODE_BASE, Case, End, Outcome, SLOT};
use crate::encodings::{self, Class, Form, beyond, bit, field, find};
use crate::generator::{self, Draw};
use crate::reference::{Error, Reference};

/// The side under test.
pub trait Subject {
    /// Runs a batch, each case in the slot its `pc` names.
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Error>;
}

impl Subject for crate::engine::Engine {
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Error> {
        crate::engine::Engine::run(self, cases)
    }
}

impl Subject for Reference {
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Error> {
        self.send(cases)?;
        self.receive(cases.len())
    }
}

/// The table of encodings as a subject for [`Draw::Undefined`] and [`Draw::SystemSpace`]: says UNDEFINED for what no row matches.
pub struct Table;

impl Subject for Table {
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Error> {
        let answer = |case: &Case| {
            let defined = case.code.iter().all(|word| find(*word).is_some());
            let end = if defined { End::Breakpoint } else { End::Undefined };
            Outcome { end, state: case.state.clone(), fault: 0, window: case.window.clone() }
        };
        Ok(cases.iter().map(answer).collect())
    }
}

/// A difference, explained.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The instruction's row, or "unallocated".
    pub name: &'static str,
    /// The whole story, with the command that repeats it.
    pub report: String,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Sequences run and compared.
    pub cases: u64,
    /// Instructions executed.
    pub instructions: u64,
    /// Executions of each row.
    pub coverage: BTreeMap<&'static str, u64>,
    /// Differences, a few for each encoding.
    pub failures: Vec<Failure>,
    /// How many cases differed.
    pub different: u64,
}

/// Where to stop.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Wall clock.
    pub time: Duration,
    /// Cases.
    pub cases: u64,
    /// Differing cases.
    pub failures: u64,
    /// Differences explained for one encoding.
    pub reports: usize,
}

/// Runs cases `first..` of a class until a limit is met.
pub fn run(
    subject: &mut dyn Subject,
    qemu: &Path,
    kind: Draw,
    seed: u64,
    first: u64,
    limits: Limits,
) -> Result<Summary, Error> {
    let mut reference = Reference::start(qemu, kind.cpu())?;
    let mut summary = Summary::default();
    let start = Instant::now();
    let mut index = first;
    while summary.cases < limits.cases && start.elapsed() < limits.time && summary.different < limits.failures {
        let count = (limits.cases - summary.cases).min(BATCH as u64);
        let cases: Vec<Case> = (0..count).map(|i| generator::draw(kind, seed, index + i, i as usize)).collect();
        send(&mut reference, kind, &cases)?;
        let ours = subject.run(&cases)?;
        let theirs = reference.receive(cases.len())?;
        for (i, case) in cases.iter().enumerate() {
            count_coverage(&mut summary, case, &theirs[i]);
            if differences(kind, case, &ours[i], &theirs[i]).is_empty() {
                continue;
            }
            summary.different += 1;
            let id = Id { kind, seed, index: index + i as u64 };
            let failure = explain(subject, &mut reference, id, case, &ours[i], &theirs[i])?;
            if summary.failures.iter().filter(|f| f.name == failure.name).count() < limits.reports {
                summary.failures.push(failure);
            }
        }
        index += count;
    }
    Ok(summary)
}

/// Sends a batch to the reference, without the words it must not be asked about.
fn send(reference: &mut Reference, kind: Draw, cases: &[Case]) -> Result<(), Error> {
    if !kind.only_undefined() {
        return reference.send(cases);
    }
    let answerable =
        |case: &Case| if case.code.iter().any(|word| beyond(*word)) { case.prefix(0) } else { case.clone() };
    reference.send(&cases.iter().map(answerable).collect::<Vec<_>>())
}

fn count_coverage(summary: &mut Summary, case: &Case, outcome: &Outcome) {
    summary.cases += 1;
    let executed = (outcome.state.pc.wrapping_sub(case.state.pc) / 4) as usize;
    for word in case.code.iter().take(executed) {
        summary.instructions += 1;
        if let Some(row) = find(*word) {
            *summary.coverage.entry(row.name).or_default() += 1;
        }
    }
}

/// What differs, in words; nothing when the case passed.
fn differences(kind: Draw, case: &Case, ours: &Outcome, theirs: &Outcome) -> Vec<String> {
    let undefined = |outcome: &Outcome| outcome.end == End::Undefined;
    if kind.only_undefined() {
        let Some(word) = case.code.first().copied() else { return Vec::new() };
        let (expected, who) = match beyond(word) {
            true => (find(word).is_none(), "table of encodings"),
            false => (undefined(theirs), "reference"),
        };
        if undefined(ours) == expected {
            return Vec::new();
        }
        let verdict = if expected { "UNDEFINED" } else { "defined" };
        return vec![format!("end: engine {:x?}, {who}: {verdict} ({:x?})", ours.end, theirs.end)];
    }
    let mut found = Vec::new();
    if ours.end != theirs.end {
        found.push(format!("end: engine {:x?}, reference {:x?}", ours.end, theirs.end));
    }
    let (a, b) = (&ours.state, &theirs.state);
    let mut compare = |name: String, ours: u128, theirs: u128, digits: usize| {
        if ours != theirs {
            found.push(format!("{name}: engine {ours:#0digits$x}, reference {theirs:#0digits$x}"));
        }
    };
    compare("PC".into(), a.pc.into(), b.pc.into(), 18);
    let unknown = Unknown::after(case, theirs);
    for i in (0..31).filter(|i| !unknown.general.contains(&(*i as u32))) {
        compare(format!("X{i}"), a.x[i].into(), b.x[i].into(), 18);
    }
    compare("SP".into(), a.sp.into(), b.sp.into(), 18);
    compare("NZCV".into(), (a.nzcv >> 28).into(), (b.nzcv >> 28).into(), 3);
    compare("FPCR".into(), a.fpcr.into(), b.fpcr.into(), 10);
    compare("FPSR".into(), a.fpsr.into(), b.fpsr.into(), 10);
    if !unknown.vectors {
        for (i, (ours, theirs)) in a.v.iter().zip(b.v).enumerate() {
            compare(format!("V{i}"), *ours, theirs, 34);
        }
    }
    if matches!(theirs.end, End::Abort | End::Alignment) {
        // A reference that finds the fault in the second page of an access reports that page, like the engine; the byte
        // inside it, and the tag, are not compared.
        let page = |fault: u64| (fault << 8 >> 8) >> 12;
        compare("fault page".into(), page(ours.fault).into(), page(theirs.fault).into(), 18);
    }
    if !unknown.memory
        && let Some(at) = (0..ours.window.len()).find(|i| ours.window[*i] != theirs.window[*i])
    {
        let dump = |window: &[u8]| window[at..].iter().take(32).map(|b| format!("{b:02x}")).collect::<String>();
        found.push(format!("memory from +{at:#x}: engine {}, reference {}", dump(&ours.window), dump(&theirs.window)));
    }
    found
}

/// What an access that touches several registers or locations may have left half done when it faulted.
#[derive(Default)]
struct Unknown {
    general: Vec<u32>,
    vectors: bool,
    memory: bool,
}

impl Unknown {
    fn after(case: &Case, outcome: &Outcome) -> Unknown {
        if !matches!(outcome.end, End::Abort | End::Alignment) {
            return Unknown::default();
        }
        let at = (outcome.state.pc.wrapping_sub(case.state.pc) / 4) as usize;
        let Some(word) = case.code.get(at).copied() else { return Unknown::default() };
        let several = find(word).is_some_and(|row| row.form == Form::Pair || row.class == Class::Structure);
        if !several {
            return Unknown::default();
        }
        let general = if bit(word, 26) { Vec::new() } else { vec![field(word, 4, 0), field(word, 14, 10)] };
        Unknown { general, vectors: bit(word, 26), memory: true }
    }
}

#[derive(Clone, Copy)]
struct Id {
    kind: Draw,
    seed: u64,
    index: u64,
}

/// Finds the first instruction after which the two sides differ, by running every prefix of the sequence.
fn explain(
    subject: &mut dyn Subject,
    reference: &mut Reference,
    id: Id,
    case: &Case,
    ours: &Outcome,
    theirs: &Outcome,
) -> Result<Failure, Error> {
    let prefixes: Vec<Case> = (0..=case.code.len())
        .map(|n| {
            let mut prefix = case.prefix(n);
            prefix.state.pc = CODE_BASE + (n * SLOT) as u64;
            prefix
        })
        .collect();
    let our_runs = subject.run(&prefixes)?;
    send(reference, id.kind, &prefixes)?;
    let their_runs = reference.receive(prefixes.len())?;
    let differs = |n: &usize| !differences(id.kind, &prefixes[*n], &our_runs[*n], &their_runs[*n]).is_empty();
    let mut report = String::new();
    let class = clap::ValueEnum::to_possible_value(&id.kind).map(|v| v.get_name().to_owned()).unwrap_or_default();
    let _ = writeln!(
        report,
        "repeat: cargo run --release -p squib-difftest -- --class {class} --seed {} --index {}",
        id.seed, id.index
    );
    let Some(n) = (1..prefixes.len()).find(differs) else {
        let _ = writeln!(report, "  the whole sequence differs, none of its prefixes does");
        for line in differences(id.kind, case, ours, theirs) {
            let _ = writeln!(report, "  {line}");
        }
        let _ = writeln!(report, "  code {}", hex(&case.code));
        return Ok(Failure { name: "sequence", report });
    };
    let word = case.code[n - 1];
    let name = find(word).map_or("unallocated", |row| row.name);
    let _ = writeln!(report, "  {word:08x} {name} (instruction {} of {})", n, case.code.len());
    for line in differences(id.kind, &prefixes[n], &our_runs[n], &their_runs[n]) {
        let _ = writeln!(report, "  {line}");
    }
    let before = &their_runs[n - 1].state;
    let _ = writeln!(
        report,
        "  before: NZCV {:x} FPCR {:#010x} FPSR {:#010x} SP {:#x}",
        before.nzcv >> 28,
        before.fpcr,
        before.fpsr,
        before.sp
    );
    for low in [0, 5, 10, 16] {
        let i = field(word, low + 4, low) as usize;
        let x = before.x.get(i).copied().unwrap_or_default();
        let _ = writeln!(report, "  before: X{i} {x:#018x} V{i} {:#034x}", before.v[i]);
    }
    let _ = writeln!(report, "  code {}", hex(&case.code[..n]));
    Ok(Failure { name, report })
}

fn hex(code: &[u32]) -> String {
    code.iter().map(|word| format!("{word:08x} ")).collect()
}

/// Rows of the table that a set of runs never executed.
pub fn uncovered(coverage: &BTreeMap<&'static str, u64>) -> Vec<&'static str> {
    let names = encodings::rows().iter().map(|row| row.name);
    names.filter(|name| !coverage.contains_key(name)).collect()
}
