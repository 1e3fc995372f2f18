//! The first bytes of a connection: a header is a header whatever follows it, and a part of one is never more or less.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| scrimp::proxy::check_proxy_protocol(bytes));
