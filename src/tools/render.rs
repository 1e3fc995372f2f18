//! Prints what generate mode would write, without touching anything.
//!
//! The roster comes from the running node (`/v1/apps`), or from a file of the same form.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;

use super::{End, ask, inspect, print};
use crate::admin::view::{AppView, AppsView, BackendView};
use crate::app::{App, AppState, Offer, PolicyName};
use crate::cli;
use crate::config::Config;
use crate::generate::{self, TemplateSource};
use crate::member::{Member, MemberState, NodeId, Reach, Role, Roster};
use crate::name::{NodeName, Port, Weight};
use crate::pool::Pools;

/// The largest roster that is read: some 10,000 backends.
const ROSTER_BYTES_MAX: u64 = 16 << 20;

pub(super) async fn run(args: &cli::Render) -> Result<(), End> {
    let config = inspect(&args.common)?;
    let apps = match &args.roster {
        Some(path) => read(path)?,
        None => {
            let client = cli::Client { config: args.common.config.clone(), admin: args.common.admin.clone() };
            ask::client(&client)?.apps().await.map_err(anyhow::Error::new)?
        }
    };
    let roster = roster(&config, &apps)?;
    let pools = Pools::default().next(&roster, &config.lb.rules, std::time::Instant::now());
    for refused in &pools.refused {
        eprintln!("scrimp: application {} is left out: {}", refused.app, refused.reason);
    }
    print(&generate::preview(&settings(&config), &pools).map_err(anyhow::Error::new)?)
}

fn settings(config: &Config) -> generate::Config {
    config.lb.generate.clone().unwrap_or_else(|| generate::Config {
        template: TemplateSource::Nginx,
        target: PathBuf::from("/etc/nginx/conf.d/scrimp.conf"),
        check: None,
        reload: None,
        certificates: config.lb.certificates.clone(),
    })
}

fn read(path: &Path) -> anyhow::Result<AppsView> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot open the roster {}", path.display()))?;
    file.take(ROSTER_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the roster {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is no roster: it takes the form of `scrimp apps --json`", path.display()))
}

fn roster(config: &Config, view: &AppsView) -> anyhow::Result<Roster> {
    let mut offers: BTreeMap<(String, IpAddr, Reach), Offer> = BTreeMap::new();
    let mut gone: Vec<(App, AppState)> = Vec::new();
    for app in &view.apps {
        if app.backends.is_empty() {
            gone.push((
                offered_by_nobody(app).with_context(|| format!("application {:.80}", app.name))?,
                AppState::Starting,
            ));
        }
        for backend in &app.backends {
            let (ip, offered) = offered(app, backend)
                .with_context(|| format!("application {:.80}, backend {:.80}", app.name, backend.node))?;
            let reach = if backend.state == "suspected" { Reach::Silent } else { Reach::Unknown };
            offers.entry((backend.node.clone(), ip, reach)).or_default().apps.push(offered);
        }
    }
    let members = offers.into_iter().zip(1..).map(|(((node, ip, reach), offer), number)| {
        let name: NodeName = node.parse()?;
        Ok(Member {
            id: NodeId(number),
            name: Some(name),
            role: Some(Role::Backend),
            address: SocketAddr::new(ip, crate::config::GOSSIP_PORT),
            state: MemberState::Alive,
            since: SystemTime::UNIX_EPOCH,
            reach,
            offer: Some(Arc::new(offer)),
        })
    });
    let mut members = members.collect::<anyhow::Result<Vec<_>>>()?;
    members.push(down(gone)?);
    Ok(Roster { cluster: config.cluster.name.clone(), me: NodeId(0), members })
}

/// Whoever offered these is gone: their routes stand, empty.
fn down(apps: Vec<(App, AppState)>) -> anyhow::Result<Member> {
    Ok(Member {
        id: NodeId(0),
        name: Some("down".parse()?),
        role: Some(Role::Backend),
        address: SocketAddr::new(IpAddr::from([0, 0, 0, 0]), crate::config::GOSSIP_PORT),
        state: MemberState::Down,
        since: SystemTime::UNIX_EPOCH,
        reach: Reach::Unknown,
        offer: Some(Arc::new(Offer { apps })),
    })
}

fn offered(app: &AppView, backend: &BackendView) -> anyhow::Result<(IpAddr, (App, AppState))> {
    let address: SocketAddr = backend.address.parse().with_context(|| format!("address {:?}", backend.address))?;
    let offered = App {
        port: port(address.port())?,
        weight: backend.weight.try_into()?,
        policy: backend.policy.as_deref().map(policy).transpose()?,
        ..offered_by_nobody(app)?
    };
    let state = match backend.state.as_str() {
        "starting" => AppState::Starting,
        "draining" => AppState::Draining,
        _ => AppState::Ready,
    };
    Ok((address.ip(), (offered, state)))
}

fn offered_by_nobody(app: &AppView) -> anyhow::Result<App> {
    let mut offered = App {
        name: app.name.parse()?,
        protocol: app.protocol.parse().map_err(anyhow::Error::msg)?,
        port: Port::MIN,
        listen: port(app.listen)?,
        domains: app.domains.iter().map(|domain| domain.parse()).collect::<Result<_, _>>()?,
        path: app.path.parse()?,
        weight: Weight::default(),
        policy: None,
        proxy_protocol: None,
    };
    offered.normalize();
    Ok(offered)
}

fn port(number: u16) -> anyhow::Result<Port> {
    Port::new(number).context("port 0")
}

fn policy(word: &str) -> anyhow::Result<PolicyName> {
    serde_json::from_value(word.into()).with_context(|| format!("policy {word:.80}"))
}
