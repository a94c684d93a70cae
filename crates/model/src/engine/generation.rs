//! Owns the continuation of a text by a whole model. It may not know what the tokens mean.

use tch::TchError;

use crate::engine::Engine;
use crate::engine::sample;
use crate::engine::transfer::{indices, numbers};
use crate::error::ModelError;
use crate::input::{InputError, check_tokens};

impl Engine {
    /// Continues `prompt` by `tokens` tokens. Each is computed from the last `sequence_len` tokens anew.
    ///
    /// `temperature` 0 takes the likeliest token; the same seed draws the same tokens.
    ///
    /// # Errors
    /// An engine that does not hold the whole model, an empty prompt, a token beyond the vocabulary.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        tokens: usize,
        temperature: f64,
        seed: u64,
    ) -> Result<Vec<u32>, ModelError> {
        let stages = self.config.model.stages();
        if self.config.held != (0..stages) {
            return Err(InputError::NotWhole { held: self.config.held.len(), stages }.into());
        }
        if prompt.is_empty() {
            return Err(InputError::EmptyPrompt.into());
        }
        if !temperature.is_finite() || temperature < 0.0 {
            return Err(InputError::Temperature { temperature: temperature.to_string() }.into());
        }
        check_tokens(0, "prompt tokens", prompt, prompt.len(), &self.config.model)?;
        let mut text = prompt.to_vec();
        for index in 0..tokens {
            let window = &text[text.len().saturating_sub(self.config.model.sequence_len)..];
            let logits = tch::no_grad(|| self.next_logits(window))
                .map_err(|error| ModelError::from(error).during("generating"))?;
            text.push(sample::choose(&logits, temperature, seed, index as u64));
        }
        Ok(text.split_off(prompt.len()))
    }

    fn next_logits(&self, window: &[u32]) -> Result<Vec<f32>, TchError> {
        let tokens_bs = indices(window, 1, self.device)?;
        let logits_bsv = self.network.forward(self.weights.leaves(), &tokens_bs)?;
        numbers(&logits_bsv.f_select(1, -1)?)
    }
}
