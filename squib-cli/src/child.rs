//! A guest in a process of its own, watched through its console: another `squib`, or another emulator to compare with.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Error, IoContext, Result};

/// What a watched process does.
#[derive(Debug)]
pub enum Sign {
    /// Bytes of the guest's console.
    Console(Vec<u8>),
    /// A line of standard error.
    Message(String),
}

/// A watched process. It is ended when this is dropped.
#[derive(Debug)]
pub struct Watched {
    child: Child,
    started: Instant,
    signs: Receiver<(Duration, Sign)>,
    readers: Vec<JoinHandle<()>>,
}

impl Watched {
    /// Starts `command`; every sign of it is stamped with the time since now.
    pub fn spawn(command: &mut Command) -> Result<Watched> {
        Watched::spawn_with(command, None)
    }

    /// The same with a text waiting on its standard input, which stays open after that.
    pub fn spawn_typing(command: &mut Command, text: &str) -> Result<Watched> {
        Watched::spawn_with(command, Some(text))
    }

    fn spawn_with(command: &mut Command, typed: Option<&str>) -> Result<Watched> {
        let started = Instant::now();
        let mut child = command
            .stdin(if typed.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(|| format!("start {}", command.get_program().display()))?;
        if let (Some(text), Some(input)) = (typed, &mut child.stdin) {
            input.write_all(text.as_bytes()).context(|| "type into a process".into())?;
        }
        let (sender, signs) = channel();
        let mut readers = Vec::new();
        if let Some(mut out) = child.stdout.take() {
            let sender = sender.clone();
            readers.push(thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = out.read(&mut buffer) {
                    if sender.send((started.elapsed(), Sign::Console(buffer[..length].to_vec()))).is_err() {
                        return;
                    }
                }
            }));
        }
        if let Some(err) = child.stderr.take() {
            readers.push(thread::spawn(move || {
                for line in BufReader::new(err).lines().map_while(|line| line.ok()) {
                    if sender.send((started.elapsed(), Sign::Message(line))).is_err() {
                        return;
                    }
                }
            }));
        }
        Ok(Watched { child, started, signs, readers })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next sign, with the time since the start; `None` when the process has closed both its outputs.
    pub fn next(&self, deadline: Duration) -> Result<Option<(Duration, Sign)>> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.signs.recv_timeout(deadline.saturating_sub(self.started.elapsed())) {
            Ok(sign) => Ok(Some(sign)),
            Err(Disconnected) => Ok(None),
            Err(Timeout) => Err(Error::Message(format!("no end after {} s", deadline.as_secs()))),
        }
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Result<ExitStatus> {
        self.child.wait().context(|| "wait for a process".into())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Already ended and waited for is the usual case; both calls then do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// The program that runs now.
pub fn myself() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context(|| "find the squib program".into())?))
}

/// An event of `squib run --json`, if the line is one.
pub fn event(line: &str) -> Option<(String, Value)> {
    let value: Value = serde_json::from_str(line).ok()?;
    let name = value.get("event")?.as_str()?.to_owned();
    Some((name, value))
}
