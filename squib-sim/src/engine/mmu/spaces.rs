//! Which address spaces a vCPU's TLBs may hold translations of, told to the other vCPUs, so that a TLBI by ASID troubles those
//! that hold some, and DSB waits for those that use them at this moment.
//!
//! Without this, each TLBI of each `fork`, `exec` and `exit` would wait until the host has given every other running vCPU a
//! processor once, which with fewer processors than vCPUs takes whole time slices.
//!
//! # Why it is correct
//!
//! After the DSB that follows a TLBI, no other PE may use an old translation, and what was accessed through it must be
//! complete (Arm ARM D8.14, "TLB maintenance"). A is the vCPU that executes TLBI, B any other, X the ASID. The guest changes the
//! descriptor before its TLBI. A acts in this order, all of it sequentially consistent:
//!
//! 1. a fence;
//! 2. reads what B announces ([`Spaces::may_hold`]), and posts no request if that does not name X;
//! 3. posts the request to B;
//! 4. reads again ([`Spaces::uses`]): only if that names X, DSB waits for B's answer, for B to stop, or for it to use X no
//!    longer.
//!
//! B *announces X as current, and then fences and serves its mailbox*, before it walks tables under X or uses what it holds of
//! X; takes a bank for X only while X is current; and announces another space only *after* it has emptied the bank that made
//! place, and the tables which know no ASID. Each case:
//!
//! * A does not post. Then in step 2 X was not current and in no bank. If B made X current later, B's fence comes after A's,
//!   and B's walks find the new descriptor. If B held X before, it had emptied its tables before it announced so, and had done
//!   its accesses before that: A reads the announcement, so it sees them.
//! * A posts and does not wait. Then B did not have X as current after the request was in its mailbox. To use what it holds
//!   it must make X current, and then serves the request first. Its earlier accesses are complete, as above.
//! * A waits. B answers between two blocks, when no access is under way, or stops executing, or announces another space: then
//!   it is the case before.
//!
//! Translations that are not bound to an ASID are all in the upper half of the addresses, for which everybody is asked; those
//! of the lower half that the guest marks global are announced by themselves, before they are used (`Spaces::meet_global`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst, fence};

use super::BANKS;

/// No address space.
const NONE: u32 = u32::MAX;

/// Bits of [`Spaces::global`].
mod global {
    /// In the tables of EL1, which go when the address space does.
    pub const EL1: u32 = 1;
    /// In a bank.
    pub const EL0: u32 = 2;
}

/// See the module's description.
pub struct Spaces {
    /// The ASID translations are made under.
    current: AtomicU32,
    /// The ASIDs of the banks.
    banks: [AtomicU32; BANKS],
    /// Global translations of the lower half may be held.
    global: AtomicU32,
}

impl Spaces {
    /// Of a vCPU in reset state.
    pub fn new() -> Arc<Spaces> {
        Arc::new(Spaces {
            current: AtomicU32::new(0),
            banks: std::array::from_fn(|_| AtomicU32::new(NONE)),
            global: AtomicU32::new(0),
        })
    }

    /// Another vCPU asks: translations of this ASID may be held, or will be without another look at the mailbox.
    pub fn may_hold(&self, asid: u16) -> bool {
        // First what is in use: from there it goes into a bank, never the other way.
        self.uses(asid) || self.banks.iter().any(|bank| bank.load(SeqCst) == u32::from(asid))
    }

    /// Another vCPU asks: translations of this ASID may be in use now.
    pub fn uses(&self, asid: u16) -> bool {
        self.current.load(SeqCst) == u32::from(asid) || self.global.load(SeqCst) != 0
    }

    /// The vCPU itself: EL1's tables hold nothing of the lower half any more, and from now on translations are made under
    /// `asid`. The mailbox must be served next.
    pub(super) fn enter(&self, asid: u64) {
        self.global.fetch_and(!global::EL1, SeqCst);
        self.current.store(asid as u32, SeqCst);
        fence(SeqCst);
    }

    /// The vCPU itself: a bank has been emptied, and is `asid`'s now, or nobody's.
    pub(super) fn set_bank(&self, bank: usize, asid: Option<u64>) {
        self.banks[bank].store(asid.map_or(NONE, |asid| asid as u32), SeqCst);
    }

    /// The vCPU itself has found a global mapping in the lower half. `true` if that was not known before: then it must walk
    /// again, because only from now on will others ask it to forget such mappings.
    pub(super) fn meet_global(&self, privileged: bool) -> bool {
        let bit = if privileged { global::EL1 } else { global::EL0 };
        self.global.load(SeqCst) & bit == 0 && {
            self.global.fetch_or(bit, SeqCst);
            fence(SeqCst);
            true
        }
    }
}
