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
use crate::app::{App, AppState, Offer};
use crate::cli;
use crate::config::Config;
use crate::generate::{self, TemplateSource};
use crate::member::{Member, MemberState, NodeId, Role, Roster};
use crate::name::{NodeName, Port};
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
    let pools = Pools::default().next(&roster, &config.lb.rules);
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
    let mut offers: BTreeMap<(String, IpAddr), Offer> = BTreeMap::new();
    for app in &view.apps {
        for backend in &app.backends {
            let (ip, offered) = offered(app, backend)
                .with_context(|| format!("application {:.80}, backend {:.80}", app.name, backend.node))?;
            offers.entry((backend.node.clone(), ip)).or_default().apps.push(offered);
        }
    }
    let members = offers.into_iter().zip(1..).map(|(((node, ip), offer), number)| {
        let name: NodeName = node.parse()?;
        Ok(Member {
            id: NodeId(number),
            name: Some(name),
            role: Some(Role::Backend),
            address: SocketAddr::new(ip, crate::config::GOSSIP_PORT),
            state: MemberState::Alive,
            since: SystemTime::UNIX_EPOCH,
            offer: Some(Arc::new(offer)),
        })
    });
    let members = members.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Roster { cluster: config.cluster.name.clone(), me: NodeId(0), members })
}

fn offered(app: &AppView, backend: &BackendView) -> anyhow::Result<(IpAddr, (App, AppState))> {
    let address: SocketAddr = backend.address.parse().with_context(|| format!("address {:?}", backend.address))?;
    let port = |number: u16| Port::new(number).context("port 0");
    let mut offered = App {
        name: app.name.parse()?,
        protocol: app.protocol.parse().map_err(anyhow::Error::msg)?,
        port: port(address.port())?,
        listen: port(app.listen)?,
        domains: app.domains.iter().map(|domain| domain.parse()).collect::<Result<_, _>>()?,
        path: app.path.parse()?,
        weight: backend.weight.try_into()?,
        policy: None,
    };
    offered.normalize();
    let state = match backend.state.as_str() {
        "starting" => AppState::Starting,
        "draining" => AppState::Draining,
        _ => AppState::Ready,
    };
    Ok((address.ip(), (offered, state)))
}
