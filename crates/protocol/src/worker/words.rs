//! What a worker has told its coordinator and no commit holds yet: a coordinator that starts again has forgotten it.
//!
//! Owns those words and their end. Knows nothing of what they mean to the coordinator.

use crate::ids::{Attempt, Digest, InnerStep, MicrobatchId, PeerId, SeatId};
use crate::message::{Message, StepReport};
use crate::port::Outbox;
use crate::receipt::Receipt;
use crate::time::Span;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// The words since a border.
#[derive(Debug, Default)]
struct Page {
    settled: BTreeMap<MicrobatchId, (Attempt, Option<InnerStep>)>,
    losses: BTreeMap<MicrobatchId, (Attempt, f32)>,
    receipts: Vec<Receipt>,
    reports: Vec<StepReport>,
}

/// The words of the last two borders that the coordinator knows, and of all after them: what was said before the last commit may
/// be about work that it does not hold.
#[derive(Debug, Default)]
pub(super) struct Words {
    present: Page,
    /// The pages before it, each with the training index that the coordinator has reached when it knows that page's border.
    before: VecDeque<(u64, Page)>,
    /// The last checkpoint that was written.
    saved: Option<(InnerStep, Digest, Span)>,
}

impl Words {
    /// Notes a microbatch that came back to the first stage.
    pub(super) fn settled(&mut self, microbatch: MicrobatchId, attempt: Attempt, trained: Option<InnerStep>) {
        self.present.settled.insert(microbatch, (attempt, trained));
    }

    /// Returns whether a microbatch that was trained here came back to the first stage.
    pub(super) fn has_trained(&self, microbatch: MicrobatchId) -> bool {
        let mut back = self.pages().filter_map(|page| page.settled.get(&microbatch));
        back.any(|(_, trained)| trained.is_some())
    }

    /// Notes a loss.
    pub(super) fn loss(&mut self, microbatch: MicrobatchId, attempt: Attempt, loss: f32) {
        self.present.losses.insert(microbatch, (attempt, loss));
    }

    /// Notes receipts.
    pub(super) fn receipts(&mut self, receipts: &[Receipt]) {
        self.present.receipts.extend_from_slice(receipts);
    }

    /// Notes the report of a step.
    pub(super) fn report(&mut self, report: StepReport) {
        self.present.reports.push(report);
    }

    /// Notes a checkpoint.
    pub(super) fn saved(&mut self, step: InnerStep, digest: Digest, took: Span) {
        self.saved = Some((step, digest, took));
    }

    /// Turns the page, when a commit or a checkpoint is behind the replica. The coordinator knows that border when nothing below
    /// `known_at` is out any more.
    pub(super) fn turn(&mut self, known_at: u64) {
        self.before.push_back((known_at, core::mem::take(&mut self.present)));
        self.reached(0);
    }

    /// Hears that nothing below a training index is out any more.
    pub(super) fn reached(&mut self, train_below: u64) {
        while self.before.get(1).is_some_and(|(known_at, _)| *known_at <= train_below) {
            self.before.pop_front();
        }
    }

    fn pages(&self) -> impl Iterator<Item = &Page> {
        self.before.iter().map(|(_, page)| page).chain([&self.present])
    }

    /// Says all of it again, as who has that seat.
    pub(super) fn repeat(&self, to: PeerId, seat: SeatId, out: &mut Outbox) {
        for page in self.pages() {
            for (&microbatch, &(attempt, loss)) in &page.losses {
                out.send(to, Message::Loss { microbatch, attempt, loss });
            }
            for (&microbatch, &(attempt, trained)) in &page.settled {
                out.send(to, Message::Settled { microbatch, attempt, seat, trained });
            }
            for receipt in &page.receipts {
                out.send(to, Message::Receipts(alloc::vec![receipt.clone()]));
            }
            for report in &page.reports {
                out.send(to, Message::Stepped(*report));
            }
        }
        if let Some((step, digest, took)) = self.saved {
            out.send(to, Message::Checkpointed { step, digest, took });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(words: &Words) -> usize {
        let mut out = Outbox::default();
        words.repeat(PeerId([1; 32]), SeatId(0), &mut out);
        core::iter::from_fn(|| out.pop()).count()
    }

    #[test]
    fn words_are_repeated_until_two_borders_are_behind_them() {
        let mut words = Words::default();
        words.settled(MicrobatchId::train(0), Attempt(0), None);
        words.loss(MicrobatchId::train(0), Attempt(0), 1.0);
        assert_eq!(said(&words), 2);
        words.turn(0);
        words.report(StepReport::default());
        assert_eq!(said(&words), 3);
        words.turn(0);
        assert_eq!(said(&words), 1);
        words.saved(InnerStep(2), Digest([1; 32]), Span(3));
        (0..3).for_each(|_| words.turn(0));
        assert_eq!(said(&words), 1, "a checkpoint counts until the next");
    }

    #[test]
    fn what_was_trained_is_known_as_long_as_its_word_is() {
        let mut words = Words::default();
        words.settled(MicrobatchId::train(0), Attempt(0), Some(InnerStep(0)));
        words.settled(MicrobatchId::train(1), Attempt(1), None);
        words.turn(0);
        assert_eq!(
            [0, 1, 2].map(|index| words.has_trained(MicrobatchId::train(index))),
            [true, false, false]
        );
        words.turn(0);
        assert!(!words.has_trained(MicrobatchId::train(0)));
    }

    #[test]
    fn words_are_kept_while_the_coordinator_is_away() {
        let mut words = Words::default();
        for step in 1..=4 {
            words.report(StepReport::default());
            words.turn(10 * step);
        }
        assert_eq!(said(&words), 4);
        words.reached(19);
        assert_eq!(said(&words), 4, "it knows the first border, and may have it from before");
        words.reached(30);
        assert_eq!(said(&words), 2);
        words.reached(99);
        assert_eq!(said(&words), 1);
    }
}
