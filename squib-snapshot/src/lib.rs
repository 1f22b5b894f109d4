//! Snapshots of microVMs: file formats, save and load, memory images, dirty bitmap, capture and restore traits.
#![forbid(unsafe_code)]
