//! A proxy with one application for any host in front of recording origins, and what becomes of bytes sent to it.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use scrimp::name::Port;
use scrimp::proxy::Config;

use super::reader::{Reader, Stop};
use super::{Bed, Message, Node, SOON, http_app};

pub struct Front {
    pub bed: Bed,
    pub port: Port,
}

/// What came back on one connection.
#[derive(Debug)]
pub struct Outcome {
    pub responses: Vec<Message>,
    /// Why there are no more.
    pub end: Stop,
}

impl Outcome {
    pub fn statuses(&self) -> Vec<u16> {
        self.responses.iter().map(Message::status).collect()
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.end, Stop::End | Stop::Reset)
    }
}

impl Front {
    pub fn new(backends: &[SocketAddr]) -> Self {
        Self::with(backends, |_| {})
    }

    /// With one worker, so that what one client leaves behind is what the next one finds.
    pub fn with(backends: &[SocketAddr], change: impl FnOnce(&mut Config)) -> Self {
        let bed = Bed::with(|config| {
            config.workers = 1;
            change(config);
        });
        let port = bed.port();
        let front = Self { bed, port };
        front.publish(backends);
        front.bed.until_bound(port);
        front
    }

    pub fn publish(&self, backends: &[SocketAddr]) {
        let node = |(id, at): (u64, &SocketAddr)| Node::new(id, vec![http_app("web", self.port, *at, &[], "/")]);
        self.bed.publish(&(1..).zip(backends).map(node).collect::<Vec<_>>());
    }

    pub fn client(&self) -> Client {
        Client::new(self.bed.connect(self.port))
    }

    /// A request on a connection of its own, and its response.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Message {
        let mut client = self.client();
        client.send(&request);
        let method = String::from_utf8_lossy(request.as_ref().split(|byte| *byte == b' ').next().unwrap()).into_owned();
        client.response(&method)
    }

    pub fn get(&self, path: &str) -> Message {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n"))
    }
}

/// A client of raw bytes that reads strictly.
pub struct Client {
    pub stream: TcpStream,
    pub reader: Reader,
}

impl Client {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        let reader = Reader::new(&stream);
        Self { stream, reader }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends as much as is taken.
    pub fn offer(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// A final response, whatever interim ones come before.
    pub fn response(&mut self, method: &str) -> Message {
        self.reader.response(method).expect("a response").1
    }

    /// Reads responses until the connection ends, or nothing comes within `limit`. The first is one to `method`.
    pub fn outcome(&mut self, method: &str, limit: Duration) -> Outcome {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        let mut responses = Vec::new();
        let end = loop {
            match self.reader.response(if responses.is_empty() { method } else { "" }) {
                Ok((_, response)) => responses.push(response),
                Err(end) => break end,
            }
        };
        self.stream.set_read_timeout(Some(SOON)).unwrap();
        Outcome { responses, end }
    }
}
