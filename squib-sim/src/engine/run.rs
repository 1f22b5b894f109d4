//! The run loop: from one block to the next until something outside the guest's code has to be done.
//!
//! A slice is a number of instructions the vCPU may retire before the loop looks at the clock, the instruction limit and the
//! like; within it only [`VcpuShared::pending`] is polled, once a block. In deterministic mode and before a limit a slice ends
//! at an exact instruction: a block that would overrun it is cut short.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use super::block::{Block, FarLink};
use super::cpu::{Cpu, Privilege};
use super::mmu::PAGE_MASK;
use super::mmu::walk::Kind;
use super::op::Next;
use super::shared::{Request, VcpuShared, announce, pending, wait_for};
use super::syndrome::{ec, fsc, iss};
use super::timer::VTIMER_INTID;
use crate::machine::Machine;

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An exit was requested, or the instruction limit reached.
    Canceled,
    /// The guest did what the host must see.
    Exception {
        /// ESR_EL2.
        esr: u64,
        /// FAR_EL2.
        far: u64,
        /// The full intermediate physical address.
        ipa: u64,
    },
    /// The virtual timer fired, and there is no GIC to tell.
    VtimerActivated,
}

impl Exit {
    /// Whether an access or a fetch was refused by stage 2 (EC 0x24, 0x20).
    fn is_fault(self) -> bool {
        matches!(self, Exit::Exception { esr, .. } if matches!(esr >> 26 & 0x3f, 0x20 | 0x24))
    }
}

/// Instructions between two looks at the clock.
const SLICE: i64 = 20_000;

/// Instructions after which chained blocks return to the run loop: bounds the native stack where tail calls are not made.
const CHAIN: i64 = 2_000;

/// One virtual CPU, owned by the thread that runs it.
pub struct Vcpu {
    /// Its architectural state.
    pub cpu: Box<Cpu>,
}

impl Vcpu {
    /// A vCPU in reset state. Its `shared` half must be in the machine's registry.
    pub fn new(machine: Arc<Machine>, shared: Arc<VcpuShared>) -> Vcpu {
        Vcpu { cpu: Cpu::new(machine, shared) }
    }

    /// `hv_vcpu_set_pending_interrupt`: an interrupt that lasts until run returns.
    pub fn set_pending_interrupt(&mut self, fiq: bool, raise: bool) {
        let bit = if fiq { pending::FIQ_ONCE } else { pending::IRQ_ONCE };
        if raise {
            self.cpu.shared.pending.fetch_or(bit, SeqCst);
        } else {
            self.cpu.shared.pending.fetch_and(!bit, SeqCst);
        }
    }

    /// `hv_vcpu_get_pending_interrupt`.
    pub fn pending_interrupt(&self, fiq: bool) -> bool {
        let bit = if fiq { pending::FIQ_ONCE } else { pending::IRQ_ONCE };
        self.cpu.shared.pending.load(SeqCst) & bit != 0
    }

    /// `hv_vcpu_set_vtimer_mask`.
    pub fn set_vtimer_mask(&mut self, masked: bool) {
        self.cpu.timer.masked = masked;
    }

    /// `hv_vcpu_get_vtimer_mask`.
    pub fn vtimer_mask(&self) -> bool {
        self.cpu.timer.masked
    }

    /// `hv_vcpu_set_vtimer_offset`, in ticks of the guest's counter.
    pub fn set_vtimer_offset(&mut self, offset: u64) {
        self.cpu.timer.offset = offset;
    }

    /// `hv_vcpu_get_vtimer_offset`.
    pub fn vtimer_offset(&self) -> u64 {
        self.cpu.timer.offset
    }

    /// Executes guest code until the host has something to do.
    pub fn run(&mut self) -> Exit {
        let cpu = &mut *self.cpu;
        // The host returns into the guest by ERET, which clears the monitor. Only under the deterministic clock it outlives a fault of
        // stage 2: when a page arrives must not show in how many instructions the guest executes.
        if !(cpu.machine.clock.is_deterministic() && cpu.exit.is_fault()) {
            cpu.exclusive.armed = false;
        }
        cpu.shared.set_running(true);
        cpu.shared.set_away(false);
        let exit = cpu.run_loop();
        cpu.exit = exit;
        cpu.publish();
        cpu.shared.set_away(matches!(exit, Exit::Exception { .. }));
        cpu.shared.set_running(false);
        cpu.shared.pending.fetch_and(!(pending::IRQ_ONCE | pending::FIQ_ONCE), SeqCst);
        exit
    }
}

impl Cpu {
    fn run_loop(&mut self) -> Exit {
        self.refresh();
        loop {
            self.code.clean();
            if let Some(exit) = self.look_up() {
                return exit;
            }
            let next = if self.slow_mode || self.single || self.budget <= 0 { self.step() } else { self.execute() };
            if next == Next::Stop {
                return self.exit;
            }
        }
    }

    /// Everything that is not executing instructions: requests, timer, interrupts, a new slice.
    fn look_up(&mut self) -> Option<Exit> {
        let raised = self.shared.pending.load(SeqCst);
        if raised & pending::REQUEST != 0 {
            self.serve_requests();
        }
        self.publish();
        if let Some(exit) = self.update_timer() {
            return Some(exit);
        }
        let raised = self.shared.pending.load(SeqCst);
        if raised & pending::EXIT != 0 {
            self.shared.pending.fetch_and(!pending::EXIT, SeqCst);
            return Some(Exit::Canceled);
        }
        let mut limit = self.until_limit();
        if limit.is_some() && self.waiting {
            if let Some(exit) = self.wait_for_interrupt() {
                return Some(exit);
            }
            // The WFI has retired.
            limit = self.until_limit();
        }
        let Some(limit) = limit else { return Some(Exit::Canceled) };
        let raised = self.shared.pending.load(SeqCst) & self.poll_mask;
        if raised & (pending::FIQ | pending::FIQ_ONCE) != 0 {
            self.take_interrupt(0x100);
        } else if raised & (pending::IRQ | pending::IRQ_ONCE) != 0 {
            self.take_interrupt(0x80);
        }
        let mut slice = SLICE as u64;
        self.exact = self.machine.clock.is_deterministic() || limit < 2 * slice;
        if self.machine.clock.is_deterministic() {
            slice = self.ticks_to_timer().map_or(slice, |ticks| ticks.min(slice));
        }
        let slice = slice.min(limit).max(1);
        self.slice_end = self.retired() + slice;
        self.budget = slice as i64;
        None
    }

    /// Instructions until the limit; `None` when it has been reached. An armed exclusive monitor, which the host cannot save,
    /// puts that off.
    fn until_limit(&self) -> Option<u64> {
        let left = self.counters.limit.load(Relaxed).saturating_sub(self.retired());
        (left > 0 || self.exclusive.armed).then_some(left)
    }

    /// Brings the shared view of the instruction count, and deterministic time, up to date.
    pub(crate) fn publish(&mut self) {
        let retired = self.retired();
        if self.machine.clock.is_deterministic() {
            self.machine.clock.advance(retired - self.published);
        }
        self.published = retired;
        self.counters.instructions.store(retired, Relaxed);
    }

    /// Shows the timer's signal to the GIC, or to the host.
    pub(crate) fn update_timer(&mut self) -> Option<Exit> {
        let asserted = self.timer_asserted() && !self.timer.masked;
        match self.machine.gic.get() {
            Some(gic) => {
                if self.timer.line != Some(asserted) {
                    gic.set_ppi(self.shared.index, VTIMER_INTID, asserted);
                    self.timer.line = Some(asserted);
                    if asserted && self.machine.config.vtimer_exits {
                        self.timer.masked = true;
                        return Some(Exit::VtimerActivated);
                    }
                }
                None
            }
            None if asserted => {
                self.timer.masked = true;
                Some(Exit::VtimerActivated)
            }
            None => None,
        }
    }

    /// Does what other vCPUs and the host have asked for.
    pub(crate) fn serve_requests(&mut self) {
        let (requests, overflow, ticket) = self.shared.take_requests();
        if overflow {
            self.carry_out(Request::TlbAll);
            self.carry_out(Request::CodeAll);
        }
        requests.into_iter().for_each(|request| self.carry_out(request));
        self.shared.served(ticket);
    }

    /// Does one request.
    pub(crate) fn carry_out(&mut self, request: Request) {
        match request {
            Request::TlbAll => self.mmu.flush_all(),
            Request::TlbVa(va) => self.mmu.flush_va(va),
            Request::TlbAsid(asid) => self.mmu.flush_asid(asid),
            Request::Code(ipa) => self.forget_code(ipa),
            Request::CodeAll => self.forget_all_code(),
            Request::Stage2 { ipa, len, contents } => {
                self.mmu.flush_stage2(ipa, len);
                if contents {
                    self.forget_code_range(ipa, len);
                }
            }
        }
    }

    /// `request` here, and posted to the other vCPUs it may concern; DSB waits for them. With an ASID the request is about its
    /// translations in the lower half alone.
    pub(crate) fn broadcast(&mut self, request: Request, asid: Option<u16>) {
        self.carry_out(request);
        announce(&self.machine.vcpus(), request, asid, self.shared.index, &mut self.awaited);
    }

    /// Waits until no vCPU works on anything a broadcast of ours has made stale, serving our own mailbox meanwhile.
    pub(crate) fn wait_for_broadcasts(&mut self) {
        for awaited in std::mem::take(&mut self.awaited) {
            wait_for(|| {
                if self.shared.pending.load(Relaxed) & pending::REQUEST != 0 {
                    self.serve_requests();
                }
                awaited.is_settled()
            });
        }
    }

    /// Gives back what the running block has been charged for but has not executed: all but its first `done` instructions.
    pub(crate) fn unretire(&mut self, done: u32) {
        if !self.block.is_null() {
            // SAFETY: `block` is the running block, which is live.
            self.budget += i64::from(unsafe { (*self.block).len }) - i64::from(done);
        }
    }

    /// Runs blocks until one stops, the slice is used up, or something is pending.
    fn execute(&mut self) -> Next {
        let mut block = match self.find_block() {
            Ok(block) => block,
            Err(next) => return next,
        };
        loop {
            // SAFETY: `block` is live: blocks are freed by `clean` only, which runs outside of this function.
            let len = i64::from(unsafe { (*block).len });
            if self.shared.pending.load(Relaxed) & self.poll_mask != 0 || self.budget <= 0 {
                return Next::Lookup;
            }
            if self.budget < len && self.exact {
                return self.step();
            }
            self.budget -= len;
            self.chain_floor = (self.budget - CHAIN).max(0);
            self.block = block;
            self.block_va = self.pc;
            let first = Block::first(block);
            // SAFETY: a live block, entered at its first op.
            let next = unsafe { ((*first).run)(self, first) };
            // The handlers may have gone through any number of blocks.
            block = self.block;
            let link = match next {
                Next::Taken => 0,
                Next::NotTaken => 1,
                Next::Lookup => {
                    if self.slow_mode || self.single {
                        return Next::Lookup;
                    }
                    block = match self.find_block() {
                        Ok(block) => block,
                        Err(next) => return next,
                    };
                    continue;
                }
                Next::Stop => return Next::Stop,
            };
            // SAFETY: `block` is still live, as above.
            let linked = unsafe { (*block).links[link] };
            if !linked.is_null() {
                block = linked;
                continue;
            }
            let (from, from_va) = (block, self.block_va);
            block = match self.find_block() {
                Ok(block) => block,
                Err(next) => return next,
            };
            // SAFETY: both are live.
            unsafe { Cpu::link(from, from_va, link, block, self.pc) };
        }
    }

    /// Ends a block whose direct successor is at `cpu.pc`, the taken one (`LINK` 0) or the not-taken (1): goes on with it if it
    /// is linked and nothing has to be looked at in between.
    ///
    /// # Safety
    /// A handler calls it, last.
    #[inline(always)]
    pub(crate) unsafe fn chain<const LINK: usize>(&mut self) -> Next {
        let otherwise = if LINK == 0 { Next::Taken } else { Next::NotTaken };
        // SAFETY: the running block is live, and so are those it is linked to.
        unsafe {
            let block = (*self.block).links[LINK];
            if !block.is_null() {
                return self.go_on(block, otherwise);
            }
            // Near links stay inside a page.
            if (self.block_va ^ self.pc) >> 12 == 0 { otherwise } else { self.chain_indirect() }
        }
    }

    /// Ends a block with a branch to `cpu.pc`, which may be anywhere: goes on with the block there if the fetch TLB knows it
    /// and nothing has to be looked at in between.
    ///
    /// # Safety
    /// A handler calls it, last.
    #[inline(always)]
    pub(crate) unsafe fn chain_indirect(&mut self) -> Next {
        // SAFETY: as in `find_block`.
        unsafe {
            let far = (*self.block).far;
            if far.va == self.pc && far.generation == (*self.fetch).generation {
                return self.go_on(far.block, Next::Lookup);
            }
            let entry = (*self.fetch).entry(self.pc);
            if entry.tag != self.pc & !0xffc {
                return Next::Lookup;
            }
            let block = (*entry.page).block(self.pc);
            if block.is_null() {
                return Next::Lookup;
            }
            (*self.block.cast_mut()).far = FarLink { va: self.pc, generation: (*self.fetch).generation, block };
            self.go_on(block, Next::Lookup)
        }
    }

    /// # Safety
    /// `block` is live, and is the one at `cpu.pc`.
    #[inline(always)]
    unsafe fn go_on(&mut self, block: *const Block, otherwise: Next) -> Next {
        // SAFETY: the caller's promise.
        unsafe {
            let budget = self.budget - i64::from((*block).len);
            if budget < self.chain_floor || self.shared.pending.load(Relaxed) & self.poll_mask != 0 {
                return otherwise;
            }
            self.budget = budget;
            self.block = block;
            self.block_va = self.pc;
            let first = Block::first(block);
            ((*first).run)(self, first)
        }
    }

    /// The block at `cpu.pc`; if the fetch faults, the exception is taken and the answer is what the loop should do next.
    #[inline(always)]
    fn find_block(&mut self) -> Result<*const Block, Next> {
        // SAFETY: `fetch` points into `self.mmu`.
        let entry = unsafe { (*self.fetch).entry(self.pc) };
        if entry.tag == self.pc & !0xffc {
            // SAFETY: a code page leaves the fetch TLBs before it is buried.
            let block = unsafe { (*entry.page).block(self.pc) };
            if !block.is_null() {
                return Ok(block);
            }
        }
        self.find_block_slow()
    }

    #[cold]
    #[inline(never)]
    fn find_block_slow(&mut self) -> Result<*const Block, Next> {
        let page = self.fetch_page()?;
        // SAFETY: `fetch_page` gives a live page.
        Ok(unsafe { self.decode_block(page, self.pc) })
    }

    /// The code page at `cpu.pc`, or the outcome of the instruction abort.
    fn fetch_page(&mut self) -> Result<*mut super::block::CodePage, Next> {
        self.block = std::ptr::null();
        self.pc = self.branch_address(self.pc);
        let pc = self.pc;
        if pc & 3 != 0 {
            self.pc_alignment_fault(pc);
            return Err(self.deliver(0));
        }
        let found = match self.walk(pc, self.access(Kind::Fetch, Privilege::Current)) {
            Ok(found) => found,
            Err(fault) => {
                if let Some((ipa, _)) = fault.stage2 {
                    return Err(self.stop(ec::INSTRUCTION_ABORT_LOWER, fault.fsc | iss::S1PTW, pc, ipa));
                }
                self.guest_fault(ec::INSTRUCTION_ABORT_LOWER, fault.fsc, Some(pc));
                return Err(self.deliver(0));
            }
        };
        let status = match self.stage2(found.ipa) {
            Some((host, perms)) if perms.executable() => {
                let page = self.code_page(found.ipa & PAGE_MASK, host);
                self.enter_fetch(pc, page, found.local);
                return Ok(page);
            }
            Some(_) => fsc::PERMISSION | 3,
            None => fsc::TRANSLATION | 3,
        };
        let walk = if self.vague() { iss::S1PTW } else { 0 };
        Err(self.stop(ec::INSTRUCTION_ABORT_LOWER, status | walk, pc, found.ipa))
    }

    /// Runs one cut-short block: a single instruction in slow mode, otherwise as much as the slice has left.
    #[cold]
    fn step(&mut self) -> Next {
        if self.slow_mode
            && let Some(next) = self.before_instruction()
        {
            return next;
        }
        let stepping = self.step_enabled();
        let page = match self.fetch_page() {
            Ok(page) => page,
            Err(next) => return next,
        };
        let alone = self.slow_mode || self.single;
        self.single = false;
        let limit = if alone { 1 } else { self.budget.max(1) as u32 };
        // SAFETY: `fetch_page` gives a live page; the previous short block has ended.
        let block = unsafe { self.short_block(page, self.pc, limit) };
        // SAFETY: just made.
        self.budget -= i64::from(unsafe { (*block).len });
        self.chain_floor = i64::MAX;
        self.block = block;
        self.block_va = self.pc;
        let first = Block::first(block);
        // SAFETY: a live block, entered at its first op.
        let next = unsafe { ((*first).run)(self, first) };
        // SAFETY: the short block stays until the next one is made.
        let insn = unsafe { (*first).insn };
        self.after_instruction(next, insn, stepping)
    }

    /// `BranchAddr`: the PC a branch to `target` leads to, the tag of a tagged address removed.
    pub(crate) fn branch_address(&self, target: u64) -> u64 {
        let upper = target >> 55 & 1 == 1;
        let (tbi, tbid) = if upper { (38, 52) } else { (37, 51) };
        if self.sys.tcr >> tbi & 1 == 0 || self.sys.tcr >> tbid & 1 == 1 {
            return target;
        }
        (target << 8) as i64 as u64 >> 8 | if upper { 0xff << 56 } else { 0 }
    }

    /// Makes the run loop look up before the next block.
    pub(crate) fn end_slice(&mut self) {
        self.slice_end = self.retired();
        self.budget = 0;
    }
}
