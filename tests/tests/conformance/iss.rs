//! Fields of an abort's syndrome (ESR_EL2.ISS).

pub const ISV: u64 = 1 << 24;
pub const FNV: u64 = 1 << 10;
pub const CM: u64 = 1 << 8;
pub const S1PTW: u64 = 1 << 7;
pub const WNR: u64 = 1 << 6;
pub const IL: u64 = 1 << 25;

pub fn sas(syndrome: u64) -> u64 {
    syndrome >> 22 & 3
}
pub fn sse(syndrome: u64) -> u64 {
    syndrome >> 21 & 1
}
pub fn srt(syndrome: u64) -> u64 {
    syndrome >> 16 & 31
}
pub fn sf(syndrome: u64) -> u64 {
    syndrome >> 15 & 1
}
/// Fault status without its level.
pub fn status(syndrome: u64) -> u64 {
    syndrome & 0x3c
}
pub const TRANSLATION: u64 = 0x04;
pub const PERMISSION: u64 = 0x0c;
