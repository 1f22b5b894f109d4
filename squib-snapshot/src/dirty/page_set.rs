//! A set of pages that no longer changes: what a diff holds, told exactly and not guessed from holes in a file.
//!
//! Few or clustered pages are kept as runs, many scattered ones as a bitmap, whichever is smaller; so a set costs at most
//! one bit per page of RAM, in memory and in the state file.

/// Pages of a RAM of `page_count` pages of `page_size` bytes.
///
/// ```
/// use squib_snapshot::PageSet;
/// let set = PageSet::from_pages(16384, 64, [3, 4, 5, 9]);
/// assert_eq!(set.runs().collect::<Vec<_>>(), [(3, 3), (9, 1)]);
/// assert!(set.contains(4) && !set.contains(6));
/// ```
#[derive(Debug, Clone)]
pub struct PageSet {
    page_size: u64,
    page_count: u64,
    len: u64,
    form: Form,
}

#[derive(Debug, Clone)]
pub(crate) enum Form {
    /// `(first, count)`, ascending, not touching.
    Runs(Vec<(u64, u64)>),
    /// One bit per page, LSB first.
    Words(Vec<u64>),
}

impl PageSet {
    /// No page.
    #[must_use]
    pub fn empty(page_size: u64, page_count: u64) -> Self {
        Self { page_size, page_count, len: 0, form: Form::Runs(Vec::new()) }
    }

    /// Every page.
    #[must_use]
    pub fn full(page_size: u64, page_count: u64) -> Self {
        let mut builder = PageSetBuilder::new(page_size, page_count);
        builder.push_run(0, page_count);
        builder.finish()
    }

    /// Collects ascending page numbers; those beyond the end, and those not above their predecessor, are ignored.
    pub fn from_pages<I: IntoIterator<Item = u64>>(page_size: u64, page_count: u64, pages: I) -> Self {
        let mut builder = PageSetBuilder::new(page_size, page_count);
        for page in pages {
            builder.push_run(page, 1);
        }
        builder.finish()
    }

    /// Bytes per page.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Pages the RAM has.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// Pages in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no page is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `page` is in it.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        match &self.form {
            Form::Runs(runs) => {
                let after = runs.partition_point(|&(first, _)| first <= page);
                after > 0 && page - runs[after - 1].0 < runs[after - 1].1
            }
            Form::Words(words) => {
                usize::try_from(page / 64).ok().and_then(|i| words.get(i)).is_some_and(|w| w >> (page % 64) & 1 == 1)
            }
        }
    }

    /// Maximal runs as `(first page, number of pages)`, ascending.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs_from(0, u64::MAX)
    }

    /// Single pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs().flat_map(|(first, count)| first..first + count)
    }

    /// Runs within `[first, end)`, clipped to it.
    pub fn runs_within(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs_from(first, end).take_while(move |&(at, _)| at < end).map(move |(at, count)| {
            let (start, stop) = (at.max(first), (at + count).min(end));
            (start, stop - start)
        })
    }

    /// Pages of this set or `other`. Both must have the same page size and count, as those of one chain have.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut builder = PageSetBuilder::new(self.page_size, self.page_count);
        let (mut a, mut b) = (self.runs().peekable(), other.runs().peekable());
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x.0 <= y.0 => a.next(),
                (Some(_), None) => a.next(),
                _ => b.next(),
            };
            let Some((first, count)) = next else { return builder.finish() };
            builder.push_run(first, count);
        }
    }

    #[cfg(test)]
    pub(crate) fn form(&self) -> &Form {
        &self.form
    }

    /// Runs from the one that holds or follows `page`; those at and beyond `end` may be missing.
    fn runs_from(&self, page: u64, end: u64) -> Runs<'_> {
        match &self.form {
            Form::Runs(runs) => {
                let at = runs.partition_point(|&(first, count)| first + count <= page);
                Runs::List(runs[at..].iter())
            }
            Form::Words(words) => {
                let len = usize::try_from(end.div_ceil(64)).unwrap_or(usize::MAX).min(words.len());
                Runs::Words { words: &words[..len], at: page }
            }
        }
    }
}

impl PartialEq for PageSet {
    fn eq(&self, other: &Self) -> bool {
        (self.page_size, self.page_count, self.len) == (other.page_size, other.page_count, other.len)
            && self.runs().eq(other.runs())
    }
}

impl Eq for PageSet {}

enum Runs<'a> {
    List(std::slice::Iter<'a, (u64, u64)>),
    Words { words: &'a [u64], at: u64 },
}

impl Iterator for Runs<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        match self {
            Self::List(list) => list.next().copied(),
            Self::Words { words, at } => {
                let first = seek(words, *at, false)?;
                let end = seek(words, first, true).unwrap_or(words.len() as u64 * 64);
                *at = end;
                Some((first, end - first))
            }
        }
    }
}

/// First bit at or after `from` that is one (`inverted`: zero).
fn seek(words: &[u64], from: u64, inverted: bool) -> Option<u64> {
    let flip = if inverted { u64::MAX } else { 0 };
    let mut index = usize::try_from(from / 64).ok()?;
    let mut word = (words.get(index)? ^ flip) & (u64::MAX << (from % 64));
    while word == 0 {
        index += 1;
        word = words.get(index)? ^ flip;
    }
    Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
}

/// Builds a [`PageSet`] from ascending runs in bounded memory.
#[derive(Debug)]
pub struct PageSetBuilder {
    set: PageSet,
    end: u64,
}

impl PageSetBuilder {
    /// Starts with no page.
    #[must_use]
    pub fn new(page_size: u64, page_count: u64) -> Self {
        Self { set: PageSet::empty(page_size, page_count), end: 0 }
    }

    /// Pages the RAM has.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.set.page_count
    }

    /// Adds `[first, first + count)`. What lies before the end of the pages already added, or beyond the RAM, is ignored.
    pub fn push_run(&mut self, first: u64, count: u64) {
        let stop = first.saturating_add(count).min(self.set.page_count);
        let start = first.max(self.end);
        if start >= stop {
            return;
        }
        let touching = start == self.end && self.set.len > 0;
        self.end = stop;
        self.set.len += stop - start;
        match &mut self.set.form {
            Form::Runs(runs) => match runs.last_mut() {
                Some(last) if touching => last.1 += stop - start,
                _ => {
                    runs.push((start, stop - start));
                    if runs.len() as u64 * 16 > self.set.page_count.div_ceil(64) * 8 {
                        self.set.form = Form::Words(to_words(runs, self.set.page_count));
                    }
                }
            },
            Form::Words(words) => set_bits(words, start, stop),
        }
    }

    /// The set.
    #[must_use]
    pub fn finish(self) -> PageSet {
        self.set
    }
}

fn to_words(runs: &[(u64, u64)], page_count: u64) -> Vec<u64> {
    let mut words = vec![0; page_count.div_ceil(64) as usize];
    for &(first, count) in runs {
        set_bits(&mut words, first, first + count);
    }
    words
}

fn set_bits(words: &mut [u64], start: u64, stop: u64) {
    let mut page = start;
    while page < stop {
        let in_word = (64 - page % 64).min(stop - page);
        words[(page / 64) as usize] |= (u64::MAX >> (64 - in_word)) << (page % 64);
        page += in_word;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore = "hundreds of thousands of lookups")]
        fn behaves_like_a_set(pages in proptest::collection::btree_set(0u64..700, 0..500), from in 0u64..700, len in 0u64..300) {
            let set = PageSet::from_pages(4096, 640, pages.iter().copied());
            let expected: BTreeSet<u64> = pages.into_iter().filter(|p| *p < 640).collect();
            prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), expected.clone());
            prop_assert_eq!(set.len(), expected.len() as u64);
            for page in 0..700 {
                prop_assert_eq!(set.contains(page), expected.contains(&page));
            }
            let within: Vec<u64> = set.runs_within(from, from + len).flat_map(|(a, n)| a..a + n).collect();
            prop_assert_eq!(within, expected.range(from..from + len).copied().collect::<Vec<_>>());
            let runs: Vec<_> = set.runs().collect();
            prop_assert!(runs.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "maximal and ascending: {:?}", runs);
        }

        #[test]
        fn union_is_union(a in proptest::collection::btree_set(0u64..400, 0..300), b in proptest::collection::btree_set(0u64..400, 0..30)) {
            let set = |s: &BTreeSet<u64>| PageSet::from_pages(4096, 400, s.iter().copied());
            let expected: BTreeSet<u64> = a.union(&b).copied().collect();
            prop_assert_eq!(set(&a).union(&set(&b)), set(&expected));
        }
    }

    #[test]
    fn memory_is_bounded_by_one_bit_per_page() {
        let scattered = PageSet::from_pages(16384, 1 << 16, (0..1 << 16).step_by(2));
        assert!(matches!(scattered.form(), Form::Words(w) if w.len() == 1024));
        let dense = PageSet::full(16384, u64::MAX);
        assert!(matches!(dense.form(), Form::Runs(r) if r.len() == 1));
    }
}
