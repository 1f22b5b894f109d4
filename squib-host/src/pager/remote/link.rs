//! The connection to a page server: one that is there when it is needed, many requests on it at once, and a new one when it breaks.
//!
//! A thread per connection connects, exchanges HELLO and WELCOME, and then hands each answer to whoever waits for it. All
//! waiting has an end: connecting can block where no timeout reaches, so it happens on that thread, too.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use squib_snapshot::SnapshotId;

use super::protocol::{self, Hello, PAGE, Unfit, VERSION, Welcome, code, kind};
use super::server::list;

/// Between attempts to connect, doubled each time.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(10);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Why a request had no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection is of no use any more; a new one may be. Says why.
    Lost(String),
    /// The server's refusal: code and text.
    Refused(u16, String),
    /// The answer is wrong, and would be again.
    Wrong(String),
}

/// Where the server is, and what is wanted from it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    pub(super) hello: Hello,
    /// A server that does not know what it serves will do: every page is checked.
    pub(super) accept_unnamed: bool,
    /// For each step.
    pub(super) answer_timeout: Duration,
}

/// The one connection at a time.
#[derive(Debug)]
pub(super) struct Link {
    target: Target,
    /// The process it belongs to.
    pid: u32,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Bytes of answers, over all connections.
    pub(super) received: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// What went wrong last.
    why: Option<String>,
    /// A server has said that it serves what is wanted, whatever became of it since.
    welcomed: bool,
}

#[derive(Debug)]
enum State {
    /// To be tried when somebody asks, not before `at`.
    Down {
        at: Instant,
        pause: Duration,
    },
    /// A thread is at it.
    Connecting {
        pause: Duration,
    },
    Up(Arc<Connection>),
    Closed,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(super) fn new(target: Target) -> Arc<Link> {
        let state = State::Down { at: Instant::now(), pause: FIRST_PAUSE };
        let inner = Mutex::new(Inner { state, why: None, welcomed: false });
        let (pid, changed) = (std::process::id(), Condvar::new());
        Arc::new(Link { target, pid, inner, changed, received: AtomicU64::new(0) })
    }

    /// Whether this is a forked child's copy: the connection is the parent's, and the thread that receives is not here.
    pub(super) fn is_inherited(&self) -> bool {
        self.pid != std::process::id()
    }

    /// The connection, made if there is none. With `patient` it is tried again until `deadline`, otherwise the first
    /// failure counts. The error says what went wrong last.
    pub(super) fn connection(self: &Arc<Self>, deadline: Instant, patient: bool) -> Result<Arc<Connection>, String> {
        if self.is_inherited() {
            return Err(format!("the connection is that of process {}: a forked child has to make its own", self.pid));
        }
        let mut inner = lock(&self.inner);
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Err(match &inner.state {
                    State::Up(connection) => connection.broken().or_else(|| inner.why.clone()),
                    _ => inner.why.clone(),
                }
                .unwrap_or_else(|| "it does not answer".into()));
            }
            let until = match (&inner.state, &inner.why) {
                (State::Closed, _) => return Err("it is not used any more".into()),
                (State::Up(connection), _) if connection.broken().is_none() => return Ok(Arc::clone(connection)),
                // Its own thread is about to say so.
                (State::Up(_) | State::Connecting { .. }, _) => deadline,
                (State::Down { .. }, Some(why)) if !patient => return Err(why.clone()),
                (State::Down { at, .. }, _) if *at > now => deadline.min(*at),
                (State::Down { pause, .. }, _) => {
                    let pause = *pause;
                    self.start()?;
                    inner.state = State::Connecting { pause };
                    deadline
                }
            };
            inner = self.changed.wait_timeout(inner, until - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Connects. One that is welcomed and lost again at once is as good as one that is lost later.
    pub(super) fn connect(self: &Arc<Self>, deadline: Instant) -> Result<(), String> {
        match self.connection(deadline, false) {
            Err(why) if !lock(&self.inner).welcomed => Err(why),
            _ => Ok(()),
        }
    }

    /// Gives the connection up for good.
    pub(super) fn close(&self) {
        if self.is_inherited() {
            // Shutting it down would end the parent's.
            return;
        }
        if let State::Up(connection) = std::mem::replace(&mut lock(&self.inner).state, State::Closed) {
            connection.fail("closed".into());
        }
        self.changed.notify_all();
    }

    fn start(self: &Arc<Self>) -> Result<(), String> {
        let link = Arc::clone(self);
        let thread = thread::Builder::new().name("page server".into()).spawn(move || link.live());
        thread.map(drop).map_err(|e| format!("no thread for it: {e}"))
    }

    /// One connection, from its beginning to its end, on its own thread.
    fn live(&self) {
        let (why, worked) = match self.open() {
            Err(why) => (why, false),
            Ok((connection, mut from)) => {
                {
                    let mut inner = lock(&self.inner);
                    if matches!(inner.state, State::Closed) {
                        return;
                    }
                    inner.state = State::Up(Arc::clone(&connection));
                    inner.welcomed = true;
                }
                self.changed.notify_all();
                let before = self.received.load(Ordering::Relaxed);
                let why = connection.receive_all(&mut from, &self.received);
                connection.fail(why.clone());
                (connection.broken().unwrap_or(why), self.received.load(Ordering::Relaxed) > before)
            }
        };
        let mut inner = lock(&self.inner);
        let pause = match &inner.state {
            State::Closed => return,
            State::Connecting { pause } if !worked => (*pause * 2).min(LONGEST_PAUSE),
            _ if worked => FIRST_PAUSE,
            // It connects and then does nothing right: not to be asked without a pause.
            _ => LONGEST_PAUSE,
        };
        inner.state = State::Down { at: Instant::now() + pause, pause };
        inner.why = Some(why);
        drop(inner);
        self.changed.notify_all();
    }

    fn open(&self) -> Result<(Arc<Connection>, BufReader<UnixStream>), String> {
        let Target { path, answer_timeout, .. } = &self.target;
        // Systems differ in what connecting to something else ends with.
        if path.metadata().is_ok_and(|there| !there.file_type().is_socket()) {
            return Err("this is not a socket: give the one that `squib page-server` listens at".into());
        }
        let stream = UnixStream::connect(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => "there is no such socket: is `squib page-server` running?".into(),
            io::ErrorKind::ConnectionRefused => "nobody listens there: is `squib page-server` running?".into(),
            io::ErrorKind::InvalidInput => "this is too long for the name of a socket: choose a shorter one".into(),
            _ => e.to_string(),
        })?;
        let prepare = || {
            stream.set_read_timeout(Some(*answer_timeout))?;
            stream.set_write_timeout(Some(*answer_timeout))?;
            Ok((stream.try_clone()?, stream.try_clone()?))
        };
        let (mut writer, reader) = prepare().map_err(|e: io::Error| e.to_string())?;
        let mut reader = BufReader::new(reader);
        writer.write_all(&self.target.hello.encode()).map_err(|e| e.to_string())?;
        let (kind, body) = receive_welcome(&mut reader).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => format!("no WELCOME within {answer_timeout:?}: has it been stopped?"),
            io::ErrorKind::InvalidData => format!("{e}: is it a page server?"),
            _ => e.to_string(),
        })?;
        let welcome = match kind {
            kind::WELCOME => Welcome::decode(&body).map_err(|e| e.to_string())?,
            kind::ERROR => return Err(protocol::decode_error(&body).map_err(|e| e.0)?.1),
            other => return Err(format!("it answers HELLO with a frame of kind {other}: is it a page server?")),
        };
        self.check(&welcome)?;
        let connection = Connection {
            stream,
            writer: Mutex::new(writer),
            waiting: Mutex::default(),
            next: AtomicU64::new(1),
            max_read: welcome.max_read,
            answer_timeout: *answer_timeout,
        };
        Ok((Arc::new(connection), reader))
    }

    /// Whether the server has what this machine needs.
    fn check(&self, welcome: &Welcome) -> Result<(), String> {
        let Hello { ram_size, layers, .. } = &self.target.hello;
        welcome.fits(&self.target.hello, self.target.accept_unnamed).map_err(|unfit| match unfit {
            Unfit::Version => format!("it speaks version {}, this program version {VERSION}", welcome.version),
            Unfit::Unnamed => {
                "it does not say which snapshot it serves, and pages are not checked: start it with --state".into()
            }
            Unfit::Snapshot => {
                let served: Vec<_> = welcome.layers.iter().copied().map(SnapshotId).collect();
                format!("it serves snapshot {}, not {}", list(&served), list(layers))
            }
            Unfit::RamSize => format!("it serves {} bytes of RAM, this machine has {ram_size}", welcome.ram_size),
        })
    }
}

fn receive_welcome(from: &mut BufReader<UnixStream>) -> io::Result<(u16, Vec<u8>)> {
    let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "it closed without an answer to HELLO");
    let header = protocol::read_header(from)?.ok_or_else(closed)?;
    // The longest WELCOME has 256 identities.
    let body = protocol::read_body(from, &header, 32 + 16 * protocol::MAX_LAYERS as u32)?;
    Ok((header.kind.get(), body))
}

/// An answer, or why there is none.
type Answer = Result<Vec<u8>, Fault>;

/// A request that was sent.
pub(super) struct Sent {
    answer: Receiver<Answer>,
    deadline: Instant,
}

#[derive(Debug)]
struct Waiting {
    kind: u16,
    limit: u32,
    to: SyncSender<Answer>,
}

#[derive(Debug, Default)]
struct WaitingAll {
    by_id: HashMap<u64, Waiting>,
    /// Why nothing will come any more.
    broken: Option<String>,
}

/// A connection, welcomed.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    writer: Mutex<UnixStream>,
    waiting: Mutex<WaitingAll>,
    next: AtomicU64,
    max_read: u32,
    answer_timeout: Duration,
}

impl Connection {
    /// Most bytes to ask for with one READ.
    pub(super) fn max_read(&self) -> u32 {
        (self.max_read.min(protocol::MAX_READ) as u64 / PAGE * PAGE) as u32
    }

    fn broken(&self) -> Option<String> {
        lock(&self.waiting).broken.clone()
    }

    /// Ends the connection: everyone who waits is told, the first reason counts.
    pub(super) fn fail(&self, why: String) {
        let mut waiting = lock(&self.waiting);
        let why = waiting.broken.get_or_insert(why).clone();
        for (_, waiting) in waiting.by_id.drain() {
            // Who has given up does not listen.
            let _ = waiting.to.try_send(Err(Fault::Lost(why.clone())));
        }
        drop(waiting);
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Sends a request; the answer will be of kind `answer` and have at most `limit` bytes.
    pub(super) fn send(&self, request: u16, body: &[u8], answer: u16, limit: u32) -> Result<Sent, Fault> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (to, from) = sync_channel(1);
        {
            let mut waiting = lock(&self.waiting);
            if let Some(why) = &waiting.broken {
                return Err(Fault::Lost(why.clone()));
            }
            waiting.by_id.insert(id, Waiting { kind: answer, limit, to });
        }
        let frame = protocol::frame(request, id, &[body]);
        // Bound to a variable: the lock must be free again before `fail`.
        let written = lock(&self.writer).write_all(&frame);
        if let Err(e) = written {
            let why = match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    format!("it takes no requests for {:?}", self.answer_timeout)
                }
                _ => format!("it closed the connection ({e})"),
            };
            self.fail(why.clone());
            return Err(Fault::Lost(why));
        }
        Ok(Sent { answer: from, deadline: Instant::now() + self.answer_timeout })
    }

    /// Waits for the answer to a request.
    pub(super) fn wait(&self, sent: &Sent) -> Answer {
        match sent.answer.recv_timeout(sent.deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                let why = format!("no answer within {:?}", self.answer_timeout);
                self.fail(why.clone());
                Err(Fault::Lost(why))
            }
            Err(RecvTimeoutError::Disconnected) => Err(Fault::Lost(self.broken().unwrap_or_default())),
        }
    }

    /// Hands answers out until there are no more; says why.
    fn receive_all(&self, from: &mut BufReader<UnixStream>, received: &AtomicU64) -> String {
        loop {
            match self.receive(from, received) {
                Ok(Some(())) => {}
                // Idle: whoever waits for an answer looks at the time himself.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) => return "it closed the connection".into(),
                Err(e) => return e.to_string(),
            };
        }
    }

    fn receive(&self, from: &mut BufReader<UnixStream>, received: &AtomicU64) -> io::Result<Option<()>> {
        let garbage = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let Some(header) = protocol::read_header(from)? else { return Ok(None) };
        let (id, kind) = (header.id.get(), header.kind.get());
        let limit = lock(&self.waiting).by_id.get(&id).map(|waiting| (waiting.kind, waiting.limit));
        let error_limit = 8 + protocol::MAX_TEXT as u32;
        let limit = match limit {
            _ if kind == kind::ERROR => error_limit,
            Some((expected, limit)) if expected == kind => limit,
            Some((expected, _)) => return Err(garbage(format!("it answers with kind {kind} where {expected} is due"))),
            None => return Err(garbage(format!("it answers request {id}, which nobody made (kind {kind})"))),
        };
        let body = protocol::read_body(from, &header, limit)?;
        // Before the answer is handed over: who has it finds it counted.
        received.fetch_add((protocol::HEADER + body.len()) as u64, Ordering::Relaxed);
        let answer = match kind {
            kind::ERROR => {
                let (code, text) = protocol::decode_error(&body).map_err(|e| garbage(e.0))?;
                if id == 0 || matches!(code, code::MALFORMED | code::BUSY) {
                    return Err(garbage(text));
                }
                Err(Fault::Refused(code, text))
            }
            _ => Ok(body),
        };
        if let Some(waiting) = lock(&self.waiting).by_id.remove(&id) {
            // Who has given up does not listen.
            let _ = waiting.to.try_send(answer);
        }
        Ok(Some(()))
    }
}
