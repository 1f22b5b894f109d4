//! The pager: RAM that is absent until it is touched.
//!
//! A machine restored with a pager runs at once. Its RAM is absent: not mapped at stage 2, `PROT_NONE` in the host's guest view. Each
//! page is brought from a [`PageSource`] when it is first needed, by whichever of these comes first:
//!
//! * the guest: its access exits with a data or instruction abort, and the vCPU's own thread brings the page;
//! * our own code: the guest-memory accessor makes a range present before it hands it out, so that neither an access nor a system
//!   call ever meets an absent page. Should it be forgotten somewhere, the access raises an exception that the Mach part catches;
//! * the prefetcher, in the background, until nothing is absent. Then the source is let go and the machine is an ordinary one.
//!
//! A page whose bytes are wrong is poisoned: whoever needs it gets the error, once and every time, and the machine stops. A page
//! whose source is away stays absent: the machine stops with an error, and goes on when it is resumed and the source is
//! back. A snapshot reads absent pages from the source and leaves them absent.

mod file;
mod mach;
mod monitor;
mod net;
mod observe;
mod prefetch;
mod probe;
mod quiet;
mod read;
mod remote;
mod resolver;
mod scarce;
mod slots;
mod source;
mod state;
mod stats;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod touches;
mod wait;
mod working_set;

pub use file::FileSource;
pub use mach::{FaultHandler, MachPager, Registration, Verdict};
pub use monitor::Monitor;
pub use observe::{StreamEvent, StreamObserver};
pub use probe::{BareFloor, LazyMemory, Toucher};
pub use remote::{Images, Log, PageServer, RemoteConfig, RemoteSource, Stop};
pub use source::{Origin, PageSource, SourceError, Unexplained};
pub use stats::{Latency, PagerStats, Spread};
pub use working_set::WorkingSetFile;

pub(crate) use net::Net;
pub(crate) use prefetch::Prefetcher;
pub(crate) use resolver::{Brought, Pager};
pub(crate) use state::PageStates;
pub(crate) use stats::Cause;
