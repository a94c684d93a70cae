//! Who takes part while the run goes on: peers that come, go, fall silent and come again.
//!
//! Owns those decisions, and that nobody acts on a change of the plan before it is durable. Knows nothing of queues or of how
//! a state travels.

use crate::agenda::Exchanges;
use crate::coordinator::{Coordinator, Phase};
use crate::event::Event;
use crate::ids::{InnerStep, OuterStep, PeerId, PlanNumber, SeatId, StageId};
use crate::message::{Join, Message, Outcome, Refusal, Removal, Start, Text, Wait};
use crate::plan::{Member, Place};
use crate::port::Outbox;
use crate::rebalance::vacancy;
use crate::roster::{self, Change, Stands, Waiting};
use crate::route::NEVER;
use crate::running::{Running, Storing};
use crate::spec::RunSpec;
use crate::sync::arbiter::Arbiter;
use crate::time::{Span, Time};
use alloc::format;
use alloc::vec::Vec;

/// How long a newcomer may take at least until it is ready: a device compiles its kernels.
const READY_WAIT: Span = Span::seconds(600);

/// The slowest way by which a newcomer may get its state, in bytes a second: a slower one takes part in no outer step either.
const FETCH_RATE_MIN: u64 = 1_000_000;

/// Weights, the momentum of the outer step and two moments of the inner optimizer.
const STATE_PER_WEIGHT: u64 = 4;

impl Coordinator {
    /// Takes a request for a place while the run goes on.
    pub(super) fn joined_under_way(
        &mut self,
        now: Time,
        from: PeerId,
        join: Join,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let Phase::Running(running) = &mut self.phase else { return Err(Refusal::NotYours { peer: from }) };
        if let Some(arrival) = running.roster.arrival(from).copied()
            && arrival.stands == Stands::Fetches
        {
            // What it was told may have been lost with a connection.
            let (plan, start, frontier) = (running.plan.clone(), arrival.start, running.told);
            out.send(from, Message::Placed { plan, start, frontier });
            return Ok(());
        }
        if running.plan.place_of(from).is_some() {
            self.remove(now, from, Removal::Restarted, out);
        }
        let Phase::Running(running) = &mut self.phase else { return Ok(()) };
        if running.roster.waits(from, join) { Ok(()) } else { Err(Refusal::PlanFull) }
    }

    /// Hears that a member has its stage.
    pub(super) fn ready(
        &mut self,
        now: Time,
        from: PeerId,
        got: PlanNumber,
        holds: Option<OuterStep>,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        match &mut self.phase {
            Phase::Preparing { plan, ready, .. } => {
                if plan.place_of(from).is_none() {
                    return Err(Refusal::NotMember { peer: from });
                }
                if plan.number != got {
                    return Err(Refusal::StalePlan { got, current: plan.number });
                }
                ready.insert(from);
                if ready.len() == plan.members.len() {
                    let plan = plan.clone();
                    self.begin(now, plan, out);
                }
                Ok(())
            }
            Phase::Running(running) => {
                let Some(arrival) = running.roster.arrival(from) else {
                    // Who takes part already says it again when it has connected anew.
                    let member = running.plan.place_of(from).is_some();
                    return if member { Ok(()) } else { Err(Refusal::NotMember { peer: from }) };
                };
                let wanted = match arrival.start {
                    Start::Replicas { outer, .. } => Some(outer),
                    Start::Fresh | Start::Checkpoint { .. } => None,
                };
                // What it fetched before is behind what it was told to fetch since.
                if holds == wanted {
                    arrival.stands = Stands::Ready;
                }
                Ok(())
            }
            Phase::Gathering { .. } | Phase::Reviving { .. } | Phase::Over => {
                Err(Refusal::NotYours { peer: from })
            }
        }
    }

    /// Hears a member, or one that takes itself for one.
    pub(super) fn beaten(&mut self, from: PeerId, out: &mut Outbox) -> Result<(), Refusal> {
        if let Phase::Running(running) = &mut self.phase {
            match running.plan.place_of(from) {
                Some(_) => running.tell_refused(from, out),
                None => out.send(from, Message::Removed { why: Removal::Unknown }),
            }
        }
        Ok(())
    }

    /// Hears that a member would not take what it was sent.
    pub(super) fn refused(&mut self, now: Time, from: PeerId, refusal: &Refusal, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let (Refusal::Leaves { microbatch } | Refusal::Busy { microbatch }) = refusal else { return };
        let microbatch = *microbatch;
        if !running.leases.is_held_by(microbatch, from) {
            return;
        }
        if matches!(refusal, Refusal::Busy { .. }) {
            // Back-pressure: it is told again when it has done something.
            running.refused.insert(microbatch);
            return;
        }
        let usable = |peer: PeerId| peer != from && !running.roster.is_suspect(peer);
        let to = crate::route::choose(&running.plan, &running.agenda, StageId(0), microbatch, usable);
        if let Some(to) = to {
            let renewed = running.leases.move_to(now, microbatch, to);
            running.tell(renewed, out);
        }
    }

    /// Looks who has fallen silent, and who was heard again.
    pub(super) fn watch(&mut self, now: Time, slept: Span, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        if roster::has_slept(slept) {
            running.roster.slept(now);
        }
        let changes = running.roster.changes(now);
        let mut lost = Vec::new();
        for change in &changes {
            let place = |peer: &PeerId| running.plan.place_of(*peer);
            match change {
                Change::Suspected(peer) => {
                    out.record_at(place(peer), |place| Event::Suspected { peer: *peer, place });
                }
                Change::Trusted(peer) => {
                    out.record_at(place(peer), |place| Event::Trusted { peer: *peer, place });
                }
                Change::Lost(peer) => lost.push(*peer),
            }
        }
        if changes.iter().any(|change| !matches!(change, Change::Lost(_))) {
            let suspects = running.roster.suspects();
            for member in &running.plan.members {
                out.send(member.peer, Message::Suspects(suspects.clone()));
            }
        }
        let over = running.roster.leaving().into_iter().filter(|(_, by)| *by <= now);
        let over: Vec<PeerId> = over.map(|(peer, _)| peer).collect();
        let unready = running.roster.unready(now);
        for peer in lost {
            self.remove(now, peer, Removal::Silent, out);
        }
        for peer in over {
            self.remove(now, peer, Removal::Left, out);
        }
        for peer in unready {
            self.remove(now, peer, Removal::Unready, out);
        }
        self.give_up(now, out);
        self.part(now, out);
    }

    /// Takes a member's place away, and has others do what it had not handed in.
    pub(super) fn remove(&mut self, now: Time, peer: PeerId, why: Removal, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(member) = running.plan.member(peer).cloned() else { return };
        let place = member.place;
        if running.agenda.exchanges() == Exchanges::Gradients {
            // What is averaged before each step has nothing behind it to go back to.
            let Place { stage, replica } = place;
            let reason = format!(
                "replica {replica} of stage {stage} is lost ({why}); a run that averages the gradient of each step cannot go \
                 on without it"
            );
            return self.finish(Outcome::Failed { reason }, out);
        }
        running.plan.renumber();
        running.plan.members.retain(|other| other.peer != peer);
        running.roster.forget(peer);
        running.paces.retain(&running.plan);
        running.apart.retain(|_, apart| apart.earlier != peer && apart.later != peer);
        running.keep_moving(now, peer, why);
        // Where replicas agree, what they agree on says whether the end holds all; else it is looked at anew.
        running.closing = running.closing.filter(Option::is_some);
        let empty = !running.plan.replicas(place.stage).any(roster::has_entered);
        let mut lost = 0;
        if let Some(arbiter) = &mut running.arbiter {
            let pending = arbiter.counts_on(peer);
            arbiter.lost(peer);
            arbiter.forget_credit(place);
            if pending && !empty {
                running.orphans.push(member.seat);
            }
        }
        if !running.orphans.contains(&member.seat) {
            lost += running.ledger.lose(member.seat);
        }
        if empty && roster::has_entered(&member) {
            running.orphans.retain(|seat| {
                let elsewhere = !running.ledger.is_of_stage(*seat, place.stage);
                if !elsewhere {
                    lost += running.ledger.lose(*seat);
                }
                elsewhere
            });
            lost += running.ledger.lose_stage(place.stage);
            // What was saved beyond the durable border is of weights that the stage has no more.
            running.saves.values_mut().for_each(|saves| saves.retain(|at, _| at.stage != place.stage));
            if running.roster.stalls(place.stage) {
                let durable = self.durable.step();
                out.record(Event::Stalled { stage: place.stage, durable });
            }
        }
        out.record(Event::Removed { peer, place, why, lost });
        out.send(peer, Message::Removed { why });
        running.keep_ledger();
        running.arrange_leavers(now);
        running.release_leases(now, peer, out);
        let orphaned = if empty { running.orphaned_newcomers(place.stage) } else { Vec::new() };
        self.announce_plan(None, out);
        if let (Phase::Running(running), true) = (&mut self.phase, roster::has_entered(&member)) {
            running.ask_to_sign(now, out);
        }
        self.complete_saves(out);
        for peer in orphaned {
            self.remove(now, peer, Removal::Unready, out);
        }
    }

    /// Makes a later plan durable, then tells it to everyone; a newcomer hears `welcome` in place of it.
    pub(super) fn announce_plan(&mut self, welcome: Option<(PeerId, Message)>, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let plan = running.plan.clone();
        let members = plan.members.iter().map(|m| (m.peer, m.place)).collect();
        out.record(Event::Planned { plan: plan.number, members });
        let disturbed_below = InnerStep(running.leases.highest_step().0 + 1);
        let newcomer = welcome.as_ref().map(|(peer, _)| *peer);
        let others = plan.members.iter().filter(|member| Some(member.peer) != newcomer);
        let mut messages: Vec<(PeerId, Message)> = others
            .map(|member| (member.peer, Message::Roster { plan: plan.clone(), disturbed_below }))
            .collect();
        messages.extend(welcome);
        running.storing.push_back(Storing::Session(messages));
        self.store(out);
    }

    /// Lets newcomers enter who can, and gives places to those who wait.
    pub(super) fn admit(&mut self, now: Time, out: &mut Outbox) {
        self.let_enter(now, out);
        if !matches!(&self.phase, Phase::Running(running) if !running.roster.waiting().is_empty()) {
            return;
        }
        while let Some((peer, place, start)) = self.next_placement() {
            self.give_place(now, peer, place, start, out);
        }
        let checkpoint = self.durable.checkpoint.clone();
        let (stages, replicas) = (self.spec.stages(), self.spec.pipeline.replicas);
        let Phase::Running(running) = &mut self.phase else { return };
        let closing = running.closing.is_some();
        let gradients = running.agenda.exchanges() == Exchanges::Gradients;
        let vacant = roster::vacancies(&running.plan, stages, replicas);
        let why = |waiting: &Waiting| {
            let wish = waiting.candidate.stage;
            let fits = |place: &&Place| wish.is_none_or(|stage| stage == place.stage);
            let needs =
                |place: &Place| roster::shard(checkpoint.as_ref(), place.stage, &waiting.held).is_none();
            match vacant.iter().find(fits) {
                _ if closing => Wait::Closing,
                None if vacant.is_empty() || wish.is_none() => Wait::NoVacancy,
                None => Wait::StageTaken,
                Some(_) if gradients => Wait::NotUnderWay,
                Some(place) if needs(place) => Wait::NoShard,
                Some(_) => Wait::NoVacancy,
            }
        };
        for (peer, ahead, why) in running.roster.news(why) {
            out.record(Event::Waiting { peer, ahead, why });
            out.send(peer, Message::Waiting { ahead, why });
        }
    }

    /// Finds who gets a place next, and what it starts from.
    fn next_placement(&self) -> Option<(PeerId, Place, Start)> {
        let Phase::Running(running) = &self.phase else { return None };
        if running.closing.is_some() && !running.roster.stands_still() {
            return None;
        }
        let (stages, replicas) = (self.spec.stages(), self.spec.pipeline.replicas);
        let roster = &running.roster;
        let vacant = roster::vacancies(&running.plan, stages, replicas);
        let loads = running.loads_at_work(stages);
        let of = |waiting: &Waiting, stages: &dyn Fn(StageId) -> bool| {
            let peer = waiting.candidate.peer;
            let fits = |place: &&Place| {
                stages(place.stage) && self.start_under_way(running, place.stage, waiting).is_some()
            };
            let open: Vec<Place> = vacant.iter().filter(fits).copied().collect();
            let wish = running.wish(peer, waiting.candidate.stage);
            let place = vacancy(&open, &loads, wish)?;
            let start = self.start_under_way(running, place.stage, waiting)?;
            // Who has a place's checkpoint takes that place, with what had not been handed in.
            let own = match start {
                Start::Checkpoint { of, .. } => Some(of).filter(|of| open.contains(of)),
                Start::Fresh | Start::Replicas { .. } => None,
            };
            Some((peer, own.unwrap_or(place), start))
        };
        let as_wished = roster.waiting().iter().find_map(|waiting| {
            let wish = running.wish(waiting.candidate.peer, waiting.candidate.stage);
            of(waiting, &|stage| wish.is_none_or(|wish| wish == stage))
        });
        // A wish yields to a stage that stands still, but for who has not the text that the ends of the pipeline read.
        let reads = |stage: StageId| stage == StageId(0) || stage.0 + 1 == stages;
        let yields = |waiting: &Waiting, stage| {
            roster.is_stalled(stage) && (!reads(stage) || waiting.text == Text::Here)
        };
        let stalled = |waiting: &Waiting| of(waiting, &|stage| yields(waiting, stage));
        as_wished.or_else(|| roster.waiting().iter().find_map(stalled))
    }

    /// Says what a newcomer would start from in a stage, if it can.
    fn start_under_way(&self, running: &Running, stage: StageId, waiting: &Waiting) -> Option<Start> {
        if running.roster.is_stalled(stage) {
            // The ledger knows of a checkpoint that is on its way to the disk already.
            if running.storing.iter().any(|storing| storing.checkpoint().is_some()) {
                return None;
            }
            return match &self.durable.checkpoint {
                None => Some(Start::Fresh),
                Some(_) => roster::shard(self.durable.checkpoint.as_ref(), stage, &waiting.held),
            };
        }
        match running.agenda.exchanges() {
            Exchanges::Nothing | Exchanges::Gradients => None,
            Exchanges::PseudoGradients => match running.replicas_start(stage) {
                Some(start) => Some(start),
                // Before the first commit of a run that began from the seed, all have the seed's weights.
                None if self.durable.step() == InnerStep(0) => Some(Start::Fresh),
                None => None,
            },
        }
    }

    fn give_place(&mut self, now: Time, peer: PeerId, place: Place, start: Start, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(waiting) = running.roster.take(peer) else { return };
        let seat = SeatId(running.roster.next_seat());
        let address = waiting.candidate.address;
        let member = Member { peer, place, address, seat, enters: NEVER, until: None };
        // What was saved of this place is another's, and what that one had beyond the border goes with it.
        running.saves.values_mut().for_each(|saves| saves.retain(|of, _| *of != place));
        running.ledger.seat(&member);
        running.ledger_stored.seat(&member);
        running.roster.watch(peer, now);
        running.roster.arrives(peer, start, now + ready_wait(&self.spec, place.stage));
        running.plan.renumber();
        running.plan.members.push(member);
        running.plan.members.sort_by_key(|member| member.place);
        let (plan, frontier) = (running.plan.clone(), running.told);
        self.announce_plan(Some((peer, Message::Placed { plan, start, frontier })), out);
    }

    /// Lets newcomers enter that have what the stage has, in the open outer step or at its border.
    fn let_enter(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Running(running) = &mut self.phase else { return };
        for peer in running.roster.ready() {
            self.let_one_enter(now, peer, out);
        }
    }

    fn let_one_enter(&mut self, now: Time, peer: PeerId, out: &mut Outbox) {
        let durable = self.durable.step();
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(member) = running.plan.member(peer).cloned() else { return };
        let stage = member.place.stage;
        let Some(arrival) = running.roster.arrival(peer).copied() else { return };
        let next = InnerStep(running.leases.highest_step().0 + 1);
        let (outer, step, enters) = match running.arbiter.as_ref().map(Arbiter::open) {
            Some(open) if running.agenda.exchanges() == Exchanges::PseudoGradients => {
                let Some((step, enters)) = running.entry(stage, open) else { return };
                running.arbiter.iter_mut().for_each(|arbiter| arbiter.seat(&member));
                (Some(open), step, enters)
            }
            Some(_) | None => {
                let step = match arrival.start {
                    Start::Checkpoint { step, .. } => step,
                    Start::Fresh | Start::Replicas { .. } => durable,
                };
                (None, step, step)
            }
        };
        running.plan.renumber();
        if let Some(entry) = running.plan.members.iter_mut().find(|other| other.peer == peer) {
            entry.enters = enters;
        }
        running.roster.entered(peer);
        running.arrange_leavers(now);
        let mut trained = Vec::new();
        if matches!(arrival.start, Start::Checkpoint { of, .. } if of == member.place) {
            trained = running.ledger.reopen(member.seat);
            running.weigh_again(member.place, &trained);
            running.keep_ledger();
        }
        running.has_moved(now, peer);
        out.record(Event::Seated { peer, place: member.place, enters });
        let resumed = running.roster.resumes(stage);
        if resumed {
            out.record(Event::Resumed { stage });
            running.leases.stood_still(now);
        }
        let plan = running.plan.clone();
        let disturbed_below = next;
        let frontier = running.told;
        let enter = Message::Enter { outer, step, trained };
        self.announce_plan(Some((peer, Message::Roster { plan, disturbed_below })), out);
        let Phase::Running(running) = &mut self.phase else { return };
        if let Some(Storing::Session(messages)) = running.storing.back_mut() {
            messages.push((peer, Message::Frontier(frontier)));
            messages.push((peer, enter));
            messages.extend(running.drain.map(|border| (peer, Message::Drain { border })));
            messages.extend(running.closing.map(|outer| (peer, Message::Close { outer })));
        }
        if resumed && stage == StageId(0) {
            running.take_leases_back(now, peer, out);
        }
        running.retell_held_out(now, out);
        self.let_leavers_go(now, out);
    }
}

impl Running {
    /// Returns at which step a newcomer enters the open outer step, and from which on work falls to it; `None` while that outer step
    /// is past entering.
    fn entry(&self, stage: StageId, open: OuterStep) -> Option<(InnerStep, InnerStep)> {
        let border = self.agenda.outer_border_or_end(open)?;
        if !self.arbiter.as_ref()?.may_seat(stage) {
            return None;
        }
        if self.roster.is_stalled(stage) {
            return Some((border, border));
        }
        // What is leased already has its first stage, and only that.
        let next = InnerStep(self.leases.highest_step().0 + 1);
        let first = if stage == StageId(0) { next } else { self.leases.next_to_begin().min(next) };
        // On the way to the border it has the weights of the one before, as the others had them there.
        let on_the_way = self.agenda.outer_of(first) == Some(open);
        Some(if on_the_way { (first, first) } else { (border, border.max(first)) })
    }

    /// Lists the newcomers of a stage that were to fetch its state from replicas that are gone.
    fn orphaned_newcomers(&self, stage: StageId) -> Vec<PeerId> {
        let of_stage = self.plan.replicas(stage).map(|member| member.peer);
        of_stage.filter(|peer| self.roster.fetches_from_replicas(*peer)).collect()
    }

    /// Says what a newcomer takes over from the live replicas of a stage; `None` before anything was committed.
    pub(crate) fn replicas_start(&self, stage: StageId) -> Option<Start> {
        let committed = self.arbiter.as_ref()?.committed()?;
        let (_, digest) = committed.digests.iter().find(|(of, _)| *of == stage)?;
        Some(Start::Replicas { outer: committed.outer, digest: *digest })
    }

    /// Gives what a lost member had been leased to others.
    fn release_leases(&mut self, now: Time, peer: PeerId, out: &mut Outbox) {
        let (plan, agenda, roster) = (&self.plan, &self.agenda, &self.roster);
        let to = |microbatch| {
            let usable = |other| !roster.is_suspect(other);
            let best = crate::route::choose(plan, agenda, StageId(0), microbatch, usable);
            best.or_else(|| crate::route::choose(plan, agenda, StageId(0), microbatch, |_| true))
        };
        let renewed = self.leases.lost(now, peer, to);
        renewed.into_iter().for_each(|renewed| self.tell(renewed, out));
        self.retell_held_out(now, out);
    }

    /// Gives to the first who holds the first stage again what stayed out, with nobody to take it, when its holders were lost.
    fn take_leases_back(&mut self, now: Time, newcomer: PeerId, out: &mut Outbox) {
        // Who has a place again and has not entered it knows nothing of what it was leased before it was lost.
        let holds = |peer: PeerId| {
            let member = self.plan.member(peer).filter(|member| roster::has_entered(member));
            member.is_some_and(|member| member.place.stage == StageId(0))
        };
        let gone = self.leases.holders().into_iter().filter(|peer| *peer == newcomer || !holds(*peer));
        for peer in gone.collect::<Vec<_>>() {
            let renewed = self.leases.lost(now, peer, |_| Some(newcomer));
            renewed.into_iter().for_each(|renewed| self.tell(renewed, out));
        }
    }

    /// Leases again what is being evaluated: nobody keeps it, so that it may have been lost on its way.
    fn retell_held_out(&mut self, now: Time, out: &mut Outbox) {
        let renewed = self.leases.held_out_again(now);
        renewed.into_iter().for_each(|renewed| self.tell(renewed, out));
    }
}

/// Returns how long a newcomer to a stage may hold its place without getting ready.
pub(super) fn ready_wait(spec: &RunSpec, stage: StageId) -> Span {
    let bytes = spec.stage_bytes(stage).saturating_mul(STATE_PER_WEIGHT);
    READY_WAIT.saturating_add(Span::seconds(bytes / FETCH_RATE_MIN))
}
