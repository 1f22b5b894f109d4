//! Short programs to copy from. Each is one file beside this one and one example of this package:
//!
//! | program | shows |
//! |---|---|
//! | `boot` | a guest with its console on the terminal |
//! | `freeze` | a snapshot the moment the guest prints a text |
//! | `resume` | the same guest going on in another process |
//! | `lazy_restore` | the same at once: its memory follows, page by page |
//! | `page_server` | a snapshot's memory, served to other machines, and read back |
//! | `diff_chain` | a full snapshot and diffs of a running guest, and going on from the last |
//! | `inspect` | what a snapshot holds, read without any hypervisor |
//!
//! ```text
//! cargo run -p squib-examples --example boot -- Image initramfs.cpio
//! ```
