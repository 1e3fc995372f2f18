//! Clients that wait for nothing but their next request, in the order in which they began to: who has been idle longest
//! makes way when there is no place for another. One list a worker; every step takes the same time however long it is.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// Who has been idle for less is spared: it may be about to ask again.
const SPARED: Duration = Duration::from_secs(1);
/// No place.
const NONE: u32 = u32::MAX;

/// Those who wait. Lives on one thread.
#[derive(Default)]
pub(super) struct Idlers {
    list: RefCell<List>,
}

struct List {
    places: Vec<Place>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
}

/// A client's place, its own as long as it lives.
struct Place {
    waker: Option<Waker>,
    state: State,
    since: Instant,
    older: u32,
    newer: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Busy,
    /// It is in the list.
    Idle,
    /// It was told to go.
    Told,
}

impl Idlers {
    /// Wakes all that are idle.
    pub(super) fn wake(&self) {
        let list = self.list.borrow();
        let mut at = list.oldest;
        while let Some(place) = list.places.get(at as usize) {
            place.waker.iter().for_each(Waker::wake_by_ref);
            at = place.newer;
        }
    }

    /// Tells the one that has been idle longest to go; says whether there is one that may be told at `now`.
    pub(super) fn tell_oldest(&self, now: Instant) -> bool {
        let mut list = self.list.borrow_mut();
        let at = list.oldest;
        match list.places.get_mut(at as usize) {
            Some(place) if now.saturating_duration_since(place.since) >= SPARED => {
                place.waker.iter().for_each(Waker::wake_by_ref);
                list.unlink(at);
                list.set(at, State::Told);
                true
            }
            _ => false,
        }
    }
}

/// One client; its place is free again when it is dropped.
pub(super) struct Idler {
    idlers: Rc<Idlers>,
    at: u32,
}

impl Idler {
    pub(super) fn new(idlers: &Rc<Idlers>) -> Self {
        Self { idlers: Rc::clone(idlers), at: NONE }
    }

    /// The client, whose task is the one of `cx`, has been idle since `since`.
    pub(super) fn wait(&mut self, cx: &Context<'_>, since: Instant) {
        let mut list = self.idlers.list.borrow_mut();
        if self.at == NONE {
            self.at = list.take_place(since);
        }
        let Some(place) = list.places.get_mut(self.at as usize) else {
            return;
        };
        if !place.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            place.waker = Some(cx.waker().clone());
        }
        if place.state == State::Busy {
            place.since = since;
            list.link(self.at);
            list.set(self.at, State::Idle);
        }
    }

    /// The client has begun something.
    pub(super) fn begin(&mut self) {
        if self.at != NONE {
            let mut list = self.idlers.list.borrow_mut();
            list.unlink(self.at);
            list.set(self.at, State::Busy);
        }
    }

    /// Whether it was told to go, and has begun nothing since.
    pub(super) fn is_told(&self) -> bool {
        self.idlers.list.borrow().places.get(self.at as usize).is_some_and(|place| place.state == State::Told)
    }
}

impl Drop for Idler {
    fn drop(&mut self) {
        if self.at == NONE {
            return;
        }
        let mut list = self.idlers.list.borrow_mut();
        list.unlink(self.at);
        list.set(self.at, State::Busy);
        let waker = list.places.get_mut(self.at as usize).and_then(|place| place.waker.take());
        list.free.push(self.at);
        if list.free.len() == list.places.len() {
            // What a crowd took is given back.
            *list = List::default();
        }
        drop(list);
        // Behind the borrow: it may be the last that held its task.
        drop(waker);
    }
}

impl Default for List {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new(), oldest: NONE, newest: NONE }
    }
}

impl List {
    fn take_place(&mut self, since: Instant) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { waker: None, state: State::Busy, since, older: NONE, newer: NONE });
            u32::try_from(self.places.len() - 1).unwrap_or(NONE)
        })
    }

    fn set(&mut self, at: u32, state: State) {
        if let Some(place) = self.places.get_mut(at as usize) {
            place.state = state;
        }
    }

    /// As the newest.
    fn link(&mut self, at: u32) {
        let older = std::mem::replace(&mut self.newest, at);
        match self.places.get_mut(older as usize) {
            Some(place) => place.newer = at,
            None => self.oldest = at,
        }
        if let Some(place) = self.places.get_mut(at as usize) {
            (place.older, place.newer) = (older, NONE);
        }
    }

    /// If it is in the list.
    fn unlink(&mut self, at: u32) {
        let Some(&Place { state: State::Idle, older, newer, .. }) = self.places.get(at as usize) else {
            return;
        };
        match self.places.get_mut(older as usize) {
            Some(place) => place.newer = newer,
            None => self.oldest = newer,
        }
        match self.places.get_mut(newer as usize) {
            Some(place) => place.older = older,
            None => self.newest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_been_idle_longest_goes_first() {
        let idlers = Rc::new(Idlers::default());
        let cx = Context::from_waker(Waker::noop());
        let now = Instant::now();
        let mut all = [0, 1, 2, 3].map(|_| Idler::new(&idlers));
        all.iter_mut().for_each(|idler| idler.wait(&cx, now));
        // The first has asked again, and the last has gone.
        all[0].begin();
        all[0].wait(&cx, now + SPARED);
        let [first, second, third, last] = all;
        drop(last);
        assert!(!idlers.tell_oldest(now), "all are spared");
        let later = now + SPARED;
        for (is_there, told) in
            [(true, [false, true, false]), (true, [false, true, true]), (false, [false, true, true])]
        {
            assert_eq!(idlers.tell_oldest(later), is_there);
            assert_eq!([&first, &second, &third].map(Idler::is_told), told);
        }
        assert!(idlers.tell_oldest(later + SPARED) && first.is_told());
        let mut again = second;
        again.begin();
        assert!(!again.is_told(), "it has asked for something");
        drop((first, again, third));
        assert_eq!(idlers.list.borrow().places.capacity(), 0);
    }
}
