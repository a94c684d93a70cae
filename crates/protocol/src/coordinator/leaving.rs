//! Members that leave: they hand in what they have at a border, and the others go on without them.
//!
//! Owns at which border each of them leaves, and that a stage is not left with nobody. Knows nothing of who comes in their place.

use crate::agenda::Exchanges;
use crate::coordinator::{Coordinator, Phase};
use crate::event::Event;
use crate::ids::{InnerStep, OuterStep, PeerId};
use crate::message::{Refusal, Removal};
use crate::plan::Member;
use crate::port::Outbox;
use crate::roster;
use crate::running::Running;
use crate::time::{Span, Time};
use alloc::vec::Vec;

impl Coordinator {
    /// Hears that a member has to leave.
    pub(super) fn leaving(
        &mut self,
        now: Time,
        from: PeerId,
        notice: Span,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let Phase::Running(running) = &mut self.phase else {
            self.lost(now, from, "left".into(), out);
            return Ok(());
        };
        running.roster.take(from);
        let Some(member) = running.plan.member(from).cloned() else { return Ok(()) };
        out.record(Event::Leaving { peer: from, place: member.place, notice });
        if notice == Span(0) || !roster::has_entered(&member) {
            self.remove(now, from, Removal::Left, out);
            return Ok(());
        }
        running.roster.leaves(from, now + notice);
        if member.until.is_none() && running.arrange_leavers(now) {
            running.plan.renumber();
            self.announce_plan(None, out);
        }
        Ok(())
    }

    /// Lets members go that asked to leave and whose work is in the last commit. Who had begun work behind that border before it
    /// heard of it stays for the next one, and who is the last of its stage for as long as it can, for a newcomer to take over
    /// what it has.
    pub(super) fn let_leavers_go(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        if running.arrange_leavers(now) {
            running.plan.renumber();
            self.announce_plan(None, out);
        }
        let Phase::Running(running) = &mut self.phase else { return };
        let committed =
            running.arbiter.as_ref().and_then(|arbiter| arbiter.committed()).map(|last| last.step);
        let gone = running.plan.members.iter().filter(|member| {
            member.until.zip(committed).is_some_and(|(until, committed)| until <= committed)
        });
        let gone: Vec<PeerId> = gone.map(|member| member.peer).collect();
        let moving = running.moving.map(|(peer, ..)| peer);
        for peer in gone {
            let why = if Some(peer) == moving { Removal::Moved } else { Removal::Left };
            let Phase::Running(running) = &self.phase else { return };
            let Some(seat) = running.plan.member(peer).map(|member| member.seat) else { continue };
            if !running.ledger.has_open(seat) {
                self.remove(now, peer, why, out);
            }
        }
    }

    /// Lets the only replica of a stage go that asked to leave, once its checkpoint is durable.
    pub(super) fn let_savers_go(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let alone = running.arbiter.is_none();
        let gone: Vec<PeerId> = running.roster.leaving().into_iter().map(|(peer, _)| peer).collect();
        for peer in gone.into_iter().filter(|_| alone) {
            self.remove(now, peer, Removal::Left, out);
        }
    }
}

impl Running {
    /// Has each member that leaves do so at a border, if its stage has others from there on; who else would be its last goes on
    /// working for as long as it can. Returns whether the plan changed.
    pub(crate) fn arrange_leavers(&mut self, now: Time) -> bool {
        let mut changed = false;
        let leaving = self.roster.leaving();
        for peer in self.plan.members.iter().map(|member| member.peer).collect::<Vec<_>>() {
            let Some(member) = self.plan.member(peer) else { continue };
            let notice = leaving.iter().find(|(other, _)| *other == peer).map(|(_, by)| by.since(now));
            let until = match (member.until, notice) {
                (Some(until), _) => Some(until),
                (None, Some(notice)) if roster::has_entered(member) => self.last_border(now, peer, notice),
                (None, _) => None,
            };
            let until = until.filter(|until| self.has_others_from(member, *until));
            if until == member.until {
                continue;
            }
            if until.is_none() {
                self.stay(peer);
            }
            let entry = self.plan.members.iter_mut().find(|other| other.peer == peer);
            entry.into_iter().for_each(|entry| entry.until = until);
            changed = true;
        }
        changed
    }

    /// Returns whether replicas of a member's stage that are not suspected are there to work at a step, and after it.
    fn has_others_from(&self, member: &Member, step: InnerStep) -> bool {
        let stays = |other: &Member| {
            other.until.is_none() && other.works_at(step) && !self.roster.is_suspect(other.peer)
        };
        self.plan.replicas(member.place.stage).any(|other| other.peer != member.peer && stays(other))
    }

    /// Returns the border to which a member that leaves works on: that of the open outer step, or of the next where it may have
    /// begun work behind that border already and can stay that long.
    fn last_border(&self, now: Time, peer: PeerId, notice: Span) -> Option<InnerStep> {
        let arbiter = self.arbiter.as_ref()?;
        if self.agenda.exchanges() != Exchanges::PseudoGradients {
            return None;
        }
        let open = arbiter.open();
        let border = self.agenda.outer_border_or_end(open);
        let (at, interval) = self.committed_at.unwrap_or((now, Span(u64::MAX)));
        let left = Span(interval.0.saturating_mul(2).saturating_sub(now.since(at).0));
        let next = self.agenda.outer_border_or_end(OuterStep(open.0 + 1));
        let begun =
            arbiter.has_reached(peer) || border.is_some_and(|border| self.leases.highest_step() >= border);
        if begun && left < notice && interval > Span(0) { next } else { border }
    }
}
