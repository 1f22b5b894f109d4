//! Progress on standard error: a spinner with a sentence while something is awaited, and a bar of memory that streams in; on a
//! terminal only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use squib_host::pager::{Monitor, PagerStats};

const PAGE: u64 = 16 << 10;
const TICK: Duration = Duration::from_millis(100);

/// The bar that is being drawn, if one is.
static DRAWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Writes to standard error by `write` without a bar in the way.
pub fn aside(write: impl FnOnce()) {
    match &*DRAWN.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// A running spinner; indicatif draws nothing where standard error is no terminal.
#[derive(Debug)]
pub struct Spinner(ProgressBar);

impl Spinner {
    /// Starts with a sentence.
    pub fn new(text: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(text.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Spinner(bar)
    }

    /// Changes the sentence.
    pub fn say(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }

    /// Writes a line above the spinner, to standard output.
    pub fn line(&self, text: &str) {
        self.0.suspend(|| println!("{text}"));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A bar of what has arrived, until everything has that can, or this is dropped. Only where standard error is a terminal and the
/// guest's console is not on it too.
#[derive(Debug)]
pub struct StreamBar {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StreamBar {
    /// Draws, if there is where.
    pub fn start(monitor: Monitor) -> Option<StreamBar> {
        use std::io::IsTerminal;
        if !std::io::stderr().is_terminal() || std::io::stdout().is_terminal() {
            return None;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let bar = bar(&monitor.stats(), ProgressDrawTarget::stderr());
            *DRAWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
            while !ended.load(Ordering::Relaxed) && draw(&bar, &monitor.stats()) {
                std::thread::park_timeout(TICK);
            }
            *DRAWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
            bar.finish_and_clear();
        });
        Some(StreamBar { stop, thread: Some(thread) })
    }
}

fn bar(stats: &PagerStats, target: ProgressDrawTarget) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(stats.pages_total * PAGE), target);
    match ProgressStyle::with_template("streaming {wide_bar} {binary_bytes} of {binary_total_bytes}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Shows what is here; `false` if nothing more will come.
fn draw(bar: &ProgressBar, stats: &PagerStats) -> bool {
    bar.set_position(stats.pages_here() * PAGE);
    stats.pages_missing > stats.pages_lost
}

impl Drop for StreamBar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // One that panicked has said so already; it only draws.
            let _ = thread.join();
        }
    }
}
