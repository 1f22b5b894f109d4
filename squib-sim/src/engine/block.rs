//! Decoded code: blocks of ops, kept by physical page.
//!
//! A block is a straight run of instructions inside one 4 KiB page; it depends on the instruction words alone (every check
//! of execution state is an op or a run-loop matter), so the page's IPA and the offset are its whole key. Near links stay
//! inside a page: whatever makes a page's code stale takes all links to it away with it. A far link leads anywhere and holds
//! for one virtual address and one generation of the fetch TLB. Forgotten pages are buried, not freed, until the run loop
//! has let go of every block.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use super::a64;
use super::cpu::Cpu;
use super::decode::{check_fp, decode, fall_through};
use super::op::{MAX_BLOCK_OPS, Op};

/// Offsets a block can start at in a page.
const STARTS: usize = 1024;

/// A successor that must be checked before it is used.
#[derive(Clone, Copy)]
pub struct FarLink {
    /// Its virtual address.
    pub va: u64,
    /// [`FetchTlb::generation`](super::mmu::FetchTlb::generation) under which it was found; 0 for none.
    pub generation: u64,
    /// The block.
    pub block: *const Block,
}

impl FarLink {
    const NONE: FarLink = FarLink { va: 0, generation: 0, block: std::ptr::null() };
}

/// A block's header; its ops follow directly behind.
#[repr(C, align(64))]
pub struct Block {
    /// The taken and the not-taken successor, if they have been looked up before and lie on the same page.
    pub links: [*const Block; 2],
    /// The last successor on another page, or of a branch to a register.
    pub far: FarLink,
    /// Guest instructions.
    pub len: u32,
    ops: u32,
    /// The page the block belongs to, null for one that is on none.
    page: *const CodePage,
}

impl Block {
    fn layout(ops: usize) -> Layout {
        let size = size_of::<Block>() + ops * size_of::<Op>();
        // Cannot fail: at most MAX_BLOCK_OPS ops.
        Layout::from_size_align(size, align_of::<Block>()).unwrap_or(Layout::new::<Block>())
    }

    fn allocate(ops: &[Op], len: u32, page: *const CodePage) -> *mut Block {
        let layout = Block::layout(ops.len());
        // SAFETY: the layout's size is not zero; header and ops are written inside it, both within their alignment.
        unsafe {
            let block = alloc(layout) as *mut Block;
            if block.is_null() {
                handle_alloc_error(layout);
            }
            block.write(Block { links: [std::ptr::null(); 2], far: FarLink::NONE, len, ops: ops.len() as u32, page });
            std::ptr::copy_nonoverlapping(ops.as_ptr(), block.add(1) as *mut Op, ops.len());
            block
        }
    }

    /// Frees a block.
    ///
    /// # Safety
    /// It came from `allocate`, and nobody holds it any more.
    unsafe fn free(block: *mut Block) {
        // SAFETY: the caller's promise; the layout is the one it was allocated with.
        unsafe { dealloc(block as *mut u8, Block::layout((*block).ops as usize)) };
    }

    /// A header without links, for tests that run handlers outside of a block.
    #[cfg(test)]
    pub(crate) const fn lone() -> Block {
        Block { links: [std::ptr::null(); 2], far: FarLink::NONE, len: 1, ops: 0, page: std::ptr::null() }
    }

    /// Its first op.
    #[inline(always)]
    pub fn first(block: *const Block) -> *const Op {
        block.wrapping_add(1) as *const Op
    }
}

/// The code of one 4 KiB page.
pub struct CodePage {
    ipa: u64,
    host: u64,
    blocks: [*mut Block; STARTS],
}

impl CodePage {
    /// The block that starts at this virtual address, if decoded.
    #[inline(always)]
    pub fn block(&self, va: u64) -> *const Block {
        self.blocks[(va >> 2) as usize % STARTS]
    }

    /// Cuts the links of all its blocks.
    fn unlink(&mut self) {
        for &block in self.blocks.iter().filter(|block| !block.is_null()) {
            // SAFETY: blocks of a page live as long as the page.
            unsafe { (*block).links = [std::ptr::null(); 2] };
        }
    }
}

impl Drop for CodePage {
    fn drop(&mut self) {
        for &block in self.blocks.iter().filter(|block| !block.is_null()) {
            // SAFETY: a page owns its blocks, and is dropped only when the run loop holds none.
            unsafe { Block::free(block) };
        }
    }
}

/// A hash that is good enough for page addresses.
#[derive(Default, Clone, Copy)]
pub struct PageHasher(u64);

impl std::hash::Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_right(24);
    }
}

/// All decoded code of one vCPU.
#[derive(Default)]
pub struct CodeCache {
    pages: HashMap<u64, Box<CodePage>, std::hash::BuildHasherDefault<PageHasher>>,
    buried: Vec<Box<CodePage>>,
    /// A block outside the pages, cut short for an exact stop.
    short: Option<*mut Block>,
    /// Ops in all pages together.
    ops: usize,
}

/// More decoded ops than this (32 bytes each) and the cache starts afresh.
const OPS_LIMIT: usize = 4 << 20;

impl CodeCache {
    /// There is code of the page at this IPA.
    #[inline]
    pub fn contains(&self, ipa: u64) -> bool {
        self.pages.contains_key(&ipa)
    }

    /// Frees what is buried. The run loop holds no block now.
    pub(crate) fn clean(&mut self) {
        self.buried.clear();
        self.drop_short();
    }

    fn drop_short(&mut self) {
        if let Some(block) = self.short.take() {
            // SAFETY: allocated by `short_block`, and not running.
            unsafe { Block::free(block) };
        }
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        self.drop_short();
    }
}

impl Cpu {
    /// The page of code at this IPA, made if there is none.
    pub(crate) fn code_page(&mut self, ipa: u64, host: u64) -> *mut CodePage {
        if !self.code.pages.contains_key(&ipa) {
            if self.code.ops > OPS_LIMIT {
                self.forget_all_code();
            }
            self.code.pages.insert(ipa, Box::new(CodePage { ipa, host, blocks: [std::ptr::null_mut(); STARTS] }));
            self.mmu.watch_code(ipa);
        }
        match self.code.pages.get_mut(&ipa) {
            Some(page) => &raw mut **page,
            None => std::ptr::null_mut(),
        }
    }

    /// Forgets the code of one page.
    pub(crate) fn forget_code(&mut self, ipa: u64) {
        if let Some(mut page) = self.code.pages.remove(&ipa) {
            page.unlink();
            self.mmu.forget_code(&raw const *page);
            self.code.ops -= page.blocks.iter().filter(|b| !b.is_null()).map(|&b| Self::ops_of(b)).sum::<usize>();
            self.code.buried.push(page);
        }
    }

    fn ops_of(block: *mut Block) -> usize {
        // SAFETY: only called for blocks of a live page.
        unsafe { (*block).ops as usize }
    }

    /// Forgets all code.
    pub(crate) fn forget_all_code(&mut self) {
        let pages: Vec<u64> = self.code.pages.keys().copied().collect();
        pages.into_iter().for_each(|ipa| self.forget_code(ipa));
    }

    /// Forgets the code of a range of IPAs.
    pub(crate) fn forget_code_range(&mut self, ipa: u64, len: u64) {
        let inside = |page: &&u64| page.wrapping_sub(ipa) < len;
        let pages: Vec<u64> = self.code.pages.keys().filter(inside).copied().collect();
        pages.into_iter().for_each(|ipa| self.forget_code(ipa));
    }

    /// Decodes the block that starts at `va` in `page`, at most `limit` instructions, onto the page.
    ///
    /// # Safety
    /// `page` is a live page of this vCPU's cache.
    pub(crate) unsafe fn decode_block(&mut self, page: *mut CodePage, va: u64) -> *const Block {
        // SAFETY: the caller's promise.
        let block = unsafe { build(&*page, va, u32::MAX) };
        self.code.ops += Self::ops_of(block);
        // SAFETY: as above.
        unsafe { (*page).blocks[(va >> 2) as usize % STARTS] = block };
        block
    }

    /// A block of at most `limit` instructions that is on no page; it lives until the next one is made.
    ///
    /// # Safety
    /// `page` is a live page of this vCPU's cache, and no short block is running.
    pub(crate) unsafe fn short_block(&mut self, page: *const CodePage, va: u64, limit: u32) -> *const Block {
        self.code.drop_short();
        // SAFETY: the caller's promise.
        let block = unsafe { build(&*page, va, limit) };
        // SAFETY: just made.
        unsafe { (*block).page = std::ptr::null() };
        self.code.short = Some(block);
        block
    }

    /// Remembers that `to` follows `from`, if both are on one page, the page of `from_va` and `to_va` alike.
    ///
    /// # Safety
    /// Both blocks are live.
    pub(crate) unsafe fn link(from: *const Block, from_va: u64, index: usize, to: *const Block, to_va: u64) {
        // SAFETY: the caller's promise; blocks belong to this vCPU's thread alone.
        unsafe {
            if (*from).page == (*to).page && !(*from).page.is_null() && from_va >> 12 == to_va >> 12 {
                (*from.cast_mut()).links[index] = to;
            }
        }
    }
}

/// Decodes from the offset of `va` to the first op that ends the block, the page's end, or a limit.
fn build(page: &CodePage, va: u64, limit: u32) -> *mut Block {
    let start = va & 0xffc;
    let mut ops = [fall_through(); MAX_BLOCK_OPS];
    let (mut used, mut len, mut fp_checked) = (0, 0u32, false);
    loop {
        let at = start + u64::from(len) * 4;
        let mut push = |op: Op| {
            ops[used] = Op { off: (len * 4) as u16, ..op };
            used += 1;
        };
        // Room for this instruction, an FP check in front of it, and the closing op.
        let full = len as usize + 3 + usize::from(fp_checked) > MAX_BLOCK_OPS;
        if at == 0x1000 || len == limit || full {
            push(fall_through());
            break;
        }
        // SAFETY: the page's host memory stays mapped until this vCPU has served the request that takes it away, and that
        // request forgets the page.
        let insn = u32::from_le(unsafe { (*((page.host + at) as *const AtomicU32)).load(Ordering::Acquire) });
        let decoded = decode(insn);
        if decoded.needs_fp && !fp_checked {
            push(check_fp(insn));
            fp_checked = true;
        }
        if !is_no_op(insn) {
            push(decoded.op);
        }
        len += 1;
        if decoded.ends_block {
            break;
        }
    }
    // The last two may become one, if there is nothing between them.
    if let [.., first, second] = &ops[..used]
        && second.off == first.off + 4
        && let Some(pair) = a64::fuse(first, second)
    {
        used -= 1;
        ops[used - 1] = pair;
    }
    Block::allocate(&ops[..used], len, page)
}

/// NOP and BTI take no op.
fn is_no_op(insn: u32) -> bool {
    insn == 0xd503_201f || insn & 0xffff_ff3f == 0xd503_241f
}

impl CodePage {
    /// The IPA of the page.
    pub fn ipa(&self) -> u64 {
        self.ipa
    }
}
