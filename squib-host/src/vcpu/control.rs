//! Stop and go for all vCPUs of a machine, their power states, and calls on a vCPU's own thread.
//!
//! `hv_vcpu_*` belongs to the thread that created the vCPU, so everything done to one is a [`Command`] run there. A kick
//! (`hv_vcpus_exit`) can come too early or be lost, so it never carries the meaning: the meaning is in flags under one lock, and
//! whoever waits for a vCPU kicks again until that vCPU has answered.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use applevisor::prelude::{GicEnabled, VcpuHandle, VirtualMachineInstance};

use super::psci::Power;
use super::run::VcpuThread;
use crate::clock::{host_counter, host_counter_bound};
use crate::config::StopReason;
use crate::crash::CrashReport;
use crate::error::{Error, Result};

/// How long a kick is given before it is repeated.
const KICK_AGAIN: Duration = Duration::from_millis(2);
/// How long a vCPU may take to stop before that is an error: it can be inside a slow device access.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Something to be done on a vCPU's thread.
pub type Command = Box<dyn FnOnce(&mut VcpuThread) + Send>;

/// Why the machine came to a stop.
#[derive(Debug)]
pub enum Cause {
    /// PSCI SYSTEM_OFF.
    PowerOff,
    /// PSCI SYSTEM_RESET.
    Reset,
    /// The host gave up on the guest.
    Crash(Box<CrashReport>),
    /// A call of ours failed on a vCPU's thread.
    Failed(Error),
    /// Our side wants it; the guest can go on.
    Stop(StopReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Desired {
    Paused,
    Running,
    Ended,
}

struct State {
    desired: Desired,
    causes: VecDeque<Cause>,
    vcpus: Vec<PerVcpu>,
    /// When the vCPUs last stood still, by [`host_counter`]; `None` while they run.
    stopped_at: Option<u64>,
}

struct PerVcpu {
    handle: Option<VcpuHandle>,
    parked: bool,
    power: Power,
    mailbox: VecDeque<Command>,
}

/// What a parked vCPU's thread is to do next.
pub enum Next {
    /// Enter the guest.
    Run,
    /// Take on the reset state with this entry point and come back.
    TurnOn {
        /// First instruction.
        entry: u64,
        /// X0.
        context: u64,
    },
    /// Run a command and come back.
    Command(Command),
    /// Destroy the vCPU and end.
    End,
}

/// The controls of one machine.
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// Set whenever a running vCPU has to look at `state`.
    attention: Vec<AtomicBool>,
    /// `vtimer_offset` of every vCPU.
    offset: AtomicU64,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Control {
    /// Controls for `count` vCPUs, all off but the first, standing still.
    pub fn new(count: usize) -> Control {
        let vcpu = |n: usize| PerVcpu {
            handle: None,
            parked: false,
            power: if n == 0 { Power::On } else { Power::Off },
            mailbox: VecDeque::new(),
        };
        Control {
            state: Mutex::new(State {
                desired: Desired::Paused,
                causes: VecDeque::new(),
                vcpus: (0..count).map(vcpu).collect(),
                stopped_at: Some(host_counter()),
            }),
            changed: Condvar::new(),
            attention: (0..count).map(|_| AtomicBool::new(false)).collect(),
            offset: AtomicU64::new(host_counter()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(|e| e.into_inner()).0
    }

    /// `vtimer_offset` for every vCPU.
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::Acquire)
    }

    /// What the guest's counter reads, or would read if it ran: it stands still with the machine.
    pub fn guest_counter(&self) -> u64 {
        let stopped_at = self.lock().stopped_at;
        stopped_at.unwrap_or_else(host_counter).wrapping_sub(self.offset())
    }

    /// Makes the guest's counter go on from `counter` when the machine next runs. Only while it stands still.
    pub fn set_guest_counter(&self, counter: u64) {
        let mut state = self.lock();
        let now = host_counter();
        state.stopped_at = Some(now);
        self.offset.store(now.wrapping_sub(counter), Ordering::Release);
    }

    // --- the vCPU threads' side ---

    /// Makes a vCPU known, once, by its thread.
    pub fn register(&self, index: usize, handle: VcpuHandle) {
        self.lock().vcpus[index].handle = Some(handle);
    }

    /// Whether vCPU `index`, running, must come to [`Control::park`] before it enters the guest again.
    pub fn wanted(&self, index: usize) -> bool {
        self.attention[index].load(Ordering::Acquire)
    }

    /// Stands still until there is something to do.
    pub fn park(&self, index: usize) -> Next {
        let mut state = self.lock();
        loop {
            // Cleared under the lock, before the flags below are read: whoever sets it afterwards has changed them first.
            self.attention[index].store(false, Ordering::Release);
            if let Some(command) = state.vcpus[index].mailbox.pop_front() {
                return Next::Command(command);
            }
            match (state.desired, state.vcpus[index].power) {
                (Desired::Ended, _) => return Next::End,
                (Desired::Running, Power::On) => {
                    state.vcpus[index].parked = false;
                    return Next::Run;
                }
                // Also while the machine stands still: a snapshot then finds the vCPU on, at its entry point.
                (_, Power::OnPending { entry, context }) => {
                    state.vcpus[index].power = Power::On;
                    return Next::TurnOn { entry, context };
                }
                _ => {}
            }
            if !state.vcpus[index].parked {
                state.vcpus[index].parked = true;
                self.changed.notify_all();
            }
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    /// Makes vCPU `index`, whose thread this is, come to [`Control::park`] before it enters the guest again.
    pub fn send_to_park(&self, index: usize) {
        self.attention[index].store(true, Ordering::Release);
    }

    /// Takes a command waiting for vCPU `index`, for a thread that itself waits for another vCPU.
    fn take_command(&self, index: usize) -> Option<Command> {
        self.lock().vcpus[index].mailbox.pop_front()
    }

    /// Power state of vCPU `index`.
    pub fn power(&self, index: usize) -> Power {
        self.lock().vcpus[index].power
    }

    /// Sets a power state: by PSCI, or at a restore.
    pub fn set_power(&self, index: usize, power: Power) {
        self.lock().vcpus[index].power = power;
        self.changed.notify_all();
    }

    /// CPU_ON, decided and done under one lock. `decide` sees the power states; it returns the target to turn on, if any.
    pub fn with_power<T>(&self, decide: impl FnOnce(&[Power]) -> (Option<(usize, Power)>, T)) -> T {
        let mut state = self.lock();
        let power: Vec<Power> = state.vcpus.iter().map(|v| v.power).collect();
        let (change, result) = decide(&power);
        if let Some((index, power)) = change {
            state.vcpus[index].power = power;
            self.changed.notify_all();
        }
        result
    }

    // --- stopping ---

    /// Asks all vCPUs to stop for `cause`. Returns at once: whoever waits for the machine sees to it
    /// that every vCPU stops. Called from a vCPU's thread, that vCPU does not enter the guest again.
    pub fn request_stop(&self, cause: Cause, vm: &VirtualMachineInstance<GicEnabled>) {
        let mut state = self.lock();
        if state.desired == Desired::Running {
            state.desired = Desired::Paused;
        }
        // Two texts may be completed at once by two vCPUs: both are reported, one after the other. An end that comes while
        // a stop is under way is left out: its vCPU still stands before the instruction that caused it, and a machine that
        // goes on (here, or restored from a snapshot taken at the stop) meets it again.
        if state.causes.is_empty() || matches!(cause, Cause::Stop(_)) {
            state.causes.push_back(cause);
        }
        self.kick_unparked(&state, vm);
        self.changed.notify_all();
    }

    fn kick_unparked(&self, state: &State, vm: &VirtualMachineInstance<GicEnabled>) {
        let handles: Vec<VcpuHandle> = state
            .vcpus
            .iter()
            .enumerate()
            .filter(|(_, v)| !v.parked)
            .inspect(|(n, _)| self.attention[*n].store(true, Ordering::Release))
            .filter_map(|(_, v)| v.handle.clone())
            .collect();
        if !handles.is_empty() {
            // A refused kick is repeated like a lost one.
            let _ = vm.vcpus_exit(&handles);
        }
    }

    /// Waits until a cause to stop is there, at most until `deadline`.
    pub fn wait_for_cause(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        loop {
            if !state.causes.is_empty() || state.desired != Desired::Running {
                return true;
            }
            let left = match deadline {
                None => Duration::from_secs(3600),
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    None | Some(Duration::ZERO) => return false,
                    Some(left) => left,
                },
            };
            state = self.wait(state, left);
        }
    }

    /// Stops every vCPU and waits until all stand still. Guest time stands still from here on.
    pub fn stop_all(&self, vm: &VirtualMachineInstance<GicEnabled>) -> Result<()> {
        let mut state = self.lock();
        if state.desired == Desired::Running {
            state.desired = Desired::Paused;
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while let Some(vcpu) = state.vcpus.iter().position(|v| !v.parked) {
            if Instant::now() > deadline {
                return Err(Error::PauseTimeout { vcpu, seconds: STOP_TIMEOUT.as_secs() });
            }
            self.kick_unparked(&state, vm);
            state = self.wait(state, KICK_AGAIN);
        }
        state.stopped_at.get_or_insert_with(host_counter_bound);
        Ok(())
    }

    /// Takes the first cause to stop that has not been taken yet.
    pub fn take_cause(&self) -> Option<Cause> {
        self.lock().causes.pop_front()
    }

    /// Whether there is a cause that has not been taken yet.
    pub fn has_cause(&self) -> bool {
        !self.lock().causes.is_empty()
    }

    /// Lets all vCPUs that are on go on; the time they stood still is taken out of the guest's.
    pub fn go(&self) {
        let mut state = self.lock();
        if state.desired != Desired::Paused {
            return;
        }
        if let Some(stopped_at) = state.stopped_at.take() {
            let stood_still = host_counter().wrapping_sub(stopped_at);
            self.offset.fetch_add(stood_still, Ordering::AcqRel);
        }
        state.desired = Desired::Running;
        self.changed.notify_all();
    }

    /// Ends all vCPU threads, wherever they are.
    pub fn end(&self, vm: &VirtualMachineInstance<GicEnabled>) {
        // What keeps a vCPU from stopping does not keep the process from trying to end it.
        let _ = self.stop_all(vm);
        self.lock().desired = Desired::Ended;
        self.changed.notify_all();
    }

    // --- calls ---

    /// Runs `body` on the thread of vCPU `index`, running or not, and returns its result. `caller` is the vCPU thread that
    /// asks, if one does: it goes on answering calls on itself meanwhile, so that two vCPUs can ask each other.
    pub fn call<T: Send + 'static>(
        &self,
        vm: &VirtualMachineInstance<GicEnabled>,
        index: usize,
        mut caller: Option<&mut VcpuThread>,
        body: impl FnOnce(&mut VcpuThread) -> T + Send + 'static,
    ) -> Result<T> {
        let (tx, rx) = std::sync::mpsc::channel();
        let command: Command = Box::new(move |vcpu| {
            // A caller that is gone does not need the result.
            let _ = tx.send(body(vcpu));
        });
        self.lock().vcpus[index].mailbox.push_back(command);
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            {
                let state = self.lock();
                self.attention[index].store(true, Ordering::Release);
                self.changed.notify_all();
                if let (false, Some(handle)) = (state.vcpus[index].parked, &state.vcpus[index].handle) {
                    let _ = vm.vcpus_exit(std::slice::from_ref(handle));
                }
            }
            match rx.recv_timeout(KICK_AGAIN) {
                Ok(result) => return Ok(result),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::State(format!("vCPU {index} has ended")));
                }
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            }
            if let Some(caller) = caller.as_deref_mut() {
                while let Some(command) = self.take_command(caller.index()) {
                    command(caller);
                }
            }
            if Instant::now() > deadline {
                return Err(Error::PauseTimeout { vcpu: index, seconds: STOP_TIMEOUT.as_secs() });
            }
        }
    }
}
