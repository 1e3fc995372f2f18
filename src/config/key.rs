//! The cluster's keys: a file with one a line.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::gossip::{ClusterKey, KEYS_MAX};

use super::source;

/// A file of four keys with some comments is far shorter.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// A new key as a line of a key file: 64 hex digits.
#[must_use]
pub fn keygen() -> String {
    // A cryptographic generator, seeded by the kernel.
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens a file that holds a secret, if nobody but its owner and group may read it.
pub(super) fn open_secret(file: &Path) -> Result<File, String> {
    let shown = file.display();
    let opened = File::open(file).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let metadata = opened.metadata().map_err(|error| format!("cannot read {shown}: {error}"))?;
    if metadata.is_dir() {
        return Err(format!("{shown} is a folder"));
    }
    let mode = metadata.permissions().mode();
    if mode & 0o007 != 0 {
        let mode = mode & 0o777;
        return Err(format!("{shown} is open to everybody on this machine (mode {mode:03o}): chmod 600 {shown}"));
    }
    Ok(opened)
}

/// The keys of a file, the one in use first.
pub(super) fn read(file: &Path) -> Result<Vec<ClusterKey>, Vec<String>> {
    let shown = file.display();
    let mut text = String::new();
    let opened = open_secret(file).map_err(|error| vec![format!("{error}{}", remedy(file))])?;
    opened
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| vec![format!("cannot read {shown}: {error}{}", remedy(file))])?;
    parse(&text).map_err(|errors| errors.into_iter().map(|error| format!("{shown}{error}")).collect())
}

/// What to do about a key file that cannot be read.
fn remedy(file: &Path) -> String {
    let is_missing = matches!(file.metadata(), Err(error) if error.kind() == ErrorKind::NotFound);
    if !is_missing {
        return source::remedy(file).to_owned();
    }
    let shown = file.display();
    format!(": scrimp keygen > {shown}; chmod 600 {shown} (every node of the cluster needs the same file)")
}

/// Errors begin with `:LINE: ` and never show what stands there: it may be a secret.
fn parse(text: &str) -> Result<Vec<ClusterKey>, Vec<String>> {
    let mut keys: Vec<ClusterKey> = Vec::new();
    let mut errors = Vec::new();
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        match parse_key(line) {
            Ok(key) if keys.contains(&key) => errors.push(format!(":{number}: this key stands here twice")),
            Ok(key) => keys.push(key),
            Err(error) => errors.push(format!(":{number}: {error}")),
        }
    }
    if keys.len() > KEYS_MAX {
        errors.push(format!(": {} keys, but at most {KEYS_MAX} are tried: take old ones away", keys.len()));
    }
    if keys.is_empty() && errors.is_empty() {
        errors.push(": there is no key in it: use what scrimp keygen prints".to_owned());
    }
    if errors.is_empty() { Ok(keys) } else { Err(errors) }
}

fn parse_key(line: &str) -> Result<ClusterKey, String> {
    const REMEDY: &str = "a key is 64 hex digits, as scrimp keygen prints";
    let count = line.chars().count();
    if count != 64 {
        return Err(format!("{count} characters: {REMEDY}"));
    }
    let digit = |c: char| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: Option<Vec<u8>> = line.chars().map(digit).collect();
    let digits = digits.ok_or_else(|| format!("not all of it are hex digits: {REMEDY}"))?;
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |high, low| high << 4 | low);
    }
    if key.iter().all(|byte| *byte == key[0]) {
        return Err(format!("one byte repeated is no secret: {REMEDY}"));
    }
    Ok(ClusterKey(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_the_file() {
        let line = keygen();
        assert_eq!(line.len(), 64);
        assert_ne!(line, keygen());
        let keys = parse(&format!("# new\n  {}  \r\n\n{line}", line.to_uppercase())).unwrap_err();
        assert_eq!(keys, [":4: this key stands here twice"]);
        let keys = parse(&format!("# in use\n  {line}  \r\n\n")).unwrap();
        let shown: String = keys[0].0.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(shown, line);
        assert_eq!(format!("{keys:?}"), "[ClusterKey(MASKED)]");
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_shown() {
        for (text, expected) in [
            ("", "no key in it"),
            ("# nothing\n", "no key in it"),
            ("hunter2", ":1: 7 characters"),
            (&"g".repeat(64), "hex digits"),
            (&"ü".repeat(64), "hex digits"),
            (&"0".repeat(64), "no secret"),
            (&"ab".repeat(32), "no secret"),
        ] {
            let errors = parse(text).unwrap_err();
            assert!(errors[0].contains(expected), "{errors:?}");
            assert!(!errors[0].contains("hunter2"), "{errors:?}");
        }
        let keys = |count: usize| (0..count).map(|_| keygen() + "\n").collect::<String>();
        assert_eq!(parse(&keys(KEYS_MAX)).unwrap().len(), KEYS_MAX);
        assert!(parse(&keys(KEYS_MAX + 1)).unwrap_err()[0].contains("at most 4"));
    }

    #[test]
    fn a_key_that_everybody_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.key");
        assert!(read(&file).unwrap_err()[0].contains("scrimp keygen >"));
        std::fs::write(&file, keygen()).unwrap();
        for (mode, is_fine) in [(0o600, true), (0o640, true), (0o644, false), (0o602, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            match read(&file) {
                Ok(_) => assert!(is_fine, "{mode:o}"),
                Err(errors) => assert!(!is_fine && errors[0].contains("chmod 600"), "{mode:o} {errors:?}"),
            }
        }
        assert!(read(folder.path()).unwrap_err()[0].contains("is a folder"));
    }
}
