//! Owns the committed state of a replica's outer step, and all arithmetic on it. It may not know in which order things happen:
//! the transaction decides when a number may change.

use std::borrow::Cow;
use std::ops::Range;

use crate::outer::codec::numbers;
use crate::outer::codec::{Codec, CodecError};
use crate::outer::config::{Exchanged, Loss, OuterConfig};
use crate::outer::layout::{Layout, UNIT_ELEMENTS_MAX};
use crate::outer::rule::{Memory, Update};

/// What outlives a transaction.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: OuterConfig,
    pub(crate) layout: Layout,
    /// Empty for [`Exchanged::Gradients`].
    pub(crate) anchor: Vec<f32>,
    /// Empty for rules without momentum.
    pub(crate) momentum: Vec<f32>,
    /// Empty while nothing is owed.
    pub(crate) owed: Vec<f32>,
    pub(crate) committed: u64,
}

/// What became of this replica's contribution to one shard.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate<'a> {
    /// It is part of the mean; these bytes were sent, where they were kept.
    Reduced(Option<&'a [u8]>),
    /// The mean was made without it.
    LeftOut,
}

impl State {
    pub(crate) fn new(config: OuterConfig, layout: Layout, weights: Vec<f32>) -> State {
        let anchor = match config.exchanged {
            Exchanged::Weights => {
                assert_eq!(weights.len(), layout.elements(), "the weights fit the layout");
                weights
            }
            Exchanged::Gradients => Vec::new(),
        };
        let momentum = match config.rule.memory() {
            Memory::None => Vec::new(),
            Memory::Momentum => vec![0.0; layout.elements()],
        };
        State { config, layout, anchor, momentum, owed: Vec::new(), committed: 0 }
    }

    pub(crate) fn codec(&self) -> &'static dyn Codec {
        self.config.codec.codec()
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * (self.anchor.len() + self.momentum.len() + self.owed.len())
    }

    /// Encodes `D + decay * owed` of one shard, for a snapshot of the whole stage.
    pub(crate) fn encode(&self, snapshot: &[f32], range: &Range<usize>) -> Result<Vec<u8>, CodecError> {
        let shard = self.layout.shard(range.clone());
        self.codec().encode_units(&shard, &mut |unit, into| {
            let place = range.start + unit.start..range.start + unit.end;
            self.own(snapshot, place.clone(), into);
            if !self.owed.is_empty() {
                let decay = self.config.error_decay as f32;
                for (value, owed) in into.iter_mut().zip(&self.owed[place]) {
                    *value += decay * owed;
                }
            }
        })
    }

    /// Hashes the numbers of one shard that a commit of `result` would lead to: the next anchor, or the mean gradient.
    pub(crate) fn preview(
        &self,
        range: &Range<usize>,
        result: &[u8],
        hasher: &mut blake3::Hasher,
    ) -> Result<(), CodecError> {
        let update = self.config.rule.update(self.committed);
        let (mut weights, mut momentum) = ([0.0; UNIT_ELEMENTS_MAX], [0.0; UNIT_ELEMENTS_MAX]);
        let shard = self.layout.shard(range.clone());
        self.codec().mean_units(&shard, result, &mut |unit, mean| {
            let place = range.start + unit.start..range.start + unit.end;
            match self.config.exchanged {
                Exchanged::Weights => {
                    let weights = &mut weights[..mean.len()];
                    weights.copy_from_slice(&self.anchor[place.clone()]);
                    let momentum = match self.config.rule.memory() {
                        Memory::None => &mut [],
                        Memory::Momentum => {
                            let momentum = &mut momentum[..mean.len()];
                            momentum.copy_from_slice(&self.momentum[place]);
                            momentum
                        }
                    };
                    update.apply(weights, momentum, mean);
                    hash(hasher, weights);
                }
                Exchanged::Gradients => hash(hasher, mean),
            }
        })
    }

    /// Turns the error feedback into what is owed once `snapshot` is committed: of shards that were reduced with this
    /// replica's contribution what the codec lost, of the others everything. Must precede [`State::apply`].
    ///
    /// Returns the bytes of the largest contribution that was encoded again.
    pub(crate) fn settle<'a>(
        &mut self,
        snapshot: &[f32],
        fates: impl Iterator<Item = (Range<usize>, Fate<'a>)> + Clone,
    ) -> usize {
        let loss = self.config.codec.loss();
        let whole = fates.clone().all(|(_, fate)| matches!(fate, Fate::Reduced(_)));
        if loss == Loss::None && whole {
            self.owed = Vec::new();
            return 0;
        }
        let mut again = 0;
        for (range, fate) in fates {
            match (fate, loss) {
                (Fate::LeftOut, Loss::None | Loss::Some) => self.owe(snapshot, &range),
                (Fate::Reduced(_), Loss::None) => self.owed_mut()[range].fill(0.0),
                (Fate::Reduced(kept), Loss::Some) => {
                    let sent = match kept {
                        Some(bytes) => Cow::Borrowed(bytes),
                        None => Cow::Owned(self.encode(snapshot, &range).expect("it was encoded before")),
                    };
                    again = again.max(if kept.is_none() { sent.len() } else { 0 });
                    self.owe(snapshot, &range);
                    self.pay(&range, &sent);
                }
            }
        }
        again
    }

    /// Moves anchor and momentum by the mean of one shard, as [`State::preview`] announced; for gradients the mean itself
    /// goes into `snapshot`.
    pub(crate) fn apply(&mut self, range: &Range<usize>, result: &[u8], snapshot: &mut [f32]) {
        let update: Update = self.config.rule.update(self.committed);
        let shard = self.layout.shard(range.clone());
        let (codec, exchanged, memory) = (self.codec(), self.config.exchanged, self.config.rule.memory());
        let (anchor, momentum) = (&mut self.anchor, &mut self.momentum);
        let applied = codec.mean_units(&shard, result, &mut |unit, mean| {
            let place = range.start + unit.start..range.start + unit.end;
            match exchanged {
                Exchanged::Weights => {
                    let momentum = match memory {
                        Memory::None => &mut [],
                        Memory::Momentum => &mut momentum[place.clone()],
                    };
                    update.apply(&mut anchor[place], momentum, mean);
                }
                Exchanged::Gradients => snapshot[place].copy_from_slice(mean),
            }
        });
        applied.expect("the same bytes were decoded when they were staged");
    }

    /// Writes what this replica alone has to contribute, before error feedback.
    fn own(&self, snapshot: &[f32], place: Range<usize>, into: &mut [f32]) {
        let snapshot = &snapshot[place.clone()];
        match self.config.exchanged {
            Exchanged::Weights => {
                for ((value, anchor), weight) in into.iter_mut().zip(&self.anchor[place]).zip(snapshot) {
                    *value = anchor - weight;
                }
            }
            Exchanged::Gradients => into.copy_from_slice(snapshot),
        }
    }

    /// Adds all there is to contribute to a shard to what is owed, in the arithmetic of [`State::encode`].
    fn owe(&mut self, snapshot: &[f32], range: &Range<usize>) {
        let decay = self.config.error_decay as f32;
        let mut own = [0.0; UNIT_ELEMENTS_MAX];
        let mut owed = std::mem::take(self.owed_mut());
        for start in range.clone().step_by(UNIT_ELEMENTS_MAX) {
            let place = start..range.end.min(start + UNIT_ELEMENTS_MAX);
            let own = &mut own[..place.len()];
            self.own(snapshot, place.clone(), own);
            for (owed, own) in owed[place].iter_mut().zip(own) {
                *owed = *own + decay * *owed;
            }
        }
        self.owed = owed;
    }

    /// Takes what was sent off what is owed.
    fn pay(&mut self, range: &Range<usize>, sent: &[u8]) {
        let shard = self.layout.shard(range.clone());
        let (codec, owed) = (self.config.codec.codec(), &mut self.owed[range.clone()]);
        let paid = codec.decode_units(&shard, sent, &mut |unit, values| {
            for (owed, value) in owed[unit].iter_mut().zip(values) {
                *owed -= value;
            }
        });
        paid.expect("a codec decodes what it encoded");
    }

    fn owed_mut(&mut self) -> &mut Vec<f32> {
        if self.owed.is_empty() {
            self.owed = vec![0.0; self.layout.elements()];
        }
        &mut self.owed
    }
}

/// Returns the BLAKE3 digest of numbers as little-endian bytes.
pub(crate) fn digest(values: &[f32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    values.chunks(UNIT_ELEMENTS_MAX).for_each(|values| hash(&mut hasher, values));
    *hasher.finalize().as_bytes()
}

/// Hashes at most a unit's numbers.
fn hash(hasher: &mut blake3::Hasher, values: &[f32]) {
    let mut bytes = [0; 4 * UNIT_ELEMENTS_MAX];
    let bytes = &mut bytes[..4 * values.len()];
    numbers::put(values, bytes);
    hasher.update(bytes);
}
