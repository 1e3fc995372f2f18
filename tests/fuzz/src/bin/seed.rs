//! What lies in a seed store, and the address of one.
#![no_main]

use scrimp::seed::testing::node_of_listed;
use scrimp::seed::{ADDRESSES_MAX, SeedObject, SeedUrl};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match kind % 3 {
        0 => read_object(bytes),
        1 => {
            let _ = node_of_listed(&text);
        }
        _ => read_url(&text),
    }
});

fn read_object(bytes: &[u8]) {
    let node = "lb-1".parse().unwrap();
    if let Ok(object) = SeedObject::read(&node, bytes) {
        assert!((1..=ADDRESSES_MAX).contains(&object.addresses.len()) && object.node == node);
        let again = SeedObject::read(&node, &object.to_json()).expect("what was read can be read again");
        assert_eq!((&again.addresses, again.epoch), (&object.addresses, object.epoch));
    }
}

fn read_url(text: &str) {
    match text.parse::<SeedUrl>() {
        Ok(url) => assert_eq!(url.to_string().parse(), Ok(url)),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}
