//! Owns how a newcomer takes over what the replicas of its stage agreed on. It may not know which replica gives it, nor
//! whether it is what was committed: callers compare [`Outer::weights_digest`] with the commit.
//!
//! The form is that of [`crate::handover`], with one count, that of the commits; the numbers are the anchor and then the
//! momentum, each in unit order. The settings are those of [`crate::outer::OuterConfig`], the shapes those of the layout.

use crate::handover::{Form, HandoverError, Part, Range};
use crate::outer::Outer;
use crate::outer::codec::numbers;

impl Outer {
    /// Returns what all replicas of the stage share after a commit, the same bytes from each: anchor, momentum and the count
    /// of commits; 120 bytes of header, then 4 bytes a number. What is owed, and a transaction in flight, are the
    /// replica's own and stay out.
    ///
    /// For gradients there is no anchor, and only the count is in it: weights and moments are then with the engine alone.
    pub fn export_agreed(&self) -> Vec<u8> {
        let mut bytes = self.form().begin([self.state.committed]);
        for list in [&self.state.anchor, &self.state.momentum] {
            let start = bytes.len();
            bytes.resize(start + 4 * list.len(), 0);
            numbers::put(list, &mut bytes[start..]);
        }
        bytes
    }

    /// Takes over what [`Outer::export_agreed`] gave at a replica of the same stage. Nothing is owed afterwards, and a
    /// transaction in flight is dropped. [`Outer::anchor`] then has the weights to train on from.
    ///
    /// # Errors
    /// Bytes that are cut, changed in the header, of other settings or shapes, or with a number that is not finite; all is
    /// then as before.
    pub fn import_agreed(&mut self, bytes: &[u8]) -> Result<(), HandoverError> {
        let form = self.form();
        let ([committed], numbers) = form.open(bytes, ["commits"])?;
        let (anchor, momentum) = numbers.split_at(4 * self.state.anchor.len());
        form.check("the anchor", anchor, Range::Finite)?;
        form.check("the momentum", momentum, Range::Finite)?;
        self.transaction = None;
        self.adoptable = None;
        self.state.owed = Vec::new();
        numbers::get(anchor, &mut self.state.anchor);
        numbers::get(momentum, &mut self.state.momentum);
        self.state.committed = committed;
        Ok(())
    }

    fn form(&self) -> Form {
        let settings = serde_json::to_string(self.config()).unwrap_or_default();
        Form {
            part: Part::Agreed,
            settings: blake3::hash(settings.as_bytes()),
            shapes: blake3::Hash::from_bytes(self.layout().digest()),
            numbers: self.state.anchor.len() + self.state.momentum.len(),
        }
    }
}
