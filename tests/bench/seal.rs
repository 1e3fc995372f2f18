//! What it costs to seal, to open, and to drop what does not open: `cargo bench --features testing --bench seal`.
//! Fails if a drop takes more than 5 µs.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use scrimp::gossip::ClusterKey;
use scrimp::gossip::sealing::{Receiver, Sender};

const ROUNDS: usize = 1_000_000;
const DROP_NS_MAX: f64 = 5000.0;

/// The time for one of many, without that for copying it.
fn measure(what: &str, envelopes: &[Vec<u8>], mut each: impl FnMut(&mut [u8])) -> f64 {
    let mut buffer = [0; 1500];
    let mut round = |is_counted: bool| {
        let began = Instant::now();
        for envelope in envelopes.iter().cycle().take(ROUNDS) {
            let bytes = &mut buffer[..envelope.len()];
            bytes.copy_from_slice(envelope);
            if is_counted {
                each(black_box(bytes));
            } else {
                black_box(bytes);
            }
        }
        began.elapsed().as_nanos() as f64 / ROUNDS as f64
    };
    let copying = round(false);
    let took = round(true) - copying;
    println!("{what:<44} {took:>8.0} ns");
    took
}

fn main() {
    let keys = [ClusterKey([1; 32]), ClusterKey([2; 32])];
    for bytes in [100, 1100] {
        println!("messages of {bytes} bytes");
        let message = vec![7; bytes];
        let sender = Sender::new("bench", &keys);
        let mut receiver = Receiver::new("bench", &keys);
        let seal: Vec<Vec<u8>> = (0..ROUNDS).map(|_| sender.seal(&message)).collect();
        measure("seal", &seal[..1], |_| drop(black_box(sender.seal(&message))));
        measure("open", &seal, |bytes| assert_eq!(receiver.open(bytes), Ok(())));
        let recorded = &seal[..64];
        let changed = |change: &dyn Fn(usize, &mut Vec<u8>)| {
            let change = |(at, mut bytes): (usize, Vec<u8>)| {
                change(at, &mut bytes);
                bytes
            };
            recorded.iter().cloned().enumerate().map(change).collect::<Vec<_>>()
        };
        let other_key = Sender::new("bench", &keys[1..]);
        let other_key = (0..64).map(|_| other_key.seal(&message)).collect::<Vec<_>>();
        let mut one_key = Receiver::new("bench", &keys[..1]);
        let mut elsewhere = Receiver::new("other", &keys);
        let took = [
            measure("drop: replayed", recorded, |bytes| assert_eq!(receiver.open(bytes), Err("replayed"))),
            measure("drop: another key", &other_key, |bytes| assert_eq!(one_key.open(bytes), Err("unknown key"))),
            measure("drop: another cluster, our key", recorded, |bytes| {
                assert_eq!(elsewhere.open(bytes), Err("unauthenticated"));
            }),
            // The last byte of the counter stays: a counter that is new and never the newest.
            measure("drop: forged, a session that is known", &changed(&|_, bytes| bytes[18] = 1), |bytes| {
                assert_eq!(receiver.open(bytes), Err("unauthenticated"));
            }),
            measure("drop: forged, a session of nobody", &changed(&|at, bytes| bytes[2..18].fill(at as u8)), |bytes| {
                assert_eq!(receiver.open(bytes), Err("unauthenticated"));
            }),
            measure("drop: cut short", &changed(&|_, bytes| bytes.truncate(41)), |bytes| {
                assert_eq!(receiver.open(bytes), Err("malformed"));
            }),
            measure("drop: noise", &changed(&|at, bytes| bytes.fill(at as u8)), |bytes| {
                assert_eq!(receiver.open(bytes), Err("malformed"));
            }),
        ];
        let most = took.into_iter().fold(0.0, f64::max);
        assert!(most <= DROP_NS_MAX, "a drop takes {most:.0} ns");
    }
}
