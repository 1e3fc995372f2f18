//! Which of several certificates is for which host. Pure: names go in, places in the list come out.

use std::collections::HashMap;

/// The certificates by the names in them.
#[derive(Debug, Default)]
pub(super) struct Names {
    exact: HashMap<String, Vec<usize>>,
    /// Wildcards by what follows the `*.`; they cover one label.
    wildcard: HashMap<String, Vec<usize>>,
}

impl Names {
    /// The names (lower case) of each certificate, in order of preference.
    pub(super) fn new<'n>(certificates: impl IntoIterator<Item = &'n [String]>) -> Self {
        let mut all = Self::default();
        for (at, names) in certificates.into_iter().enumerate() {
            for name in names {
                let places = match name.strip_prefix("*.") {
                    Some(parent) => all.wildcard.entry(parent.to_owned()).or_default(),
                    None => all.exact.entry(name.clone()).or_default(),
                };
                if places.last() != Some(&at) {
                    places.push(at);
                }
            }
        }
        all
    }

    /// The certificates for a host (lower case, no final dot), the preferred first: those that name it, else those
    /// with a wildcard for it. Several when they are of several kinds, for old clients and new ones.
    pub(super) fn find(&self, host: &str) -> &[usize] {
        self.exact.get(host).map_or_else(|| self.wildcards(host), Vec::as_slice)
    }

    /// The certificates with a wildcard for a host: what is left for a client that can make nothing of those that name it.
    pub(super) fn wildcards(&self, host: &str) -> &[usize] {
        let wildcard = || self.wildcard.get(host.split_once('.')?.1);
        wildcard().map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether a request for `host` may come over a connection that asked for the certificate of `sni`: the name is the
    /// same, or has the same certificate (that is how a browser uses one connection for several names). Over a
    /// connection that asked for none, the first certificate was served, and a host that no certificate is for is no
    /// worse there than elsewhere: an address, say.
    pub(super) fn covers(&self, sni: Option<&str>, host: &str) -> bool {
        const DEFAULT: &[usize] = &[0];
        if sni == Some(host) {
            return true;
        }
        let served = match sni.map(|sni| self.find(sni)) {
            None | Some([]) => DEFAULT,
            Some(some) => some,
        };
        match self.find(host) {
            [] => sni.is_none(),
            wanted => wanted.iter().any(|at| served.contains(at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(certificates: &[&[&str]]) -> Names {
        let certificates: Vec<Vec<String>> =
            certificates.iter().map(|names| names.iter().map(|name| (*name).to_owned()).collect()).collect();
        Names::new(certificates.iter().map(Vec::as_slice))
    }

    #[test]
    fn an_exact_name_beats_a_wildcard_and_the_first_of_equals_is_preferred() {
        let names = names(&[&["*.a.com"], &["x.a.com", "a.com"], &["*.a.com", "x.a.com", "x.a.com"]]);
        assert_eq!(names.find("x.a.com"), [1, 2]);
        assert_eq!(names.find("y.a.com"), [0, 2]);
        assert_eq!(names.wildcards("x.a.com"), [0, 2]);
        assert_eq!(names.find("a.com"), [1]);
        for none in ["z.y.a.com", "b.com", "com", "", ".a", "*.b.com"] {
            assert!(names.find(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn a_request_may_come_where_its_own_certificate_was_served() {
        let names = names(&[&["a.com", "www.a.com", "*.shop.a.com"], &["b.com"], &["b.com"]]);
        for (sni, host) in [
            (Some("a.com"), "a.com"),
            (Some("a.com"), "www.a.com"),
            (Some("www.a.com"), "x.shop.a.com"),
            (Some("b.com"), "b.com"),
            // Nobody's name, asked for and got all the same.
            (Some("c.com"), "c.com"),
            // Without a name the first certificate is served.
            (None, "a.com"),
            (None, "10.0.0.1"),
            (None, "c.com"),
            // An unknown name gets the first one too.
            (Some("c.com"), "a.com"),
        ] {
            assert!(names.covers(sni, host), "{sni:?} {host}");
        }
        for (sni, host) in [
            (Some("a.com"), "b.com"),
            (Some("b.com"), "a.com"),
            (Some("a.com"), "c.com"),
            (Some("c.com"), "d.com"),
            (Some("c.com"), "b.com"),
            (Some("a.com"), "y.x.shop.a.com"),
            (None, "b.com"),
        ] {
            assert!(!names.covers(sni, host), "{sni:?} {host}");
        }
    }
}
