//! The direction of imports. Within a crate the compiler does not check it: this does. `name` to `report`, `pool` and
//! `proxy` are a crate of their own, `dataplane`, for how it is built; to this they are rooms like the others.
//!
//! ```text
//!  5 edge     main demo tools
//!  4 wiring   node
//!  3 meaning  config
//!  2 rooms    seed gossip proxy generate health command admin     never name each other
//!  1 pure     pool, and below it balance
//!  0 leaves   name app member backend certificate report address log cli
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const LAYERS: &[(&str, u8)] = &[
    ("name", 0),
    ("app", 0),
    ("member", 0),
    ("backend", 0),
    ("certificate", 0),
    ("report", 0),
    ("address", 0),
    ("log", 0),
    ("pool", 1),
    ("balance", 1),
    ("seed", 2),
    ("gossip", 2),
    ("proxy", 2),
    ("generate", 2),
    ("health", 2),
    ("command", 2),
    ("admin", 2),
    ("cli", 0),
    ("config", 3),
    ("node", 4),
    ("tools", 5),
    ("demo", 5),
    ("main", 5),
    ("lib", 5),
];

/// Files that decide and touch nothing.
const PURE: &[&str] = &[
    "dataplane/name.rs",
    "dataplane/app.rs",
    "dataplane/member.rs",
    "dataplane/backend.rs",
    "dataplane/certificate.rs",
    "dataplane/report.rs",
    "dataplane/pool.rs",
    "dataplane/balance.rs",
    "dataplane/balance/hash.rs",
    "dataplane/balance/least_connections.rs",
    "dataplane/balance/random.rs",
    "dataplane/balance/round_robin.rs",
    "dataplane/balance/tried.rs",
    "dataplane/balance/two_choices.rs",
    "gossip/codec.rs",
    "gossip/core.rs",
    "gossip/core/addition.rs",
    "gossip/core/echo.rs",
    "gossip/core/guard.rs",
    "gossip/core/join.rs",
    "gossip/core/leave.rs",
    "gossip/core/offers.rs",
    "gossip/core/publish.rs",
    "gossip/identity.rs",
    "gossip/message.rs",
    "gossip/peers.rs",
    "gossip/record.rs",
    "gossip/replay.rs",
    "gossip/seal.rs",
    "generate/model.rs",
    "dataplane/proxy/tls/hello.rs",
    "dataplane/proxy/tls/names.rs",
    "dataplane/proxy/tls/refusal.rs",
    "dataplane/proxy/http1/body.rs",
    "dataplane/proxy/http1/chunked.rs",
    "dataplane/proxy/http1/fields.rs",
    "dataplane/proxy/http1/head.rs",
    "dataplane/proxy/http2/frames.rs",
    "dataplane/proxy/http2/gate.rs",
    "dataplane/proxy/http2/meter.rs",
    "dataplane/proxy/page.rs",
    "dataplane/proxy/proxy_protocol.rs",
    "dataplane/proxy/udp/flows.rs",
];

/// What a file that touches nothing does not name.
const WORLD: &[&str] = &[
    "tokio::net",
    "tokio::time",
    "tokio::fs",
    "tokio::spawn",
    "std::fs",
    "std::net::TcpListener",
    "UdpSocket",
    "Instant::now",
    "SystemTime::now",
    "std::env",
    "sleep(",
    ".await",
];

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    found.sort();
    assert!(found.len() > 20, "the sources are not where they are looked for");
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            // Tests at the bottom of a file may use what they like.
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
            (path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(), code)
        })
        .collect()
}

fn room(file: &str) -> &str {
    let file = file.strip_prefix("dataplane/").unwrap_or(file);
    file.split(['/', '.']).next().unwrap()
}

/// The rooms that a file names: `crate::ROOM` and `scrimp::ROOM`.
fn named_rooms(file: &str, code: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    // Only the program outside the library says `scrimp::`; inside, those are words in texts.
    let prefix = if file == "main.rs" { "scrimp::" } else { "crate::" };
    for (number, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        for (at, _) in line.match_indices(prefix) {
            let rest = &line[at + prefix.len()..];
            let word = |text: &str| {
                text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
            };
            match rest.strip_prefix('{') {
                Some(list) => named.extend(list.split(',').map(|item| (number + 1, word(item)))),
                None => named.push((number + 1, word(rest))),
            }
        }
    }
    named
}

#[test]
fn rooms_name_only_what_is_below_them() {
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for (file, code) in sources() {
        let mine = room(&file);
        let is_root = file == "lib.rs";
        assert!(
            is_root || !code.contains("scrimp_dataplane"),
            "src/{file} names its crate: its rooms are `crate::` too"
        );
        let my_layer = *layers.get(mine).unwrap_or_else(|| panic!("{file}: its room has no layer: add it to LAYERS"));
        for (line, named) in named_rooms(&file, &code) {
            let Some(layer) = layers.get(named.as_str()) else { continue };
            checked += 1;
            // A pool holds the policy that chooses in it; the policy knows nothing of pools. The edge knows itself.
            let is_allowed =
                named == mine || *layer < my_layer || my_layer == 5 || (mine, named.as_str()) == ("pool", "balance");
            // Leaves are nouns; those of one layer may name each other.
            if !is_allowed && (my_layer, *layer) != (0, 0) {
                wrong.push(format!("src/{file}:{line} names {named}"));
            }
        }
    }
    assert!(checked > 50, "only {checked} imports were recognised");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_files_touch_nothing() {
    let sources: BTreeMap<String, String> = sources().into_iter().collect();
    let mut wrong = Vec::new();
    for file in PURE {
        let code = sources.get(*file).unwrap_or_else(|| panic!("{file} is gone: mend PURE"));
        for (number, line) in code.lines().enumerate() {
            let line = line.split("//").next().unwrap_or_default();
            for word in WORLD.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("src/{file}:{} names {word}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_edge_reads_the_environment() {
    // Settings of scrimp's are the edge's. What Amazon's own tools read (`AWS_…`) is read where they are used.
    let allowed = ["config", "demo", "tools", "log", "address"];
    let is_amazons = |file: &str| file == "seed/s3.rs";
    for (file, code) in sources() {
        if !allowed.contains(&room(&file)) && !is_amazons(&file) {
            for (number, line) in code.lines().enumerate() {
                assert!(!line.contains("env::var"), "src/{file}:{} reads the environment", number + 1);
            }
        }
    }
}

#[test]
fn one_file_alone_may_do_what_the_compiler_cannot_check() {
    // `unsafe` is denied for all; who wants it has to say so in the code, and here.
    let sources = sources();
    let names = sources.iter().filter(|(_, code)| code.contains("unsafe_code")).map(|(file, _)| file.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["dataplane/proxy/memory.rs"]);
    let blocks = |code: &str| code.matches("unsafe {").count();
    assert_eq!(sources.iter().map(|(_, code)| blocks(code)).sum::<usize>(), 1);
}
