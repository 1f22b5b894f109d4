//! A vCPU's thread: creates the vCPU, runs it, and answers its exits.
//!
//! Every exit is answered completely (register written, PC moved) before anything else is looked at. So at [`Control::park`], the
//! only place where a vCPU stands still, no MMIO is half done and no PC movement is owed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use applevisor::prelude::{GicEnabled, HypervisorError, Reg, SysReg, Vcpu, VirtualMachineInstance};
use squib_snapshot::{PsciVcpuState, VcpuState};

use super::control::{Cause, Control, Next};
use super::psci::{self, Outcome, Power};
use super::registers::{self, LiveVcpu};
use super::sysreg::{self, Answer};
use super::walk::Regime;
use super::{hypercall, inject};
use crate::clock::WallClock;
use crate::config::ClockMode;
use crate::crash::CrashReport;
use crate::devices::Bus;
use crate::error::{Error, HvContext, Result};
use crate::fault::{Access, RamFault, RamFaults, Resolution};
use crate::hv::exit::{DataAbort, Exit, SysRegAccess};
use crate::hv::{gic_mmio, probe};
use crate::layout;
use crate::memory::{GuestMemory, GuestRam};
use crate::pager::Net;

/// EL1h, all interrupts masked: PSTATE at reset and after CPU_ON.
const RESET_CPSR: u64 = 0x3c5;
/// How long a WFx that came out to us lets the host rest before it is taken as done.
const WFX_REST: Duration = Duration::from_micros(500);

/// How long a guest rests that writes faster than a snapshot of it gets to the disk.
const WRITER_REST: Duration = Duration::from_micros(200);

/// How often in a row one access to RAM may be refused without a reason: another vCPU may have dealt with the reason before this
/// one looked for it.
const REFUSALS: u32 = 16;

/// What all vCPUs of a machine share.
#[derive(Debug)]
pub struct Shared {
    // Dropped in this order.
    /// Devices; set before the first run.
    pub bus: std::sync::OnceLock<Bus>,
    /// Catches touches of absent RAM that the accessor was not asked for. Dropped after the devices, whose threads use it, and before RAM,
    /// which it keeps.
    pub _net: Option<Arc<Net>>,
    /// RAM at stage 2. Dropped before the virtual machine.
    pub faults: RamFaults,
    /// The virtual machine.
    pub vm: VirtualMachineInstance<GicEnabled>,
    /// Stop and go.
    pub control: Control,
    /// Guest RAM; each thread that touches it has a [`GuestMemory`] of its own.
    pub ram: Arc<GuestRam>,
    /// Redistributor frame of each vCPU.
    pub redistributors: std::sync::OnceLock<Vec<u64>>,
    /// Nothing may depend on host time.
    pub deterministic: bool,
}

impl Shared {
    fn in_ram(&self, address: u64) -> bool {
        address.wrapping_sub(layout::RAM_BASE) < self.ram.size()
    }

    /// Where the guest's wall time comes from.
    pub fn wall_clock(&self) -> WallClock {
        WallClock(if self.deterministic { ClockMode::Deterministic } else { ClockMode::Host })
    }
}

/// What a thread says about the vCPU it has created: the base of its redistributor.
pub type Created = Result<u64>;

/// A vCPU and the thread's view of the machine.
#[derive(Debug)]
pub struct VcpuThread {
    index: usize,
    /// The vCPU.
    pub vcpu: Vcpu,
    /// The machine.
    pub shared: Arc<Shared>,
    /// Guest memory, for this thread.
    memory: GuestMemory,
    /// Everything as it was right after creation: what CPU_ON goes back to.
    reset: VcpuState,
    reset_icc: BTreeMap<u16, u64>,
    offset: Option<u64>,
    /// The last access to RAM that was refused without a reason: IPA, PC, and how often.
    refused: Option<(u64, u64, u32)>,
}

impl VcpuThread {
    /// The body of vCPU `index`'s thread. Reports the creation to `created`, then serves until the machine ends.
    pub fn main(index: usize, shared: Arc<Shared>, created: Sender<(usize, Created)>) {
        crate::priority::raise();
        match VcpuThread::create(index, shared) {
            Ok((mut thread, redistributor)) => {
                // The machine waits for this before it goes on; if it is gone, it ends us through `park`.
                let _ = created.send((index, Ok(redistributor)));
                drop(created);
                thread.serve();
            }
            Err(error) => {
                let _ = created.send((index, Err(error)));
            }
        }
    }

    fn create(index: usize, shared: Arc<Shared>) -> Result<(VcpuThread, u64)> {
        let vcpu = shared.vm.vcpu_create().hv(format!("create vCPU {index}"))?;
        vcpu.set_sys_reg(SysReg::MPIDR_EL1, layout::mpidr(index as u32)).hv("set MPIDR_EL1")?;
        let redistributor = vcpu.get_redistributor_base().hv(format!("give vCPU {index} a redistributor"))?;
        vcpu.set_reg(Reg::CPSR, RESET_CPSR).hv("set CPSR")?;
        let live = LiveVcpu { vcpu: &vcpu, power: PsciVcpuState::Off };
        let reset = squib_snapshot::capture_vcpu_state(&live).map_err(|e| Error::State(e.to_string()))?;
        let reset_icc = registers::capture_icc(&vcpu).hv("read the GIC CPU interface")?;
        let memory = shared.ram.guest_memory()?;
        shared.control.register(index, vcpu.get_handle());
        Ok((VcpuThread { index, vcpu, shared, memory, reset, reset_icc, offset: None, refused: None }, redistributor))
    }

    /// Index of the vCPU.
    pub fn index(&self) -> usize {
        self.index
    }

    fn serve(&mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            let result = match shared.control.park(self.index) {
                Next::End => return,
                Next::Command(command) => {
                    command(self);
                    Ok(())
                }
                Next::TurnOn { entry, context } => self.turn_on(entry, context),
                Next::Run => self.run(),
            };
            if let Err(error) = result {
                shared.control.request_stop(Cause::Failed(error), &shared.vm);
            }
        }
    }

    /// The state after CPU_ON (PSCI 5.6): as reset, at `entry` with `context` in X0.
    fn turn_on(&mut self, entry: u64, context: u64) -> Result<()> {
        let failed = |e: squib_snapshot::SnapshotError| Error::State(format!("turning a vCPU on: {e}"));
        let mut state = self.reset.clone();
        state.regs.pc = entry;
        state.regs.x[0] = context;
        state.regs.pstate = RESET_CPSR;
        state.psci_state = PsciVcpuState::On;
        let mut live = LiveVcpu { vcpu: &self.vcpu, power: PsciVcpuState::On };
        squib_snapshot::restore_vcpu_state_as_saved(&mut live, &state).map_err(failed)?;
        registers::restore_icc(&self.vcpu, &self.reset_icc).map_err(|(_, e)| e).hv("reset the GIC CPU interface")?;
        registers::restore_timer(&self.vcpu, 0, 0, false).hv("reset the virtual timer")
    }

    /// Measures the frequency of the guest's counter. Leaves PC, CPSR and X0 changed.
    pub fn measure_counter(&mut self) -> Result<u64> {
        probe::counter_frequency(&self.vcpu, RESET_CPSR)
    }

    /// Starts this vCPU, standing still, at `entry` with `argument` in X0.
    pub fn set_entry(&mut self, entry: u64, argument: u64) -> Result<()> {
        self.turn_on(entry, argument)
    }

    /// Gives the vCPU the machine's counter offset, if it does not have it yet.
    pub fn take_offset(&mut self) -> Result<()> {
        let offset = self.shared.control.offset();
        if self.offset != Some(offset) {
            self.vcpu.set_vtimer_offset(offset).hv("set the virtual counter's offset")?;
            self.offset = Some(offset);
        }
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        self.take_offset()?;
        while !self.shared.control.wanted(self.index) {
            self.vcpu.run().hv("run a vCPU")?;
            let record = self.vcpu.get_exit_info();
            match Exit::decode(&record) {
                Exit::Canceled => {
                    if crate::standin::limit_reached() {
                        self.stop(Cause::Stop(crate::config::StopReason::InstructionLimit));
                    }
                }
                // Normally the GIC delivers the timer's interrupt itself. Where this exit comes, it has masked the timer.
                Exit::VtimerActivated => self.vcpu.set_vtimer_mask(false).hv("unmask the virtual timer")?,
                Exit::Hvc => self.firmware_call(false)?,
                Exit::Smc => self.firmware_call(true)?,
                Exit::Wfx => {
                    if !self.shared.deterministic {
                        std::thread::sleep(WFX_REST);
                    }
                    self.advance().hv("move PC")?;
                }
                Exit::SysReg(access) => self.system_register(access).hv("answer a system register access")?,
                Exit::DataAbort(abort) => self.data_abort(abort)?,
                Exit::InstructionAbort { ipa, s1ptw: walk, permission } if self.shared.in_ram(ipa) => {
                    let access = if walk && permission { Access::Write } else { Access::Fetch };
                    self.ram_fault(RamFault { ipa, access, walk })?;
                }
                Exit::InstructionAbort { ipa, .. } => {
                    self.crash(format!("it jumped to {ipa:#x}, where there is no RAM"))?;
                }
                Exit::Debug { .. } => {
                    let exception = record.exception;
                    inject::debug(&self.vcpu, exception.syndrome, exception.virtual_address)
                        .hv("inject an exception")?;
                }
                Exit::Other { ec } => self.crash(format!("it exited with exception class {ec:#x}"))?,
                Exit::Unknown => self.crash("it exited for a reason the hypervisor does not tell".into())?,
            }
        }
        Ok(())
    }

    fn stop(&self, cause: Cause) {
        self.shared.control.request_stop(cause, &self.shared.vm);
    }

    fn advance(&self) -> Result<(), HypervisorError> {
        self.vcpu.set_reg(Reg::PC, self.vcpu.get_reg(Reg::PC)?.wrapping_add(4))
    }

    /// X`n`, or zero for 31.
    fn x(&self, n: u8) -> Result<u64, HypervisorError> {
        registers::gp(n).map_or(Ok(0), |reg| self.vcpu.get_reg(reg))
    }

    fn set_x(&self, n: u8, value: u64) -> Result<(), HypervisorError> {
        registers::gp(n).map_or(Ok(()), |reg| self.vcpu.set_reg(reg, value))
    }

    /// Nanoseconds since 1970 and the guest's counter, of one moment.
    fn wall_time_and_counter(&self) -> (u64, u64) {
        let shared = &self.shared;
        let (time, counter) = shared.wall_clock().with_counter(|| shared.control.guest_counter());
        (u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), counter)
    }

    fn firmware_call(&mut self, smc: bool) -> Result<()> {
        let mut args = [0; 4];
        for (n, arg) in args.iter_mut().enumerate() {
            *arg = self.x(n as u8).hv("read a register")?;
        }
        if let Some(values) = hypercall::call(args[0] as u32, args[1] as u32, || self.wall_time_and_counter()) {
            for (n, value) in (0..).zip(values) {
                self.set_x(n, value.into()).hv("write a register")?;
            }
            return if smc { self.advance().hv("move PC") } else { Ok(()) };
        }
        let (index, shared) = (self.index, &self.shared);
        let outcome = shared.control.with_power(|power| {
            let outcome = psci::call(args, index, power, |address| shared.in_ram(address));
            let change = match outcome {
                Outcome::CpuOn { target, entry, context } => Some((target, Power::OnPending { entry, context })),
                Outcome::CpuOff => Some((index, Power::Off)),
                _ => None,
            };
            (change, outcome)
        });
        let end = match outcome {
            Outcome::Return(value) => {
                self.set_x(0, value as u64).hv("write a register")?;
                None
            }
            Outcome::CpuOn { .. } => {
                self.set_x(0, psci::code::SUCCESS as u64).hv("write a register")?;
                None
            }
            // `park` keeps it until the next CPU_ON.
            Outcome::CpuOff => {
                self.shared.control.send_to_park(index);
                None
            }
            Outcome::SystemOff => Some(Cause::PowerOff),
            Outcome::SystemReset => Some(Cause::Reset),
        };
        match end {
            None if smc => self.advance().hv("move PC"),
            None => Ok(()),
            Some(cause) => {
                // Back on the instruction: should the machine go on in spite of this (another vCPU stopped it for a
                // snapshot at the same moment), the guest asks again.
                if !smc {
                    let pc = self.vcpu.get_reg(Reg::PC).hv("read PC")?;
                    self.vcpu.set_reg(Reg::PC, pc.wrapping_sub(4)).hv("move PC")?;
                }
                self.stop(cause);
                Ok(())
            }
        }
    }

    fn system_register(&mut self, access: SysRegAccess) -> Result<(), HypervisorError> {
        let value = match sysreg::answer(access.encoding) {
            Answer::Undefined => {
                tracing::debug!(
                    encoding = access.encoding,
                    read = access.read,
                    "a system register access is undefined"
                );
                return inject::undefined(&self.vcpu);
            }
            Answer::Forward if access.read => registers::read_sys_reg(&self.vcpu, access.encoding)?,
            Answer::Forward => {
                registers::write_sys_reg(&self.vcpu, access.encoding, self.x(access.rt)?)?;
                0
            }
            Answer::Counter => self.shared.control.guest_counter(),
            Answer::Constant(value) => value,
        };
        if access.read {
            self.set_x(access.rt, value)?;
        }
        self.advance()
    }

    fn data_abort(&mut self, abort: DataAbort) -> Result<()> {
        if self.shared.in_ram(abort.ipa) {
            let access = if abort.is_store() { Access::Write } else { Access::Read };
            if abort.permission && access == Access::Read {
                // Cache maintenance of a write-protected page: nothing to be done, all that see RAM see the same.
                return self.advance().hv("move PC");
            }
            return self.ram_fault(RamFault { ipa: abort.ipa, access, walk: abort.s1ptw });
        }
        if abort.cache_maintenance {
            return self.advance().hv("move PC");
        }
        if abort.s1ptw {
            return self.crash(format!("its translation tables point to {:#x}, where there is no RAM", abort.ipa));
        }
        let Some(access) = abort.access else {
            return self.crash(format!(
                "it accessed device memory at {:#x} with an instruction that cannot be emulated (pair, exclusive, vector or \
                 write-back form)",
                abort.ipa
            ));
        };
        if abort.write {
            let value = self.x(access.register).hv("read a register")?;
            let mask = if access.size == 8 { u64::MAX } else { (1 << (8 * access.size)) - 1 };
            if !self.mmio_write(abort.ipa, access.size, value & mask)? {
                return self.crash(format!("it wrote {:#x}, where there is no device", abort.ipa));
            }
        } else {
            let Some(value) = self.mmio_read(abort.ipa, access.size)? else {
                return self.crash(format!("it read {:#x}, where there is no device", abort.ipa));
            };
            self.set_x(access.register, access.extend(value)).hv("write a register")?;
        }
        self.advance().hv("move PC")
    }

    /// An access to RAM that stage 2 refused.
    fn ram_fault(&mut self, fault: RamFault) -> Result<()> {
        match self.shared.faults.resolve(fault)? {
            Resolution::Retry => {
                self.refused = None;
                Ok(())
            }
            Resolution::RetryLater => {
                std::thread::sleep(WRITER_REST);
                Ok(())
            }
            Resolution::Unexplained => {
                let pc = self.vcpu.get_reg(Reg::PC).hv("read PC")?;
                let before = self.refused.filter(|&(ipa, at, _)| (ipa, at) == (fault.ipa, pc));
                let times = before.map_or(0, |(.., times)| times) + 1;
                self.refused = Some((fault.ipa, pc, times));
                if times < REFUSALS {
                    return Ok(());
                }
                self.crash(format!("stage 2 refuses an access to RAM at {:#x}", fault.ipa))
            }
        }
    }

    fn bus(&self) -> Option<&Bus> {
        self.shared.bus.get()
    }

    fn mmio_read(&mut self, address: u64, size: u8) -> Result<Option<u64>> {
        if let Some((device, offset)) = self.bus().and_then(|bus| bus.find(address)) {
            return Ok(Some(device.read(offset, size)));
        }
        if let Some(offset) = distributor(address) {
            return Ok(Some(gic_mmio::read_distributor(offset)));
        }
        let Some((target, offset)) = self.redistributor(address) else { return Ok(None) };
        let value = self.on(target, move |t| gic_mmio::read_redistributor(&t.vcpu, offset))?;
        Ok(Some(value))
    }

    fn mmio_write(&mut self, address: u64, size: u8, value: u64) -> Result<bool> {
        if let Some((device, offset)) = self.bus().and_then(|bus| bus.find(address)) {
            device.write(offset, size, value);
            return Ok(true);
        }
        if let Some(offset) = distributor(address) {
            gic_mmio::write_distributor(offset, value);
            return Ok(true);
        }
        let Some((target, offset)) = self.redistributor(address) else { return Ok(false) };
        self.on(target, move |t| gic_mmio::write_redistributor(&t.vcpu, offset, value))?;
        Ok(true)
    }

    /// Which vCPU's redistributor `address` is in, and the offset in it.
    fn redistributor(&self, address: u64) -> Option<(usize, u64)> {
        let bases = self.shared.redistributors.get()?;
        let target = bases.iter().position(|&base| address.wrapping_sub(base) < layout::GIC_REDISTRIBUTOR_SIZE)?;
        Some((target, address - bases[target]))
    }

    /// Runs `body` on the thread of vCPU `target`, which may be this one.
    fn on<T: Send + 'static>(
        &mut self,
        target: usize,
        body: impl FnOnce(&mut VcpuThread) -> T + Send + 'static,
    ) -> Result<T> {
        if target == self.index {
            return Ok(body(self));
        }
        let shared = Arc::clone(&self.shared);
        shared.control.call(&shared.vm, target, Some(self), body)
    }

    /// The host gives up on the guest: stops the machine with a report. PC stays where it is.
    fn crash(&mut self, reason: String) -> Result<()> {
        let report = self.report(reason).hv("read the registers of a crashed guest")?;
        self.stop(Cause::Crash(Box::new(report)));
        Ok(())
    }

    fn report(&self, reason: String) -> Result<CrashReport, HypervisorError> {
        let record = self.vcpu.get_exit_info().exception;
        let sys = |reg| self.vcpu.get_sys_reg(reg);
        let mut report = CrashReport {
            vcpu: self.index,
            reason,
            syndrome: record.syndrome,
            virtual_address: record.virtual_address,
            physical_address: record.physical_address,
            pc: self.vcpu.get_reg(Reg::PC)?,
            cpsr: self.vcpu.get_reg(Reg::CPSR)?,
            system: vec![
                ("SP_EL0", sys(SysReg::SP_EL0)?),
                ("SP_EL1", sys(SysReg::SP_EL1)?),
                ("ELR_EL1", sys(SysReg::ELR_EL1)?),
                ("SPSR_EL1", sys(SysReg::SPSR_EL1)?),
                ("ESR_EL1", sys(SysReg::ESR_EL1)?),
                ("FAR_EL1", sys(SysReg::FAR_EL1)?),
                ("VBAR_EL1", sys(SysReg::VBAR_EL1)?),
                ("SCTLR_EL1", sys(SysReg::SCTLR_EL1)?),
            ],
            ..CrashReport::default()
        };
        for n in 0..31 {
            report.x[usize::from(n)] = self.x(n)?;
        }
        let regime = Regime {
            sctlr: sys(SysReg::SCTLR_EL1)?,
            tcr: sys(SysReg::TCR_EL1)?,
            ttbr0: sys(SysReg::TTBR0_EL1)?,
            ttbr1: sys(SysReg::TTBR1_EL1)?,
        };
        report.instruction = regime.instruction(&self.memory, report.pc);
        Ok(report)
    }
}

fn distributor(address: u64) -> Option<u64> {
    let offset = address.wrapping_sub(layout::GIC_DISTRIBUTOR);
    (offset < layout::GIC_DISTRIBUTOR_SIZE).then_some(offset)
}
