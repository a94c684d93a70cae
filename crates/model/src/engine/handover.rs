//! Owns how a newcomer takes over a replica's inner optimizer. It may not know which replica gives it, nor where the weights
//! come from: those are agreed, and moments are not.
//!
//! The form is that of [`crate::handover`], with two counts, the giver's version and its optimizer's updates; the numbers are
//! the optimizer's moments, in the order of the names that [`crate::optimizer::Optimizer::state`] gives them, each row major.
//! The settings are those of [`crate::optimizer::config::OptimizerConfig`], the shapes all names and sizes.

use tch::{Kind, TchError, Tensor};

use crate::codec::raw_bytes;
use crate::engine::Engine;
use crate::error::ModelError;
use crate::handover::{Form, HandoverError, Part, Range};

impl Engine {
    /// Returns the inner optimizer's moments and the version at which they are such: 128 bytes of header, then 4 bytes a
    /// number (AdamW has two a parameter, Muon one).
    ///
    /// May be called between any two computations: gradient sums and graphs in flight are neither in it nor touched.
    ///
    /// # Errors
    /// Moments that may not travel, because training diverged; libtorch's refusals.
    pub fn export_moments(&self) -> Result<Vec<u8>, HandoverError> {
        let moments = self.moments()?;
        let form = self.form(&moments);
        let mut bytes = form.begin([self.version, self.optimizer.updates()]);
        for (name, tensor) in &moments {
            let numbers = raw_bytes(tensor).map_err(|error| failed(error, "reading the moments"))?;
            form.check(name, &numbers, range(name))?;
            bytes.extend(numbers);
        }
        Ok(bytes)
    }

    /// Takes over the moments that [`Engine::export_moments`] gave at a replica of the same stage, and the optimizer's count
    /// of updates; returns the version at which the giver had them. The engine's own version is as before: see
    /// [`Engine::set_version`].
    ///
    /// # Errors
    /// Bytes that are cut, changed in the header, of another optimizer or stage, or with a number that no moment can be: all
    /// is then as before. libtorch's refusals, after which the moments must be taken over anew.
    pub fn import_moments(&mut self, bytes: &[u8]) -> Result<u64, HandoverError> {
        let moments = self.moments()?;
        let form = self.form(&moments);
        let ([version, updates], mut numbers) = form.open(bytes, ["steps", "updates"])?;
        let mut lists = Vec::with_capacity(moments.len());
        for (name, slot) in moments {
            let (list, rest) = numbers.split_at(4 * slot.numel());
            form.check(&name, list, range(&name))?;
            lists.push((slot, list));
            numbers = rest;
        }
        let copy = |(mut slot, list): (Tensor, &[u8])| {
            slot.f_copy_(&Tensor::f_from_data_size(list, &slot.size(), Kind::Float)?)
        };
        tch::no_grad(|| lists.into_iter().try_for_each(copy))
            .map_err(|error| failed(error, "taking over moments"))?;
        self.optimizer.set_updates(updates);
        Ok(version)
    }

    /// Returns the optimizer's moments in the order of their names, sharing memory with it.
    fn moments(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        let mut moments = self.optimizer.moments()?;
        moments.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(moments)
    }

    fn form(&self, moments: &[(String, Tensor)]) -> Form {
        let settings = serde_json::to_string(&self.config.optimizer).unwrap_or_default();
        let mut shapes = blake3::Hasher::new();
        for (name, tensor) in moments {
            let sizes = tensor.size();
            shapes.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            shapes.update(&(sizes.len() as u64).to_le_bytes());
            for size in sizes {
                shapes.update(&size.to_le_bytes());
            }
        }
        Form {
            part: Part::Own,
            settings: blake3::hash(settings.as_bytes()),
            shapes: shapes.finalize(),
            numbers: moments.iter().map(|(_, tensor)| tensor.numel()).sum(),
        }
    }
}

/// AdamW divides by the root of its second moments.
fn range(name: &str) -> Range {
    if name.starts_with(crate::optimizer::SECOND) { Range::NotNegative } else { Range::Finite }
}

fn failed(error: TchError, doing: &'static str) -> HandoverError {
    ModelError::from(error).during(doing).into()
}
