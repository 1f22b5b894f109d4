//! Self-hosted debug: software step, breakpoints and watchpoints (Arm ARM D2).

use super::cpu::{Cpu, Privilege, Trap};

impl Cpu {
    pub(crate) fn refresh_debug(&mut self) {
        self.slow_mode = self.il;
    }
    pub(crate) fn watchpoints_enabled(&self) -> bool {
        false
    }
    pub(crate) fn check_watchpoints(&mut self, va: u64, size: u64, write: bool, p: Privilege) -> Result<(), Trap> {
        let _ = (va, size, write, p);
        Ok(())
    }
    pub(crate) fn before_instruction(&mut self) -> Option<super::op::Next> {
        if self.il {
            self.block = std::ptr::null();
            self.take_exception(super::syndrome::ec::ILLEGAL_STATE, 0, None, self.pc);
            return Some(super::op::Next::Lookup);
        }
        None
    }
    pub(crate) fn after_instruction(&mut self, next: super::op::Next) -> super::op::Next {
        next
    }
    pub(crate) fn step_enabled(&self) -> bool {
        false
    }
    pub(crate) fn step_enabled_at(&self, el: u8, spsr: u64) -> bool {
        let _ = (el, spsr);
        false
    }
}
