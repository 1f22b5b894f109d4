//! Guest virtual memory as the instruction handlers see it: the software TLB in front, the table walk behind.
//!
//! Signatures are the seam between this module and the instruction families. Guest memory is shared with other vCPUs and
//! with the host, so it is only ever touched by volatile or atomic accesses through raw pointers.

use super::cpu::{Cpu, Privilege, Trap};
use super::exception::Fault;
use super::mmu::walk::{Access, Kind, Translation, WalkFault};
use super::mmu::{Entry, PAGE_MASK, SLOW, Tlb, attr};
use super::pstate::sctlr;
use super::syndrome::{ec, fsc, iss};

/// A value one memory access can carry.
pub trait Scalar: Copy + Default + 'static {
    /// Bytes.
    const SIZE: u64;
    /// The low bytes of `value`.
    fn from_u128(value: u128) -> Self;
    /// Zero-extended.
    fn to_u128(self) -> u128;
}

macro_rules! scalar {
    ($($t:ty)*) => {$(impl Scalar for $t {
        const SIZE: u64 = size_of::<$t>() as u64;
        #[inline(always)]
        fn from_u128(value: u128) -> Self { value as $t }
        #[inline(always)]
        #[allow(clippy::unnecessary_cast, reason = "one of the types is u128 itself")]
        fn to_u128(self) -> u128 { self as u128 }
    })*};
}
scalar!(u8 u16 u32 u64 u128);

/// A scalar at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// Where an access goes.
enum Place {
    /// Host address of the first byte.
    Ram(u64),
    /// Nothing is mapped there at stage 2; `ram`: the guest takes it for memory.
    Unmapped { ipa: u64, ram: bool },
}

impl Cpu {
    /// Little-endian load, any alignment (alignment faults as SCTLR_EL1.A and Device memory say). Single-copy atomic when
    /// naturally aligned, up to 8 bytes.
    #[inline(always)]
    pub fn load<T: Scalar>(&mut self, va: u64, privilege: Privilege) -> Result<T, Trap> {
        // SAFETY: the table pointers always point into `self.mmu`, which lives as long as `self`.
        let entry = unsafe { (*self.table(privilege)).entry(va) };
        if entry.read == va.wrapping_add(T::SIZE - 1) & PAGE_MASK {
            let host = entry.addend.wrapping_add(va) as *const Unaligned<T>;
            // SAFETY: a valid entry maps its whole page to host memory that stays mapped until this vCPU has served the
            // request that takes it away; the access lies within the page by the comparison.
            return Ok(unsafe { host.read_volatile() }.0);
        }
        self.load_slow(va, T::SIZE, privilege).map(T::from_u128)
    }

    /// Little-endian store, the counterpart of [`Cpu::load`].
    #[inline(always)]
    pub fn store<T: Scalar>(&mut self, va: u64, value: T, privilege: Privilege) -> Result<(), Trap> {
        // SAFETY: as in `load`.
        let entry = unsafe { (*self.table(privilege)).entry(va) };
        if entry.write == va.wrapping_add(T::SIZE - 1) & PAGE_MASK {
            let host = entry.addend.wrapping_add(va) as *mut Unaligned<T>;
            // SAFETY: as in `load`.
            unsafe { host.write_volatile(Unaligned(value)) };
            return Ok(());
        }
        self.store_slow(va, T::SIZE, value.to_u128(), privilege)
    }

    /// Host address of `T::SIZE` naturally aligned bytes of RAM, readable, and writable when `write`: for atomics,
    /// exclusives and ordered accesses, which then use a host atomic. Faults on misalignment, and on anything but RAM.
    #[inline(always)]
    pub fn atomic_ptr<T: Scalar>(&mut self, va: u64, write: bool) -> Result<*mut T, Trap> {
        // SAFETY: as in `load`.
        let entry = unsafe { (*self.tlb).entry(va) };
        if entry.tag(write) == va & (PAGE_MASK | (T::SIZE - 1)) {
            return Ok(entry.addend.wrapping_add(va) as *mut T);
        }
        self.atomic_slow(va, T::SIZE, write).map(|host| host as *mut T)
    }

    /// As [`Cpu::atomic_ptr`], for a read-modify-write: a fault that a read would take as well is reported as a read's (WnR).
    #[inline(always)]
    pub fn update_ptr<T: Scalar>(&mut self, va: u64) -> Result<*mut T, Trap> {
        // SAFETY: as in `load`.
        let entry = unsafe { (*self.tlb).entry(va) };
        if entry.tag(true) == va & (PAGE_MASK | (T::SIZE - 1)) {
            return Ok(entry.addend.wrapping_add(va) as *mut T);
        }
        self.atomic_slow(va, T::SIZE, false)?;
        self.atomic_slow(va, T::SIZE, true).map(|host| host as *mut T)
    }

    #[inline(always)]
    fn table(&self, privilege: Privilege) -> *const Tlb {
        match privilege {
            Privilege::Current => self.tlb,
            Privilege::Unprivileged => self.tlb_unprivileged,
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, va: u64, size: u64, privilege: Privilege) -> Result<u128, Trap> {
        let first = (0x1000 - (va & 0xfff)).min(size);
        let place = self.place(va, first, size, Kind::Read, privilege)?;
        let mut value = self.read_place(place, va, first)?;
        if first < size {
            let va = va.wrapping_add(first);
            let place = self.place(va, size - first, size, Kind::Read, privilege)?;
            value |= self.read_place(place, va, size - first)? << (8 * first);
        }
        Ok(value)
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, va: u64, size: u64, value: u128, privilege: Privilege) -> Result<(), Trap> {
        let first = (0x1000 - (va & 0xfff)).min(size);
        let place = self.place(va, first, size, Kind::Write, privilege)?;
        if first < size {
            let next = va.wrapping_add(first);
            let second = self.place(next, size - first, size, Kind::Write, privilege)?;
            self.write_place(second, next, size - first, value >> (8 * first))?;
        }
        self.write_place(place, va, first, value)
    }

    #[cold]
    #[inline(never)]
    fn atomic_slow(&mut self, va: u64, size: u64, write: bool) -> Result<u64, Trap> {
        if va & (size - 1) != 0 {
            return Err(self.alignment_fault(va, write));
        }
        let kind = if write { Kind::Write } else { Kind::Read };
        match self.place(va, size, size, kind, Privilege::Current)? {
            Place::Ram(host) => Ok(host),
            Place::Unmapped { ipa, ram } => Err(self.unmapped_fault(va, ipa, ram, u32::from(write) << 6)),
        }
    }

    /// Checks a store to the block of DC ZVA that holds `va`; a fault reports `va` itself (FAR_EL1), not the block.
    pub(crate) fn check_zero_block(&mut self, va: u64) -> Result<(), Trap> {
        let access = self.access(Kind::Write, Privilege::Current);
        if let Ok(found) = self.walk(va, access)
            && found.is_device()
        {
            return Err(self.alignment_fault(va, true));
        }
        match self.place(va, 1, 1, Kind::Write, Privilege::Current)? {
            Place::Ram(_) => Ok(()),
            Place::Unmapped { ipa, ram } => Err(self.unmapped_fault(va, ipa, ram, iss::WNR)),
        }
    }

    fn read_place(&mut self, place: Place, va: u64, size: u64) -> Result<u128, Trap> {
        match place {
            Place::Ram(host) => {
                // SAFETY: `place` found `size` readable bytes of guest memory there.
                Ok(unsafe {
                    match size {
                        1 => (host as *const u8).read_volatile().into(),
                        2 => (host as *const Unaligned<u16>).read_volatile().0.into(),
                        4 => (host as *const Unaligned<u32>).read_volatile().0.into(),
                        8 => (host as *const Unaligned<u64>).read_volatile().0.into(),
                        16 => (host as *const Unaligned<u128>).read_volatile().0,
                        _ => (0..size).fold(0, |value, i| {
                            value | u128::from(((host + i) as *const u8).read_volatile()) << (8 * i)
                        }),
                    }
                })
            }
            Place::Unmapped { ipa, ram } => {
                self.only_instruction()?;
                if let Some(gic) = self.machine.gic.get()
                    && let Some(value) = gic.mmio_read(self.shared.index, ipa, size as u8)
                {
                    return Ok(value.into());
                }
                Err(self.unmapped_fault(va, ipa, ram, 0))
            }
        }
    }

    fn write_place(&mut self, place: Place, va: u64, size: u64, value: u128) -> Result<(), Trap> {
        match place {
            Place::Ram(host) => {
                // SAFETY: `place` found `size` writable bytes of guest memory there.
                unsafe {
                    match size {
                        1 => (host as *mut u8).write_volatile(value as u8),
                        2 => (host as *mut Unaligned<u16>).write_volatile(Unaligned(value as u16)),
                        4 => (host as *mut Unaligned<u32>).write_volatile(Unaligned(value as u32)),
                        8 => (host as *mut Unaligned<u64>).write_volatile(Unaligned(value as u64)),
                        16 => (host as *mut Unaligned<u128>).write_volatile(Unaligned(value)),
                        _ => (0..size).for_each(|i| ((host + i) as *mut u8).write_volatile((value >> (8 * i)) as u8)),
                    }
                }
                Ok(())
            }
            Place::Unmapped { ipa, ram } => {
                self.only_instruction()?;
                if let Some(gic) = self.machine.gic.get()
                    && gic.mmio_write(self.shared.index, ipa, size as u8, value as u64)
                {
                    return Ok(());
                }
                Err(self.unmapped_fault(va, ipa, ram, iss::WNR))
            }
        }
    }

    /// An access with side effects outside the vCPU must be the only instruction of its block, so that what follows (an
    /// interrupt, say) comes at an exact place: retries it alone if it is not.
    fn only_instruction(&mut self) -> Result<(), Trap> {
        // SAFETY: memory is accessed by handlers, so there is a running block.
        if self.block.is_null() || unsafe { (*self.block).len } == 1 {
            return Ok(());
        }
        self.fault = Fault::Alone;
        Err(Trap)
    }

    /// Finds `size` bytes at `va` within one page, as part of an access of `whole` bytes.
    fn place(&mut self, va: u64, size: u64, whole: u64, kind: Kind, privilege: Privilege) -> Result<Place, Trap> {
        let write = kind == Kind::Write;
        let unaligned = va & (whole - 1) != 0 || size != whole;
        if unaligned && self.sys.sctlr & sctlr::A != 0 {
            return Err(self.alignment_fault(va, write));
        }
        if self.watchpoints_enabled() {
            self.check_watchpoints(va, size, write, privilege)?;
        }
        // SAFETY: as in `load`.
        let entry = unsafe { *(*self.table(privilege)).entry(va) };
        if entry.tag(write) & !SLOW == va & PAGE_MASK {
            if unaligned && entry.info & attr::DEVICE != 0 {
                return Err(self.alignment_fault(va, write));
            }
            if write {
                self.code_written(entry.info);
            }
            return Ok(Place::Ram(entry.addend.wrapping_add(va)));
        }
        let access = self.access(kind, privilege);
        let found = match self.walk(va, access) {
            Ok(found) => found,
            Err(fault) => return Err(self.walk_fault(va, fault, u32::from(write) << 6)),
        };
        if unaligned && found.is_device() {
            return Err(self.alignment_fault(va, write));
        }
        let Some((host, perms)) = self.stage2(found.ipa) else {
            return Ok(Place::Unmapped { ipa: found.ipa, ram: self.is_ram(found) });
        };
        if !perms.readable() || write && !perms.writable() {
            return Err(self.stage2_data_fault(va, found.ipa, fsc::PERMISSION | 3 | u32::from(write) << 6, true));
        }
        let page = found.ipa & PAGE_MASK;
        if write {
            self.code_written(page);
        }
        let slow = if found.is_device() || self.mmu.force_slow { SLOW } else { 0 };
        let readable = found.read && perms.readable();
        let writable = found.write && perms.writable();
        let watched = if self.code.contains(page) { SLOW } else { 0 };
        let device = if found.is_device() { attr::DEVICE } else { 0 };
        let entry = Entry {
            read: if readable { va & PAGE_MASK | slow } else { u64::MAX },
            write: if writable { va & PAGE_MASK | slow | watched } else { u64::MAX },
            addend: host.wrapping_sub(va & PAGE_MASK),
            info: page | device,
        };
        self.enter(va, entry, found.local, privilege);
        Ok(Place::Ram(host + (va & 0xfff)))
    }

    pub(crate) fn access(&self, kind: Kind, privilege: Privilege) -> Access {
        let privileged = self.el == 1 && privilege == Privilege::Current;
        Access { kind, privileged, pan: self.pan, update: true }
    }

    /// Turns a failed walk for a data access into a fault; `bits` are further ISS bits (WnR, CM). WnR is the walk's own when
    /// it was the walk that met the stage-2 fault, but always set for cache maintenance and address translation.
    #[cold]
    pub(crate) fn walk_fault(&mut self, va: u64, fault: WalkFault, bits: u32) -> Trap {
        match fault.stage2 {
            Some((ipa, walk)) => {
                let bits = if bits & iss::CM != 0 { bits } else { 0 };
                self.stage2_data_fault(va, ipa, fault.fsc | walk | bits, true)
            }
            None => self.guest_fault(ec::DATA_ABORT_LOWER, fault.fsc | bits, Some(va)),
        }
    }

    #[cold]
    pub(crate) fn stage2_data_fault(&mut self, va: u64, ipa: u64, iss: u32, ram: bool) -> Trap {
        self.fault = Fault::Stage2Data { far: va, ipa, iss, ram };
        Trap
    }

    #[cold]
    fn unmapped_fault(&mut self, va: u64, ipa: u64, ram: bool, bits: u32) -> Trap {
        self.stage2_data_fault(va, ipa, fsc::TRANSLATION | 3 | bits, ram)
    }

    /// Whether what is not mapped at stage 2 is memory. The guest tells by the type it gives it; with stage 1 off everything
    /// is Device memory, and the neighbourhood tells.
    pub(crate) fn is_ram(&self, found: Translation) -> bool {
        !found.is_device() || self.sys.sctlr & sctlr::M == 0 && self.machine.stage2.near_memory(found.ipa)
    }

    /// A store reaches the page at this IPA: forgets code decoded there.
    #[inline]
    pub(crate) fn code_written(&mut self, ipa: u64) {
        if self.code.contains(ipa & PAGE_MASK) {
            self.forget_code(ipa & PAGE_MASK);
        }
    }
}
