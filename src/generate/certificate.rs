//! Which hosts a certificate is for, as far as it says so itself.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::certificate::{self, Certificate};
use crate::name::DomainPattern;

use super::Error;

/// A certificate's files and the names in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateNames {
    /// Its files, as absolute paths.
    pub files: Certificate,
    /// Its DNS names; empty if this process may not read it.
    pub names: Vec<String>,
}

impl CertificateNames {
    /// Reads the names of one configured certificate.
    ///
    /// # Errors
    /// The chain is not there or is no certificate, or a path has a character that nginx would not take literally.
    pub fn load(files: &Certificate) -> Result<Self, Error> {
        let files = Certificate { chain: literal_path(&files.chain)?, key: literal_path(&files.key)? };
        let names = match std::fs::read(&files.chain) {
            Ok(pem) => leaf_names(&pem).ok_or_else(|| {
                Error::Certificate(format!(
                    "{} does not begin with a certificate in PEM form: \
                     give the path of the full chain, the site's own certificate first",
                    files.chain.display()
                ))
            })?,
            // nginx reads certificates as root; this process need not be able to.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Vec::new(),
            Err(error) => {
                return Err(Error::Certificate(format!(
                    "certificate {} cannot be read: {error}; correct lb.certificate",
                    files.chain.display()
                )));
            }
        };
        Ok(Self { files, names })
    }

    /// Whether the certificate is for every host of `domain` (of a wildcard: for those one label below it).
    #[must_use]
    pub fn covers(&self, domain: &DomainPattern) -> bool {
        let wanted = domain.to_string();
        self.names.iter().any(|name| certificate::covers(name, &wanted))
    }
}

fn literal_path(path: &Path) -> Result<PathBuf, Error> {
    let absolute = std::path::absolute(path).map_err(|error| Error::Certificate(error.to_string()))?;
    let is_literal = |text: &str| !text.chars().any(|c| c.is_control() || matches!(c, '"' | '\\' | '$' | '{' | '}'));
    match absolute.to_str() {
        Some(text) if is_literal(text) => Ok(absolute),
        _ => Err(Error::Certificate(format!(
            "certificate path {} cannot stand in an nginx configuration: \
             use one without quotes, backslashes, dollar signs and braces",
            path.display()
        ))),
    }
}

fn leaf_names(pem: &[u8]) -> Option<Vec<String>> {
    certificate::read_chain(pem)?.first().map(certificate::dns_names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> CertificateNames {
        CertificateNames {
            files: Certificate { chain: "/c.pem".into(), key: "/k.pem".into() },
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_wildcard_name_covers_one_label() {
        let certificate = named(&["example.com", "*.example.com"]);
        let covers = |domain: &str| certificate.covers(&domain.parse().unwrap());
        assert!(covers("example.com") && covers("www.example.com") && covers("*.example.com"));
        assert!(!covers("a.b.example.com") && !covers("example.org") && !covers("*.b.example.com"));
        assert!(!named(&[]).covers(&"example.com".parse().unwrap()));
    }

    #[test]
    fn a_path_that_nginx_would_expand_is_refused() {
        for bad in ["/a$b.pem", "/a\"b.pem", "/a\nb.pem", "/a\\b.pem"] {
            assert!(literal_path(Path::new(bad)).is_err(), "{bad:?}");
        }
        assert_eq!(literal_path(Path::new("/etc/my certs/a.pem")).unwrap(), Path::new("/etc/my certs/a.pem"));
    }
}
