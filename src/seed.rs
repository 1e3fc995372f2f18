//! Where nodes find each other: seed stores.
