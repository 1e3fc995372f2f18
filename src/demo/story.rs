//! What the demo tells, while it runs and at its end.

use std::time::{Duration, Instant};

use super::load::Counts;

/// Tells lines with the time that has passed, unless a program listens.
pub(super) struct Story {
    began: Instant,
    is_silent: bool,
}

impl Story {
    pub(super) fn begin(is_silent: bool) -> Self {
        Self { began: Instant::now(), is_silent }
    }

    pub(super) fn tell(&self, line: &str) {
        if !self.is_silent {
            println!("{:6.2} s  {line}", self.began.elapsed().as_secs_f64());
        }
    }
}

/// Resident memory, in bytes, before the first load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) balancer: u64,
    pub(super) backend: u64,
}

/// How it went.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) backends: u8,
    pub(super) first_request: Duration,
    pub(super) all_backends: Duration,
    pub(super) memory: Memory,
    pub(super) killed: String,
    pub(super) replacement: String,
    pub(super) counts: Counts,
}

impl Outcome {
    pub(super) fn is_good(&self) -> bool {
        self.counts.failed == 0 && self.counts.by_backend.get(&self.replacement).is_some_and(|count| *count > 0)
    }

    pub(super) fn to_json(&self) -> String {
        let value = serde_json::json!({
            "ok": self.is_good(),
            "backends": self.backends,
            "first_request_ms": self.first_request.as_millis() as u64,
            "all_backends_ms": self.all_backends.as_millis() as u64,
            "idle_memory_bytes": { "balancer": self.memory.balancer, "backend": self.memory.backend },
            "killed": self.killed,
            "replacement": self.replacement,
            "requests": self.counts.requests(),
            "failed": self.counts.failed,
            "first_failure": self.counts.first_failure,
            "by_backend": self.counts.by_backend,
        });
        format!("{value:#}")
    }

    pub(super) fn to_text(&self) -> String {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let memory = format!(
            "idle memory: balancer {:.1} MB, backend {:.1} MB",
            megabytes(self.memory.balancer),
            megabytes(self.memory.backend)
        );
        let failure = self.counts.first_failure.as_ref().map(|text| format!("\nfirst failure: {text}"));
        let verdict = if self.is_good() { "No request failed." } else { "Not as it should be." };
        format!("\n{}\n{memory}{}\n{verdict}", self.counts.to_text(), failure.unwrap_or_default())
    }
}
