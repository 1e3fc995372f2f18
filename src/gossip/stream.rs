//! The gossip's TCP side: offers that do not fit a datagram, and "are you there?" when UDP stays silent.
//!
//! One question and one answer a connection, each a frame: its length (4 bytes, big end first) and an envelope.
//! A question begins with 16 random bytes, which the answer repeats: a recorded answer fits no new question.
//! A question that does not open, or did before, is answered by closing the connection: nothing is told to strangers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::debug;

use super::record::{AppsDigest, decode_apps};
use super::seal::{Channel, KeySet, Keyring, OVERHEAD_BYTES, Opener, Sealer};
use crate::app::{App, OFFER_BYTES_MAX};
use crate::report::{GossipCounters, KeyId};

const CHALLENGE_BYTES: usize = 16;
const QUESTION_BYTES_MAX: usize = 256;
pub(super) const ANSWER_BYTES_MAX: usize = OFFER_BYTES_MAX + CHALLENGE_BYTES + 1 + OVERHEAD_BYTES;
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

/// The keys in use; replaced as a whole.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) keyring: Arc<Keyring>,
    pub(super) sealer: Arc<Sealer>,
}

/// The opener of questions. No panic leaves it half way.
pub(super) fn lock(questions: &Mutex<Opener>) -> MutexGuard<'_, Opener> {
    questions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers questions for ever.
pub(super) async fn serve(
    listener: TcpListener,
    keys: watch::Receiver<Keys>,
    questions: Arc<Mutex<Opener>>,
    served: watch::Receiver<Served>,
    counters: Arc<GossipCounters>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others will be closed.
                debug!("gossip: accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (keys, questions, served) = (keys.clone(), Arc::clone(&questions), served.borrow().clone());
        let counters = Arc::clone(&counters);
        tokio::spawn(async move {
            let answer = timeout(QUESTION_TIMEOUT, read_frame(&mut stream, QUESTION_BYTES_MAX)).await;
            match answer.ok().and_then(Result::ok).and_then(|frame| answer_to(frame, &questions, &served)) {
                Some((key, answer)) => {
                    let envelope = keys.borrow().sealer.seal(Channel::Stream, key, &answer);
                    let _ = timeout(EXCHANGE_TIMEOUT, write_frame(&mut stream, &envelope)).await;
                }
                None => counters.questions_refused.inc(),
            }
            drop(place);
        });
    }
}

/// The answer to a question that is one, and what to seal it with: as the question was.
fn answer_to(mut frame: Vec<u8>, questions: &Mutex<Opener>, served: &Served) -> Option<(KeyId, Vec<u8>)> {
    let question = lock(questions).open(&mut frame).ok()?;
    let (challenge, [kind, about @ ..]) = question.message.split_first_chunk::<CHALLENGE_BYTES>()? else {
        return None;
    };
    let (outcome, body): (u8, &[u8]) = match *kind {
        HELLO => (FOUND, &[]),
        PULL if about == served.digest => (FOUND, &served.apps),
        _ => (NOT_FOUND, &[]),
    };
    Some((question.key, [challenge, &[outcome][..], body].concat()))
}

/// Fetches the applications with this digest from their owner, who opens these keys.
pub(super) async fn pull(
    from: SocketAddr,
    digest: AppsDigest,
    keys: &Keys,
    opens: Option<&KeySet>,
) -> Result<Vec<App>, String> {
    match ask(from, PULL, &digest, keys, opens).await {
        Answer::Unreachable(error) => Err(error.to_string()),
        Answer::Silence => Err(format!("no answer within {EXCHANGE_TIMEOUT:?}")),
        Answer::Closed(error) => Err(error.to_string()),
        Answer::Foreign => Err("the answer is not sealed for our cluster".to_owned()),
        Answer::Ours(FOUND, bytes) => decode_apps(&bytes, &digest),
        Answer::Ours(..) => Err("its offer has changed meanwhile".to_owned()),
    }
}

/// Why a seed is silent, in words for a person.
pub(super) async fn contact(addr: SocketAddr, keys: &Keys) -> String {
    let port = addr.port();
    match ask(addr, HELLO, &[], keys, None).await {
        Answer::Unreachable(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            "it refuses connections: no scrimp listens there".to_owned()
        }
        Answer::Unreachable(error) => {
            format!("it does not answer ({error}): is it up, and port {port} open for UDP and TCP?")
        }
        Answer::Ours(..) => format!(
            "it answers over TCP but not over UDP: is port {port} open for UDP, both ways, and is this node the one that \
             is reached at the address it advertises (node.advertise)?"
        ),
        Answer::Foreign => "it answers, but not as a scrimp of our cluster".to_owned(),
        Answer::Closed(_) => {
            "its cluster key or its cluster name is not ours (it closes unanswered): give both nodes the \
                              same cluster.key file and the same cluster.name"
                .to_owned()
        }
        Answer::Silence => "it accepts connections but says nothing: is that a scrimp?".to_owned(),
    }
}

/// What became of a question.
enum Answer {
    Unreachable(std::io::Error),
    Silence,
    /// The connection ended without an answer.
    Closed(std::io::Error),
    /// Not authentic, or not to this question.
    Foreign,
    /// Its outcome and body.
    Ours(u8, Vec<u8>),
}

/// Asks, with each key that may be the right one until one is answered.
async fn ask(addr: SocketAddr, kind: u8, about: &[u8], keys: &Keys, opens: Option<&KeySet>) -> Answer {
    let mut last = Answer::Silence;
    for key in keys.sealer.keys_for(opens).as_slice() {
        let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(addr)).await;
        let too_long = |_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "connecting took too long"));
        let stream = match connecting.unwrap_or_else(too_long) {
            Ok(stream) => stream,
            Err(error) => return Answer::Unreachable(error),
        };
        last = match timeout(EXCHANGE_TIMEOUT, exchange(stream, kind, about, keys, *key)).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(error)) => Answer::Closed(error),
            Err(_) => return Answer::Silence,
        };
    }
    last
}

async fn exchange(mut stream: TcpStream, kind: u8, about: &[u8], keys: &Keys, key: KeyId) -> std::io::Result<Answer> {
    let challenge: [u8; CHALLENGE_BYTES] = rand::random();
    let question = [&challenge[..], &[kind], about].concat();
    write_frame(&mut stream, &keys.sealer.seal(Channel::Stream, key, &question)).await?;
    let mut frame = read_frame(&mut stream, ANSWER_BYTES_MAX).await?;
    let Ok(answer) = keys.keyring.open_frame(&mut frame) else {
        return Ok(Answer::Foreign);
    };
    Ok(match answer.message.split_first_chunk::<CHALLENGE_BYTES>() {
        Some((repeated, [outcome, body @ ..])) if *repeated == challenge => Answer::Ours(*outcome, body.to_vec()),
        _ => Answer::Foreign,
    })
}

pub(super) async fn read_frame(stream: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> std::io::Result<Vec<u8>> {
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
