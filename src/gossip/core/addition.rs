//! What this core adds to foca's own protocol, by name: a simulation leaves one out to show what it is for.

use super::Core;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addition {
    /// A balancer's own questions to the backends.
    Echoes,
    /// "You are dead" is not said to a member that refuted its suspicion in time.
    UndeadFilter,
    /// A rumour is passed on thirty times, however small the cluster is.
    Transmissions,
    /// Announcements every few seconds, to members and to the dead.
    Announcements,
    /// Who did not run gives everybody else that time on top.
    StallGuard,
    /// Who hears fewer than three others convicts nobody,
    WitnessGuard,
    /// and starts over if that lasts.
    StartOver,
    /// Who is alone keeps knocking.
    Knocks,
    /// Who comes back with a clock gone back is told the newer epoch.
    StaleNotice,
}

impl Core {
    /// This core with one of them left out.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn without(mut self, addition: Option<Addition>) -> Self {
        self.without = addition;
        let config = super::foca_config(|addition| self.has(addition));
        self.foca.set_config(config).expect("nothing in it that may not change");
        self
    }

    /// Whether this core has it: each but the one that a simulation leaves out.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn has(&self, addition: Addition) -> bool {
        self.without != Some(addition)
    }

    #[cfg(not(any(test, feature = "testing")))]
    pub(super) const fn has(&self, _: Addition) -> bool {
        true
    }
}
