//! The switches of the stand-in: the clock, and every point where the framework's behaviour is unknown or contradicted.
//!
//! Defaults are the best-supported reading of the public facts; the other positions exist so that a host can be shown
//! not to depend on them. A switch is set by [`configure`], or by `SQUIB_SIM="clock=deterministic,wfx-exits=on"`, and is
//! read once, when the virtual machine is created. `SQUIB_SIM=harsh` and `SQUIB_SIM=lenient` turn many at once: [`PRESETS`].

use std::fmt::Write as _;
use std::sync::Mutex;

use thiserror::Error;

/// A setting that could not be understood or can no longer be applied.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No switch has this name.
    #[error("SQUIB_SIM: unknown switch `{key}`; known are: {known}")]
    UnknownKey {
        /// What was written.
        key: String,
        /// All switches.
        known: String,
    },
    /// The switch exists, the position does not.
    #[error("SQUIB_SIM: `{value}` is no position of `{key}`; choose one of: {choices}")]
    BadValue {
        /// The switch.
        key: String,
        /// What was written.
        value: String,
        /// Its positions.
        choices: String,
    },
    /// An item without `=` that is no preset.
    #[error("SQUIB_SIM: `{0}` is not of the form switch=position")]
    Malformed(String),
}

/// A type whose values are the positions of a switch.
trait Positions: Sized + Copy + PartialEq + 'static {
    const NAMES: &'static [(&'static str, Self)];

    fn choices() -> String {
        Self::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    fn parse(text: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
    }

    fn name(self) -> String {
        Self::NAMES.iter().find(|(_, value)| *value == self).map_or_else(String::new, |(name, _)| (*name).to_owned())
    }

    /// The other positions.
    fn others(self) -> Vec<String> {
        Self::NAMES.iter().filter(|(_, value)| *value != self).map(|(name, _)| (*name).to_owned()).collect()
    }
}

impl Positions for bool {
    const NAMES: &'static [(&'static str, bool)] = &[("off", false), ("on", true)];
}

/// The numeric switches: any number.
impl Positions for u32 {
    const NAMES: &'static [(&'static str, u32)] = &[];

    fn choices() -> String {
        "a number".to_owned()
    }

    fn parse(text: &str) -> Option<u32> {
        text.parse().ok()
    }

    fn name(self) -> String {
        self.to_string()
    }

    fn others(self) -> Vec<String> {
        Vec::new()
    }
}

macro_rules! positions {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant),* }

        impl Positions for $name {
            const NAMES: &'static [(&'static str, $name)] = &[$(($text, $name::$variant)),*];
        }
    };
}

positions! {
    /// What the guest's counter follows.
    ClockMode {
        /// The host's monotonic clock.
        Host = "host",
        /// The number of executed instructions: a single-vCPU guest without outside input is reproducible to the bit.
        Deterministic = "deterministic",
    }
}

positions! {
    /// Whether this process may have a virtual machine at all.
    Hypervisor {
        /// It may.
        Allowed = "allowed",
        /// `hv_vm_create` answers `HV_DENIED`: the program lacks the entitlement `com.apple.security.hypervisor`.
        Denied = "denied",
        /// The system has none (`kern.hv_support` is 0): `hv_vm_create` and what asks for its limits answer `HV_UNSUPPORTED`.
        Missing = "missing",
    }
}

positions! {
    /// What `hv_vm_map` says to a range that is already mapped, wholly or in part.
    OverlappingMap {
        /// `HV_BAD_ARGUMENT`.
        BadArgument = "bad-argument",
        /// `HV_ERROR`.
        Error = "error",
        /// Success; the new mapping replaces the old one.
        Replace = "replace",
    }
}

positions! {
    /// What a register call from a thread that does not own the vCPU gets.
    WrongThread {
        /// `HV_BAD_ARGUMENT`.
        BadArgument = "bad-argument",
        /// `HV_DENIED`.
        Denied = "denied",
        /// It works, unless the vCPU is running.
        Works = "works",
    }
}

positions! {
    /// What becomes of a host range that is `PROT_NONE` when it is mapped.
    ProtNoneMap {
        /// `hv_vm_map` succeeds; a guest access never completes, until the vCPU is asked to exit.
        Hang = "hang",
        /// `hv_vm_map` fails with `HV_ERROR`.
        Error = "error",
    }
}

positions! {
    /// What becomes of a process that asks `hv_vm_unmap` for a range of which something is not mapped.
    UnmapGap {
        /// Nothing: the call fails with `HV_ERROR`.
        Error = "error",
        /// It is killed, as macOS 26.3 was seen to do (`EXC_GUARD`, `DEALLOC_GAP`).
        Killed = "killed",
    }
}

positions! {
    /// The guest's counter frequency. `mach_absolute_time` counts at 24 MHz in either position.
    CounterFrequency {
        /// 24 MHz: one guest tick is one `mach_absolute_time` tick.
        Mhz24 = "24mhz",
        /// 1 GHz.
        Ghz1 = "1ghz",
    }
}

positions! {
    /// The granule of stage 2, and with it the alignment `hv_vm_map` asks for.
    Granule {
        /// 16 KiB, Apple silicon's page size.
        Kib16 = "16k",
        /// 4 KiB, a choice of macOS 26.
        Kib4 = "4k",
    }
}

impl Granule {
    /// Bytes.
    pub const fn size(self) -> u64 {
        match self {
            Granule::Kib16 => 0x4000,
            Granule::Kib4 => 0x1000,
        }
    }
}

positions! {
    /// How much a data abort of a RAM access tells.
    FaultDetails {
        /// ISV and the instruction's fields as the architecture says.
        Architectural = "architectural",
        /// ISV = 0 on every one, and S1PTW set: a host that needs neither passes. Of what is not mapped that is Normal memory
        /// by stage 1, or with stage 1 off whatever has memory in the same 128 MiB.
        Vague = "vague",
    }
}

macro_rules! switches {
    ($($(#[$meta:meta])* $field:ident: $ty:ty = $default:expr, $key:literal;)*) => {
        /// All switches. [`Config::default`] is what a host meets unless it asks for something else.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Config {
            $($(#[$meta])* pub $field: $ty,)*
        }

        impl Default for Config {
            fn default() -> Config {
                Config { $($field: $default,)* }
            }
        }

        impl Config {
            /// The names of all switches, as [`Config::set`] and `SQUIB_SIM` take them.
            pub const KEYS: &'static [&'static str] = &[$($key),*];

            /// Puts the switch `key` into the position `value`.
            pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
                match key {
                    $($key => {
                        self.$field = <$ty as Positions>::parse(value).ok_or_else(|| ConfigError::BadValue {
                            key: key.to_owned(),
                            value: value.to_owned(),
                            choices: <$ty as Positions>::choices(),
                        })?;
                    })*
                    _ => {
                        return Err(ConfigError::UnknownKey { key: key.to_owned(), known: Self::KEYS.join(", ") });
                    }
                }
                Ok(())
            }

            /// Every position of every switch but the defaults, each in the form `SQUIB_SIM` takes; of a numeric one, a telling number.
            pub fn alternatives() -> Vec<String> {
                let default = Config::default();
                let mut all: Vec<String> = NUMBERS.map(str::to_owned).into();
                $(all.extend(Positions::others(default.$field).into_iter().map(|name| format!("{}={name}", $key)));)*
                all
            }

            /// Those of [`Config::alternatives`] that a host must put up with, so that its tests pass in each.
            pub fn harmless() -> Vec<String> {
                let key = |position: &str| position.split('=').next().unwrap_or_default().to_owned();
                let mut all = Config::alternatives();
                all.retain(|position| !FELT.contains(&key(position).as_str()));
                all
            }

            /// Every switch with its position, in the form `SQUIB_SIM` takes.
            pub fn describe(&self) -> String {
                let mut text = String::new();
                $(
                    let separator = if text.is_empty() { "" } else { "," };
                    // Writing to a `String` does not fail.
                    let _ = write!(text, "{separator}{}={}", $key, Positions::name(self.$field));
                )*
                text
            }
        }
    };
}

switches! {
    /// What the guest's counter follows.
    clock: ClockMode = ClockMode::Host, "clock";
    /// Whether there is a hypervisor, and this process may use it.
    hypervisor: Hypervisor = Hypervisor::Allowed, "hypervisor";
    /// `VTIMER_ACTIVATED` exits with an in-kernel GIC: off, the timer's PPI is delivered and the host never hears of it;
    /// on, the exit comes as well, and masks the timer.
    vtimer_exits: bool = false, "vtimer-exits";
    /// WFI and WFE exits with an in-kernel GIC: off, the vCPU waits inside `hv_vcpu_run`; on, it exits with the PC on the
    /// instruction.
    wfx_exits: bool = false, "wfx-exits";
    /// Distributor and redistributor accesses: off, they are handled inside; on, they arrive as data aborts.
    gic_mmio_exits: bool = false, "gic-mmio-exits";
    /// Overlapping `hv_vm_map`.
    overlapping_map: OverlappingMap = OverlappingMap::BadArgument, "overlapping-map";
    /// Register calls from the wrong thread.
    wrong_thread: WrongThread = WrongThread::BadArgument, "wrong-thread";
    /// `PROT_NONE` host range at map time.
    prot_none_map: ProtNoneMap = ProtNoneMap::Hang, "prot-none-map";
    /// `hv_vm_unmap` of what is not all mapped.
    unmap_gap: UnmapGap = UnmapGap::Error, "unmap-gap";
    /// Host `mprotect` after the map: off, the guest does not notice; on, it meets a permission fault from the next
    /// `hv_vcpu_run` on.
    host_mprotect: bool = false, "host-mprotect";
    /// Host `mmap(MAP_FIXED)` over mapped memory: off, the guest keeps the old object; on, it sees the new one, and `mprotect`
    /// as with `host-mprotect`, since it is the host's mapping that it works on.
    host_remap: bool = false, "host-remap";
    /// How often `hv_vm_create`, and how often `hv_vm_destroy`, answer `HV_BUSY` before they work.
    busy: u32 = 0, "busy";
    /// The first `hv_vcpus_exit` of a vCPU is lost if it is not inside `hv_vcpu_run`.
    lost_exits: bool = false, "lost-exits";
    /// The guest's counter frequency.
    counter: CounterFrequency = CounterFrequency::Mhz24, "counter";
    /// The largest IPA size, in bits: what `hv_vm_config_get_max_ipa_size` says.
    max_ipa: u32 = 42, "max-ipa";
    /// `hv_gic_set_state` refuses every blob, as after an operating system update.
    gic_state_refused: bool = false, "gic-state-refused";
    /// The granule of stage 2.
    granule: Granule = Granule::Kib16, "granule";
    /// `DC IVAC` of a page that stage 2 lets the guest read only: off, it cleans too, which reading is enough for; on, it meets a
    /// permission fault.
    ivac_needs_write: bool = false, "ivac-needs-write";
    /// How much RAM faults tell.
    fault_details: FaultDetails = FaultDetails::Architectural, "fault-details";
}

/// For [`Config::alternatives`].
const NUMBERS: [&str; 2] = ["busy=2", "max-ipa=36"];

/// The switches that every host feels: another kind of clock, and machines and restores that are refused, as they must be.
const FELT: [&str; 3] = ["clock", "hypervisor", "gic-state-refused"];

/// Ways to turn all switches at once that a host must not depend on: a host whose tests pass with the defaults and in each of these has met
/// every position of [`Config::harmless`]. They differ in the switches of three positions.
pub const PRESETS: [(&str, &str); 2] = [
    (
        "harsh",
        "vtimer-exits=on,wfx-exits=on,gic-mmio-exits=on,overlapping-map=error,wrong-thread=denied,prot-none-map=error,\
         unmap-gap=killed,host-mprotect=on,host-remap=on,busy=2,lost-exits=on,counter=1ghz,max-ipa=36,granule=4k,\
         ivac-needs-write=on,fault-details=vague",
    ),
    ("lenient", "harsh,overlapping-map=replace,wrong-thread=works"),
];

impl Config {
    /// Applies a list `switch=position,switch=position` to `self`; the name of a preset stands for its list. Empty items are skipped.
    pub fn apply(&mut self, list: &str) -> Result<(), ConfigError> {
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if let Some((_, preset)) = PRESETS.iter().find(|(name, _)| *name == item) {
                self.apply(preset)?;
                continue;
            }
            let (key, value) = item.split_once('=').ok_or_else(|| ConfigError::Malformed(item.to_owned()))?;
            self.set(key.trim(), value.trim())?;
        }
        Ok(())
    }

    /// Whether the guest feels the protection of the host's mapping.
    pub fn follows_protection(&self) -> bool {
        self.host_mprotect || self.host_remap
    }

    /// The guest's counter frequency in Hz.
    pub fn counter_frequency(&self) -> u64 {
        match self.counter {
            CounterFrequency::Mhz24 => 24_000_000,
            CounterFrequency::Ghz1 => 1_000_000_000,
        }
    }
}

static CONFIGURED: Mutex<Option<Config>> = Mutex::new(None);

/// Sets the configuration of the next virtual machine of this process, over whatever `SQUIB_SIM` says. A running virtual
/// machine keeps its own.
pub fn configure(config: Config) {
    crate::hv::link();
    *CONFIGURED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(config);
}

/// The configuration in force: what [`configure`] was last given, or the defaults with `SQUIB_SIM` applied.
pub fn current() -> Result<Config, ConfigError> {
    if let Some(config) = *CONFIGURED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        return Ok(config);
    }
    let mut config = Config::default();
    if let Ok(list) = std::env::var("SQUIB_SIM") {
        config.apply(&list)?;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_settable_and_describes_itself() {
        let config = Config::default();
        let mut again =
            Config { clock: ClockMode::Deterministic, busy: 7, wfx_exits: true, granule: Granule::Kib4, ..config };
        let text = config.describe();
        assert_eq!(text.split(',').count(), Config::KEYS.len());
        again.apply(&text).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn defaults_and_presets_have_every_position_a_host_must_put_up_with() {
        let run = |list: &str| {
            let mut config = Config::default();
            config.apply(list).unwrap();
            config.describe()
        };
        let runs: Vec<String> = [""].into_iter().chain(PRESETS.map(|(name, _)| name)).map(run).collect();
        let met: Vec<&str> = runs.iter().flat_map(|run| run.split(',')).collect();
        for position in Config::harmless() {
            assert!(met.contains(&position.as_str()), "no preset has {position}");
        }
        for position in Config::default().describe().split(',') {
            assert!(met.contains(&position));
        }
        // Whatever is not met is known by name, and every switch has another position.
        for position in Config::alternatives().iter().filter(|position| !met.contains(&position.as_str())) {
            assert!(FELT.iter().any(|key| position.starts_with(&format!("{key}="))), "{position}");
        }
        for key in Config::KEYS {
            assert!(Config::alternatives().iter().any(|position| position.starts_with(&format!("{key}="))), "{key}");
        }
    }

    #[test]
    fn presets_are_lists_like_any_other() {
        let mut config = Config::default();
        config.apply("harsh,wfx-exits=off").unwrap();
        assert!(config.vtimer_exits && !config.wfx_exits);
    }

    #[test]
    fn mistakes_are_named() {
        let mut config = Config::default();
        assert_eq!(config.apply("clock"), Err(ConfigError::Malformed("clock".to_owned())));
        let unknown = config.apply("clok=host").unwrap_err().to_string();
        assert!(unknown.contains("`clok`") && unknown.contains("wfx-exits"), "{unknown}");
        let bad = config.apply("clock=fast").unwrap_err().to_string();
        assert!(bad.contains("host, deterministic"), "{bad}");
        assert_eq!(config, Config::default());
    }
}
