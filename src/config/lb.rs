//! What a balancer does with what the cluster offers: `[lb]`.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::certificate::Certificate;
use crate::generate::{self, TemplateSource};
use crate::name::DomainPattern;
use crate::pool::{Allow, AllowRule, Rules};
use crate::proxy::{self, BackendTls, Https, Limits, OnRemoval, Timeouts};

use super::app::policy;
use super::section::{Section, unknown};
use super::source::remedy;
use super::tree::{Node, Value, quote};
use super::value;

/// Settings of a balancer.
#[derive(Debug, Clone, Default)]
pub struct LbConfig {
    /// Who passes requests on.
    pub mode: Mode,
    /// The proxy's settings; of no use in generate mode.
    pub proxy: proxy::Config,
    /// What backends may claim, and the default policy.
    pub rules: Rules,
    /// The generator's settings; there in generate mode only.
    pub generate: Option<generate::Config>,
    /// Certificates, in order of preference.
    pub certificates: Vec<Certificate>,
}

/// Who passes requests on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// scrimp itself.
    #[default]
    Proxy,
    /// Another program, whose configuration scrimp writes.
    Generate,
}

impl LbConfig {
    /// Reads `[lb]`. Only a balancer that is to run needs the files it names.
    pub(super) fn read(mut section: Section<'_>, is_to_run: bool) -> Self {
        let modes = [("proxy", Mode::Proxy), ("generate", Mode::Generate)];
        let mode = section.take("mode", |node| value::choice(node, &modes)).unwrap_or_default();
        let rules = allow(&mut section);
        // An empty list lets backends claim nothing; none at all is the default.
        let allow = if section.was_given("allow") { Allow { rules } } else { Allow::default() };
        let policy = section.take("policy", policy).unwrap_or_default();
        let certificates = certificates(&mut section, is_to_run);
        let proxy = proxy::Config { certificates: certificates.clone(), ..read_proxy(&mut section, is_to_run) };
        let generate = section.section("generate");
        let generate = read_generate(generate, mode, is_to_run, &certificates);
        section.finish();
        Self {
            mode,
            proxy,
            rules: Rules { allow, policy },
            generate: generate.filter(|_| mode == Mode::Generate),
            certificates,
        }
    }
}

fn read_proxy(section: &mut Section<'_>, is_to_run: bool) -> proxy::Config {
    let default = proxy::Config::default();
    let removals = [("drain", OnRemoval::Drain), ("kill", OnRemoval::Kill)];
    let has_no_address = section.has_empty_list("bind");
    let mut bind: Vec<IpAddr> = Vec::new();
    let given = section.take_list("bind", value::ip);
    for (_, address) in given.iter().flatten() {
        if !bind.contains(address) {
            bind.push(*address);
        }
    }
    if has_no_address {
        section.note(section.place("bind"), "no address, so no port would open: use [\"0.0.0.0\", \"::\"]");
    }
    let trusted = section.take_list("trusted-proxies", trusted_proxy).unwrap_or_default();
    let proxy_protocol = section.take_list("proxy-protocol", value::port).unwrap_or_default();
    if trusted.is_empty() && !proxy_protocol.is_empty() && !section.is_wrong("trusted-proxies") {
        let message = "nobody would be believed: name those who speak it in trusted-proxies";
        section.note(section.place("proxy-protocol"), message);
    }
    proxy::Config {
        trusted_proxies: trusted.into_iter().flat_map(|(_, nets)| nets).collect(),
        proxy_protocol: proxy_protocol.into_iter().map(|(_, port)| port).collect(),
        bind: if given.is_some() { bind } else { default.bind },
        workers: section.take("workers", |node| count(node, 0..=256)).unwrap_or(default.workers),
        on_removal: section.take("on-removal", |node| value::choice(node, &removals)).unwrap_or_default(),
        certificates: default.certificates,
        https: Https {
            redirect: section.take("https-redirect", value::boolean).unwrap_or(default.https.redirect),
            hsts: section.take("hsts", hsts),
            ..default.https
        },
        backend_tls: read_backend_tls(section.section("backend-tls"), is_to_run),
        timeouts: read_timeouts(section.section("timeouts")),
        limits: read_limits(section.section("limits")),
    }
}

/// A time span, or the whole of what the field is to say.
fn hsts(node: &Node) -> Result<String, String> {
    const EXPECTED: &str = "a duration like \"2y\", or all of it like \"max-age=63072000; includeSubDomains\"";
    const BYTES_MAX: usize = 256;
    let given = value::text(node, EXPECTED)?;
    let is_field = given.len() <= BYTES_MAX && given.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    if given.starts_with("max-age=") && is_field {
        return Ok(given.to_owned());
    }
    match humantime::parse_duration(given) {
        Ok(span) => Ok(format!("max-age={}", span.as_secs())),
        Err(_) => Err(format!("expected {EXPECTED}, found {}", quote(given))),
    }
}

fn read_backend_tls(mut section: Section<'_>, is_to_run: bool) -> BackendTls {
    let file = |node: &Node| value::path(node).and_then(|path| if is_to_run { present(path) } else { Ok(path) });
    let verify = [("on", true), ("off", false)];
    let tls = BackendTls {
        verify: section.take("verify", |node| value::choice(node, &verify)).unwrap_or(true),
        ca: section.take("ca", file),
        server_name: section.take("server-name", value::word),
    };
    if !tls.verify {
        for key in ["ca", "server-name"] {
            if section.was_given(key) {
                let message = format!("verify is \"off\", so that {key} means nothing: take one of them away");
                section.note(section.place(key), message);
            }
        }
    }
    section.finish();
    tls
}

fn read_timeouts(mut section: Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    let range = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);
    let mut take = |key, default| section.take(key, |node| value::duration(node, range.clone())).unwrap_or(default);
    let timeouts = Timeouts {
        connect: take("connect", default.connect),
        first_byte: take("first-byte", default.first_byte),
        header: take("header", default.header),
        body_progress: take("body-progress", default.body_progress),
        idle: take("idle", default.idle),
        response: take("response", default.response),
        tcp_idle: take("tcp-idle", default.tcp_idle),
        udp_idle: take("udp-idle", default.udp_idle),
    };
    section.finish();
    timeouts
}

fn read_limits(mut section: Section<'_>) -> Limits {
    const CONNECTIONS_MAX: i64 = 1_000_000;
    let default = Limits::default();
    let connections = |node: &Node| value::integer(node, 1..=CONNECTIONS_MAX).map(|n| u32::try_from(n).ok());
    let bytes = |node: &Node, range| value::size(node, range).map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let mut limits = Limits {
        connections: section.take("connections", connections).unwrap_or(default.connections),
        app_connections: section.take("app-connections", connections).unwrap_or(default.app_connections),
        udp_flows: section.take("udp-flows", connections).flatten().unwrap_or(default.udp_flows),
        header_bytes: section
            .take("header-bytes", |node| bytes(node, 1024..=1024 * 1024))
            .unwrap_or(default.header_bytes),
        header_fields: section.take("header-fields", |node| count(node, 1..=1000)).unwrap_or(default.header_fields),
        target_bytes: section
            .take("target-bytes", |node| bytes(node, 256..=1024 * 1024))
            .unwrap_or(default.target_bytes),
    };
    // The target is part of the header.
    if limits.target_bytes > limits.header_bytes {
        if section.was_given("target-bytes") {
            let message = format!("more than header-bytes ({}), of which the target is a part", limits.header_bytes);
            section.note(section.place("target-bytes"), message);
        }
        limits.target_bytes = limits.header_bytes;
    }
    section.finish();
    limits
}

fn count(node: &Node, range: std::ops::RangeInclusive<i64>) -> Result<usize, String> {
    value::integer(node, range).map(|number| usize::try_from(number).unwrap_or(0))
}

fn allow(section: &mut Section<'_>) -> Vec<AllowRule> {
    let rule = |mut table: Section<'_>| {
        let domains = table.take_list("domains", value::word::<DomainPattern>).unwrap_or_default();
        let ports = table.take_list("ports", value::port).unwrap_or_default();
        table.finish();
        AllowRule {
            domains: domains.into_iter().map(|(_, domain)| domain).collect(),
            ports: ports.into_iter().map(|(_, port)| port).collect(),
        }
    };
    section.sections("allow").into_iter().map(rule).collect()
}

/// Private networks of RFC 1918 and RFC 4193, and this machine.
const PRIVATE: [&str; 6] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1/128"];

/// As published at <https://www.cloudflare.com/ips/>; unchanged since 2021.
const CLOUDFLARE: [&str; 22] = [
    "173.245.48.0/20",
    "103.21.244.0/22",
    "103.22.200.0/22",
    "103.31.4.0/22",
    "141.101.64.0/18",
    "108.162.192.0/18",
    "190.93.240.0/20",
    "188.114.96.0/20",
    "197.234.240.0/22",
    "198.41.128.0/17",
    "162.158.0.0/15",
    "104.16.0.0/13",
    "104.24.0.0/14",
    "172.64.0.0/13",
    "131.0.72.0/22",
    "2400:cb00::/32",
    "2606:4700::/32",
    "2803:f800::/32",
    "2405:b500::/32",
    "2405:8100::/32",
    "2a06:98c0::/29",
    "2c0f:f248::/32",
];

fn trusted_proxy(node: &Node) -> Result<Vec<IpNet>, String> {
    let preset = |nets: &[&str]| nets.iter().filter_map(|net| net.parse().ok()).collect();
    let given = value::text(node, "a network like \"10.0.0.0/8\", \"private\" or \"cloudflare\"")?;
    match given {
        "private" => Ok(preset(&PRIVATE)),
        "cloudflare" => Ok(preset(&CLOUDFLARE)),
        _ => {
            let address = || given.parse::<IpAddr>().ok().map(IpNet::from);
            let net = given.parse::<IpNet>().ok().or_else(address);
            net.map(|net| vec![net.trunc()]).ok_or_else(|| {
                format!("{} is no network: use one like \"10.0.0.0/8\", \"private\" or \"cloudflare\"", quote(given))
            })
        }
    }
}

fn certificates(section: &mut Section<'_>, is_to_run: bool) -> Vec<Certificate> {
    let file = |node: &Node| {
        let path = value::path(node)?;
        if is_to_run { present(path) } else { Ok(path) }
    };
    let mut certificates = Vec::new();
    for mut table in section.sections("certificate") {
        let chain = table.require("chain", "the PEM file of the certificate and those above it", file);
        let key = table.require("key", "the PEM file of the certificate's private key", file);
        table.finish();
        certificates.extend(chain.zip(key).map(|(chain, key)| Certificate { chain, key }));
    }
    certificates
}

/// `path`, if something is there. That this user may not look is no mistake: another program reads it.
fn present(path: PathBuf) -> Result<PathBuf, String> {
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("{} does not exist", path.display())),
        _ => Ok(path),
    }
}

fn read_generate(
    mut section: Section<'_>,
    mode: Mode,
    is_to_run: bool,
    certificates: &[Certificate],
) -> Option<generate::Config> {
    let is_used = mode == Mode::Generate && is_to_run;
    let template = section.take_or("template", TemplateSource::Nginx, |node| template(node, is_used));
    let target = if mode == Mode::Generate {
        let remedy = "the file to write, for example target = \"/etc/nginx/conf.d/scrimp.conf\"";
        section.require("target", remedy, value::path)
    } else {
        section.take("target", value::path)
    };
    let check = section.take("check", command);
    let reload = section.take("reload", command);
    section.finish();
    Some(generate::Config { template: template?, target: target?, check, reload, certificates: certificates.to_vec() })
}

fn template(node: &Node, is_used: bool) -> Result<TemplateSource, String> {
    match value::text(node, "the name or the path of a template")? {
        "nginx" => Ok(TemplateSource::Nginx),
        "nginx-stream" => Ok(TemplateSource::NginxStream),
        "haproxy" => {
            Err("\"haproxy\" is not built in yet: use nginx, nginx-stream or the path of a template".to_owned())
        }
        given if given.contains('/') || Path::new(given).extension().is_some() => {
            let path = value::path(node)?;
            if is_used {
                std::fs::File::open(&path)
                    .map_err(|error| format!("cannot read {}: {error}{}", path.display(), remedy(&path)))?;
            }
            Ok(TemplateSource::File(path))
        }
        given => Err(unknown(given, &["nginx", "nginx-stream", "the path of a template"])),
    }
}

/// A program and its arguments, never a line for a shell.
fn command(node: &Node) -> Result<Vec<String>, String> {
    const EXPECTED: &str = "expected a list of words like [\"nginx\", \"-t\"]";
    let Value::List(list) = &node.value else {
        return Err(format!("{EXPECTED}, found {}", node.value.describe()));
    };
    let words: Vec<String> =
        list.iter().map(|word| value::text(word, "a list of words").map(str::to_owned)).collect::<Result<_, _>>()?;
    match words.first() {
        Some(program) if !program.is_empty() => Ok(words),
        _ => Err(format!("{EXPECTED}, found no program in it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_network_parses() {
        for net in PRIVATE.iter().chain(&CLOUDFLARE) {
            let parsed: IpNet = net.parse().unwrap();
            assert_eq!(parsed, parsed.trunc(), "{net}");
        }
    }
}
