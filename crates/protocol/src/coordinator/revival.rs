//! The coordinator that starts again in the middle of a run: it goes on with the members that find it.
//!
//! Owns the way from the stored session to the run. Knows nothing of what members repeat: that comes as it did the first time.

use crate::coordinator::{Coordinator, Phase};
use crate::event::Event;
use crate::ids::{InnerStep, MicrobatchId, PeerId, Split, StageId};
use crate::lease::{HandedOut, Leases};
use crate::message::{Message, Presence, Refusal, Removal};
use crate::pipeline::lease_ahead;
use crate::port::{Action, Outbox};
use crate::roster::{self, Roster};
use crate::route;
use crate::running::Running;
use crate::time::{Span, Time};
use crate::work::Needs;
use alloc::boxed::Box;

/// How often a coordinator that starts again dials members while it has heard none.
const CALL_AGAIN_WAIT: Span = Span::seconds(5);

/// How long it waits for a member before those who join begin anew from the last checkpoint: members that are there find it within
/// seconds, and a network that is cut for a moment must not cost what they have trained since.
const MEMBERS_WAIT: Span = Span::seconds(60);

impl Coordinator {
    /// Hears a member that connected anew, and brings it up to date.
    pub(super) fn present(
        &mut self,
        now: Time,
        from: PeerId,
        standing: Presence,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        if let Phase::Reviving { session, .. } = &self.phase
            && session.plan.place_of(from).is_some()
        {
            self.revive(now, out);
        }
        if let Phase::Running(running) = &mut self.phase {
            running.roster.heard(now, from);
        }
        // While all get ready, being ready is what counts, and is said beside this.
        if let Phase::Preparing { plan, .. } = &self.phase
            && plan.place_of(from).is_some()
        {
            return Ok(());
        }
        let Phase::Running(running) = &mut self.phase else {
            out.send(from, Message::Removed { why: Removal::Unknown });
            return Ok(());
        };
        if running.plan.place_of(from).is_none() {
            out.send(from, Message::Removed { why: Removal::Unknown });
            return Ok(());
        }
        let entered = running.plan.member(from).is_some_and(roster::has_entered);
        if entered && standing == Presence::Waits {
            // That it was told to enter was lost, and the others have gone on since.
            self.remove(now, from, Removal::Disconnected, out);
            return Ok(());
        }
        running.bring_up_to_date(from, out);
        Ok(())
    }

    /// Dials the members of the stored session until one of them is heard.
    pub(super) fn call_members(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Reviving { session, call_at, anew_at, .. } = &mut self.phase else { return };
        if now < *call_at {
            return;
        }
        *call_at = now + CALL_AGAIN_WAIT;
        for member in &session.plan.members {
            out.push(Action::Dial { peer: member.peer, address: member.address.clone() });
        }
        if *anew_at.get_or_insert(now + MEMBERS_WAIT) <= now {
            self.plan_anew(now, out);
        }
    }

    /// Goes on with the stored session.
    fn revive(&mut self, now: Time, out: &mut Outbox) {
        let waiting = Phase::Over;
        let Phase::Reviving { session, .. } = core::mem::replace(&mut self.phase, waiting) else {
            return;
        };
        let mut session = *session;
        let recalled = session.ledger.recall(&session.plan);
        let roster = Roster::revived(&session.plan, session.seats, now);
        let (plan, start) = (session.plan, session.planned_from);
        let mut running = self.running(now, plan, roster, session.ledger, start);
        recalled.iter().for_each(|(place, trained)| running.weigh_again(*place, &[*trained]));
        running.reserved = (session.reserved, session.reserved);
        running.drain = session.drain;
        running.take_up_leases(now, lease_ahead(&self.spec), start, session.reserved);
        let step = running.settled_steps();
        running.book = crate::book::Book::new(self.agenda, self.spec.step_tokens(), step, now);
        if let Some(border) = running.drain {
            running.leases.stop_at(border);
        }
        running.find_stalled();
        // A newcomer that was on its way asks again.
        let arriving = running.plan.members.iter().filter(|member| member.enters == route::NEVER);
        let arriving: alloc::vec::Vec<PeerId> = arriving.map(|member| member.peer).collect();
        let members = running.plan.members.iter().map(|m| (m.peer, m.place)).collect();
        out.record(Event::Planned { plan: running.plan.number, members });
        out.record(Event::Started { step });
        self.phase = Phase::Running(Box::new(running));
        for peer in arriving {
            self.remove(now, peer, Removal::Unknown, out);
        }
        for (peer, join) in core::mem::take(&mut self.joins) {
            if let Err(refusal) = self.joined_under_way(now, peer, join, out) {
                out.refuse(peer, refusal);
            }
        }
    }
}

impl Running {
    /// Finds what was handed out before and is not credited at every stage: it is under way, or was lost; who has it says so.
    fn take_up_leases(&mut self, now: Time, ahead: usize, start: InnerStep, reserved: InnerStep) {
        let agenda = self.agenda;
        let last = InnerStep(reserved.0.saturating_sub(1).min(agenda.steps().0));
        let handed_out = HandedOut {
            train_below: agenda.training_of(InnerStep(reserved.0.min(agenda.steps().0))).start,
            held_out_below: agenda.evaluation_at(last).end.max(agenda.evaluated_before(last)),
        };
        let mut leases = Leases::after(agenda, start, ahead, handed_out);
        let stages = usize::from(self.ledger.stages());
        let mut lowest = agenda.train_microbatches();
        for microbatch in agenda.from(start) {
            if agenda.step_of(microbatch).is_none_or(|step| step >= reserved) {
                break;
            }
            if microbatch.split == Split::HeldOut {
                continue;
            }
            let lacking = self.ledger.lacking(microbatch.index);
            if lacking.is_empty() {
                leases.settled_before(microbatch);
                continue;
            }
            lowest = lowest.min(microbatch.index);
            let needs = if lacking.len() == stages { Needs::All } else { Needs::Only(lacking) };
            // Where nobody holds the first stage, it waits at the coordinator for who comes.
            let to = self.first_stage(microbatch).unwrap_or(self.plan.coordinator);
            leases.out_again(now, microbatch, needs, to);
        }
        // What was evaluated before the first step that is open is behind the run.
        let open = agenda.step_of(MicrobatchId::train(lowest)).unwrap_or(agenda.steps());
        let evaluated = agenda.evaluated_before(open);
        let from = agenda.evaluated_before(start);
        (from..handed_out.held_out_below).map(MicrobatchId::held_out).for_each(|microbatch| {
            if microbatch.index < evaluated {
                return leases.settled_before(microbatch);
            }
            let to = self.first_stage(microbatch).unwrap_or(self.plan.coordinator);
            leases.out_again(now, microbatch, Needs::All, to);
        });
        self.leases = leases;
    }

    fn find_stalled(&mut self) {
        for stage in (0..self.ledger.stages()).map(StageId) {
            if !self.plan.replicas(stage).any(|member| member.enters < route::NEVER) {
                self.roster.stalls(stage);
            }
        }
    }

    /// Tells a member all that it may have missed.
    pub(crate) fn bring_up_to_date(&mut self, peer: PeerId, out: &mut Outbox) {
        let plan = self.plan.clone();
        let disturbed_below = InnerStep(self.leases.highest_step().0 + 1);
        out.send(peer, Message::Roster { plan, disturbed_below });
        out.send(peer, Message::Suspects(self.roster.suspects()));
        // The same as all others know: what one takes for settled and drops, another must not send and wait for.
        out.send(peer, Message::Frontier(self.told));
        if let Some(border) = self.drain {
            out.send(peer, Message::Drain { border });
        }
        if let Some(outer) = self.closing {
            out.send(peer, Message::Close { outer });
        }
        for renewed in self.leases.out_at(peer) {
            self.tell(renewed, out);
        }
    }
}
