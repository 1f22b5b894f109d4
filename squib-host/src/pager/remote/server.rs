//! The page server: gives out [`Images`] over a Unix socket, to many clients at once.
//!
//! A few threads per client take turns: one reads a request, hands the reading on to the next, and answers; so requests are
//! answered side by side and out of order. Nothing a client sends makes the server allocate more than a frame, nothing a
//! client leaves undone holds more than its own threads, and those not longer than [`PATIENCE`].

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use squib_snapshot::SnapshotId;
use zerocopy::IntoBytes;

use super::images::{Images, Refusal};
use super::protocol::{self, Header, Hello, Malformed, PAGE, VERSION, Welcome, code, kind};
use super::socket::Socket;
use crate::error::{Error, Result};

/// How long a client may take for HELLO, for the rest of a frame, or to take an answer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long for HELLO one may take for whom there is no room.
const PATIENCE_WHEN_FULL: Duration = Duration::from_secs(1);
/// Clients at once; more are told to come back later. A machine is one, and for touches of absent memory that nobody announced two more:
/// this is room for 64 machines.
const MAX_CLIENTS: usize = 64 * 3;
/// Threads that answer one client.
const THREADS: usize = 3;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Receives a line for every client that comes, goes or is refused.
pub type Log = Box<dyn Fn(&str) + Send + Sync>;

/// A page server that listens. Clients are answered while [`PageServer::serve`] runs.
///
/// ```no_run
/// use squib_host::pager::{Images, PageServer};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let chain = squib_snapshot::Chain::open(("vm.state", "vm.mem"), &[] as &[(&str, &str)])?;
/// PageServer::bind(Images::chain(&chain)?, "pages.sock")?.serve(false)?;
/// # Ok(())
/// # }
/// ```
pub struct PageServer {
    images: Images,
    socket: Socket,
    stop: Stop,
    stopped: UnixStream,
    /// Their connections, shared with the threads that answer: one file descriptor each.
    clients: Mutex<HashMap<u64, Arc<UnixStream>>>,
    log: Log,
}

impl fmt::Debug for PageServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageServer").field("images", &self.images).field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Ends a server from another thread, or from that of a signal.
#[derive(Debug)]
pub struct Stop {
    wake: UnixStream,
}

impl Stop {
    /// Makes [`PageServer::serve`] close its connections and return.
    pub fn stop(&self) {
        // The other end is gone if the server has ended already, and has a byte waiting if somebody else asked.
        let _ = (&self.wake).write(&[0]);
    }
}

impl PageServer {
    /// Listens at `path`, with mode 0600. A dead server's socket is replaced, a live one's is not.
    ///
    /// # Errors
    /// [`Error::Config`] if somebody listens there or something else has that name; [`Error::File`]; [`Error::System`].
    pub fn bind(images: Images, path: impl AsRef<Path>) -> Result<PageServer> {
        let socket = Socket::bind(path.as_ref())?;
        let (wake, stopped) = UnixStream::pair().map_err(prepare)?;
        // Nobody who stops the server waits for it.
        wake.set_nonblocking(true).map_err(prepare)?;
        let (clients, log): (_, Log) = (Mutex::default(), Box::new(|_| {}));
        Ok(PageServer { images, socket, stop: Stop { wake }, stopped, clients, log })
    }

    /// Where the lines about clients go; to nowhere if this is not called.
    #[must_use]
    pub fn log_to(self, log: Log) -> PageServer {
        PageServer { log, ..self }
    }

    /// What is served.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// A handle that ends the server.
    ///
    /// # Errors
    /// [`Error::System`] if the process is out of file descriptors.
    pub fn stop_handle(&self) -> Result<Stop> {
        Ok(Stop { wake: self.stop.wake.try_clone().map_err(prepare)? })
    }

    /// Answers clients until [`Stop::stop`] is called, or with `once` until the first client it welcomed has gone. The socket's
    /// file is removed when the server is dropped.
    ///
    /// # Errors
    /// [`Error::System`] if waiting for clients fails.
    pub fn serve(&self, once: bool) -> Result<()> {
        thread::scope(|scope| {
            let result = self.accept(scope, once);
            // Their threads end when their connections do.
            for client in lock(&self.clients).values() {
                let _ = client.shutdown(Shutdown::Both);
            }
            result
        })
    }

    fn accept<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, once: bool) -> Result<()> {
        self.socket.listener.set_nonblocking(true).map_err(prepare)?;
        for number in 1.. {
            let Some(stream) = self.next_client()? else { break };
            let stream = Arc::new(stream);
            let spawned = (|| {
                stream.set_nonblocking(false)?;
                let full = {
                    let mut clients = lock(&self.clients);
                    let full = clients.len() >= MAX_CLIENTS;
                    clients.insert(number, Arc::clone(&stream));
                    full
                };
                stream.set_read_timeout(Some(if full { PATIENCE_WHEN_FULL } else { PATIENCE }))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                let name = format!("client {number}");
                thread::Builder::new().name(name).spawn_scoped(scope, move || {
                    let welcomed = self.session(&stream, number, full);
                    lock(&self.clients).remove(&number);
                    if welcomed && once {
                        self.stop.stop();
                    }
                })
            })();
            if let Err(e) = spawned {
                lock(&self.clients).remove(&number);
                (self.log)(&format!("client {number} cannot be answered: {e}"));
            }
        }
        Ok(())
    }

    /// Waits for a client; `None` when the server is to end.
    fn next_client(&self) -> Result<Option<UnixStream>> {
        let failed = |source: io::Error| Error::System { action: "wait for clients".into(), source };
        loop {
            let mut waiting =
                [PollFd::new(&self.socket.listener, PollFlags::IN), PollFd::new(&self.stopped, PollFlags::IN)];
            match poll(&mut waiting, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(failed(e.into())),
                Ok(_) => {}
            }
            if !waiting[1].revents().is_empty() {
                return Ok(None);
            }
            match self.socket.listener.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    // Out of file descriptors, say: those served now will give some back.
                    (self.log)(&format!("a client cannot be accepted: {e}"));
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// One client from HELLO to the end. Returns whether it was welcomed.
    fn session(&self, stream: &UnixStream, number: u64, full: bool) -> bool {
        let log = |text: &str| (self.log)(&format!("client {number} {text}"));
        let session = Session {
            images: &self.images,
            from: Mutex::new(BufReader::new(stream)),
            to: Mutex::new(stream),
            stream,
            ended: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            why: Mutex::new(None),
        };
        if let Err(refusal) = session.welcome(full) {
            log(&format!("refused: {}", refusal.text));
            session.refuse(0, &refusal);
            return false;
        }
        log("connected");
        thread::scope(|scope| {
            for _ in 1..THREADS {
                // Without helpers it is answered one by one.
                let _ = thread::Builder::new().spawn_scoped(scope, || session.answer_all());
            }
            session.answer_all();
        });
        let (answered, sent) = (session.answered.into_inner(), session.sent.into_inner());
        let why = lock(&session.why).take().map(|why| format!(": {why}")).unwrap_or_default();
        log(&format!("gone after {answered} requests, {sent} bytes sent{why}"));
        true
    }
}

fn prepare(source: io::Error) -> Error {
    Error::System { action: "prepare the page server".into(), source }
}

/// One client, welcomed.
struct Session<'a> {
    images: &'a Images,
    from: Mutex<BufReader<&'a UnixStream>>,
    to: Mutex<&'a UnixStream>,
    stream: &'a UnixStream,
    ended: AtomicBool,
    answered: AtomicU64,
    sent: AtomicU64,
    /// What ended it, if it did not just close.
    why: Mutex<Option<String>>,
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Refusal {
        Refusal { code: code::MALFORMED, text: malformed.0 }
    }
}

impl Session<'_> {
    fn welcome(&self, full: bool) -> Result<(), Refusal> {
        let hello = match self.receive() {
            Ok(Some((header, body))) if header.kind.get() == kind::HELLO => Hello::decode(&body)?,
            Ok(Some((header, _))) => {
                return Err(Malformed(format!("the first frame is of kind {}, not HELLO", header.kind)).into());
            }
            Ok(None) => return Err(Malformed("it closed without HELLO".into()).into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let limit = if full { PATIENCE_WHEN_FULL } else { PATIENCE };
                return Err(Malformed(format!("no HELLO within {limit:?}")).into());
            }
            Err(e) => return Err(Malformed(format!("no HELLO: {e}")).into()),
        };
        // Not before HELLO is here: a client that finds the connection closed while it sends does not look for the reason.
        if full {
            let text = format!("{MAX_CLIENTS} clients are served already: come back later");
            return Err(Refusal { code: code::BUSY, text });
        }
        self.check(&hello)?;
        let layers: Vec<[u8; 16]> = self.images.identities().iter().map(|id| id.0).collect();
        let welcome = Welcome {
            version: VERSION,
            ram_size: self.images.ram_size(),
            page: PAGE as u32,
            max_read: protocol::MAX_READ,
            layers: &layers,
        };
        self.send(&welcome.encode()).map_err(|e| Malformed(e.to_string()).into())
    }

    /// Whether what the client wants is what is served.
    fn check(&self, hello: &Hello) -> Result<(), Refusal> {
        let (lowest, highest) = hello.versions;
        if !(lowest..=highest).contains(&VERSION) {
            let text = format!("the client speaks versions {lowest} to {highest}, this server version {VERSION}");
            return Err(Refusal { code: code::VERSION, text });
        }
        let wrong = |text: String| Err(Refusal { code: code::WRONG_SNAPSHOT, text });
        let served = self.images.identities();
        let unknown = served.iter().all(|id| id.0 == [0; 16]);
        if !hello.layers.is_empty() && (hello.layers.len() != served.len() || !unknown && hello.layers != served) {
            return wrong(format!("snapshot {} is served, not {}", list(&served), list(&hello.layers)));
        }
        let size = self.images.ram_size();
        if hello.ram_size != 0 && hello.ram_size != size {
            return wrong(format!("RAM of {size} bytes is served, not of {} bytes", hello.ram_size));
        }
        Ok(())
    }

    /// Takes requests in turn with the other threads of this client, and answers them.
    fn answer_all(&self) {
        loop {
            let request = match self.receive() {
                _ if self.ended.load(Ordering::Acquire) => return,
                Ok(Some(request)) => request,
                Ok(None) => return self.end(None),
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    self.refuse(0, &Malformed(e.to_string()).into());
                    return self.end(Some(e.to_string()));
                }
                Err(e) => return self.end(Some(e.to_string())),
            };
            if let Err(e) = self.answer(&request.0, &request.1) {
                return self.end(Some(e.to_string()));
            }
        }
    }

    /// Ends the connection for all threads; the first reason counts.
    fn end(&self, why: Option<String>) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            *lock(&self.why) = why;
        }
        // Closed by the client already, as a rule.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The next frame, waiting for it for ever, but not for its rest.
    fn receive(&self) -> io::Result<Option<(Header, Vec<u8>)>> {
        let mut from = lock(&self.from);
        let header = loop {
            match protocol::read_header(&mut *from) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.answered.load(Ordering::Relaxed) > 0 => {}
                Err(e) => return Err(e),
                Ok(None) => return Ok(None),
                Ok(Some(header)) => break header,
            }
        };
        let body = protocol::read_body(&mut *from, &header, protocol::MAX_REQUEST)?;
        Ok(Some((header, body)))
    }

    fn answer(&self, header: &Header, body: &[u8]) -> io::Result<()> {
        let id = header.id.get();
        let answer = match header.kind.get() {
            _ if id == 0 => Err(Malformed("a request with id 0".into()).into()),
            kind::READ => protocol::decode_read(body).map_err(Refusal::from).and_then(|ranges| {
                let (segments, bytes) = self.images.read(ranges)?;
                Ok(protocol::encode_data(id, &segments, &bytes))
            }),
            kind::SUMS => protocol::decode_sums(body).map_err(Refusal::from).and_then(|sums| {
                let sums = self.images.sums(&sums)?;
                Ok(protocol::frame(kind::SUMS_DATA, id, &[sums.as_bytes()]))
            }),
            other => Err(Malformed(format!("a frame of kind {other}, which is no request")).into()),
        };
        match answer {
            Ok(frame) => self.send(&frame),
            Err(refusal) => {
                self.refuse(id, &refusal);
                match refusal.code {
                    code::MALFORMED => Err(io::Error::new(io::ErrorKind::InvalidData, refusal.text)),
                    _ => Ok(()),
                }
            }
        }
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        lock(&self.to).write_all(frame)?;
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(frame.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn refuse(&self, id: u64, refusal: &Refusal) {
        // A client that does not even take the refusal is gone, which the next read tells.
        let _ = self.send(&protocol::encode_error(id, refusal.code, &refusal.text));
    }
}

/// Identities in words.
pub(super) fn list(layers: &[SnapshotId]) -> String {
    let names: Vec<String> = layers.iter().map(SnapshotId::to_string).collect();
    match &names[..] {
        [] => "any".into(),
        [one] => one.clone(),
        [base, diffs @ ..] => format!("{base} with the diffs {}", diffs.join(", ")),
    }
}
