//! The stand-in's switches, and in which position of each the conformance suite finds a machine.
//!
//! The stand-in cannot be linked where the suite meets the framework, so its switches are listed here again; `conformance`'s tests of
//! the switches hold the list against `squib_sim::Config`.

use std::collections::BTreeSet;

/// A switch of `SQUIB_SIM`.
pub struct Switch {
    /// Its name.
    pub key: &'static str,
    /// The stand-in's default.
    pub default: &'static str,
    /// All positions; empty: any number.
    pub positions: &'static [&'static str],
    /// Which fact's tests say where a machine has it (`A4-03`), or why none can.
    pub probe: Result<&'static str, &'static str>,
}

/// Where a machine has a switch.
pub struct Finding {
    /// The switch.
    pub switch: &'static Switch,
    /// Its position, or why that is not known.
    pub position: Result<String, String>,
}

const fn switch(
    key: &'static str,
    default: &'static str,
    positions: &'static [&'static str],
    fact: &'static str,
) -> Switch {
    Switch { key, default, positions, probe: Ok(fact) }
}

const OFF_ON: &[&str] = &["off", "on"];
const NUMBER: &[&str] = &[];

/// All switches, in the stand-in's order.
pub const SWITCHES: &[Switch] = &[
    Switch {
        key: "clock",
        default: "host",
        positions: &["host", "deterministic"],
        probe: Err("the stand-in's own, nothing of the framework's"),
    },
    switch("hypervisor", "allowed", &["allowed", "denied", "missing"], "A3-01"),
    switch("vtimer-exits", "off", OFF_ON, "A2-07"),
    switch("wfx-exits", "off", OFF_ON, "A1-14"),
    switch("gic-mmio-exits", "off", OFF_ON, "A5-07"),
    switch("overlapping-map", "bad-argument", &["bad-argument", "error", "replace"], "A4-03"),
    switch("wrong-thread", "bad-argument", &["bad-argument", "denied", "works"], "A3-03"),
    switch("prot-none-map", "hang", &["hang", "error"], "A4-09"),
    switch("unmap-gap", "error", &["error", "killed"], "A4-04"),
    switch("host-mprotect", "off", OFF_ON, "A4-08"),
    switch("host-remap", "off", OFF_ON, "A4-11"),
    switch("busy", "0", NUMBER, "A3-01"),
    switch("lost-exits", "off", OFF_ON, "A3-04"),
    switch("counter", "24mhz", &["24mhz", "1ghz"], "A2-09"),
    switch("max-ipa", "42", NUMBER, "A3-09"),
    // Of the system's own state, and of those that earlier reports have kept of other versions of it.
    switch("gic-state-refused", "off", OFF_ON, "A5-09"),
    switch("granule", "16k", &["16k", "4k"], "A4-01"),
    switch("ivac-needs-write", "off", OFF_ON, "A4-06"),
    switch("fault-details", "architectural", &["architectural", "vague"], "A1-08"),
];

/// Where the report keeps states of the interrupt controller, one for each system it meets: a variable for the suite.
pub const STATES: &str = "SQUIB_CONFORMANCE_STATES";
/// The system that the report is about, in the same way.
pub const SYSTEM: &str = "SQUIB_CONFORMANCE_SYSTEM";

/// What a line of a test's output says of a switch (`switch: KEY=POSITION`, which [`line()`] makes).
pub fn said(line: &str) -> Option<(&str, &str)> {
    line.split_once("switch: ")?.1.split_once('=')
}

/// The line by which a test says where the machine has a switch; `position` may be none that the stand-in has.
///
/// # Panics
///
/// If no switch has this name.
pub fn line(key: &str, position: &str) -> String {
    assert!(SWITCHES.iter().any(|switch| switch.key == key), "no switch {key}");
    format!("switch: {key}={position}")
}

/// Puts together what the tests' output says, in the order of [`SWITCHES`].
pub fn findings<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Finding> {
    let said: BTreeSet<(&str, &str)> = lines.into_iter().filter_map(said).collect();
    let finding = |switch: &'static Switch| {
        let positions = said.iter().filter(|(key, _)| *key == switch.key).map(|(_, position)| *position);
        Finding { switch, position: position(switch, &positions.collect::<Vec<_>>()) }
    };
    SWITCHES.iter().map(finding).collect()
}

fn position(switch: &Switch, said: &[&str]) -> Result<String, String> {
    let known = |position: &str| match switch.positions {
        [] => position.parse::<u32>().is_ok(),
        positions => positions.contains(&position),
    };
    match (switch.probe, said) {
        (Err(why), _) => Err(format!("not probed: {why}")),
        (Ok(fact), []) => Err(format!("not probed: no test of {fact} got so far")),
        (_, [position]) if known(position) => Ok((*position).to_owned()),
        (_, [other]) => Err(format!("none of the stand-in's positions: {other}")),
        (_, several) => Err(format!("not always the same: {}", several.join(", "))),
    }
}

/// What `SQUIB_SIM` must be for the stand-in to behave as the machine does, as far as that is known.
pub fn setting(findings: &[Finding]) -> String {
    let known =
        findings.iter().filter_map(|found| Some(format!("{}={}", found.switch.key, found.position.as_ref().ok()?)));
    known.collect::<Vec<_>>().join(",")
}
