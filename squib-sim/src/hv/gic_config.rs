//! The GIC before it exists: its configuration object and its fixed parameters.

use std::ffi::c_void;

use super::object::{self, GicConfig, Object};
use super::{Return, anchor, code, put, ret};
use crate::gic;

anchor!();

/// Whether a region can begin at `base`.
fn check(base: u64, size: u64) -> Result<(), Return> {
    let fits = base.is_multiple_of(gic::ALIGNMENT) && base.checked_add(size).is_some();
    if fits { Ok(()) } else { Err(ret::BAD_ARGUMENT) }
}

/// `hv_gic_config_create`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_config_create() -> *mut c_void {
    object::create(Object::Gic(GicConfig::default()))
}

/// `hv_gic_config_set_distributor_base`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_config_set_distributor_base(config: *mut c_void, base: u64) -> Return {
    code(
        check(base, gic::DISTRIBUTOR_SIZE)
            .and_then(|()| object::with_gic_config(config, |config| config.distributor = base)),
    )
}

/// `hv_gic_config_set_redistributor_base`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_config_set_redistributor_base(config: *mut c_void, base: u64) -> Return {
    code(
        check(base, gic::REDISTRIBUTOR_REGION_SIZE)
            .and_then(|()| object::with_gic_config(config, |config| config.redistributors = base)),
    )
}

/// `hv_gic_config_set_msi_region_base`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_config_set_msi_region_base(config: *mut c_void, base: u64) -> Return {
    code(
        check(base, gic::MSI_SIZE)
            .and_then(|()| object::with_gic_config(config, |config| config.msi_region = Some(base))),
    )
}

/// `hv_gic_config_set_msi_interrupt_range`: must be inside the SPI range.
#[unsafe(no_mangle)]
pub(super) extern "C" fn hv_gic_config_set_msi_interrupt_range(config: *mut c_void, first: u32, count: u32) -> Return {
    let inside = first >= gic::SPI_BASE && first.checked_add(count).is_some_and(|end| end <= gic::SPI_END);
    if !inside {
        return ret::BAD_ARGUMENT;
    }
    code(object::with_gic_config(config, |config| config.msi_range = Some((first, count))))
}

macro_rules! size_getters {
    ($($(#[$meta:meta])* $name:ident = $value:expr;)*) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        pub(super) unsafe extern "C" fn $name(value: *mut usize) -> Return {
            // SAFETY: the C signature: a place for a size_t.
            code(unsafe { put(value, $value as usize) })
        }
    )*};
}

size_getters! {
    /// `hv_gic_get_distributor_size`.
    hv_gic_get_distributor_size = gic::DISTRIBUTOR_SIZE;
    /// `hv_gic_get_distributor_base_alignment`.
    hv_gic_get_distributor_base_alignment = gic::ALIGNMENT;
    /// `hv_gic_get_redistributor_region_size`.
    hv_gic_get_redistributor_region_size = gic::REDISTRIBUTOR_REGION_SIZE;
    /// `hv_gic_get_redistributor_size`.
    hv_gic_get_redistributor_size = gic::REDISTRIBUTOR_SIZE;
    /// `hv_gic_get_redistributor_base_alignment`.
    hv_gic_get_redistributor_base_alignment = gic::ALIGNMENT;
    /// `hv_gic_get_msi_region_size`.
    hv_gic_get_msi_region_size = gic::MSI_SIZE;
    /// `hv_gic_get_msi_region_base_alignment`.
    hv_gic_get_msi_region_base_alignment = gic::ALIGNMENT;
}

/// `hv_gic_get_spi_interrupt_range`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_get_spi_interrupt_range(first: *mut u32, count: *mut u32) -> Return {
    // SAFETY: the C signature: places for two u32.
    code(unsafe { put(first, gic::SPI_BASE).and_then(|()| put(count, gic::SPI_END - gic::SPI_BASE)) })
}

/// `hv_gic_get_intid`: the reserved PPIs.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn hv_gic_get_intid(interrupt: u32, intid: *mut u32) -> Return {
    match interrupt {
        // Performance monitor, maintenance, EL2 physical timer, EL1 virtual timer, EL1 physical timer.
        // SAFETY: the C signature: a place for a u32.
        23 | 25 | 26 | 27 | 30 => code(unsafe { put(intid, interrupt) }),
        _ => ret::BAD_ARGUMENT,
    }
}
