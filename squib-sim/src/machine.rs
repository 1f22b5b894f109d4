//! The virtual machine: what its vCPUs share.

use std::sync::{Arc, OnceLock, RwLock};

use crate::clock::Clock;
use crate::config::Config;
use crate::engine::shared::{self, Request, VcpuShared};
use crate::gic::Gic;
use crate::stage2::Stage2;

/// vCPU slots of a virtual machine.
pub const MAX_VCPUS: usize = 64;

/// Everything the vCPUs of one virtual machine have in common.
pub struct Machine {
    /// The switches, as they were when the machine was created.
    pub config: Config,
    /// Bits of intermediate physical address.
    pub ipa_bits: u32,
    /// Guest-physical memory.
    pub stage2: Stage2,
    /// Time.
    pub clock: Clock,
    /// The in-kernel interrupt controller, if one was created.
    pub gic: OnceLock<Gic>,
    vcpus: RwLock<Arc<[Arc<VcpuShared>]>>,
}

impl Machine {
    /// A machine without memory, GIC or vCPUs.
    pub fn new(config: Config, ipa_bits: u32) -> Machine {
        let clock = Clock::new(&config);
        clock.install();
        Machine {
            config,
            ipa_bits,
            stage2: Stage2::new(&config, ipa_bits),
            clock,
            gic: OnceLock::new(),
            vcpus: RwLock::new(Arc::new([])),
        }
    }

    /// All vCPUs, as of now.
    pub fn vcpus(&self) -> Arc<[Arc<VcpuShared>]> {
        self.vcpus.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Calls `visit` for every vCPU.
    pub fn for_each_vcpu(&self, visit: impl FnMut(&Arc<VcpuShared>)) {
        self.vcpus().iter().for_each(visit);
    }

    /// The vCPU in slot `index`.
    pub fn vcpu(&self, index: usize) -> Option<Arc<VcpuShared>> {
        self.vcpus().iter().find(|vcpu| vcpu.index == index).cloned()
    }

    /// Enters a vCPU; there is none in its slot.
    pub fn add_vcpu(&self, vcpu: Arc<VcpuShared>) {
        let mut vcpus = self.vcpus.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        *vcpus = vcpus.iter().cloned().chain([vcpu]).collect();
    }

    /// Takes the vCPU in slot `index` out.
    pub fn remove_vcpu(&self, index: usize) {
        let mut vcpus = self.vcpus.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        *vcpus = vcpus.iter().filter(|vcpu| vcpu.index != index).cloned().collect();
    }

    /// Stage 2 has changed for a range: returns when no vCPU uses an old translation of it any more. `contents`: other memory
    /// is there now, or none; otherwise only permissions have changed. The caller is not inside `Vcpu::run`, and holds no lock
    /// that guest execution takes.
    pub fn stage2_changed(&self, ipa: u64, len: u64, contents: bool) {
        self.broadcast(Request::Stage2 { ipa, len, contents }, true, None);
    }

    /// Posts `request` to all vCPUs but `except`; with `wait`, returns when none of them can violate it any more.
    pub fn broadcast(&self, request: Request, wait: bool, except: Option<usize>) {
        shared::broadcast(&self.vcpus(), request, wait, except);
    }

    /// Notes how host memory is protected now, for the switch that lets the guest feel it.
    pub fn observe_host_protection(&self) {
        if self.stage2.observe_host_protection() {
            self.stage2_changed(0, self.stage2.ipa_size(), false);
        }
    }
}
