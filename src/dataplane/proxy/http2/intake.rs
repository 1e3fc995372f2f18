//! A body as it comes in.
//!
//! The engine keeps a good deal with every frame that nobody has taken, and ends the connection when that is too much:
//! somebody who sends small messages to who takes none would take all other streams along. So frames are taken as they
//! come, and small ones joined; what the peer may send more is another matter, and waits until the bytes were passed on.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

/// Frames that are smaller are joined: from here on the engine counts nothing beside the bytes.
const SMALL_BYTES: usize = 256;
/// The largest piece that is handed out: a frame.
const PIECE_BYTES: usize = super::FRAME_BYTES_MAX as usize;

/// What has come and was not taken: no more than the stream's window.
pub(super) struct Intake {
    stream: RecvStream,
    pieces: VecDeque<Bytes>,
    /// Small frames behind all pieces.
    small: BytesMut,
    /// How the frames ended.
    end: Option<Result<(), h2::Error>>,
}

impl Intake {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, pieces: VecDeque::new(), small: BytesMut::new(), end: None }
    }

    /// Whether this was all, trailers included.
    pub(super) fn is_end(&self) -> bool {
        self.is_empty() && self.stream.is_end_stream()
    }

    /// Takes what is there; the task of `cx` is woken when more comes.
    pub(super) fn fill(&mut self, cx: &mut Context<'_>) {
        while self.end.is_none()
            && let Poll::Ready(frame) = self.stream.poll_data(cx)
        {
            match frame {
                Some(Ok(bytes)) if bytes.len() < SMALL_BYTES => self.small.extend_from_slice(&bytes),
                Some(Ok(bytes)) => {
                    if !self.small.is_empty() {
                        self.pieces.push_back(self.small.split().freeze());
                    }
                    self.pieces.push_back(bytes);
                }
                Some(Err(error)) => self.end = Some(Err(error)),
                None => self.end = Some(Ok(())),
            }
        }
    }

    /// A piece of the body, of at least one byte; none at its end.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, h2::Error>> {
        self.fill(cx);
        if let Some(piece) = self.pieces.front_mut() {
            let bytes = piece.split_to(piece.len().min(PIECE_BYTES));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            return Poll::Ready(Ok(Some(bytes)));
        }
        if !self.small.is_empty() {
            let count = self.small.len().min(PIECE_BYTES);
            return Poll::Ready(Ok(Some(self.small.split_to(count).freeze())));
        }
        match self.end.take() {
            Some(Ok(())) => {
                self.end = Some(Ok(()));
                Poll::Ready(Ok(None))
            }
            Some(Err(error)) => Poll::Ready(Err(error)),
            None => Poll::Pending,
        }
    }

    /// The trailers behind the body.
    pub(super) fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        self.stream.poll_trailers(cx)
    }

    /// So many bytes have been passed on: the peer may send as many more.
    pub(super) fn passed_on(&mut self, count: usize) {
        // The stream may be over by now.
        let _ = self.stream.flow_control().release_capacity(count);
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.small.is_empty()
    }
}
