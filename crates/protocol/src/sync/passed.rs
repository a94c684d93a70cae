//! Outer steps that were committed while a newcomer fetched a state from before them, and how it catches up with them.
//!
//! Owns what such a step consists of, and the order in which a newcomer takes one over. Knows nothing of how the bytes come.

use crate::ids::{Attempt, Digest, OuterStep};
use crate::sync::blob::Blob;
use crate::sync::say::Round;
use crate::sync::task::{Counted, SyncDone, SyncTask};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What made the weights of an outer step out of those before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The outer step.
    pub outer: OuterStep,
    /// Digest of the weights that it led to.
    pub digest: Digest,
    /// The cut of the results.
    pub shares: Vec<u32>,
    /// The reduced shards, in order.
    pub results: Vec<Blob>,
}

impl Passed {
    /// Returns the bytes of its results.
    pub fn bytes(&self) -> u64 {
        self.results.iter().map(|result| result.manifest().bytes).sum()
    }
}

/// What comes next of an outer step that a newcomer takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The driver is asked for more.
    Ask(SyncTask),
    /// The weights are those behind it.
    Done,
    /// They are not what they should be.
    Flawed(String),
}

/// An outer step that a newcomer takes over, as one that contributes nothing to it.
#[derive(Debug)]
pub struct TakeOver(Passed);

impl TakeOver {
    /// Begins; gives the first task.
    pub fn begin(passed: Passed) -> (Self, SyncTask) {
        let outer = passed.outer;
        (Self(passed), SyncTask::Snapshot { outer, microbatches: 0 })
    }

    /// Returns the outer step and the digest of the weights that it leads to.
    pub fn leads_to(&self) -> (OuterStep, Digest) {
        (self.0.outer, self.0.digest)
    }

    /// Takes what the driver has computed.
    pub fn done(&self, done: SyncDone) -> Next {
        let Passed { outer, digest, shares, results } = &self.0;
        let outer = *outer;
        match done {
            SyncDone::Snapshotted { .. } => Next::Ask(SyncTask::Stage {
                round: Round { outer, attempt: Attempt(0) },
                shares: shares.clone(),
                results: results.iter().map(|result| result.bytes().clone()).collect(),
                counted: Counted::Out,
            }),
            SyncDone::Staged { result: Ok(found), .. } if found == *digest => {
                Next::Ask(SyncTask::Commit { outer })
            }
            SyncDone::Staged { result: Ok(found), .. } => Next::Flawed(format!(
                "outer step {} leads to weights {found}, those that were agreed on have digest {digest}",
                outer.0
            )),
            SyncDone::Staged { result: Err((shard, reason)), .. } => {
                Next::Flawed(format!("result of shard {shard} of outer step {}: {reason}", outer.0))
            }
            SyncDone::Committed { .. } => Next::Ask(SyncTask::Adopt { outer }),
            SyncDone::Adopted { .. } => Next::Done,
            SyncDone::Encoded { .. } | SyncDone::Reduced { .. } | SyncDone::Restored { .. } => {
                unreachable!("a newcomer that catches up asks for nothing of the kind")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::shares::WHOLE;
    use crate::time::Span;
    use alloc::vec;

    const OUTER: OuterStep = OuterStep(4);
    const DIGEST: Digest = Digest([4; 32]);
    const TOOK: Span = Span(7);

    fn begun() -> TakeOver {
        let results = vec![Blob::new(vec![1, 2, 3].into())];
        let passed = Passed { outer: OUTER, digest: DIGEST, shares: vec![WHOLE], results };
        assert_eq!(passed.bytes(), 3);
        let (over, first) = TakeOver::begin(passed);
        assert_eq!(first, SyncTask::Snapshot { outer: OUTER, microbatches: 0 });
        over
    }

    fn staged(result: Result<Digest, (u16, String)>) -> SyncDone {
        SyncDone::Staged { round: Round { outer: OUTER, attempt: Attempt(0) }, result, took: TOOK }
    }

    #[test]
    fn an_outer_step_is_taken_over_as_by_one_that_contributes_nothing() {
        let over = begun();
        let Next::Ask(SyncTask::Stage { shares, results, counted, .. }) =
            over.done(SyncDone::Snapshotted { outer: OUTER, took: TOOK })
        else {
            panic!("it is staged")
        };
        assert_eq!((shares, results.len(), counted), (vec![WHOLE], 1, Counted::Out));
        assert_eq!(over.done(staged(Ok(DIGEST))), Next::Ask(SyncTask::Commit { outer: OUTER }));
        let committed = SyncDone::Committed { outer: OUTER, took: TOOK };
        assert_eq!(over.done(committed), Next::Ask(SyncTask::Adopt { outer: OUTER }));
        assert_eq!(over.done(SyncDone::Adopted { outer: OUTER, took: TOOK }), Next::Done);
        assert_eq!(over.leads_to(), (OUTER, DIGEST));
    }

    #[test]
    fn an_outer_step_that_leads_elsewhere_is_not_taken_over() {
        let over = begun();
        over.done(SyncDone::Snapshotted { outer: OUTER, took: TOOK });
        assert!(matches!(over.done(staged(Ok(Digest([5; 32])))), Next::Flawed(_)));
        let Next::Flawed(words) = over.done(staged(Err((3, "no bytes".into())))) else {
            panic!("it is flawed")
        };
        assert!(words.contains("shard 3") && words.contains("no bytes"), "{words}");
    }
}
