//! What somebody without the key can send: what was recorded, whole, changed or cut, and what is of others.

#![allow(dead_code, unreachable_pub)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Where an envelope's counter and its sealed part begin.
const COUNTER_AT: usize = 18;
const SEALED_AT: usize = 26;

/// Passes datagrams on, and keeps the first of them: somebody on the way.
pub struct Relay {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Relay {
    /// Ends with the test's process. Without a goal it swallows what it sees.
    pub fn start(to: Option<SocketAddr>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (address, seen) = (socket.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let record = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            while let Ok((length, _)) = socket.recv_from(&mut buffer) {
                if let Some(to) = to {
                    let _ = socket.send_to(&buffer[..length], to);
                }
                let mut record = record.lock().unwrap();
                if record.len() < 200 {
                    record.push(buffer[..length].to_vec());
                }
            }
        });
        Self { address, seen }
    }

    /// The first datagrams, once there are so many.
    pub fn recorded(&self, count: usize) -> Vec<Vec<u8>> {
        let began = Instant::now();
        loop {
            let seen = self.seen.lock().unwrap().clone();
            if seen.len() >= count {
                return seen;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "only {} of {count} were recorded", seen.len());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// One kind of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Recorded, as it was.
    Replayed,
    /// A real header with a counter to come, half of them with a session of nobody; the rest is made up.
    Forged,
    /// Well sealed, with another key or for another cluster.
    Foreign,
    /// Recorded, with a bit flipped.
    Flipped,
    /// Recorded, cut short.
    Cut,
    /// Random bytes of any length, half of which begin as an envelope does.
    Noise,
}

/// Sends so many of a kind, never more at once than the receiver's buffer holds, and waits until all are counted as
/// dropped. Nothing may come back.
pub struct Flood<'a> {
    pub to: SocketAddr,
    pub ours: &'a [Vec<u8>],
    pub foreign: &'a [Vec<u8>],
    pub batch: u64,
    pub dropped: &'a dyn Fn() -> u64,
    pub random: fastrand::Rng,
}

impl Flood<'_> {
    pub fn send(&mut self, kind: Kind, count: u64) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let before = (self.dropped)();
        let mut sent = 0;
        while sent < count {
            let batch = self.batch.min(count - sent);
            for _ in 0..batch {
                let datagram = self.make(kind);
                while socket.send_to(&datagram, self.to).is_err() {}
            }
            sent += batch;
            let began = Instant::now();
            while (self.dropped)() - before < sent {
                let dropped = (self.dropped)() - before;
                assert!(began.elapsed() < Duration::from_secs(20), "{kind:?}: {dropped} of {sent} were dropped");
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        assert_eq!((self.dropped)() - before, count, "{kind:?}: what was dropped is what was sent, and no more");
        socket.set_nonblocking(true).unwrap();
        let answer = socket.recv_from(&mut [0; 2000]).map_err(|error| error.kind());
        assert_eq!(answer, Err(std::io::ErrorKind::WouldBlock), "{kind:?} was answered");
    }

    fn make(&mut self, kind: Kind) -> Vec<u8> {
        let random = &mut self.random;
        let from = if kind == Kind::Foreign { self.foreign } else { self.ours };
        let mut bytes = from[random.usize(..from.len())].clone();
        match kind {
            Kind::Replayed | Kind::Foreign => {}
            Kind::Forged => {
                if random.bool() {
                    random.fill(&mut bytes[2..COUNTER_AT]);
                }
                let counter = random.u64(1 << 32..1 << 63);
                bytes[COUNTER_AT..SEALED_AT].copy_from_slice(&counter.to_be_bytes());
                random.fill(&mut bytes[SEALED_AT..]);
            }
            Kind::Flipped => {
                let bit = random.usize(..bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            Kind::Cut => bytes.truncate(random.usize(..bytes.len())),
            Kind::Noise => {
                bytes = vec![0; random.usize(..1400)];
                random.fill(&mut bytes);
                if let (Some(first), true) = (bytes.first_mut(), random.bool()) {
                    *first = 0x51;
                }
            }
        }
        bytes
    }
}
