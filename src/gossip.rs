//! Membership by encrypted gossip.
