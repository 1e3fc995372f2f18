//! Wakes those tasks of a worker that wait for something rare: cheap to wait for, since no lock is taken.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

/// So many places stay when nobody is left: who listens alone, request after request, allocates nothing.
const PLACES_KEPT: usize = 64;

/// Rings for everybody who listens. Lives on one thread.
#[derive(Default)]
pub(super) struct Bell {
    rings: Cell<u64>,
    places: RefCell<Places>,
}

#[derive(Default)]
struct Places {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Bell {
    /// Wakes all who listen now.
    pub(super) fn ring(&self) {
        self.rings.set(self.rings.get() + 1);
        self.places.borrow().wakers.iter().flatten().for_each(Waker::wake_by_ref);
    }

    /// How often it has rung. Whoever remembers the number knows whether it has rung since.
    pub(super) fn rings(&self) -> u64 {
        self.rings.get()
    }
}

/// Somebody who listens, until dropped.
pub(super) struct Ear {
    bell: Rc<Bell>,
    place: Option<usize>,
}

impl Ear {
    pub(super) fn new(bell: &Rc<Bell>) -> Self {
        Self { bell: Rc::clone(bell), place: None }
    }

    /// From now on the task of `cx` is woken.
    pub(super) fn listen(&mut self, cx: &Context<'_>) {
        let mut places = self.bell.places.borrow_mut();
        let Places { wakers, free } = &mut *places;
        match self.place.and_then(|place| wakers.get_mut(place)) {
            Some(Some(waker)) if waker.will_wake(cx.waker()) => {}
            Some(place) => *place = Some(cx.waker().clone()),
            None => {
                let place = free.pop().unwrap_or(wakers.len());
                match wakers.get_mut(place) {
                    Some(empty) => *empty = Some(cx.waker().clone()),
                    None => wakers.push(Some(cx.waker().clone())),
                }
                self.place = Some(place);
            }
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let Some(place) = self.place else { return };
        let mut places = self.bell.places.borrow_mut();
        let waker = places.wakers.get_mut(place).and_then(Option::take);
        places.free.push(place);
        if places.free.len() == places.wakers.len() && places.wakers.len() > PLACES_KEPT {
            // What a crowd took is given back.
            *places = Places::default();
        }
        drop(places);
        // Behind the borrow: it may be the last that held its task.
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn it_rings_for_those_who_listen() {
        let bell = Rc::new(Bell::default());
        let counts = [0, 1, 2].map(|_| Arc::new(Count(AtomicUsize::new(0))));
        let wakers = counts.clone().map(Waker::from);
        let mut ears = [0, 1, 2].map(|_| Ear::new(&bell));
        for (ear, waker) in ears.iter_mut().zip(&wakers) {
            ear.listen(&Context::from_waker(waker));
            ear.listen(&Context::from_waker(waker));
        }
        bell.ring();
        let [first, second, third] = ears;
        drop((second, third));
        let mut late = Ear::new(&bell);
        late.listen(&Context::from_waker(&wakers[2]));
        bell.ring();
        assert_eq!(bell.places.borrow().wakers.len(), 3);
        drop((first, late));
        assert_eq!(bell.places.borrow().wakers.len(), 3, "a few places stay");
        let mut crowd: Vec<Ear> = (0..=PLACES_KEPT).map(|_| Ear::new(&bell)).collect();
        crowd.iter_mut().for_each(|ear| ear.listen(&Context::from_waker(Waker::noop())));
        drop(crowd);
        bell.ring();
        assert_eq!(counts.map(|count| count.0.load(Ordering::SeqCst)), [2, 1, 2]);
        let places = bell.places.borrow();
        assert_eq!((bell.rings(), places.wakers.capacity(), places.free.capacity()), (3, 0, 0));
    }
}
