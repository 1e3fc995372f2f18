//! An origin that records every byte, every request and every connection, answers as it is told, and has each request
//! judged (`oracle`).

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use super::oracle::Court;
use super::reader::{Reader, Stop, Without};
use super::{Message, SOON, ok};

/// A request as it reached the origin.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which connection of the origin's, from 0.
    pub connection: usize,
    /// Which request of that connection, from 0.
    pub number: usize,
    pub message: Message,
    /// The first line and the fields as they came.
    pub raw: Vec<u8>,
    /// The body was read to its end.
    pub is_whole: bool,
}

impl Seen {
    pub fn method(&self) -> &str {
        self.message.line.split(' ').next().unwrap()
    }

    pub fn target(&self) -> &str {
        self.message.line.split(' ').nth(1).unwrap()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.message.field(name)
    }
}

/// A connection of the origin's.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    pub bytes: Vec<u8>,
    /// How it ended, if it has: as the other side did it.
    pub end: Option<Stop>,
    /// The script was carried out to its end.
    pub is_done: bool,
}

/// What an origin does when it has read a request's head. At the end it waits for the next request.
#[derive(Clone)]
pub enum Step {
    /// Reads the body; goes on when that is broken off, too.
    Body,
    Send(Vec<u8>),
    /// Sends a part without an end, until the other side does not take it any more.
    Flood(Vec<u8>),
    Wait(Gate),
    Open(Gate),
    /// Reads until the other side ends.
    UntilEnd,
    HalfClose,
    Close,
    Reset,
}

impl Step {
    pub fn send(bytes: impl AsRef<[u8]>) -> Self {
        Self::Send(bytes.as_ref().to_vec())
    }

    /// Reads the whole request and answers.
    pub fn answer(bytes: impl AsRef<[u8]>) -> Vec<Self> {
        vec![Self::Body, Self::send(bytes)]
    }
}

/// Something that is waited for and happens once.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn wait(&self) {
        let is_open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_timeout_while(is_open, SOON * 3, |is_open| !*is_open).unwrap());
    }
}

/// All that an origin has seen.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub connections: Vec<Connection>,
    pub requests: Vec<Seen>,
}

impl Log {
    /// Requests that came to their end.
    pub fn whole(&self) -> usize {
        self.requests.iter().filter(|seen| seen.is_whole).count()
    }

    pub fn bytes(&self) -> usize {
        self.connections.iter().map(|connection| connection.bytes.len()).sum()
    }
}

struct Shared {
    log: Mutex<Log>,
    changed: Condvar,
    script: Script,
    court: Court,
}

type Script = Box<dyn Fn(&Seen) -> Vec<Step> + Send + Sync>;

/// The origin. Dropped, it fails the test if a request was ambiguous.
pub struct Recorder {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Recorder {
    /// An origin that does with each request what `script` says when its head is there.
    pub fn new(script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let court = Court::default();
        let shared =
            Arc::new(Shared { log: Mutex::default(), changed: Condvar::new(), script: Box::new(script), court });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(SOON * 3)).unwrap();
                stream.set_write_timeout(Some(SOON * 3)).unwrap();
                let shared = Arc::clone(&accepting);
                let id = shared.change(|log| {
                    log.connections.push(Connection::default());
                    log.connections.len() - 1
                });
                thread::spawn(move || shared.serve(id, &stream));
            }
        });
        Self { address, shared }
    }

    /// An origin that answers each request with a text.
    pub fn named(name: &'static str) -> Self {
        Self::new(move |_| Step::answer(ok(name)))
    }

    /// An origin that answers each request with these bytes.
    pub fn saying(bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref().to_vec();
        Self::new(move |_| Step::answer(&bytes))
    }

    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log.lock().unwrap()
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.log().requests.clone()
    }

    /// Waits until the log is as it is to be.
    pub fn until(&self, what: &str, is_so: impl Fn(&Log) -> bool) -> Log {
        let log = self.log();
        let (log, timeout) = self.shared.changed.wait_timeout_while(log, SOON, |log| !is_so(log)).unwrap();
        assert!(!timeout.timed_out(), "not within {SOON:?}: {what}: {log:?}");
        log.clone()
    }

    /// What was wrong with requests so far.
    pub fn flaws(&self) -> Vec<String> {
        self.shared.court.flaws()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.court.close();
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let result = change(&mut self.log.lock().unwrap());
        self.changed.notify_all();
        result
    }

    fn serve(self: &Arc<Self>, id: usize, stream: &TcpStream) {
        let tape = Arc::clone(self);
        let mut reader = Reader::with_tape(stream, move |bytes| {
            tape.change(|log| log.connections[id].bytes.extend_from_slice(bytes));
        });
        let end = self.serve_requests(id, &mut reader, stream);
        if let Stop::Flaw(flaw) = &end {
            self.court.convict(flaw.clone());
        }
        self.change(|log| {
            log.connections[id].end = Some(end);
            log.connections[id].is_done = true;
        });
    }

    fn serve_requests(&self, id: usize, reader: &mut Reader, stream: &TcpStream) -> Stop {
        for number in 0.. {
            let (message, raw) = match reader.head() {
                Ok(head) => head,
                Err(stop) => return stop,
            };
            self.court.judge(&raw);
            let mut seen = Seen { connection: id, number, message, raw, is_whole: false };
            seen.is_whole = is_bodyless(&seen.message);
            let index = self.change(|log| {
                log.requests.push(seen.clone());
                log.requests.len() - 1
            });
            for step in (self.script)(&seen) {
                let mut writer = stream;
                match step {
                    Step::Body if seen.is_whole => {}
                    Step::Body => {
                        let result = reader.body(&mut seen.message, Without::Empty);
                        seen.is_whole = result.is_ok();
                        self.change(|log| log.requests[index] = seen.clone());
                        match result {
                            Ok(()) => {}
                            Err(stop) => return stop,
                        }
                    }
                    Step::Send(bytes) => {
                        if writer.write_all(&bytes).is_err() {
                            return Stop::Reset;
                        }
                    }
                    Step::Flood(bytes) => while writer.write_all(&bytes).is_ok() {},
                    Step::Wait(gate) => gate.wait(),
                    Step::Open(gate) => gate.open(),
                    Step::UntilEnd => return reader.rest().1,
                    Step::HalfClose => stream.shutdown(Shutdown::Write).unwrap_or_default(),
                    Step::Close => return Stop::End,
                    Step::Reset => {
                        // Carried out by the close, of this handle and the reader's.
                        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
                        return Stop::Reset;
                    }
                }
            }
        }
        Stop::End
    }
}

fn is_bodyless(message: &Message) -> bool {
    !message.fields.iter().any(|(name, value)| match name.as_str() {
        "transfer-encoding" => true,
        "content-length" => value != "0",
        _ => false,
    })
}
