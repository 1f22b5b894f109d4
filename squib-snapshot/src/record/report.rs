//! A record for people and for tools: what `describe` adds for files of version 5.1.

use super::{ClockMode, SnapshotRecord};

impl SnapshotRecord {
    /// An object for tools. Blobs are told by their length.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let memory = &self.memory;
        let pages = memory.pages.as_ref();
        let lengths = |blobs: &std::collections::BTreeMap<String, Vec<u8>>| -> serde_json::Value {
            blobs
                .iter()
                .map(|(name, bytes)| (name.clone(), bytes.len().into()))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let vcpus: Vec<_> = self
            .machine
            .vcpus
            .iter()
            .map(|v| {
                serde_json::json!({
                    "vtimer_offset": v.vtimer_offset,
                    "vtimer_masked": v.vtimer_masked,
                    "pending_irq": v.pending_irq,
                    "pending_fiq": v.pending_fiq,
                    "icc_regs": v.icc_regs.iter().map(|(r, x)| (format!("{r:#06x}"), format!("{x:#x}").into()))
                        .collect::<serde_json::Map<String, serde_json::Value>>(),
                    "blobs": lengths(&v.blobs),
                })
            })
            .collect();
        serde_json::json!({
            "identity": self.identity.to_string(),
            "parent": self.parent.map(|p| p.to_string()),
            "kind": if memory.is_diff() { "diff" } else { "full" },
            "ram_start": format!("{:#x}", memory.ram_start),
            "ram_size": memory.ram_size,
            "pages": pages.map(|p| p.len()),
            "page_size": pages.map(|p| p.page_size()),
            "checksum_block": memory.sums.block_size(),
            "checksums": memory.sums.iter().count(),
            "host": {
                "os": self.machine.host.os,
                "os_build": self.machine.host.os_build,
                "cpu": self.machine.host.cpu,
                "vmm": self.machine.host.vmm,
                "counter_frequency": self.machine.host.counter_frequency,
            },
            "clock": {
                "wall_clock_ns": self.machine.clock.wall_clock_ns,
                "guest_counter": self.machine.clock.guest_counter,
                "mode": mode(self.machine.clock.mode),
                "instructions": self.machine.clock.instructions,
            },
            "vcpus": vcpus,
            "blobs": lengths(&self.machine.blobs),
        })
    }

    /// Text for a terminal, in the columns of [`SnapshotDescription::human`](crate::SnapshotDescription::human).
    #[must_use]
    pub fn human(&self) -> String {
        let mut text = String::new();
        let mut line = |label: &str, value: String| text.push_str(&format!("  {:<21}{value}\n", format!("{label}:")));
        line("identity", self.identity.to_string());
        if let Some(parent) = self.parent {
            line("parent", parent.to_string());
        }
        let memory = &self.memory;
        line("ram", format!("{} bytes at {:#x}", memory.ram_size, memory.ram_start));
        line(
            "contents",
            match &memory.pages {
                None => "full".into(),
                Some(pages) => format!("diff, {} pages of {} bytes", pages.len(), pages.page_size()),
            },
        );
        line("checksums", format!("{} blocks of {} bytes", memory.sums.iter().count(), memory.sums.block_size()));
        let host = &self.machine.host;
        let known = [&host.vmm, &host.cpu, &host.os, &host.os_build].map(String::as_str);
        let known: Vec<_> = known.into_iter().filter(|t| !t.is_empty()).collect();
        if !known.is_empty() {
            line("saved by", known.join(", "));
        }
        if host.counter_frequency != 0 {
            line("counter", format!("{} Hz, {} clock", host.counter_frequency, mode(self.machine.clock.mode)));
        }
        text
    }
}

fn mode(mode: ClockMode) -> &'static str {
    match mode {
        ClockMode::Host => "host",
        ClockMode::Deterministic => "deterministic",
    }
}
