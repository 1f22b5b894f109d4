//! What is known about Hypervisor.framework on arm64, one entry a fact, and where each is checked.
//!
//! Numbers are stable: `a4_03` in the name of a conformance test is fact A4-03 here. Sources: the framework's headers (as the doc
//! comments of `applevisor-sys` carry them), what other hypervisors rely on, and what was published about experiments.

/// One fact.
pub struct Fact {
    /// `a4_03`.
    pub id: &'static str,
    /// The fact.
    pub text: &'static str,
    /// Where it is checked.
    pub checked: Checked,
}

/// Where a fact is checked.
pub enum Checked {
    /// By the tests of the conformance suite that are named after it.
    Suite,
    /// Elsewhere: it is about hosts, or the suite has no means. Tests (`path/of/a/file.rs: name`, several apart by `; `) or files, or in
    /// plain words why nothing checks it.
    Elsewhere(&'static str),
}

impl Fact {
    /// `A4-03`.
    pub fn label(&self) -> String {
        self.id.to_uppercase().replace('_', "-")
    }
}

/// The facts a test's name refers to: `a2_07_a2_08_with_a_gic` to A2-07 and A2-08.
pub fn of_test(name: &str) -> Vec<&'static Fact> {
    let mut words = name.rsplit("::").next().unwrap_or(name).split('_');
    let mut found = Vec::new();
    while let (Some(table), Some(number)) = (words.next(), words.next()) {
        match FACTS.iter().find(|fact| fact.id.split_once('_') == Some((table, number))) {
            Some(fact) => found.push(fact),
            None => break,
        }
    }
    found
}

const fn suite(id: &'static str, text: &'static str) -> Fact {
    Fact { id, text, checked: Checked::Suite }
}

const fn elsewhere(id: &'static str, text: &'static str, place: &'static str) -> Fact {
    Fact { id, text, checked: Checked::Elsewhere(place) }
}

/// All facts, in order.
pub const FACTS: &[Fact] = &[
    suite("a1_01", "The exit record has 0x20 bytes and one address for the vCPU's life"),
    suite("a1_02", "An abort's virtual and physical addresses are whole"),
    suite(
        "a1_03",
        "PC is behind an HVC, and on an SMC, a trapped register access, an abort, WFx, BRK, what a debug exception is for",
    ),
    elsewhere(
        "a1_04",
        "Steps over an emulated access are taken at the next entry",
        "how libkrun does it: here a vCPU's own thread has finished an access before anything can stop it, and none is pending",
    ),
    suite("a1_05", "A data abort's syndrome describes the access: SAS, SSE, SRT, SF, WnR"),
    suite("a1_06", "No syndrome (ISV 0) for pairs, write-back, vectors, exclusives, atomics"),
    suite("a1_07", "Cache maintenance by address sets CM, and WnR with it"),
    suite("a1_08", "Unmapped: translation fault; protected: permission fault; a missing stage 1 table: S1PTW"),
    suite("a1_09", "ID registers and undefined instructions never exit (open: what else the framework answers)"),
    suite("a1_10", "A pending IRQ or FIQ lasts one run"),
    suite("a1_11", "Debug exceptions and accesses to debug registers exit on request"),
    suite("a1_12", "PMU, OS lock, physical timer, GIC-less ICC and LOR registers exit"),
    suite("a1_13", "With a GIC the ICC registers do not exit"),
    suite("a1_14", "WFI with a GIC waits inside the run (open)"),
    suite("a2_01", "The virtual timer exits once, and masks itself"),
    suite("a2_02", "No timer exit while masked, disabled, or IMASK is set"),
    suite("a2_03", "CNTV_CTL reads back with ISTATUS"),
    suite("a2_04", "CNTVCT is mach_absolute_time less the offset"),
    suite("a2_05", "One offset on all vCPUs is one time"),
    suite("a2_06", "Offset, compare value, control, mask: in this order a timer goes on"),
    suite("a2_07", "VTIMER_ACTIVATED never comes with a GIC (open)"),
    suite("a2_08", "Timer, PMU and maintenance interrupts have the usual numbers; the virtual timer is 27"),
    suite("a2_09", "A process linked for macOS 15 may see a counter at 1 GHz (open)"),
    suite("a2_10", "mach_absolute_time may count slower than CNTVCT (open)"),
    suite("a2_11", "The guest counts at the frequency CNTFRQ names"),
    elsewhere(
        "a2_12",
        "Ticks convert with 128-bit arithmetic",
        "squib-host/src/clock.rs: ticks_convert_without_truncated_factors",
    ),
    suite("a2_13", "hv_vcpu_get_exec_time grows"),
    elsewhere(
        "a2_14",
        "Time that a machine stands still is taken out of the guest's",
        "tests/tests/snapshot.rs: the_guests_clock_is_monotonic_on_every_vcpu_and_does_not_jump",
    ),
    suite("a2_15", "CNTVCT stands still while the host sleeps, as mach_absolute_time does"),
    suite("a3_01", "One virtual machine per process: HV_BUSY; without one nothing works (open: the code)"),
    suite("a3_02", "A machine with vCPUs cannot be destroyed: HV_BUSY"),
    suite("a3_03", "One vCPU per thread; what its calls answer from another thread (open)"),
    suite("a3_04", "hv_vcpus_exit ends a run, and the next one if there is none (open: may be lost)"),
    suite("a3_05", "At most 64 vCPUs; exits of unknown vCPUs are HV_BAD_ARGUMENT"),
    suite("a3_06", "Unknown registers are HV_BAD_ARGUMENT"),
    suite("a3_07", "Return codes have the header's values"),
    suite("a3_08", "A program without the entitlement gets no virtual machine: HV_DENIED"),
    suite("a3_09", "IPA sizes: 0 is the default, above the maximum HV_UNSUPPORTED; EL2 only where supported"),
    elsewhere("a3_10", "With EL2 on, register writes may fail on macOS 15.7", "squib never asks for EL2"),
    elsewhere(
        "a3_11",
        "A system update may break guests: snapshots record the build",
        "squib-host/src/host.rs: this_host_differs_from_another_and_not_from_itself",
    ),
    suite("a4_01", "Addresses and sizes are multiples of the granule (open: 16 or 4 KiB)"),
    suite("a4_02", "A host range must exist, in one region (open: what two regions get)"),
    suite("a4_03", "hv_vm_map over a mapping (open)"),
    suite("a4_04", "hv_vm_unmap and hv_vm_protect of nothing (open: an error, or the end of the process)"),
    suite("a4_05", "An unmapped page aborts with PC unmoved; mapped, the access is retried"),
    suite("a4_06", "Write protection works by the page, permissions by kind of access"),
    suite("a4_07", "Unmapping reaches a running vCPU, with or without protecting first"),
    suite("a4_08", "Host mprotect after the map does not reach the guest (open)"),
    suite("a4_09", "Memory that is PROT_NONE when mapped is of no use to the guest (open: hangs)"),
    suite("a4_10", "A copy on write reaches a guest that has read the page"),
    suite("a4_11", "Guest and host share the object, not the address (open: a new mapping at the address)"),
    suite("a4_12", "A private file mapping works, and leaves the file alone"),
    suite("a4_13", "Memory is given back by unmap, replace, map"),
    elsewhere("a4_14", "madvise does not make zeroes", "squib calls madvise for nothing that a guest sees"),
    suite("a4_15", "RAM can be supplied by the page, on its first abort"),
    suite("a4_16", "Two vCPUs may miss one page"),
    suite("a4_17", "Fill, publish, map, retry: no vCPU sees a page half filled"),
    elsewhere(
        "a4_18",
        "Mach exceptions show host accesses only, and no system calls",
        "squib-host/src/pager/mach/tests/access.rs: a_system_call_on_an_absent_page_fails_with_efault_and_raises_nothing",
    ),
    elsewhere(
        "a4_19",
        "Pages that never existed need not be saved",
        "squib-snapshot/tests/pairs.rs: zeros_take_no_room",
    ),
    elsewhere("a4_20", "The memory file is laid out by 16 KiB", "squib-snapshot/FORMAT.md"),
    suite("a4_21", "A private mapping may show later changes of the file (open)"),
    suite("a5_01", "The GIC comes after the machine and before the vCPUs"),
    suite("a5_02", "Overlapping, unaligned and overflowing regions are HV_BAD_ARGUMENT"),
    suite("a5_03", "Sizes and alignments of the GIC's regions; SPIs from 32, below 1020"),
    suite("a5_04", "Level and edge SPIs, messages, and what cannot be injected"),
    suite("a5_05", "A redistributor has an address once MPIDR is set, by affinity"),
    suite("a5_06", "Per-vCPU GIC calls are for the owning thread, the distributor's for all (open: the code)"),
    suite("a5_07", "GIC frames are handled inside (open: data aborts)"),
    suite("a5_08", "Which distributor and redistributor registers the calls know"),
    suite("a5_09", "The state is opaque, whole, checked, for stopped machines, and moves (open: another system's)"),
    suite("a5_10", "The state does not hold the CPU interface"),
    suite("a5_11", "CPU interface registers read back; restored with enables last, an interrupt in progress ends"),
    suite("a5_12", "Private interrupts cannot be injected as SPIs; the timer's comes by itself"),
    suite("a5_13", "GIC state first, counter offset after it"),
    suite("a5_14", "Each redistributor is its own, also after a restore"),
    suite("a5_15", "hv_gic_reset puts everything back"),
    suite("a6_01", "The registers of the save set read back as written"),
    suite("a6_02", "SP_EL0 and SP_EL1 are where the guest finds them"),
    suite("a6_03", "ID registers are what the host says, per vCPU"),
    suite("a6_04", "EL2 and physical timer registers need EL2; ACTLR_EL1 has one bit"),
    suite("a6_05", "SME can be hidden from a guest"),
    suite("a6_06", "PMU registers are the host's to emulate"),
    suite("a6_07", "A timer that had expired fires at once after a restore"),
    elsewhere(
        "a7_01",
        "Capture: all vCPUs, then devices, then state, then memory",
        "squib-host/tests/machine.rs: stops_pauses_and_limits; tests/tests/snapshot.rs: four_busy_vcpus_finish_their_work",
    ),
    suite("a7_02", "Restore: machine, GIC, vCPUs, MPIDR, GIC state, registers, ICC, offset, timer, mask"),
    elsewhere(
        "a7_03",
        "Another order works too; its invariants are those of A7-02",
        "about another project: squib has the order of A7-02 only",
    ),
    elsewhere(
        "a7_04",
        "Disks are of the same moment as memory",
        "tests/tests/disk.rs: a_snapshot_in_the_middle_of_disk_writes_loses_none",
    ),
    elsewhere(
        "a7_05",
        "Wall clock and counter after a restore",
        "tests/tests/ptp.rs: a_guest_finds_the_time_again_after_a_restore_and_after_sleep; \
         tests/tests/snapshot.rs: the_guests_clock_is_monotonic_on_every_vcpu_and_does_not_jump",
    ),
    elsewhere(
        "a7_06",
        "Device writes are marked dirty",
        "tests/tests/diff.rs: base_and_diffs_are_ram_while_a_disk_is_read; \
         squib-host/src/memory/mod.rs: host_writes_mark_every_page_they_touch",
    ),
    elsewhere(
        "a7_07",
        "Secondary vCPUs go on where they were",
        "tests/tests/snapshot.rs: the_count_goes_on_with_four_vcpus",
    ),
    elsewhere("a7_08", "What cannot be saved is refused with the reason", "squib has no device that cannot be saved"),
];
