//! A folder as a seed store: on one machine, or shared by several through the network.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{
    Blocking, Expected, Held, InvalidObject, Listing, OBJECT_BYTES_MAX, OBJECTS_MAX, Outcome, SeedError, SeedErrorKind,
    SeedObject, Stored, file_name_of, node_of,
};
use crate::name::{ClusterName, NodeName};

/// Directory entries looked at in one read: a folder of ours holds a handful.
const ENTRIES_MAX: usize = 4096;

/// A folder of objects.
#[derive(Debug)]
pub(super) struct FileStore {
    folder: PathBuf,
    disk: Blocking,
}

impl FileStore {
    pub(super) fn new(root: &Path, cluster: &ClusterName) -> Self {
        Self { folder: root.join("clusters").join(cluster.as_str()).join("seeds"), disk: Blocking::default() }
    }

    pub(super) async fn list(&self) -> Result<Listing, SeedError> {
        let folder = self.folder.clone();
        self.disk.run(move || list(&folder).map_err(|error| explain("read", &folder, &error))).await
    }

    pub(super) async fn read(&self, node: &NodeName) -> Result<Option<Held>, SeedError> {
        let (path, node) = (self.path(node), node.clone());
        self.disk
            .run(move || match read(&path) {
                Ok(bytes) => Ok(Some(Held { object: SeedObject::read(&node, &bytes), tag: Some(tag_of(&bytes)) })),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(explain("read", &path, &error)),
            })
            .await
    }

    pub(super) async fn write(
        &self,
        node: &NodeName,
        bytes: Vec<u8>,
        expected: &Expected,
    ) -> Result<Outcome, SeedError> {
        let (path, expected) = (self.path(node), expected.clone());
        self.disk
            .run(move || {
                if !is_as_expected(&path, &expected) {
                    return Ok(Outcome::Refused);
                }
                write(&path, &bytes).map_err(|error| explain("write", &path, &error))?;
                Ok(Outcome::Done(Some(tag_of(&bytes))))
            })
            .await
    }

    pub(super) async fn remove(&self, node: &NodeName, expected: &Expected) -> Result<Outcome, SeedError> {
        let (path, expected) = (self.path(node), expected.clone());
        self.disk
            .run(move || {
                if !is_as_expected(&path, &expected) {
                    return Ok(Outcome::Refused);
                }
                match fs::remove_file(&path) {
                    Err(error) if !is_absent(&error) => Err(explain("remove", &path, &error)),
                    _ => Ok(Outcome::Done(None)),
                }
            })
            .await
    }

    fn path(&self, node: &NodeName) -> PathBuf {
        self.folder.join(file_name_of(node))
    }
}

fn list(folder: &Path) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let entries = match fs::read_dir(folder) {
        Err(error) if is_absent(&error) => return Ok(listing),
        entries => entries?,
    };
    let mut candidates: Vec<(SystemTime, NodeName, PathBuf)> = Vec::new();
    for entry in entries.take(ENTRIES_MAX) {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match (node_of(&name), fs::metadata(&path)) {
            // Gone since the folder was read, or a write of ours that is not finished.
            (_, Err(_)) => {}
            (None, _) if name.starts_with('.') => {}
            (Some(node), Ok(data)) if data.is_file() => {
                candidates.push((data.modified().unwrap_or(SystemTime::UNIX_EPOCH), node, path.clone()));
            }
            _ => listing.invalid.push(InvalidObject::new(&name, "not a seed object")),
        }
    }
    candidates.sort_by(|one, other| other.cmp(one));
    for (stored_at, node, path) in candidates.into_iter().take(OBJECTS_MAX) {
        match read(&path).map(|bytes| SeedObject::read(&node, &bytes)) {
            Ok(Ok(object)) => listing.objects.push(Stored { object, stored_at }),
            Ok(Err(problem)) => listing.invalid.push(InvalidObject::new(&file_name_of(&node), &problem)),
            Err(error) if is_absent(&error) => {}
            Err(error) => listing.invalid.push(InvalidObject::new(&file_name_of(&node), &error.to_string())),
        }
    }
    Ok(listing)
}

/// The file's content, at most a byte more than an object may have.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(OBJECT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file's tag is what stands in it.
fn tag_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Looked at just before the act: a folder knows no conditions, and two acts at once are rare and do no harm. What
/// cannot be read is left to the act.
fn is_as_expected(path: &Path, expected: &Expected) -> bool {
    match (expected, read(path)) {
        (Expected::Nothing, Ok(_)) => false,
        (Expected::Tag(tag), Ok(bytes)) => *tag == tag_of(&bytes),
        (Expected::Tag(_), Err(error)) => !is_absent(&error),
        _ => true,
    }
}

/// Readers see the old file or the new one, and so does a machine that lost its power in between.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    fs::create_dir_all(folder)?;
    // A name of its own each time: two nodes of one name must not write into one temporary file.
    let temporary = folder.join(format!(".{}.{:016x}.tmp", name.to_string_lossy(), fastrand::u64(..)));
    let result = replace(path, folder, &temporary, bytes);
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn replace(path: &Path, folder: &Path, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    File::open(folder)?.sync_all()
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

fn explain(act: &str, path: &Path, error: &io::Error) -> SeedError {
    let (kind, remedy) = match error.kind() {
        ErrorKind::PermissionDenied => (SeedErrorKind::Forbidden, "let the user that scrimp runs as read and write it"),
        ErrorKind::ReadOnlyFilesystem => {
            (SeedErrorKind::Forbidden, "the file system is read-only (for a systemd unit: see ReadWritePaths=)")
        }
        ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
            (SeedErrorKind::Missing, "something else stands in its place; name a folder of its own")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (SeedErrorKind::Failing, "make room on the disk"),
        _ => (SeedErrorKind::Failing, "it is tried again"),
    };
    SeedError::new(kind, format_args!("cannot {act} {}: {error}; {remedy}", path.display()))
}
