//! The other positions of the stand-in's switches: what a host must not depend on, and what it must put up with.

use std::process::Command;
use std::ptr;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use applevisor::memory::PAGE_SIZE;
use applevisor::prelude::*;
use applevisor_sys::*;
use squib_sim::Config;
use squib_sim::config::{
    ClockMode, CounterFrequency, FaultDetails, Granule, Hypervisor, OverlappingMap, PRESETS, ProtNoneMap, WrongThread,
};

use crate::asm::*;
use crate::code;
use crate::guest::*;
use crate::iss;
use squib_tests::switches::{self, SWITCHES};

/// The switches as a test wants them, and the defaults otherwise; at its end, back to what they were.
struct Switched;

fn switched(change: impl FnOnce(&mut Config)) -> Switched {
    let mut config = Config::default();
    change(&mut config);
    squib_sim::configure(config);
    Switched
}

impl Drop for Switched {
    fn drop(&mut self) {
        // What the whole suite is being run with.
        let mut config = Config::default();
        config.apply(&std::env::var("SQUIB_SIM").unwrap_or_default()).unwrap();
        squib_sim::configure(config);
    }
}

/// A guest of a machine with these switches.
fn guest_with(code: &[u32], change: impl FnOnce(&mut Config)) -> Guest<GicDisabled> {
    let turn = Turn::take();
    let _switched = switched(change);
    Guest::with(turn, VirtualMachine::new().unwrap(), code)
}

fn gic_guest_with(code: &[u32], change: impl FnOnce(&mut Config)) -> Guest<GicEnabled> {
    let turn = Turn::take();
    let _switched = switched(change);
    let vm = gic_machine();
    let guest = Guest::with(turn, vm, code);
    guest.vcpu.set_sys_reg(SysReg::MPIDR_EL1, 0x8000_0000).unwrap();
    guest
}

#[test]
fn vtimer_exits_come_with_a_gic_too() {
    let guest = gic_guest_with(&[hvc(1), SPIN], |config| config.vtimer_exits = true);
    guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, 0).unwrap();
    guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, 1).unwrap();
    assert_eq!(guest.run().reason, ExitReason::VTIMER_ACTIVATED);
    assert_eq!(guest.vcpu.get_vtimer_mask(), Ok(true));
    let pending = guest.vcpu.get_redistributor_reg(GicRedistributorReg::ISPENDR0).unwrap();
    assert_eq!(pending, 1 << 27, "the interrupt comes as well");
    guest.run_to(1);
}

#[test]
fn wfx_exits_come_with_a_gic_too() {
    let guest = gic_guest_with(&[WFI, hvc(1)], |config| config.wfx_exits = true);
    guest.run_to_class(ec::WFX);
    assert_eq!(guest.pc(), RAM);
    guest.skip();
    guest.run_to(1);
}

#[test]
fn gic_accesses_exit() {
    let code = code![mov(0, GICD + 4), ldr_w(1, 0), mov(0, GICR + 0x8), ldr(2, 0), mrs(3, 0xc665), hvc(1)];
    let guest = gic_guest_with(&code, |config| config.gic_mmio_exits = true);
    for address in [GICD + 4, GICR + 8] {
        let exception = guest.run_to_class(ec::DATA_ABORT);
        assert_eq!(exception.physical_address, address);
        guest.skip();
    }
    // The host answers with the register calls; the CPU interface stays inside.
    assert!(guest.vm.gic_get_distributor_reg(GicDistributorReg::TYPER).is_ok());
    guest.run_to(1);
    assert_eq!(guest.x(Reg::X3) & 1, 1);
}

#[test]
fn overlapping_maps_are_refused_otherwise_or_replace() {
    for position in [OverlappingMap::BadArgument, OverlappingMap::Error, OverlappingMap::Replace] {
        let guest = guest_with(&code![mov(0, DATA), ldr(1, 0), hvc(1)], |config| config.overlapping_map = position);
        let mut at = ptr::null_mut();
        // SAFETY: memory that is mapped, and given back only when the process ends.
        let code = unsafe {
            assert_eq!(hv_vm_allocate(&mut at, 2 * PAGE_SIZE, hv_allocate_flags_t::HV_ALLOCATE_DEFAULT), 0);
            at.cast::<u64>().write(77);
            hv_vm_map(at, DATA, 2 * PAGE_SIZE, HV_MEMORY_READ)
        };
        let expected = match position {
            OverlappingMap::BadArgument => hv_error_t::HV_BAD_ARGUMENT as i32,
            OverlappingMap::Error => hv_error_t::HV_ERROR as i32,
            OverlappingMap::Replace => 0,
        };
        assert_eq!(code, expected);
        guest.run_to(1);
        assert_eq!(guest.x(Reg::X1), if code == 0 { 77 } else { 0 });
    }
}

#[test]
fn register_calls_from_another_thread_are_denied_or_work() {
    for (position, expected) in
        [(WrongThread::Denied, hv_error_t::HV_DENIED as i32), (WrongThread::Works, hv_error_t::HV_SUCCESS as i32)]
    {
        let guest = guest_with(&[hvc(1), SPIN], |config| config.wrong_thread = position);
        let id = guest.vcpu.id();
        guest.vcpu.set_reg(Reg::X0, 7).unwrap();
        let mut value = 0;
        // SAFETY: a place for the result.
        let get = |value: &mut u64| unsafe { hv_vcpu_get_reg(id, hv_reg_t::X0, value) };
        thread::scope(|scope| scope.spawn(|| assert_eq!(get(&mut value), expected)).join().unwrap());
        assert_eq!(value, if expected == 0 { 7 } else { 0 });
        guest.run_to(1);
        // Never while it runs.
        let (vm, handle) = (guest.vm.clone(), guest.vcpu.get_handle());
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(10));
                assert_ne!(get(&mut value), 0);
                vm.vcpus_exit(&[handle]).unwrap();
            });
            assert_eq!(guest.run().reason, ExitReason::CANCELED);
        });
    }
}

#[test]
fn the_whole_suite_passes_in_every_position() {
    // The clock is no unknown of the framework's, and without a hypervisor nothing passes (A3-08 turns that one).
    let counts = |position: &String| !["clock", "hypervisor"].iter().any(|key| position.starts_with(key));
    let mut positions: Vec<String> = Config::alternatives().into_iter().filter(counts).collect();
    positions.extend(PRESETS.map(|(name, _)| name.to_owned()));
    let left = Mutex::new(positions.iter());
    let next = || left.lock().unwrap().next();
    // They wait more than they compute.
    let threads = 2 * thread::available_parallelism().map_or(1, |count| count.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(position) = next() {
                    passes_in(position);
                }
            });
        }
    });
}

/// Runs all other tests, in a process of their own.
fn passes_in(position: &str) {
    let mut suite = Command::new(std::env::current_exe().unwrap());
    let suite = suite.args(["--skip", "switches::", "--show-output"]).env("SQUIB_SIM", position).output().unwrap();
    let (output, errors) = (String::from_utf8_lossy(&suite.stdout), String::from_utf8_lossy(&suite.stderr));
    assert!(suite.status.success(), "{position}\n{output}\n{errors}");
    finds(position, &output);
}

/// What the report makes of the suite's output is the position that it was run in, of every switch that is no matter of the
/// stand-in's own.
fn finds(position: &str, output: &str) {
    let findings = switches::findings(output.lines());
    let unknown: Vec<_> =
        findings.iter().filter(|found| found.position.is_err()).map(|found| found.switch.key).collect();
    let setting = switches::setting(&findings);
    assert_eq!(unknown, ["clock"], "{position}: {setting}");
    let (mut wanted, mut found) = (Config::default(), Config::default());
    wanted.apply(position).unwrap();
    // With it the guest meets the host's protection too.
    wanted.host_mprotect = wanted.follows_protection();
    found.apply(&setting).unwrap();
    assert_eq!(found, wanted, "{position}: {setting}");
}

#[test]
fn the_reports_switches_are_the_stand_ins() {
    let listed: Vec<String> = SWITCHES.iter().map(|switch| format!("{}={}", switch.key, switch.default)).collect();
    assert_eq!(listed.join(","), Config::default().describe());
    let number = |switch: &&switches::Switch| switch.positions.is_empty();
    let others = SWITCHES.iter().filter(|switch| !number(switch)).flat_map(|switch| {
        let others = switch.positions.iter().filter(|position| **position != switch.default);
        others.map(|position| format!("{}={position}", switch.key))
    });
    let numbers: Vec<&str> = SWITCHES.iter().filter(number).map(|switch| switch.key).collect();
    let mut alternatives = Config::alternatives();
    alternatives.retain(|position| !numbers.iter().any(|key| position.starts_with(key)));
    assert_eq!(others.collect::<Vec<_>>(), alternatives);
}

#[test]
fn what_is_no_position_or_not_always_the_same_is_not_set() {
    let said = ["switch: busy=2", "switch: counter=54000000 Hz", "switch: wfx-exits=on", "switch: wfx-exits=off"];
    let findings = switches::findings(said);
    assert_eq!(switches::setting(&findings), "busy=2");
    let of = |key| findings.iter().find(|found| found.switch.key == key).unwrap().position.clone().unwrap_err();
    assert_eq!(of("counter"), "none of the stand-in's positions: 54000000 Hz");
    assert_eq!(of("wfx-exits"), "not always the same: off, on");
    assert_eq!(of("granule"), "not probed: no test of A4-01 got so far");
}

/// One granule of shared memory, aligned.
fn shared_page() -> *mut u8 {
    let mut at = ptr::null_mut();
    // SAFETY: a place for the address.
    let code = unsafe { hv_vm_allocate(&mut at, PAGE_SIZE, hv_allocate_flags_t::HV_ALLOCATE_DEFAULT) };
    assert_eq!(code, 0);
    at.cast()
}

fn protect(at: *mut u8, protection: i32) {
    // SAFETY: memory of the test itself, which does not touch it in between.
    assert_eq!(unsafe { libc::mprotect(at.cast(), PAGE_SIZE, protection) }, 0);
}

fn map(at: *mut u8, ipa: u64) -> i32 {
    // SAFETY: the memory stays until the process ends.
    unsafe { hv_vm_map(at.cast(), ipa, PAGE_SIZE, HV_MEMORY_READ | HV_MEMORY_WRITE) }
}

#[test]
fn inaccessible_memory_is_refused_when_mapped() {
    let _guest = guest_with(&[hvc(1)], |config| config.prot_none_map = ProtNoneMap::Error);
    let page = shared_page();
    protect(page, libc::PROT_NONE);
    assert_eq!(map(page, 0x8000_0000), hv_error_t::HV_ERROR as i32);
    protect(page, libc::PROT_READ | libc::PROT_WRITE);
    assert_eq!(map(page, 0x8000_0000), 0);
}

#[test]
fn host_protection_reaches_the_guest() {
    let guest = guest_with(&[ldr(1, 0), str(2, 0), hvc(1), b(-3)], |config| config.host_mprotect = true);
    let page = shared_page();
    assert_eq!(map(page, 0x8000_0000), 0);
    guest.vcpu.set_reg(Reg::X0, 0x8000_0000).unwrap();
    guest.run_to(1);
    protect(page, libc::PROT_READ);
    let exception = guest.run_to_class(ec::DATA_ABORT);
    assert_eq!((exception.syndrome & 0x3c, exception.syndrome >> 6 & 1), (0xc, 1), "a write, permission");
    protect(page, libc::PROT_NONE);
    guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
    let exception = guest.run_to_class(ec::DATA_ABORT);
    assert_eq!((exception.syndrome & 0x3c, exception.syndrome >> 6 & 1), (0xc, 0), "a read, permission");
    protect(page, libc::PROT_READ | libc::PROT_WRITE);
    guest.run_to(1);
    // Other memory there: the first page's protection is nobody's business any more.
    // SAFETY: the guest is not running.
    assert_eq!(unsafe { hv_vm_unmap(0x8000_0000, PAGE_SIZE) }, 0);
    assert_eq!(map(shared_page(), 0x8000_0000), 0);
    protect(page, libc::PROT_NONE);
    guest.vcpu.set_reg(Reg::PC, RAM).unwrap();
    guest.run_to(1);
}

#[test]
fn a_new_host_mapping_reaches_the_guest() {
    let guest = guest_with(&[ldr(1, 0), hvc(1), b(-2)], |config| config.host_remap = true);
    let page = shared_page();
    // SAFETY: this test's page; the guest is not running.
    unsafe {
        page.cast::<u64>().write(1);
        assert_eq!(map(page, 0x8000_0000), 0);
        guest.vcpu.set_reg(Reg::X0, 0x8000_0000).unwrap();
        guest.run_to(1);
        assert_eq!(guest.x(Reg::X1), 1);
        let flags = libc::MAP_SHARED | libc::MAP_ANON | libc::MAP_FIXED;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        assert_eq!(libc::mmap(page.cast(), PAGE_SIZE, access, flags, -1, 0), page.cast());
        page.cast::<u64>().write(2);
    }
    guest.run_to(1);
    assert_eq!(guest.x(Reg::X1), 2);
}

#[test]
fn there_may_be_no_hypervisor() {
    let _turn = Turn::take();
    let _switched = switched(|config| config.hypervisor = Hypervisor::Missing);
    assert_eq!(VirtualMachine::new().err(), Some(HypervisorError::Unsupported));
    assert_eq!(VirtualMachineConfig::get_default_ipa_size(), Err(HypervisorError::Unsupported));
    assert_eq!(Vcpu::get_max_count(), Err(HypervisorError::Unsupported));
}

#[test]
fn creation_and_destruction_may_take_several_tries() {
    let _turn = Turn::take();
    let _switched = switched(|config| config.busy = 3);
    for _ in 0..3 {
        assert_eq!(VirtualMachine::new().err(), Some(HypervisorError::Busy));
    }
    // SAFETY: nothing of the machine is used by anyone.
    unsafe {
        assert_eq!(hv_vm_create(ptr::null_mut()), 0);
        for _ in 0..3 {
            assert_eq!(hv_vm_destroy(), hv_error_t::HV_BUSY as i32);
        }
        assert_eq!(hv_vm_destroy(), 0);
    }
}

#[test]
fn the_first_exit_may_be_lost() {
    let guest = guest_with(&[hvc(1), SPIN], |config| config.lost_exits = true);
    let exit = || guest.vm.vcpus_exit(&[guest.vcpu.get_handle()]).unwrap();
    exit();
    guest.run_to(1);
    exit();
    assert_eq!(guest.run().reason, ExitReason::CANCELED);
}

#[test]
fn the_guest_may_count_faster_than_the_host() {
    let code = [mrs(0, 0xdf00), mrs(1, 0xdf02), hvc(1), mrs(1, 0xdf02), hvc(2)];
    let guest = guest_with(&code, |config| config.counter = CounterFrequency::Ghz1);
    let start = squib_sim::mach::mach_absolute_time();
    guest.run_to(1);
    assert_eq!(guest.x(Reg::X0), 1_000_000_000);
    let first = guest.x(Reg::X1);
    thread::sleep(Duration::from_millis(20));
    guest.run_to(2);
    let host = squib_sim::mach::mach_absolute_time() - start;
    let elapsed = guest.x(Reg::X1) - first;
    assert!(elapsed >= 20_000_000 && elapsed <= host * 42, "{elapsed} ns, {host} ticks");
}

#[test]
fn a_state_may_be_refused_whole() {
    let guest = gic_guest_with(&[hvc(1)], |config| config.gic_state_refused = true);
    let mut state = guest.vm.gic_state_create().unwrap();
    let mut data = vec![0; state.size().unwrap()];
    state.get(&mut data).unwrap();
    assert_eq!(state.set(&data), Err(HypervisorError::BadArgument));
}

#[test]
fn the_granule_may_be_smaller() {
    let guest = guest_with(&code![ldr(1, 0), hvc(1), b(-2)], |config| config.granule = Granule::Kib4);
    let page = shared_page();
    let ipa = 0x8000_1000;
    // SAFETY: the third quarter of this test's page.
    unsafe {
        page.add(0x2000).cast::<u64>().write(5);
        assert_eq!(hv_vm_map(page.add(0x2000).cast(), ipa, 0x1000, HV_MEMORY_READ), 0);
    }
    guest.vcpu.set_reg(Reg::X0, ipa).unwrap();
    guest.run_to(1);
    assert_eq!(guest.x(Reg::X1), 5);
    guest.vcpu.set_reg(Reg::X0, ipa + 0x1000).unwrap();
    guest.run_to_class(ec::DATA_ABORT);
}

#[test]
fn invalidation_may_need_the_right_to_write() {
    let dc_ivac = 0xd508_7620;
    for strict in [false, true] {
        let mut guest = guest_with(&code![mov(0, DATA), dc_ivac, hvc(1)], |config| config.ivac_needs_write = strict);
        guest.ram.protect(MemPerms::RX).unwrap();
        if strict {
            let syndrome = guest.run_to_class(ec::DATA_ABORT).syndrome;
            assert_eq!(iss::status(syndrome), iss::PERMISSION);
            assert!(syndrome & iss::CM != 0 && syndrome & iss::WNR != 0, "{syndrome:#x}");
            guest.skip();
        }
        guest.run_to(1);
    }
}

#[test]
fn ram_faults_may_tell_little() {
    let code = code![mov(0, NOWHERE), ldr(1, 0), mov(0, DATA), str(1, 0)];
    let mut guest = guest_with(&code, |config| config.fault_details = FaultDetails::Vague);
    guest.ram.protect(MemPerms::RX).unwrap();
    let device = guest.run_to_class(ec::DATA_ABORT);
    guest.skip();
    let ram = guest.run_to_class(ec::DATA_ABORT);
    assert_eq!((device.physical_address, ram.physical_address & !0xfff), (NOWHERE, DATA));
    assert_eq!(ram.syndrome & 1 << 24, 0, "ISV");
    assert_ne!(ram.syndrome & 1 << 7, 0, "S1PTW");
}

#[test]
fn ram_faults_that_tell_little_are_still_exact() {
    let mut guest = guest_with(&[], |config| config.fault_details = FaultDetails::Vague);
    crate::a4_restart::every_access_is_restarted(&mut guest, true);
    drop(guest);
    // Missing memory is memory, with stage 1 off as well when there is some near; a device is none.
    let missing = RAM + RAM_SIZE;
    for (at, vague) in [(missing, true), (NOWHERE, false)] {
        let mut guest = guest_with(&code![mov(0, at), ldr(1, 0)], |config| config.fault_details = FaultDetails::Vague);
        let exception = guest.run_to_class(ec::DATA_ABORT);
        assert_eq!((exception.syndrome & iss::ISV == 0, exception.syndrome & iss::S1PTW != 0), (vague, vague));
        guest.write_code(RAM + 0x100, &[0xd61f_0000]); // br x0
        guest.vcpu.set_reg(Reg::PC, RAM + 0x100).unwrap();
        let fetch = guest.run_to_class(ec::INSTRUCTION_ABORT);
        assert_ne!(fetch.syndrome & iss::S1PTW, 0, "nobody fetches from a device");
    }
}

#[test]
fn deterministic_time_is_the_number_of_instructions() {
    // CNTVCT twice, ten instructions apart; then WFI, which skips to the timer.
    let mut code = vec![mrs(0, 0xdf02)];
    code.extend([NOP; 9]);
    code.extend(code![mrs(1, 0xdf02), hvc(1), WFI, mrs(2, 0xdf02), hvc(2)]);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let guest = gic_guest_with(&code, |config| config.clock = ClockMode::Deterministic);
        assert_eq!(squib_sim::mach::mach_absolute_time(), 0);
        guest.vm.gic_set_distributor_reg(GicDistributorReg::CTLR, 2).unwrap();
        guest.vcpu.set_redistributor_reg(GicRedistributorReg::IGROUPR0, u64::from(u32::MAX)).unwrap();
        guest.vcpu.set_redistributor_reg(GicRedistributorReg::ISENABLER0, 1 << 27).unwrap();
        guest.vcpu.set_icc_reg(GicIccReg::PMR_EL1, 0xff).unwrap();
        guest.vcpu.set_icc_reg(GicIccReg::IGRPEN1_EL1, 1).unwrap();
        guest.run_to(1);
        assert_eq!(guest.x(Reg::X1) - guest.x(Reg::X0), 10);
        assert_eq!(squib_sim::mach::mach_absolute_time(), 12, "the HVC counts");
        guest.vcpu.set_sys_reg(SysReg::CNTV_CVAL_EL0, 1_000_000_000).unwrap();
        guest.vcpu.set_sys_reg(SysReg::CNTV_CTL_EL0, 1).unwrap();
        guest.run_to(2);
        assert!((1_000_000_000..1_000_000_010).contains(&guest.x(Reg::X2)), "{}", guest.x(Reg::X2));
        seen.push((guest.x(Reg::X0), guest.x(Reg::X1), guest.x(Reg::X2), squib_sim::mach::mach_absolute_time()));
    }
    assert_eq!(seen[0], seen[1]);
}
