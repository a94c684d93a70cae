//! The coordinator: gathers peers, makes the plan, leases microbatches, keeps the ledger, and says when a state is durable.
//!
//! Owns the decisions about the run as a whole, and the little state that must survive it. Touches no tensor, and is not
//! in the way of any: activations and gradients go from peer to peer.

mod accounting;
mod agreeing;
mod balance;
mod durability;
mod gathering;
mod holdup;
mod leaving;
mod membership;
mod revival;
mod signing;

use crate::agenda::{Agenda, Exchanges};
use crate::book::Book;
use crate::durable::{Durable, Session, StateError};
use crate::event::Event;
use crate::ids::{Digest, InnerStep, PeerId, PlanNumber, StageId};
use crate::lease::Leases;
use crate::ledger::{Finality, Ledger};
use crate::message::{Join, Message, Outcome, Refusal, Removal, Start, TEXT_BYTES_MAX};
use crate::paces::Paces;
use crate::pipeline::lease_ahead;
use crate::plan::{Candidate, Place, Plan};
use crate::port::{Action, Input, Outbox};
use crate::rebalance::Rebalancer;
use crate::receipt::Seals;
use crate::roster::{self, Roster};
use crate::running::{Apart, Running, Storing};
use crate::spec::RunSpec;
use crate::sync::arbiter::{Arbiter, ArbiterConfig, Weighing};
use crate::time::{Span, Time};
use crate::work::Frontier;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Peers that may wait for a place, for each place of the plan; more are refused, so that strangers cannot fill memory.
const CANDIDATES_PER_PLACE_MAX: usize = 4;

/// How long a replica may leave a probe unanswered before it counts as lost: a busy machine must not look like a dead one.
const REPLICA_SILENCE: Span = Span::seconds(10);

/// What a coordinator starts with.
pub struct CoordinatorConfig {
    /// The run.
    pub spec: RunSpec,
    /// Its id.
    pub me: PeerId,
    /// What receipts are worth.
    pub seals: Seals,
}

/// The peer that gives out work.
pub struct Coordinator {
    spec: RunSpec,
    run: Digest,
    agenda: Agenda,
    me: PeerId,
    seals: Seals,
    durable: Durable,
    phase: Phase,
    /// What peers said that asked for a place before the run began; who gets none waits for one.
    joins: BTreeMap<PeerId, Join>,
    /// The last time that it was told.
    now: Time,
    /// When it wants to be woken, or a little before: a word that is heard meanwhile only puts that off.
    wakes: Option<Time>,
}

enum Phase {
    /// Waits for peers; `next` is the number of the plan to be made.
    Gathering {
        candidates: Vec<Candidate>,
        next: PlanNumber,
    },
    /// Waits for the members of a plan to be ready.
    Preparing {
        plan: Plan,
        ready: BTreeSet<PeerId>,
        /// When those who are not ready lose their places.
        by: Time,
    },
    /// Started again in the middle of a run, and has heard none of its members yet; those who join meanwhile wait.
    Reviving {
        session: Box<Session>,
        candidates: Vec<Candidate>,
        /// When to dial the members: by silence alone they find out seconds later that it was gone.
        call_at: Time,
        /// When those who join begin anew from the last checkpoint, if no member was heard until then.
        anew_at: Option<Time>,
    },
    /// The run goes on.
    Running(Box<Running>),
    Over,
}

impl Coordinator {
    /// Makes a coordinator that waits for peers; `state` is what it stored last, when it starts again.
    ///
    /// # Errors
    /// The state is not one of this run.
    pub fn new(config: CoordinatorConfig, state: Option<&[u8]>) -> Result<Self, StateError> {
        let CoordinatorConfig { spec, me, seals } = config;
        let run = spec.digest();
        let durable = Durable::read(&spec, state)?;
        let agenda = Agenda::new(&spec);
        let phase = match &durable.session {
            Some(session) => Phase::Reviving {
                session: Box::new(session.clone()),
                candidates: Vec::new(),
                call_at: Time(0),
                anew_at: None,
            },
            None => Phase::Gathering { candidates: Vec::new(), next: PlanNumber(1) },
        };
        Ok(Self {
            spec,
            run,
            agenda,
            me,
            seals,
            durable,
            phase,
            joins: BTreeMap::new(),
            now: Time(0),
            wakes: None,
        })
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        let slept = now.since(self.now);
        self.now = now;
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if let Input::Received { from, message: Message::Beat } = &input
            && self.only_beats(now, slept, *from, out)
        {
            return;
        }
        match input {
            Input::Received { from, message } => self.received(now, from, message, out),
            Input::Lost { peer, reason } => self.lost(now, peer, reason, out),
            Input::Rejected { peer, reason } => out.record(Event::Rejected { peer, reason }),
            Input::Faulted { reason } => self.finish(Outcome::Failed { reason }, out),
            Input::Stored { .. } => self.stored(now, out),
            Input::Drain | Input::Leave { .. } => self.drain(out),
            Input::Woke | Input::Connected { .. } => {}
            Input::Forwarded { .. }
            | Input::Backwarded { .. }
            | Input::Stepped { .. }
            | Input::Sync(_)
            | Input::Exported { .. }
            | Input::Unfit { .. }
            | Input::Loaded { .. } => {
                panic!("the driver computed for a coordinator, which never asks for it")
            }
        }
        self.call_members(now, out);
        self.look_who_is_ready(now, out);
        self.watch(now, slept, out);
        self.agree(now, out);
        self.admit(now, out);
        self.go_on(now, out);
        self.conclude(now, out);
        self.wakes = self.next_due();
    }

    /// Hears that a member is there, where that is all that it says: most of what a large run's coordinator hears. Returns whether it
    /// was.
    fn only_beats(&mut self, now: Time, slept: Span, from: PeerId, out: &mut Outbox) -> bool {
        let Phase::Running(running) = &mut self.phase else { return false };
        let calm = running.plan.place_of(from).is_some() && running.roster.is_complete();
        if !calm || roster::has_slept(slept) || self.wakes.is_some_and(|at| at <= now) {
            return false;
        }
        running.roster.heard(now, from);
        running.tell_refused(from, out);
        true
    }

    /// Returns when to be woken: when a lease expires, an exchange takes too long, or a silence says something.
    pub fn deadline(&self) -> Option<Time> {
        self.wakes
    }

    fn next_due(&self) -> Option<Time> {
        let now = self.now;
        match &self.phase {
            Phase::Running(running) => {
                let agreement = running.arbiter.as_ref().and_then(Arbiter::deadline);
                let times = running.leases.deadline().into_iter().chain(agreement);
                let receipts = running.receipts_until().into_iter().chain(running.signs_until());
                times.chain(running.roster.deadline(now)).chain(receipts.filter(|at| *at > now)).min()
            }
            Phase::Reviving { call_at, .. } => Some(*call_at),
            Phase::Preparing { by, .. } => Some(*by),
            Phase::Gathering { .. } | Phase::Over => None,
        }
    }

    fn received(&mut self, now: Time, from: PeerId, message: Message, out: &mut Outbox) {
        if let Phase::Running(running) = &mut self.phase {
            running.hears(now, from, &message);
        }
        let accepted = match message {
            Message::Join(join) => self.joined(now, from, join, out),
            Message::Ready { plan, holds } => self.ready(now, from, plan, holds, out),
            Message::Present { standing, .. } => self.present(now, from, standing, out),
            Message::Beat => self.beaten(from, out),
            Message::Signed { plan } => self.signed(from, plan),
            Message::Leaving { notice } => self.leaving(now, from, notice, out),
            Message::Loss { microbatch, loss, .. } => self.loss(now, from, microbatch, loss, out),
            Message::Settled { microbatch, seat, trained, .. } => {
                self.settled(now, from, microbatch, (seat, trained), out)
            }
            Message::Receipts(receipts) => self.receipts(from, &receipts),
            Message::Stepped(report) => self.stepped(from, report),
            Message::Checkpointed { step, digest, took } => {
                self.checkpointed(from, step, (digest, took), out)
            }
            Message::Sync(say) => self.replica_said(now, from, say, out),
            Message::PeerLost { peer, reason } => self.neighbour_lost(now, from, peer, &reason),
            Message::Failed { reason } => self.member_failed(now, from, reason, out),
            Message::Refused(refusal) => {
                self.refused(now, from, &refusal, out);
                out.record(Event::RefusedBy { peer: from, refusal });
                Ok(())
            }
            Message::Waiting { .. }
            | Message::Placed { .. }
            | Message::Roster { .. }
            | Message::Enter { .. }
            | Message::Suspects(_)
            | Message::Frontier(_)
            | Message::Close { .. }
            | Message::Sign { .. }
            | Message::Removed { .. }
            | Message::State(_)
            | Message::Diverted { .. }
            | Message::Lease { .. }
            | Message::Activation(_)
            | Message::Gradient(_)
            | Message::Drain { .. }
            | Message::Finish { .. } => Err(Refusal::NotYours { peer: from }),
        };
        if let Err(refusal) = accepted {
            out.refuse(from, refusal);
        }
    }

    /// Begins the run, or goes on from the last checkpoint, when all members are ready.
    fn begin(&mut self, now: Time, plan: Plan, out: &mut Outbox) {
        let start = self.durable.step();
        out.record(Event::Started { step: start });
        let first = self.agenda.training_of(start).start;
        let mut ledger = match self.durable.session.take() {
            Some(session) => {
                let mut ledger = session.ledger;
                ledger.go_back(first);
                ledger
            }
            None => Ledger::new(self.run, self.finality(), self.spec.stages(), (0, first), &[]),
        };
        let mut reopened = Vec::new();
        for member in &plan.members {
            ledger.seat(member);
            if matches!(self.start_of(member), Start::Checkpoint { of, .. } if of == member.place) {
                reopened.push((member.place, ledger.reopen(member.seat)));
            }
        }
        let seats = plan.members.iter().map(|member| member.seat.0).max().unwrap_or(0);
        let mut roster = Roster::new(&plan, seats, now);
        for (peer, join) in core::mem::take(&mut self.joins) {
            if plan.place_of(peer).is_none() {
                roster.waits(peer, join);
            }
        }
        let mut running = self.running(now, plan, roster, ledger, start);
        reopened.iter().for_each(|(place, trained)| running.weigh_again(*place, trained));
        self.phase = Phase::Running(Box::new(running));
        self.reserve(out);
    }

    fn finality(&self) -> Finality {
        match self.agenda.exchanges() {
            Exchanges::PseudoGradients => Finality::Commits,
            // Gradients are agreed on before anyone can receipt them.
            Exchanges::Gradients | Exchanges::Nothing => Finality::AtOnce,
        }
    }

    fn running(
        &self,
        now: Time,
        plan: Plan,
        roster: Roster,
        mut ledger: Ledger,
        start: InnerStep,
    ) -> Running {
        ledger.takes(self.seals);
        let agenda = self.agenda;
        let arbiter = (agenda.exchanges() != Exchanges::Nothing).then(|| {
            let config = ArbiterConfig {
                agenda,
                step_tokens: self.spec.step_tokens(),
                // A gradient is exchanged before anyone has receipted it, and is of as many microbatches everywhere.
                weighing: match agenda.exchanges() {
                    Exchanges::Gradients | Exchanges::Nothing => Weighing::Equal,
                    Exchanges::PseudoGradients => Weighing::Receipts,
                },
                silence_min: REPLICA_SILENCE,
            };
            Arbiter::new(config, &plan, start, self.durable.agreed.clone())
        });
        Running {
            agenda,
            leases: Leases::new(agenda, start, lease_ahead(&self.spec)),
            ledger_stored: ledger.clone(),
            ledger,
            book: Book::new(agenda, self.spec.step_tokens(), start, now),
            plan,
            roster,
            planned_from: start,
            reserved: (start, start),
            settled_at: now,
            saves: BTreeMap::new(),
            storing: VecDeque::new(),
            arbiter,
            orphans: Vec::new(),
            drain: None,
            closing: None,
            called_off: false,
            receipted_below: 0,
            unsigned: None,
            refused: BTreeSet::new(),
            apart: BTreeMap::new(),
            told: Frontier::default(),
            paces: Paces::default(),
            turns_seen: BTreeMap::new(),
            rebalancer: Rebalancer::new(self.spec.pipeline.replicas),
            moving: None,
            committed_at: None,
            held_up_since: None,
            worked_at: now,
        }
    }

    /// Gives the running state if `from` is a member that stands where such a message comes from.
    fn running_for(
        &mut self,
        from: PeerId,
        stage: Option<StageId>,
    ) -> Result<(&mut Running, Place), Refusal> {
        let Phase::Running(running) = &mut self.phase else { return Err(Refusal::NotYours { peer: from }) };
        let member = running.plan.member(from).ok_or(Refusal::NotMember { peer: from })?;
        let place = member.place;
        // Who is still on the way has no work of which it could tell.
        if !roster::has_entered(member) {
            return Err(Refusal::NotYours { peer: from });
        }
        if stage.is_some_and(|stage| stage != place.stage) {
            return Err(Refusal::NotYours { peer: from });
        }
        Ok((running, place))
    }

    fn member_failed(
        &mut self,
        now: Time,
        from: PeerId,
        reason: String,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        bound_length("reason", reason.len())?;
        let place =
            self.plan().and_then(|plan| plan.place_of(from)).ok_or(Refusal::NotMember { peer: from })?;
        match self.phase {
            Phase::Running(_) => self.remove(now, from, Removal::Failed, out),
            Phase::Gathering { .. } | Phase::Preparing { .. } | Phase::Reviving { .. } | Phase::Over => {
                let reason = format!("peer {from} of stage {} failed: {reason}", place.stage);
                self.finish(Outcome::Failed { reason }, out);
            }
        }
        Ok(())
    }

    fn neighbour_lost(&mut self, now: Time, from: PeerId, peer: PeerId, reason: &str) -> Result<(), Refusal> {
        bound_length("reason", reason.len())?;
        let Some(plan) = self.plan() else { return Err(Refusal::NotYours { peer: from }) };
        let (Some(here), Some(there)) = (plan.place_of(from), plan.place_of(peer)) else {
            return Err(Refusal::NotMember { peer: from });
        };
        // Between stages, who reports it goes around it; whether it is gone is said by its own silence. Replicas need each other.
        if let Phase::Running(running) = &mut self.phase
            && here.stage == there.stage
        {
            let [earlier, later] = if here.replica > there.replica { [peer, from] } else { [from, peer] };
            running.apart.entry(here.stage).or_insert(Apart { since: now, earlier, later });
        }
        Ok(())
    }

    fn lost(&mut self, now: Time, peer: PeerId, reason: String, out: &mut Outbox) {
        let place = self.plan().and_then(|plan| plan.place_of(peer));
        if let Phase::Reviving { candidates, .. } = &self.phase
            && candidates.iter().all(|candidate| candidate.peer != peer)
        {
            // A member of the stored session that is not there (yet).
            return;
        }
        out.record(Event::PeerLost { peer, stage: place.map(|place| place.stage), reason });
        self.joins.remove(&peer);
        match &mut self.phase {
            Phase::Gathering { candidates, .. } => candidates.retain(|c| c.peer != peer),
            Phase::Reviving { candidates, .. } => candidates.retain(|c| c.peer != peer),
            // Nothing is lost yet: the others wait for one who takes its place.
            Phase::Preparing { .. } if place.is_some() => {
                self.gather_again(&[peer]);
                self.plan_anew(now, out);
            }
            Phase::Preparing { .. } | Phase::Over => {}
            Phase::Running(running) => running.roster.disconnected(now, peer),
        }
    }

    fn plan(&self) -> Option<&Plan> {
        match &self.phase {
            Phase::Preparing { plan, .. } => Some(plan),
            Phase::Running(running) => Some(&running.plan),
            Phase::Gathering { .. } | Phase::Reviving { .. } | Phase::Over => None,
        }
    }

    fn drain(&mut self, out: &mut Outbox) {
        let step = self.durable.step();
        let Phase::Running(running) = &mut self.phase else {
            return self.finish(Outcome::Stopped { step }, out);
        };
        if running.drain.is_some() {
            return;
        }
        let border = running.leases.stop();
        if border == self.agenda.steps() {
            return;
        }
        running.drain = Some(border);
        out.record(Event::Draining { border });
        running.say_to_all(&Message::Drain { border }, out);
    }

    /// Hands work out, and tells how far the run is.
    fn go_on(&mut self, now: Time, out: &mut Outbox) {
        self.reserve(out);
        let Phase::Running(running) = &mut self.phase else { return };
        if let Err(reason) = running.expire(now, out) {
            return self.finish(Outcome::Failed { reason }, out);
        }
        running.lease(now, out);
        running.summarise(now, out);
        running.tell_frontier(out);
        running.close(now, out);
    }

    /// Ends the run when nothing is out and the last border it was to reach is durable.
    fn conclude(&mut self, now: Time, out: &mut Outbox) {
        let durable = self.durable.step();
        let Phase::Running(running) = &mut self.phase else { return };
        let reserving = running.storing.iter().all(|storing| matches!(storing, Storing::Reserved(_)));
        // Who is not there now would not hear that the run is over, and look for us in vain.
        if !running.leases.is_empty() || !reserving || !running.roster.is_complete() {
            return;
        }
        let planned = self.agenda.training_of(durable).start;
        let outcome = if durable == self.agenda.steps() && running.ledger.all_held(running.total()) {
            Outcome::Done
        } else if running.drain == Some(durable) && durable < self.agenda.steps() {
            Outcome::Stopped { step: durable }
        } else {
            return;
        };
        running.close_book(now, out);
        out.record(Event::Ledger {
            planned,
            credited: running.ledger.credited(),
            duplicates: running.ledger.duplicates(),
            redone: running.ledger.redone(),
            accounts: running.ledger.accounts().list(),
        });
        self.finish(outcome, out);
    }

    fn finish(&mut self, outcome: Outcome, out: &mut Outbox) {
        let mut peers: Vec<PeerId> = match &self.phase {
            Phase::Gathering { candidates, .. } | Phase::Reviving { candidates, .. } => {
                candidates.iter().map(|c| c.peer).collect()
            }
            Phase::Preparing { plan, .. } => plan.members.iter().map(|m| m.peer).collect(),
            Phase::Running(running) => {
                let waiting = running.roster.waiting().iter().map(|waiting| waiting.candidate.peer);
                running.plan.members.iter().map(|m| m.peer).chain(waiting).collect()
            }
            Phase::Over => return,
        };
        let spares = self.joins.keys().filter(|peer| !peers.contains(peer)).copied();
        let spares: Vec<PeerId> = spares.collect();
        peers.extend(spares);
        for peer in peers {
            out.send(peer, Message::Finish { outcome: outcome.clone() });
        }
        self.phase = Phase::Over;
        out.record(Event::Finished { outcome: outcome.clone() });
        out.push(Action::Finish(outcome));
    }
}

fn bound_length(field: &str, got: usize) -> Result<(), Refusal> {
    if got <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Refusal::FieldLength { field: field.to_string(), got: got as u64, max: TEXT_BYTES_MAX as u64 })
}
