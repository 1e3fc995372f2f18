//! This machine's addresses, and the one at which others are to reach it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};

/// How a node finds out its own address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Advertise {
    /// The local address that reaches the others.
    #[default]
    Auto,
    /// This address, with the port that is bound.
    Ip(IpAddr),
    /// This address and port, for one that is forwarded.
    Addr(SocketAddr),
    /// The address of a network interface.
    Interface(String),
    /// The machine's public IPv6 address.
    Ipv6,
    /// What Amazon's instance metadata says.
    Ec2,
}

/// One address of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddress {
    /// The network interface that has it.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
}

/// Where the instance metadata service is, and whether it may be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ec2Metadata {
    /// Another address than Amazon's; `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
    pub endpoint: Option<String>,
    /// Not to be asked at all; `AWS_EC2_METADATA_DISABLED=true`.
    pub is_disabled: bool,
}

impl Ec2Metadata {
    /// As the environment says.
    #[must_use]
    pub fn from_env() -> Self {
        let disabled = std::env::var("AWS_EC2_METADATA_DISABLED").unwrap_or_default();
        let endpoint = std::env::var("AWS_EC2_METADATA_SERVICE_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        Self { endpoint, is_disabled: disabled.eq_ignore_ascii_case("true") }
    }
}

/// Why there is no address to advertise, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(String);

/// The address to advertise, and in words why it is that one. `bind` is what the gossip is bound to, its port known;
/// `seeds` are addresses of others, the likeliest first.
///
/// # Errors
/// If no address can be found, or the one asked for cannot be reached by anybody.
pub async fn resolve(
    advertise: &Advertise,
    bind: SocketAddr,
    seeds: &[SocketAddr],
) -> Result<(SocketAddr, String), AddressError> {
    resolve_with(advertise, bind, seeds, &Ec2Metadata::from_env()).await
}

/// [`resolve`], with the instance metadata service named.
///
/// # Errors
/// As [`resolve`].
pub async fn resolve_with(
    advertise: &Advertise,
    bind: SocketAddr,
    seeds: &[SocketAddr],
    metadata: &Ec2Metadata,
) -> Result<(SocketAddr, String), AddressError> {
    let (ip, why) = match advertise {
        Advertise::Auto => automatic(bind, seeds),
        Advertise::Ip(ip) => (*ip, "it is configured".to_owned()),
        Advertise::Addr(address) => (address.ip(), "it is configured".to_owned()),
        Advertise::Interface(name) => of_interface(name, bind, &local_addresses()?)?,
        Advertise::Ipv6 => public_ipv6(bind, &local_addresses()?)?,
        Advertise::Ec2 => from_metadata(bind, metadata).await?,
    };
    let port = if let Advertise::Addr(address) = advertise { address.port() } else { bind.port() };
    check(ip).map_err(AddressError)?;
    let far = seeds.iter().find(|seed| ip.is_loopback() && !seed.ip().is_loopback());
    let note = far.map(|seed| format!("; but {seed} is on another machine and cannot reach it")).unwrap_or_default();
    Ok((SocketAddr::new(ip, port), format!("{why}{note}")))
}

/// The addresses of this machine's network interfaces, sorted by interface.
///
/// # Errors
/// If the kernel does not tell.
pub fn local_addresses() -> Result<Vec<LocalAddress>, AddressError> {
    let interfaces = if_addrs::get_if_addrs()
        .map_err(|error| AddressError(format!("this machine's addresses cannot be read: {error}")))?;
    let mut addresses: Vec<LocalAddress> = interfaces
        .into_iter()
        .map(|interface| LocalAddress { ip: interface.ip(), interface: interface.name })
        .collect();
    addresses.sort_by(|one, other| (&one.interface, one.ip).cmp(&(&other.interface, other.ip)));
    Ok(addresses)
}

/// The local address from which `target` would be reached. Nothing is sent: connecting a datagram socket only asks
/// the kernel's routing table.
///
/// # Errors
/// If there is no route.
pub fn source_for(target: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

impl FromStr for Advertise {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = |problem: String| Err(AddressError(format!("advertise {:?}: {problem}", shortened(text))));
        match text {
            "auto" => return Ok(Self::Auto),
            "ipv6" => return Ok(Self::Ipv6),
            "ec2" => return Ok(Self::Ec2),
            _ => {}
        }
        if let Some(name) = text.strip_prefix("interface:") {
            // Linux: at most 15 bytes, no slash, no white space.
            let is_name = (1..=15).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
            let remedy = "write interface:NAME with a name that `ip link` shows, like interface:eth0";
            return if is_name { Ok(Self::Interface(name.to_owned())) } else { refuse(remedy.to_owned()) };
        }
        let (ip, advertise) = if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            (ip, Self::Ip(ip))
        } else if let Ok(address) = text.parse::<SocketAddr>() {
            (address.ip(), Self::Addr(address))
        } else {
            return refuse("write auto, an IP address, IP:PORT, interface:NAME, ipv6 or ec2".to_owned());
        };
        match check(ip) {
            Err(problem) => refuse(problem),
            Ok(()) if matches!(advertise, Self::Addr(address) if address.port() == 0) => {
                refuse("port 0 cannot be reached; write the port, or the IP address alone".to_owned())
            }
            Ok(()) => Ok(advertise),
        }
    }
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Ip(ip) => ip.fmt(f),
            Self::Addr(address) => address.fmt(f),
            Self::Interface(name) => write!(f, "interface:{name}"),
            Self::Ipv6 => f.write_str("ipv6"),
            Self::Ec2 => f.write_str("ec2"),
        }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Whether anybody could reach a node there.
fn check(ip: IpAddr) -> Result<(), String> {
    let kind = match ip {
        ip if ip.is_unspecified() => "stands for every address of a machine",
        ip if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) => "is an address of many machines",
        _ => return Ok(()),
    };
    Err(format!("{ip} {kind} and cannot be advertised; write one address of this machine, or auto"))
}

/// Whether a socket that is bound to `bind` hears what is sent to `ip`: `[::]` hears both kinds.
fn hears(bind: SocketAddr, ip: IpAddr) -> bool {
    let is_kind = if bind.is_ipv4() { ip.is_ipv4() } else { bind.ip().is_unspecified() || ip.is_ipv6() };
    is_kind && (bind.ip().is_unspecified() || bind.ip() == ip)
}

/// Addresses set aside for documentation: no machine has them, so the default route leads there.
const NOWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

fn automatic(bind: SocketAddr, seeds: &[SocketAddr]) -> (IpAddr, String) {
    if !bind.ip().is_unspecified() {
        return (bind.ip(), "the gossip is bound to it".to_owned());
    }
    let usable = |target: SocketAddr| source_for(target).ok().filter(|ip| hears(bind, *ip) && check(*ip).is_ok());
    for seed in seeds {
        if let Some(ip) = usable(*seed) {
            return (ip, format!("from it the seed {seed} is reached"));
        }
    }
    for nowhere in NOWHERE {
        // Port 9 discards what comes, should anything ever be sent.
        if let Some(ip) = usable(SocketAddr::new(nowhere, 9)) {
            return (ip, "the default route goes out from it".to_owned());
        }
    }
    let loopback = if bind.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    (loopback, "this machine has no route to others".to_owned())
}

fn of_interface(name: &str, bind: SocketAddr, local: &[LocalAddress]) -> Result<(IpAddr, String), AddressError> {
    let mine: Vec<IpAddr> =
        local.iter().filter(|address| address.interface == name).map(|address| address.ip).collect();
    if mine.is_empty() {
        let mut names: Vec<&str> = local.iter().map(|address| address.interface.as_str()).collect();
        names.dedup();
        return Err(AddressError(format!(
            "advertise: no interface {name:?} has an address on this machine; there are {}",
            names.join(", ")
        )));
    }
    let best = mine.iter().copied().filter(|ip| hears(bind, *ip) && !is_link_local(*ip)).min();
    best.map(|ip| (ip, format!("interface {name} has it"))).ok_or_else(|| {
        let all: Vec<String> = mine.iter().map(ToString::to_string).collect();
        AddressError(format!(
            "advertise: interface {name:?} has {}, none of which the gossip hears that is bound to {bind}; \
             bind to \"[::]:{}\" to hear both IPv4 and IPv6",
            all.join(", "),
            bind.port()
        ))
    })
}

fn public_ipv6(bind: SocketAddr, local: &[LocalAddress]) -> Result<(IpAddr, String), AddressError> {
    let reachable = local.iter().filter(|address| {
        matches!(address.ip, IpAddr::V6(ip) if !ip.is_loopback() && !ip.is_multicast()) && !is_link_local(address.ip)
    });
    let is_private = |address: &LocalAddress| matches!(address.ip, IpAddr::V6(ip) if ip.is_unique_local());
    let Some(best) = reachable.min_by_key(|address| (is_private(address), address.ip)) else {
        return Err(AddressError(
            "advertise \"ipv6\": this machine has no IPv6 address that others could reach; give it one, or write auto"
                .to_owned(),
        ));
    };
    if !hears(bind, best.ip) {
        return Err(AddressError(format!(
            "advertise \"ipv6\": the gossip is bound to {bind} and does not hear {}; bind to \"[::]:{}\"",
            best.ip,
            bind.port()
        )));
    }
    Ok((best.ip, format!("interface {} has it", best.interface)))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Asks the instance metadata service (version 2, which wants a token) for the instance's private IPv4 address, or
/// its IPv6 address if there is none.
async fn from_metadata(bind: SocketAddr, metadata: &Ec2Metadata) -> Result<(IpAddr, String), AddressError> {
    let refuse = |problem: String| AddressError(format!("advertise \"ec2\": {problem}; or write auto"));
    if metadata.is_disabled {
        return Err(refuse("AWS_EC2_METADATA_DISABLED=true forbids asking; unset it".to_owned()));
    }
    let client = metadata_client(metadata).map_err(refuse)?;
    let mut known = Vec::new();
    for path in ["/latest/meta-data/local-ipv4", "/latest/meta-data/ipv6"] {
        let answer = match client.get(path).await {
            Ok(answer) => answer,
            // The instance has no such address.
            Err(imds::client::error::ImdsError::ErrorResponse(answer))
                if answer.response().status().as_u16() == 404 =>
            {
                continue;
            }
            Err(error) => return Err(refuse(no_metadata(&error))),
        };
        let text = answer.as_ref().trim();
        let ip: IpAddr = text.parse().map_err(|_| {
            refuse(format!("the instance metadata service says {:?} for {path}, not an address", shortened(text)))
        })?;
        if hears(bind, ip) {
            return Ok((ip, "the instance metadata service says so".to_owned()));
        }
        known.push(ip.to_string());
    }
    let known = if known.is_empty() { "no address".to_owned() } else { known.join(", ") };
    Err(refuse(format!(
        "the instance has {known}, and the gossip is bound to {bind}; bind to \"[::]:{}\"",
        bind.port()
    )))
}

fn no_metadata(error: &imds::client::error::ImdsError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    format!(
        "the instance metadata service does not answer as it should ({cause}); is this an EC2 instance with the \
         service switched on (in a container: with a hop limit of 2)?"
    )
}

fn metadata_client(metadata: &Ec2Metadata) -> Result<imds::Client, String> {
    // Spoken to without TLS, so no certificates are loaded.
    let trust =
        TlsContext::builder().with_trust_store(TrustStore::empty()).build().map_err(|error| error.to_string())?;
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(trust)
        .build_https();
    let builder = imds::Client::builder()
        .configure(&ProviderConfig::without_region().with_http_client(http))
        .max_attempts(2)
        .connect_timeout(Duration::from_secs(1))
        .read_timeout(Duration::from_secs(1))
        .operation_timeout(Duration::from_secs(4));
    let Some(endpoint) = &metadata.endpoint else {
        return Ok(builder.build());
    };
    let builder = builder.endpoint(endpoint).ok().filter(|_| endpoint.starts_with("http://"));
    builder.map(imds::client::Builder::build).ok_or_else(|| {
        format!("AWS_EC2_METADATA_SERVICE_ENDPOINT={:?} is not an address like http://HOST:PORT", shortened(endpoint))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7377);
    const ANY_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7377);

    fn local(all: &[(&str, &str)]) -> Vec<LocalAddress> {
        all.iter().map(|(name, ip)| LocalAddress { interface: (*name).to_owned(), ip: ip.parse().unwrap() }).collect()
    }

    #[test]
    fn what_a_person_writes_is_shown_again_as_written() {
        for text in
            ["auto", "ipv6", "ec2", "interface:eth0", "10.0.0.1", "10.0.0.1:7377", "2001:db8::1", "[2001:db8::1]:1"]
        {
            assert_eq!(text.parse::<Advertise>().unwrap().to_string(), text);
        }
        assert_eq!("[2001:db8::1]".parse::<Advertise>().unwrap().to_string(), "2001:db8::1");
        assert_eq!(Advertise::default(), Advertise::Auto);
    }

    #[test]
    fn what_nobody_could_reach_is_refused_with_a_remedy() {
        for (text, word) in [
            ("", "auto"),
            ("eth0", "interface:NAME"),
            ("interface:", "ip link"),
            ("interface:a b", "ip link"),
            ("interface:much-too-long-for-linux", "ip link"),
            ("0.0.0.0", "every address"),
            ("[::]:7377", "every address"),
            ("224.0.0.1", "many machines"),
            ("255.255.255.255:1", "many machines"),
            ("ff02::1", "many machines"),
            ("10.0.0.1:0", "port 0"),
            ("example.com", "IP address"),
        ] {
            let error = text.parse::<Advertise>().unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {word} is not in: {error}");
        }
    }

    #[tokio::test]
    async fn auto_takes_what_is_bound_else_what_reaches_the_first_usable_seed() {
        let auto = async |bind: &str, seeds: &[&str]| {
            let seeds: Vec<SocketAddr> = seeds.iter().map(|seed| seed.parse().unwrap()).collect();
            resolve_with(&Advertise::Auto, bind.parse().unwrap(), &seeds, &Ec2Metadata::default()).await.unwrap()
        };
        let (address, why) = auto("127.0.0.9:5", &["127.0.0.2:1"]).await;
        assert_eq!((address.to_string().as_str(), why.as_str()), ("127.0.0.9:5", "the gossip is bound to it"));

        let (address, why) = auto("0.0.0.0:5", &["[::1]:1", "127.0.0.2:1"]).await;
        assert_eq!(address.to_string(), "127.0.0.1:5", "an IPv6 seed says nothing to an IPv4 socket");
        assert!(why.contains("127.0.0.2:1"), "{why}");

        let (address, why) = auto("0.0.0.0:5", &[]).await;
        assert!(address.is_ipv4() && !address.ip().is_unspecified() && address.port() == 5, "{address} {why}");

        let (_, why) = auto("127.0.0.1:5", &["10.0.0.1:1"]).await;
        assert!(why.contains("10.0.0.1:1 is on another machine"), "{why}");
    }

    #[tokio::test]
    async fn what_is_configured_is_taken_and_gets_the_bound_port_unless_it_has_one() {
        for (text, expected) in [("10.0.0.1", "10.0.0.1:7377"), ("10.0.0.1:99", "10.0.0.1:99")] {
            let (address, _) = resolve(&text.parse().unwrap(), ANY_V4, &[]).await.unwrap();
            assert_eq!(address.to_string(), expected);
        }
        let everywhere = Advertise::Ip(Ipv4Addr::UNSPECIFIED.into());
        assert!(resolve(&everywhere, ANY_V4, &[]).await.is_err());
    }

    #[test]
    fn an_interface_gives_an_address_that_the_socket_hears() {
        let local = local(&[("eth0", "fe80::1"), ("eth0", "2001:db8::2"), ("eth0", "10.0.0.2"), ("wg0", "fd00::3")]);
        let pick = |name: &str, bind| of_interface(name, bind, &local).map(|(ip, _)| ip.to_string());
        assert_eq!(pick("eth0", ANY_V4).unwrap(), "10.0.0.2");
        assert_eq!(pick("eth0", ANY_V6).unwrap(), "10.0.0.2");
        assert_eq!(pick("eth0", "[2001:db8::2]:1".parse().unwrap()).unwrap(), "2001:db8::2");
        assert_eq!(pick("wg0", ANY_V6).unwrap(), "fd00::3");
        assert!(pick("wg0", ANY_V4).unwrap_err().to_string().contains("[::]:7377"));
        assert!(pick("eth1", ANY_V4).unwrap_err().to_string().contains("there are eth0, wg0"));
    }

    #[test]
    fn ipv6_prefers_an_address_that_the_whole_world_reaches() {
        let pick = |all: &[(&str, &str)], bind| public_ipv6(bind, &local(all)).map(|(ip, _)| ip.to_string());
        let many = [("lo", "::1"), ("eth0", "10.0.0.2"), ("eth0", "fe80::1"), ("eth0", "fd00::3"), ("eth0", "2a01::4")];
        assert_eq!(pick(&many, ANY_V6).unwrap(), "2a01::4");
        assert_eq!(pick(&many[..4], ANY_V6).unwrap(), "fd00::3");
        assert!(pick(&many[..3], ANY_V6).unwrap_err().to_string().contains("no IPv6 address"));
        assert!(pick(&many, ANY_V4).unwrap_err().to_string().contains("[::]:7377"));
    }

    #[test]
    fn this_machine_has_a_loopback_and_reaches_it_from_itself() {
        let all = local_addresses().unwrap();
        assert!(all.iter().any(|address| address.ip == IpAddr::V4(Ipv4Addr::LOCALHOST)), "{all:?}");
        assert_eq!(source_for("127.0.0.7:1".parse().unwrap()).unwrap(), Ipv4Addr::LOCALHOST);
    }
}
