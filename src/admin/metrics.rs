//! `GET /metrics`: what the node counts, for Prometheus.
//!
//! The numbers live with the rooms that count them; a scrape reads them into [`Family`]s, and
//! `prometheus-client` writes those. Every label is bounded: a word of a closed list, a configured seed store or
//! cluster key, or an application among the first thousand ([`super::tally`]).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::show;
use super::tally::Tally;
use super::view::{AppsView, KeyView};
use super::{Lifecycle, Sources};
use crate::app::AppState;
use crate::member::{MemberState, Reach, Role};
use crate::report::{Counter, GenerateCounters, GossipCounters, ProxyCounters, SeedCounters};

/// The most seed stores that get a label.
const STORES_MAX: usize = 32;

/// How the numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// What every scraper and every `grep` reads.
    Classic,
    /// What a scraper that knows it asks for.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header asks for.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Classic }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All numbers as text.
pub(super) fn encode(sources: &Sources, tally: &mut Tally, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition { families: families(sources, tally), format }));
    let mut text = String::with_capacity(16 * 1024);
    encode_registry(&mut text, &registry)?;
    if format == Format::OpenMetrics {
        encode_eof(&mut text)?;
    }
    Ok(text)
}

type Labels = Vec<(&'static str, String)>;

/// One metric with all its labels.
#[derive(Debug)]
struct Family {
    /// Without the `_total` of counters.
    name: &'static str,
    help: &'static str,
    samples: Samples,
}

#[derive(Debug)]
enum Samples {
    Counters(Vec<(Labels, u64)>),
    Gauges(Vec<(Labels, f64)>),
}

#[derive(Debug)]
struct Exposition {
    families: Vec<Family>,
    format: Format,
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.families {
            match &family.samples {
                Samples::Gauges(samples) => {
                    let samples = samples.iter().map(|(labels, value)| (labels, ConstGauge::new(*value)));
                    write(&mut encoder, family.name, family.help, MetricType::Gauge, samples)?;
                }
                Samples::Counters(samples) if self.format == Format::OpenMetrics => {
                    let samples = samples.iter().map(|(labels, value)| (labels, ConstCounter::new(*value)));
                    write(&mut encoder, family.name, family.help, MetricType::Counter, samples)?;
                }
                // The classic format wants `_total` in the name of the family too. The library puts it only after
                // samples of counters; written as a gauge, a sample keeps the name as it is.
                Samples::Counters(samples) => {
                    let samples = samples.iter().map(|(labels, value)| (labels, ConstGauge::new(*value)));
                    let name = format!("{}_total", family.name);
                    write(&mut encoder, &name, family.help, MetricType::Counter, samples)?;
                }
            }
        }
        Ok(())
    }
}

fn write<'a, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    samples: impl Iterator<Item = (&'a Labels, M)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            return value.encode(metric);
        }
        value.encode(metric.encode_family(labels)?)?;
    }
    Ok(())
}

fn counter(name: &'static str, help: &'static str, counter: &Counter) -> Family {
    Family { name, help, samples: Samples::Counters(vec![(Labels::new(), counter.get())]) }
}

fn counters<const N: usize>(
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: [(&str, &Counter); N],
) -> Family {
    let sample = |(value, counter): (&str, &Counter)| (vec![(label, value.to_owned())], counter.get());
    Family { name, help, samples: Samples::Counters(values.into_iter().map(sample).collect()) }
}

fn gauge(name: &'static str, help: &'static str, value: f64) -> Family {
    Family { name, help, samples: Samples::Gauges(vec![(Labels::new(), value)]) }
}

fn gauges(name: &'static str, help: &'static str, samples: impl IntoIterator<Item = (Labels, f64)>) -> Family {
    Family { name, help, samples: Samples::Gauges(samples.into_iter().collect()) }
}

fn yes(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Counts of things that are there: far below 2^53, where floating point would begin to round.
fn count(things: usize) -> f64 {
    things as f64
}

fn seconds(moment: SystemTime) -> f64 {
    moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn families(sources: &Sources, tally: &mut Tally) -> Vec<Family> {
    let mut all = node(sources);
    all.extend(process());
    all.push(members(sources));
    all.push(keys(sources));
    all.push(reach(sources));
    all.extend(gossip(&sources.gossip_counters));
    all.extend(seeds(sources, &sources.seed_counters));
    if sources.pools.is_some() {
        all.extend(pools(sources));
        all.extend(traffic(tally));
    }
    all.extend(listeners(sources));
    all.extend(sources.proxy_counters.iter().flat_map(|counters| proxy(counters)));
    all.extend(sources.generate_counters.iter().flat_map(|counters| generate(sources, counters)));
    all.extend(local_apps(sources));
    all
}

fn node(sources: &Sources) -> Vec<Family> {
    let build =
        vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("role", sources.node.role.as_str().to_owned())];
    let is_ready = *sources.lifecycle.borrow() == Lifecycle::Ready;
    vec![
        gauges("scrimp_build_info", "Always 1; the labels tell what runs", [(build, 1.0)]),
        gauge("scrimp_start_time_seconds", "When the node was started", seconds(sources.node.started)),
        gauge("scrimp_ready", "1 if the node is ready, 0 while it is starting or draining", yes(is_ready)),
        gauge("scrimp_alone", "1 if no other member is known to be there", yes(sources.join.borrow().alone)),
    ]
}

fn process() -> Vec<Family> {
    let resident = resident_bytes()
        .map(|bytes| gauge("scrimp_process_resident_bytes", "Memory of the process that is in RAM", bytes as f64));
    // The folder is open itself while it is read.
    let fds = fs::read_dir("/proc/self/fd").map(|fds| fds.count().saturating_sub(1)).ok();
    let fds = fds.map(|fds| gauge("scrimp_process_open_fds", "Open file descriptors", count(fds)));
    resident.into_iter().chain(fds).collect()
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn members(sources: &Sources) -> Family {
    let roles = [Some(Role::Balancer), Some(Role::Backend), None];
    let states = [MemberState::Alive, MemberState::Suspect, MemberState::Down, MemberState::Left];
    let roster = sources.roster.borrow().clone();
    let samples = roles.into_iter().flat_map(|role| states.map(|state| (role, state))).map(|(role, state)| {
        let labels =
            vec![("role", role.map_or("unknown", Role::as_str).to_owned()), ("state", state.as_str().to_owned())];
        let found = roster.members.iter().filter(|member| member.role == role && member.state == state);
        (labels, count(found.count()))
    });
    gauges("scrimp_cluster_members", "Members of the cluster as this node sees them, itself included", samples)
}

fn keys(sources: &Sources) -> Family {
    let keys = show::keys(sources);
    let sample = |key: KeyView| (vec![("key", key.id)], count(key.used_by.len()));
    gauges(
        "scrimp_cluster_key_users",
        "Other members that seal with a cluster key of this node",
        keys.into_iter().map(sample),
    )
}

fn reach(sources: &Sources) -> Family {
    let roster = sources.roster.borrow().clone();
    let samples = [Reach::Unknown, Reach::Answers, Reach::Silent].map(|reach| {
        let there = roster.members.iter().filter(|member| member.state != MemberState::Left && member.id != roster.me);
        let found = there.filter(|member| member.reach == reach);
        (vec![("reach", show::reach(reach).to_owned())], count(found.count()))
    });
    gauges("scrimp_cluster_reach", "Other members that have not left, by what this node's own probes say", samples)
}

fn gossip(of: &GossipCounters) -> Vec<Family> {
    let datagrams = [("received", &of.datagrams_received), ("sent", &of.datagrams_sent)];
    let dropped = [
        ("malformed", &of.dropped_malformed),
        ("unknown-key", &of.dropped_unknown_key),
        ("unauthenticated", &of.dropped_unauthenticated),
        ("replayed", &of.dropped_replayed),
        ("invalid", &of.dropped_invalid),
        ("misaddressed", &of.dropped_misaddressed),
        ("excess", &of.dropped_excess),
    ];
    vec![
        counters("scrimp_gossip_datagrams", "Gossip datagrams", "direction", datagrams),
        counter("scrimp_gossip_sent_bytes", "Bytes of gossip datagrams sent, without headers", &of.bytes_sent),
        counters("scrimp_gossip_dropped", "Gossip datagrams dropped", "reason", dropped),
        counter("scrimp_gossip_renewals", "Times that this node became a newer run for the others", &of.renewals),
        counter("scrimp_gossip_questions_refused", "Connections over TCP closed unanswered", &of.questions_refused),
        counter("scrimp_gossip_offers_pulled", "Offers fetched over TCP", &of.offers_pulled),
        counter("scrimp_gossip_offer_pull_failures", "Such fetches that failed", &of.offer_pulls_failed),
    ]
}

fn seeds(sources: &Sources, of: &SeedCounters) -> Vec<Family> {
    let report = sources.seeds.borrow().clone();
    let stores = || {
        let stores = report.stores.iter().take(STORES_MAX);
        stores.map(|store| (vec![("store", store.url.clone())], store))
    };
    let last = stores().filter_map(|(labels, store)| Some((labels, seconds(store.last_ok?))));
    vec![
        counter("scrimp_seed_reads", "Lists read from a seed store", &of.reads),
        counter("scrimp_seed_read_failures", "Reads of a seed store that failed", &of.read_failures),
        counter("scrimp_seed_writes", "Objects written to a seed store", &of.writes),
        counter("scrimp_seed_write_failures", "Writes to a seed store that failed", &of.write_failures),
        counter("scrimp_seed_invalid_objects", "Objects in a seed store that made no sense", &of.invalid_objects),
        gauges(
            "scrimp_seed_store_up",
            "1 if the store answered the last time",
            stores().map(|(labels, store)| (labels, yes(store.error.is_none() && store.last_ok.is_some()))),
        ),
        gauges(
            "scrimp_seed_store_seeds",
            "Seeds that the store held the last time it answered",
            stores().map(|(labels, store)| (labels, count(store.seeds))),
        ),
        gauges("scrimp_seed_last_success_timestamp_seconds", "When the store last answered", last),
    ]
}

fn pools(sources: &Sources) -> Vec<Family> {
    let Some(pools) = sources.pools.as_ref().map(|pools| pools.borrow().clone()) else {
        return Vec::new();
    };
    let empty = pools.routes.iter().filter(|route| route.pool.backends.is_empty()).count();
    let last_resort = pools.routes.iter().filter(|route| route.pool.is_last_resort).count();
    vec![
        gauges("scrimp_backends", "Applications of backends, by state", backends(&show::apps(sources))),
        gauge("scrimp_routes", "Routes served", count(pools.routes.len())),
        gauge("scrimp_empty_routes", "Routes without a ready backend", count(empty)),
        gauge("scrimp_last_resort_routes", "Routes whose backends are all suspected or down", count(last_resort)),
        gauge("scrimp_refused_offers", "Offers that are not served in full", count(pools.refused.len())),
    ]
}

fn backends(apps: &AppsView) -> Vec<(Labels, f64)> {
    let mut states: BTreeMap<&str, usize> =
        ["ready", "starting", "draining", "suspected", "ejected"].map(|state| (state, 0)).into();
    for backend in apps.apps.iter().flat_map(|app| &app.backends) {
        *states.entry(&backend.state).or_default() += 1;
    }
    states.into_iter().map(|(state, found)| (vec![("state", state.to_owned())], count(found))).collect()
}

fn traffic(tally: &mut Tally) -> Vec<Family> {
    let totals = tally.totals();
    let labels = |app: &String| vec![("app", app.clone())];
    let requests = totals.iter().map(|(app, total)| (labels(app), total.requests)).collect();
    let failures = totals.iter().map(|(app, total)| (labels(app), total.failures)).collect();
    let active = totals.iter().map(|(app, total)| (labels(app), total.active as f64));
    vec![
        Family {
            name: "scrimp_app_requests",
            help: "Requests and connections begun to backends",
            samples: Samples::Counters(requests),
        },
        Family {
            name: "scrimp_app_failures",
            help: "Those that failed on the backend's side",
            samples: Samples::Counters(failures),
        },
        gauges("scrimp_app_active", "Requests and connections open to backends now", active),
    ]
}

fn listeners(sources: &Sources) -> Option<Family> {
    let ports = sources.listeners.as_ref()?.borrow().clone();
    let failed = ports.iter().filter(|port| port.error.is_some()).count();
    let sample = |state: &str, found| (vec![("state", state.to_owned())], count(found));
    let samples = [sample("open", ports.len() - failed), sample("failed", failed)];
    Some(gauges("scrimp_listen_ports", "Listen ports; failed if not open at every address", samples))
}

fn proxy(of: &ProxyCounters) -> Vec<Family> {
    let open = of.connections.get().saturating_sub(of.connections_closed.get());
    let [_, one, two, three, four, five] = &of.responses;
    let responses = [("1xx", one), ("2xx", two), ("3xx", three), ("4xx", four), ("5xx", five)];
    let errors = [
        ("no-route", &of.no_route),
        ("no-backend", &of.no_backend),
        ("bad-gateway", &of.bad_gateway),
        ("gateway-timeout", &of.gateway_timeout),
    ];
    let bytes = [("in", &of.bytes_in), ("out", &of.bytes_out)];
    let flows = of.udp_flows.get().saturating_sub(of.udp_flows_closed.get());
    let datagrams = [("in", &of.udp_in), ("out", &of.udp_out)];
    let dropped = [
        ("full", &of.udp_full),
        ("no-backend", &of.udp_no_backend),
        ("unsent", &of.udp_unsent),
        ("unanswerable", &of.udp_unanswerable),
    ];
    vec![
        counter("scrimp_connections", "Client connections accepted", &of.connections),
        gauge("scrimp_connections_open", "Client connections open now", open as f64),
        counter("scrimp_accept_failures", "Accepts that failed", &of.accept_failures),
        counter("scrimp_tls_handshakes", "TLS handshakes with clients finished", &of.tls_handshakes),
        counter("scrimp_tls_resumptions", "Those that went on with an earlier session", &of.tls_resumed),
        counter("scrimp_tls_failures", "TLS handshakes with clients that failed", &of.tls_failures),
        counter(
            "scrimp_proxy_header_failures",
            "Connections of trusted proxies closed for want of a PROXY protocol header",
            &of.proxy_header_failures,
        ),
        counter("scrimp_empty_pool_connections", "Client connections closed for want of a backend", &of.empty_pool),
        counter("scrimp_http_requests", "HTTP requests taken", &of.requests),
        counters("scrimp_http_responses", "HTTP responses, whoever made them", "class", responses),
        counters("scrimp_http_errors", "HTTP responses that the balancer made itself", "reason", errors),
        counter("scrimp_retries", "Attempts made again on another backend", &of.retries),
        counter("scrimp_connect_failures", "Connects to backends that failed", &of.connect_failures),
        counter("scrimp_killed_connections", "Connections ended because their backend was gone", &of.killed),
        counter("scrimp_broken_connections", "Connections and responses that a backend broke off", &of.broken),
        counter("scrimp_panics", "Connections and requests ended by a defect of scrimp's own", &of.panics),
        counters("scrimp_tcp_bytes", "Bytes of TCP applications, as seen from the clients", "direction", bytes),
        counter("scrimp_udp_flows", "UDP flows begun", &of.udp_flows),
        gauge("scrimp_udp_flows_open", "UDP flows open now", flows as f64),
        counters("scrimp_udp_datagrams", "Datagrams passed on, as seen from the clients", "direction", datagrams),
        counters("scrimp_udp_dropped", "Datagrams dropped", "reason", dropped),
    ]
}

fn generate(sources: &Sources, of: &GenerateCounters) -> Vec<Family> {
    let mut all = vec![
        counter("scrimp_generate_renders", "Renders", &of.renders),
        counter("scrimp_generate_writes", "Files written", &of.writes),
        counter("scrimp_generate_reloads", "Reloads that succeeded", &of.reloads),
        counter("scrimp_generate_failures", "Renders, checks, writes and reloads that failed", &of.failures),
    ];
    if let Some(report) = &sources.generate {
        let report = report.borrow();
        let is_up = report.error.is_none() && report.last_ok.is_some();
        all.push(gauge("scrimp_generate_up_to_date", "1 if the newest state is in use", yes(is_up)));
        all.extend(report.last_ok.map(|last| {
            let help = "When the file was last known to be right and in use";
            gauge("scrimp_generate_last_success_timestamp_seconds", help, seconds(last))
        }));
    }
    all
}

fn local_apps(sources: &Sources) -> Option<Family> {
    let apps = sources.local_apps.as_ref()?.borrow().clone();
    let states = [("starting", AppState::Starting), ("ready", AppState::Ready), ("draining", AppState::Draining)];
    let samples = states.map(|(word, state)| {
        let found = apps.iter().filter(|app| app.state == state).count();
        (vec![("state", word.to_owned())], count(found))
    });
    Some(gauges("scrimp_local_apps", "This node's own applications, by state", samples))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(format: Format) -> String {
        let dropped = Counter::default();
        dropped.add(3);
        let families = vec![
            counters("scrimp_x_dropped", "Dropped", "reason", [("bad\"\n\\", &dropped)]),
            gauge("scrimp_y", "Why", 0.5),
        ];
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Exposition { families, format }));
        let mut text = String::new();
        encode_registry(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn the_classic_format_names_counters_in_full() {
        let expected = "# HELP scrimp_x_dropped_total Dropped\n# TYPE scrimp_x_dropped_total counter\n\
                        scrimp_x_dropped_total{reason=\"bad\\\"\\n\\\\\"} 3\n\
                        # HELP scrimp_y Why\n# TYPE scrimp_y gauge\nscrimp_y 0.5\n";
        assert_eq!(text(Format::Classic), expected);
    }

    #[test]
    fn openmetrics_names_the_family_without_total() {
        let text = text(Format::OpenMetrics);
        assert!(text.contains("# TYPE scrimp_x_dropped counter\nscrimp_x_dropped_total{"), "{text}");
    }

    #[test]
    fn openmetrics_is_for_those_who_ask() {
        assert_eq!(Format::accepted("*/*"), Format::Classic);
        assert_eq!(Format::accepted(""), Format::Classic);
        assert_eq!(Format::accepted("application/openmetrics-text;version=1.0.0;q=0.5,*/*"), Format::OpenMetrics);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes().unwrap() > 100_000);
    }
}
