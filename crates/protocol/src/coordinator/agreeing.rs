//! The coordinator's part in the outer steps: it carries the arbiter on, and keeps ledger and disk in step with it.
//!
//! Owns that order: a commit is durable before it is announced, and credit is final when it is. Knows nothing of how replicas
//! exchange.

use crate::agenda::Exchanges;
use crate::coordinator::{Coordinator, Phase};
use crate::ids::{PeerId, SeatId, StageId};
use crate::ledger::Commit;
use crate::message::{Message, Outcome, Refusal, Removal};
use crate::port::Outbox;
use crate::running::Storing;
use crate::sync::say::Say;
use crate::time::{Span, Time};
use alloc::format;
use alloc::vec::Vec;

/// Outer steps on end that may end in disagreement without a replica that is alone with its vote: two replicas whose weights
/// differ will never agree, and it cannot be said which of them is wrong.
const SPLITS_MAX: u32 = 3;

impl Coordinator {
    pub(super) fn replica_said(
        &mut self,
        now: Time,
        from: PeerId,
        say: Say,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let (running, _) = self.running_for(from, None)?;
        let arbiter = running.arbiter.as_mut().ok_or(Refusal::NotYours { peer: from })?;
        let before = arbiter.heard();
        let accepted = arbiter.received(now, from, say, out);
        if arbiter.heard() > before {
            running.worked_at = now;
        }
        accepted
    }

    /// Carries the outer step on, and makes its commit durable.
    pub(super) fn agree(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(arbiter) = &mut running.arbiter else { return };
        let below = arbiter_border(&self.agenda, arbiter.open());
        let (ledger, leases) = (&running.ledger, &running.leases);
        let comes = |index: u64| leases.settled().contains(index) || leases.is_first_try(index);
        let awaits = |stage: StageId| ledger.awaits_credit(stage, below, comes);
        arbiter.advance(now, &awaits, out);
        if let Some(committed) = arbiter.take_store() {
            let contributions = arbiter.contributions();
            // Also where a coordinator before this one had told all to close.
            let last = running.closing.is_some() || committed.step >= self.agenda.steps();
            if last && !ledger.all_held_with(self.agenda.train_microbatches(), &contributions) {
                // Somebody was lost after all had been credited: its work is done again before the run ends.
                arbiter.call_off(now, out);
                let credited = running.ledger.all_credited(self.agenda.train_microbatches());
                if credited && running.called_off {
                    // Who came to this late has had another step for its work: what is not in it was credited wrongly.
                    contributions.iter().for_each(|(seat, seen)| running.ledger.lose_from(*seat, *seen));
                }
                running.called_off = credited;
            } else {
                let took_part = |seat: &SeatId| contributions.iter().any(|(of, _)| of == seat);
                let members = running.plan.members.iter().map(|member| member.seat);
                let left_out = members.filter(|seat| !took_part(seat)).collect();
                let commit = Commit { border: committed.step, contributions, left_out };
                running.storing.push_back(Storing::Outer(commit));
                running.keep_ledger();
                self.durable.agreed = Some(committed);
                self.store(out);
            }
        }
        self.follow_verdict(now, out);
    }

    fn follow_verdict(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(arbiter) = &mut running.arbiter else { return };
        let lost = arbiter.take_lost();
        let alone = arbiter.take_alone();
        let split = arbiter.split();
        let restored = arbiter.take_restored();
        if let Some(outer) = restored {
            running.closing = None;
            self.settle_orphans();
            if self.agenda.exchanges() == Exchanges::Gradients {
                let reason =
                    format!("replicas disagree on the gradient of step {}, tried again in vain", outer.0);
                return self.finish(Outcome::Failed { reason }, out);
            }
            if split >= SPLITS_MAX {
                let outer = outer.0;
                let reason = format!(
                    "replicas have disagreed in {split} outer steps on end, up to outer step {outer}"
                );
                return self.finish(Outcome::Failed { reason }, out);
            }
        }
        for peer in alone {
            self.remove(now, peer, Removal::Excluded, out);
        }
        for peer in lost {
            self.remove(now, peer, Removal::Silent, out);
        }
    }

    /// Hears that a commit is durable.
    pub(super) fn committed(&mut self, now: Time, commit: &Commit, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        running.ledger.committed(commit);
        running.called_off = false;
        if running.closing.is_some() {
            // What was saved at the end before this commit is not the end.
            running.saves.remove(&self.agenda.steps());
        }
        if let Some(arbiter) = &mut running.arbiter {
            let below = arbiter_border(&self.agenda, arbiter.open());
            arbiter.stored(now, out);
            // The receipts of what came back last may still be on their way; those of the outer step before are not.
            let before = core::mem::replace(&mut running.receipted_below, below);
            running.find_missing(before);
        }
        if running.closing.is_some() && running.ledger.all_held(self.agenda.train_microbatches()) {
            running.closing = Some(None);
        }
        running.apart.clear();
        let since = running.committed_at.map_or(Span(0), |(at, _)| now.since(at));
        running.committed_at = Some((now, since));
        self.settle_orphans();
        self.let_leavers_go(now, out);
        self.place_again(now, out);
        self.balance(now, out);
    }

    /// Takes back what lost seats were credited with, now that the outer step that might have held it is decided.
    fn settle_orphans(&mut self) {
        let Phase::Running(running) = &mut self.phase else { return };
        let orphans: Vec<SeatId> = core::mem::take(&mut running.orphans);
        for seat in orphans {
            running.ledger.lose(seat);
        }
    }

    /// Tells newcomers that what they fetch is behind the last commit.
    fn place_again(&mut self, _now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        for peer in running.roster.arriving() {
            let Some(stage) = running.plan.place_of(peer).map(|place| place.stage) else { continue };
            let Some(start) = running.replicas_start(stage) else { continue };
            let Some(arrival) = running.roster.arrival(peer) else { continue };
            if arrival.is_behind(&start) {
                arrival.begin(start);
                let (plan, frontier) = (running.plan.clone(), running.told);
                out.send(peer, Message::Placed { plan, start, frontier });
            }
        }
    }
}

/// Returns the training index at which the border of an outer step lies.
fn arbiter_border(agenda: &crate::agenda::Agenda, outer: crate::ids::OuterStep) -> u64 {
    let border = agenda.outer_border_or_end(outer).unwrap_or_else(|| agenda.steps());
    match agenda.exchanges() {
        // The gradient of a step is exchanged before anyone has receipted it.
        Exchanges::Gradients | Exchanges::Nothing => 0,
        Exchanges::PseudoGradients => agenda.training_of(border).start,
    }
}
