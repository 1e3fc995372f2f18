//! One body on its way through one buffer.

use super::buffer::Input;
use super::chunked::{Decoder, Output};
use super::head::Length;

/// How much is left of it, and what of it is ready to be sent on: the first bytes of its buffer.
#[derive(Debug)]
pub(in crate::proxy) struct Body {
    rest: Rest,
    ready: usize,
    /// Bytes behind those, which were framing and go when they have gone.
    gap: usize,
}

#[derive(Debug)]
enum Rest {
    Done,
    Known(u64),
    Chunked(Box<Decoder>),
    UntilClose,
}

impl Body {
    /// A body of `length`, which comes out of chunks as `output`.
    pub(in crate::proxy) fn new(length: Length, output: Output) -> Self {
        let rest = match length {
            Length::None | Length::Known(0) => Rest::Done,
            Length::Known(length) => Rest::Known(length),
            Length::Chunked => Rest::Chunked(Box::new(Decoder::new(output))),
            Length::UntilClose => Rest::UntilClose,
        };
        Self { rest, ready: 0, gap: 0 }
    }

    /// How many bytes of the buffer are ready; looks at what has come since if there were none.
    pub(in crate::proxy) fn ready(&mut self, input: &mut Input) -> Result<usize, &'static str> {
        if self.ready == 0 && !input.is_empty() {
            let waiting = input.filled().len();
            match &mut self.rest {
                Rest::Done => {}
                Rest::UntilClose => self.ready = waiting,
                Rest::Known(left) => {
                    self.ready = usize::try_from(*left).unwrap_or(usize::MAX).min(waiting);
                    *left -= self.ready as u64;
                }
                Rest::Chunked(decoder) => {
                    let step = decoder.step(input.filled_mut())?;
                    (self.ready, self.gap) = (step.produced, step.consumed - step.produced);
                }
            }
            self.take(input, 0);
        }
        Ok(self.ready)
    }

    /// The first `count` of the ready bytes have been sent on.
    pub(in crate::proxy) fn take(&mut self, input: &mut Input, count: usize) {
        input.consume(count);
        self.ready -= count.min(self.ready);
        if self.ready == 0 {
            input.consume(std::mem::take(&mut self.gap));
        }
    }

    /// How many bytes are to come that are passed on as they are, if their number is known.
    pub(in crate::proxy) fn left(&self) -> Option<u64> {
        match self.rest {
            Rest::Known(left) if self.ready == 0 => Some(left),
            _ => None,
        }
    }

    /// So many of those have been passed on by another way than through the buffer.
    pub(in crate::proxy) fn pass(&mut self, count: usize) {
        if let Rest::Known(left) = &mut self.rest {
            *left = left.saturating_sub(count as u64);
        }
    }

    /// Whether all of it has been read; some of that may still be ready to be sent.
    pub(in crate::proxy) fn is_read(&self) -> bool {
        match &self.rest {
            Rest::Done | Rest::Known(0) => true,
            Rest::Known(_) | Rest::UntilClose => false,
            Rest::Chunked(decoder) => decoder.is_done(),
        }
    }

    /// Whether all of it has been read and sent.
    pub(in crate::proxy) fn is_done(&self) -> bool {
        self.ready == 0 && self.is_read()
    }

    /// The connection has ended: whether that is how the body ends.
    pub(in crate::proxy) fn end(&mut self) -> bool {
        if matches!(self.rest, Rest::UntilClose) {
            self.rest = Rest::Done;
        }
        self.is_read()
    }

    /// The trailers of a body that came out of its chunks, as lines.
    pub(in crate::proxy) fn trailers(&self) -> &[u8] {
        match &self.rest {
            Rest::Chunked(decoder) => decoder.trailers(),
            Rest::Done | Rest::Known(_) | Rest::UntilClose => &[],
        }
    }
}
