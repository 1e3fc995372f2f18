//! What a node says of itself: its record, written by itself alone and versioned.
//!
//! The record is small and travels in one datagram: name, role, the state of each application, and the
//! applications themselves where they fit. Where they do not, it carries their digest, and whoever wants them
//! pulls them from their owner over TCP.

use std::sync::Arc;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::app::{App, AppState, OFFER_BYTES_MAX, Offer};
use crate::member::{NodeId, Role};
use crate::name::NodeName;

/// The longest record that is sent inline: with its envelope and its stamp it stays below the 1,200 bytes that
/// every path carries whole (IPv6's least MTU of 1,280, less headers).
const RECORD_BYTES_MAX: usize = 1060;

/// Applications by content: the first half of the SHA-256 of their encoding.
pub(crate) type AppsDigest = [u8; 16];

/// One node's word about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Who speaks.
    pub(crate) node: NodeId,
    /// Which word this is; grows by one at each change.
    pub(crate) version: u32,
    /// The node's name.
    pub(crate) name: NodeName,
    /// What it is for.
    pub(crate) role: Role,
    /// Whether it is saying goodbye.
    pub(crate) is_leaving: bool,
    /// The state of each application, in the order of the applications.
    pub(crate) states: Vec<AppState>,
    /// The applications.
    pub(crate) apps: Apps,
}

/// Applications, or what to ask their owner for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Apps {
    Inline(Vec<App>),
    Digest(AppsDigest),
}

impl Record {
    /// The record as one datagram carries it: with digest if it must.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let whole = postcard_bytes(self);
        match &self.apps {
            Apps::Inline(apps) if whole.len() > RECORD_BYTES_MAX => {
                let digest = Apps::Digest(digest_of(&encode_apps(apps)));
                postcard_bytes(&Self { apps: digest, ..self.clone() })
            }
            _ => whole,
        }
    }

    /// Reads a record that travelled; none if it is not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (mut record, rest): (Self, _) = postcard::take_from_bytes(bytes).ok()?;
        if !rest.is_empty() {
            return None;
        }
        if let Apps::Inline(apps) = &mut record.apps {
            check_apps(apps).ok()?;
            (apps.len() == record.states.len()).then_some(())?;
        }
        Some(record)
    }
}

/// The bytes in which applications are pulled.
pub(crate) fn encode_apps(apps: &[App]) -> Vec<u8> {
    postcard_bytes(&apps)
}

/// Reads applications that were pulled, and checks them against their digest and all limits.
pub(crate) fn decode_apps(bytes: &[u8], digest: &AppsDigest) -> Result<Vec<App>, String> {
    if bytes.len() > OFFER_BYTES_MAX {
        return Err(format!("{} bytes of applications, more than the {OFFER_BYTES_MAX} allowed", bytes.len()));
    }
    if digest_of(bytes) != *digest {
        return Err("the applications are not those that were announced".to_owned());
    }
    let mut apps: Vec<App> = postcard::from_bytes(bytes).map_err(|error| format!("not applications: {error}"))?;
    check_apps(&mut apps)?;
    Ok(apps)
}

/// The offer that a record's states and its applications make; none if they do not belong together.
pub(crate) fn offer(apps: &[App], states: &[AppState]) -> Option<Arc<Offer>> {
    (apps.len() == states.len())
        .then(|| Arc::new(Offer { apps: apps.iter().cloned().zip(states.iter().copied()).collect() }))
}

pub(crate) fn digest_of(bytes: &[u8]) -> AppsDigest {
    let mut half = AppsDigest::default();
    half.copy_from_slice(&digest::digest(&digest::SHA256, bytes).as_ref()[..16]);
    half
}

/// Order matters here: states go by position, so applications must arrive as [`Offer`] sorts them.
fn check_apps(apps: &mut [App]) -> Result<(), String> {
    let sent = apps.to_vec();
    apps.iter_mut().for_each(App::normalize);
    if sent != apps || !apps.is_sorted() {
        return Err("the applications are not in their normal form".to_owned());
    }
    let offer = Offer { apps: apps.iter().map(|app| (app.clone(), AppState::Ready)).collect() };
    offer.check().map_err(|error| error.to_string())
}

fn postcard_bytes(value: &impl Serialize) -> Vec<u8> {
    // Vectors, strings and numbers only: postcard has no way to fail on them.
    postcard::to_allocvec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Protocol;
    use crate::name::{PathPrefix, Port, Weight};
    use proptest::prelude::*;

    pub(crate) fn app(name: &str, domains: usize) -> App {
        let mut app = App {
            name: name.parse().unwrap(),
            protocol: Protocol::Http,
            port: Port::new(8080).unwrap(),
            listen: Port::new(80).unwrap(),
            domains: (0..domains).map(|i| format!("{name}-{i}.example.com").parse().unwrap()).collect(),
            path: PathPrefix::root(),
            weight: Weight::default(),
            policy: None,
            proxy_protocol: None,
        };
        app.normalize();
        app
    }

    fn record(apps: Vec<App>) -> Record {
        Record {
            node: NodeId(7),
            version: 3,
            name: "web-1".parse().unwrap(),
            role: Role::Backend,
            is_leaving: false,
            states: vec![AppState::Ready; apps.len()],
            apps: Apps::Inline(apps),
        }
    }

    #[test]
    fn a_small_record_travels_whole() {
        let small = record(vec![app("a", 3), app("b", 0)]);
        assert_eq!(Record::decode(&small.encode()), Some(small));
    }

    #[test]
    fn every_strict_prefix_of_a_record_is_refused_and_so_is_more() {
        let bytes = record(vec![app("a", 1)]).encode();
        for length in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..length]), None, "{length} bytes");
        }
        assert_eq!(Record::decode(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn a_domain_with_a_semicolon_does_not_arrive() {
        let mut evil = record(vec![app("a", 1)]).encode();
        let at = evil.windows(11).position(|window| window == b"example.com").unwrap();
        evil[at + 7] = b';';
        assert_eq!(Record::decode(&evil), None);
    }

    #[test]
    fn a_large_one_travels_as_its_digest_and_fits_a_datagram() {
        let apps: Vec<App> = (0..256).map(|i| app(&format!("a{i:03}"), 4)).collect();
        let encoded = record(apps.clone()).encode();
        assert!(encoded.len() <= RECORD_BYTES_MAX, "{} bytes", encoded.len());
        let arrived = Record::decode(&encoded).unwrap();
        let bytes = encode_apps(&apps);
        let Apps::Digest(digest) = arrived.apps else { panic!("inline") };
        assert_eq!(decode_apps(&bytes, &digest).unwrap(), apps);
        assert_eq!(offer(&apps, &arrived.states).unwrap().apps.len(), 256);
        assert!(decode_apps(&bytes[1..], &digest).is_err());
        assert!(decode_apps(&bytes, &[0; 16]).is_err());
    }

    #[test]
    fn states_without_their_applications_are_refused() {
        let mut odd = record(vec![app("a", 1)]);
        odd.states.clear();
        assert_eq!(Record::decode(&odd.encode()), None);
    }

    #[test]
    fn applications_out_of_order_are_refused() {
        assert_eq!(Record::decode(&record(vec![app("b", 0), app("a", 0)]).encode()), None);
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&noise);
            let _ = decode_apps(&noise, &digest_of(&noise));
        }
    }
}
