//! What will happen, in order of time; what is due at one instant happens in the order in which it was planned.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::time::Instant;

use crate::gossip::record::AppsDigest;
use crate::member::NodeId;

/// One thing that will happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A datagram arrives at a host.
    Datagram { to: u32, bytes: Vec<u8> },
    /// A timer of a host is due. It may have been put off since: the host knows.
    Wake { host: u32 },
    /// A host that was held up gets its turn.
    Turn { host: u32, run: u32 },
    /// Something arrives that only one run of a host has waited for.
    Own { host: u32, run: u32, what: Own },
    /// A host reads the store of seeds.
    Read { host: u32, run: u32 },
    /// A host writes itself to the store of seeds.
    Write { host: u32, run: u32 },
}

/// What only one run of a host has waited for.
#[derive(Debug)]
pub(super) enum Own {
    /// A pull ends, well if its owner is still there.
    PullEnds { owner: u32, node: NodeId, digest: AppsDigest },
    /// A pull has failed.
    PullFails { node: NodeId, digest: AppsDigest },
    /// A silent seed was asked over TCP.
    Contacted { addr: SocketAddr, outcome: String },
    /// The store of seeds was read.
    Found(Vec<SocketAddr>),
}

#[derive(Debug)]
struct Entry {
    due: Instant,
    place: u64,
    event: Event,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Entry>,
    pushed: u64,
}

impl Queue {
    pub(super) fn push(&mut self, due: Instant, event: Event) {
        self.pushed += 1;
        self.heap.push(Entry { due, place: self.pushed, event });
    }

    /// The next event, if it is due by `until`.
    pub(super) fn pop(&mut self, until: Instant) -> Option<(Instant, Event)> {
        if self.heap.peek()?.due > until {
            return None;
        }
        self.heap.pop().map(|entry| (entry.due, entry.event))
    }
}

// The heap gives the greatest first: the earliest is the greatest.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.place).cmp(&(self.due, self.place))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
