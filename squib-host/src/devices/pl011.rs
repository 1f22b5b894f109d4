//! PL011 UART (ARM DDI 0183), without modem lines and DMA. Transmission takes no time; reception is a 32-byte FIFO fed from a
//! queue, so that no typed byte is lost while the guest looks away.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::console::Console;
use super::{Device, IrqLine, blob, primecell_id};
use crate::error::Result;

const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;

/// FR: receive FIFO empty, receive FIFO full, transmit FIFO empty.
const FR_RXFE: u32 = 1 << 4;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;
/// Interrupts: receive, transmit, receive timeout.
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RT: u32 = 1 << 6;
/// CR: UART enable, receive enable.
const CR_UARTEN: u32 = 1;
const CR_RXE: u32 = 1 << 9;
/// LCR_H: FIFOs enabled.
const LCR_FEN: u32 = 1 << 4;

const FIFO: usize = 32;
/// Bytes waiting in front of the FIFO beyond which [`Pl011::receive`] blocks.
const QUEUE_MAX: usize = 4096;
/// Revision 3: the one whose FIFOs are 32 deep.
const ID: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
const VERSION: u16 = 1;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    dmacr: u32,
    tx_interrupt: bool,
    /// The receive FIFO, then what waits in front of it.
    rx: VecDeque<u8>,
}

impl State {
    fn reset() -> State {
        State { cr: 0x300, ifls: 0x12, ..State::default() }
    }

    fn receiving(&self) -> bool {
        self.cr & (CR_UARTEN | CR_RXE) == CR_UARTEN | CR_RXE
    }

    fn depth(&self) -> usize {
        if self.lcr_h & LCR_FEN != 0 { FIFO } else { 1 }
    }

    /// Bytes in the FIFO, as far as the guest can see.
    fn level(&self) -> usize {
        if self.receiving() { self.rx.len().min(self.depth()) } else { 0 }
    }

    fn ris(&self) -> u32 {
        let trigger = match self.ifls >> 3 & 7 {
            0 => self.depth() / 8,
            1 => self.depth() / 4,
            2 => self.depth() / 2,
            3 => self.depth() * 3 / 4,
            _ => self.depth() * 7 / 8,
        };
        let mut ris = if self.tx_interrupt { INT_TX } else { 0 };
        if self.level() >= trigger.max(1) {
            ris |= INT_RX;
        }
        if self.level() > 0 {
            // The timeout is due at once: whatever the host had to send is already here.
            ris |= INT_RT;
        }
        ris
    }

    fn fr(&self) -> u32 {
        let mut fr = FR_TXFE;
        if self.level() == 0 {
            fr |= FR_RXFE;
        }
        if self.level() == self.depth() {
            fr |= FR_RXFF;
        }
        fr
    }
}

/// The UART.
#[derive(Debug)]
pub struct Pl011 {
    state: Mutex<State>,
    room: Condvar,
    closed: AtomicBool,
    console: Arc<Console>,
    irq: IrqLine,
}

impl Pl011 {
    /// A UART in its reset state.
    pub fn new(console: Arc<Console>, irq: IrqLine) -> Pl011 {
        Pl011 { state: Mutex::new(State::reset()), room: Condvar::new(), closed: AtomicBool::new(false), console, irq }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn update_line(&self, state: &State) {
        self.irq.set(state.ris() & state.imsc != 0);
    }

    /// Bytes typed by the user. Blocks while too many wait already; false once the UART is closed.
    pub fn receive(&self, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        for &byte in bytes {
            while state.rx.len() >= QUEUE_MAX {
                if self.closed.load(Ordering::Acquire) {
                    return false;
                }
                state = self.room.wait(state).unwrap_or_else(|e| e.into_inner());
            }
            state.rx.push_back(byte);
            if state.rx.len() <= state.depth() {
                self.update_line(&state);
            }
        }
        !self.closed.load(Ordering::Acquire)
    }

    /// Nobody will read any more: lets a blocked [`Pl011::receive`] go.
    pub fn close(&self) {
        let _state = self.lock();
        self.closed.store(true, Ordering::Release);
        self.room.notify_all();
    }

    fn read_data(&self) -> u32 {
        let mut state = self.lock();
        if state.level() == 0 {
            return 0;
        }
        let byte = state.rx.pop_front().unwrap_or_default();
        self.update_line(&state);
        drop(state);
        self.room.notify_all();
        u32::from(byte)
    }
}

impl Device for Pl011 {
    fn kind(&self) -> &'static str {
        "pl011"
    }

    fn read(&self, offset: u64, _size: u8) -> u64 {
        if offset == DR {
            return u64::from(self.read_data());
        }
        let state = self.lock();
        let value = match offset {
            FR => state.fr(),
            ILPR => state.ilpr,
            IBRD => state.ibrd,
            FBRD => state.fbrd,
            LCR_H => state.lcr_h,
            CR => state.cr,
            IFLS => state.ifls,
            IMSC => state.imsc,
            RIS => state.ris(),
            MIS => state.ris() & state.imsc,
            DMACR => state.dmacr,
            RSR => 0,
            _ => return primecell_id(&ID, offset).unwrap_or(0),
        };
        u64::from(value)
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let value = value as u32;
        if offset == DR {
            // Outside the lock: a console that is slow to take the byte must not keep other vCPUs from the flags.
            self.console.emit(value as u8);
        }
        let mut state = self.lock();
        match offset {
            DR => state.tx_interrupt = true,
            ILPR => state.ilpr = value & 0xff,
            IBRD => state.ibrd = value & 0xffff,
            FBRD => state.fbrd = value & 0x3f,
            LCR_H => state.lcr_h = value & 0xff,
            CR => state.cr = value & 0xffff,
            IFLS => state.ifls = value & 0x3f,
            IMSC => state.imsc = value & 0x7ff,
            ICR if value & INT_TX != 0 => state.tx_interrupt = false,
            DMACR => state.dmacr = value & 7,
            _ => return,
        }
        self.update_line(&state);
    }

    fn save(&self) -> Result<Vec<u8>> {
        blob::encode(self.kind(), VERSION, &*self.lock())
    }

    fn restore(&self, blob: &[u8]) -> Result<()> {
        *self.lock() = blob::decode("pl011", VERSION, blob)?;
        Ok(())
    }

    fn resume(&self) {
        self.update_line(&self.lock());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::Lines;

    fn uart() -> (Arc<Lines>, Pl011) {
        let lines = Lines::new();
        let console = Console::new(Box::new(std::io::sink()), vec![], Box::new(|_| ())).unwrap();
        let uart = Pl011::new(Arc::new(console), lines.line(33));
        (lines, uart)
    }

    fn enable(uart: &Pl011) {
        uart.write(LCR_H, 4, u64::from(LCR_FEN) | 0x60);
        uart.write(CR, 4, 0x301);
    }

    #[test]
    fn typed_bytes_wait_for_the_driver_and_raise_the_line() {
        let (lines, uart) = uart();
        uart.receive(b"early");
        assert_eq!(uart.read(FR, 4) & u64::from(FR_RXFE), u64::from(FR_RXFE), "receiver is off");
        enable(&uart);
        assert!(!lines.level(33));
        uart.write(IMSC, 4, u64::from(INT_RX | INT_RT));
        assert!(lines.level(33));
        let text: Vec<u8> = (0..5).map(|_| uart.read(DR, 4) as u8).collect();
        assert_eq!(text, b"early");
        assert!(!lines.level(33));
        assert_eq!(uart.read(DR, 4), 0);
    }

    #[test]
    fn transmission_raises_its_interrupt_until_cleared() {
        let (lines, uart) = uart();
        enable(&uart);
        uart.write(IMSC, 4, u64::from(INT_TX));
        uart.write(DR, 4, u64::from(b'x'));
        assert!(lines.level(33));
        assert_eq!(uart.read(MIS, 4), u64::from(INT_TX));
        uart.write(ICR, 4, u64::from(INT_TX));
        assert!(!lines.level(33));
    }

    #[test]
    fn the_whole_state_survives() {
        let (_, first) = uart();
        enable(&first);
        first.write(IMSC, 4, u64::from(INT_RT));
        first.write(IBRD, 4, 13);
        first.receive(&[b'z'; 40]);
        let (lines, second) = uart();
        second.restore(&first.save().unwrap()).unwrap();
        second.resume();
        assert_eq!(*second.lock(), *first.lock());
        assert!(lines.level(33));
        assert_eq!(second.read(FR, 4) & u64::from(FR_RXFF), u64::from(FR_RXFF));
        assert!(second.restore(&[9, 9]).is_err());
    }

    #[test]
    fn it_identifies_as_a_pl011_with_deep_fifos() {
        let (_, uart) = uart();
        let id: Vec<u64> = (0..8).map(|n| uart.read(0xfe0 + n * 4, 4)).collect();
        assert_eq!(id, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!(uart.read(0x900, 4), 0);
    }
}
