//! The cases that `http_desync_guardian` is tested with, read where Cargo has unpacked that crate.

use std::path::PathBuf;
use std::process::Command;

/// A request of the guardian's, and what it is called there.
#[derive(Debug, Clone, Default)]
pub struct Case {
    pub name: String,
    pub tier: String,
    method: Vec<u8>,
    uri: Vec<u8>,
    version: Vec<u8>,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where a request without a Host gets one, so that it is not refused for the lack of it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAt {
    Front,
    Back,
}

impl Case {
    /// The request's head as bytes.
    pub fn head(&self, host: HostAt) -> Vec<u8> {
        let mut head = [&self.method, &b" "[..], &self.uri].concat();
        if !self.version.is_empty() {
            head.push(b' ');
            head.extend_from_slice(&self.version);
        }
        head.extend_from_slice(b"\r\n");
        let has_host = self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"host"));
        let ours = |at: HostAt| if host == at && !has_host { &b"Host: a.example\r\n"[..] } else { b"" };
        head.extend_from_slice(ours(HostAt::Front));
        for (name, value) in &self.headers {
            head.extend_from_slice(&[name, &b": "[..], value, b"\r\n"].concat());
        }
        head.extend_from_slice(ours(HostAt::Back));
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// All cases of all files.
pub fn cases() -> Vec<Case> {
    let folder = source().join("tests");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let cases: Vec<Case> = files.iter().flat_map(|path| parse(&std::fs::read_to_string(path).unwrap())).collect();
    // What version 0.1.3 ships: more or fewer, and they are not read as they are written.
    let count = |tier: &str| cases.iter().filter(|case| case.tier == tier).count();
    assert_eq!((cases.len(), count("Severe"), count("Ambiguous")), (159, 58, 58), "in {}", folder.display());
    assert_eq!(cases.iter().map(|case| case.headers.len()).sum::<usize>(), 503);
    cases
}

/// The folder of the crate that these tests are built with.
fn source() -> PathBuf {
    let ask = |more: &[&str]| {
        Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
            .args(more)
            .output()
            .unwrap()
    };
    // Other systems' crates need not be there; and where Cargo wants to see them all the same, it may ask for them.
    let mut output = ask(&["--offline", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    if !output.status.success() {
        output = ask(&[]);
    }
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let guardian = packages.iter().find(|package| package["name"] == "http_desync_guardian").unwrap();
    PathBuf::from(guardian["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

/// Reads the little of YAML that these files are written in: lists of maps, a key a line.
fn parse(text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let indent = line.len() - line.trim_start().len();
        let Some((key, value)) = line.split_once(':') else { continue };
        let (key, value) = (key.trim(), scalar(value.trim()));
        let words = || String::from_utf8_lossy(&value).into_owned();
        if (indent, key) == (0, "- name") {
            cases.push(Case { name: words(), ..Case::default() });
            continue;
        }
        let Some(case) = cases.last_mut() else { continue };
        match (indent, key) {
            (2, "method") => case.method = value,
            (2, "uri") => case.uri = value,
            (2, "version") => case.version = value,
            (4, "- name") => case.headers.push((value, Vec::new())),
            (6, "value") => case.headers.last_mut().unwrap().1 = value,
            (4, "tier") => case.tier = words(),
            _ => {}
        }
    }
    cases
}

/// The bytes of a scalar: plain, in single or in double quotes.
fn scalar(text: &str) -> Vec<u8> {
    if let Some(inner) = text.strip_prefix('\'') {
        return inner.strip_suffix('\'').unwrap_or(inner).replace("''", "'").into_bytes();
    }
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return text.split(" #").next().unwrap_or_default().trim_end().as_bytes().to_vec();
    };
    let (mut bytes, mut rest) = (Vec::new(), inner.bytes());
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next().unwrap() {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'x' => {
                let mut digit = || char::from(rest.next().unwrap()).to_digit(16).unwrap();
                u8::try_from(digit() * 16 + digit()).unwrap()
            }
            other => other,
        });
    }
    bytes
}
