//! What a request touches: the nouns that all rooms share, the pools, and the proxy.
//!
//! A crate of its own for one reason: it is built to be fast, and all the rest to be small. `scrimp` has its modules as
//! its own, so that nobody else needs to know.

pub mod app;
pub mod backend;
pub mod balance;
pub mod certificate;
pub mod member;
pub mod name;
pub mod pool;
pub mod proxy;
pub mod report;
