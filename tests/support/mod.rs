//! What the proxy's tests share: a proxy on loopback with pools made by hand, origins that are real servers, and
//! clients that are plain sockets.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod front;
pub mod guardian;
pub mod oracle;
pub mod origin;
pub mod reader;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

pub mod frames;

use scrimp::app::{App, AppState, Offer, PolicyName, Protocol};
use scrimp::member::{Member, MemberState, NodeId, Reach, Role, Roster};
use scrimp::name::{PathPrefix, Port, Weight};
use scrimp::pool::{Pools, Rules};
use scrimp::proxy::{Config, Proxy};
use scrimp::report::{ListenReport, ProxyCounters};
use tokio::sync::{oneshot, watch};

/// How long anything that ought to happen may take.
pub const SOON: Duration = Duration::from_secs(10);

/// Waits for a condition; fails by name when it does not come.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    until_within(what, SOON, &mut is_so);
}

pub fn until_within(what: &str, limit: Duration, is_so: &mut impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A backend of the roster.
#[derive(Clone)]
pub struct Node {
    pub id: u64,
    pub ip: IpAddr,
    pub state: MemberState,
    pub reach: Reach,
    pub apps: Vec<(App, AppState)>,
}

impl Node {
    pub fn new(id: u64, apps: Vec<App>) -> Self {
        let apps = apps.into_iter().map(|app| (app, AppState::Ready)).collect();
        Self { id, ip: IpAddr::V4(Ipv4Addr::LOCALHOST), state: MemberState::Alive, reach: Reach::Unknown, apps }
    }

    pub fn with_state(mut self, state: AppState) -> Self {
        self.apps.iter_mut().for_each(|(_, old)| *old = state);
        self
    }

    /// As gossip and the balancer's own probes see it.
    pub fn seen(mut self, state: MemberState, reach: Reach) -> Self {
        (self.state, self.reach) = (state, reach);
        self
    }

    fn member(&self) -> Member {
        Member {
            id: NodeId(self.id),
            name: Some(format!("n{}", self.id).parse().unwrap()),
            role: Some(Role::Backend),
            address: SocketAddr::new(self.ip, 7377),
            state: self.state,
            since: SystemTime::UNIX_EPOCH,
            reach: self.reach,
            offer: Some(Arc::new(Offer { apps: self.apps.clone() })),
        }
    }
}

pub fn app(name: &str, protocol: Protocol, listen: Port, backend: SocketAddr) -> App {
    App {
        name: name.parse().unwrap(),
        protocol,
        port: Port::new(backend.port()).unwrap(),
        listen,
        domains: Vec::new(),
        path: PathPrefix::root(),
        weight: Weight::default(),
        policy: None,
        proxy_protocol: None,
    }
}

pub fn tcp_app(listen: Port, backend: SocketAddr) -> App {
    app("echo", Protocol::Tcp, listen, backend)
}

pub fn with_policy(mut app: App, policy: PolicyName) -> App {
    app.policy = Some(policy);
    app
}

pub fn http_app(name: &str, listen: Port, backend: SocketAddr, domains: &[&str], path: &str) -> App {
    let mut app = app(name, Protocol::Http, listen, backend);
    app.domains = domains.iter().map(|domain| domain.parse().unwrap()).collect();
    app.domains.sort();
    app.path = path.parse().unwrap();
    app
}

/// A proxy on an address of its own, with a runtime of its own for its control.
pub struct Bed {
    pub ip: IpAddr,
    pub counters: Arc<ProxyCounters>,
    pub listeners: watch::Receiver<Arc<Vec<ListenReport>>>,
    pub proxy: Option<Proxy>,
    pools: watch::Sender<Arc<Pools>>,
    pub rules: Rules,
    control: tokio::runtime::Handle,
    _stop: oneshot::Sender<()>,
}

/// Every bed has an address of its own in 127.0.0.0/8, so that ports of one test do not disturb another's.
fn own_ip() -> IpAddr {
    static LAST: AtomicU8 = AtomicU8::new(0);
    let process = std::process::id();
    let last = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    IpAddr::from([127, 100 + (process >> 8) as u8 % 100, process as u8, last])
}

impl Bed {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let ip = own_ip();
        let mut config = Config { bind: vec![ip], workers: 2, ..Config::default() };
        change(&mut config);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let control = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (pools, source) = watch::channel(Arc::new(Pools::default()));
        let counters = Arc::new(ProxyCounters::default());
        let proxy = {
            let _inside = control.enter();
            Proxy::start(config, source, Arc::clone(&counters)).unwrap()
        };
        thread::spawn(move || runtime.block_on(stopped));
        let listeners = proxy.listeners();
        Self { ip, counters, listeners, proxy: Some(proxy), pools, rules: Rules::default(), control, _stop: stop }
    }

    /// A port that nobody has at this bed's address.
    pub fn port(&self) -> Port {
        Port::new(TcpListener::bind((self.ip, 0)).unwrap().local_addr().unwrap().port()).unwrap()
    }

    pub fn address(&self, port: Port) -> SocketAddr {
        SocketAddr::new(self.ip, port.get())
    }

    /// Publishes the pools of a roster.
    pub fn publish(&self, nodes: &[Node]) -> Arc<Pools> {
        let roster = Roster {
            cluster: "test".parse().unwrap(),
            me: NodeId(0),
            members: nodes.iter().map(Node::member).collect(),
        };
        let next = Arc::new(self.pools.borrow().next(&roster, &self.rules, Instant::now()));
        self.pools.send_replace(Arc::clone(&next));
        next
    }

    /// The pools as they are published.
    pub fn pools(&self) -> Arc<Pools> {
        Arc::clone(&self.pools.borrow())
    }

    /// The same, and waits until the listen port is open.
    pub fn publish_and_open(&self, nodes: &[Node], port: Port) {
        self.publish(nodes);
        self.until_open(port);
    }

    /// Waits until a listen port has its sockets: of UDP, and where who connects would be noticed.
    pub fn until_bound(&self, port: Port) {
        until("the listen port opens", || self.report(port).is_some_and(|report| !report.addresses.is_empty()));
    }

    pub fn until_open(&self, port: Port) {
        self.until_bound(port);
        until("a worker accepts", || TcpStream::connect(self.address(port)).is_ok());
    }

    /// Waits until the connection that found the port open is over.
    pub fn settle(&self) {
        until("the first connection is over", || {
            let closed = self.counters.connections_closed.get();
            closed > 0 && closed == self.counters.connections.get()
        });
    }

    pub fn report(&self, port: Port) -> Option<ListenReport> {
        self.listeners.borrow().iter().find(|report| report.port == port).cloned()
    }

    pub fn connect(&self, port: Port) -> TcpStream {
        let stream = TcpStream::connect(self.address(port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Starts to drain; the receiver gets the number of connections that were cut.
    pub fn drain(&mut self, deadline: Duration) -> std::sync::mpsc::Receiver<usize> {
        let (done, is_done) = std::sync::mpsc::channel();
        let proxy = self.proxy.take().unwrap();
        self.control.spawn(async move { done.send(proxy.drain(deadline).await) });
        is_done
    }
}

/// A real server: each connection is handed to a handler on a thread of its own.
pub struct Origin {
    pub address: SocketAddr,
    pub accepted: Arc<AtomicUsize>,
    stopped: Arc<std::sync::atomic::AtomicBool>,
    /// Judges the heads that a [`Wire`] reads in a handler.
    court: oracle::Court,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.court.close();
    }
}

impl Origin {
    pub fn start(handle: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let stopped = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (count, is_stopped) = (Arc::clone(&accepted), Arc::clone(&stopped));
        let handle = Arc::new(handle);
        let court = oracle::Court::default();
        let judges = court.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if is_stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else {
                    // No descriptor left: the proxy's test, not this server's.
                    thread::sleep(Duration::from_millis(20));
                    continue;
                };
                stream.set_read_timeout(Some(SOON * 3)).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (handle, court) = (Arc::clone(&handle), judges.clone());
                thread::spawn(move || {
                    court.sit();
                    handle(stream);
                });
            }
        });
        Self { address, accepted, stopped, court }
    }

    /// Sends its name to whoever connects, then echoes.
    pub fn greeting(name: &'static str) -> Self {
        Self::start(move |mut stream| {
            let _ = stream.write_all(name.as_bytes());
            echo(&stream);
        })
    }

    pub fn echo() -> Self {
        Self::start(|stream| echo(&stream))
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Stops listening; what is open stays.
    pub fn stop_listening(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        until("the origin is gone", || TcpStream::connect(self.address).is_err());
    }
}

pub fn echo(stream: &TcpStream) {
    let _ = io::copy(&mut &*stream, &mut &*stream);
    let _ = stream.shutdown(Shutdown::Write);
}

/// An address at which nobody listens.
pub fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An address that swallows: its queue is full, so that a connect to it gets no answer at all.
pub struct BlackHole {
    pub address: SocketAddr,
    _listener: socket2::Socket,
    _fill: Vec<socket2::Socket>,
}

impl BlackHole {
    pub fn new() -> Self {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let fill = (0..4)
            .map(|_| {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&address.into());
                socket
            })
            .collect();
        let hole = Self { address, _listener: listener, _fill: fill };
        until("the queue is full", || TcpStream::connect_timeout(&hole.address, Duration::from_millis(100)).is_err());
        hole
    }
}

/// What a connection says until its end; an error if it was broken off.
pub fn read_all(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

pub fn read_exactly(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Whether the other side has ended this connection, one way or another.
pub fn is_ended(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut byte = [0];
    let ended = match stream.peek(&mut byte) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).unwrap();
    ended
}

/// Sends until nothing more is taken.
pub fn fill(mut stream: &TcpStream, bytes: &[u8]) {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while stream.write_all(bytes).is_ok() {}
}

/// Makes the close of this connection a reset. For the last handle of it.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// A request or a response, as it came over the wire.
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub line: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The body was broken off.
    pub is_cut: bool,
}

impl Message {
    /// The value of a field that is there once; none if it is not there.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} stands more than once: {self:?}");
        value
    }

    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// One side of an HTTP connection, without any help.
pub struct Wire {
    pub stream: TcpStream,
    reader: io::BufReader<TcpStream>,
    /// The head that is being read, as it comes.
    raw: Vec<u8>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        let reader = io::BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader, raw: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match io::BufRead::read_line(&mut self.reader, &mut line) {
            Ok(count) if count > 0 => {
                self.raw.extend_from_slice(line.as_bytes());
                Some(line.trim_end_matches(['\r', '\n']).to_owned())
            }
            _ => None,
        }
    }

    fn fields(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(fields);
            }
            let (name, value) = line.split_once(':').unwrap();
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// A first line and fields; none at the connection's end.
    pub fn head(&mut self) -> Option<Message> {
        self.raw.clear();
        let line = self.line()?;
        let message = Message { line, fields: self.fields()?, ..Message::default() };
        oracle::judge(&self.raw);
        Some(message)
    }

    /// A request with its body.
    pub fn request(&mut self) -> Option<Message> {
        let mut message = self.head()?;
        if message.field("transfer-encoding").is_some() || message.field("content-length").is_some() {
            self.body(&mut message);
        }
        Some(message)
    }

    /// A response with its body.
    pub fn response(&mut self) -> Message {
        let mut message = self.head().expect("a response");
        if !matches!(message.status(), 100..=199 | 204 | 304) {
            self.body(&mut message);
        }
        message
    }

    /// A body, framed as the fields say: by chunks, by length, or by the end of the connection.
    pub fn body(&mut self, message: &mut Message) {
        if message.field("transfer-encoding").is_some() {
            loop {
                let Some(size) = self.line().and_then(|line| usize::from_str_radix(&line, 16).ok()) else {
                    message.is_cut = true;
                    return;
                };
                if size == 0 {
                    message.trailers = self.fields().unwrap_or_default();
                    return;
                }
                message.is_cut = !self.exactly(size, &mut message.body) || self.line().is_none();
                if message.is_cut {
                    return;
                }
            }
        } else if let Some(length) = message.field("content-length").map(|length| length.parse().unwrap()) {
            message.is_cut = !self.exactly(length, &mut message.body);
        } else {
            message.is_cut = self.reader.read_to_end(&mut message.body).is_err();
        }
    }

    fn exactly(&mut self, count: usize, into: &mut Vec<u8>) -> bool {
        let before = into.len();
        let read = (&mut self.reader).take(count as u64).read_to_end(into);
        read.is_ok() && into.len() - before == count
    }

    /// Everything up to the end of the connection; an error if that was a reset.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader.read_to_end(&mut bytes).map(|_| bytes)
    }

    pub fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reader.read(into)
    }

    pub fn read_exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert!(self.exactly(count, &mut bytes), "{count} bytes were to come");
        bytes
    }
}

impl Origin {
    /// An HTTP server: what `answer` makes of a request is sent as it is; none ends the connection.
    pub fn http(answer: impl Fn(&Message) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::start(move |stream| {
            let mut wire = Wire::new(stream);
            while let Some(request) = wire.request() {
                let Some(response) = answer(&request) else {
                    return;
                };
                if wire.stream.write_all(&response).is_err() {
                    return;
                }
            }
        })
    }

    /// An HTTP server that answers with its name.
    pub fn named(name: &'static str) -> Self {
        Self::http(move |_| Some(ok(name)))
    }

    /// An HTTP server that answers with the request's header, a field a line.
    pub fn mirror() -> Self {
        Self::http(|request| {
            let fields: String = request.fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
            Some(ok(&format!("{}\n{fields}\n{}", request.line, String::from_utf8_lossy(&request.body))))
        })
    }
}

/// A plain response.
pub fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
}
