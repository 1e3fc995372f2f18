//! Where seeds are kept, as a person writes it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::name::{Hostname, Port};

/// A seed store's place, parsed once. It never holds a secret: access keys in it are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeedUrl {
    /// `s3://BUCKET[/PREFIX][?region=…&endpoint=…&profile=…&credentials=…]`
    S3(S3Url),
    /// `file:///DIR`
    File(PathBuf),
    /// `HOST:PORT`
    Fixed(FixedHost, Port),
}

/// The parts of an `s3://` address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Url {
    /// The bucket.
    pub bucket: String,
    /// What stands before our own folders in the bucket, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The region, if it is not to be found out.
    pub region: Option<String>,
    /// `http://HOST[:PORT]` or `https://…` of a store that is not Amazon's.
    pub endpoint: Option<String>,
    /// The profile of the AWS configuration files to use.
    pub profile: Option<String>,
    /// A file of credentials (in the form of `~/.aws/credentials`) to use instead of the usual search.
    pub credentials: Option<PathBuf>,
}

/// The host of a fixed seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FixedHost {
    /// An address.
    Ip(IpAddr),
    /// A name that is asked of the DNS at each read.
    Name(Hostname),
}

/// Why a seed's address was refused, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {given}: {problem}")]
pub struct SeedUrlError {
    given: String,
    problem: String,
}

const KEYS: [&str; 4] = ["region", "endpoint", "profile", "credentials"];
const URL_BYTES_MAX: usize = 2048;

impl FromStr for SeedUrl {
    type Err = SeedUrlError;

    fn from_str(text: &str) -> Result<Self, SeedUrlError> {
        let text = text.trim();
        parse(text).map_err(|problem| SeedUrlError { given: shown(text), problem })
    }
}

impl fmt::Display for SeedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3(url) => url.fmt(f),
            Self::File(folder) => write!(f, "file://{}", folder.display()),
            Self::Fixed(FixedHost::Ip(ip), port) => SocketAddr::new(*ip, port.get()).fmt(f),
            Self::Fixed(FixedHost::Name(name), port) => write!(f, "{name}:{port}"),
        }
    }
}

impl fmt::Display for S3Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        let credentials = self.credentials.as_ref().map(|path| path.display().to_string());
        let values = [&self.region, &self.endpoint, &self.profile, &credentials];
        let mut sign = '?';
        for (key, value) in KEYS.iter().zip(values) {
            if let Some(value) = value {
                write!(f, "{sign}{key}={}", percent_encoded(value))?;
                sign = '&';
            }
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<SeedUrl, String> {
    if text.is_empty() {
        return Err(format!("it is empty; {FORMS}"));
    }
    if text.len() > URL_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("it is longer than {URL_BYTES_MAX} bytes or holds control characters; {FORMS}"));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return fixed(text);
    };
    match scheme.to_ascii_lowercase().as_str() {
        "s3" => {
            let url = SeedUrl::S3(s3(rest)?);
            // It is shown with % codes where none were written, and what is shown must be fit to be written.
            if url.to_string().len() > URL_BYTES_MAX {
                return Err(format!("it is longer than {URL_BYTES_MAX} bytes when written out; shorten its settings"));
            }
            Ok(url)
        }
        "file" => file(rest),
        "http" | "https" => Err(format!(
            "a store is not named by its web address; for an S3-compatible store write \
             s3://BUCKET/PREFIX?endpoint={scheme}://HOST"
        )),
        _ => Err(format!("there is no kind of seed store named {scheme:?}; {FORMS}")),
    }
}

const FORMS: &str = "write s3://BUCKET/PREFIX, file:///DIR or HOST:PORT";

fn file(rest: &str) -> Result<SeedUrl, String> {
    if rest.contains('?') {
        return Err("a folder takes no settings; remove the ? and what follows".to_owned());
    }
    if !rest.starts_with('/') {
        return Err("the folder must be absolute, with three slashes in all: file:///var/lib/scrimp/seeds".to_owned());
    }
    let folder = Path::new(rest);
    if folder.components().any(|part| part == std::path::Component::ParentDir) {
        return Err("the folder must not hold ..; write the whole path".to_owned());
    }
    Ok(SeedUrl::File(folder.to_owned()))
}

fn fixed(text: &str) -> Result<SeedUrl, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        let port = Port::new(address.port()).ok_or("port 0 cannot be reached; use 1 to 65535")?;
        let ip = address.ip();
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(format!("{ip} is not the address of a machine; write the address of a balancer"));
        }
        return Ok(SeedUrl::Fixed(FixedHost::Ip(ip), port));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Err(format!("the gossip port is missing; write {}", SocketAddr::new(ip, 7377)));
    }
    let lower = text.to_ascii_lowercase();
    if let Some((scheme @ ("s3" | "file"), _)) = lower.split_once(':') {
        let slashes = if scheme == "s3" { "//" } else { "///" };
        let rest = &text[scheme.len() + 1..];
        return Err(format!("its slashes are missing; write {scheme}:{slashes}{}", rest.trim_start_matches('/')));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("the gossip port is missing, as in HOST:7377; or {FORMS}"));
    };
    let port = port.parse().map_err(|_| format!("{port:?} is not a port; use 1 to 65535, as in HOST:7377"))?;
    if host.contains(':') {
        return Err(format!("an IPv6 address stands in brackets; write [{host}]:{port}"));
    }
    if host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return Err(format!("{host:?} is not an IPv4 address, and no host name ends in a number"));
    }
    let name = host.parse().map_err(|_| format!("{host:?} is not a host name; {FORMS}"))?;
    Ok(SeedUrl::Fixed(FixedHost::Name(name), port))
}

fn s3(rest: &str) -> Result<S3Url, String> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    if place.contains('@') {
        return Err(NO_KEYS.to_owned());
    }
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let mut url = S3Url { bucket: bucket_name(bucket)?, prefix: prefix_path(prefix)?, ..S3Url::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("setting {pair:?} has no value"))?;
        let value = percent_decoded(value).ok_or_else(|| format!("the % codes in {key} make no sense"))?;
        set(&mut url, key, value)?;
    }
    Ok(url)
}

const NO_KEYS: &str = "access keys do not belong in the address, where logs would show them; \
                       put them into a file and name it: credentials=/etc/scrimp/s3.credentials";

fn set(url: &mut S3Url, key: &str, value: String) -> Result<(), String> {
    if value.is_empty() {
        return Err(format!("setting {key} is empty; give it a value or leave it out"));
    }
    let is_new = match key {
        "region" => url.region.replace(region_name(value)?).is_none(),
        "endpoint" => url.endpoint.replace(endpoint_address(&value)?).is_none(),
        "profile" => url.profile.replace(value).is_none(),
        "credentials" => url.credentials.replace(absolute(value)?).is_none(),
        _ => return Err(unknown_key(key)),
    };
    if is_new { Ok(()) } else { Err(format!("setting {key} stands there twice")) }
}

fn unknown_key(key: &str) -> String {
    if is_secret(key) {
        return NO_KEYS.to_owned();
    }
    let is_near = |known: &str| key.contains(known) || strsim::damerau_levenshtein(known, key) <= 2;
    let nearest = KEYS.iter().find(|known| is_near(known));
    let hint = nearest.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
    format!("there is no setting {key:?}; the settings are {}{hint}", KEYS.join(", "))
}

/// Whether a setting is one in which somebody would put what nobody else may read.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["key", "secret", "token", "password"].iter().any(|word| key.contains(word))
}

fn bucket_name(bucket: &str) -> Result<String, String> {
    let is_plain = bucket.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if (3..=63).contains(&bucket.len()) && is_plain && !bucket.starts_with(['.', '-']) {
        return Ok(bucket.to_owned());
    }
    if bucket.is_empty() {
        return Err("the bucket is missing; write s3://BUCKET/PREFIX".to_owned());
    }
    let remedy = match bucket.split_once(':') {
        Some(_) => "; a server's address is a setting: s3://BUCKET/PREFIX?endpoint=http://HOST:PORT",
        None => "",
    };
    Err(format!("{bucket:?} is not a bucket's name; use 3 to 63 of a-z, 0-9, . and -{remedy}"))
}

fn prefix_path(prefix: &str) -> Result<String, String> {
    let prefix = prefix.trim_matches('/');
    let is_plain = prefix.is_empty()
        || prefix.split('/').all(|segment| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.!*'()=+".contains(&b))
        });
    if is_plain && prefix.len() <= 512 {
        return Ok(prefix.to_owned());
    }
    let remedy = if prefix.contains(['&', '=']) { "; the first setting follows a ?, the others a &" } else { "" };
    Err(format!("{prefix:?} is not a usable prefix; use segments of A-Z, a-z, 0-9, - _ . joined by /{remedy}"))
}

fn region_name(region: String) -> Result<String, String> {
    let is_plain = region.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if is_plain && region.len() <= 40 { Ok(region) } else { Err(format!("{region:?} is not a region's name")) }
}

fn endpoint_address(endpoint: &str) -> Result<String, String> {
    let remedy = if endpoint.contains('?') {
        "settings after the first follow a &, not a ?"
    } else {
        "write endpoint=http://HOST:PORT or https://HOST"
    };
    let address: http::Uri = endpoint.parse().map_err(|_| format!("endpoint is not an address; {remedy}"))?;
    if address.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(format!("endpoint must not hold a user or password; {remedy}"));
    }
    let is_bare = matches!(address.path(), "" | "/") && address.query().is_none();
    // A port that is no number, or none of a server's, is read as if there were none.
    let has_port = address.port_u16().is_some_and(|port| port > 0);
    match (address.scheme_str(), address.authority()) {
        (Some("http" | "https"), Some(at)) if !at.host().is_empty() && is_bare && (has_port || at == at.host()) => {
            Ok(endpoint.trim_end_matches('/').to_owned())
        }
        _ => Err(format!("endpoint {endpoint:?} is not the address of a server; {remedy}")),
    }
}

fn absolute(path: String) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    if path.is_absolute() { Ok(path) } else { Err(format!("credentials file {} must be absolute", path.display())) }
}

/// The text as a message may show it: never keys that somebody put before an `@` or into a setting, never without end.
fn shown(text: &str) -> String {
    let settings = text.split(['?', '&']).skip(1).filter_map(|pair| pair.split_once('='));
    if text.contains('@') || settings.into_iter().any(|(key, _)| is_secret(key)) {
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
        return format!("\"{}://…\"", scheme.chars().take(16).collect::<String>().escape_debug());
    }
    format!("{:?}", text.chars().take(200).collect::<String>())
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/:[]".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_writes_is_shown_again_as_written() {
        for text in [
            "s3://bucket",
            "s3://bucket/some/prefix",
            "s3://bucket/prefix?region=eu-central-1&endpoint=http://127.0.0.1:9000",
            "s3://bucket?profile=scrimp&credentials=/etc/scrimp/s3%20keys",
            "file:///var/lib/scrimp/seeds",
            "10.0.0.1:7377",
            "[2001:db8::1]:7377",
            "lb-1.example.com:7377",
        ] {
            let url: SeedUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
        }
    }

    #[test]
    fn spellings_that_mean_the_same_are_one() {
        let plain: SeedUrl = "s3://bucket/prefix?endpoint=http://127.0.0.1:9000".parse().unwrap();
        for text in [
            "S3://bucket/prefix?endpoint=http://127.0.0.1:9000/",
            " s3://bucket/prefix/?endpoint=http%3A%2F%2F127.0.0.1%3A9000 ",
        ] {
            assert_eq!(text.parse::<SeedUrl>().unwrap(), plain);
        }
        let long = "s3://bucket/a?credentials=/etc/scrimp/s3%20keys".parse().unwrap();
        let SeedUrl::S3(url) = long else { panic!("{long:?}") };
        assert_eq!(url.credentials.unwrap(), Path::new("/etc/scrimp/s3 keys"));
    }

    #[test]
    fn a_scheme_without_slashes_is_no_host_however_it_is_written() {
        for (text, remedy) in [("fiLe:1", "write file:///1"), ("S3:bucket/Prefix", "write s3://bucket/Prefix")] {
            let error = text.parse::<SeedUrl>().unwrap_err().to_string();
            assert!(error.ends_with(remedy), "{error}");
        }
    }

    #[test]
    fn what_is_taken_can_be_written_as_it_is_shown() {
        let url = |umlauts| format!("s3://bucket/p?credentials=/{}", "\u{fc}".repeat(umlauts));
        let taken: SeedUrl = url(330).parse().unwrap();
        assert_eq!(taken.to_string().parse(), Ok(taken));
        assert!(url(400).parse::<SeedUrl>().unwrap_err().to_string().contains("when written out"));
    }
}
