//! How far a container or a sandbox is, as events tell it.
//!
//! ```text
//! (nothing) ──▶ Created ──▶ Started ──▶ Stopped ──▶ (gone: Deleted)
//! ```
//!
//! Invariant: of one container each step is told at most once, in this order, and what ran is never told as deleted
//! before it is told as stopped.

use cofferdam_proto::cri::ContainerEventType;

/// A step of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Created,
    Started,
    Stopped,
    Deleted,
}

impl Phase {
    fn event(self) -> ContainerEventType {
        match self {
            Self::Created => ContainerEventType::ContainerCreatedEvent,
            Self::Started => ContainerEventType::ContainerStartedEvent,
            Self::Stopped => ContainerEventType::ContainerStoppedEvent,
            Self::Deleted => ContainerEventType::ContainerDeletedEvent,
        }
    }
}

/// What is to be told of somebody of whom `told` was told last, and who has come to `reached`.
pub(super) fn owed(told: Option<Phase>, reached: Phase) -> Vec<ContainerEventType> {
    let steps = match (told, reached) {
        // Nobody heard of it, so nobody misses it: a creation that was undone.
        (None, Phase::Deleted) => vec![],
        (None, Phase::Created) => vec![Phase::Created],
        (None, Phase::Started | Phase::Stopped) => vec![Phase::Created, reached],
        (Some(told), reached) if reached <= told => vec![],
        (Some(Phase::Started), Phase::Deleted) => vec![Phase::Stopped, Phase::Deleted],
        (Some(_), reached) => vec![reached],
    };
    steps.into_iter().map(Phase::event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContainerEventType::{
        ContainerCreatedEvent as C, ContainerDeletedEvent as D, ContainerStartedEvent as S,
        ContainerStoppedEvent as X,
    };

    #[test]
    fn every_step_is_owed_once_and_in_order() {
        let table: [(Option<Phase>, Phase, &[ContainerEventType]); 12] = [
            (None, Phase::Created, &[C]),
            (None, Phase::Started, &[C, S]),
            (None, Phase::Stopped, &[C, X]),
            (None, Phase::Deleted, &[]),
            (Some(Phase::Created), Phase::Created, &[]),
            (Some(Phase::Created), Phase::Started, &[S]),
            (Some(Phase::Created), Phase::Stopped, &[X]),
            (Some(Phase::Created), Phase::Deleted, &[D]),
            (Some(Phase::Started), Phase::Created, &[]),
            (Some(Phase::Started), Phase::Deleted, &[X, D]),
            (Some(Phase::Stopped), Phase::Started, &[]),
            (Some(Phase::Stopped), Phase::Deleted, &[D]),
        ];
        for (told, reached, expected) in table {
            assert_eq!(owed(told, reached), expected, "{told:?} {reached:?}");
        }
    }
}
