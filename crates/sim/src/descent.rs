//! Descent: the state of a stage's replica where the numbers are lineages, so that laws need not trust the ledger.
//!
//! Owns what becomes of each trained microbatch in the weights, step for step as the real `model::outer` does it with numbers:
//! snapshot, contribution, reduction, staging, commit, restore and adoption. Knows nothing of bytes' sizes, peers or time.

use crate::lineage::{Lineage, Reader, number};
use bytes::Bytes;
use trestle_protocol::agenda::Exchanges;
use trestle_protocol::ids::Digest;
use trestle_protocol::plan::Place;
use trestle_protocol::sync::task::Counted;

/// Before the first outer step.
const NO_HISTORY: Digest = Digest([0; 32]);

/// What a stage's replica consists of.
#[derive(Clone, Debug)]
pub struct Descent {
    exchanges: Exchanges,
    /// Optimizer steps that the weights count as having seen.
    version: u64,
    /// What the weights have learnt.
    weights: Lineage,
    /// What is in the sum of gradients.
    pending: Lineage,
    committed: Committed,
    /// What was trained and is in no commit, because a round left it out.
    owed: Lineage,
    transaction: Option<Transaction>,
    /// What an adoption needs of the latest commit: the snapshot, or the exchanged gradient.
    adoptable: Option<Lineage>,
    /// The version at the last snapshot.
    snapshot_at: u64,
    /// What should never have been asked for, in words.
    broken: Vec<String>,
}

/// What all replicas of a stage share.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Committed {
    anchor: Lineage,
    /// Digest over all results so far: weights that consist of the same may still differ by how they were averaged.
    history: Digest,
    outer_steps: u64,
}

#[derive(Clone, Debug)]
struct Transaction {
    snapshot: Lineage,
    contribution: Option<Counted>,
    staged: Option<(Lineage, Digest)>,
}

impl Descent {
    /// Begins with the weights that the seed gives.
    pub fn new(exchanges: Exchanges) -> Self {
        let committed = Committed { anchor: Lineage::default(), history: NO_HISTORY, outer_steps: 0 };
        Self {
            exchanges,
            version: 0,
            weights: Lineage::default(),
            pending: Lineage::default(),
            committed,
            owed: Lineage::default(),
            transaction: None,
            adoptable: None,
            snapshot_at: 0,
            broken: Vec::new(),
        }
    }

    /// Returns how many optimizer steps the weights have seen.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns what the weights have learnt.
    pub fn weights(&self) -> &Lineage {
        &self.weights
    }

    /// Returns what was trained and is in no commit yet.
    pub fn owed(&self) -> &Lineage {
        &self.owed
    }

    /// Returns a digest that replicas share if their weights are the same.
    pub fn digest(&self) -> Digest {
        self.weights.digest(self.committed.history)
    }

    /// Returns what was asked for and should never have been, in words.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// Adds the gradient of a microbatch to the sum.
    pub fn train(&mut self, index: u64) {
        if self.pending.times(index) > 0 {
            self.broken.push(format!("train:{index} is added to a sum of gradients that has it"));
        }
        self.pending.add(index);
    }

    /// Updates the weights with the sum of gradients.
    pub fn step(&mut self, microbatches: u32) {
        let sum = self.pending.total();
        // Exchanged gradients are a mean, which is told how many microbatches of one replica it stands for.
        if self.exchanges != Exchanges::Gradients && sum != i64::from(microbatches) {
            let version = self.version;
            self.broken
                .push(format!("step {version} is told {microbatches} microbatches and the sum has {sum}"));
        }
        self.weights.add_all(&std::mem::take(&mut self.pending));
        self.version += 1;
    }

    /// Counts the weights as having seen these steps.
    pub fn enter(&mut self, version: u64) {
        self.version = version;
    }

    /// Copies the weights, or the sum of gradients, for an outer step; `microbatches` are in the sum.
    pub fn snapshot(&mut self, microbatches: u32) {
        let sum = self.pending.total();
        if self.exchanges == Exchanges::Gradients && sum != i64::from(microbatches) {
            let version = self.version;
            let words = format!("the mean of step {version} is over {microbatches} and the sum has {sum}");
            self.broken.push(words);
        }
        let snapshot = match self.exchanges {
            Exchanges::Gradients => self.pending.clone(),
            Exchanges::Nothing | Exchanges::PseudoGradients => self.weights.clone(),
        };
        self.adoptable = None;
        self.snapshot_at = self.version;
        self.transaction = Some(Transaction { snapshot, contribution: None, staged: None });
    }

    /// Returns what this replica contributes; `None` without a snapshot.
    pub fn contribute(&mut self) -> Option<Lineage> {
        self.transaction.as_mut()?.contribution = Some(Counted::In);
        self.open()
    }

    /// Computes what a commit of some results would make of the anchor, and returns its digest; `None` without a snapshot.
    /// `results` is what was reduced, and `digest` is that of its bytes.
    pub fn stage(&mut self, results: Lineage, digest: Digest, counted: Counted) -> Option<Digest> {
        let history = Digest::of(&[self.committed.history.0, digest.0].concat());
        let next = self.next(&results);
        let transaction = self.transaction.as_mut()?;
        if let (Counted::Out, Some(contribution)) = (counted, &mut transaction.contribution) {
            *contribution = Counted::Out;
        }
        transaction.staged = Some((results, history));
        Some(next.digest(history))
    }

    /// Makes what is staged the committed state; `None` if nothing is.
    pub fn commit(&mut self) -> Option<()> {
        let (results, history) = self.transaction.as_mut()?.staged.take()?;
        let own = self.open()?;
        let next = self.next(&results);
        let transaction = self.transaction.take()?;
        self.owed = match transaction.contribution {
            Some(Counted::In) => Lineage::default(),
            Some(Counted::Out) | None => own,
        };
        let outer_steps = self.committed.outer_steps + 1;
        (self.committed, self.adoptable) = match self.exchanges {
            Exchanges::Gradients => {
                let anchor = Lineage::default();
                (Committed { anchor, history, outer_steps }, Some(results))
            }
            Exchanges::Nothing | Exchanges::PseudoGradients => {
                (Committed { anchor: next, history, outer_steps }, Some(transaction.snapshot))
            }
        };
        Some(())
    }

    /// Forgets snapshot and staging.
    pub fn restore(&mut self) {
        self.transaction = None;
    }

    /// Goes on from the committed weights, with what was learnt since the snapshot; `None` if no gradient was exchanged.
    pub fn adopt(&mut self) -> Option<()> {
        let adoptable = self.adoptable.take();
        match self.exchanges {
            Exchanges::Gradients => self.pending = adoptable?,
            Exchanges::Nothing | Exchanges::PseudoGradients if self.version == self.snapshot_at => {
                self.weights = self.committed.anchor.clone();
            }
            Exchanges::Nothing | Exchanges::PseudoGradients => {
                if let Some(snapshot) = adoptable {
                    self.weights.take_off(&snapshot);
                    self.weights.add_all(&self.committed.anchor);
                }
            }
        }
        Some(())
    }

    /// Writes what all replicas of the stage share.
    pub fn agreed(&self) -> Bytes {
        let mut bytes = Vec::new();
        self.committed.write(&mut bytes);
        bytes.into()
    }

    /// Begins from what others share, whose digest must be this; `None` if it is not.
    pub fn from_agreed(exchanges: Exchanges, agreed: &Bytes, digest: Digest) -> Option<Self> {
        let committed = Committed::read(&mut Reader::new(agreed))?;
        let weights = committed.anchor.clone();
        (weights.digest(committed.history) == digest).then(|| Self {
            committed,
            weights,
            ..Self::new(exchanges)
        })
    }

    /// Writes a checkpoint of a place; a transaction and a sum of gradients are no part of it.
    pub fn checkpoint(&self, place: Place) -> Bytes {
        let mut bytes = Vec::new();
        number(&mut bytes, u64::from(place.stage.0));
        number(&mut bytes, u64::from(place.replica.0));
        number(&mut bytes, self.version);
        self.weights.write(&mut bytes);
        self.owed.write(&mut bytes);
        self.committed.write(&mut bytes);
        bytes.into()
    }

    /// Begins from a checkpoint, with its debts; `None` if it is none.
    pub fn from_checkpoint(exchanges: Exchanges, bytes: &Bytes) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let (_stage, _replica) = (reader.number()?, reader.number()?);
        let version = reader.number()?;
        let (weights, owed) = (reader.lineage()?, reader.lineage()?);
        let committed = Committed::read(&mut reader)?;
        Some(Self { version, weights, owed, committed, ..Self::new(exchanges) })
    }

    /// Forgets what only the replica whose checkpoint it is has trained, handed in or not.
    pub fn forget_own(&mut self) {
        self.owed = Lineage::default();
        if self.exchanges == Exchanges::PseudoGradients {
            self.weights = self.committed.anchor.clone();
        }
    }

    /// Returns all there is to contribute: how far the snapshot is from the anchor, and what is owed.
    fn open(&self) -> Option<Lineage> {
        let mut open = self.transaction.as_ref()?.snapshot.clone();
        open.take_off(&self.committed.anchor);
        open.add_all(&self.owed);
        Some(open)
    }

    fn next(&self, results: &Lineage) -> Lineage {
        let mut next = self.committed.anchor.clone();
        next.add_all(results);
        next
    }
}

impl Committed {
    fn write(&self, into: &mut Vec<u8>) {
        number(into, self.outer_steps);
        into.extend(self.history.0);
        self.anchor.write(into);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let outer_steps = reader.number()?;
        let history = reader.digest()?;
        Some(Self { outer_steps, history, anchor: reader.lineage()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(descent: &Descent) -> Vec<(u64, i64)> {
        descent.weights().counts().collect()
    }

    fn step(descent: &mut Descent, indices: &[u64]) {
        indices.iter().for_each(|index| descent.train(*index));
        descent.step(indices.len() as u32);
    }

    /// Lets replicas agree; gives the digest that each voted for.
    fn agree(replicas: &mut [Descent], counted: &[Counted]) -> Vec<Digest> {
        let mut results = Lineage::default();
        for (replica, counted) in replicas.iter_mut().zip(counted) {
            let contribution = replica.contribute().expect("a snapshot");
            if *counted == Counted::In {
                results.add_all(&contribution);
            }
        }
        let digest = Digest([7; 32]);
        let votes = replicas.iter_mut().zip(counted);
        let votes = votes.map(|(replica, counted)| replica.stage(results.clone(), digest, *counted));
        let votes = votes.collect::<Option<Vec<_>>>().expect("a snapshot");
        replicas.iter_mut().for_each(|replica| replica.commit().expect("staged"));
        votes
    }

    #[test]
    fn replicas_agree_on_what_each_has_trained_and_keep_what_came_since() {
        let mut replicas = vec![Descent::new(Exchanges::PseudoGradients); 2];
        step(&mut replicas[0], &[0, 2]);
        step(&mut replicas[1], &[1, 3]);
        replicas.iter_mut().for_each(|replica| replica.snapshot(0));
        step(&mut replicas[0], &[4]);
        step(&mut replicas[1], &[]);
        let votes = agree(&mut replicas, &[Counted::In; 2]);
        assert_eq!(votes[0], votes[1]);
        replicas.iter_mut().for_each(|replica| replica.adopt().expect("committed"));
        assert_eq!(trained(&replicas[0]), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]);
        assert_eq!(trained(&replicas[1]), [(0, 1), (1, 1), (2, 1), (3, 1)]);
        assert_eq!(replicas[1].digest(), votes[1]);
        assert_ne!(replicas[0].digest(), votes[0], "it has learnt more since");
        assert!(replicas.iter().all(|replica| replica.broken().is_empty()));
    }

    #[test]
    fn what_a_round_leaves_out_is_owed_and_goes_into_the_next() {
        let mut replicas = vec![Descent::new(Exchanges::PseudoGradients); 2];
        step(&mut replicas[0], &[0]);
        step(&mut replicas[1], &[1]);
        replicas.iter_mut().for_each(|replica| replica.snapshot(0));
        agree(&mut replicas, &[Counted::In, Counted::Out]);
        replicas.iter_mut().for_each(|replica| replica.adopt().expect("committed"));
        assert_eq!(trained(&replicas[1]), [(0, 1)]);
        assert_eq!(replicas[1].owed().times(1), 1);
        step(&mut replicas[1], &[3]);
        replicas.iter_mut().for_each(|replica| replica.snapshot(0));
        agree(&mut replicas, &[Counted::In; 2]);
        replicas.iter_mut().for_each(|replica| replica.adopt().expect("committed"));
        for replica in &replicas {
            assert_eq!(trained(replica), [(0, 1), (1, 1), (3, 1)]);
            assert!(replica.owed().is_empty());
        }
    }

    #[test]
    fn a_restored_step_changes_nothing() {
        let mut replica = Descent::new(Exchanges::PseudoGradients);
        step(&mut replica, &[0]);
        replica.snapshot(0);
        replica.contribute().expect("a snapshot");
        replica.restore();
        assert!(replica.commit().is_none());
        step(&mut replica, &[1]);
        replica.snapshot(0);
        let contribution = replica.contribute().expect("a snapshot");
        assert_eq!(contribution.counts().collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    }

    #[test]
    fn exchanged_gradients_are_everyones_before_the_step_that_uses_them() {
        let mut replicas = vec![Descent::new(Exchanges::Gradients); 2];
        replicas[0].train(0);
        replicas[1].train(1);
        replicas.iter_mut().for_each(|replica| replica.snapshot(1));
        agree(&mut replicas, &[Counted::In; 2]);
        for replica in &mut replicas {
            replica.adopt().expect("committed");
            replica.step(1);
            assert_eq!(trained(replica), [(0, 1), (1, 1)]);
        }
        assert_eq!(replicas[0].digest(), replicas[1].digest());
    }

    #[test]
    fn a_newcomer_takes_what_is_agreed_and_a_checkpoint_keeps_debts() {
        let mut replicas = vec![Descent::new(Exchanges::PseudoGradients); 2];
        step(&mut replicas[0], &[0]);
        step(&mut replicas[1], &[1]);
        replicas.iter_mut().for_each(|replica| replica.snapshot(0));
        let votes = agree(&mut replicas, &[Counted::In, Counted::Out]);
        replicas.iter_mut().for_each(|replica| replica.adopt().expect("committed"));
        let agreed = replicas[0].agreed();
        assert_eq!(agreed, replicas[1].agreed(), "debts are no part of it");
        let new = |digest| Descent::from_agreed(Exchanges::PseudoGradients, &agreed, digest);
        assert_eq!(new(votes[0]).map(|new| trained(&new)), Some(vec![(0, 1)]));
        assert!(new(Digest([1; 32])).is_none());
        let place =
            Place { stage: trestle_protocol::ids::StageId(0), replica: trestle_protocol::ids::ReplicaId(1) };
        let saved = replicas[1].checkpoint(place);
        let mut read = Descent::from_checkpoint(Exchanges::PseudoGradients, &saved).expect("a checkpoint");
        assert_eq!((read.version(), trained(&read), read.owed().times(1)), (1, vec![(0, 1)], 1));
        read.train(7);
        read.step(1);
        read.forget_own();
        assert!(read.owed().is_empty() && trained(&read) == [(0, 1)]);
    }

    #[test]
    fn sums_that_do_not_fit_are_told() {
        let mut replica = Descent::new(Exchanges::Nothing);
        replica.train(4);
        replica.train(4);
        replica.step(1);
        assert_eq!(
            replica.broken(),
            [
                "train:4 is added to a sum of gradients that has it",
                "step 0 is told 1 microbatches and the sum has 2"
            ]
        );
    }
}
