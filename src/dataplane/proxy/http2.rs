//! HTTP/2: clients in front, and backends that speak it without TLS (`h2c`).
//!
//! The protocol is the crate `h2`'s. What is here is around it: `frames` follows what a peer sends by its frames' heads
//! alone, `meter` decides when a peer makes us work for nothing, `wire` is the connection on which both look. `gate`
//! says which requests are taken, `intake` takes their bodies. `client` serves a client's connection, `stream` one request of it; from there a request
//! goes the way of every other (`forward`), to a backend of HTTP/1.1 or, over one connection for many requests
//! (`links`), to one of HTTP/2 (`exchange`).

mod client;
mod exchange;
mod frames;
mod gate;
mod intake;
mod links;
mod meter;
mod stock;
mod stream;
mod wire;

pub(super) use client::serve;
pub(super) use exchange::run;
pub(super) use frames::PREFACE;
pub(super) use links::Links;

/// The largest frame that is taken: what every peer must take.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// What a peer may send on one stream before we have passed it on.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
