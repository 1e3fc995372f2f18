//! The program that a backend runs and offers: `scrimp backend -- COMMAND ARG...`.
//!
//! It gets a process group of its own, so that Ctrl-C on a terminal reaches scrimp alone, which drains before it
//! stops the program; and so that a stop reaches what the program itself has started. Output goes where scrimp's
//! goes. Input too, unless that is a terminal: a program outside the terminal's own group would be suspended by
//! its first read.
//!
//! If scrimp itself is killed with KILL, nothing here can run: the program lives on. Under systemd the service's
//! control group ends it.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a killed program may take to be gone: only one that hangs in the kernel takes any time.
const KILLED_LIMIT: Duration = Duration::from_secs(5);

/// Why a program cannot be started, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No words.
    #[error("there is no command after --; write it, or leave the -- away")]
    Empty,
    /// No such program.
    #[error("cannot start {0}: there is no such program; check the spelling and PATH, or write the whole path")]
    NotFound(String),
    /// The program is there, and the one that its first line names is not.
    #[error(
        "cannot start {0}: the program that its first line (#!) names does not exist; correct that line or install it"
    )]
    NoInterpreter(String),
    /// It may not be run.
    #[error("cannot start {0}: permission denied; make it executable (chmod +x) for the user that scrimp runs as")]
    NotAllowed(String),
    /// Anything else.
    #[error("cannot start {0}: {1}")]
    Other(String, io::Error),
}

impl CommandError {
    /// The status to end with: what shells use, 127 for a program that is not there and 126 for one that does
    /// not start; 2 for a command line without one.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Empty => 2,
            Self::NotFound(_) => 127,
            Self::NoInterpreter(_) | Self::NotAllowed(_) | Self::Other(..) => 126,
        }
    }
}

/// A program that was started. Dropped, it is killed with all of its process group.
#[derive(Debug)]
pub struct Program {
    child: Child,
}

impl Program {
    /// Starts a program: its name and its arguments, through no shell. Needs a tokio runtime.
    ///
    /// # Errors
    /// As [`CommandError`] says.
    pub fn start(words: &[OsString]) -> Result<Self, CommandError> {
        let (name, arguments) = words.split_first().ok_or(CommandError::Empty)?;
        let input = if io::stdin().is_terminal() { Stdio::null() } else { Stdio::inherit() };
        let mut command = Command::new(name);
        command.args(arguments).stdin(input).process_group(0).kill_on_drop(true);
        let child = command.spawn().map_err(|error| explain(Path::new(name), error))?;
        Ok(Self { child })
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until it ends by itself, and gives back the status to end with: its own, or 128 and the number of
    /// the signal that ended it. May be dropped and called again.
    pub async fn wait(&mut self) -> u8 {
        // The wait fails only for a process that is not a child of this one.
        self.child.wait().await.map_or(1, exit_status)
    }

    /// Asks it to end (TERM, to its whole group), and after `limit` makes it end (KILL). Gives back as
    /// [`Program::wait`] does.
    pub async fn stop(&mut self, limit: Duration) -> u8 {
        self.signal(Signal::TERM);
        // One that is suspended can take the other signal only once it goes on.
        self.signal(Signal::CONT);
        if let Ok(status) = timeout(limit, self.wait()).await {
            return status;
        }
        self.signal(Signal::KILL);
        timeout(KILLED_LIMIT, self.wait()).await.unwrap_or(128 + 9)
    }

    /// Signals the whole group, as long as its leader was not waited for: later the number may be another's.
    fn signal(&self, signal: Signal) {
        let group = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(group) = group {
            // It fails if the group is gone, which is what was wanted.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

fn exit_status(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(number).unwrap_or(1)
}

fn explain(name: &Path, error: io::Error) -> CommandError {
    let shown = name.display().to_string();
    match error.kind() {
        io::ErrorKind::NotFound if name.components().count() > 1 && name.exists() => CommandError::NoInterpreter(shown),
        io::ErrorKind::NotFound => CommandError::NotFound(shown),
        io::ErrorKind::PermissionDenied => CommandError::NotAllowed(shown),
        _ => CommandError::Other(shown, error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use tokio::time::sleep;

    use super::*;

    fn shell(script: &str) -> Program {
        Program::start(&["sh".into(), "-c".into(), script.into()]).unwrap()
    }

    async fn until(what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn its_status_is_given_back() {
        assert_eq!(shell("exit 0").wait().await, 0);
        assert_eq!(shell("exit 42").wait().await, 42);
        assert_eq!(shell("kill -9 $$").wait().await, 137);
    }

    #[tokio::test]
    async fn it_may_end_in_its_own_way() {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let mut program = shell(&format!("trap 'exit 7' TERM; : > {}; while :; do sleep 0.01; done", ready.display()));
        until("it runs", || ready.exists()).await;
        assert_eq!(program.stop(Duration::from_secs(20)).await, 7);
        assert_eq!(program.stop(Duration::from_secs(20)).await, 7, "a second stop finds it ended");
    }

    #[tokio::test]
    async fn one_that_does_not_listen_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let mut program = shell(&format!("trap '' TERM; : > {}; while :; do sleep 0.01; done", ready.display()));
        until("it runs", || ready.exists()).await;
        assert_eq!(program.stop(Duration::from_millis(50)).await, 137);
    }

    #[tokio::test]
    async fn what_it_has_started_goes_with_it() {
        for is_stopped in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let note = folder.path().join("pid");
            let mut program = shell(&format!("sleep 1000 & echo $! > {}; wait", note.display()));
            until("it runs", || fs::read_to_string(&note).is_ok_and(|text| text.ends_with('\n'))).await;
            let id: i32 = fs::read_to_string(&note).unwrap().trim().parse().unwrap();
            if is_stopped {
                program.stop(Duration::from_secs(20)).await;
            }
            drop(program);
            let is_gone = || {
                let status = fs::read_to_string(format!("/proc/{id}/stat"));
                // A zombie waits for its new parent only.
                status.map_or(true, |status| status.contains(") Z "))
            };
            until("the grandchild is gone", is_gone).await;
        }
    }

    #[tokio::test]
    async fn a_terminals_signals_do_not_reach_it() {
        let mut program = shell("exec sleep 1000");
        let id = i32::try_from(program.id().unwrap()).unwrap();
        let group = rustix::process::getpgid(Pid::from_raw(id)).unwrap();
        assert_eq!(Some(group), Pid::from_raw(id));
        assert_eq!(program.stop(Duration::from_secs(20)).await, 128 + 15);
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = folder.path().join(name);
            fs::write(&path, "#!/no/such/interpreter\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.into_os_string()
        };
        let error = |word: OsString| {
            let error = Program::start(&[word]).unwrap_err();
            (error.exit_status(), error.to_string())
        };
        let (status, text) = error("no-such-program-here".into());
        assert!(status == 127 && text.contains("no-such-program-here") && text.contains("PATH"), "{status} {text}");
        let (status, text) = error(file("script", 0o755));
        assert!(status == 126 && text.contains("#!"), "{status} {text}");
        let (status, text) = error(file("plain", 0o644));
        assert!(status == 126 && text.contains("chmod"), "{status} {text}");
        assert_eq!(Program::start(&[]).unwrap_err().exit_status(), 2);
    }
}
