//! Datagrams and stream frames under the cluster key: what is forged, damaged, foreign or replayed does not pass.
//!
//! ```text
//! 0   1  version, 0x51
//! 1   1  which key: the first byte of HKDF(key, "scrimp key id")
//! 2  16  session: random, one a process
//! 18  8  counter, from 1
//! 26  …  ciphertext and its 16 byte tag (AES-256-GCM-SIV, RFC 8452)
//! ```
//!
//! The first 26 bytes, the channel and the cluster's name are authenticated with it. Each session seals under a
//! key of its own, HKDF-SHA256 (RFC 5869) of the cluster key and the session id, with the counter as nonce, so a
//! nonce never meets the same key twice, however many nodes share the cluster key.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};

use super::replay::Window;
use crate::name::ClusterName;

const VERSION: u8 = 0x51;
const SESSION_BYTES: usize = 16;
const HEADER_BYTES: usize = 2 + SESSION_BYTES + 8;
const TAG_BYTES: usize = 16;

/// What sealing adds to a message.
pub(crate) const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

/// Sessions remembered at once. A node is one session; what is beyond is the oldest forgotten.
const SESSIONS_MAX: usize = 8192;

/// The cluster key: 32 secret bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey(pub [u8; 32]);

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(MASKED)")
    }
}

/// What a message travels on; a message sealed for one does not open on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Datagram = 0,
    Stream = 1,
}

/// Why a message did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too short, or of no known version.
    Malformed,
    /// Not sealed with a key of ours for our cluster, or damaged.
    Unauthenticated,
    /// Opened before, or older than the window.
    Replayed,
}

/// The keys of one cluster. The first seals; all open.
#[derive(Debug, Clone)]
pub(crate) struct Keyring {
    cluster: ClusterName,
    keys: Vec<(u8, ClusterKey)>,
}

impl Keyring {
    /// Without a key at all, everything is sealed with one that anybody can know: only for loopback, where it
    /// keeps one code path and keeps clusters of different names apart.
    pub(crate) fn new(cluster: ClusterName, keys: &[ClusterKey]) -> Self {
        let open = [ClusterKey([0; 32])];
        let keys = if keys.is_empty() { &open[..] } else { keys };
        Self { cluster, keys: keys.iter().map(|key| (key_id(key), key.clone())).collect() }
    }

    fn session_key(&self, key: &ClusterKey, session: &[u8; SESSION_BYTES]) -> LessSafeKey {
        let mut bytes = [0; 32];
        expand(key, session, &[b"scrimp session key", self.cluster.as_str().as_bytes()], &mut bytes);
        // A key of the wrong length is the only error, and 32 bytes is the right one.
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &bytes).expect("32 bytes are an AES-256 key"))
    }

    fn additional_data(&self, channel: Channel, header: &[u8]) -> Aad<Vec<u8>> {
        Aad::from([header, &[channel as u8], self.cluster.as_str().as_bytes()].concat())
    }
}

fn key_id(key: &ClusterKey) -> u8 {
    let mut id = [0; 32];
    expand(key, &[], &[b"scrimp key id"], &mut id);
    id[0]
}

fn expand(key: &ClusterKey, salt: &[u8], info: &[&[u8]], out: &mut [u8; 32]) {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&key.0);
    // HKDF-SHA256 gives up to 255 × 32 bytes; 32 cannot be too many.
    secret
        .expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(out))
        .expect("32 bytes are within what HKDF-SHA256 gives");
}

/// Seals what this process sends. One for all its tasks.
pub(crate) struct Sealer {
    keyring: Arc<Keyring>,
    key_id: u8,
    key: LessSafeKey,
    session: [u8; SESSION_BYTES],
    counter: AtomicU64,
}

impl Sealer {
    pub(crate) fn new(keyring: Arc<Keyring>) -> Self {
        let mut session = [0; SESSION_BYTES];
        rand::fill(&mut session).expect("the system has random bytes");
        let (key_id, cluster_key) = &keyring.keys[0];
        let key = keyring.session_key(cluster_key, &session);
        Self { key_id: *key_id, key, session, counter: AtomicU64::new(1), keyring }
    }

    /// The envelope of a message.
    pub(crate) fn seal(&self, channel: Channel, message: &[u8]) -> Vec<u8> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        let mut envelope = Vec::with_capacity(message.len() + OVERHEAD_BYTES);
        envelope.extend([VERSION, self.key_id]);
        envelope.extend(self.session);
        envelope.extend(counter.to_be_bytes());
        let additional = self.keyring.additional_data(channel, &envelope);
        envelope.extend(message);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(counter), additional, &mut envelope[HEADER_BYTES..])
            .expect("a message is far below the 64 GiB that AES-GCM-SIV takes");
        envelope.extend(tag.as_ref());
        envelope
    }
}

/// Opens what others sent as datagrams, each once.
pub(crate) struct Opener {
    keyring: Arc<Keyring>,
    sessions: HashMap<(u8, [u8; SESSION_BYTES]), Session>,
    opened: u64,
}

struct Session {
    key: LessSafeKey,
    window: Window,
    last_opened: u64,
}

impl Opener {
    pub(crate) fn new(keyring: Arc<Keyring>) -> Self {
        Self { keyring, sessions: HashMap::new(), opened: 0 }
    }

    /// The message inside `envelope`, in place.
    pub(crate) fn open<'a>(&mut self, envelope: &'a mut [u8]) -> Result<&'a [u8], Refusal> {
        let parts = Parts::split(envelope)?;
        let id = (parts.key_id, parts.session);
        let counter = parts.counter;
        self.opened += 1;
        if let Some(known) = self.sessions.get_mut(&id) {
            if !known.window.is_new(counter) {
                return Err(Refusal::Replayed);
            }
            let message = parts.open(&self.keyring, Channel::Datagram, &known.key)?;
            known.window.mark(counter);
            known.last_opened = self.opened;
            return Ok(message);
        }
        let key = parts.derive(&self.keyring)?;
        let message = parts.open(&self.keyring, Channel::Datagram, &key)?;
        // Remembered only now that it is authentic: noise makes no entries.
        let mut window = Window::default();
        window.mark(counter);
        self.make_room();
        self.sessions.insert(id, Session { key, window, last_opened: self.opened });
        Ok(message)
    }

    fn make_room(&mut self) {
        if self.sessions.len() >= SESSIONS_MAX {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.last_opened).map(|(id, _)| *id);
            oldest.map(|id| self.sessions.remove(&id));
        }
    }
}

/// The message inside one stream frame, in place. The stream's own question and answer make it fresh.
pub(crate) fn open_frame<'a>(keyring: &Keyring, envelope: &'a mut [u8]) -> Result<&'a [u8], Refusal> {
    let parts = Parts::split(envelope)?;
    let key = parts.derive(keyring)?;
    parts.open(keyring, Channel::Stream, &key)
}

struct Parts<'a> {
    key_id: u8,
    session: [u8; SESSION_BYTES],
    counter: u64,
    header: &'a [u8],
    sealed: &'a mut [u8],
}

impl<'a> Parts<'a> {
    fn split(envelope: &'a mut [u8]) -> Result<Self, Refusal> {
        let (header, sealed) = envelope.split_at_mut_checked(HEADER_BYTES).ok_or(Refusal::Malformed)?;
        let header: &'a [u8] = header;
        let (Some((&[VERSION, key_id], rest)), true) = (header.split_first_chunk::<2>(), sealed.len() >= TAG_BYTES)
        else {
            return Err(Refusal::Malformed);
        };
        let (session, rest) = rest.split_first_chunk().ok_or(Refusal::Malformed)?;
        let counter = rest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)).ok_or(Refusal::Malformed)?;
        Ok(Self { key_id, session: *session, counter, header, sealed })
    }

    fn derive(&self, keyring: &Keyring) -> Result<LessSafeKey, Refusal> {
        let (_, key) = keyring.keys.iter().find(|(id, _)| *id == self.key_id).ok_or(Refusal::Unauthenticated)?;
        Ok(keyring.session_key(key, &self.session))
    }

    fn open(self, keyring: &Keyring, channel: Channel, key: &LessSafeKey) -> Result<&'a [u8], Refusal> {
        let additional = keyring.additional_data(channel, self.header);
        match key.open_in_place(nonce(self.counter), additional, self.sealed) {
            Ok(message) => Ok(message),
            Err(_) => Err(Refusal::Unauthenticated),
        }
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(cluster: &str, keys: &[u8]) -> Arc<Keyring> {
        let keys: Vec<_> = keys.iter().map(|byte| ClusterKey([*byte; 32])).collect();
        Arc::new(Keyring::new(cluster.parse().unwrap(), &keys))
    }

    fn pair(cluster: &str, keys: &[u8]) -> (Sealer, Opener) {
        let keyring = keyring(cluster, keys);
        (Sealer::new(Arc::clone(&keyring)), Opener::new(keyring))
    }

    #[test]
    fn a_message_opens_once() {
        let (sealer, mut opener) = pair("a", &[1]);
        let envelope = sealer.seal(Channel::Datagram, b"hello");
        assert_eq!(envelope.len(), 5 + OVERHEAD_BYTES);
        assert!(!envelope.windows(5).any(|part| part == b"hello"));
        assert_eq!(opener.open(&mut envelope.clone()), Ok(&b"hello"[..]));
        assert_eq!(opener.open(&mut envelope.clone()), Err(Refusal::Replayed));
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_refused() {
        let (sealer, mut opener) = pair("a", &[1]);
        let envelope = sealer.seal(Channel::Datagram, b"hello");
        for bit in 0..envelope.len() * 8 {
            let mut damaged = envelope.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(opener.open(&mut damaged).is_err(), "bit {bit}");
        }
        for length in 0..envelope.len() {
            assert!(opener.open(&mut envelope[..length].to_vec()).is_err(), "{length} bytes");
        }
        assert!(opener.sessions.is_empty(), "what is not authentic leaves no trace");
        assert!(opener.open(&mut envelope.clone()).is_ok());
    }

    #[test]
    fn another_key_another_cluster_another_channel_do_not_open() {
        let (sealer, _) = pair("a", &[1]);
        let envelope = sealer.seal(Channel::Datagram, b"hello");
        for (cluster, key) in [("a", 2), ("b", 1)] {
            let (_, mut opener) = pair(cluster, &[key]);
            assert_eq!(opener.open(&mut envelope.clone()), Err(Refusal::Unauthenticated), "{cluster} {key}");
        }
        assert_eq!(open_frame(&keyring("a", &[1]), &mut envelope.clone()), Err(Refusal::Unauthenticated));
        let frame = sealer.seal(Channel::Stream, b"frame");
        assert_eq!(open_frame(&keyring("a", &[1]), &mut frame.clone()), Ok(&b"frame"[..]));
        assert_eq!(pair("a", &[1]).1.open(&mut frame.clone()), Err(Refusal::Unauthenticated));
    }

    #[test]
    fn any_key_of_the_ring_opens() {
        let (old, _) = pair("a", &[1]);
        let (new, mut both) = pair("a", &[2, 1]);
        assert!(both.open(&mut old.seal(Channel::Datagram, b"x")).is_ok());
        assert!(both.open(&mut new.seal(Channel::Datagram, b"x")).is_ok());
        let (_, mut only_old) = pair("a", &[1]);
        assert!(only_old.open(&mut new.seal(Channel::Datagram, b"x")).is_err());
    }

    #[test]
    fn sessions_are_bounded() {
        let ring = keyring("a", &[1]);
        let mut opener = Opener::new(Arc::clone(&ring));
        for _ in 0..SESSIONS_MAX + 10 {
            let sealer = Sealer::new(Arc::clone(&ring));
            assert!(opener.open(&mut sealer.seal(Channel::Datagram, b"x")).is_ok());
        }
        assert_eq!(opener.sessions.len(), SESSIONS_MAX);
    }
}
