//! A balancer's own question to each backend: "are you there?"
//!
//! Gossip takes seconds to be sure that a machine is gone, and is right to: it speaks for everybody. A balancer
//! asks for itself alone and may be wrong for a moment, so it is fast: a question every half second; while one is
//! unanswered it is repeated, ever faster, for 1.2 s; then the backend counts as silent until it answers again.
//! Thirty and more tries make that a matter of a dead machine or a cut line: at 30 % loss each way all of them
//! fail once in ten billion times.

use std::time::{Duration, Instant};

use super::{Addition, Core, Message, NodeId, Reach, Role, Timer};
use crate::member::MemberState;

/// From question to question, while they are answered.
const INTERVAL: Duration = Duration::from_millis(500);
/// The same in a cluster of more members than [`MANY`]: their answers must not fill a balancer's line.
const INTERVAL_MANY: Duration = Duration::from_secs(1);
const MANY: usize = 200;
/// From question to question to those that are silent and down: an answer brings them back before gossip does.
const INTERVAL_DOWN: Duration = Duration::from_secs(2);

/// An answer that takes longer is asked for again: more than most ways take there and back.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Then so often,
const RETRY: Duration = Duration::from_millis(50);
/// and from here on twice as often.
const HURRY_AFTER: Duration = Duration::from_millis(500);
/// No answer for so long: silent. With the half second until the question, a dead machine is noticed after 1.2 to
/// 1.7 s.
const SILENT_AFTER: Duration = Duration::from_millis(1200);

/// What a balancer knows of one backend by asking.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) reach: Reach,
    /// Which question; an answer to an earlier one proves nothing.
    number: u32,
    /// When it was first asked.
    began: Instant,
    unanswered_since: Option<Instant>,
}

impl Echo {
    /// Time during which this node did not run is nobody's silence.
    pub(super) fn make_up(&mut self, gap: Duration) {
        self.unanswered_since = self.unanswered_since.map(|since| since + gap);
    }
}

impl Core {
    /// Begins to ask a backend, if this is a balancer and does not yet.
    pub(super) fn begin_echo(&mut self, now: Instant, node: NodeId) {
        let asks = self.settings.role == Role::Balancer && self.has(Addition::Echoes);
        let Some(held) = self.held.get_mut(&node).filter(|held| asks && held.echo.is_none()) else {
            return;
        };
        if held.is_worth_asking() {
            held.echo = Some(Echo { reach: Reach::Unknown, number: 0, began: now, unanswered_since: None });
            self.schedule(now, Duration::ZERO, Timer::Echo(node));
        }
    }

    pub(super) fn echo(&mut self, now: Instant, node: NodeId) {
        let interval = if self.foca.num_members() > MANY { INTERVAL_MANY } else { INTERVAL };
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        let (addr, is_down) = (held.addr, !held.state.0.is_active());
        if !held.is_worth_asking() {
            held.echo = None;
            return;
        }
        let Some(echo) = &mut held.echo else {
            return;
        };
        let mut is_news = false;
        let next = match echo.unanswered_since {
            None if echo.number > 0 && now < echo.began + interval => {
                let next = echo.began + interval;
                self.schedule(next, Duration::ZERO, Timer::Echo(node));
                return;
            }
            None => {
                echo.number = echo.number.wrapping_add(1).max(1);
                echo.began = now;
                echo.unanswered_since = Some(now);
                FIRST_RETRY
            }
            Some(since) if now - since < SILENT_AFTER => {
                if now - since < HURRY_AFTER {
                    RETRY
                } else {
                    RETRY / 2
                }
            }
            Some(_) => {
                is_news = echo.reach != Reach::Silent;
                echo.reach = Reach::Silent;
                if is_down { INTERVAL_DOWN } else { INTERVAL }
            }
        };
        let number = echo.number;
        self.send(addr, node, Message::Echo(number));
        self.schedule(now, next, Timer::Echo(node));
        if is_news {
            self.mark_changed(now);
        }
    }

    pub(super) fn echoed(&mut self, now: Instant, node: NodeId, number: u32) {
        let Some(held) = self.held.get_mut(&node) else {
            return;
        };
        held.last_answer = Some(now);
        let Some(echo) = &mut held.echo else {
            return;
        };
        if echo.number != number {
            return;
        }
        echo.unanswered_since = None;
        if echo.reach != Reach::Answers {
            echo.reach = Reach::Answers;
            self.mark_changed(now);
        }
    }
}

impl super::Held {
    /// Whether a balancer would send anybody there. One that said goodbye is not asked; one that is down is, for as
    /// long as it is remembered.
    fn is_worth_asking(&self) -> bool {
        let is_backend = self.record.as_ref().is_some_and(|record| record.role == Role::Backend && !record.is_leaving);
        is_backend
            && self.state.0 != MemberState::Left
            && self.offer.as_ref().is_some_and(|offer| !offer.apps.is_empty())
    }
}
