//! The pager: RAM that is absent until it is touched.

mod source;

pub use source::{Origin, PageSource, SourceError};
