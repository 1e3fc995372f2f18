//! The gossip's TCP side: offers that do not fit a datagram, and "are you there?" when UDP stays silent.
//!
//! One question and one answer a connection, each a frame: its length (4 bytes, big end first) and an envelope.
//! A question begins with 16 random bytes, which the answer repeats: a recorded answer fits no new question.
//! A question that does not open is answered by closing the connection: nothing is told to strangers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::debug;

use super::record::{AppsDigest, decode_apps};
use super::seal::{Channel, Keyring, OVERHEAD_BYTES, Sealer, open_frame};
use crate::app::{App, OFFER_BYTES_MAX};

const CHALLENGE_BYTES: usize = 16;
const QUESTION_BYTES_MAX: usize = 256;
const ANSWER_BYTES_MAX: usize = OFFER_BYTES_MAX + CHALLENGE_BYTES + 1 + OVERHEAD_BYTES;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A stranger that connects and says nothing is let go after this.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECTIONS_MAX: usize = 64;

const HELLO: u8 = 1;
const PULL: u8 = 2;
const FOUND: u8 = 0;
const NOT_FOUND: u8 = 1;

/// What pulls are answered with.
#[derive(Debug, Clone, Default)]
pub(super) struct Served {
    pub(super) digest: AppsDigest,
    pub(super) apps: Arc<[u8]>,
}

/// Answers questions for ever.
pub(super) async fn serve(
    listener: TcpListener,
    keyring: Arc<Keyring>,
    sealer: Arc<Sealer>,
    served: watch::Receiver<Served>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others will be closed.
                debug!("gossip: accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (keyring, sealer, served) = (Arc::clone(&keyring), Arc::clone(&sealer), served.borrow().clone());
        tokio::spawn(async move {
            let _ = timeout(EXCHANGE_TIMEOUT, answer(stream, &keyring, &sealer, &served)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, keyring: &Keyring, sealer: &Sealer, served: &Served) -> std::io::Result<()> {
    let Ok(frame) = timeout(QUESTION_TIMEOUT, read_frame(&mut stream, QUESTION_BYTES_MAX)).await else {
        return Ok(());
    };
    let mut frame = frame?;
    let Ok(question) = open_frame(keyring, &mut frame) else {
        return Ok(());
    };
    let Some((challenge, [kind, about @ ..])) = question.split_first_chunk::<CHALLENGE_BYTES>() else {
        return Ok(());
    };
    let (outcome, body): (u8, &[u8]) = match *kind {
        HELLO => (FOUND, &[]),
        PULL if about == served.digest => (FOUND, &served.apps),
        _ => (NOT_FOUND, &[]),
    };
    let answer = [challenge, &[outcome][..], body].concat();
    write_frame(&mut stream, &sealer.seal(Channel::Stream, &answer)).await
}

/// Fetches the applications with this digest from their owner.
pub(super) async fn pull(
    from: SocketAddr,
    digest: AppsDigest,
    keyring: &Keyring,
    sealer: &Sealer,
) -> Result<Vec<App>, String> {
    let stream = connect(from).await.map_err(|error| error.to_string())?;
    match timeout(EXCHANGE_TIMEOUT, exchange(stream, PULL, &digest, keyring, sealer)).await {
        Err(_) => Err(format!("no answer within {EXCHANGE_TIMEOUT:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(None)) => Err("the answer is not sealed for our cluster".to_owned()),
        Ok(Ok(Some((FOUND, bytes)))) => decode_apps(&bytes, &digest),
        Ok(Ok(Some(_))) => Err("its offer has changed meanwhile".to_owned()),
    }
}

/// Why a seed is silent, in words for a person.
pub(super) async fn contact(addr: SocketAddr, keyring: &Keyring, sealer: &Sealer) -> String {
    let port = addr.port();
    let stream = match connect(addr).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return "it refuses connections: no scrimp listens there".to_owned();
        }
        Err(error) => {
            return format!("it does not answer ({error}): is it up, and port {port} open for UDP and TCP?");
        }
    };
    match timeout(EXCHANGE_TIMEOUT, exchange(stream, HELLO, &[], keyring, sealer)).await {
        Ok(Ok(Some(_))) => format!("it answers over TCP but not over UDP: is port {port} open for UDP, both ways?"),
        Ok(Ok(None)) => "it answers, but not as a scrimp of our cluster".to_owned(),
        Ok(Err(_)) => {
            "its cluster key or its cluster name is not ours (it closes unanswered): give both nodes the same \
                       cluster.key file and the same cluster.name"
                .to_owned()
        }
        Err(_) => "it accepts connections but says nothing: is that a scrimp?".to_owned(),
    }
}

async fn connect(addr: SocketAddr) -> std::io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, TcpStream::connect(addr))
        .await
        .unwrap_or_else(|_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "connecting took too long")))
}

/// Asks; the outcome and body of the answer, or none if that is not authentic and fresh.
async fn exchange(
    mut stream: TcpStream,
    kind: u8,
    about: &[u8],
    keyring: &Keyring,
    sealer: &Sealer,
) -> std::io::Result<Option<(u8, Vec<u8>)>> {
    let challenge: [u8; CHALLENGE_BYTES] = rand::random();
    let question = [&challenge[..], &[kind], about].concat();
    write_frame(&mut stream, &sealer.seal(Channel::Stream, &question)).await?;
    let mut frame = read_frame(&mut stream, ANSWER_BYTES_MAX).await?;
    let Ok(answer) = open_frame(keyring, &mut frame) else {
        return Ok(None);
    };
    Ok(match answer.split_first_chunk::<CHALLENGE_BYTES>() {
        Some((repeated, [outcome, body @ ..])) if *repeated == challenge => Some((*outcome, body.to_vec())),
        _ => None,
    })
}

async fn read_frame(stream: &mut TcpStream, bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u32().await? as usize;
    if length > bytes_max {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a frame longer than allowed"));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn write_frame(stream: &mut TcpStream, envelope: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(envelope.len()).unwrap_or(u32::MAX);
    stream.write_all(&[&length.to_be_bytes()[..], envelope].concat()).await?;
    stream.flush().await
}
