//! SIGINT, SIGTERM and SIGHUP. The first one stops the guest where it stands: a snapshot that is being written is finished, the
//! terminal is put back, nothing is left behind. One before there is a guest, or a second one, ends the process at once.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use squib_host::Stopper;

use crate::error::{IoContext, Result};
use crate::exit::Exit;

/// The signals of this process.
#[derive(Clone, Debug, Default)]
pub struct Interrupts(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    stopper: Mutex<Option<Stopper>>,
    /// The first signal that came; 0 for none.
    signal: AtomicI32,
}

impl Interrupts {
    /// Takes over the signals. To be called before a machine is built, which would otherwise take them to save the terminal.
    pub fn catch() -> Result<Interrupts> {
        let interrupts = Interrupts::default();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context(|| "wait for signals".into())?;
        let inner = Arc::clone(&interrupts.0);
        let wait = move || signals.forever().for_each(|signal| inner.came(signal));
        let thread = std::thread::Builder::new().name("signals".into()).spawn(wait);
        thread.context(|| "start a thread for signals".into())?;
        Ok(interrupts)
    }

    /// From now on a signal stops this machine.
    pub fn stops(&self, stopper: Stopper) {
        *self.0.stopper.lock().unwrap_or_else(PoisonError::into_inner) = Some(stopper);
    }

    /// The signal that asked for the end, if one did.
    pub fn signal(&self) -> Option<i32> {
        Some(self.0.signal.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

impl Inner {
    fn came(&self, signal: i32) {
        let stopper = self.stopper.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = self.signal.swap(signal, Ordering::SeqCst) == 0;
        match stopper {
            Some(stopper) if first => stopper.stop(),
            // `exit` puts the terminal back.
            _ => std::process::exit(i32::from(Exit::Signal(signal).code())),
        }
    }
}
