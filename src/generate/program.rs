//! Runs a program directly, without a shell, with a time limit and a bound on what it may say.

use std::io::ErrorKind;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// How long a program may take before it is killed.
pub const TIME_MAX: Duration = Duration::from_secs(10);
/// How much of what a program says is shown.
pub const SHOWN_BYTES_MAX: usize = 4 * 1024;
/// How much of what a program says is kept; the rest is read and dropped.
const KEPT_BYTES_MAX: usize = 16 * 1024;
/// How long a program that has ended may leave its output open (to a child of its own).
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// Why a program did not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// There is no such program.
    #[error("{0} is not there")]
    Missing(String),
    /// It could not be started.
    #[error("{0} could not be started: {1}")]
    Start(String, String),
    /// It took too long.
    #[error("`{0}` did not end within {1:?} and was killed")]
    Time(String, Duration),
    /// It ended with an error.
    #[error("`{command}` failed ({status}): {said}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said, in one line.
        said: String,
    },
}

/// Runs a command line (its first word is the program) to its end; what it said, in one line.
///
/// # Errors
/// Everything but an exit status of zero.
pub async fn run(words: &[String]) -> Result<String, ProgramError> {
    run_within(words, TIME_MAX, KEPT_BYTES_MAX).await.map(|said| said.one_line())
}

/// The same; what it wrote to its standard output as it is, up to `bytes_max`.
///
/// # Errors
/// Everything but an exit status of zero.
pub async fn output(words: &[String], bytes_max: usize) -> Result<String, ProgramError> {
    let said = run_within(words, TIME_MAX, bytes_max).await?;
    Ok(String::from_utf8_lossy(&said.output).into_owned())
}

/// What a program said.
#[derive(Debug, Default)]
struct Said {
    errors: Vec<u8>,
    output: Vec<u8>,
}

impl Said {
    fn one_line(&self) -> String {
        one_line(&[&self.errors[..], &self.output[..]].concat())
    }
}

async fn run_within(words: &[String], limit: Duration, kept_bytes: usize) -> Result<Said, ProgramError> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(Said::default());
    };
    let mut child = spawn(program, arguments)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    let outcome = tokio::time::timeout(limit, finish(&mut child, kept_bytes)).await;
    if let (Some(group), Err(_)) = (group, &outcome) {
        // The program and what it started: all of it is in a process group of its own.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = child.wait().await;
    }
    let command = one_line(words.join(" ").as_bytes());
    match outcome {
        Err(_) => Err(ProgramError::Time(command, limit)),
        Ok(Err(error)) => Err(ProgramError::Start(program.clone(), error.to_string())),
        Ok(Ok((status, said))) if status.success() => Ok(said),
        Ok(Ok((status, said))) => Err(ProgramError::Failed { command, status, said: said.one_line() }),
    }
}

fn spawn(program: &str, arguments: &[String]) -> Result<Child, ProgramError> {
    Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => ProgramError::Missing(program.to_owned()),
            _ => ProgramError::Start(program.to_owned(), error.to_string()),
        })
}

async fn finish(child: &mut Child, kept_bytes: usize) -> std::io::Result<(ExitStatus, Said)> {
    let mut said = Said::default();
    let (stderr, stdout) = (child.stderr.take(), child.stdout.take());
    let status = {
        let mut read = std::pin::pin!(async {
            tokio::join!(
                read_some(stderr, &mut said.errors, kept_bytes),
                read_some(stdout, &mut said.output, kept_bytes)
            );
        });
        tokio::select! {
            status = child.wait() => {
                let _ = tokio::time::timeout(OUTPUT_GRACE, read).await;
                status?
            }
            () = &mut read => child.wait().await?,
        }
    };
    Ok((status, said))
}

async fn read_some(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>, bytes_max: usize) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
        let free = bytes_max.saturating_sub(kept.len());
        kept.extend(chunk.iter().take(length.min(free)));
    }
}

/// Lines joined by `; `, control characters gone.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").replace(char::is_control, " ")
}

/// What of a text is shown to a person.
#[must_use]
pub fn shorten(text: &str) -> &str {
    text.get(..text.floor_char_boundary(SHOWN_BYTES_MAX)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn what_a_failing_program_says_comes_in_one_line() {
        let error = run(&shell("echo one >&2; printf 'two\\033[1m\\n' >&2; exit 3")).await.unwrap_err();
        assert!(matches!(&error, ProgramError::Failed { said, .. } if said == "one; two [1m"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_program_is_told_from_a_failing_one() {
        let words = ["/nonexistent/nginx".to_owned(), "-t".to_owned()];
        assert_eq!(run(&words).await, Err(ProgramError::Missing("/nonexistent/nginx".to_owned())));
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed_with_its_children() {
        let begun = std::time::Instant::now();
        let error = run_within(&shell("sleep 600 & sleep 600"), Duration::from_millis(200), 0).await.unwrap_err();
        assert!(matches!(error, ProgramError::Time(..)), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_child_that_holds_the_output_open_does_not_hold_us() {
        let begun = std::time::Instant::now();
        run(&shell("sleep 4 & exit 0")).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(3));
    }

    #[tokio::test]
    async fn a_talkative_program_is_read_to_its_end_and_kept_in_bounds() {
        let said = run(&shell("head -c 1000000 /dev/zero | tr '\\0' x")).await.unwrap();
        assert_eq!((said.len(), shorten(&said).len()), (KEPT_BYTES_MAX, SHOWN_BYTES_MAX));
    }
}
