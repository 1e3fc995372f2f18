//! The network between the hosts: what it loses, delays, doubles and cuts.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;

/// A packet that lost its place in some queue on the way comes so late.
const SPIKE: Duration = Duration::from_secs(2);

/// Loss that comes in bursts (Gilbert-Elliott): a link is good or bad for random times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bursts {
    /// The mean time between two bad times of one link.
    pub(super) good: Duration,
    /// The mean length of a bad time.
    pub(super) bad: Duration,
    /// No bad time is longer.
    pub(super) longest: Duration,
    /// What a bad link loses, 0 to 1.
    pub(super) loss: f64,
}

/// The network. Links are directed; a host is its place.
#[derive(Debug)]
pub(super) struct Network {
    /// What each direction loses, 0 to 1.
    pub(super) loss: f64,
    /// The shortest and the longest delay, uniform between.
    pub(super) delay: (Duration, Duration),
    /// How many datagrams of one arrive twice.
    pub(super) doubled: f64,
    /// How many datagrams of one arrive two seconds late.
    pub(super) spikes: f64,
    pub(super) bursts: Option<Bursts>,
    /// Single links that carry nothing.
    pub(super) cut: HashSet<(u32, u32)>,
    /// Which part of the network each host is in.
    pub(super) parts: Vec<u8>,
    /// From which part to which nothing is carried.
    pub(super) cut_parts: HashSet<(u8, u8)>,
    /// Hosts that receive nothing.
    pub(super) deaf: HashSet<u32>,
    /// Hosts that are reached by, and reach, one other only.
    pub(super) only: HashMap<u32, u32>,
    pub(super) links: HashMap<(u32, u32), Link>,
}

/// How one link is, in a network with bursts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    is_bad: bool,
    until: Instant,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            loss: 0.0,
            delay: (Duration::from_millis(1), Duration::from_millis(20)),
            doubled: 0.0,
            spikes: 0.0,
            bursts: None,
            cut: HashSet::new(),
            parts: Vec::new(),
            cut_parts: HashSet::new(),
            deaf: HashSet::new(),
            only: HashMap::new(),
            links: HashMap::new(),
        }
    }
}

impl Network {
    /// One that is as bad as the benchmark's are unless a case says otherwise.
    pub(super) fn ordinary() -> Self {
        Self { loss: 0.01, doubled: 0.001, spikes: 0.000_01, ..Self::default() }
    }

    /// Whether anything is carried from one host to another at all.
    pub(super) fn is_open(&self, from: u32, to: u32) -> bool {
        let part = |host: u32| self.parts.get(host as usize).copied().unwrap_or_default();
        let only = |host: u32, other: u32| self.only.get(&host).is_none_or(|only| *only == other);
        !self.deaf.contains(&to)
            && only(from, to)
            && only(to, from)
            && (self.cut.is_empty() || !self.cut.contains(&(from, to)))
            && (self.cut_parts.is_empty() || !self.cut_parts.contains(&(part(from), part(to))))
    }

    /// After which delays a datagram arrives: never, once or twice.
    pub(super) fn carry(&mut self, rng: &mut StdRng, now: Instant, from: u32, to: u32) -> [Option<Duration>; 2] {
        if !self.is_open(from, to) || self.is_lost(rng, now, from, to) {
            return [None, None];
        }
        let late = if self.spikes > 0.0 && rng.random_bool(self.spikes) { SPIKE } else { Duration::ZERO };
        let first = self.one_way(rng) + late;
        let again = self.doubled > 0.0 && rng.random_bool(self.doubled);
        [Some(first), again.then(|| self.one_way(rng))]
    }

    /// How long a stream takes for one question and `bytes` of answer: a round trip to connect, one more until the
    /// first window is there, then twice as much with each, from ten segments of 1,460 bytes (RFC 6928). A loss
    /// costs the least retransmission timeout, 200 ms on Linux.
    pub(super) fn stream(&self, rng: &mut StdRng, bytes: usize) -> Duration {
        let (mut window, mut sent, mut rounds) = (10 * 1460, 0, 2);
        while sent < bytes {
            sent += window;
            window *= 2;
            rounds += 1;
        }
        let mut took = Duration::ZERO;
        for _ in 0..rounds {
            took += self.one_way(rng) + self.one_way(rng);
            if rng.random_bool(self.loss) {
                took += Duration::from_millis(200);
            }
        }
        took
    }

    fn one_way(&self, rng: &mut StdRng) -> Duration {
        let (least, most) = (self.delay.0.as_micros() as u64, self.delay.1.as_micros() as u64);
        Duration::from_micros(rng.random_range(least..=most))
    }

    fn is_lost(&mut self, rng: &mut StdRng, now: Instant, from: u32, to: u32) -> bool {
        let mut loss = self.loss;
        if let Some(bursts) = self.bursts {
            let link = self.links.entry((from, to)).or_insert(Link { is_bad: true, until: now });
            while link.until <= now {
                link.is_bad = !link.is_bad;
                let mean = if link.is_bad { bursts.bad } else { bursts.good };
                // Exponential times make the link forget how long it has been as it is.
                let time = mean.mul_f64(-rng.random_range(f64::EPSILON..1.0).ln());
                link.until += if link.is_bad { time.min(bursts.longest) } else { time };
            }
            if link.is_bad {
                loss = bursts.loss;
            }
        }
        loss > 0.0 && rng.random_bool(loss)
    }
}
