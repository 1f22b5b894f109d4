//! Tests only: interoperability of `squib-snapshot` with the published crate of the same name.
