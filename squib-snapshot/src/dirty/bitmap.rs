//! One bit per page, set by many threads at once and read by the snapshot writer.
//!
//! Marking is one atomic read-modify-write, so that a mark made after a store to the page is seen together with that
//! store by whoever drains the bit: `AcqRel` on both sides. A bit is never lost: it is in the bitmap, or in the hands of
//! exactly one drainer.

use std::sync::atomic::AtomicU64;

use crate::dirty::protocol::Word;
use crate::dirty::{PageSet, PageSetBuilder};
use crate::error::{Result, SnapshotError};

/// A bitmap over the pages of `[ram_start, ram_start + ram_size)`. Every method takes `&self` and none blocks.
///
/// ```
/// use squib_snapshot::DirtyBitmap;
/// let log = DirtyBitmap::new(0x8000_0000, 1 << 20, 16384)?;
/// assert!(log.set_dirty(0x8000_4001));
/// assert!(!log.set_dirty(0x8000_4001), "already dirty");
/// assert_eq!(log.drain(), [1]);
/// assert!(log.drain().is_empty());
/// # Ok::<(), squib_snapshot::SnapshotError>(())
/// ```
#[derive(Debug)]
pub struct DirtyBitmap {
    ram_start: u64,
    ram_size: u64,
    page_size: u64,
    words: Box<[AtomicU64]>,
}

impl DirtyBitmap {
    /// All pages clean.
    ///
    /// # Errors
    /// [`SnapshotError::InvalidPath`] if `page_size` is not a power of two, `ram_size` is 0, the range overflows, or the
    /// bitmap does not fit into memory.
    pub fn new(ram_start: u64, ram_size: u64, page_size: u64) -> Result<Self> {
        if !page_size.is_power_of_two() {
            return Err(SnapshotError::InvalidPath(format!("page_size must be a power of two: {page_size}")));
        }
        if ram_size == 0 {
            return Err(SnapshotError::InvalidPath("dirty bitmap requires a non-empty RAM range".into()));
        }
        if ram_start.checked_add(ram_size).is_none() {
            return Err(SnapshotError::InvalidPath(format!(
                "RAM range overflows: start={ram_start:#x}, size={ram_size:#x}"
            )));
        }
        let page_count = ram_size.div_ceil(page_size);
        let too_large =
            || SnapshotError::InvalidPath(format!("bitmap word count exceeds usize::MAX (page_count={page_count})"));
        let word_count = usize::try_from(page_count.div_ceil(64)).map_err(|_| too_large())?;
        let mut words = Vec::new();
        words.try_reserve_exact(word_count).map_err(|_| too_large())?;
        words.resize_with(word_count, || AtomicU64::new(0));
        Ok(Self { ram_start, ram_size, page_size, words: words.into_boxed_slice() })
    }

    /// First address.
    #[must_use]
    pub const fn ram_start(&self) -> u64 {
        self.ram_start
    }

    /// Bytes covered.
    #[must_use]
    pub const fn ram_size(&self) -> u64 {
        self.ram_size
    }

    /// Bytes per bit.
    #[must_use]
    pub const fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Number of pages; a partial last page counts.
    #[must_use]
    pub const fn page_count(&self) -> u64 {
        self.ram_size.div_ceil(self.page_size)
    }

    /// Binary logarithm of the page size.
    #[must_use]
    pub fn page_shift(&self) -> u32 {
        self.page_size.trailing_zeros()
    }

    /// Index of the page that holds `addr`, counted from the start of RAM.
    #[must_use]
    pub fn page_index_of(&self, addr: u64) -> Option<u64> {
        let offset = addr.checked_sub(self.ram_start)?;
        (offset < self.ram_size).then(|| offset >> self.page_shift())
    }

    /// Marks the page that holds `addr`; true if it was clean.
    pub fn set_dirty(&self, addr: u64) -> bool {
        self.page_index_of(addr).is_some_and(|page| self.set_dirty_by_index(page))
    }

    /// Marks a page by index; true if it was clean.
    pub fn set_dirty_by_index(&self, page: u64) -> bool {
        if page >= self.page_count() {
            return false;
        }
        let bit = 1 << (page % 64);
        self.words[(page / 64) as usize].set(bit) & bit == 0
    }

    /// Marks every page that `[addr, addr + len)` touches, clipped to the range.
    pub fn set_range_dirty(&self, addr: u64, len: u64) {
        let end = addr.saturating_add(len).min(self.ram_start + self.ram_size);
        let start = addr.max(self.ram_start);
        if start < end {
            let first = (start - self.ram_start) >> self.page_shift();
            let last = (end - 1 - self.ram_start) >> self.page_shift();
            self.set_pages_dirty(first, last - first + 1);
        }
    }

    /// Marks `count` pages from `first`, clipped to the range.
    pub(crate) fn set_pages_dirty(&self, first: u64, count: u64) {
        let end = first.saturating_add(count).min(self.page_count());
        let mut page = first;
        while page < end {
            let in_word = (64 - page % 64).min(end - page);
            self.words[(page / 64) as usize].set(word_mask(page % 64, in_word));
            page += in_word;
        }
    }

    /// Whether the page that holds `addr` is dirty.
    #[must_use]
    pub fn is_dirty(&self, addr: u64) -> bool {
        self.page_index_of(addr).is_some_and(|page| self.is_dirty_by_index(page))
    }

    /// Whether a page is dirty.
    #[must_use]
    pub fn is_dirty_by_index(&self, page: u64) -> bool {
        page < self.page_count() && self.words[(page / 64) as usize].get() >> (page % 64) & 1 == 1
    }

    /// Takes every bit out; page indices in ascending order.
    pub fn drain(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        self.drain_into(|page| pages.push(page));
        pages
    }

    /// Takes every bit out, one word at a time, and hands over the page indices in ascending order.
    pub fn drain_into<F: FnMut(u64)>(&self, mut callback: F) {
        self.each_taken(|i, mut bits| {
            while bits != 0 {
                callback(i * 64 + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        });
    }

    /// Takes all bits out and hands over the words that had some, with their numbers.
    fn each_taken(&self, mut callback: impl FnMut(u64, u64)) {
        // Eight clean words cost one branch: a log of 64 GiB is scanned in some tens of microseconds.
        let (groups, rest) = self.words.as_chunks::<8>();
        for (i, group) in groups.iter().enumerate() {
            if group.iter().fold(0, |any, word| any | word.peek()) != 0 {
                take_words(group, i as u64 * 8, &mut callback);
            }
        }
        take_words(rest, groups.len() as u64 * 8, &mut callback);
    }

    /// Marks in `fine` all the pages that this bitmap's dirty pages span. Own bits stay.
    ///
    /// # Errors
    /// [`SnapshotError::InvalidPath`] if the ranges differ or `fine` is not strictly finer.
    pub fn fold_into_finer(&self, fine: &DirtyBitmap) -> Result<()> {
        let invalid = |text: &str| Err(SnapshotError::InvalidPath(text.into()));
        if (self.ram_start, self.ram_size) != (fine.ram_start, fine.ram_size) {
            return invalid("fold_into_finer requires identical ranges");
        }
        if fine.page_size >= self.page_size {
            return invalid("fold_into_finer expects a strictly smaller page size");
        }
        if !self.page_size.is_multiple_of(fine.page_size) {
            return invalid("coarse page must be a multiple of fine page");
        }
        let ratio = self.page_size / fine.page_size;
        for (first, count) in self.snapshot().runs() {
            fine.set_pages_dirty(first * ratio, count * ratio);
        }
        Ok(())
    }

    /// The dirty pages, left dirty.
    ///
    /// ```
    /// # use squib_snapshot::DirtyBitmap;
    /// let log = DirtyBitmap::new(0, 1 << 20, 16384)?;
    /// log.set_range_dirty(16384, 3 * 16384);
    /// assert_eq!(log.snapshot().runs().collect::<Vec<_>>(), [(1, 3)]);
    /// assert_eq!(log.snapshot().len(), 3, "still dirty");
    /// # Ok::<(), squib_snapshot::SnapshotError>(())
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> PageSet {
        let mut builder = PageSetBuilder::new(self.page_size, self.page_count());
        for (i, word) in self.words.iter().enumerate() {
            push_word(&mut builder, i as u64, word.get());
        }
        builder.finish()
    }

    /// Takes the dirty pages out for a snapshot that a running guest does not wait for: marks made from now on belong to
    /// the next one. Unless [`TakenPages::commit`] is called the pages become dirty again when the guard is dropped, so a
    /// failed diff loses nothing.
    ///
    /// ```
    /// # use squib_snapshot::DirtyBitmap;
    /// let log = DirtyBitmap::new(0, 1 << 20, 16384)?;
    /// log.set_dirty(0);
    /// drop(log.take()); // the diff failed
    /// assert!(log.is_dirty(0));
    /// log.take().commit();
    /// assert!(!log.is_dirty(0));
    /// # Ok::<(), squib_snapshot::SnapshotError>(())
    /// ```
    pub fn take(&self) -> TakenPages<'_> {
        let mut builder = PageSetBuilder::new(self.page_size, self.page_count());
        self.each_taken(|i, bits| push_word(&mut builder, i, bits));
        let pages = builder.finish();
        TakenPages { bitmap: self, pages, committed: false }
    }

    /// Makes the pages of `set` clean: the step after the commit of a diff that was taken from [`Self::snapshot`] while
    /// the guest stood still.
    pub fn clear(&self, set: &PageSet) {
        for (first, count) in set.runs() {
            let end = first.saturating_add(count).min(self.page_count());
            let mut page = first;
            while page < end {
                let in_word = (64 - page % 64).min(end - page);
                self.words[(page / 64) as usize].clear(word_mask(page % 64, in_word));
                page += in_word;
            }
        }
    }

    /// Marks the pages of `set`.
    pub fn merge(&self, set: &PageSet) {
        for (first, count) in set.runs() {
            self.set_pages_dirty(first, count);
        }
    }
}

fn take_words(words: &[AtomicU64], first: u64, callback: &mut impl FnMut(u64, u64)) {
    for (i, word) in words.iter().enumerate() {
        match word.take() {
            0 => {}
            bits => callback(first + i as u64, bits),
        }
    }
}

/// Adds the runs of ones in word number `i`.
fn push_word(builder: &mut PageSetBuilder, i: u64, mut bits: u64) {
    let mut at = i * 64;
    while bits != 0 {
        let skip = bits.trailing_zeros();
        bits >>= skip;
        let run = bits.trailing_ones();
        at += u64::from(skip);
        builder.push_run(at, u64::from(run));
        at += u64::from(run);
        bits = bits.checked_shr(run).unwrap_or(0);
    }
}

/// `count` ones from bit `first`; `first + count` is at most 64.
fn word_mask(first: u64, count: u64) -> u64 {
    (u64::MAX >> (64 - count)) << first
}

/// Dirty pages on their way into a snapshot; see [`DirtyBitmap::take`].
#[derive(Debug)]
#[must_use = "dropping the guard makes the pages dirty again"]
pub struct TakenPages<'a> {
    bitmap: &'a DirtyBitmap,
    pages: PageSet,
    committed: bool,
}

impl TakenPages<'_> {
    /// The pages taken.
    #[must_use]
    pub fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// The snapshot that holds the pages is durable: they stay clean.
    pub fn commit(mut self) {
        self.committed = true;
    }
}

impl Drop for TakenPages<'_> {
    fn drop(&mut self) {
        if !self.committed {
            self.bitmap.merge(&self.pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(e: SnapshotError) -> String {
        match e {
            SnapshotError::InvalidPath(m) => m,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn geometry_is_checked() {
        let text = |start, size, page| message(DirtyBitmap::new(start, size, page).unwrap_err());
        assert_eq!(text(0, 1, 0), "page_size must be a power of two: 0");
        assert_eq!(text(0, 1, 3), "page_size must be a power of two: 3");
        assert_eq!(text(0, 0, 4096), "dirty bitmap requires a non-empty RAM range");
        assert_eq!(text(u64::MAX, 1, 4096), "RAM range overflows: start=0xffffffffffffffff, size=0x1");
        // Miri ends the process when an allocation is that large.
        #[cfg(not(miri))]
        assert_eq!(text(0, u64::MAX, 1), "bitmap word count exceeds usize::MAX (page_count=18446744073709551615)");
    }

    #[test]
    fn addresses_outside_are_never_dirty() {
        let b = DirtyBitmap::new(0x1000, 0x2800, 0x1000).unwrap();
        assert_eq!((b.page_count(), b.page_shift()), (3, 12));
        assert_eq!(b.page_index_of(0xfff), None);
        assert_eq!(b.page_index_of(0x37ff), Some(2));
        assert_eq!(b.page_index_of(0x3800), None);
        assert!(!b.set_dirty(0) && !b.set_dirty(0x3800) && !b.set_dirty_by_index(3));
        assert!(!b.is_dirty(0) && !b.is_dirty_by_index(3) && !b.is_dirty_by_index(u64::MAX));
        assert!(b.drain().is_empty());
    }

    #[test]
    fn ranges_mark_every_page_they_touch() {
        let b = DirtyBitmap::new(0x1000, 200 * 0x1000, 0x1000).unwrap();
        b.set_range_dirty(0x1fff, 2);
        assert_eq!(b.drain(), [0, 1]);
        b.set_range_dirty(0, u64::MAX);
        assert_eq!(b.drain().len(), 200);
        b.set_range_dirty(0x1000 * 64, 0);
        b.set_range_dirty(u64::MAX, 5);
        assert!(b.drain().is_empty());
        b.set_range_dirty(0x1000 * 60, 0x1000 * 70);
        assert_eq!(b.drain(), (59..129).collect::<Vec<_>>());
    }

    #[test]
    fn folding_marks_whole_blocks_and_keeps_own_bits() {
        let coarse = DirtyBitmap::new(0, 10 * 16384, 65536).unwrap();
        let fine = DirtyBitmap::new(0, 10 * 16384, 16384).unwrap();
        coarse.set_dirty_by_index(0);
        coarse.set_dirty_by_index(2);
        coarse.fold_into_finer(&fine).unwrap();
        assert_eq!(fine.drain(), [0, 1, 2, 3, 8, 9]);
        assert_eq!(coarse.drain(), [0, 2]);

        let err = |a: &DirtyBitmap, b: &DirtyBitmap| message(a.fold_into_finer(b).unwrap_err());
        assert_eq!(err(&fine, &coarse), "fold_into_finer expects a strictly smaller page size");
        assert_eq!(err(&fine, &fine), "fold_into_finer expects a strictly smaller page size");
        let other = DirtyBitmap::new(0, 16384, 16384).unwrap();
        assert_eq!(err(&coarse, &other), "fold_into_finer requires identical ranges");
    }

    #[test]
    fn clear_removes_only_what_the_snapshot_held() {
        let b = DirtyBitmap::new(0, 300 * 4096, 4096).unwrap();
        b.set_pages_dirty(10, 200);
        let set = b.snapshot();
        b.set_dirty_by_index(250);
        b.clear(&set);
        assert_eq!(b.drain(), [250]);
        b.merge(&set);
        assert_eq!(b.drain(), (10..210).collect::<Vec<_>>());
    }
}
