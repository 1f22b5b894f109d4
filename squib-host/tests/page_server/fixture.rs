//! Our server on a thread, and a client that reads all of it.

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use squib_host::pager::{Images, Origin, PageServer, PageSource, RemoteConfig, RemoteSource, SourceError, Stop};
use squib_snapshot::ChainStates;

#[path = "../common/saved.rs"]
mod saved;

pub use saved::{MIB, PAGE, Saved};

impl Saved {
    pub fn states(&self) -> ChainStates {
        let diffs: Vec<_> = self.links[1..].iter().map(|(state, ..)| state).collect();
        ChainStates::open(&self.links[0].0, &diffs).expect("a chain")
    }

    pub fn identities(&self) -> Vec<[u8; 16]> {
        self.links.iter().map(|(.., id)| id.0).collect()
    }

    pub fn socket(&self) -> PathBuf {
        self.file("socket")
    }

    pub fn serve(&self) -> Serving {
        Serving::start(Images::chain(&self.chain()).expect("images"), &self.socket())
    }

    pub fn connect(&self) -> Result<RemoteSource, SourceError> {
        RemoteSource::connect(quick(&self.socket()), self.states())
    }

    /// For tests in which nothing goes wrong, however busy the host is.
    pub fn connect_patiently(&self) -> RemoteSource {
        RemoteSource::connect(RemoteConfig::new(self.socket()), self.states()).expect("connected")
    }
}

/// Impatient enough for tests of servers that never answer.
pub fn quick(path: &Path) -> RemoteConfig {
    let (answer_timeout, patience) = (Duration::from_millis(800), Duration::from_millis(1600));
    RemoteConfig { answer_timeout, patience, ..RemoteConfig::new(path) }
}

/// A page server of ours on a thread; ended when dropped.
pub struct Serving {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    pub fn start(images: Images, socket: &Path) -> Serving {
        let server = PageServer::bind(images, socket).expect("bound");
        let stop = server.stop_handle().expect("a handle");
        let thread = Some(thread::spawn(move || server.serve(false).expect("served")));
        Serving { stop, thread }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.stop();
        self.thread.take().map(JoinHandle::join);
    }
}

/// Every page, by several threads, each in an order of its own, in both ways a page can be read; then odd ranges, and all at once.
pub fn reads_all_of(source: &RemoteSource, ram: &[u8]) {
    let pages = ram.len().div_ceil(PAGE);
    thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for n in 0..pages {
                    let page = (n * 37 + thread * 11) % pages;
                    let expected = &ram[page * PAGE..ram.len().min((page + 1) * PAGE)];
                    let mut bytes = vec![0xee; expected.len()];
                    let origin = match (n + thread) % 3 {
                        0 => source.read_quietly((page * PAGE) as u64, &mut bytes).expect("read"),
                        _ => source.read((page * PAGE) as u64, &mut bytes).expect("read"),
                    };
                    assert!(bytes == expected, "page {page}");
                    assert!(origin != Origin::Zero || expected.iter().all(|&byte| byte == 0));
                }
            });
        }
    });
    for (start, len) in [(0, ram.len()), (5000, 3 * MIB), (4 * MIB + 1, 1), (ram.len() - 1, 1), (7, 0)] {
        let mut bytes = vec![0xee; len];
        source.read(start as u64, &mut bytes).expect("read");
        assert!(bytes == ram[start..start + len], "{len} bytes at {start}");
    }
    source.read(ram.len() as u64, &mut [0]).expect_err("beyond RAM");
}
