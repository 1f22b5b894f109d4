//! Where the scripts of `guest-images/` put guests: `$SQUIB_GUEST_CACHE`, or `squib-guest` in the user's cache directory.

use std::env;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// A kernel and an initramfs that go together.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs, its `/init` being `guest-images/init`.
    pub initrd: PathBuf,
}

/// The options that name a guest in place of the cache's.
#[derive(clap::Args, Debug)]
pub struct GuestArgs {
    /// An arm64 kernel [default: from the guest cache]
    #[arg(long, value_name = "FILE", requires = "initrd")]
    kernel: Option<PathBuf>,
    /// The initramfs that goes with it: squib's own, which does what the command line says
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
}

impl GuestArgs {
    /// The guest that is named, if one is.
    pub fn named(&self) -> Option<Guest> {
        Some(Guest { kernel: self.kernel.clone()?, initrd: self.initrd.clone()? })
    }

    /// The guest that is named, or the cache's with Debian's cloud kernel.
    pub fn named_or_cached(&self) -> Result<Guest> {
        self.named().map_or_else(|| find("bookworm-cloud"), Ok)
    }
}

/// The directory of all guests.
pub fn directory() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("SQUIB_GUEST_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("squib-guest")))
        .or_else(|| Some(set("HOME")?.join(".cache/squib-guest")))
}

/// The guest `name` (`bookworm-cloud`, `minimal`, ...), or what to do to get it.
pub fn find(name: &str) -> Result<Guest> {
    let how = match name {
        "minimal" => "make minimal-kernel",
        _ => "make guest",
    };
    let nowhere = "neither SQUIB_GUEST_CACHE nor HOME is set, so no guest can be looked for: set one, or name files with --kernel and --initrd";
    let directory = directory().ok_or_else(|| Error::Message(nowhere.into()))?.join(name);
    let guest = Guest { kernel: directory.join("Image"), initrd: directory.join("initramfs.cpio") };
    match guest.kernel.is_file() && guest.initrd.is_file() {
        true => Ok(guest),
        false => Err(Error::Message(format!(
            "there is no guest in {}: `{how}` in squib's repository gets it, or name files with --kernel and --initrd",
            directory.display()
        ))),
    }
}
