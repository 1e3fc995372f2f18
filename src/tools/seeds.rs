//! Lists what the seed stores hold.

use std::time::{Duration, SystemTime};

use super::{End, inspect, print};
use crate::cli;
use crate::name::NodeName;
use crate::seed::{OBJECTS_MAX, PRUNED_MAX, SeedError, SeedStore, SeedUrl, Stored, Survey, survey};

/// A balancer writes its object every minute: one that is ten times as old is dead.
const DEAD_AFTER: Duration = Duration::from_secs(600);

pub(super) async fn run(args: &cli::Seeds) -> Result<(), End> {
    let config = inspect(&args.common)?;
    let urls: Vec<SeedUrl> =
        config.cluster.seed_urls().map(str::parse).collect::<Result<_, _>>().map_err(anyhow::Error::new)?;
    if urls.is_empty() {
        return Err(anyhow::anyhow!("no seed store is configured: use --seed URL, or cluster.seeds in the file").into());
    }
    let now = SystemTime::now();
    let (mut text, mut failed) = (String::new(), false);
    if args.prune {
        for url in &urls {
            text += &prune(url, &config.cluster.name, now, &mut failed).await;
        }
    }
    for one in survey(&urls, &config.cluster.name).await {
        failed |= one.result.is_err();
        text += &describe(&one, now);
    }
    print(&text)?;
    if failed { Err(End::Silent) } else { Ok(()) }
}

async fn prune(url: &SeedUrl, cluster: &crate::name::ClusterName, now: SystemTime, failed: &mut bool) -> String {
    let store = SeedStore::open(url, cluster);
    if !store.keeps_objects() {
        return String::new();
    }
    let mut text = String::new();
    // In passes; whatever goes wrong, not for ever.
    for _ in 0..OBJECTS_MAX.div_ceil(PRUNED_MAX) {
        match prune_once(&store, now).await {
            Ok(removed) if removed.is_empty() => break,
            Ok(removed) => text.extend(removed.iter().map(|node| format!("{url}: removed {node}\n"))),
            Err(error) => {
                *failed = true;
                return text + &format!("{url}: not pruned: {error}\n");
            }
        }
    }
    if text.is_empty() { format!("{url}: nothing is dead\n") } else { text }
}

async fn prune_once(store: &SeedStore, now: SystemTime) -> Result<Vec<NodeName>, SeedError> {
    let listing = store.list().await?;
    store.prune(&listing, |stored| stored.object.age(now) > DEAD_AFTER).await
}

fn describe(survey: &Survey, now: SystemTime) -> String {
    let url = &survey.url;
    let listing = match &survey.result {
        Ok(listing) => listing,
        Err(error) => return format!("{url}: {error}\n"),
    };
    if listing.is_empty() && listing.invalid.is_empty() {
        return format!("{url}: empty\n");
    }
    let mut text = format!("{url}:\n");
    for Stored { object, .. } in &listing.objects {
        let addresses: Vec<String> = object.addresses.iter().map(ToString::to_string).collect();
        let age = object.age(now);
        let dead = if age > DEAD_AFTER { "  dead? `scrimp seeds --prune` removes it" } else { "" };
        let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
        text += &format!("  {:24} {:40} written {age} ago{dead}\n", object.node, addresses.join(" "));
    }
    for address in &listing.fixed {
        text += &format!("  {address}\n");
    }
    for object in &listing.invalid {
        text += &format!("  {}: passed over: {}\n", object.name, object.problem);
    }
    text
}
