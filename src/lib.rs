//! scrimp: a load balancer that finds its backends by itself.
//!
//! # Layout
//!
//! Rooms along the flow. Each owns its settings and shares only the nouns below it; `tests/layers.rs` holds the
//! direction.
//!
//! ```text
//!  S3, folder ◄── seed ──addresses──► gossip ──Roster──► pool ──Pools──► proxy ──► backends
//!  host:port                            ▲                    └────────► generate ──► nginx
//!                              Offer    │
//!  applications ◄── health ─────────────┘            admin shows what all of them publish
//!
//!  edge     main  demo  tools        what a person starts
//!  wiring   node                     the rooms of one role, the order of starting and ending
//!  meaning  config                   file, environment and flags as one checked value
//!  rooms    seed  gossip  proxy  generate  health  command  admin       never name each other
//!  pure     pool  balance            a roster in, pools out; a pool in, a backend out
//!  leaves   name  app  member  backend  certificate  report  address  log  cli
//! ```
//!
//! `dataplane` is the folder of what a request touches: `proxy`, `pool`, `balance` and the leaves that they name.
//!
//! Two values cross rooms as state, each through one `watch`: [`member::Roster`] (who is there, offering what) and
//! [`pool::Pools`] (who can serve what). Both are immutable snapshots: a late reader sees the present, and nobody
//! locks anybody.
//!
//! # What is absent
//!
//! - `proxy` and `generate` know nothing of gossip, `gossip` nothing of pools.
//! - Pure files never await, and take the time and randomness they need as arguments.
//! - Only `config` and the edge read the environment.
//! - No text from the network reaches a template, a log or a file name but as a type of [`name`].
//!
//! # Words
//!
//! A *node* is one running scrimp: a *balancer* or a *backend*. An *application* is a service that a backend
//! *offers*. The *roster* is the members of the cluster as gossip sees them. A *pool* is the backends that can
//! serve one *route* (listen port, host, path prefix). A *seed* is an address at which a node can join; a *seed store*
//! keeps them.

// What a request touches, the nouns among it, is a crate of its own, since it is built to be fast and the rest to be
// small (Cargo.toml, profiles). To everybody here it is rooms like the others.
pub use scrimp_dataplane::{app, backend, balance, certificate, member, name, pool, proxy, report};

pub mod address;
#[cfg(not(fuzzing))]
pub mod admin;
#[cfg(not(fuzzing))]
pub mod cli;
#[cfg(not(fuzzing))]
pub mod command;
#[cfg(not(fuzzing))]
pub mod config;
#[cfg(not(fuzzing))]
pub mod demo;
#[cfg(not(fuzzing))]
pub mod generate;
pub mod gossip;
pub mod health;
pub mod log;
#[cfg(not(fuzzing))]
pub mod node;
pub mod seed;
#[cfg(not(fuzzing))]
pub mod tools;
