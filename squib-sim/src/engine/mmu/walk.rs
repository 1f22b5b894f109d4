//! The stage-1 translation table walk of the EL1&0 regime (VMSAv8-64, Arm ARM D8), 4 KiB and 16 KiB granules, 48-bit
//! addresses, hardware management of the access flag and dirty state, with stage 2 behind every step.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::cpu::Cpu;
use crate::engine::pstate::sctlr;
use crate::engine::shared::pending;
use crate::engine::syndrome::{fsc, iss};
use crate::stage2::Perms;

/// The kind of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// An access to be translated.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// What it does.
    pub kind: Kind,
    /// With EL1's rights.
    pub privileged: bool,
    /// PSTATE.PAN applies.
    pub pan: bool,
    /// The access flag and the dirty state may be updated.
    pub update: bool,
}

/// What stage 1 makes of an address.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    /// Intermediate physical address of the byte asked for.
    pub ipa: u64,
    /// Data reads are allowed to the same privilege.
    pub read: bool,
    /// Data writes are allowed to the same privilege without another descriptor update.
    pub write: bool,
    /// MAIR attribute.
    pub attr: u8,
    /// Shareability field.
    pub shareability: u8,
    /// From TTBR0, or not global.
    pub local: bool,
    /// log2 of the mapping's size.
    pub shift: u32,
}

impl Translation {
    /// Device memory of any kind.
    pub fn is_device(&self) -> bool {
        self.attr & 0xf0 == 0
    }
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug)]
pub struct WalkFault {
    /// Fault status code with level.
    pub fsc: u32,
    /// For a stage-2 fault on the walk: the IPA of the descriptor, and ISS bits (S1PTW, WnR).
    pub stage2: Option<(u64, u32)>,
}

impl WalkFault {
    fn stage1(fsc: u32, level: u32) -> WalkFault {
        WalkFault { fsc: fsc | level, stage2: None }
    }
}

impl Cpu {
    /// Stage 2: the host address behind the 4 KiB page of `ipa`, and what the guest may do with it.
    pub(crate) fn stage2(&mut self, ipa: u64) -> Option<(u64, Perms)> {
        let page = self.machine.stage2.lookup(ipa)?;
        if page.hangs {
            // An access that never completes: only an exit request ends it, and the run with it.
            self.shared.park(pending::EXIT, None);
            self.hung = true;
            return None;
        }
        Some((page.host as u64, page.perms))
    }

    /// Host address of the descriptor at `ipa`, to be read or updated.
    fn descriptor(&mut self, ipa: u64, update: bool) -> Result<*const AtomicU64, WalkFault> {
        let write = if update { iss::WNR } else { 0 };
        let fault = |fsc| WalkFault { fsc, stage2: Some((ipa, iss::S1PTW | write)) };
        match self.stage2(ipa) {
            None => Err(fault(fsc::TRANSLATION | 3)),
            Some((host, perms)) if perms.readable() && (perms.writable() || !update) => {
                Ok((host + (ipa & 0xff8)) as *const AtomicU64)
            }
            Some(_) => Err(fault(fsc::PERMISSION | 3)),
        }
    }

    /// Translates `va` through stage 1, checks the access, and updates the descriptor where the guest has asked for that.
    pub fn walk(&mut self, va: u64, access: Access) -> Result<Translation, WalkFault> {
        if self.sys.sctlr & sctlr::M == 0 {
            return self.flat(va);
        }
        let tcr = self.sys.tcr;
        let upper = va >> 55 & 1 == 1;
        let half = |low: u32, high: u32| tcr >> if upper { high } else { low };
        let tbi = half(37, 38) & 1 == 1 && !(access.kind == Kind::Fetch && half(51, 52) & 1 == 1);
        let sixteen_k = if upper { half(0, 30) & 3 == 1 } else { half(14, 0) & 3 == 2 };
        let (page_shift, stride) = if sixteen_k { (14, 11) } else { (12, 9) };
        let input_size = 64 - (half(0, 16) as u32 & 63).clamp(16, 39);
        let top = if tbi { 55 } else { 63 };
        let high = ((va << (63 - top)) as i64 >> (63 - top)) >> input_size;
        if high != -i64::from(upper) || half(7, 23) & 1 == 1 {
            return Err(WalkFault::stage1(fsc::TRANSLATION, 0));
        }
        let output_size = [32, 36, 40, 42, 44, 48, 48, 48][(tcr >> 32 & 7) as usize].min(self.pa_bits);
        let hierarchical = half(41, 42) & 1 == 0;

        let levels = (input_size - page_shift).div_ceil(stride);
        let mut level = 4 - levels;
        let mut base = if upper { self.sys.ttbr1 } else { self.sys.ttbr0 } & 0x0000_ffff_ffff_fffe;
        let first_bits = input_size - page_shift - stride * (levels - 1);
        base &= !((8u64 << first_bits) - 1);
        if base >> output_size != 0 {
            return Err(WalkFault::stage1(fsc::ADDRESS_SIZE, 0));
        }
        let (mut no_el0, mut read_only, mut pxn, mut uxn) = (false, false, false, false);
        loop {
            let shift = page_shift + stride * (3 - level);
            let bits = if level == 4 - levels { first_bits } else { stride };
            let at = base + (va >> shift & ((1 << bits) - 1)) * 8;
            let host = self.descriptor(at, false)?;
            // SAFETY: `host` is eight aligned bytes of mapped guest memory, kept so until this vCPU has served the stage-2
            // request that takes them away.
            let descriptor = unsafe { (*host).load(Ordering::Acquire) };
            if descriptor & 1 == 0 {
                return Err(WalkFault::stage1(fsc::TRANSLATION, level));
            }
            let address = descriptor & 0x0000_ffff_ffff_ffff & (!0 << page_shift);
            let is_table = descriptor & 2 != 0;
            if level < 3 && is_table {
                if address >> output_size != 0 {
                    return Err(WalkFault::stage1(fsc::ADDRESS_SIZE, level));
                }
                if hierarchical {
                    no_el0 |= descriptor >> 61 & 1 == 1;
                    read_only |= descriptor >> 62 & 1 == 1;
                    pxn |= descriptor >> 59 & 1 == 1;
                    uxn |= descriptor >> 60 & 1 == 1;
                }
                base = address;
                level += 1;
                continue;
            }
            let block_allowed = if sixteen_k { level == 2 } else { level == 1 || level == 2 };
            if (level == 3) != is_table || level < 3 && !block_allowed {
                return Err(WalkFault::stage1(fsc::TRANSLATION, level));
            }
            let block = address & (!0 << shift);
            if block >> output_size != 0 {
                return Err(WalkFault::stage1(fsc::ADDRESS_SIZE, level));
            }
            let mut wanted = descriptor;
            if descriptor & 1 << 10 == 0 {
                if tcr & 1 << 39 == 0 {
                    return Err(WalkFault::stage1(fsc::ACCESS_FLAG, level));
                }
                wanted |= u64::from(access.update) << 10;
            }
            // HD counts only with HA.
            let dirty_managed = tcr & 3 << 39 == 3 << 39 && descriptor >> 51 & 1 == 1;
            let el0 = descriptor >> 6 & 1 == 1 && !no_el0;
            let writable_if_dirty = (descriptor >> 7 & 1 == 0 || dirty_managed) && !read_only;
            let writable_now = descriptor >> 7 & 1 == 0 && !read_only;
            let reachable = if access.privileged { !(access.pan && el0) } else { el0 };
            let allowed = match access.kind {
                Kind::Read => reachable,
                Kind::Write => reachable && writable_if_dirty,
                Kind::Fetch => {
                    let wxn = self.sys.sctlr & sctlr::WXN != 0;
                    if access.privileged {
                        let writable = writable_if_dirty;
                        !(pxn || descriptor >> 53 & 1 == 1 || el0 && writable || wxn && writable)
                    } else {
                        !(uxn || descriptor >> 54 & 1 == 1 || wxn && el0 && writable_if_dirty)
                    }
                }
            };
            if !allowed {
                return Err(WalkFault::stage1(fsc::PERMISSION, level));
            }
            let dirties = access.kind == Kind::Write && !writable_now && access.update;
            if dirties {
                wanted &= !(1 << 7);
            }
            if wanted != descriptor {
                let host = self.descriptor(at, true)?;
                // SAFETY: as above.
                let exchanged =
                    unsafe { (*host).compare_exchange(descriptor, wanted, Ordering::AcqRel, Ordering::Relaxed) };
                if exchanged.is_err() {
                    continue;
                }
                self.code_written(at);
            }
            let global = descriptor & 1 << 11 == 0;
            if global && !upper && self.mmu.spaces.meet_global(access.privileged) {
                return self.walk(va, access);
            }
            if shift > page_shift {
                self.mmu.note(va, shift);
            }
            return Ok(Translation {
                ipa: block | va & ((1 << shift) - 1),
                read: reachable,
                write: reachable && (writable_now || dirties),
                attr: (self.sys.mair >> (8 * (descriptor >> 2 & 7))) as u8,
                shareability: (descriptor >> 8 & 3) as u8,
                local: !upper || !global,
                shift,
            });
        }
    }

    /// Stage 1 off: addresses are physical, data is Device-nGnRnE, everything is allowed (D8.2.9).
    fn flat(&self, va: u64) -> Result<Translation, WalkFault> {
        if va >> self.pa_bits != 0 {
            return Err(WalkFault::stage1(fsc::ADDRESS_SIZE, 0));
        }
        Ok(Translation { ipa: va, read: true, write: true, attr: 0, shareability: 2, local: true, shift: 12 })
    }
}
