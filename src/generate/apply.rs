//! Brings a text into use: judged, swapped in, checked, reloaded; or nothing at all.
//!
//! On any failure the old file stands byte for byte. One case is none: where the new file passed its check and only
//! nginx does not run, the new file stays, because nginx loads it when it starts.

use std::path::Path;
use std::sync::Arc;

use crate::report::GenerateCounters;

use super::nginx::{self, Block};
use super::observe::Workers;
use super::place;
use super::program::{self, ProgramError, shorten};
use super::target::Target;
use super::{Config, Error, TemplateSource};

/// Stands for the candidate's path in a configured check.
const CANDIDATE: &str = "{candidate}";

/// The most of nginx's whole configuration that is looked at.
const DUMP_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is what stands and runs already: nothing was written, nothing reloaded.
    Unchanged,
    /// It is in use now.
    Applied,
}

/// Knows the commands and the file, and whether the file is what runs.
#[derive(Debug)]
pub struct Apply {
    target: Target,
    check: Vec<String>,
    reload: Vec<String>,
    block: Option<Block>,
    counters: Arc<GenerateCounters>,
    in_use: bool,
    /// nginx was seen to load the file.
    is_placed: bool,
}

impl Apply {
    /// Nothing is touched yet.
    ///
    /// # Errors
    /// The target cannot be what it is to be.
    pub fn new(config: &Config, counters: Arc<GenerateCounters>) -> Result<Self, Error> {
        let block = match config.template {
            TemplateSource::Nginx => Some(Block::Http),
            TemplateSource::NginxStream => Some(Block::Stream),
            TemplateSource::File(_) => None,
        };
        let standard = |words: &[&str]| match block {
            Some(_) => words.iter().map(|word| (*word).to_owned()).collect(),
            None => Vec::new(),
        };
        Ok(Self {
            target: Target::new(&config.target)?,
            check: config.check.clone().unwrap_or_else(|| standard(&["nginx", "-t"])),
            reload: config.reload.clone().unwrap_or_else(|| standard(&["nginx", "-s", "reload"])),
            block,
            counters,
            in_use: true,
            is_placed: false,
        })
    }

    /// Whether a file with something in it stands from an earlier run.
    #[must_use]
    pub fn has_file(&self) -> bool {
        matches!(self.target.read(), Ok(Some(bytes)) if !bytes.is_empty())
    }

    /// What runs is not known: the next text is brought into use even if it stands already.
    pub fn doubt(&mut self) {
        self.in_use = false;
    }

    /// Undoes what a crash left unfinished. Call it once, before the first text.
    ///
    /// # Errors
    /// The file from before the crash cannot be put back.
    pub fn recover(&mut self) -> Result<(), Error> {
        // Which of the two files runs is not known then.
        self.in_use &= !self.target.recover()?;
        Ok(())
    }

    /// Asks about a text, and about what stands, without touching either.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub async fn ask(&self, text: &str) -> Result<(), Error> {
        self.judge(text).await?;
        if let Some(dump) = self.dump().await {
            place::judge(&dump, &self.target.path, self.block).map_err(Error::Check)?;
            if let Some(file) = place::other_default(&dump, &self.target.path, text) {
                return Err(Error::Check(format!(
                    "{file} already is the default server of a port that scrimp needs; remove that file, or \
                     default_server from its listen lines"
                )));
            }
        }
        if self.check.iter().any(|word| word.contains(CANDIDATE)) {
            self.stage(text).await?;
            let outcome = self.check(&self.target.candidate).await;
            let target = self.target.clone();
            blocking(move || target.discard()).await?;
            return outcome;
        }
        self.check(&self.target.path).await
    }

    /// Brings a text into use.
    ///
    /// # Errors
    /// Why it is not; see the module's comment for what stands then.
    pub async fn apply(&mut self, text: &str) -> Result<Outcome, Error> {
        let target = self.target.clone();
        let old = blocking(move || target.read()).await?;
        if old.as_deref() == Some(text.as_bytes()) {
            if self.in_use {
                return Ok(Outcome::Unchanged);
            }
            self.check(&self.target.path).await?;
            self.reload().await?;
            self.settle().await?;
        } else {
            self.replace(text, old.is_some()).await?;
        }
        self.in_use = true;
        Ok(Outcome::Applied)
    }

    async fn replace(&mut self, text: &str, was_there: bool) -> Result<(), Error> {
        self.stage(text).await?;
        let judged = match self.judge(text).await {
            Ok(()) => self.check_candidate().await,
            bad => bad,
        };
        if let Err(error) = judged {
            return Err(self.reject(text, error).await);
        }
        let target = self.target.clone();
        blocking(move || target.swap_in()).await?;
        self.counters.writes.inc();
        let outcome = match self.check_in_place().await {
            Ok(()) => self.reload().await,
            bad => bad,
        };
        match outcome {
            Ok(()) => self.settle().await,
            Err(error @ Error::NotRunning(_)) => self.settle().await.and(Err(error)),
            Err(error) => Err(self.undo(text, was_there, error).await),
        }
    }

    async fn undo(&self, text: &str, was_there: bool, error: Error) -> Error {
        let target = self.target.clone();
        match blocking(move || target.restore(was_there)).await {
            Ok(()) => self.reject(text, error).await,
            Err(worse) => Error::Target(format!("{error}; and then {worse}")),
        }
    }

    async fn reject(&self, text: &str, error: Error) -> Error {
        let (target, text) = (self.target.clone(), text.to_owned());
        let _ = blocking(move || {
            target.reject(&text);
            Ok(())
        })
        .await;
        error
    }

    async fn stage(&self, text: &str) -> Result<(), Error> {
        let (target, text) = (self.target.clone(), text.to_owned());
        blocking(move || target.stage(&text)).await
    }

    async fn settle(&self) -> Result<(), Error> {
        let target = self.target.clone();
        blocking(move || target.settle()).await
    }

    /// A built-in template's text can be judged by itself, wherever nginx is called directly.
    async fn judge(&self, text: &str) -> Result<(), Error> {
        match (self.block, self.check.first()) {
            (Some(block), Some(program)) if is_nginx(program) => {
                nginx::judge(program, block, text, &self.target.path).await.map_err(|error| self.check_error(&error))
            }
            _ => Ok(()),
        }
    }

    async fn check_candidate(&self) -> Result<(), Error> {
        if self.check.iter().any(|word| word.contains(CANDIDATE)) {
            return self.check(&self.target.candidate).await;
        }
        Ok(())
    }

    /// With the new file under the target's name. That nginx loads it is looked at until it was seen once.
    async fn check_in_place(&mut self) -> Result<(), Error> {
        self.check(&self.target.path).await?;
        if !self.is_placed
            && let Some(dump) = self.dump().await
        {
            place::judge_standing(&dump, &self.target.path, self.block).map_err(Error::Check)?;
        }
        self.is_placed = true;
        Ok(())
    }

    /// All that nginx loads; none if that cannot be asked. One in a container has other paths than this machine.
    async fn dump(&self) -> Option<String> {
        let tests = |word: &String| word == "-t";
        let program = self.check.iter().find(|word| *word != "sudo" && *word != "-n")?;
        if !is_nginx(program) || !self.check.iter().any(tests) {
            return None;
        }
        let show = |word: &String| if tests(word) { "-T".to_owned() } else { word.clone() };
        let words: Vec<String> = self.check.iter().map(show).collect();
        program::output(&words, DUMP_BYTES_MAX).await.ok().filter(|dump| dump.len() < DUMP_BYTES_MAX)
    }

    async fn check(&self, candidate: &Path) -> Result<(), Error> {
        let candidate = candidate.to_string_lossy();
        let words: Vec<String> = self.check.iter().map(|word| word.replace(CANDIDATE, &candidate)).collect();
        program::run(&words).await.map(|_| ()).map_err(|error| self.check_error(&error))
    }

    async fn reload(&mut self) -> Result<(), Error> {
        // Whatever happens from here on, what runs is known again only when it has gone well.
        self.in_use = false;
        let workers = self.observed();
        program::run(&self.reload).await.map_err(|error| self.reload_error(&error))?;
        if let Some(workers) = workers {
            workers.wait_for_new().await.map_err(Error::Reload)?;
        }
        self.counters.reloads.inc();
        Ok(())
    }

    /// `nginx -s reload` says only that the signal was sent. That nginx took the new configuration shows in new
    /// workers, where they can be seen.
    fn observed(&self) -> Option<Workers> {
        self.block?;
        self.reload.iter().any(|word| is_nginx(word)).then(|| Workers::now(&self.reload))?
    }

    fn check_error(&self, error: &ProgramError) -> Error {
        Error::Check(explain(error, &self.target.path))
    }

    fn reload_error(&self, error: &ProgramError) -> Error {
        match error {
            ProgramError::Failed { said, .. } if nginx::is_not_running(said) => Error::NotRunning(
                "nginx is not running: start it (systemctl start nginx); it then loads the newest file".to_owned(),
            ),
            other => Error::Reload(explain(other, &self.target.path)),
        }
    }
}

fn explain(error: &ProgramError, ours: &Path) -> String {
    let (text, remedy) = match error {
        ProgramError::Failed { command, status, said } => {
            let said = nginx::essence(said);
            let remedy = nginx::remedy(&said, ours);
            (ProgramError::Failed { command: command.clone(), status: *status, said }.to_string(), remedy)
        }
        ProgramError::Missing(program) if is_nginx(program) => (
            error.to_string(),
            Some(
                "nginx is not installed: apt-get install nginx (and libnginx-mod-stream for TCP and UDP applications)",
            ),
        ),
        ProgramError::Missing(_) => {
            (error.to_string(), Some("install it, or correct lb.generate.check and lb.generate.reload"))
        }
        _ => (error.to_string(), None),
    };
    match remedy {
        Some(remedy) => format!("{}; {remedy}", shorten(&text)),
        None => shorten(&text).to_owned(),
    }
}

fn is_nginx(word: &str) -> bool {
    Path::new(word).file_name().is_some_and(|name| name == "nginx")
}

/// What waits for the disk or takes long has a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::Target(error.to_string())))
}
