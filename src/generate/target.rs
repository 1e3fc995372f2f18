//! The file that is written, and the names around it. Never a half file: what stands under the target's name is
//! always a whole one, and after any failure it is the old one, byte for byte.
//!
//! Beside `scrimp.conf` there may be, in the same folder and hidden, so that nginx's `*.conf` does not match them:
//! `.scrimp.conf.candidate` while a new one is judged, `.scrimp.conf.previous` from the swap until the reload, and
//! `.scrimp.conf.rejected`, the newest one that did not pass, for a person to look at.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Error;
use super::template::RENDERED_BYTES_MAX;

/// Everybody may read it: it holds no secret, and nginx's workers are other users.
const MODE: u32 = 0o644;

/// The paths around one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The file itself.
    pub path: PathBuf,
    folder: PathBuf,
    /// The new file while it is judged.
    pub candidate: PathBuf,
    previous: PathBuf,
    rejected: PathBuf,
}

impl Target {
    /// The paths, and whether they can be what they are to be. Nothing is touched.
    ///
    /// # Errors
    /// The folder is missing or open to everybody; the target is a symbolic link or no plain file.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let path = std::path::absolute(path).map_err(|error| Error::Target(error.to_string()))?;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::Target(format!("lb.generate.target {} is not the path of a file", path.display())));
        };
        let beside = |what: &str| {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{what}"));
            folder.join(hidden)
        };
        let target = Self {
            folder: folder.to_owned(),
            candidate: beside("candidate"),
            previous: beside("previous"),
            rejected: beside("rejected"),
            path,
        };
        target.check_folder()?;
        target.read()?;
        Ok(target)
    }

    fn check_folder(&self) -> Result<(), Error> {
        let folder = self.folder.display();
        let metadata = fs::metadata(&self.folder).map_err(|error| {
            Error::Target(format!(
                "the folder of lb.generate.target, {folder}, cannot be used: {error}; \
                 create it (mkdir -p {folder}) or correct the path"
            ))
        })?;
        // Write for everybody, without the sticky bit: anybody could put another file in its place.
        if metadata.mode() & 0o1002 == 0o002 {
            return Err(Error::Target(format!(
                "everybody may write to {folder}, so anybody could replace the file that nginx loads: \
                 chmod o-w {folder}, or use another folder"
            )));
        }
        Ok(())
    }

    /// The file's content; none: there is no file.
    ///
    /// # Errors
    /// It is a symbolic link, no plain file, too large to be ours, or cannot be read.
    pub fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path.display();
        let metadata = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::Target(format!("{path} cannot be looked at: {error}"))),
        };
        if metadata.is_symlink() {
            return Err(Error::Target(format!(
                "{path} is a symbolic link: the new file would replace the link, not what it points to; \
                 give lb.generate.target the path of the file itself, or remove the link"
            )));
        }
        if !metadata.is_file() || metadata.len() > 4 * RENDERED_BYTES_MAX as u64 {
            return Err(Error::Target(format!(
                "{path} is not a file that scrimp wrote: use another lb.generate.target"
            )));
        }
        fs::read(&self.path).map(Some).map_err(|error| Error::Target(format!("{path} cannot be read: {error}")))
    }

    /// Undoes a swap that a crash left unfinished; whether there was one.
    ///
    /// # Errors
    /// The old file cannot be put back.
    pub fn recover(&self) -> Result<bool, Error> {
        match fs::symlink_metadata(&self.previous) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed("be put back", &error)),
            // An empty one stands for: there was no file.
            Ok(metadata) => self.restore(metadata.len() > 0).map(|()| true),
        }
    }

    /// Writes the candidate, down to the disk.
    ///
    /// # Errors
    /// It cannot be written; what it left is removed.
    pub fn stage(&self, text: &str) -> Result<(), Error> {
        write_whole(&self.candidate, text).map_err(|error| {
            let _ = fs::remove_file(&self.candidate);
            let folder = self.folder.display();
            Error::Target(match error.kind() {
                ErrorKind::PermissionDenied => format!(
                    "{} cannot be written: {error}; let the user that scrimp runs as write to {folder}",
                    self.candidate.display()
                ),
                ErrorKind::StorageFull => format!("{folder} is on a full disk: {error}; make room"),
                _ => format!("{} cannot be written: {error}", self.candidate.display()),
            })
        })
    }

    /// Removes the candidate.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard(&self) -> Result<(), Error> {
        remove_if_there(&self.candidate).map_err(|error| self.failed("be tidied up after", &error))
    }

    /// Puts the candidate in the target's place, and keeps what was there.
    ///
    /// # Errors
    /// It cannot be done; the old file stands.
    pub fn swap_in(&self) -> Result<(), Error> {
        self.keep_previous()
            .and_then(|()| fs::rename(&self.candidate, &self.path))
            .and_then(|()| sync_folder(&self.folder))
            .map_err(|error| {
                let _ = fs::remove_file(&self.candidate);
                self.failed("be replaced", &error)
            })
    }

    fn keep_previous(&self) -> io::Result<()> {
        remove_if_there(&self.previous)?;
        match fs::hard_link(&self.path, &self.previous) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => write_whole(&self.previous, ""),
            // Not every file system links, and not every user may link to every file.
            Err(_) => fs::copy(&self.path, &self.previous).and_then(|_| File::open(&self.previous)?.sync_all()),
        }
    }

    /// Puts back what [`Target::swap_in`] replaced; `was_there` says whether there was anything.
    ///
    /// # Errors
    /// It cannot be done; [`Target::recover`] can be tried later.
    pub fn restore(&self, was_there: bool) -> Result<(), Error> {
        let undone = if was_there {
            fs::rename(&self.previous, &self.path)
        } else {
            remove_if_there(&self.path).and_then(|()| remove_if_there(&self.previous))
        };
        undone.and_then(|()| sync_folder(&self.folder)).map_err(|error| self.failed("be put back", &error))
    }

    /// Forgets what was replaced: the new file is the good one now.
    ///
    /// # Errors
    /// The old one cannot be removed.
    pub fn settle(&self) -> Result<(), Error> {
        remove_if_there(&self.rejected)
            .and_then(|()| remove_if_there(&self.previous))
            .map_err(|error| self.failed("be settled", &error))
    }

    /// Keeps what did not pass, for a person to look at. A failure here changes nothing.
    pub fn reject(&self, text: &str) {
        let _ = remove_if_there(&self.candidate);
        let _ = write_whole(&self.rejected, text);
    }

    fn failed(&self, what: &str, error: &io::Error) -> Error {
        Error::Target(format!("{} cannot {what}: {error}", self.path.display()))
    }
}

/// A new file, never one that is there already (it might be a link to somewhere else).
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    remove_if_there(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_swap_can_be_undone_to_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.conf");
        fs::write(&path, "old").unwrap();
        let before = fs::metadata(&path).unwrap();
        let target = Target::new(&path).unwrap();
        target.stage("new").unwrap();
        target.swap_in().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        target.restore(true).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
        assert_eq!(names(folder.path()), ["x.conf"]);
    }

    #[test]
    fn a_swap_that_a_crash_interrupted_is_undone_at_the_next_start() {
        for old in [None, Some("old")] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.conf");
            if let Some(old) = old {
                fs::write(&path, old).unwrap();
            }
            let target = Target::new(&path).unwrap();
            target.stage("new").unwrap();
            target.swap_in().unwrap();
            // The process ends here, and another one begins.
            let target = Target::new(&path).unwrap();
            assert!(target.recover().unwrap());
            assert!(!target.recover().unwrap());
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), old);
        }
    }

    #[test]
    fn links_missing_folders_and_open_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let reason = |path: &Path| Target::new(path).unwrap_err().to_string();
        assert!(reason(&folder.path().join("no/x.conf")).contains("mkdir -p"));
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link.conf")).unwrap();
        assert!(reason(&folder.path().join("link.conf")).contains("symbolic link"));
        assert!(reason(folder.path()).contains("not a file"));
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(reason(&folder.path().join("x.conf")).contains("chmod o-w"));
    }

    #[test]
    fn a_link_planted_under_a_hidden_name_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, path) = (folder.path().join("victim"), folder.path().join("x.conf"));
        fs::write(&victim, "untouched").unwrap();
        for hidden in [".x.conf.candidate", ".x.conf.rejected"] {
            std::os::unix::fs::symlink(&victim, folder.path().join(hidden)).unwrap();
        }
        let target = Target::new(&path).unwrap();
        target.stage("new").unwrap();
        target.reject("new");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    }
}
