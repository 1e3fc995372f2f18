//! How a node's own object is written, so that another balancer of the same name shows.
//!
//! Each write says what it expects to find: nothing at first, later what this run wrote last. A store that can tell
//! refuses if something else is there, and then what is there is read. None of it is needed: a store that ignores or
//! does not know such conditions is written to as it is, and the object is right all the same.

use super::{SeedError, SeedObject, SeedStore};

/// What must be there for a write or a removal to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Expected {
    /// Whatever it is.
    Anything,
    /// No object.
    #[default]
    Nothing,
    /// The object that had this tag.
    Tag(String),
}

/// What came of a write or a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Done; with the tag of what was written, if the store gives any.
    Done(Option<String>),
    /// Not done: something else is there.
    Refused,
    /// Not done: the store knows no conditions.
    Unsupported,
}

/// What came of [`SeedStore::publish`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Written; nobody else was seen to write it.
    Alone,
    /// Written in place of what another run of this name had written since.
    Over(SeedObject),
    /// Left as it is: a newer run of this name keeps it fresh.
    Yielded(SeedObject),
}

/// What a run knows of its object.
#[derive(Debug, Default)]
pub(super) struct Own {
    expected: Expected,
    is_unconditional: bool,
    /// A newer run's object, and how often it was found unchanged.
    rival: Option<(SeedObject, u32)>,
}

/// A rival's object that was found unchanged so often is a dead one's: between three writes of ours, each 48 to 72 s
/// after the last, one that lives has written.
const UNCHANGED_MAX: u32 = 2;

impl SeedStore {
    pub(super) async fn write_own(&self, object: &SeedObject) -> Result<Written, SeedError> {
        let expected = {
            let own = self.own();
            if own.is_unconditional { Expected::Anything } else { own.expected.clone() }
        };
        match self.put(object, &expected).await? {
            Outcome::Done(tag) => {
                self.own().wrote(tag);
                return Ok(Written::Alone);
            }
            Outcome::Unsupported => {
                let tag = self.put_anyway(object).await?;
                let mut own = self.own();
                own.wrote(tag);
                own.is_unconditional = true;
                return Ok(Written::Alone);
            }
            Outcome::Refused => {}
        }
        // Who may not read, or finds nonsense, has learned nothing that could keep it from writing.
        let held = self.read(&object.node).await.ok().flatten().and_then(|held| held.object.ok());
        // A write of ours whose answer was lost is no stranger's.
        let other = held.filter(|held| held.epoch != object.epoch);
        // At our first write it is what a run before us left. Later somebody who lives has written it.
        let other = other.filter(|_| matches!(expected, Expected::Tag(_)));
        if let Some(other) = &other
            && self.own().yields_to(other, object)
        {
            return Ok(Written::Yielded(other.clone()));
        }
        let tag = self.put_anyway(object).await?;
        self.own().wrote(tag);
        Ok(other.map_or(Written::Alone, Written::Over))
    }

    async fn put_anyway(&self, object: &SeedObject) -> Result<Option<String>, SeedError> {
        match self.put(object, &Expected::Anything).await? {
            Outcome::Done(tag) => Ok(tag),
            // Without a condition there is nothing to refuse.
            Outcome::Refused | Outcome::Unsupported => Ok(None),
        }
    }
}

impl Own {
    fn wrote(&mut self, tag: Option<String>) {
        self.expected = tag.map_or(Expected::Anything, Expected::Tag);
        self.rival = None;
    }

    /// Of two runs that live under one name the newer one's object stays, until it is not kept fresh any more.
    fn yields_to(&mut self, other: &SeedObject, mine: &SeedObject) -> bool {
        if other.epoch < mine.epoch {
            return false;
        }
        let unchanged = match &self.rival {
            Some((last, times)) if last == other => times + 1,
            _ => 0,
        };
        self.rival = Some((other.clone(), unchanged));
        unchanged < UNCHANGED_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_newer_run_stays_while_it_keeps_its_object_fresh() {
        let object = |epoch, second| SeedObject {
            node: "lb-1".parse().unwrap(),
            addresses: vec!["10.0.0.1:7377".parse().unwrap()],
            epoch,
            written_at: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
        };
        let (mut own, mine) = (Own::default(), object(5, 0));
        assert!(!own.yields_to(&object(4, 1), &mine), "an older run is written over");
        assert!((0..20).all(|second| own.yields_to(&object(6, second), &mine)), "one that lives");
        assert!(own.yields_to(&object(6, 19), &mine), "late, perhaps");
        assert!(!own.yields_to(&object(6, 19), &mine), "dead");
    }
}
