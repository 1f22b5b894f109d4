//! One virtual machine, from configuration to the end: boot or restore, run, pause, snapshot.

use std::time::Duration;

use crate::config::{MachineConfig, RestoreConfig, RunOutcome, SaveTarget, SnapshotReport, Watch};
use crate::error::{Error, Result};

/// The one virtual machine of this process. Its vCPUs stand still until [`Machine::run`] or [`Machine::resume`].
#[derive(Debug)]
pub struct Machine {
    _private: (),
}

/// Stops a running machine from another thread (a signal handler's, a timer's).
#[derive(Clone, Debug)]
pub struct Stopper {
    _private: (),
}

impl Stopper {
    /// Asks the machine to stop; its run ends with [`StopReason::Requested`](crate::StopReason::Requested).
    pub fn stop(&self) {}
}

impl Machine {
    /// Builds the machine and loads the kernel. Nothing runs yet.
    pub fn boot(config: MachineConfig) -> Result<Machine> {
        let _ = config;
        Err(Error::State("booting is not wired up in this build".into()))
    }

    /// Builds a machine from a snapshot, standing where the snapshot was taken. Nothing runs yet.
    pub fn restore(config: RestoreConfig) -> Result<Machine> {
        let _ = config;
        Err(Error::State("restoring is not wired up in this build".into()))
    }

    /// Lets all vCPUs that are on go on, and returns at once.
    pub fn resume(&mut self) -> Result<()> {
        Ok(())
    }

    /// Stops all vCPUs and returns when every one of them stands still.
    pub fn pause(&mut self) -> Result<()> {
        Ok(())
    }

    /// Waits for a resumed machine to stop by itself, at most `timeout`. `None` when the time is up (it runs on).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<RunOutcome>> {
        let _ = timeout;
        Ok(None)
    }

    /// Resumes and waits. The vCPUs stand still when this returns, [`RunOutcome::TimedOut`] included.
    pub fn run(&mut self, timeout: Option<Duration>) -> Result<RunOutcome> {
        self.resume()?;
        Ok(self.wait(timeout)?.unwrap_or(RunOutcome::TimedOut))
    }

    /// Writes a full snapshot. Pauses a running machine for it, and leaves it paused: call [`Machine::run`] or
    /// [`Machine::resume`] to go on.
    pub fn snapshot(&mut self, target: &SaveTarget) -> Result<SnapshotReport> {
        let _ = target;
        Err(Error::State("snapshots are not wired up in this build".into()))
    }

    /// Adds a text to wait for on the console, from the next byte on.
    pub fn add_watch(&mut self, watch: Watch) -> Result<()> {
        let _ = watch;
        Ok(())
    }

    /// Ends the next run when the guest has executed `count` more instructions
    /// ([`StopReason::InstructionLimit`](crate::StopReason::InstructionLimit)). Stand-in, deterministic clock, one vCPU.
    pub fn stop_after_instructions(&mut self, count: u64) -> Result<()> {
        let _ = count;
        Err(Error::StandInOnly("stopping after a number of instructions"))
    }

    /// Instructions executed so far by all vCPUs of this process. Stand-in only.
    pub fn instructions(&self) -> Result<u64> {
        Err(Error::StandInOnly("counting instructions"))
    }

    /// A handle that can stop the machine from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper { _private: () }
    }
}
