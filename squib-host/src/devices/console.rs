//! The console outside the guest: where its bytes go, and the texts that stop the machine.
//!
//! A byte passes through here on the thread of the vCPU that wrote it, before that vCPU can execute its next instruction. So
//! a stop asked for by a text takes effect exactly there: the byte that completes the text is out, none after it is.

use std::fmt;
use std::io::Write;
use std::sync::{Mutex, MutexGuard};

use crate::config::{StopReason, Watch};
use crate::error::{Error, Result};

/// Asks the machine to stop.
pub type RequestStop = Box<dyn Fn(StopReason) + Send + Sync>;

struct Inner {
    output: Box<dyn Write + Send>,
    watches: Vec<Watch>,
    /// The last bytes, as many as the longest watch.
    tail: Vec<u8>,
    broken: bool,
}

/// The outer end of the console.
pub struct Console {
    inner: Mutex<Inner>,
    request_stop: RequestStop,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// A console writing to `output`.
    pub fn new(output: Box<dyn Write + Send>, watches: Vec<Watch>, request_stop: RequestStop) -> Result<Console> {
        let inner = Mutex::new(Inner { output, watches: Vec::new(), tail: Vec::new(), broken: false });
        let console = Console { inner, request_stop };
        watches.into_iter().try_for_each(|watch| console.add_watch(watch))?;
        Ok(console)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Adds a text to wait for, counted from the next byte on.
    pub fn add_watch(&self, watch: Watch) -> Result<()> {
        if watch.text.is_empty() {
            return Err(Error::Config("a text to wait for on the console must not be empty".into()));
        }
        let mut inner = self.lock();
        if inner.watches.is_empty() {
            inner.tail.clear();
        }
        inner.watches.push(watch);
        Ok(())
    }

    /// The guest wrote `byte`.
    pub fn emit(&self, byte: u8) {
        let mut inner = self.lock();
        if !inner.broken {
            let written = inner.output.write_all(&[byte]).and_then(|()| inner.output.flush());
            if let Err(error) = written {
                tracing::warn!(%error, "the console's output is closed; what the guest writes is dropped from here on");
                inner.broken = true;
            }
        }
        let Some(longest) = inner.watches.iter().map(|w| w.text.len()).max() else { return };
        inner.tail.push(byte);
        let excess = inner.tail.len().saturating_sub(longest);
        inner.tail.drain(..excess);
        let hit = inner.watches.iter().position(|w| inner.tail.ends_with(w.text.as_bytes()));
        if let Some(at) = hit {
            let watch = inner.watches.remove(at);
            drop(inner);
            (self.request_stop)(StopReason::Watch(watch.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WatchId;
    use std::io;
    use std::sync::{Arc, mpsc};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(buf)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_text_fires_once_at_its_last_byte() {
        let sink = Sink::default();
        let (tx, rx) = mpsc::channel();
        let watches =
            vec![Watch { id: WatchId(1), text: "aab".into() }, Watch { id: WatchId(2), text: "login: ".into() }];
        let stop = move |reason| tx.send(reason).unwrap();
        let console = Console::new(Box::new(sink.clone()), watches, Box::new(stop)).unwrap();
        let mut fired = Vec::new();
        for byte in b"aaab aab\nlogin: ".iter() {
            console.emit(*byte);
            fired.extend(rx.try_iter().map(|reason| (reason, sink.0.lock().unwrap().len())));
        }
        let expected =
            vec![(StopReason::Watch(WatchId(1)), 4), (StopReason::Watch(WatchId(2)), b"aaab aab\nlogin: ".len())];
        assert_eq!(fired, expected);
        assert_eq!(&*sink.0.lock().unwrap(), b"aaab aab\nlogin: ");
    }

    #[test]
    fn an_empty_text_is_refused() {
        let watch = Watch { id: WatchId(0), text: String::new() };
        assert!(Console::new(Box::new(io::sink()), vec![watch], Box::new(|_| ())).is_err());
    }
}
