//! What is sealed, forged and damaged.
#![no_main]

use std::cell::RefCell;

use scrimp::gossip::testing::Envelopes;

thread_local! {
    static ENVELOPES: RefCell<Envelopes> = RefCell::default();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ENVELOPES.with_borrow_mut(|envelopes| envelopes.open(bytes)));
