//! What tests of machines share: taking turns, a console that can be read, where the bare guests are.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use squib_host::{ConsoleConfig, Watch, WatchId};

/// One virtual machine per process: the tests of a program take turns.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

/// What a guest prints.
#[derive(Clone, Default)]
pub struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// A console that prints here, and stops the machine with watch 7 when it has printed this text.
    pub fn console(&self, watch: Option<&str>) -> ConsoleConfig {
        let watches = watch.map(|text| Watch { id: WatchId(7), text: text.into() });
        ConsoleConfig { output: Box::new(self.clone()), watches: watches.into_iter().collect(), ..Default::default() }
    }
}

/// A bare guest's image.
pub fn image(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-images/bare").join(name)
}
