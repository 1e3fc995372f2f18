//! The first message of a TLS client: the name in it is the one that rustls finds, if both find one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = scrimp::proxy::tls::testing::name_in_hello(bytes);
});
