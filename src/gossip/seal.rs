//! Datagrams and stream frames under the cluster key: what is forged, damaged, foreign or replayed does not pass.
//!
//! ```text
//! 0   1  version, 0x51
//! 1   1  which key: the first byte of its id
//! 2  16  session: random, one for each key of a process
//! 18  8  counter, from 1
//! 26  …  ciphertext and its 16 byte tag (AES-256-GCM-SIV, RFC 8452) of
//!        1    how many ids follow: 0 if the sender has only the key that this is sealed with
//!        4 n  the ids of the keys that the sender opens, the one that it prefers first
//!        …    the message
//! ```
//!
//! The first 26 bytes and the channel are authenticated with it. Each session seals under a key of its own,
//! HKDF-SHA256 (RFC 5869) of the cluster key, the session and the cluster's name, with the counter as nonce, so a
//! nonce never meets the same key twice, however many nodes share the cluster key.
//!
//! Because everybody says which keys it opens, two nodes that share a key always hear each other, whichever of
//! theirs they prefer: a cluster may change its keys node by node, in any order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};

use super::replay::Window;
use crate::name::ClusterName;
use crate::report::KeyId;

const VERSION: u8 = 0x51;
const SESSION_BYTES: usize = 16;
const HEADER_BYTES: usize = 2 + SESSION_BYTES + 8;
const TAG_BYTES: usize = 16;
const ID_BYTES: usize = 4;

/// The most keys of one ring: one in use, one to come, one to go, one to spare.
pub const KEYS_MAX: usize = 4;

/// What sealing adds to a message at most.
pub(crate) const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + ID_BYTES * KEYS_MAX + TAG_BYTES;

/// Sessions remembered at once. A node is one session a key; what is beyond is the oldest forgotten.
const SESSIONS_MAX: usize = 8192;

/// The cluster key: 32 secret bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey(pub [u8; 32]);

impl ClusterKey {
    /// What it is called where it must not be shown.
    #[must_use]
    pub fn id(&self) -> KeyId {
        Key::new(self).id
    }
}

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
    /// It names a key that is none of ours.
    UnknownKey,
    /// Not sealed with the key that it names for our cluster, or damaged.
    Unauthenticated,
    /// Opened before, or older than the window.
    Replayed,
}

/// Ids of the keys of one ring, the preferred first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KeySet {
    ids: [KeyId; KEYS_MAX],
    count: usize,
}

impl KeySet {
    pub(crate) fn as_slice(&self) -> &[KeyId] {
        &self.ids[..self.count]
    }
}

impl FromIterator<KeyId> for KeySet {
    /// What is beyond [`KEYS_MAX`] is left out.
    fn from_iter<I: IntoIterator<Item = KeyId>>(ids: I) -> Self {
        let mut set = Self::default();
        for id in ids.into_iter().take(KEYS_MAX) {
            set.ids[set.count] = id;
            set.count += 1;
        }
        set
    }
}

/// A cluster key, ready to derive from.
#[derive(Debug)]
struct Key {
    secret: ClusterKey,
    id: KeyId,
    /// HMAC under what HKDF extracts of the secret: one step a session instead of two.
    derive: hmac::Key,
}

impl Key {
    fn new(secret: &ClusterKey) -> Self {
        let extracted = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"scrimp cluster key"), &secret.0);
        let derive = hmac::Key::new(hmac::HMAC_SHA256, extracted.as_ref());
        let id = expand(&derive, &[b"scrimp key id"]);
        Self { secret: secret.clone(), id: KeyId([id[0], id[1], id[2], id[3]]), derive }
    }

    fn session_key(&self, cluster: &ClusterName, session: &[u8; SESSION_BYTES]) -> LessSafeKey {
        let bytes = expand(&self.derive, &[b"scrimp session key", session, cluster.as_str().as_bytes()]);
        // A key of the wrong length is the only error, and 32 bytes is the right one.
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &bytes).expect("32 bytes are an AES-256 key"))
    }
}

/// HKDF-Expand for 32 bytes, which are one block of HMAC-SHA256.
fn expand(extracted: &hmac::Key, info: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(extracted);
    info.iter().for_each(|part| context.update(part));
    context.update(&[1]);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.sign().as_ref());
    bytes
}

/// The keys of one cluster. The first is preferred for sealing; all open.
#[derive(Debug, Clone)]
pub(crate) struct Keyring {
    cluster: ClusterName,
    keys: Vec<Arc<Key>>,
}

impl Keyring {
    /// Without a key at all, everything is sealed with one that anybody can know: only for loopback, where it
    /// keeps one code path and keeps clusters of different names apart. A key that is given twice counts once.
    pub(crate) fn new(cluster: ClusterName, keys: &[ClusterKey]) -> Self {
        let open = [ClusterKey([0; 32])];
        let keys = if keys.is_empty() { &open[..] } else { keys };
        let mut ring: Vec<Arc<Key>> = Vec::new();
        for key in keys.iter().take(KEYS_MAX) {
            if ring.iter().all(|known| known.secret != *key) {
                ring.push(Arc::new(Key::new(key)));
            }
        }
        Self { cluster, keys: ring }
    }

    /// Other keys of the same cluster.
    pub(crate) fn with(&self, keys: &[ClusterKey]) -> Self {
        Self::new(self.cluster.clone(), keys)
    }

    /// The ids of its keys, in their order.
    pub(crate) fn ids(&self) -> KeySet {
        self.keys.iter().map(|key| key.id).collect()
    }

    /// Opens one frame of a stream whose own question and answer make it fresh.
    pub(crate) fn open_frame<'a>(&self, envelope: &'a mut [u8]) -> Result<Opened<'a>, Refusal> {
        let ids = self.keys.iter().map(|key| key.id);
        try_keys(ids, envelope, |at, header, sealed| {
            let key = self.keys[at].session_key(&self.cluster, &header.session);
            header.open(Channel::Stream, &key, sealed)
        })
    }
}

/// Seals what this process sends. One for all its tasks.
pub(crate) struct Sealer {
    sendings: Vec<Arc<Sending>>,
    /// What stands in front of each message.
    opens: Vec<u8>,
}

/// One session of ours.
struct Sending {
    key: Arc<Key>,
    session_key: LessSafeKey,
    session: [u8; SESSION_BYTES],
    counter: AtomicU64,
}

impl Sealer {
    pub(crate) fn new(keyring: &Keyring) -> Self {
        Self { sendings: Vec::new(), opens: Vec::new() }.rekeyed(keyring)
    }

    /// The sealer for another ring. Sessions of keys that stay go on.
    pub(crate) fn rekeyed(&self, keyring: &Keyring) -> Self {
        let sending = |key: &Arc<Key>| {
            let known = self.sendings.iter().find(|sending| sending.key.secret == key.secret);
            known.map_or_else(|| Arc::new(Sending::new(Arc::clone(key), &keyring.cluster)), Arc::clone)
        };
        let ids = keyring.ids();
        let ids = if ids.count > 1 { ids.as_slice() } else { &[] };
        let mut opens = vec![ids.len() as u8];
        ids.iter().for_each(|id| opens.extend(id.0));
        Self { sendings: keyring.keys.iter().map(sending).collect(), opens }
    }

    /// Which keys to seal with for somebody who opens these: the first of ours among them. For somebody of whom
    /// nothing is known: each of ours, in as many envelopes.
    pub(crate) fn keys_for(&self, opens: Option<&KeySet>) -> KeySet {
        let mut ours = self.sendings.iter().map(|sending| sending.key.id);
        match opens {
            None => ours.collect(),
            Some(opens) => {
                let shared = ours.clone().find(|id| opens.as_slice().contains(id));
                shared.or_else(|| ours.next()).into_iter().collect()
            }
        }
    }

    /// The envelope of a message; with a key of ours, or else the first.
    pub(crate) fn seal(&self, channel: Channel, with: KeyId, message: &[u8]) -> Vec<u8> {
        let sending = self.sendings.iter().find(|sending| sending.key.id == with).unwrap_or(&self.sendings[0]);
        let counter = sending.counter.fetch_add(1, Ordering::Relaxed);
        let mut envelope = Vec::with_capacity(message.len() + OVERHEAD_BYTES);
        envelope.extend([VERSION, sending.key.id.0[0]]);
        envelope.extend(sending.session);
        envelope.extend(counter.to_be_bytes());
        let additional = additional_data(channel, &envelope);
        envelope.extend(&self.opens);
        envelope.extend(message);
        let tag = sending
            .session_key
            .seal_in_place_separate_tag(nonce(counter), additional, &mut envelope[HEADER_BYTES..])
            .expect("a message is far below the 64 GiB that AES-GCM-SIV takes");
        envelope.extend(tag.as_ref());
        envelope
    }
}

impl Sending {
    fn new(key: Arc<Key>, cluster: &ClusterName) -> Self {
        let mut session = [0; SESSION_BYTES];
        rand::fill(&mut session).expect("the system has random bytes");
        Self { session_key: key.session_key(cluster, &session), key, session, counter: AtomicU64::new(1) }
    }
}

/// What was inside an envelope.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened<'a> {
    pub(crate) message: &'a [u8],
    /// What it was sealed with.
    pub(crate) key: KeyId,
    /// What its sender opens.
    pub(crate) opens: KeySet,
}

/// Opens what others sent on one channel, each once.
pub(crate) struct Opener {
    channel: Channel,
    cluster: ClusterName,
    keys: Vec<Opening>,
    /// Keys that were taken away: should one come back, what was recorded before must not open again.
    former: Vec<Opening>,
    opened: u64,
}

/// What was heard under one key.
struct Opening {
    key: Arc<Key>,
    sessions: HashMap<[u8; SESSION_BYTES], Session>,
}

struct Session {
    key: LessSafeKey,
    window: Window,
    last_opened: u64,
}

impl Opener {
    pub(crate) fn new(channel: Channel, keyring: &Keyring) -> Self {
        let mut opener =
            Self { channel, cluster: keyring.cluster.clone(), keys: Vec::new(), former: Vec::new(), opened: 0 };
        opener.rekey(keyring);
        opener
    }

    /// Opens with these keys from now on. What was heard under keys that stay is still known.
    pub(crate) fn rekey(&mut self, keyring: &Keyring) {
        let mut known: Vec<Opening> = self.keys.drain(..).chain(self.former.drain(..)).collect();
        for key in &keyring.keys {
            let at = known.iter().position(|opening| opening.key.secret == key.secret);
            let opening =
                at.map_or_else(|| Opening { key: Arc::clone(key), sessions: HashMap::new() }, |at| known.remove(at));
            self.keys.push(opening);
        }
        // The latest that went stand first.
        known.truncate(KEYS_MAX);
        self.former = known;
    }

    /// The message inside `envelope`, in place.
    pub(crate) fn open<'a>(&mut self, envelope: &'a mut [u8]) -> Result<Opened<'a>, Refusal> {
        let Self { channel, cluster, keys, opened, .. } = self;
        let ids: KeySet = keys.iter().map(|opening| opening.key.id).collect();
        let mut is_new_session = false;
        let outcome = try_keys(ids.as_slice().iter().copied(), envelope, |at, header, sealed| {
            let Opening { key, sessions } = &mut keys[at];
            if let Some(known) = sessions.get_mut(&header.session) {
                if !known.window.is_new(header.counter) {
                    return Err(Refusal::Replayed);
                }
                header.open(*channel, &known.key, sealed)?;
                known.window.mark(header.counter);
                *opened += 1;
                known.last_opened = *opened;
                return Ok(());
            }
            let session_key = key.session_key(cluster, &header.session);
            header.open(*channel, &session_key, sealed)?;
            // Remembered only now that it is authentic: noise makes no entries.
            let mut window = Window::default();
            window.mark(header.counter);
            *opened += 1;
            sessions.insert(header.session, Session { key: session_key, window, last_opened: *opened });
            is_new_session = true;
            Ok(())
        });
        if is_new_session {
            self.forget_oldest();
        }
        outcome
    }

    fn session_count(&self) -> usize {
        self.keys.iter().chain(&self.former).map(|opening| opening.sessions.len()).sum()
    }

    fn forget_oldest(&mut self) {
        if self.session_count() <= SESSIONS_MAX {
            return;
        }
        let all = self.keys.iter_mut().chain(&mut self.former);
        let oldest = |opening: &Opening| {
            let oldest = opening.sessions.iter().min_by_key(|(_, session)| session.last_opened);
            oldest.map(|(id, session)| (session.last_opened, *id))
        };
        let found = all.filter_map(|opening| Some((oldest(opening)?, opening))).min_by_key(|(oldest, _)| *oldest);
        found.map(|((_, id), opening)| opening.sessions.remove(&id));
    }
}

/// The clear part of an envelope.
struct Header {
    key_id: u8,
    session: [u8; SESSION_BYTES],
    counter: u64,
    additional: [u8; HEADER_BYTES],
}

impl Header {
    /// Reads it; the rest is what is sealed.
    fn split(envelope: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (additional, sealed) = envelope.split_first_chunk_mut::<HEADER_BYTES>()?;
        let additional = *additional;
        let (&[version, key_id], rest) = additional.split_first_chunk()?;
        let (session, rest) = rest.split_first_chunk()?;
        let counter = u64::from_be_bytes(*rest.first_chunk()?);
        let is_whole = version == VERSION && sealed.len() >= TAG_BYTES;
        is_whole.then_some((Self { key_id, session: *session, counter, additional }, sealed))
    }

    fn open(&self, channel: Channel, key: &LessSafeKey, sealed: &mut [u8]) -> Result<(), Refusal> {
        match key.open_in_place(nonce(self.counter), additional_data(channel, &self.additional), sealed) {
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::Unauthenticated),
        }
    }
}

/// Tries each key that the envelope may mean. Its one byte hardly ever fits two; then it is opened as a copy, as
/// a try that fails leaves nothing of it.
fn try_keys<'a>(
    ids: impl Iterator<Item = KeyId> + Clone,
    envelope: &'a mut [u8],
    mut open: impl FnMut(usize, &Header, &mut [u8]) -> Result<(), Refusal>,
) -> Result<Opened<'a>, Refusal> {
    let (header, sealed) = Header::split(envelope).ok_or(Refusal::Malformed)?;
    let meant = ids.enumerate().filter(|(_, id)| id.0[0] == header.key_id);
    let copy = if meant.clone().count() > 1 { sealed.to_vec() } else { Vec::new() };
    let mut refusal = Refusal::UnknownKey;
    for (tried, (at, key)) in meant.enumerate() {
        if tried > 0 {
            sealed.copy_from_slice(&copy);
        }
        match open(at, &header, sealed) {
            Ok(()) => return read_opened(key, &sealed[..sealed.len() - TAG_BYTES]),
            // That it was replayed under one key says more than that it does not open with the other.
            Err(_) if refusal == Refusal::Replayed => {}
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn read_opened(key: KeyId, bytes: &[u8]) -> Result<Opened<'_>, Refusal> {
    let (count, rest) = bytes.split_first().ok_or(Refusal::Malformed)?;
    let (ids, message) = rest.split_at_checked(usize::from(*count) * ID_BYTES).ok_or(Refusal::Malformed)?;
    let (ids, _) = ids.as_chunks::<ID_BYTES>();
    let opens = if ids.is_empty() { [key].into_iter().collect() } else { ids.iter().copied().map(KeyId).collect() };
    Ok(Opened { message, key, opens })
}

fn additional_data(channel: Channel, header: &[u8]) -> Aad<[u8; HEADER_BYTES + 1]> {
    let mut bytes = [0; HEADER_BYTES + 1];
    bytes[..HEADER_BYTES].copy_from_slice(header);
    bytes[HEADER_BYTES] = channel as u8;
    Aad::from(bytes)
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Sealing without a network, to be measured.
#[cfg(feature = "testing")]
pub mod sealing {
    use super::{Channel, ClusterKey, Keyring, Opener, Refusal};
    use crate::report::KeyId;

    /// Seals with the first of its keys.
    pub struct Sender(super::Sealer, KeyId);

    /// Opens each datagram once.
    pub struct Receiver(Opener);

    fn keyring(cluster: &str, keys: &[ClusterKey]) -> Keyring {
        Keyring::new(cluster.parse().expect("a name of a cluster"), keys)
    }

    impl Sender {
        /// With these keys.
        #[must_use]
        pub fn new(cluster: &str, keys: &[ClusterKey]) -> Self {
            let ring = keyring(cluster, keys);
            Self(super::Sealer::new(&ring), ring.ids().as_slice()[0])
        }

        /// The datagram of a message.
        #[must_use]
        pub fn seal(&self, message: &[u8]) -> Vec<u8> {
            self.0.seal(Channel::Datagram, self.1, message)
        }
    }

    impl Receiver {
        /// With these keys.
        #[must_use]
        pub fn new(cluster: &str, keys: &[ClusterKey]) -> Self {
            Self(Opener::new(Channel::Datagram, &keyring(cluster, keys)))
        }

        /// Opens a datagram.
        ///
        /// # Errors
        /// Why it does not open, in a word.
        pub fn open(&mut self, datagram: &mut [u8]) -> Result<(), &'static str> {
            self.0.open(datagram).map(drop).map_err(|refusal| match refusal {
                Refusal::Malformed => "malformed",
                Refusal::UnknownKey => "unknown key",
                Refusal::Unauthenticated => "unauthenticated",
                Refusal::Replayed => "replayed",
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::hkdf;
    use proptest::prelude::*;

    fn keyring(cluster: &str, keys: &[u8]) -> Keyring {
        let keys: Vec<_> = keys.iter().map(|byte| ClusterKey([*byte; 32])).collect();
        Keyring::new(cluster.parse().unwrap(), &keys)
    }

    /// One node's sealing.
    struct Node {
        sealer: Sealer,
        opener: Opener,
    }

    impl Node {
        fn new(cluster: &str, keys: &[u8]) -> Self {
            let ring = keyring(cluster, keys);
            Self { sealer: Sealer::new(&ring), opener: Opener::new(Channel::Datagram, &ring) }
        }

        fn rekey(&mut self, keys: &[u8]) {
            let ring = keyring("a", keys);
            self.sealer = self.sealer.rekeyed(&ring);
            self.opener.rekey(&ring);
        }

        /// With the first key.
        fn seal(&self, message: &[u8]) -> Vec<u8> {
            self.seal_with(Channel::Datagram, 0, message)
        }

        fn seal_with(&self, channel: Channel, key: usize, message: &[u8]) -> Vec<u8> {
            self.sealer.seal(channel, self.sealer.sendings[key].key.id, message)
        }

        fn open(&mut self, envelope: &[u8]) -> Result<Vec<u8>, Refusal> {
            self.opener.open(&mut envelope.to_vec()).map(|opened| opened.message.to_vec())
        }
    }

    #[test]
    fn a_message_opens_once() {
        let mut node = Node::new("a", &[1]);
        let envelope = node.seal(b"hello");
        assert_eq!(envelope.len(), 5 + HEADER_BYTES + 1 + TAG_BYTES);
        assert!(!envelope.windows(5).any(|part| part == b"hello"));
        assert_eq!(node.open(&envelope), Ok(b"hello".to_vec()));
        assert_eq!(node.open(&envelope), Err(Refusal::Replayed));
        assert_eq!(Node::new("a", &[1, 2, 3, 4]).seal(b"hello").len(), 5 + OVERHEAD_BYTES);
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_refused() {
        let mut node = Node::new("a", &[1]);
        let envelope = node.seal(b"hello");
        for bit in 0..envelope.len() * 8 {
            let mut damaged = envelope.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(node.open(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..envelope.len() {
            assert!(node.open(&envelope[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(node.opener.session_count(), 0, "what is not authentic leaves no trace");
        assert!(node.open(&envelope).is_ok());
    }

    #[test]
    fn another_key_another_cluster_another_channel_do_not_open() {
        let node = Node::new("a", &[1]);
        let envelope = node.seal(b"hello");
        assert_eq!(Node::new("a", &[2]).open(&envelope), Err(Refusal::UnknownKey));
        assert_eq!(Node::new("b", &[1]).open(&envelope), Err(Refusal::Unauthenticated));
        let ring = keyring("a", &[1]);
        assert_eq!(ring.open_frame(&mut envelope.clone()), Err(Refusal::Unauthenticated));
        let frame = node.seal_with(Channel::Stream, 0, b"frame");
        assert_eq!(ring.open_frame(&mut frame.clone()).unwrap().message, b"frame");
        assert_eq!(Node::new("a", &[1]).open(&frame), Err(Refusal::Unauthenticated));
    }

    #[test]
    fn any_key_of_the_ring_opens_and_everybody_says_which_it_opens() {
        let (old, new, mut both) = (Node::new("a", &[1]), Node::new("a", &[2, 1]), Node::new("a", &[2, 1]));
        let id = |byte: u8| ClusterKey([byte; 32]).id();
        let mut envelope = old.seal(b"x");
        let opened = both.opener.open(&mut envelope).unwrap();
        assert_eq!((opened.key, opened.opens.as_slice()), (id(1), &[id(1)][..]));
        assert_eq!(both.sealer.keys_for(Some(&opened.opens)).as_slice(), [id(1)]);
        let mut envelope = new.seal(b"x");
        let opened = both.opener.open(&mut envelope).unwrap();
        assert_eq!((opened.key, opened.opens.as_slice()), (id(2), &[id(2), id(1)][..]));
        assert_eq!(both.sealer.keys_for(Some(&opened.opens)).as_slice(), [id(2)]);
        assert_eq!(both.sealer.keys_for(None).as_slice(), [id(2), id(1)], "a stranger gets one of each");
        let foreign = [id(9)].into_iter().collect();
        assert_eq!(both.sealer.keys_for(Some(&foreign)).as_slice(), [id(2)]);
        assert_eq!(Node::new("a", &[1]).open(&new.seal(b"x")), Err(Refusal::UnknownKey));
    }

    /// The one byte on the wire says which key is meant, and two keys may have the same.
    #[test]
    fn keys_whose_ids_begin_alike_both_open() {
        let first_bytes: Vec<u8> = (0..=255).map(|byte| ClusterKey([byte; 32]).id().0[0]).collect();
        let twins = (0..=255_usize).flat_map(|a| (0..a).map(move |b| (a, b)));
        let (a, b) = twins.clone().find(|(a, b)| first_bytes[*a] == first_bytes[*b]).unwrap();
        let keys = [a as u8, b as u8];
        assert_ne!(ClusterKey([keys[0]; 32]).id(), ClusterKey([keys[1]; 32]).id());
        let (sender, mut receiver) = (Node::new("a", &keys), Node::new("a", &keys));
        for _ in 0..3 {
            for place in [0, 1] {
                let envelope = sender.seal_with(Channel::Datagram, place, b"hello");
                assert_eq!(receiver.open(&envelope), Ok(b"hello".to_vec()));
                assert_eq!(receiver.open(&envelope), Err(Refusal::Replayed));
                let mut damaged = envelope;
                damaged[HEADER_BYTES] ^= 1;
                damaged[HEADER_BYTES - 1] = 200;
                assert_eq!(receiver.open(&damaged), Err(Refusal::Unauthenticated));
                let frame = sender.seal_with(Channel::Stream, place, b"frame");
                assert_eq!(keyring("a", &keys).open_frame(&mut frame.clone()).unwrap().message, b"frame");
            }
        }
        assert_eq!(receiver.opener.session_count(), 2);
    }

    #[test]
    fn what_was_recorded_stays_replayed_whatever_the_keys_become() {
        let (sender, mut receiver) = (Node::new("a", &[1]), Node::new("a", &[1]));
        let recorded = sender.seal(b"x");
        assert!(receiver.open(&recorded).is_ok());
        for keys in [&[1, 2][..], &[2, 1], &[3, 4, 2, 1]] {
            receiver.rekey(keys);
            assert_eq!(receiver.open(&recorded), Err(Refusal::Replayed), "{keys:?}");
        }
        receiver.rekey(&[2]);
        assert_eq!(receiver.open(&recorded), Err(Refusal::UnknownKey));
        receiver.rekey(&[2, 1]);
        assert_eq!(receiver.open(&recorded), Err(Refusal::Replayed), "taken away and back");
        assert!(receiver.open(&sender.seal(b"y")).is_ok());
        for key in 10..40 {
            receiver.rekey(&[key]);
        }
        assert!(receiver.opener.former.len() <= KEYS_MAX, "not every key there ever was is kept");
    }

    #[test]
    fn a_session_ends_only_with_its_key() {
        let mut sender = Node::new("a", &[1]);
        let session = |node: &Node| node.sealer.sendings[0].session;
        let first = session(&sender);
        sender.rekey(&[1, 2]);
        assert_eq!(session(&sender), first);
        sender.rekey(&[2, 1]);
        assert_ne!(session(&sender), first);
        sender.rekey(&[1]);
        assert_eq!(session(&sender), first);
        assert_eq!(sender.sealer.opens, [0], "who has one key need not say which");
    }

    #[test]
    fn a_key_given_twice_counts_once() {
        assert_eq!(keyring("a", &[1, 2, 1]).ids(), keyring("a", &[1, 2]).ids());
    }

    #[test]
    fn keys_are_derived_as_hkdf_does() {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"scrimp cluster key").extract(&[7; 32]);
        let mut expected = [0; 32];
        secret.expand(&[b"scrimp key id"], hkdf::HKDF_SHA256).unwrap().fill(&mut expected).unwrap();
        assert_eq!(ClusterKey([7; 32]).id().0, expected[..4]);
    }

    #[test]
    fn sessions_are_bounded() {
        let ring = keyring("a", &[1]);
        let mut opener = Opener::new(Channel::Datagram, &ring);
        let with = ring.ids().as_slice()[0];
        for _ in 0..SESSIONS_MAX + 10 {
            let sealer = Sealer::new(&ring);
            assert!(opener.open(&mut sealer.seal(Channel::Datagram, with, b"x")).is_ok());
        }
        assert_eq!(opener.session_count(), SESSIONS_MAX);
    }

    #[test]
    fn what_is_well_sealed_but_cut_short_inside_is_malformed() {
        for bytes in [&[][..], &[1, 0, 0, 0], &[255; 255]] {
            assert_eq!(read_opened(KeyId::default(), bytes), Err(Refusal::Malformed));
        }
        let many: Vec<u8> = [&[9][..], &[3; 36], b"x"].concat();
        let opened = read_opened(KeyId::default(), &many).unwrap();
        assert_eq!((opened.opens.as_slice().len(), opened.message), (KEYS_MAX, &b"x"[..]));
    }

    /// Nodes that all talk to each other, each knowing of the others' keys what their datagrams said.
    struct Cluster {
        nodes: Vec<Node>,
        rings: Vec<Vec<u8>>,
        /// `opens[a][b]`: what `a` knows of `b`.
        opens: Vec<Vec<Option<KeySet>>>,
    }

    impl Cluster {
        /// Everything that `from` sends to `to`: all of it opens but the copies for a stranger, one of which must.
        fn send(&mut self, from: usize, to: usize) -> Result<(), TestCaseError> {
            let knows = self.opens[from][to];
            let keys = self.nodes[from].sealer.keys_for(knows.as_ref());
            let mut heard = 0;
            for key in keys.as_slice() {
                let mut envelope = self.nodes[from].sealer.seal(Channel::Datagram, *key, b"hello");
                if let Ok(opened) = self.nodes[to].opener.open(&mut envelope) {
                    prop_assert_eq!(opened.message, b"hello");
                    self.opens[to][from] = Some(opened.opens);
                    heard += 1;
                }
            }
            prop_assert!(heard > 0, "{} {:?} to {} {:?}", from, &self.rings[from], to, &self.rings[to]);
            Ok(())
        }

        fn share(a: &[u8], b: &[u8]) -> bool {
            a.iter().any(|key| b.contains(key))
        }

        /// Gives a node another ring if it still shares a key with each other node; it tells them at once.
        fn change(&mut self, at: usize, ring: Vec<u8>) -> Result<bool, TestCaseError> {
            let is_fine = (0..self.rings.len()).all(|other| other == at || Self::share(&ring, &self.rings[other]));
            if is_fine && !ring.is_empty() && ring.len() <= KEYS_MAX {
                self.nodes[at].rekey(&ring);
                self.rings[at] = ring;
                for other in (0..self.rings.len()).filter(|other| *other != at) {
                    self.send(at, other)?;
                }
            }
            Ok(is_fine)
        }
    }

    proptest! {
        /// Keys come, are preferred and go at random nodes, as long as each two share one: every datagram opens.
        #[test]
        fn who_shares_a_key_hears_each_other(
            steps in proptest::collection::vec((0..5_usize, 0..3_u8, 1..6_u8, 0..5_usize, 0..5_usize), 1..120),
        ) {
            let mut cluster = Cluster {
                nodes: (0..5).map(|_| Node::new("a", &[1])).collect(),
                rings: vec![vec![1]; 5],
                opens: vec![vec![None; 5]; 5],
            };
            for (at, step, key, from, to) in steps {
                let mut ring = cluster.rings[at].clone();
                let place = ring.iter().position(|known| *known == key);
                match (step, place) {
                    (0, None) => ring.push(key),
                    (1, Some(place)) => ring.swap(0, place),
                    (2, Some(place)) => drop(ring.remove(place)),
                    _ => {}
                }
                cluster.change(at, ring)?;
                if from != to {
                    cluster.send(from, to)?;
                }
            }
        }
    }
}
