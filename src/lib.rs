//! scrimp: a self-discovering load balancer.
pub mod admin;
pub mod app;
pub mod balance;
pub mod cli;
pub mod command;
pub mod config;
pub mod demo;
pub mod generate;
pub mod gossip;
pub mod health;
pub mod member;
pub mod name;
pub mod node;
pub mod pool;
pub mod proxy;
pub mod report;
pub mod seed;
