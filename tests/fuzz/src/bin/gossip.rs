//! What arrives: messages, records, applications, frames; and a live node that is told all of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((0, bytes)) => scrimp::gossip::testing::decode(bytes),
        Some((_, bytes)) => scrimp::gossip::testing::live(bytes),
        None => {}
    }
});
