//! Decoding that a hostile file cannot make expensive.
//!
//! The encoding packs equal small values into a bit or less, so a short file can announce a very long sequence. Every
//! sequence of a [`MicrovmState`](crate::MicrovmState) therefore has a limit far above what a machine can have, which is
//! checked against the announced length before the first element is decoded.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::envelope::SnapshotHdr;
use crate::state::{DeviceState, FpSimdRegs, GpRegs, VcpuState, VmInfo};

/// Announced vCPUs beyond this are not decoded (a machine has at most 32).
pub(crate) const MAX_VCPU_ELEMENTS: usize = 1024;
/// Announced devices beyond this are not decoded.
pub(crate) const MAX_DEVICE_ELEMENTS: usize = 4096;
/// Announced registers of one vCPU beyond this are not decoded.
pub(crate) const MAX_REGISTER_ELEMENTS: usize = 4096;

/// Announced registers of all vCPUs together beyond this are not decoded.
pub(crate) const MAX_TOTAL_REGISTERS: usize = 1 << 18;

pub(crate) fn vcpus<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<VcpuState>, D::Error> {
    d.deserialize_seq(Limited { limit: MAX_VCPU_ELEMENTS, what: "vCPUs", element: PhantomData })
}

pub(crate) fn devices<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<DeviceState>, D::Error> {
    d.deserialize_seq(Limited { limit: MAX_DEVICE_ELEMENTS, what: "devices", element: PhantomData })
}

pub(crate) fn map<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u64, u64>, D::Error> {
    d.deserialize_map(Registers)
}

thread_local! {
    /// Registers announced so far by the probe that runs on this thread.
    static ANNOUNCED: Cell<usize> = const { Cell::new(0) };
}

/// Refuses a body that announces more registers for all its vCPUs together than any machine has. Their columns are unpacked for
/// all vCPUs at once when the first register is reached, so the limit per vCPU comes too late; this probe reads only the
/// lengths, which stand before the columns.
pub(crate) fn check_totals(body: &[u8]) -> crate::Result<()> {
    ANNOUNCED.set(0);
    // The probe leaves most of the body unread, so it always ends in an error; what it counted is what matters.
    let _ = bitcode::deserialize::<Probe<SnapshotProbe>>(body);
    let announced = ANNOUNCED.get();
    if announced > MAX_TOTAL_REGISTERS {
        return Err(crate::SnapshotError::Bitcode(format!(
            "{announced} registers exceed the limit of {MAX_TOTAL_REGISTERS}"
        )));
    }
    Ok(())
}

/// Reads the leading fields of a struct with `fields` fields and leaves the rest.
struct Probe<P>(PhantomData<P>);

trait Leading {
    const FIELDS: usize;
    fn visit<'de, A: SeqAccess<'de>>(fields: A) -> Result<(), A::Error>;
}

impl<'de, P: Leading> Deserialize<'de> for Probe<P> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Fields<P>(PhantomData<P>);
        impl<'de, P: Leading> Visitor<'de> for Fields<P> {
            type Value = Probe<P>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a struct")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, fields: A) -> Result<Probe<P>, A::Error> {
                P::visit(fields).map(|()| Probe(PhantomData))
            }
        }
        d.deserialize_tuple(P::FIELDS, Fields(PhantomData))
    }
}

/// header, then data.
struct SnapshotProbe;

impl Leading for SnapshotProbe {
    const FIELDS: usize = 2;
    fn visit<'de, A: SeqAccess<'de>>(mut fields: A) -> Result<(), A::Error> {
        fields.next_element::<SnapshotHdr>()?;
        fields.next_element::<Probe<StateProbe>>().map(drop)
    }
}

/// `vm_info`, then `vcpu_states`.
struct StateProbe;

impl Leading for StateProbe {
    const FIELDS: usize = 5;
    fn visit<'de, A: SeqAccess<'de>>(mut fields: A) -> Result<(), A::Error> {
        fields.next_element::<VmInfo>()?;
        fields.next_element::<VcpuProbes>().map(drop)
    }
}

/// mpidr, general and FP registers, then the map.
struct VcpuProbe;

impl Leading for VcpuProbe {
    const FIELDS: usize = 5;
    fn visit<'de, A: SeqAccess<'de>>(mut fields: A) -> Result<(), A::Error> {
        fields.next_element::<u64>()?;
        fields.next_element::<GpRegs>()?;
        fields.next_element::<FpSimdRegs>()?;
        fields.next_element::<MapLength>().map(drop)
    }
}

struct VcpuProbes;

impl<'de> Deserialize<'de> for VcpuProbes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let limited = Limited { limit: MAX_VCPU_ELEMENTS, what: "vCPUs", element: PhantomData::<Probe<VcpuProbe>> };
        d.deserialize_seq(limited).map(|_| Self)
    }
}

struct MapLength;

impl<'de> Deserialize<'de> for MapLength {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Length;
        impl<'de> Visitor<'de> for Length {
            type Value = MapLength;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }
            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<MapLength, A::Error> {
                ANNOUNCED.set(ANNOUNCED.get().saturating_add(entries.size_hint().unwrap_or(0)));
                Ok(MapLength)
            }
        }
        d.deserialize_map(Length)
    }
}

fn check<E: Error>(announced: Option<usize>, limit: usize, what: &str) -> Result<(), E> {
    match announced {
        Some(n) if n > limit => Err(E::custom(format_args!("{n} {what} exceed the limit of {limit}"))),
        _ => Ok(()),
    }
}

struct Limited<T> {
    limit: usize,
    what: &'static str,
    element: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Limited<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {} {}", self.limit, self.what)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        check(seq.size_hint(), self.limit, self.what)?;
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            check(Some(elements.len() + 1), self.limit, self.what)?;
            elements.push(element);
        }
        Ok(elements)
    }
}

struct Registers;

impl<'de> Visitor<'de> for Registers {
    type Value = BTreeMap<u64, u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_REGISTER_ELEMENTS} registers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        check(entries.size_hint(), MAX_REGISTER_ELEMENTS, "registers")?;
        let mut map = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry()? {
            map.insert(key, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MicrovmState, Snapshot, SnapshotError};

    fn body(state: MicrovmState) -> Vec<u8> {
        bitcode::serialize(&Snapshot::new(state)).unwrap()
    }

    fn with_registers(vcpus: u64, registers: u64) -> MicrovmState {
        let mut vcpu = VcpuState::new(0);
        vcpu.sys_regs = (0..registers).map(|r| (r, 0)).collect();
        MicrovmState { vcpu_states: vec![vcpu; vcpus as usize], ..MicrovmState::default() }
    }

    #[test]
    fn the_probe_counts_the_registers_of_all_vcpus() {
        check_totals(&body(with_registers(32, 300))).unwrap();
        assert_eq!(ANNOUNCED.get(), 32 * 300);
        check_totals(&body(MicrovmState::default())).unwrap();
        assert_eq!(ANNOUNCED.get(), 0);
    }

    #[test]
    fn announcements_beyond_every_machine_are_refused_before_decoding() {
        let text = |state| match Snapshot::<MicrovmState>::load_without_crc_check(&body(state)) {
            Err(SnapshotError::Bitcode(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(text(with_registers(100, 4000)).contains("400000 registers exceed"));
        text(with_registers(1, 5000));
        text(with_registers(1025, 0));
        let device = DeviceState { kind: String::new(), id: String::new(), mmio_slot: 0, blob: vec![] };
        let mut many = MicrovmState::default();
        many.device_states.devices = vec![device; 4097];
        text(many);
        let most = with_registers(64, 4096);
        let back = Snapshot::<MicrovmState>::load_without_crc_check(&body(most.clone())).unwrap();
        assert_eq!(back.data, most);
    }
}
