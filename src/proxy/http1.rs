//! HTTP/1.1, both sides of it.
//!
//! `head`, `fields` and `chunked` decide what is taken and how it is written, and touch nothing.

pub(super) mod chunked;
pub(super) mod fields;
pub(super) mod head;
#[cfg(feature = "testing")]
pub mod testing;
