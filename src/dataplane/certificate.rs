//! Certificates as files: which hosts they are for, and until when.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

/// A certificate chain and its key, as paths to PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The chain, the leaf first.
    pub chain: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
}

/// All certificates of a PEM file, in its order; none if something in it is no certificate, or nothing is.
#[must_use]
pub fn read_chain(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    (!chain.is_empty() && chain.iter().all(|certificate| EndEntityCert::try_from(certificate).is_ok())).then_some(chain)
}

/// The DNS names that a certificate is for, in lower case, wildcards as `*.example.com`.
#[must_use]
pub fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_dns_names().map(str::to_ascii_lowercase).collect()
}

/// Whether a certificate with this name in it is for `host`, or, if that is a wildcard, for every host one label below
/// it. Both in lower case.
#[must_use]
pub fn covers(name: &str, host: &str) -> bool {
    let parent = host.split_once('.').map(|(_, parent)| parent);
    name == host || name.strip_prefix("*.").is_some_and(|below| Some(below) == parent)
}

/// From when and until when a certificate is valid; none if it does not say so.
#[must_use]
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    // Time is the first thing that is judged of a certificate; who asks at the wrong one is told the right one.
    let judged = |at| {
        let time = UnixTime::since_unix_epoch(at);
        certificate.verify_for_usage(&[], &[], &[], time, KeyUsage::server_auth(), None, None).err()
    };
    let system = |time: UnixTime| UNIX_EPOCH + Duration::from_secs(time.as_secs());
    match (judged(Duration::ZERO)?, judged(Duration::from_secs(u64::MAX))?) {
        (webpki::Error::CertNotValidYet { not_before, .. }, webpki::Error::CertExpired { not_after, .. }) => {
            Some((system(not_before), system(not_after)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_name_covers_one_label() {
        assert!(covers("example.com", "example.com") && covers("*.example.com", "www.example.com"));
        assert!(covers("*.example.com", "*.example.com"));
        assert!(!covers("*.example.com", "example.com") && !covers("*.example.com", "a.b.example.com"));
        assert!(!covers("example.com", "www.example.com") && !covers("*.com", "com"));
    }

    #[test]
    fn what_is_no_chain_is_none() {
        let (begin, end) = ("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n");
        assert_eq!(read_chain(b""), None);
        assert_eq!(read_chain(b"hello"), None);
        assert_eq!(read_chain(format!("{begin}AAAA\n{end}").as_bytes()), None);
        assert_eq!(read_chain(format!("{begin}!!\n{end}").as_bytes()), None);
    }

    #[test]
    fn a_certificate_says_whom_it_is_for_and_how_long() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut wanted =
            rcgen::CertificateParams::new(["Shop.example".to_owned(), "*.shop.example".to_owned()]).unwrap();
        wanted.not_before = rcgen::date_time_ymd(2020, 1, 1);
        wanted.not_after = rcgen::date_time_ymd(2020, 1, 2);
        let chain = read_chain(wanted.self_signed(&key).unwrap().pem().as_bytes()).unwrap();
        assert_eq!(dns_names(&chain[0]), ["shop.example", "*.shop.example"]);
        let day = |number: u64| UNIX_EPOCH + Duration::from_secs(number * 24 * 3600);
        assert_eq!(validity(&chain[0]), Some((day(18262), day(18263))));
    }
}
