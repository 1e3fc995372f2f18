//! The admin server and its client, over real unix and TCP sockets, with sources made by hand.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use scrimp::admin::client::{Client, ClientError};
use scrimp::admin::{Admin, AdminAddr, AdminError, Lifecycle, NodeInfo, ReloadAnswer, Sources, table};
use scrimp::app::{App, AppState, Offer, Protocol, Transport};
use scrimp::member::{Member, MemberState, NodeId, Reach, Role, Roster};
use scrimp::name::{PathPrefix, Port, Weight};
use scrimp::pool::{Pools, Rules};
use scrimp::report::{
    ContactReport, GenerateReport, GossipCounters, JoinReport, KeyId, KeyReport, ListenReport, LocalAppReport,
    MemberKeys, ProxyCounters, SeedReport, StoreReport,
};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);

/// What a test may change while the server runs.
struct World {
    lifecycle: watch::Sender<Lifecycle>,
    roster: watch::Sender<Arc<Roster>>,
    pools: watch::Sender<Arc<Pools>>,
    join: watch::Sender<Arc<JoinReport>>,
    keys: watch::Sender<Arc<KeyReport>>,
    seeds: watch::Sender<Arc<SeedReport>>,
    listeners: watch::Sender<Arc<Vec<ListenReport>>>,
    generate: watch::Sender<Arc<GenerateReport>>,
    local_apps: watch::Sender<Arc<Vec<LocalAppReport>>>,
    gossip: Arc<GossipCounters>,
    proxy: Arc<ProxyCounters>,
    reloads: mpsc::Receiver<ReloadAnswer>,
}

fn app(name: &str, port: u16, domains: &[&str]) -> App {
    App {
        name: name.parse().unwrap(),
        protocol: Protocol::Http,
        port: Port::new(port).unwrap(),
        listen: Port::new(80).unwrap(),
        domains: domains.iter().map(|domain| domain.parse().unwrap()).collect(),
        path: PathPrefix::root(),
        weight: Weight::default(),
        policy: None,
        proxy_protocol: None,
    }
}

fn member(id: u64, role: Role, state: MemberState, apps: Vec<(App, AppState)>) -> Member {
    Member {
        id: NodeId(id),
        name: Some(format!("node-{id}").parse().unwrap()),
        role: Some(role),
        address: SocketAddr::from(([10, 0, 0, id as u8], 7377)),
        state,
        since: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        reach: Reach::Unknown,
        offer: (role == Role::Backend).then(|| Arc::new(Offer { apps })),
    }
}

fn roster(members: Vec<Member>) -> Arc<Roster> {
    Arc::new(Roster { cluster: "default".parse().unwrap(), me: NodeId(1), members })
}

/// A balancer (node 1), two backends with one application, one of them suspected, and one that is down.
fn members() -> Vec<Member> {
    use MemberState::{Alive, Down, Suspect};
    let web = app("web", 8080, &["example.com", "www.example.com"]);
    let mut members = vec![
        member(1, Role::Balancer, Alive, Vec::new()),
        member(2, Role::Backend, Alive, vec![(web.clone(), AppState::Ready)]),
        member(3, Role::Backend, Suspect, vec![(web, AppState::Ready), (app("new", 9000, &[]), AppState::Starting)]),
        member(4, Role::Backend, Down, vec![(app("lost", 9001, &["lost.example.com"]), AppState::Ready)]),
    ];
    (members[1].reach, members[2].reach) = (Reach::Answers, Reach::Silent);
    members
}

fn balancer() -> (Sources, World) {
    let roster = roster(members());
    let pools = Arc::new(Pools::default().next(&roster, &Rules::default(), Instant::now()));
    let store = StoreReport { url: "file:///seeds".into(), last_ok: Some(SystemTime::now()), error: None, seeds: 2 };
    let (lifecycle_sender, lifecycle) = watch::channel(Lifecycle::Ready);
    let (roster_sender, roster) = watch::channel(roster);
    let (pools_sender, pools) = watch::channel(pools);
    let (join_sender, join) = watch::channel(Arc::default());
    let (keys_sender, keys) = watch::channel(Arc::default());
    let (seeds_sender, seeds) = watch::channel(Arc::new(SeedReport { stores: vec![store] }));
    let (listeners_sender, listeners) = watch::channel(Arc::default());
    let (generate_sender, generate) = watch::channel(Arc::default());
    let (local_apps_sender, local_apps) = watch::channel(Arc::default());
    let (reload, reloads) = mpsc::channel(1);
    let sources = Sources {
        node: NodeInfo { name: "node-1".parse().unwrap(), role: Role::Balancer, started: SystemTime::now() },
        lifecycle,
        roster,
        pools: Some(pools),
        join,
        keys,
        seeds,
        listeners: Some(listeners),
        generate: Some(generate),
        local_apps: Some(local_apps),
        gossip_counters: Arc::default(),
        seed_counters: Arc::default(),
        proxy_counters: Some(Arc::default()),
        generate_counters: Some(Arc::default()),
        reload,
    };
    let world = World {
        lifecycle: lifecycle_sender,
        roster: roster_sender,
        pools: pools_sender,
        join: join_sender,
        keys: keys_sender,
        seeds: seeds_sender,
        listeners: listeners_sender,
        generate: generate_sender,
        local_apps: local_apps_sender,
        gossip: Arc::clone(&sources.gossip_counters),
        proxy: sources.proxy_counters.clone().unwrap(),
        reloads,
    };
    (sources, world)
}

/// A server on a unix socket and a loopback port.
struct Server {
    world: World,
    unix: AdminAddr,
    loopback: SocketAddr,
    socket: PathBuf,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

fn tcp(address: &AdminAddr) -> SocketAddr {
    match address {
        AdminAddr::Tcp(address) => *address,
        AdminAddr::Unix(path) => panic!("{path:?} is not TCP"),
    }
}

fn serve() -> Server {
    let (sources, world) = balancer();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/scrimp.sock");
    let unix = AdminAddr::Unix(socket.clone());
    let wanted = [unix.clone(), "127.0.0.1:0".parse().unwrap()];
    let admin = Admin::bind(&wanted, None).unwrap();
    let real = admin.addresses();
    assert_eq!(real[0], unix);
    let loopback = tcp(&real[1]);
    assert_ne!(loopback.port(), 0);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(admin.serve(sources, shutdown.clone()));
    Server { world, unix, loopback, socket, shutdown, task, _folder: folder }
}

impl Server {
    fn client(&self) -> Client {
        Client::new(self.unix.clone(), None)
    }

    /// The whole answer to a request of raw text, over loopback TCP.
    async fn raw(&self, request: &str) -> String {
        exchange(TcpStream::connect(self.loopback).await.unwrap(), request).await
    }

    async fn text(&self, path: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    /// One number of `/metrics`.
    async fn number(&self, name: &str) -> Option<f64> {
        let text = self.text("/metrics").await;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the server closes").unwrap();
    String::from_utf8(answer).unwrap()
}

fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"))
}

fn post(host: &str, more: &str) -> String {
    format!("POST /v1/reload HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n{more}\r\n")
}

/// Answers each reload with `answer` and counts them.
fn answer_reloads(world: &mut World, answer: Result<&'static str, &'static str>) -> watch::Receiver<u32> {
    let (_, empty) = mpsc::channel(1);
    let mut reloads = std::mem::replace(&mut world.reloads, empty);
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        while let Some(reply) = reloads.recv().await {
            count.send_modify(|count| *count += 1);
            let _ = reply.send(answer.map(Into::into).map_err(Into::into));
        }
    });
    counted
}

#[tokio::test]
async fn health_and_readiness_follow_the_life_of_the_node() {
    let server = serve();
    for (state, status, word) in [
        (Lifecycle::Starting, 503, "starting"),
        (Lifecycle::Ready, 200, "ready"),
        (Lifecycle::Draining, 503, "draining"),
    ] {
        server.world.lifecycle.send_replace(state);
        let answer = server.text("/readyz").await;
        assert_eq!(status_of(&answer), status, "{answer}");
        assert!(answer.contains(word), "{answer}");
        let alive = server.text("/healthz").await;
        assert!(status_of(&alive) == 200 && alive.contains("ok"), "{alive}");
        assert_eq!(server.client().ready().await.is_ok(), status == 200);
    }
    let error = server.client().ready().await.unwrap_err().to_string();
    assert!(error.contains("draining"), "{error}");
}

#[tokio::test]
async fn members_are_as_the_contract_says() {
    let server = serve();
    let view: Value = server.client().get("/v1/members").await.unwrap();
    assert_eq!(view["cluster"], "default");
    assert_eq!(
        view["members"][2],
        json!({"id": "0000000000000003", "name": "node-3", "role": "backend", "address": "10.0.0.3:7377",
               "state": "suspect", "reach": "silent", "since": "2023-11-14T22:13:20Z", "key": null,
               "apps": ["web", "new"]})
    );
    assert_eq!(view["members"].as_array().unwrap().len(), 4);
    let text = table::members(&server.client().members().await.unwrap(), SystemTime::now());
    assert!(text.contains("node-4") && text.contains("down") && text.contains("suspect, silent"), "{text}");
}

#[tokio::test]
async fn who_needs_which_cluster_key_is_told() {
    let server = serve();
    let [new, old] = [1, 2].map(|byte| KeyId([byte; 4]));
    let tell = |own: &[KeyId], members: &[(u64, KeyId, &[KeyId])]| {
        let member = |(id, sealed_with, opens): &(u64, KeyId, &[KeyId])| {
            (NodeId(*id), MemberKeys { sealed_with: *sealed_with, opens: opens.to_vec() })
        };
        let report = KeyReport { own: own.to_vec(), members: members.iter().map(member).collect() };
        server.world.keys.send_replace(Arc::new(report));
    };
    let lines = async || {
        let text = table::status(&server.client().status().await.unwrap(), SystemTime::now());
        let from = text.lines().skip_while(|line| !line.trim().starts_with("keys"));
        let lines: Vec<String> =
            from.take_while(|line| !line.contains("seeds")).map(|line| line.trim().to_owned()).collect();
        lines.join("\n").replace("keys", "").trim().to_owned()
    };
    assert_eq!(lines().await, "", "without a key nothing is said");
    tell(&[new], &[(2, new, &[new])]);
    assert_eq!(lines().await, "01010101 is in use");
    // Node 4 is down: what it has does not count.
    tell(&[new, old], &[(2, new, &[new, old]), (3, old, &[old]), (4, old, &[old])]);
    assert_eq!(lines().await, "01010101 is in use, missing at 1: node-3\n02020202 is accepted, needed by 1: node-3");
    let view: Value = server.client().get("/v1/status").await.unwrap();
    let expected = json!({"id": "02020202", "used_by": ["node-3"], "missing_at": [], "unheard": []});
    assert_eq!(view["keys"][1], expected);
    let view: Value = server.client().get("/v1/members").await.unwrap();
    assert_eq!((&view["members"][0]["key"], &view["members"][2]["key"]), (&json!("01010101"), &json!("02020202")));
    let text = table::members(&server.client().members().await.unwrap(), SystemTime::now());
    assert!(text.contains("key 01010101: node-1, node-2\nkey 02020202: node-3"), "{text}");
    assert_eq!(server.number("scrimp_cluster_key_users{key=\"02020202\"}").await, Some(1.0));
    // A key that is preferred by somebody else is needed, though the other would do.
    tell(&[new, old], &[(2, old, &[old, new])]);
    let needed = "01010101 is in use; not heard yet 1: node-3\n\
                  02020202 is accepted, needed by 1: node-2; not heard yet 1: node-3";
    assert_eq!(lines().await, needed);
    tell(&[new, old], &[(2, new, &[new, old]), (3, new, &[new])]);
    assert_eq!(lines().await, "01010101 is in use\n02020202 is accepted, nobody needs it, missing at 1: node-3");
    tell(&[old, new], &[(2, old, &[old, new]), (3, old, &[old, new])]);
    let promotable =
        "02020202 is in use\n01010101 is accepted, everybody has it, nobody needs it: it may go, or be put first";
    assert_eq!(lines().await, promotable);
}

#[tokio::test]
async fn apps_are_as_the_contract_says() {
    let server = serve();
    let pools = server.world.pools.borrow().clone();
    let load = &pools.loads[&("web".parse().unwrap(), "10.0.0.2:8080".parse().unwrap())];
    load.active.store(3, Ordering::Relaxed);
    load.requests.store(70, Ordering::Relaxed);
    load.failures.store(2, Ordering::Relaxed);
    let view: Value = server.client().get("/v1/apps").await.unwrap();
    let names: Vec<_> = view["apps"].as_array().unwrap().iter().map(|app| app["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["lost", "new", "web"]);
    let last = &view["apps"][0]["backends"][0];
    assert_eq!((&last["node"], &last["state"]), (&json!("node-4"), &json!("suspected")));
    let reason = last["reason"].as_str().unwrap();
    assert!(reason.starts_with("its node is down; out for ") && reason.ends_with("; last resort, no other is left"));
    assert_eq!(view["apps"][1]["backends"][0]["state"], "starting");
    let web = &view["apps"][2];
    assert_eq!(
        (&web["protocol"], &web["listen"], &web["domains"], &web["path"]),
        (&json!("http"), &json!(80), &json!(["example.com", "www.example.com"]), &json!("/"))
    );
    assert_eq!(
        web["backends"][0],
        json!({"node": "node-2", "address": "10.0.0.2:8080", "state": "ready", "reason": null,
               "weight": 100, "policy": null, "active": 3, "requests": 70, "failures": 2})
    );
    assert_eq!(web["backends"][1]["state"], "suspected");
    let reason = web["backends"][1]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("it does not answer this balancer's probes; suspected for ") && reason.ends_with(" s"),
        "{reason}"
    );
    let text = table::apps(&server.client().apps().await.unwrap());
    assert!(text.contains("web: http on port 80 for example.com, www.example.com"), "{text}");
}

#[tokio::test]
async fn each_way_of_seeing_a_backend_has_its_words() {
    use MemberState::{Alive, Down, Suspect};
    let server = serve();
    let show = async |ways: &[(MemberState, Reach)], proven: bool| {
        let backend = |(at, (state, reach)): (usize, &(MemberState, Reach))| {
            let offer = vec![(app("web", 8080, &["example.com"]), AppState::Ready)];
            Member { reach: *reach, ..member(at as u64 + 2, Role::Backend, *state, offer) }
        };
        let roster = roster(ways.iter().enumerate().map(backend).collect());
        let now = Instant::now();
        let fine = roster.members.iter().map(|member| Member { state: Alive, reach: Reach::Answers, ..member.clone() });
        let fine = Roster { members: fine.collect(), ..(*roster).clone() };
        let before = Pools::default().next(&fine, &Rules::default(), now);
        if proven {
            before.loads.values().for_each(|load| load.succeeded(now));
        }
        server.world.pools.send_replace(Arc::new(before.next(&roster, &Rules::default(), now)));
        server.world.roster.send_replace(roster);
        let apps = server.client().apps().await.unwrap().apps;
        let words = |backend: &scrimp::admin::view::BackendView| {
            let reason = backend.reason.clone().unwrap_or_default().replace(|c: char| c.is_ascii_digit(), "N");
            format!("{} {}: {reason}", backend.node, backend.state)
        };
        apps[0].backends.iter().map(words).collect::<Vec<_>>()
    };
    let seen = show(
        &[
            (Alive, Reach::Answers),
            (Suspect, Reach::Answers),
            (Down, Reach::Answers),
            (Alive, Reach::Silent),
            (Down, Reach::Silent),
        ],
        false,
    )
    .await;
    assert_eq!(
        seen,
        [
            "node-2 ready: ",
            "node-3 ready: another member did not hear from its node; it still gets requests",
            "node-4 ready: the gossip takes its node for down, but it answers: it still gets requests",
            "node-5 suspected: it does not answer this balancer's probes; suspected for N s",
        ]
    );
    let seen = show(&[(Alive, Reach::Silent), (Down, Reach::Silent)], false).await;
    let last =
        "node-2 suspected: it does not answer this balancer's probes; suspected for N s; last resort, no other is left";
    assert_eq!(seen, [last]);
    assert_eq!(server.number("scrimp_last_resort_routes").await, Some(1.0));
    let problems = server.client().status().await.unwrap().problems;
    assert!(problems.iter().any(|text| text.contains("web on port 80 has no backend that answers")), "{problems:?}");
    let seen = show(&[(Down, Reach::Silent)], false).await;
    assert_eq!(seen, ["node-2 suspected: its node is down; out for N s; last resort, no other is left"]);
    let seen = show(&[(Alive, Reach::Silent), (Down, Reach::Silent)], true).await;
    let held = "it does not answer this balancer's probes, but has served within the last second";
    assert_eq!(seen, [format!("node-2 ready: {held}"), format!("node-3 ready: {held}")]);
    assert_eq!(server.number("scrimp_last_resort_routes").await, Some(0.0));
}

#[tokio::test]
async fn two_offers_of_one_name_that_differ_are_two_entries() {
    let server = serve();
    let offer = |domain: &str| vec![(app("web", 8080, &[domain]), AppState::Ready)];
    server.world.roster.send_replace(roster(vec![
        member(2, Role::Backend, MemberState::Alive, offer("a.example.com")),
        member(3, Role::Backend, MemberState::Alive, offer("b.example.com")),
        member(5, Role::Backend, MemberState::Alive, offer("b.example.com")),
        member(6, Role::Backend, MemberState::Left, offer("c.example.com")),
    ]));
    let apps = server.client().apps().await.unwrap().apps;
    let shape: Vec<_> = apps.iter().map(|app| (app.domains.concat(), app.backends.len())).collect();
    assert_eq!(shape, [("a.example.com".to_owned(), 1), ("b.example.com".to_owned(), 2)]);
}

#[tokio::test]
async fn a_healthy_status_names_no_problem_but_the_empty_route() {
    let server = serve();
    let status = server.client().status().await.unwrap();
    assert_eq!((status.node.id.as_str(), status.node.address.as_deref()), ("0000000000000001", Some("10.0.0.1:7377")));
    let counts = &status.members;
    assert_eq!((counts.balancers, counts.backends, counts.suspect, counts.down, counts.silent), (1, 2, 1, 1, 1));
    let lost = "application lost on port 80 has no backend that answers this balancer: those that are left are asked as \
                a last resort";
    assert_eq!(status.problems, ["application new on port 80 has no ready backend", lost]);
    let text = table::status(&status, SystemTime::now());
    assert!(text.starts_with("node-1: balancer of cluster default, ready\n"), "{text}");
    assert!(text.lines().all(|line| line.len() <= 120), "{text}");
}

#[tokio::test]
async fn everything_that_is_wrong_is_said() {
    let server = serve();
    let world = &server.world;
    let outcome = "it has another cluster key".to_owned();
    let contacts = vec![ContactReport { address: "10.9.9.9:7377".parse().unwrap(), outcome }];
    world.join.send_replace(Arc::new(JoinReport { alone: true, contacts }));
    let store = StoreReport { url: "s3://b/p".into(), last_ok: None, error: Some("403 Forbidden".into()), seeds: 0 };
    world.seeds.send_replace(Arc::new(SeedReport { stores: vec![store] }));
    let (port, error) = (Port::new(80).unwrap(), Some("in use by another process".into()));
    let port = ListenReport { port, transport: Transport::Http, addresses: Vec::new(), error };
    world.listeners.send_replace(Arc::new(vec![port]));
    let error = Some("nginx -t failed".into());
    world.generate.send_replace(Arc::new(GenerateReport { target: "/etc/nginx/x.conf".into(), last_ok: None, error }));
    let mut foreign = app("smtp", 25, &[]);
    foreign.listen = Port::new(25).unwrap();
    let refused = roster(vec![member(2, Role::Backend, MemberState::Alive, vec![(foreign, AppState::Ready)])]);
    world.pools.send_replace(Arc::new(Pools::default().next(&refused, &Rules::default(), Instant::now())));
    let reason = Some("cannot connect to 127.0.0.1:8080: connection refused".into());
    let local = LocalAppReport { app: app("web", 8080, &[]), state: AppState::Starting, reason };
    world.local_apps.send_replace(Arc::new(vec![local]));

    let status = server.client().status().await.unwrap();
    let text = table::status(&status, SystemTime::now());
    for words in [
        "10.9.9.9:7377: it has another cluster key",
        "s3://b/p fails: 403 Forbidden",
        "port 80 (http) is not open everywhere: in use",
        "the newest state is not in use in /etc/nginx/x.conf",
        "application smtp of node-2 is not served in full: lb.allow",
        "application web is not ready: cannot connect",
    ] {
        assert!(status.problems.iter().any(|problem| problem.contains(words)), "{words}: {:?}", status.problems);
    }
    assert!(text.contains("6 problems:"), "{text}");
}

/// Each count of the gossip's under its own name; a counter that is added must be added here, and so to the page.
#[tokio::test]
async fn every_count_of_the_gossip_is_in_the_metrics() {
    let server = serve();
    let GossipCounters {
        datagrams_received,
        datagrams_sent,
        bytes_sent,
        dropped_malformed,
        dropped_unknown_key,
        dropped_unauthenticated,
        dropped_replayed,
        dropped_invalid,
        dropped_misaddressed,
        dropped_excess,
        renewals,
        offers_pulled,
        offer_pulls_failed,
        questions_refused,
    } = &*server.world.gossip;
    let all = [
        (datagrams_received, "datagrams_total{direction=\"received\"}"),
        (datagrams_sent, "datagrams_total{direction=\"sent\"}"),
        (bytes_sent, "sent_bytes_total"),
        (dropped_malformed, "dropped_total{reason=\"malformed\"}"),
        (dropped_unknown_key, "dropped_total{reason=\"unknown-key\"}"),
        (dropped_unauthenticated, "dropped_total{reason=\"unauthenticated\"}"),
        (dropped_replayed, "dropped_total{reason=\"replayed\"}"),
        (dropped_invalid, "dropped_total{reason=\"invalid\"}"),
        (dropped_misaddressed, "dropped_total{reason=\"misaddressed\"}"),
        (dropped_excess, "dropped_total{reason=\"excess\"}"),
        (renewals, "renewals_total"),
        (offers_pulled, "offers_pulled_total"),
        (offer_pulls_failed, "offer_pull_failures_total"),
        (questions_refused, "questions_refused_total"),
    ];
    for (place, (counter, _)) in all.iter().enumerate() {
        counter.add(1000 + place as u64);
    }
    let page = server.text("/metrics").await;
    for (counter, name) in all {
        let line = format!("scrimp_gossip_{name} {}", counter.get());
        assert!(page.lines().any(|found| found == line), "{line} is not in {page}");
    }
}

#[tokio::test]
async fn metrics_are_written_in_both_formats() {
    let server = serve();
    server.world.gossip.dropped_replayed.add(5);
    server.world.proxy.connections.add(9);
    server.world.proxy.connections_closed.add(4);
    let classic = server.text("/metrics").await;
    assert!(classic.contains("content-type: text/plain; version=0.0.4"), "{classic}");
    for line in [
        "scrimp_gossip_dropped_total{reason=\"replayed\"} 5",
        "scrimp_connections_open 5.0",
        "scrimp_cluster_members{role=\"backend\",state=\"suspect\"} 1.0",
        "scrimp_backends{state=\"ready\"} 1.0",
        "scrimp_backends{state=\"suspected\"} 2.0",
        "scrimp_cluster_reach{reach=\"silent\"} 1.0",
        "scrimp_cluster_reach{reach=\"unknown\"} 1.0",
        "scrimp_last_resort_routes 1.0",
        "scrimp_app_requests_total{app=\"web\"} 0",
        "scrimp_seed_store_up{store=\"file:///seeds\"} 1.0",
        "# TYPE scrimp_connections_total counter",
    ] {
        assert!(classic.lines().any(|found| found == line), "{line} is not in {classic}");
    }
    assert!(!classic.contains("# EOF"));
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n";
    let open = server.raw(request).await;
    assert!(open.contains("content-type: application/openmetrics-text") && open.ends_with("# EOF\n"), "{open}");
    assert!(open.contains("# TYPE scrimp_connections counter\nscrimp_connections_total 9"), "{open}");
    assert!(server.number("scrimp_process_open_fds").await.unwrap() > 5.0);
    assert!(server.number("scrimp_process_resident_bytes").await.unwrap() > 100_000.0);
}

#[tokio::test]
async fn a_counter_does_not_fall_when_its_backend_leaves_between_two_scrapes() {
    let server = serve();
    let before = server.world.pools.borrow().clone();
    for load in before.loads.values() {
        load.requests.store(10, Ordering::Relaxed);
    }
    let name = "scrimp_app_requests_total{app=\"web\"}";
    assert_eq!(server.number(name).await, Some(20.0));
    let smaller = roster(members().into_iter().filter(|member| member.id != NodeId(3)).collect());
    server.world.pools.send_replace(Arc::new(before.next(&smaller, &Rules::default(), Instant::now())));
    assert_eq!(server.number(name).await, Some(20.0));
}

#[tokio::test]
async fn unknown_paths_and_methods_say_what_there_is() {
    let server = serve();
    let answer = server.text("/v2/status").await;
    assert!(status_of(&answer) == 404 && answer.contains("/v1/members"), "{answer}");
    let answer = server.text("/v1/reload").await;
    assert!(status_of(&answer) == 405 && answer.contains("POST /v1/reload"), "{answer}");
    let answer = server.raw("DELETE /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status_of(&answer), 405, "{answer}");
}

#[tokio::test]
async fn a_reload_gives_back_what_came_of_it() {
    let mut server = serve();
    let mut count = answer_reloads(&mut server.world, Ok("3 applications now, 1 more than before"));
    let message = server.client().post("/v1/reload").await.unwrap();
    assert_eq!(message, "3 applications now, 1 more than before");
    assert_eq!(*count.borrow_and_update(), 1);

    let mut server = serve();
    answer_reloads(&mut server.world, Err("line 3: unknown key lissten"));
    match server.client().post("/v1/reload").await.unwrap_err() {
        ClientError::Refused { message, .. } => assert_eq!(message, "line 3: unknown key lissten"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn one_reload_at_a_time() {
    let server = serve();
    let client = server.client();
    let first = tokio::spawn(async move { client.post("/v1/reload").await });
    let start = Instant::now();
    let error = loop {
        // Whoever comes second, the other's wish still stands in the channel, and is never taken out.
        let second = timeout(Duration::from_millis(200), server.client().post("/v1/reload")).await;
        if let Ok(Err(error)) = second {
            break error.to_string();
        }
        assert!(start.elapsed() < DEADLINE);
    };
    assert!(error.contains("under way"), "{error}");
    first.abort();
}

#[tokio::test]
async fn only_those_who_may_can_change_something() {
    let mut server = serve();
    let count = answer_reloads(&mut server.world, Ok("done"));
    let loopback = server.loopback.to_string();
    for (request, status) in [
        (post(&loopback, ""), 200),
        (post("localhost", ""), 200),
        (post("[::1]:9377", ""), 200),
        // A page of another site, and one whose name was made to point here.
        (post(&loopback, "Origin: https://evil.example\r\n"), 403),
        (post("evil.example", ""), 403),
        (post("evil.example:9377", ""), 403),
        ("POST /v1/reload HTTP/1.0\r\n\r\n".to_owned(), 403),
        ("GET /v1/status HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nConnection: close\r\n\r\n".to_owned(), 403),
    ] {
        let answer = server.raw(&request).await;
        assert_eq!(status_of(&answer), status, "{request}{answer}");
    }
    assert_eq!(*count.borrow(), 3);
}

#[tokio::test]
async fn a_long_body_or_head_is_refused() {
    let server = serve();
    let request = format!(
        "POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 5000\r\n\r\n{}",
        "x".repeat(5000)
    );
    let stream = UnixStream::connect(&server.socket).await.unwrap();
    assert_eq!(status_of(&exchange(stream, &request).await), 413);
    let request = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(64 * 1024));
    let mut stream = TcpStream::connect(server.loopback).await.unwrap();
    // The server may close before it has read all of it.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.is_empty() || status_of(&answer) == 431, "{answer}");
}

#[tokio::test]
async fn silent_connections_are_closed_and_hold_nobody_up_for_long() {
    let server = serve();
    let start = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(server.loopback).await.unwrap());
    }
    let answer = server.text("/healthz").await;
    assert_eq!(status_of(&answer), 200);
    assert!(start.elapsed() > Duration::from_secs(3), "the 65th waits for a place: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(server.client().ready().await.is_ok(), "the unix socket has places of its own");
    for stream in &mut silent {
        let mut answer = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("closed").unwrap();
    }
}

#[tokio::test]
async fn the_end_is_orderly() {
    let mut server = serve();
    let mode = fs::metadata(&server.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = Admin::bind(std::slice::from_ref(&server.unix), None).unwrap_err();
    assert!(matches!(error, AdminError::SocketInUse(_)), "{error}");
    // One that says nothing must not hold the end up, nor one whose answer never comes.
    let _silent = TcpStream::connect(server.loopback).await.unwrap();
    let mut waiting = TcpStream::connect(server.loopback).await.unwrap();
    waiting.write_all(post("localhost", "").as_bytes()).await.unwrap();
    assert!(server.client().ready().await.is_ok());
    let _unanswered = timeout(DEADLINE, server.world.reloads.recv()).await.unwrap().unwrap();
    server.shutdown.cancel();
    timeout(Duration::from_secs(4), server.task).await.expect("it ends").unwrap();
    assert!(!server.socket.exists());
    let error = Client::new(server.unix, None).status().await.unwrap_err();
    assert!(matches!(error, ClientError::NobodyThere(_)), "{error}");
    assert!(TcpStream::connect(server.loopback).await.is_err());
}

#[tokio::test]
async fn the_client_explains_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.sock");
    let error = Client::new(AdminAddr::Unix(path), None).status().await.unwrap_err().to_string();
    assert!(error.contains("none.sock") && error.contains("--admin"), "{error}");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = AdminAddr::Tcp(listener.local_addr().unwrap());
    let answers = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "not as scrimp does"),
        ("HTTP/1.1 404 X\r\nContent-Length: 5\r\n\r\nnginx", "not as scrimp does"),
        ("SSH-2.0-OpenSSH\r\n", "cannot talk to"),
        ("", "cannot talk to"),
    ];
    for (answer, words) in answers {
        let client = Client::new(address.clone(), None);
        let asking = tokio::spawn(async move { client.status().await });
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        drop(stream);
        let error = asking.await.unwrap().unwrap_err().to_string();
        assert!(error.contains(words), "{answer:?}: {error}");
    }

    let client = Client::new(address.clone(), None);
    let start = Instant::now();
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::TooSlow(..)), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn the_client_does_not_swallow_an_endless_answer() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(AdminAddr::Tcp(listener.local_addr().unwrap()), None);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b' '; 65536]).await.is_ok() {}
    });
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Broken(..)), "{error}");
}

#[tokio::test]
async fn a_dropped_wish_frees_the_way() {
    let mut server = serve();
    // The one who asked gave up; the answer goes nowhere and the next one is served.
    let client = server.client();
    let asking = tokio::spawn(async move { client.post("/v1/reload").await });
    let reply = timeout(DEADLINE, server.world.reloads.recv()).await.unwrap().unwrap();
    asking.abort();
    let start = Instant::now();
    while !reply.is_closed() {
        assert!(start.elapsed() < DEADLINE, "the server notices that the client is gone");
        sleep(Duration::from_millis(10)).await;
    }
    answer_reloads(&mut server.world, Ok("done"));
    assert_eq!(server.client().post("/v1/reload").await.unwrap(), "done");
}
