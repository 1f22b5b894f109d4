//! A run of the program that is watched, and typed into, while it goes on.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::{PATIENCE, Squib, all_to, counted};

/// Commands of a guest that counts from 1 until a line is typed: see [`Watched::stop_counting`].
pub const COUNT_UNTIL_TOLD: &str = "stty -echo; count 1000000 0.02 & read line; kill $!; echo that is enough";
/// Its last word.
pub const ENOUGH: &str = "that is enough";

/// The run; ended when dropped.
#[derive(Debug)]
pub struct Watched {
    child: Child,
    input: Option<ChildStdin>,
    console: Receiver<String>,
    messages: Receiver<String>,
    seen: String,
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send(line.trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    lines
}

impl Squib {
    /// Starts the program.
    pub fn watched(mut self) -> Watched {
        if let Some(seconds) = self.timeout {
            self.command.arg("--timeout").arg(seconds.to_string());
        }
        let command = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let console = lines(child.stdout.take().expect("piped"));
        let messages = lines(child.stderr.take().expect("piped"));
        Watched { input: child.stdin.take(), child, console, messages, seen: String::new() }
    }
}

impl Watched {
    /// Waits for a line of the console.
    #[track_caller]
    pub fn console(&mut self, text: &str) {
        loop {
            let line = self.console.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no '{text}': {}", self.seen));
            self.seen += &(line.clone() + "\n");
            if line.contains(text) {
                return;
            }
        }
    }

    /// Waits for a line of standard error that holds `text`.
    #[track_caller]
    pub fn message(&self, text: &str) -> String {
        let mut before = Vec::new();
        loop {
            match self.messages.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => before.push(line),
                Err(_) => panic!("no '{text}' in {before:?}; console: {}", self.seen),
            }
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        writeln!(self.input.as_mut().expect("its input"), "{line}").expect("the program reads its input");
    }

    /// Tells a guest of [`COUNT_UNTIL_TOLD`] to stop, and waits for the end, which must be a good one. The number it came to, without
    /// having left any out.
    #[track_caller]
    pub fn stop_counting(mut self) -> u32 {
        self.type_line("");
        let (code, console) = self.end();
        assert_eq!(code, Some(0), "{console}");
        assert!(console.contains(ENOUGH), "{console}");
        let numbers = counted(&console);
        assert_eq!(numbers, all_to(numbers.len() as u32), "{console}");
        numbers.len() as u32
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end: the exit code, and all of the console.
    pub fn end(mut self) -> (Option<i32>, String) {
        while let Ok(line) = self.console.recv_timeout(PATIENCE) {
            self.seen += &(line + "\n");
        }
        (self.child.wait().expect("it ends").code(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Ended and waited for is the usual case; both calls then do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
