//! What processes took of the machine: processor time and memory, of a process and all below it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Of a tick of `/proc/PID/stat`.
const TICK: Duration = Duration::from_millis(10);

/// A process and all below it, as they were found once: workers that come later are not of it.
#[derive(Debug, Clone, Default)]
pub struct Tree(Vec<u32>);

/// Processor time so far: of each thread in nanoseconds, and of the processes in ticks, ended threads included.
#[derive(Debug, Default)]
pub struct Spent {
    threads: BTreeMap<(u32, u32), u64>,
    user_ticks: u64,
    kernel_ticks: u64,
}

impl Tree {
    pub fn of(root: u32) -> Self {
        let parents: Vec<(u32, u32)> =
            numbers("/proc").into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
        let mut tree = vec![root];
        let mut at = 0;
        while let Some(pid) = tree.get(at).copied() {
            tree.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| child));
            at += 1;
        }
        Self(tree)
    }

    /// The one that works, for a tracer: the last that was started.
    pub fn worker(&self) -> Option<u32> {
        self.0.last().copied()
    }

    pub fn spent(&self) -> Spent {
        let mut spent = Spent::default();
        for pid in &self.0 {
            for thread in numbers(&format!("/proc/{pid}/task")) {
                let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).unwrap_or_default();
                let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
                spent.threads.insert((*pid, thread), nanoseconds);
            }
            let fields = fields(*pid);
            let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
            spent.user_ticks += ticks(11);
            spent.kernel_ticks += ticks(12);
        }
        spent
    }

    /// The memory of the greatest, and what the others have of their own: what they share counts once, and what
    /// a process shares with strangers that run the same program counts too.
    pub fn memory_bytes(&self) -> u64 {
        let of = |pid: &u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let sum = |names: &[&str]| {
                let lines = text.lines().filter_map(|line| line.split_once(':'));
                let values = lines.filter(|(name, _)| names.contains(name));
                values.filter_map(|(_, value)| value.trim().trim_end_matches(" kB").parse::<u64>().ok()).sum::<u64>()
            };
            (sum(&["Rss"]) * 1024, sum(&["Private_Clean", "Private_Dirty"]) * 1024)
        };
        let all: Vec<(u64, u64)> = self.0.iter().map(of).collect();
        let all_own: u64 = all.iter().map(|(_, own)| own).sum();
        all.iter().max().map_or(0, |(whole, own)| whole + all_own - own)
    }
}

impl Spent {
    /// What was spent from an earlier moment to this one.
    pub fn since(&self, earlier: &Self) -> Duration {
        let of_thread =
            |(id, now): (&(u32, u32), &u64)| now.saturating_sub(earlier.threads.get(id).copied().unwrap_or(0));
        let exact = Duration::from_nanos(self.threads.iter().map(of_thread).sum());
        // A thread that has ended took its nanoseconds with it, but not its ticks.
        let (user, kernel) = self.ticks_since(earlier);
        let ticks = TICK * u32::try_from(user + kernel).unwrap_or(u32::MAX);
        exact.max(ticks.saturating_sub(TICK * 2))
    }

    /// Of what was spent since an earlier moment, the part that the kernel took.
    pub fn kernel_share_since(&self, earlier: &Self) -> f64 {
        let (user, kernel) = self.ticks_since(earlier);
        kernel as f64 / (user + kernel) as f64
    }

    fn ticks_since(&self, earlier: &Self) -> (u64, u64) {
        let user = self.user_ticks.saturating_sub(earlier.user_ticks);
        (user, self.kernel_ticks.saturating_sub(earlier.kernel_ticks))
    }
}

/// The numbers among the names in a folder.
fn numbers(folder: &str) -> Vec<u32> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The fields of `/proc/PID/stat` from the state on: the name before it may hold anything.
fn fields(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split(' ').map(str::to_owned).collect()
}

fn parent(pid: u32) -> Option<u32> {
    fields(pid).get(1)?.parse().ok()
}
