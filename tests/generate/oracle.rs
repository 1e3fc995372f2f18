//! Reads nginx's syntax apart, independently of the templates, and says what may stand where.

/// One directive: its words, and what stands in its braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directive {
    pub(crate) words: Vec<String>,
    pub(crate) block: Option<Vec<Self>>,
}

impl Directive {
    pub(crate) fn name(&self) -> &str {
        &self.words[0]
    }

    pub(crate) fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.block.iter().flatten().filter(move |child| child.name() == name)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    End,
    Open,
    Close,
}

/// The directives of a file.
pub(crate) fn parse(text: &str) -> Result<Vec<Directive>, String> {
    let mut tokens = tokens(text)?.into_iter();
    let directives = block(&mut tokens, false)?;
    match tokens.next() {
        None => Ok(directives),
        Some(token) => Err(format!("left over: {token:?}")),
    }
}

fn block(tokens: &mut impl Iterator<Item = Token>, nested: bool) -> Result<Vec<Directive>, String> {
    let (mut directives, mut words) = (Vec::new(), Vec::new());
    loop {
        match tokens.next() {
            Some(Token::Word(word)) => words.push(word),
            Some(Token::End) if !words.is_empty() => {
                directives.push(Directive { words: std::mem::take(&mut words), block: None });
            }
            Some(Token::Open) if !words.is_empty() => {
                let block = Some(block(tokens, true)?);
                directives.push(Directive { words: std::mem::take(&mut words), block });
            }
            Some(Token::Close) if nested && words.is_empty() => return Ok(directives),
            None if !nested && words.is_empty() => return Ok(directives),
            token => return Err(format!("{token:?} after {words:?}")),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_ascii_whitespace() => {}
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            ';' => tokens.push(Token::End),
            '{' => tokens.push(Token::Open),
            '}' => tokens.push(Token::Close),
            quote @ ('"' | '\'') => {
                let mut word = String::new();
                loop {
                    match chars.next().ok_or("a quote that does not end")? {
                        '\\' => word.extend(['\\', chars.next().ok_or("an escape at the end")?]),
                        c if c == quote => break,
                        c => word.push(c),
                    }
                }
                tokens.push(Token::Word(word));
            }
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !c.is_ascii_whitespace() && !matches!(c, ';' | '{' | '}')) {
                    if matches!(c, '"' | '\'' | '\\' | '#') {
                        return Err(format!("{c:?} inside of the word {word:?}"));
                    }
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

const HTTP: &[&str] = &["server_names_hash_bucket_size", "map", "upstream", "server"];
const STREAM: &[&str] = &["map_hash_bucket_size", "map", "upstream", "server"];
const UPSTREAM: &[&str] = &["zone", "least_conn", "random", "hash", "server", "keepalive", "keepalive_timeout"];
const MAP: &[&str] = &["default", "", "~*^(?<scrimp_routed>[^ ]+) (?<scrimp_sent>\\1\\.?(:[0-9]+)?)$"];
const SERVER: &[&str] = &[
    "listen",
    "server_name",
    "server_tokens",
    "ssl_certificate",
    "ssl_certificate_key",
    "ssl_protocols",
    "ssl_ciphers",
    "ssl_prefer_server_ciphers",
    "ssl_session_cache",
    "ssl_session_timeout",
    "ssl_session_tickets",
    "gzip",
    "gzip_vary",
    "gzip_proxied",
    "gzip_min_length",
    "gzip_types",
    "proxy_http_version",
    "proxy_connect_timeout",
    "proxy_next_upstream",
    "proxy_next_upstream_tries",
    "proxy_redirect",
    "proxy_ssl_protocols",
    "proxy_ssl_server_name",
    "proxy_ssl_name",
    "proxy_set_header",
    "grpc_connect_timeout",
    "grpc_next_upstream",
    "grpc_next_upstream_tries",
    "grpc_set_header",
    "location",
];
const LOCATION: &[&str] = &["default_type", "add_header", "return", "grpc_pass", "proxy_pass"];
const STREAM_SERVER: &[&str] = &[
    "listen",
    "ssl_preread",
    "preread_timeout",
    "proxy_pass",
    "proxy_ssl",
    "proxy_ssl_protocols",
    "proxy_connect_timeout",
    "proxy_timeout",
    "proxy_socket_keepalive",
    "return",
];

/// Every directive is one that the templates mean to write, where they mean to.
pub(crate) fn judge(directives: &[Directive], stream: bool) -> Result<(), String> {
    let top = if stream { STREAM } else { HTTP };
    only(directives, top, "the top")?;
    for directive in directives {
        let inside = directive.block.as_deref().unwrap_or_default();
        match directive.name() {
            "map" if stream => by_name(inside)?,
            "map" => only(inside, MAP, "map")?,
            "upstream" => only(inside, UPSTREAM, "upstream")?,
            "server" if stream => only(inside, STREAM_SERVER, "server")?,
            "server" => {
                only(inside, SERVER, "server")?;
                for location in directive.children("location") {
                    only(location.block.as_deref().unwrap_or_default(), LOCATION, "location")?;
                }
            }
            _ => {}
        }
    }
    whole(directives)
}

/// Hosts that TLS clients ask for, each in front of its upstream, if it has one.
fn by_name(entries: &[Directive]) -> Result<(), String> {
    for entry in entries {
        let is_right = match entry.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["hostnames"] => true,
            ["default", pool] => pool.is_empty() || pool.starts_with("scrimp-"),
            [name, pool] => {
                let name = name.strip_prefix("\\\\").map(|name| name.strip_prefix("*.").unwrap_or(name));
                let is_host = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
                name.is_some_and(is_host) && (pool.is_empty() || pool.starts_with("scrimp-"))
            }
            _ => false,
        };
        if !is_right || entry.block.is_some() {
            return Err(format!("{:?} in map", entry.words));
        }
    }
    no_doubles(&entries.iter().map(Directive::name).collect::<Vec<_>>(), "name")
}

fn only(directives: &[Directive], allowed: &[&str], place: &str) -> Result<(), String> {
    let nests = ["map", "upstream", "location"];
    for directive in directives {
        if !allowed.contains(&directive.name()) {
            return Err(format!("{:?} in {place}", directive.words));
        }
        let may_nest = nests.contains(&directive.name()) || (directive.name() == "server" && place == "the top");
        if directive.block.is_some() != may_nest {
            return Err(format!("braces or no braces: {:?} in {place}", directive.words));
        }
    }
    Ok(())
}

/// What nginx refuses beyond syntax: empty upstreams, doubles, targets that are not there.
fn whole(directives: &[Directive]) -> Result<(), String> {
    let upstreams: Vec<&Directive> = directives.iter().filter(|d| d.name() == "upstream").collect();
    let names: Vec<&str> = upstreams.iter().map(|upstream| upstream.words[1].as_str()).collect();
    no_doubles(&names, "upstream")?;
    for upstream in &upstreams {
        if upstream.children("server").next().is_none() {
            return Err(format!("an upstream without servers: {:?}", upstream.words));
        }
    }
    let (mut server_names, mut defaults) = (Vec::new(), Vec::new());
    for server in directives.iter().filter(|d| d.name() == "server") {
        let locations: Vec<String> = server.children("location").map(|l| l.words[1..].join(" ")).collect();
        no_doubles(&locations, "location")?;
        let inside = server.children("location").flat_map(|location| location.block.iter().flatten());
        for pass in inside.chain(server.children("proxy_pass")) {
            let Some(target) = pass.words.get(1).filter(|_| pass.name().ends_with("_pass")) else { continue };
            let target = target.split_once("://").map_or(target.as_str(), |(_, name)| name);
            if let Some(port) = target.strip_prefix("$scrimp_") {
                let is_map = |d: &&Directive| d.words == ["map", "$ssl_preread_server_name", target];
                let map = directives.iter().find(is_map).ok_or_else(|| format!("no map for port {port}"))?;
                let pools = map.block.iter().flatten().filter_map(|entry| entry.words.get(1));
                if let Some(missing) =
                    pools.filter(|pool| !pool.is_empty()).find(|pool| !names.contains(&pool.as_str()))
                {
                    return Err(format!("nothing is called {missing}"));
                }
            } else if !names.contains(&target) {
                return Err(format!("nothing is called {target}"));
            }
        }
        for listen in server.children("listen") {
            let port = listen.words[1].as_str();
            if listen.words.iter().any(|word| word == "default_server") {
                defaults.push(port.to_owned());
            }
            for name in server.children("server_name").flat_map(|d| &d.words[1..]) {
                server_names.push(format!("{name} {port}"));
            }
        }
    }
    no_doubles(&server_names, "server name")?;
    no_doubles(&defaults, "default server")
}

fn no_doubles<T: Ord + Clone + std::fmt::Debug>(list: &[T], what: &str) -> Result<(), String> {
    let mut sorted = list.to_vec();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("{what} {:?} is there twice", pair[0])),
        None => Ok(()),
    }
}
