//! What streaming meets while the guest runs on, told at once to whoever asked for it: the guest has not noticed, and may never.

use std::fmt;
use std::sync::Arc;

/// Something that streaming met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// A page is lost for good. The guest goes on until it needs it.
    Lost {
        /// IPA.
        start: u64,
        /// Bytes.
        len: u64,
        /// What the source says.
        reason: String,
    },
    /// The source gives nothing: streaming waits, and asks it again and again. The guest goes on until it needs what is absent.
    Away {
        /// Whether the source answers, with bytes that are wrong.
        wrong: bool,
        /// What the source says.
        reason: String,
    },
    /// The source gives again.
    Back,
}

/// Is told of [`StreamEvent`]s, on the prefetcher's thread: it must not wait for the machine.
#[derive(Clone)]
pub struct StreamObserver(Arc<dyn Fn(StreamEvent) + Send + Sync>);

impl StreamObserver {
    /// Calls `told`.
    pub fn new(told: impl Fn(StreamEvent) + Send + Sync + 'static) -> StreamObserver {
        StreamObserver(Arc::new(told))
    }

    pub(super) fn tell(&self, event: StreamEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for StreamObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamObserver")
    }
}

impl PartialEq for StreamObserver {
    fn eq(&self, other: &StreamObserver) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for StreamObserver {}
