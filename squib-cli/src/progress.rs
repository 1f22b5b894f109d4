//! Progress on standard error: a spinner with a sentence while something is awaited, on a terminal only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

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
