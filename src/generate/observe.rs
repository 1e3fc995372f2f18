//! Sees whether nginx took a new configuration: it then has new workers.
//!
//! nginx answers a reload before it has tried; if it then cannot (a port is taken by another program, say), it
//! goes on with the old configuration, and only its error log tells. Linux shows process titles, and a worker's
//! says what it is. Where nothing can be seen, nothing is claimed.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// How long nginx may take to start its new workers.
const WAIT: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(20);

/// The workers of the nginx that a reload is for.
#[derive(Debug)]
pub struct Workers {
    configuration: Option<String>,
    seen: BTreeSet<u32>,
}

impl Workers {
    /// Those that work now; none if none can be seen. `reload` is the command line of the reload: with `-c FILE`
    /// it is meant for one nginx among several.
    #[must_use]
    pub fn now(reload: &[String]) -> Option<Self> {
        let configuration = reload.iter().skip_while(|word| *word != "-c").nth(1).cloned();
        let seen = workers(configuration.as_deref());
        (!seen.is_empty()).then_some(Self { configuration, seen })
    }

    /// Waits for a worker that was not there before.
    ///
    /// # Errors
    /// None came: what that means, in words for a person.
    pub async fn wait_for_new(self) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + WAIT;
        while tokio::time::Instant::now() < deadline {
            if !workers(self.configuration.as_deref()).is_subset(&self.seen) {
                return Ok(());
            }
            tokio::time::sleep(STEP).await;
        }
        Err(format!(
            "nginx was told to reload but went on with its old configuration (no new worker within {WAIT:?}): \
             see its error log; is a listen port taken by another program?"
        ))
    }
}

fn workers(configuration: Option<&str>) -> BTreeSet<u32> {
    let mut masters = BTreeSet::new();
    let mut workers = Vec::new();
    for process in processes() {
        let Some(title) = title(process) else { continue };
        if let Some(command) = title.strip_prefix("nginx: master process") {
            if configuration.is_none_or(|file| command.contains(file)) {
                masters.insert(process);
            }
        } else if title.starts_with("nginx: worker process") && !title.contains("shutting down") {
            workers.push(process);
        }
    }
    workers.retain(|worker| parent(*worker).is_some_and(|parent| masters.contains(&parent)));
    workers.into_iter().collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn title(process: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{process}/cmdline")).ok()?;
    bytes.starts_with(b"nginx: ").then(|| String::from_utf8_lossy(&bytes).replace('\0', " "))
}

fn parent(process: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}
