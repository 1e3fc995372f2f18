//! Certificates from files, judged: every error names the file and what to do.

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error, InconsistentKeys};

use crate::certificate::{self, Certificate};

/// A chain with a key, or a bundle of authorities, is far shorter.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A certificate with its key, fit for use but perhaps for its age.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) key: Arc<CertifiedKey>,
    /// The names in it, in lower case.
    pub(super) names: Vec<String>,
    /// Why nobody will accept it today, if so.
    pub(super) out_of_time: Option<String>,
}

/// Reads one certificate and its key.
pub(super) fn load(files: &Certificate, provider: &CryptoProvider, now: SystemTime) -> Result<Loaded, String> {
    let chain = read_chain(&files.chain)?;
    let key = read_key(&files.key)?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| {
        format!(
            "the key in {} is of no kind that can be used: make an ECDSA key (P-256) or RSA (2048 bits)",
            files.key.display()
        )
    })?;
    let key = CertifiedKey::new(chain, key);
    match key.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(_) => return Err(mismatch(files, &key)),
    }
    judge_order(&files.chain, &key.cert)?;
    let leaf = key.cert.first().ok_or_else(|| no_certificate(&files.chain))?;
    Ok(Loaded {
        names: certificate::dns_names(leaf),
        out_of_time: certificate::validity(leaf).and_then(|validity| judge_time(&files.chain, validity, now)),
        key: Arc::new(key),
    })
}

/// The certificates in a file.
pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(path, "certificate")?;
    certificate::read_chain(&pem).ok_or_else(|| no_certificate(path))
}

fn no_certificate(path: &Path) -> String {
    format!(
        "{} holds no certificates in PEM form: give the path of the full chain, the site's own certificate first \
         (fullchain.pem)",
        path.display()
    )
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = read(path, "key")?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        let shown = path.display();
        if pem.windows(9).any(|window| window == b"ENCRYPTED") {
            format!("the key in {shown} is locked with a password: openssl pkey -in {shown} -out the file to be used")
        } else {
            format!("{shown} holds no private key in PEM form: give the path of the certificate's key (privkey.pem)")
        }
    })
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let failed = |error: std::io::Error| {
        let remedy = match error.kind() {
            ErrorKind::NotFound => ": correct lb.certificate, or put the file there",
            ErrorKind::PermissionDenied => {
                ": the user that scrimp runs as must be able to read it (with its group: chgrp scrimp, chmod 640)"
            }
            _ => "",
        };
        format!("cannot read the {what} {shown}: {error}{remedy}")
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    match u64::try_from(bytes.len()) {
        Ok(0..=FILE_BYTES_MAX) => Ok(bytes),
        _ => {
            Err(format!("the {what} {shown} is longer than {} MiB: give the path of a PEM file", FILE_BYTES_MAX >> 20))
        }
    }
}

fn mismatch(Certificate { chain, key }: &Certificate, pair: &CertifiedKey) -> String {
    let (chain, key) = (chain.display(), key.display());
    let is_of_another = pair
        .cert
        .iter()
        .skip(1)
        .any(|other| CertifiedKey::new(vec![other.clone()], Arc::clone(&pair.key)).keys_match() == Ok(()));
    if is_of_another {
        format!("{chain} does not begin with the certificate of {key}: put the site's own certificate first")
    } else {
        format!("{key} is not the key of the certificate in {chain}: give the two that were made together")
    }
}

/// Each certificate of a chain is followed by the one that signed it.
fn judge_order(path: &Path, chain: &[CertificateDer<'_>]) -> Result<(), String> {
    let signed_by = |pair: &[CertificateDer<'_>]| {
        let [below, above] = pair else { return true };
        match (webpki::EndEntityCert::try_from(below), webpki::EndEntityCert::try_from(above)) {
            (Ok(below), Ok(above)) => below.issuer() == above.subject(),
            _ => false,
        }
    };
    match chain.windows(2).position(|pair| !signed_by(pair)) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{} is no chain: its certificate {} is not signed by number {}: put each before the one that signed it",
            path.display(),
            at + 1,
            at + 2
        )),
    }
}

fn judge_time(path: &Path, (from, until): (SystemTime, SystemTime), now: SystemTime) -> Option<String> {
    let shown = path.display();
    let date = |time| humantime::format_rfc3339_seconds(time);
    if now > until {
        Some(format!("the certificate {shown} expired on {}: renew it, then scrimp reload", date(until)))
    } else if now < from {
        Some(format!(
            "the certificate {shown} is not valid before {}: set this machine's clock, or use one that is valid now",
            date(from)
        ))
    } else {
        None
    }
}
