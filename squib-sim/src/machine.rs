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
    vcpus: RwLock<Vec<Arc<VcpuShared>>>,
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
            vcpus: RwLock::new(Vec::new()),
        }
    }

    /// Calls `visit` for every vCPU.
    pub fn for_each_vcpu(&self, mut visit: impl FnMut(&VcpuShared)) {
        let vcpus = self.vcpus.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        vcpus.iter().for_each(|vcpu| visit(vcpu));
    }

    /// The vCPU in slot `index`.
    pub fn vcpu(&self, index: usize) -> Option<Arc<VcpuShared>> {
        let vcpus = self.vcpus.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        vcpus.iter().find(|vcpu| vcpu.index == index).cloned()
    }

    /// Enters a vCPU; there is none in its slot.
    pub fn add_vcpu(&self, vcpu: Arc<VcpuShared>) {
        self.vcpus.write().unwrap_or_else(|poisoned| poisoned.into_inner()).push(vcpu);
    }

    /// Takes the vCPU in slot `index` out.
    pub fn remove_vcpu(&self, index: usize) {
        self.vcpus.write().unwrap_or_else(|poisoned| poisoned.into_inner()).retain(|vcpu| vcpu.index != index);
    }

    /// Makes every vCPU forget its cached stage-2 translations, and returns when none uses an old one any more. The caller
    /// is not inside `Vcpu::run`, and holds no lock that guest execution takes.
    pub fn flush_stage2(&self) {
        self.flush_stage2_range(0, u64::MAX, true);
    }

    /// The same for a range of addresses; `contents` when other memory is behind them now, not only other permissions.
    pub fn flush_stage2_range(&self, ipa: u64, len: u64, contents: bool) {
        self.broadcast(Request::Stage2 { ipa, len, contents }, true, None);
    }

    /// Posts `request` to all vCPUs but `except`; with `wait`, returns when none of them can violate it any more.
    pub fn broadcast(&self, request: Request, wait: bool, except: Option<usize>) {
        let vcpus = self.vcpus.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        shared::broadcast(&vcpus, request, wait, except);
    }
}
