//! A peer's disk: the checkpoints that outlive its process.
//!
//! Owns what is kept, and for how long. Knows nothing of what a checkpoint holds.

use bytes::Bytes;
use std::collections::BTreeMap;
use trestle_protocol::ids::{Digest, InnerStep};
use trestle_protocol::message::Held;
use trestle_protocol::plan::Place;

/// The disk of one peer.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The peer's number, which tells its files from those of others.
    pub owner: usize,
    /// Checkpoints of a place that are kept.
    kept: usize,
    checkpoints: BTreeMap<(Place, InnerStep), (Digest, Bytes)>,
}

impl Disk {
    /// Makes an empty disk, which keeps so many checkpoints of a place.
    pub fn new(owner: usize, kept: usize) -> Self {
        Self { owner, kept, checkpoints: BTreeMap::new() }
    }

    /// Writes a checkpoint, and drops the oldest of its place beyond those that are kept.
    pub fn write(&mut self, place: Place, step: InnerStep, digest: Digest, bytes: Bytes) {
        self.checkpoints.insert((place, step), (digest, bytes));
        let of_place: Vec<_> = self.checkpoints.keys().filter(|(at, _)| *at == place).copied().collect();
        for old in of_place.iter().rev().skip(self.kept) {
            self.checkpoints.remove(old);
        }
    }

    /// Reads a checkpoint: its digest and its bytes.
    pub fn read(&self, place: Place, step: InnerStep) -> Option<(Digest, &Bytes)> {
        self.checkpoints.get(&(place, step)).map(|(digest, bytes)| (*digest, bytes))
    }

    /// Lists what is there, as a peer says it when it joins.
    pub fn held(&self) -> Vec<Held> {
        let held = |((place, step), (digest, _)): (&(Place, InnerStep), &(Digest, Bytes))| Held {
            place: *place,
            step: *step,
            digest: *digest,
        };
        self.checkpoints.iter().map(held).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_protocol::ids::{ReplicaId, StageId};

    #[test]
    fn the_last_checkpoints_of_each_place_are_kept() {
        let place = |replica| Place { stage: StageId(1), replica: ReplicaId(replica) };
        let mut disk = Disk::new(3, 4);
        for step in [5, 10, 15, 20, 25] {
            disk.write(place(0), InnerStep(step), Digest([step as u8; 32]), Bytes::new());
        }
        disk.write(place(1), InnerStep(5), Digest([9; 32]), Bytes::new());
        let held: Vec<_> = disk.held().iter().map(|held| (held.place.replica.0, held.step.0)).collect();
        assert_eq!(held, [(0, 10), (0, 15), (0, 20), (0, 25), (1, 5)]);
        assert!(disk.read(place(0), InnerStep(5)).is_none());
        assert_eq!(disk.read(place(0), InnerStep(15)).map(|(digest, _)| digest), Some(Digest([15; 32])));
    }
}
