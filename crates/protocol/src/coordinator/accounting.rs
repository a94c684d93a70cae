//! What members say of their work: losses, what has come back, receipts and reports.
//!
//! Owns the checks of those words. Knows nothing of who takes part or of outer steps.

use crate::coordinator::{Coordinator, Phase};
use crate::event::Event;
use crate::ids::{InnerStep, MicrobatchId, PeerId, SeatId, Split, StageId};
use crate::lease::Unsettled;
use crate::message::{Outcome, Refusal, StepReport};
use crate::port::Outbox;
use crate::receipt::Receipt;
use crate::running::RESERVED_STEPS;
use crate::time::Time;
use crate::work::Trained;
use alloc::format;

impl Coordinator {
    pub(super) fn loss(
        &mut self,
        now: Time,
        from: PeerId,
        microbatch: MicrobatchId,
        loss: f32,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let last = StageId(self.spec.stages() - 1);
        let (running, _) = self.running_for(from, Some(last))?;
        if !loss.is_finite() {
            let reason = format!("the loss of {microbatch} is {loss}: training has diverged");
            self.finish(Outcome::Failed { reason }, out);
            return Err(Refusal::LossNotFinite { microbatch });
        }
        match microbatch.split {
            Split::Train if microbatch.index >= running.leases.leased_below() => {
                return Err(Refusal::NotDue { microbatch });
            }
            Split::Train => {}
            Split::HeldOut => match running.leases.settle(now, microbatch) {
                Ok(()) => {}
                Err(Unsettled::Duplicate) => {
                    out.record(Event::Duplicate { microbatch, from });
                    return Ok(());
                }
                Err(Unsettled::NotLeased) => return Err(Refusal::NotDue { microbatch }),
            },
        }
        if let Some(event) = running.book.loss(now, microbatch, loss, running.settled_at) {
            out.record(event);
        }
        Ok(())
    }

    pub(super) fn settled(
        &mut self,
        now: Time,
        from: PeerId,
        microbatch: MicrobatchId,
        (seat, trained): (SeatId, Option<InnerStep>),
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let work = trained.map(|step| Trained { index: microbatch.index, step });
        self.settled_late(from, microbatch, seat, work);
        let (running, place) = self.running_for(from, Some(StageId(0)))?;
        if microbatch.split == Split::HeldOut {
            return Err(Refusal::NotYours { peer: from });
        }
        if microbatch.index >= running.leases.leased_below() {
            return Err(Refusal::NotDue { microbatch });
        }
        match running.leases.settle(now, microbatch) {
            Ok(()) => running.settled_at = now,
            Err(Unsettled::Duplicate) => out.record(Event::Duplicate { microbatch, from }),
            Err(Unsettled::NotLeased) => return Err(Refusal::NotDue { microbatch }),
        }
        let holds = running.plan.member(from).is_some_and(|member| member.seat == seat);
        if let Some(work) = work.filter(|_| holds) {
            let new = running.ledger.returned(seat, work);
            running.weigh(place, new.as_slice());
        }
        Ok(())
    }

    /// Counts what came back at the first stage to a peer that has lost its seat there.
    fn settled_late(&mut self, from: PeerId, microbatch: MicrobatchId, seat: SeatId, work: Option<Trained>) {
        let (Phase::Running(running), Some(Trained { index, .. })) = (&mut self.phase, work) else { return };
        let holds = running.plan.member(from).is_some_and(|member| member.seat == seat);
        let leased = microbatch.split == Split::Train && index < running.leases.leased_below();
        if leased && !holds {
            running.ledger.returned_late(from, seat, index);
        }
    }

    pub(super) fn receipts(&mut self, from: PeerId, receipts: &[Receipt]) -> Result<(), Refusal> {
        let (running, _) = self.running_for(from, None)?;
        let mut refused = Ok(());
        for receipt in receipts {
            if receipt.statement.by != from {
                return Err(Refusal::NotYours { peer: from });
            }
            let leased_below = running.leases.leased_below();
            match running.ledger.credit(receipt, &running.plan, leased_below) {
                Ok(new) => {
                    if let Some(place) = running.plan.place_of(receipt.statement.worker) {
                        running.weigh(place, &new);
                    }
                }
                Err(error) => refused = Err(Refusal::Receipt(error)),
            }
        }
        refused
    }

    pub(super) fn stepped(&mut self, from: PeerId, report: StepReport) -> Result<(), Refusal> {
        let agenda = self.agenda;
        let (running, place) = self.running_for(from, None)?;
        // A replica steps a little beyond what is handed out where nothing falls to it.
        let ahead = running.leases.highest_step().0.saturating_add(RESERVED_STEPS);
        if report.step >= agenda.steps() || report.step.0 > ahead {
            return Err(Refusal::NotYours { peer: from });
        }
        running.paces.learn(from, &report);
        running.book.report(place, report);
        Ok(())
    }
}
