//! The run under way, as the coordinator sees it: what is out, what is credited, what is being made durable.
//!
//! Owns leasing, credit, and the order in which what is said waits for the disk. May not know how a run begins or ends, who
//! joins and leaves, or what a peer may say.

use crate::agenda::{Agenda, Exchanges};
use crate::book::{Book, Owes};
use crate::durable::{Checkpoint, Session};
use crate::event::Event;
use crate::ids::{
    Attempt, Digest, InnerStep, MicrobatchId, OuterStep, PeerId, PlanNumber, ReplicaId, SeatId, StageId,
};
use crate::index_set::IndexSet;
use crate::lease::{ATTEMPTS_MAX, Leases, Renewed};
use crate::ledger::{Commit, Ledger};
use crate::message::{LEASE_MICROBATCHES_MAX, Message};
use crate::paces::Paces;
use crate::plan::{Place, Plan};
use crate::port::Outbox;
use crate::rebalance::Rebalancer;
use crate::roster::Roster;
use crate::route;
use crate::sync::arbiter::Arbiter;
use crate::time::{Span, Time};
use crate::work::{Frontier, Needs, Trained};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Steps whose handing out is made durable at a time: rarely enough to cost nothing, seldom enough that a coordinator that
/// starts again has little to ask about.
pub(crate) const RESERVED_STEPS: u64 = 8;

/// How long after the last backward of a run its receipts may take: members say what they have with each beat.
const LAST_RECEIPTS_WAIT: Span = Span::seconds(4);

/// The run under way.
pub(crate) struct Running {
    pub(crate) agenda: Agenda,
    /// Who holds which place.
    pub(crate) plan: Plan,
    /// Who is there, who may be gone, who waits.
    pub(crate) roster: Roster,
    /// Which microbatches are out.
    pub(crate) leases: Leases,
    /// Who is credited with what.
    pub(crate) ledger: Ledger,
    /// What was heard of each step.
    pub(crate) book: Book,
    /// The step at which this run, or its last resumption, began.
    pub(crate) planned_from: InnerStep,
    /// Work of steps below this one may be handed out; and what is on its way to the disk.
    pub(crate) reserved: (InnerStep, InnerStep),
    /// When the last training microbatch was settled.
    pub(crate) settled_at: Time,
    /// Saved states of places, by border, until all places have saved.
    pub(crate) saves: BTreeMap<InnerStep, BTreeMap<Place, (Digest, Span)>>,
    /// What is being made durable, in the order in which it was asked for.
    pub(crate) storing: VecDeque<Storing>,
    /// Decides the outer steps; `None` where each stage has one replica.
    pub(crate) arbiter: Option<Arbiter>,
    /// Seats that are lost, and whose contribution the open outer step may still hold.
    pub(crate) orphans: Vec<SeatId>,
    /// The border at which the run stops, once it was asked to.
    pub(crate) drain: Option<InnerStep>,
    /// The outer step in which all were told to agree for the last time; `Some(None)` where they only save.
    pub(crate) closing: Option<Option<OuterStep>>,
    /// Whether the outer step before was called off at the end, for it would not have held all that was credited.
    pub(crate) called_off: bool,
    /// Stages in which two replicas cannot reach each other.
    pub(crate) apart: BTreeMap<StageId, Apart>,
    /// The training index at the border of the last commit: what came back below it has been receipted by the next.
    pub(crate) receipted_below: u64,
    /// Since a member was lost: what it may have received and not signed for.
    pub(crate) unsigned: Option<Unsigned>,
    /// Leases that their holders had no room for.
    pub(crate) refused: BTreeSet<MicrobatchId>,
    /// The frontier that members were told.
    pub(crate) told: Frontier,
    /// The ledger of the session as it was stored last.
    pub(crate) ledger_stored: Ledger,
    /// How fast members compute.
    pub(crate) paces: Paces,
    /// Better turns that the last commit saw for a stage; they are taken if the next sees them too.
    pub(crate) turns_seen: BTreeMap<StageId, Vec<ReplicaId>>,
    /// Whether a member moves to another stage.
    pub(crate) rebalancer: Rebalancer,
    /// Who moves, to which stage, and since when.
    pub(crate) moving: Option<(PeerId, StageId, Time)>,
    /// When the last outer step was committed, and how long it was since the one before.
    pub(crate) committed_at: Option<(Time, Span)>,
    /// Since when there are suspects that others could do without.
    pub(crate) held_up_since: Option<Time>,
    /// When a member spoke of its work last.
    pub(crate) worked_at: Time,
}

/// Two replicas of a stage that cannot reach each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Apart {
    pub(crate) since: Time,
    pub(crate) earlier: PeerId,
    pub(crate) later: PeerId,
}

/// Work for which nobody may have signed, because only a lost member had received it.
#[derive(Clone, Debug)]
pub(crate) struct Unsigned {
    /// The plan in which that one is missing.
    pub(crate) plan: PlanNumber,
    /// What had come back when the others were asked to sign.
    pub(crate) settled: IndexSet,
    /// Who has not answered yet.
    pub(crate) asked: BTreeSet<PeerId>,
    /// Until when nothing is done again, so that it is done again once for all stages.
    pub(crate) until: Time,
}

/// What a store is for.
pub(crate) enum Storing {
    /// A checkpoint, and how long the slowest stage stood still for it.
    Checkpoint(Checkpoint, Span),
    /// The commit of an outer step.
    Outer(Commit),
    /// A change of the session: what is said when it is durable.
    Session(Vec<(PeerId, Message)>),
    /// Work of steps below this one may be handed out.
    Reserved(InnerStep),
}

impl Storing {
    /// Returns the checkpoint, if that is what is stored.
    pub(crate) fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Storing::Checkpoint(checkpoint, _) => Some(checkpoint),
            Storing::Outer(_) | Storing::Session(_) | Storing::Reserved(_) => None,
        }
    }
}

impl Running {
    /// Returns the session as it is to be stored.
    pub(crate) fn session(&self) -> Session {
        Session {
            plan: self.plan.clone(),
            planned_from: self.planned_from,
            reserved: self.reserved.1,
            seats: self.roster.seats(),
            ledger: self.ledger_stored.stored(),
            drain: self.drain,
        }
    }

    /// Has the ledger stored as it is now, with the commit that is on its way to the disk: what is agreed is stored beside it.
    pub(crate) fn keep_ledger(&mut self) {
        let mut ledger = self.ledger.clone();
        for storing in &self.storing {
            match storing {
                Storing::Outer(commit) => ledger.committed(commit),
                Storing::Checkpoint(..) | Storing::Session(_) | Storing::Reserved(_) => {}
            }
        }
        self.ledger_stored = ledger;
    }

    /// Returns whom a microbatch of the first stage goes to.
    pub(crate) fn first_stage(&self, microbatch: MicrobatchId) -> Option<PeerId> {
        let usable = |peer| !self.roster.is_suspect(peer);
        let (plan, agenda) = (&self.plan, &self.agenda);
        let best = route::choose(plan, agenda, StageId(0), microbatch, usable);
        best.or_else(|| route::choose(plan, agenda, StageId(0), microbatch, |_| true))
    }

    /// Returns whom a microbatch that is to be done again goes to.
    fn first_stage_again(&self, index: u64) -> Option<PeerId> {
        let needs = self.ledger.redo(index)?;
        let microbatch = MicrobatchId::train(index);
        let usable = |peer| !self.roster.is_suspect(peer);
        let (plan, agenda) = (&self.plan, &self.agenda);
        // Who has it trained, and lacks only the word of a stage that was lost, hears that word when it passes again.
        let had = self.ledger.returned_to(index).filter(|(peer, seat)| {
            usable(*peer) && plan.member(*peer).is_some_and(|member| member.seat == *seat)
        });
        if let Some((peer, _)) = had {
            return Some(peer);
        }
        let again = route::choose_again(plan, agenda, StageId(0), microbatch, &needs, usable);
        again.or_else(|| self.first_stage(microbatch))
    }

    /// Says something to a member, behind every change of the plan that it has not heard of because the disk has not.
    pub(crate) fn say(&mut self, to: PeerId, message: Message, out: &mut Outbox) {
        let waiting = self.storing.iter_mut().rev().find_map(|storing| match storing {
            Storing::Session(messages) => Some(messages),
            Storing::Checkpoint(..) | Storing::Outer(_) | Storing::Reserved(_) => None,
        });
        match waiting {
            Some(messages) => messages.push((to, message)),
            None => out.send(to, message),
        }
    }

    /// Says something to all who take part.
    pub(crate) fn say_to_all(&mut self, message: &Message, out: &mut Outbox) {
        let members = self.plan.members.iter().filter(|member| member.enters < route::NEVER);
        let members: Vec<PeerId> = members.map(|member| member.peer).collect();
        members.into_iter().for_each(|peer| self.say(peer, message.clone(), out));
    }

    /// Leases what may go out now: first what is to be done again, then what comes next.
    pub(crate) fn lease(&mut self, now: Time, out: &mut Outbox) {
        self.lease_redo(now, out);
        let (plan, agenda, roster) = (&self.plan, &self.agenda, &self.roster);
        let reserved = self.reserved.0;
        let to = |microbatch: MicrobatchId| {
            if agenda.step_of(microbatch)? >= reserved {
                return None;
            }
            let usable = |peer| !roster.is_suspect(peer);
            let best = route::choose(plan, agenda, StageId(0), microbatch, usable);
            best.or_else(|| route::choose(plan, agenda, StageId(0), microbatch, |_| true))
        };
        let taken = self.leases.take(now, LEASE_MICROBATCHES_MAX, to);
        let mut by_peer: BTreeMap<PeerId, Vec<MicrobatchId>> = BTreeMap::new();
        for (microbatch, to) in taken {
            by_peer.entry(to).or_default().push(microbatch);
        }
        let (attempt, needs) = (Attempt(0), Needs::All);
        let expires_in = self.leases.expiry(attempt);
        for (peer, microbatches) in by_peer {
            let (first, count) = (microbatches[0], microbatches.len() as u32);
            out.record(Event::Leased { peer, first, count, attempt });
            let lease = Message::Lease { microbatches, attempt, needs: needs.clone(), expires_in };
            self.say(peer, lease, out);
        }
    }

    fn lease_redo(&mut self, now: Time, out: &mut Outbox) {
        if self.signs_until().is_some_and(|until| now < until) {
            return;
        }
        let mut leased: Option<(u64, u64)> = None;
        loop {
            let (leases, roster) = (&self.leases, &self.roster);
            let free = self.ledger.redo_from_free(|at| leases.is_out(at), |stage| roster.is_stalled(stage));
            let Some(first) = free else { break };
            let microbatch = MicrobatchId::train(first);
            let Some(to) = self.first_stage_again(first).filter(|to| leases.room(*to, first) > 0) else {
                break;
            };
            let Some(needs) = self.ledger.take_redo(first) else { break };
            let renewed = self.leases.again(now, microbatch, needs, to);
            self.tell(renewed, out);
            leased = Some(leased.map_or((first, 1), |(at, count)| (at, count + 1)));
        }
        if let Some((first, count)) = leased {
            out.record(Event::Redo { count, first: MicrobatchId::train(first) });
        }
    }

    /// Tells a holder of a lease.
    pub(crate) fn tell(&mut self, renewed: Renewed, out: &mut Outbox) {
        let Renewed { microbatch, to, attempt, needs } = renewed;
        let expires_in = self.leases.expiry(attempt);
        let microbatches = alloc::vec![microbatch];
        self.say(to, Message::Lease { microbatches, attempt, needs, expires_in }, out);
    }

    /// Tells a member again of the leases for which it had no room.
    pub(crate) fn tell_refused(&mut self, peer: PeerId, out: &mut Outbox) {
        if self.refused.is_empty() {
            return;
        }
        let refused =
            self.leases.out_at(peer).into_iter().filter(|lease| self.refused.contains(&lease.microbatch));
        for renewed in refused.collect::<Vec<_>>() {
            self.refused.remove(&renewed.microbatch);
            self.tell(renewed, out);
        }
    }

    /// Leases again what was not settled in time, elsewhere if it can be.
    ///
    /// # Errors
    /// A microbatch was leased as often as may be; says which.
    pub(crate) fn expire(&mut self, now: Time, out: &mut Outbox) -> Result<(), String> {
        if self.leases.deadline().is_none_or(|at| now < at) {
            return Ok(());
        }
        if self.roster.stands_still() {
            self.leases.postpone(now);
            return Ok(());
        }
        let (plan, agenda, roster) = (&self.plan, &self.agenda, &self.roster);
        let elsewhere = |microbatch, holder: PeerId| {
            let usable = |peer| peer != holder && !roster.is_suspect(peer);
            route::choose(plan, agenda, StageId(0), microbatch, usable)
        };
        let expired = self.leases.expire(now, elsewhere);
        for renewed in expired {
            let attempt = Attempt(renewed.attempt.0.saturating_sub(1));
            out.record(Event::LeaseExpired { microbatch: renewed.microbatch, attempt });
            self.tell(renewed, out);
        }
        match self.leases.stuck() {
            Some(microbatch) => {
                Err(format!("{microbatch} was leased {ATTEMPTS_MAX} times and never settled"))
            }
            None => Ok(()),
        }
    }

    /// Adds credit to what a replica's contribution weighs.
    pub(crate) fn weigh(&mut self, place: Place, new: &[Trained]) {
        let Some(arbiter) = &mut self.arbiter else { return };
        for trained in new {
            // Its replica may have been left out of the commit behind that step, for want of this very receipt.
            if self.ledger.is_open(place.stage, trained.index) {
                arbiter.credit_again(trained.step, place);
            } else {
                arbiter.credit(trained.step, place);
            }
        }
    }

    /// Likewise, credit that a replica has from its own checkpoint.
    pub(crate) fn weigh_again(&mut self, place: Place, trained: &[Trained]) {
        let Some(arbiter) = &mut self.arbiter else { return };
        for trained in trained {
            arbiter.credit_again(trained.step, place);
        }
    }

    /// Returns the first step that is not settled.
    pub(crate) fn settled_steps(&self) -> InnerStep {
        let below = self.leases.settled().watermark();
        InnerStep(below.checked_div(self.agenda.microbatches_of_all()).unwrap_or(0))
    }

    /// Closes the pages of steps that are complete.
    pub(crate) fn summarise(&mut self, now: Time, out: &mut Outbox) {
        let plan = &self.plan;
        let owes = |step, place| {
            let works = plan.holder(place).is_some_and(|member| member.works_at(step));
            if works { Owes::Report } else { Owes::Nothing }
        };
        let places: Vec<Place> = plan.members.iter().map(|member| member.place).collect();
        let settled = self.settled_steps();
        for event in self.book.close(now, settled, owes, &places) {
            out.record(event);
        }
    }

    /// Closes the pages of all steps at the end, with what is there: the rest was lost with who had it.
    pub(crate) fn close_book(&mut self, now: Time, out: &mut Outbox) {
        for event in self.book.close(now, InnerStep(u64::MAX), |_, _| Owes::Nothing, &[]) {
            out.record(event);
        }
    }

    /// Returns how far the run is: nothing below is out, or is to be done again.
    pub(crate) fn frontier(&self) -> Frontier {
        let mut frontier = self.leases.frontier();
        if let Some(redo) = self.ledger.redo_from() {
            frontier.train_below = frontier.train_below.min(redo);
        }
        frontier
    }

    /// Tells everyone how far the run is, when a step or an evaluation is behind it.
    pub(crate) fn tell_frontier(&mut self, out: &mut Outbox) {
        let frontier = self.frontier();
        let of_all = self.agenda.microbatches_of_all().max(1);
        let step = |frontier: &Frontier| frontier.train_below / of_all;
        let backward = frontier.train_below < self.told.train_below;
        let evaluations = |frontier: &Frontier| self.agenda.evaluations_below(frontier.held_out_below);
        let news = step(&frontier) > step(&self.told) || evaluations(&frontier) > evaluations(&self.told);
        if backward || news {
            self.told = frontier;
            self.say_to_all(&Message::Frontier(frontier), out);
        }
    }

    /// Returns the training microbatches of the run.
    pub(crate) fn total(&self) -> u64 {
        self.agenda.train_microbatches()
    }

    /// Returns whether all training work was handed out and came back.
    pub(crate) fn all_settled(&self) -> bool {
        self.leases.frontier().train_below >= self.total() && self.ledger.redo_from().is_none()
    }

    /// Looks for work that came back and was not credited, when its receipts had time to come.
    pub(crate) fn find_missing(&mut self, below: u64) {
        let leases = &self.leases;
        self.ledger.find_missing(below, leases.settled(), |index| leases.is_out(index));
    }

    /// Returns when the receipts of the last work had time to come, where the end waits for them.
    pub(crate) fn receipts_until(&self) -> Option<Time> {
        let waits = self.all_settled() && !self.ledger.all_credited(self.total());
        waits.then_some(self.settled_at + LAST_RECEIPTS_WAIT)
    }

    /// Tells everyone to agree for the last time, once all work is credited.
    pub(crate) fn close(&mut self, now: Time, out: &mut Outbox) {
        if self.drain.is_some_and(|border| border < self.agenda.steps()) || self.closing.is_some() {
            return;
        }
        if self.receipts_until().is_some_and(|until| until <= now) {
            self.find_missing(self.total());
        }
        if !self.all_settled() || !self.ledger.all_credited(self.total()) || !self.orphans.is_empty() {
            return;
        }
        let outer = match (self.agenda.exchanges(), &self.arbiter) {
            // All is committed: who takes a place now has nothing left to agree on.
            (Exchanges::PseudoGradients, Some(_)) if self.ledger.all_held(self.total()) => None,
            (Exchanges::PseudoGradients, Some(arbiter)) => {
                let open = arbiter.open();
                if self.agenda.outer_border_or_end(open) != Some(self.agenda.steps()) {
                    return;
                }
                Some(open)
            }
            (Exchanges::PseudoGradients, None) | (Exchanges::Nothing | Exchanges::Gradients, _) => None,
        };
        self.closing = Some(outer);
        self.say_to_all(&Message::Close { outer }, out);
    }
}
