//! The benchmark of the gossip: what is promised of it, measured in a simulation beside plain foca's.
//!
//! ```text
//! cargo bench --features testing --bench gossip -- [CASE...] [--seeds N] [--first SEED] [--quick] [--ours] [--ablate] [--list]
//! ```
//!
//! A case is named by the first words of its name; none: all. Plain foca runs on the first five seeds. It ends with 1
//! if one of ours misses its goal. With `--ablate` each addition to foca is left out once, where it is missed; then it
//! ends with 1 if nothing gets worse.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use scrimp::gossip::simulation::Mode;
use scrimp::gossip::simulation::scenario::{Ablation, Case, Goal, Measure, Setup, ablations, cases, percentile};

/// Seeds on which plain foca runs: it shows what it shows on a few.
const SEEDS_PLAIN: u64 = 5;

struct Options {
    cases: Vec<String>,
    seeds: Option<u64>,
    first: u64,
    quick: bool,
    ours_alone: bool,
    ablate: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs this too, with nothing or with names of tests.
    if arguments.is_empty() || arguments.iter().any(|argument| argument == "--test") {
        println!("skipped: run it with `cargo bench --features testing --bench gossip`");
        return ExitCode::SUCCESS;
    }
    let options = match options(&arguments) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    // `change-10` is not the beginning of `change-100`, but that of `change` is.
    let is_named = |case: &Case, name: &str| {
        case.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let chosen = |case: &Case| options.cases.is_empty() || options.cases.iter().any(|name| is_named(case, name));
    let all: Vec<Case> = cases().into_iter().filter(chosen).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        all.iter().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    if all.is_empty() {
        eprintln!("no case is called so: --list shows all");
        return ExitCode::from(2);
    }
    let began = Instant::now();
    let mut verdicts = Vec::new();
    if options.ablate {
        let chosen = ablations().into_iter().filter(|ablation| chosen(&ablation.case));
        chosen.for_each(|ablation| verdicts.push(show_ablation(&ablation, &options)));
    } else {
        all.iter().for_each(|case| verdicts.extend(show(case, &options)));
    }
    summarise(&verdicts, began.elapsed().as_secs_f64())
}

/// What became of one goal.
struct Verdict {
    goal: String,
    /// Why not, if it is missed.
    missed: Option<String>,
}

fn summarise(verdicts: &[Verdict], took: f64) -> ExitCode {
    let missed: Vec<&Verdict> = verdicts.iter().filter(|verdict| verdict.missed.is_some()).collect();
    println!("\nSummary: {} of {} goals met, in {took:.0} s", verdicts.len() - missed.len(), verdicts.len());
    for verdict in &missed {
        println!("  MISS {}: {}", verdict.goal, verdict.missed.as_deref().unwrap_or_default());
    }
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn options(arguments: &[String]) -> Result<Options, String> {
    let mut options =
        Options { cases: Vec::new(), seeds: None, first: 0, quick: false, ours_alone: false, ablate: false };
    let mut arguments = arguments.iter();
    let number = |value: Option<&String>| {
        value.and_then(|value| value.parse::<u64>().ok()).ok_or_else(|| "--seeds and --first want a number".to_owned())
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seeds" => options.seeds = Some(number(arguments.next())?.max(1)),
            "--first" => options.first = number(arguments.next())?,
            "--quick" => options.quick = true,
            "--ours" => options.ours_alone = true,
            "--ablate" => options.ablate = true,
            "--bench" | "--list" => {}
            other if other.starts_with('-') => return Err(format!("{other} is no option of this benchmark")),
            name => options.cases.push(name.to_owned()),
        }
    }
    Ok(options)
}

/// Runs one case on all its seeds and prints its lines.
fn show(case: &Case, options: &Options) -> Vec<Verdict> {
    let seeds = options.seeds.unwrap_or_else(|| if options.quick { case.seeds.min(2) } else { case.seeds });
    let began = Instant::now();
    let runs = |seeds: u64, mode| run(case, options, seeds, |seed| case.run(&Setup::new(seed, mode, options.quick)));
    let ours = runs(seeds, Mode::Ours);
    let has_plain = case.has_baseline && !options.ours_alone;
    let plain = merge(&if has_plain { runs(seeds.min(SEEDS_PLAIN), Mode::Plain) } else { Vec::new() });
    let took = began.elapsed().as_secs_f64();
    println!("\n{} (seeds {} to {}, {took:.1} s)", case.name, options.first, options.first + seeds - 1);
    println!("  {:52} {:>18} {:>30} {:>30}", "", "goal", "ours: p50 / p99 / max", "plain foca");
    let mut verdicts = Vec::new();
    for measure in merge(&ours) {
        let theirs = plain.iter().find(|other| other.what == measure.what);
        let theirs = theirs.map_or_else(|| "–".to_owned(), summary);
        let verdict = (measure.goal != Goal::default()).then(|| Verdict {
            goal: format!("{}: {}", case.name, measure.what),
            missed: (!measure.is_met()).then(|| {
                let worst = worst_seed(&ours, measure.what);
                format!("{} for {} {}, seed {worst}", summary(&measure), goal(&measure.goal), measure.unit)
            }),
        });
        let word = verdict.as_ref().map_or("", |verdict| if verdict.missed.is_none() { "MET" } else { "MISS" });
        let (what, ours) = (in_its_unit(measure.what, measure.unit), summary(&measure));
        println!("  {what:52} {:>18} {ours:>30} {theirs:>30}  {word}", goal(&measure.goal));
        verdicts.extend(verdict);
    }
    verdicts
}

/// Runs a case with and without something, and prints the measure that should get worse.
fn show_ablation(ablation: &Ablation, options: &Options) -> Verdict {
    let (case, seeds) = (&ablation.case, options.seeds.unwrap_or(4));
    let measured = |is_left_out: bool| {
        let runs = run(case, options, seeds, |seed| ablation.run(&Setup::new(seed, Mode::Ours, true), is_left_out));
        merge(&runs).into_iter().find(|measure| measure.what == ablation.what)
    };
    let (with, without) = (measured(false), measured(true));
    let sum = |measure: &Option<Measure>| measure.as_ref().map_or(f64::NAN, |measure| measure.values.iter().sum());
    let is_worse = sum(&without) > sum(&with);
    let figure = |measure: &Option<Measure>| measure.as_ref().map_or_else(String::new, summary);
    let what = in_its_unit(ablation.what, with.as_ref().map_or("", |with| with.unit));
    println!("{:16} {:22} {what:52}", ablation.name, case.name);
    let word = if is_worse { "MET" } else { "MISS" };
    println!(
        "{:16} with it {}; without {}  {word} (seeds {} to {})",
        "",
        figure(&with),
        figure(&without),
        options.first,
        options.first + seeds - 1
    );
    let missed = (!is_worse).then(|| format!("{what}: {} with it, {} without", figure(&with), figure(&without)));
    Verdict { goal: format!("{} earns its lines", ablation.name), missed }
}

fn in_its_unit(what: &str, unit: &str) -> String {
    if unit.is_empty() { what.to_owned() } else { format!("{what}, {unit}") }
}

/// One thread a core, one seed at a time each.
fn run(
    case: &Case,
    options: &Options,
    seeds: u64,
    one: impl Fn(u64) -> Vec<Measure> + Sync,
) -> Vec<(u64, Vec<Measure>)> {
    let waiting: Mutex<VecDeque<u64>> = Mutex::new((options.first..options.first + seeds).collect());
    let done = Mutex::new(Vec::new());
    let cores = if case.runs_alone { 1 } else { thread::available_parallelism().map_or(1, usize::from) };
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = waiting.lock().expect("no thread panics with it").pop_front();
                    let Some(seed) = seed else { return };
                    let measures = one(seed);
                    done.lock().expect("no thread panics with it").push((seed, measures));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no thread panics with it");
    done.sort_by_key(|(seed, _)| *seed);
    done
}

/// The measures of all seeds as one.
fn merge(runs: &[(u64, Vec<Measure>)]) -> Vec<Measure> {
    let mut merged: Vec<Measure> = Vec::new();
    for measure in runs.iter().flat_map(|(_, measures)| measures) {
        match merged.iter_mut().find(|known| known.what == measure.what) {
            Some(known) => known.values.extend(&measure.values),
            None => merged.push(measure.clone()),
        }
    }
    merged.iter_mut().for_each(|measure| measure.values.sort_by(f64::total_cmp));
    merged
}

/// The seed with the greatest value.
fn worst_seed(runs: &[(u64, Vec<Measure>)], what: &str) -> u64 {
    let worst = |measures: &[Measure]| {
        measures
            .iter()
            .filter(|measure| measure.what == what)
            .flat_map(|measure| &measure.values)
            .copied()
            .fold(0.0, f64::max)
    };
    let greatest = runs.iter().max_by(|(_, a), (_, b)| worst(a).total_cmp(&worst(b)));
    greatest.map_or(0, |(seed, _)| *seed)
}

fn goal(goal: &Goal) -> String {
    let limits = [("p50", goal.p50), ("p99", goal.p99), ("p99.9", goal.p999), ("", goal.max)];
    let words: Vec<String> =
        limits.into_iter().filter_map(|(name, limit)| Some(format!("{name}≤{}", number(limit?)))).collect();
    words.join(" ")
}

/// Counts are summed, all else is given by percentiles.
fn summary(measure: &Measure) -> String {
    let values = &measure.values;
    if measure.unit.is_empty() {
        let sum: f64 = values.iter().sum();
        let runs = values.iter().filter(|value| **value > 0.0).count();
        return if sum > 0.0 { format!("{sum} in {runs}/{} runs", values.len()) } else { "0".to_owned() };
    }
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| number(percentile(values, share)));
    format!("{p50} / {p99} / {max}")
}

fn number(value: f64) -> String {
    match value {
        value if value.is_infinite() => "never".to_owned(),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value == value.trunc() => format!("{value}"),
        value if value < 0.1 => format!("{value:.3}"),
        value => format!("{value:.2}"),
    }
}
