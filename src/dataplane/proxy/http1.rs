//! HTTP/1.1, both sides of it.
//!
//! `head`, `fields` and `chunked` decide what is taken and how it is written, and touch nothing. `client` serves a
//! client's connection, `exchange` has one request answered over a backend's; bytes are relayed from the buffer in which
//! they arrived. One task does all of it, for a client and for its backend, and nothing is handed to another.

mod body;
pub(super) mod buffer;
pub(super) mod chunked;
mod client;
pub(super) mod exchange;
pub(super) mod fields;
pub(super) mod head;
#[cfg(feature = "testing")]
pub mod testing;

pub(super) use client::{put_date, serve};
