//! Owns one stage of the model: what enters it, its transformer blocks, and what leaves it. It may not know how stages
//! are joined, trained or stored.
//!
//! Legend: b microbatch, s position, d hidden width, c boundary width, v vocabulary.

pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod boundary;
pub(crate) mod feed_forward;
pub(crate) mod head;
pub(crate) mod norm;
pub(crate) mod rope;

use tch::{TchError, Tensor};

use crate::config::{BoundaryForm, ModelConfig};
use crate::layout::{DEVIATION, Layout, Slot};
use crate::parameter::Role;
use crate::stage::block::{Block, Exit, Hidden};
use crate::stage::boundary::{Decoder, Encoder, FusedDecoder, keep, pad};
use crate::stage::head::Head;
use crate::stage::rope::Rope;

/// How the hidden state comes to be.
#[derive(Debug)]
enum Entry {
    Embedding(Slot),
    Whole,
    Decoder(Decoder),
    Fused(FusedDecoder),
}

/// What becomes of the last block's output.
#[derive(Debug)]
enum Departure {
    /// It crosses as it is: whole, or made narrow by the last block itself.
    AsIs,
    Encoder(Encoder),
    Head(Head),
}

/// One stage of the model; holds slots only, the tensors are handed in.
#[derive(Debug)]
pub(crate) struct Stage {
    entry: Entry,
    blocks: Vec<Block>,
    departure: Departure,
    width: i64,
    boundary_width: i64,
}

impl Stage {
    /// Declares the parameters of stage `stage`.
    pub(crate) fn declare(config: &ModelConfig, stage: usize, layout: &mut Layout) -> Stage {
        layout.enter(stage);
        let last = stage + 1 == config.stages();
        let entry = Stage::entry(config, stage, layout);
        let indices = config.stage_blocks(stage);
        let end = indices.end;
        let blocks = indices
            .map(|index| match config.boundary {
                BoundaryForm::Fused if !last && index + 1 == end => {
                    Block::declare(config, index, Exit::Boundary(stage), layout)
                }
                BoundaryForm::None | BoundaryForm::Resbm | BoundaryForm::Fused => {
                    Block::declare(config, index, Exit::Hidden, layout)
                }
            })
            .collect();
        let departure = match config.boundary {
            BoundaryForm::None | BoundaryForm::Resbm | BoundaryForm::Fused if last => {
                Departure::Head(Head::declare(config, layout))
            }
            BoundaryForm::None | BoundaryForm::Fused => Departure::AsIs,
            BoundaryForm::Resbm => Departure::Encoder(Encoder::declare(config, stage, layout)),
        };
        Stage {
            entry,
            blocks,
            departure,
            width: config.width as i64,
            boundary_width: config.boundary_width as i64,
        }
    }

    fn entry(config: &ModelConfig, stage: usize, layout: &mut Layout) -> Entry {
        if stage == 0 {
            let (v, d) = (config.vocabulary, config.width);
            return Entry::Embedding(layout.matrix(
                "embedding.weight".into(),
                v,
                d,
                Role::Embedding,
                DEVIATION,
            ));
        }
        match config.boundary {
            BoundaryForm::None => Entry::Whole,
            BoundaryForm::Resbm => Entry::Decoder(Decoder::declare(config, stage - 1, layout)),
            BoundaryForm::Fused => Entry::Fused(FusedDecoder::declare(config, stage - 1, layout)),
        }
    }

    /// Computes what leaves the stage: `z_bsc` for the next stage, or `logits_bsv` in the last one.
    ///
    /// `input` is `tokens_bs` (i64) in the first stage, `z_bsc` in the others.
    pub(crate) fn forward(
        &self,
        weights: &[Tensor],
        rope: &Rope,
        input: &Tensor,
    ) -> Result<Tensor, TchError> {
        let mut hidden = self.enter(weights, input)?;
        for block in &self.blocks {
            hidden = Hidden::plain(block.forward(weights, rope, &hidden)?);
        }
        let x_bsd = hidden.residual;
        match &self.departure {
            Departure::AsIs => Ok(x_bsd),
            Departure::Encoder(encoder) => {
                keep(&x_bsd, self.boundary_width)?.f_add(&encoder.forward(weights, &x_bsd)?)
            }
            Departure::Head(head) => head.logits(weights, &x_bsd),
        }
    }

    fn enter(&self, weights: &[Tensor], input: &Tensor) -> Result<Hidden, TchError> {
        match &self.entry {
            Entry::Embedding(table) => {
                // No padding row, no scaling by frequency, a dense gradient.
                Ok(Hidden::plain(Tensor::f_embedding(table.of(weights), input, -1, false, false)?))
            }
            Entry::Whole => Ok(Hidden::plain(input.shallow_clone())),
            Entry::Decoder(decoder) => {
                let identity_bsd = pad(input, self.width)?;
                Ok(Hidden::plain(identity_bsd.f_add(&decoder.forward(weights, input)?)?))
            }
            Entry::Fused(decoder) => {
                Ok(Hidden { source: decoder.forward(weights, input)?, residual: pad(input, self.width)? })
            }
        }
    }
}
