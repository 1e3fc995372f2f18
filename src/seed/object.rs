//! What a balancer leaves in a store, so that others find it.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::name::NodeName;

/// More than this is not read: an object of ours has a few hundred bytes.
pub const OBJECT_BYTES_MAX: usize = 64 * 1024;
/// More addresses than this are cut off.
pub const ADDRESSES_MAX: usize = 16;

/// One balancer's entry. As JSON:
/// `{"version":1,"node":"lb-1","addresses":["10.0.0.1:7377"],"epoch":1,"written_at":"2026-01-31T12:00:00Z"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct SeedObject {
    /// Whose it is; also the object's name.
    pub node: NodeName,
    /// Where its gossip is reached: at least one, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
    /// Which run of the node wrote it: a later run has a higher one.
    pub epoch: u64,
    /// When it was written, by its writer's clock, to the second.
    pub written_at: SystemTime,
}

impl SeedObject {
    /// Reads an object that somebody, perhaps a stranger, left under the name of `node`.
    ///
    /// # Errors
    /// In words, if it is not an entry of this node.
    pub fn read(node: &NodeName, bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > OBJECT_BYTES_MAX {
            return Err(format!("larger than {} KiB", OBJECT_BYTES_MAX / 1024));
        }
        let object: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if object.node == *node { Ok(object) } else { Err(format!("it speaks of node {}", object.node)) }
    }

    /// The object as it is stored.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, numbers and a list: nothing in it can fail to be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// How long ago it was written; zero if its writer's clock is ahead of ours.
    #[must_use]
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.written_at).unwrap_or_default()
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    node: NodeName,
    addresses: Vec<SocketAddr>,
    epoch: u64,
    written_at: String,
}

impl TryFrom<Wire> for SeedObject {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        if wire.version != 1 {
            return Err(format!("version {} is not known here", wire.version));
        }
        let mut addresses = wire.addresses;
        addresses.retain(|address| {
            let ip = address.ip();
            address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
        });
        addresses.truncate(ADDRESSES_MAX);
        if addresses.is_empty() {
            return Err("it holds no address that can be reached".to_owned());
        }
        let written_at = humantime::parse_rfc3339(&wire.written_at)
            .map_err(|_| "written_at is not a time like 2026-01-31T12:00:00Z".to_owned())?;
        Ok(Self { node: wire.node, addresses, epoch: wire.epoch, written_at })
    }
}

impl From<SeedObject> for Wire {
    fn from(object: SeedObject) -> Self {
        Self {
            version: 1,
            node: object.node,
            addresses: object.addresses,
            epoch: object.epoch,
            written_at: humantime::format_rfc3339_seconds(object.written_at).to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        "lb-1".parse().unwrap()
    }

    #[test]
    fn the_json_is_the_contracts() {
        let object = SeedObject {
            node: node(),
            addresses: vec!["10.0.0.1:7377".parse().unwrap(), "[2001:db8::1]:7377".parse().unwrap()],
            epoch: 7,
            written_at: humantime::parse_rfc3339("2026-01-31T12:00:00Z").unwrap(),
        };
        let json = r#"{"version":1,"node":"lb-1","addresses":["10.0.0.1:7377","[2001:db8::1]:7377"],"epoch":7,"written_at":"2026-01-31T12:00:00Z"}"#;
        assert_eq!(String::from_utf8(object.to_json()).unwrap(), json);
        assert_eq!(SeedObject::read(&node(), json.as_bytes()).unwrap(), object);
        let more = json.replace("\"epoch\"", "\"later\":{\"x\":[1]},\"epoch\"");
        assert_eq!(SeedObject::read(&node(), more.as_bytes()).unwrap(), object, "unknown fields are ignored");
    }

    #[test]
    fn nonsense_is_refused() {
        let good = r#"{"version":1,"node":"lb-1","addresses":["10.0.0.1:7377"],"epoch":7,"written_at":"2026-01-31T12:00:00Z"}"#;
        SeedObject::read(&node(), good.as_bytes()).unwrap();
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("lb-1", "lb-2"),
            ("lb-1", "../lb-1"),
            ("10.0.0.1:7377", "10.0.0.1"),
            ("10.0.0.1:7377", "10.0.0.1:0"),
            ("10.0.0.1:7377", "0.0.0.0:7377"),
            ("10.0.0.1:7377", "224.0.0.1:7377"),
            ("\"10.0.0.1:7377\"", ""),
            ("2026-01-31T12:00:00Z", "yesterday"),
            ("\"epoch\":7", "\"epoch\":7,\"epoch\":8"),
            ("\"epoch\":7", "\"epoch\":-1"),
            ("}", ""),
            ("{", "\u{feff}{"),
            (good, "<html>not found</html>"),
            (good, ""),
        ] {
            let bad = good.replace(from, to);
            assert!(SeedObject::read(&node(), bad.as_bytes()).is_err(), "{bad}");
        }
        let huge = format!("{good}{}", " ".repeat(OBJECT_BYTES_MAX));
        assert!(SeedObject::read(&node(), huge.as_bytes()).unwrap_err().contains("64 KiB"));
    }

    #[test]
    fn addresses_past_the_limit_are_cut_off() {
        let list: Vec<String> = (1..=40).map(|last| format!("\"10.0.0.{last}:7377\"")).collect();
        let json = format!(
            r#"{{"version":1,"node":"lb-1","addresses":[{}],"epoch":7,"written_at":"2026-01-31T12:00:00Z"}}"#,
            list.join(",")
        );
        assert_eq!(SeedObject::read(&node(), json.as_bytes()).unwrap().addresses.len(), ADDRESSES_MAX);
    }
}
