//! Finds and reads the files, and what flags and the environment give instead.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mistake::{Notes, Place};
use super::tree::{self, Node, Parsed, quote};

/// Some 10,000 applications.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// A node offers at most 256 applications, one to a file.
const FILES_MAX: usize = 1024;

/// The environment: a variable's value. Empty ones count as not set.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A setting from its flag, else its variable.
pub(super) fn given(flag: Option<&str>, name: &str, variable: &'static str, env: Environment<'_>) -> Option<Node> {
    if let Some(text) = flag {
        return Some(Node::word(Place::flag(name), text));
    }
    let text = env(variable).filter(|text| !text.trim().is_empty())?;
    Some(Node::word(Place::variable(variable), text.trim()))
}

/// The same for a setting with several values, which commas separate in the variable.
pub(super) fn given_list(flags: &[String], name: &str, variable: &'static str, env: Environment<'_>) -> Vec<Node> {
    if !flags.is_empty() {
        return flags.iter().map(|text| Node::word(Place::flag(name), text)).collect();
    }
    let text = env(variable).unwrap_or_default();
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| Node::word(Place::variable(variable), word)).collect()
}

/// Application specifications, each with a place that shows it; white space separates them in the variable.
pub(super) fn given_specs(flags: &[String], env: Environment<'_>) -> Vec<(Place, String)> {
    let placed = |origin: &str, spec: &str| (Place::flag(format!("{origin} {}", quote(spec))), spec.to_owned());
    if !flags.is_empty() {
        return flags.iter().map(|spec| placed("--app", spec)).collect();
    }
    let text = env("SCRIMP_APP").unwrap_or_default();
    text.split_whitespace().map(|spec| placed("SCRIMP_APP", spec)).collect()
}

/// The main file, if there is one, and the folder of applications beside it.
pub(super) struct Files {
    pub(super) main: Option<PathBuf>,
    pub(super) apps: PathBuf,
}

/// Which files to read: the one that is named, else `scrimp.toml` or `scrimp.json` in `etc` if there is one.
pub(super) fn locate(named: Option<&Path>, etc: &Path, notes: &Notes) -> Files {
    if let Some(file) = named {
        let folder = file.parent().unwrap_or_else(|| Path::new(""));
        return Files { main: Some(file.to_owned()), apps: folder.join("apps.d") };
    }
    // Whatever is not certainly missing is tried, so that its error is told.
    let is_there = |file: &PathBuf| !matches!(file.metadata(), Err(error) if error.kind() == ErrorKind::NotFound);
    let mut found = ["scrimp.toml", "scrimp.json"].map(|name| etc.join(name)).into_iter().filter(is_there);
    let main = found.next();
    if let Some(second) = found.next() {
        let first = etc.join("scrimp.toml");
        notes.add(Place::file(&Arc::from(second)), format!("{} is there too: take one away", first.display()));
    }
    Files { main, apps: etc.join("apps.d") }
}

/// Reads the main file. One that cannot be read is noted at `named`, or at the file itself.
pub(super) fn read_main(main: Option<&Path>, named: Option<Place>, notes: &Notes) -> Parsed {
    let Some(path) = main else { return Parsed { root: Node::empty(Place::nowhere()), is_whole: true } };
    let file = Arc::from(path);
    match read_text(path) {
        Ok(text) => tree::parse(&file, &text, notes),
        Err(error) => {
            let place = Place::file(&file);
            let message = format!("cannot read {}: {error}{}", path.display(), remedy(path));
            notes.add(named.unwrap_or_else(|| place.clone()), message);
            Parsed { root: Node::empty(place), is_whole: false }
        }
    }
}

/// The application files of a folder, by name; hidden ones and other endings are not looked at.
pub(super) fn read_apps(folder: &Path, notes: &Notes) -> Vec<(PathBuf, Parsed)> {
    let place = || Place::file(&Arc::from(folder));
    let mut files: Vec<PathBuf> = match std::fs::read_dir(folder) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| is_app_file(path)).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            notes.add(place(), format!("cannot read this folder: {error}"));
            return Vec::new();
        }
    };
    files.sort();
    if files.len() > FILES_MAX {
        notes.add(place(), format!("{} files, but at most {FILES_MAX} are read", files.len()));
        files.truncate(FILES_MAX);
    }
    let read = |file: PathBuf| {
        let parsed = read_main(Some(&file), None, notes);
        (file, parsed)
    };
    files.into_iter().map(read).collect()
}

fn is_app_file(path: &Path) -> bool {
    let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !is_hidden && path.extension().is_some_and(|extension| extension == "toml" || extension == "json")
}

/// What to do about a file that cannot be read.
pub(super) fn remedy(path: &Path) -> &'static str {
    match File::open(path).map_err(|error| error.kind()) {
        Err(ErrorKind::NotFound) => ": check the path",
        Err(ErrorKind::PermissionDenied) => ": run scrimp as a user that may read it, or give that user the right to",
        Ok(_) if path.is_dir() => ": name a file in it",
        _ => "",
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| format!("byte {} is not UTF-8 text", error.utf8_error().valid_up_to() + 1))
}
