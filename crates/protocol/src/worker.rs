//! The worker: holds one stage, and turns messages into computations and computations into messages.
//!
//! Owns a peer's way from joining to leaving, and back in when it was lost. Knows nothing of who else works, beyond the plan,
//! and takes no decision about the run as a whole.

mod handover;
mod identity;
pub mod links;
mod placing;
mod received;
mod seat;
mod tensors;
mod words;

use crate::agenda::Agenda;
use crate::event::{Event, TaskKind};
use crate::ids::{OuterStep, PeerId};
use crate::message::{HELD_MAX, Held, Join, Message, Outcome, Refusal, Removal, Start, TEXT_BYTES_MAX, Wait};
use crate::pipeline::checkpoints_kept;
use crate::plan::Plan;
use crate::port::{Action, Input, Outbox, StoredItem, Took};
use crate::receipt::Seals;
use crate::spec::RunSpec;
use crate::sync::blob::Blob;
use crate::sync::member::Decision;
use crate::sync::task::SyncDone;
use crate::time::{Span, Time};
use crate::work::Frontier;
use crate::worker::identity::Identity;
use crate::worker::links::Links;
use crate::worker::seat::{Seat, Standing};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use bytes::Bytes;
use ed25519_dalek::SigningKey;

/// How often a member says that it is there, if it has said nothing else.
pub const BEAT: Span = Span::millis(500);

/// How long a member goes on without its coordinator: an operator may have to start it again.
const COORDINATOR_WAIT_MAX: Span = Span::seconds(1_800);

/// The wait before a peer that was lost asks for a place again, so that two that exclude each other do not spin.
const JOIN_AGAIN_WAIT: Span = Span::seconds(1);

/// How often a peer that waits for a place asks again: its request may have been lost with a connection.
const ASK_AGAIN_WAIT: Span = Span::seconds(10);

/// What a worker starts with.
pub struct WorkerConfig {
    /// The run.
    pub spec: RunSpec,
    /// Its key; the public half is its id.
    pub key: SigningKey,
    /// How it seals receipts.
    pub seals: Seals,
    /// Who gives out work.
    pub coordinator: PeerId,
    /// Where that peer can be dialled; opaque to the core. The driver has dialled it once.
    pub coordinator_address: Bytes,
    /// How long to look for a coordinator that was never reached before giving up: long where somebody else starts it.
    pub coordinator_wait: Span,
    /// What it says when it asks for a place.
    pub join: Join,
}

/// A peer that holds a stage.
pub struct Worker {
    who: Identity,
    join: Join,
    links: Links,
    phase: Phase,
    coordinator_wait: Span,
    /// When it spoke to the coordinator last.
    spoke: Time,
    /// When it goes at the latest, once it was asked to leave.
    leave_by: Option<Time>,
    /// The last time that it was told.
    now: Time,
}

enum Phase {
    /// Waits for the connection to the coordinator, then for a place; asks again at that time.
    Joining { ask_at: Option<Time>, first: First },
    /// Has a place.
    Seated(Box<Seat>),
    /// Has left.
    Over,
}

/// Whether a peer that joins was ever heard by the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// Not yet: a coordinator that cannot be reached is a mistake in the ticket.
    Yes,
    /// It was.
    No,
}

impl Worker {
    /// Makes a worker that asks its coordinator for a place once it is connected.
    pub fn new(config: WorkerConfig) -> Self {
        let WorkerConfig { spec, key, seals, coordinator, coordinator_address, coordinator_wait, join } =
            config;
        let me = PeerId(key.verifying_key().to_bytes());
        let (run, agenda) = (spec.digest(), Agenda::new(&spec));
        let mut links = Links::default();
        // The driver dials first; from then on it is for the core to want the connection back.
        links.want(coordinator, Some(coordinator_address), &mut Outbox::default());
        Self {
            who: Identity { spec, run, agenda, key, seals, me, coordinator },
            join,
            links,
            phase: Phase::Joining { ask_at: None, first: First::Yes },
            coordinator_wait,
            spoke: Time(0),
            leave_by: None,
            now: Time(0),
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Outbox) {
        self.now = now;
        if matches!(self.phase, Phase::Over) {
            return;
        }
        match input {
            Input::Received { from, message } => self.received(now, from, message, out),
            Input::Connected { peer } => self.connected(now, peer, out),
            Input::Lost { peer, reason } => self.lost(now, peer, reason, out),
            Input::Sync(done) => self.sync_done(now, done, out),
            Input::Rejected { peer, reason } => out.record(Event::Rejected { peer, reason }),
            Input::Faulted { reason } => self.fail(reason, out),
            Input::Loaded { took, .. } => self.loaded(now, took, out),
            Input::Unfit { reason } => self.unfit(now, reason, out),
            Input::Exported { outer, agreed, own, took } => self.exported(outer, agreed, own, took, out),
            Input::Forwarded { microbatch, output, took } => {
                self.with_seat(|who, seat| seat.forwarded(now, who, microbatch, output, took, out));
            }
            Input::Backwarded { microbatch, gradient, took } => {
                self.with_seat(|who, seat| seat.backwarded(who, microbatch, gradient, took, out));
            }
            Input::Stepped { gradient_norm, learning_rate, took, wire_bytes_total } => {
                let report = (gradient_norm, learning_rate, wire_bytes_total);
                self.with_seat(|who, seat| seat.stepped(now, who, report, took, out));
            }
            Input::Stored { item, took } => self.stored(item, took, out),
            Input::Drain => self.leave(now, Span(0), out),
            Input::Leave { notice } => self.leave(now, notice, out),
            Input::Woke => {}
        }
        self.woke(now, out);
        self.follow_decision(now, out);
        self.with_seat(|who, seat| seat.advance(now, who, out));
    }

    fn with_seat(&mut self, work: impl FnOnce(&Identity, &mut Seat)) {
        if let Phase::Seated(seat) = &mut self.phase {
            work(&self.who, seat);
        }
    }

    /// Returns when to be woken: to say again what was not answered, to be heard of, to dial again.
    pub fn deadline(&self) -> Option<Time> {
        let now = self.now;
        let phase = match &self.phase {
            Phase::Joining { ask_at, .. } => *ask_at,
            Phase::Seated(seat) => seat.deadline(now).into_iter().chain([self.spoke + BEAT]).min(),
            Phase::Over => return None,
        };
        phase.into_iter().chain(self.links.deadline(now)).chain(self.leave_by).min()
    }

    fn woke(&mut self, now: Time, out: &mut Outbox) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if self.leave_by.is_some_and(|by| by <= now) {
            out.send(self.who.coordinator, Message::Leaving { notice: Span(0) });
            return self.finish(Outcome::Left, out);
        }
        let gone = self.links.down_since(self.who.coordinator).map(|since| now.since(since));
        if gone.is_some_and(|gone| gone >= COORDINATOR_WAIT_MAX) {
            let reason = format!("coordinator {} does not come back", self.who.coordinator);
            return self.finish(Outcome::Failed { reason }, out);
        }
        self.links.woke(now, out);
        let beat = now.since(self.spoke) >= BEAT;
        if let Phase::Joining { ask_at, .. } = &mut self.phase
            && ask_at.is_some_and(|at| at <= now)
        {
            *ask_at = Some(now + ASK_AGAIN_WAIT);
            out.send(self.who.coordinator, Message::Join(self.join.clone()));
        }
        let links = &self.links;
        if let Phase::Seated(seat) = &mut self.phase {
            seat.woke(now, &self.who, links, out);
            if beat {
                self.spoke = now;
                seat.beat(&self.who, out);
            }
        }
    }

    fn sync_done(&mut self, now: Time, done: SyncDone, out: &mut Outbox) {
        self.with_seat(|_, seat| seat.sync_done(now, done, out));
        self.say_ready(out);
    }

    /// Goes and comes again when the others have gone on; commit and restore reach the pipeline when the driver has carried
    /// them out.
    fn follow_decision(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Seated(seat) = &mut self.phase else { return };
        let Some((_, decision)) = seat.take_decision() else { return };
        match decision {
            Decision::Committed | Decision::Restored => {}
            Decision::Excluded => self.removed(now, Removal::Excluded, out),
        }
    }

    fn connected(&mut self, now: Time, peer: PeerId, out: &mut Outbox) {
        self.links.connected(peer);
        let coordinator = peer == self.who.coordinator;
        match &mut self.phase {
            Phase::Joining { ask_at, first } if coordinator => {
                *first = First::No;
                *ask_at = Some(now + ASK_AGAIN_WAIT);
                out.send(peer, Message::Join(self.join.clone()));
            }
            Phase::Seated(seat) => {
                if coordinator {
                    seat.repeat(&self.who, out);
                    if let Some(by) = self.leave_by {
                        out.send(peer, Message::Leaving { notice: by.since(now) });
                    }
                }
                seat.connected(peer);
            }
            Phase::Joining { .. } | Phase::Over => {}
        }
        self.say_ready(out);
    }

    fn lost(&mut self, now: Time, peer: PeerId, reason: String, out: &mut Outbox) {
        self.links.lost(now, peer);
        let stage = match &mut self.phase {
            Phase::Seated(seat) => seat.lost(now, peer, out),
            Phase::Joining { .. } | Phase::Over => None,
        };
        out.record(Event::PeerLost { peer, stage, reason: reason.clone() });
        let first = matches!(self.phase, Phase::Joining { first: First::Yes, .. });
        let down = self.links.down_since(self.who.coordinator).map(|since| now.since(since));
        if first && down.is_some_and(|down| down >= self.coordinator_wait) {
            let coordinator = self.who.coordinator;
            let reason = format!("coordinator {coordinator} is lost: {reason}");
            self.finish(Outcome::Failed { reason }, out);
        } else if stage.is_some() {
            out.send(self.who.coordinator, Message::PeerLost { peer, reason: bounded(reason) });
        }
        self.say_ready(out);
    }

    fn received(&mut self, now: Time, from: PeerId, message: Message, out: &mut Outbox) {
        let from_coordinator = from == self.who.coordinator;
        match message {
            Message::Waiting { ahead, why } if from_coordinator => self.waits(ahead, why, out),
            Message::Placed { plan, start, frontier } if from_coordinator => {
                self.placed(now, plan, start, frontier, out);
            }
            Message::Finish { outcome } if from_coordinator => self.finish(outcome, out),
            Message::Removed { why } if from_coordinator => self.removed(now, why, out),
            Message::Roster { .. }
            | Message::Enter { .. }
            | Message::Suspects(_)
            | Message::Frontier(_)
            | Message::Close { .. }
            | Message::Sign { .. }
            | Message::Lease { .. }
            | Message::Drain { .. }
                if from_coordinator =>
            {
                let links = &mut self.links;
                match &mut self.phase {
                    Phase::Seated(seat) => seat.ordered(now, &self.who, links, message, out),
                    Phase::Joining { .. } | Phase::Over => {}
                }
                self.say_ready(out);
            }
            Message::Activation(_)
            | Message::Gradient(_)
            | Message::Diverted { .. }
            | Message::Sync(_)
            | Message::State(_) => self.hear_member(now, from, message, out),
            Message::Refused(refusal) => self.refused(now, from, refusal, out),
            Message::Waiting { .. }
            | Message::Placed { .. }
            | Message::Finish { .. }
            | Message::Removed { .. }
            | Message::Roster { .. }
            | Message::Enter { .. }
            | Message::Suspects(_)
            | Message::Frontier(_)
            | Message::Close { .. }
            | Message::Sign { .. }
            | Message::Signed { .. }
            | Message::Lease { .. }
            | Message::Drain { .. }
            | Message::Join(_)
            | Message::Ready { .. }
            | Message::Beat
            | Message::Present { .. }
            | Message::Leaving { .. }
            | Message::Loss { .. }
            | Message::Settled { .. }
            | Message::Receipts(_)
            | Message::Stepped(_)
            | Message::Checkpointed { .. }
            | Message::PeerLost { .. }
            | Message::Failed { .. } => out.refuse(from, Refusal::NotYours { peer: from }),
        }
    }

    fn hear_member(&mut self, now: Time, from: PeerId, message: Message, out: &mut Outbox) {
        let Phase::Seated(seat) = &mut self.phase else {
            return out.refuse(from, Refusal::NotYours { peer: from });
        };
        if let Err(refusal) = seat.heard(now, &self.who, from, message, out) {
            out.refuse(from, refusal);
        }
        self.say_ready(out);
    }

    /// A refusal from the coordinator before we are seated ends the attempt to join; one of work says that it has to go
    /// elsewhere; any other is only recorded.
    fn refused(&mut self, now: Time, from: PeerId, refusal: Refusal, out: &mut Outbox) {
        out.record(Event::RefusedBy { peer: from, refusal: refusal.clone() });
        match &mut self.phase {
            // What was said before the place was lost is refused too; only a request to join may end here.
            Phase::Joining { .. } if from == self.who.coordinator && ends_joining(&refusal) => {
                let reason = format!("coordinator {from} refused: {refusal}");
                self.finish(Outcome::Failed { reason }, out);
            }
            Phase::Seated(seat) => seat.refused(now, from, &refusal, out),
            Phase::Joining { .. } | Phase::Over => {}
        }
    }

    fn waits(&mut self, ahead: u32, why: Wait, out: &mut Outbox) {
        out.record(Event::Waiting { peer: self.who.me, ahead, why });
    }

    fn placed(&mut self, now: Time, plan: Plan, start: Start, frontier: Frontier, out: &mut Outbox) {
        let coordinator = self.who.coordinator;
        let Some(member) = plan.member(self.who.me).cloned() else {
            return out.refuse(coordinator, Refusal::NotMember { peer: self.who.me });
        };
        if let Phase::Seated(seat) = &self.phase
            && !seat.may_be_placed_again(&member, &plan)
        {
            let current = seat.plan_number();
            return out.refuse(coordinator, Refusal::StalePlan { got: plan.number, current });
        }
        if let Err(refusal) = placing::check_plan(&self.who, &plan, member.place, start) {
            return out.refuse(coordinator, refusal);
        }
        if let Phase::Seated(seat) = &mut self.phase
            && seat.is_seat(member.seat)
        {
            // The stage has committed meanwhile, and what was fetched is behind it; or this was said twice.
            if !seat.starts_from(start) {
                seat.start_again(now, start, out);
            }
            return self.say_ready(out);
        }
        let seat = Seat::new(now, &self.who, member, plan, start, frontier, out);
        seat.link(&self.who, &mut self.links, out);
        self.phase = Phase::Seated(Box::new(seat));
        self.say_ready(out);
    }

    fn loaded(&mut self, now: Time, took: Took, out: &mut Outbox) {
        out.record(Event::Computed { task: TaskKind::Load, microbatch: None, took: took.total });
        if let Phase::Seated(seat) = &mut self.phase {
            seat.loaded(now, out);
        }
        self.say_ready(out);
    }

    fn unfit(&mut self, now: Time, reason: String, out: &mut Outbox) {
        self.with_seat(|_, seat| seat.fetch_again(now, reason, out));
    }

    fn exported(&mut self, outer: OuterStep, agreed: Blob, own: Blob, took: Took, out: &mut Outbox) {
        out.record(Event::Computed { task: TaskKind::Export, microbatch: None, took: took.total });
        self.with_seat(|_, seat| seat.exported(outer, agreed, own, took, out));
    }

    fn say_ready(&mut self, out: &mut Outbox) {
        let settled = self.links.is_settled();
        let coordinator = self.who.coordinator;
        let Phase::Seated(seat) = &mut self.phase else { return };
        if settled && seat.standing() == Standing::Loaded {
            let (plan, holds) = seat.say_ready();
            out.send(coordinator, Message::Ready { plan, holds });
        }
    }

    fn stored(&mut self, item: StoredItem, took: Took, out: &mut Outbox) {
        let StoredItem::Checkpoint { step, digest } = item else {
            panic!("the driver stored {item:?}, which a worker never asks for");
        };
        if let Phase::Seated(seat) = &self.phase {
            let place = seat.place();
            let kept = checkpoints_kept(&self.who.spec);
            note_held(&mut self.join, Held { place, step, digest }, kept);
        }
        self.with_seat(|who, seat| seat.saved(who, step, digest, took, out));
    }

    /// Lets go of the place, which others know already, and asks for one again.
    fn removed(&mut self, now: Time, why: Removal, out: &mut Outbox) {
        if let Phase::Seated(seat) = &self.phase {
            let (place, lost) = (seat.place(), 0);
            out.record(Event::Removed { peer: self.who.me, place, why, lost });
        }
        let coordinator = self.who.coordinator;
        match why {
            Removal::Left => return self.finish(Outcome::Left, out),
            Removal::Failed => {
                let reason = String::from("the coordinator has taken the place away after a failure");
                return self.finish(Outcome::Failed { reason }, out);
            }
            Removal::Silent
            | Removal::Disconnected
            | Removal::Restarted
            | Removal::Excluded
            | Removal::Moved
            | Removal::Unready
            | Removal::Unknown => {}
        }
        if self.leave_by.is_some() {
            return self.finish(Outcome::Left, out);
        }
        self.links.retain(|peer| peer == coordinator);
        self.phase = Phase::Joining { ask_at: Some(now + JOIN_AGAIN_WAIT), first: First::No };
    }

    /// Leaves within the notice: at once where there is nothing to hand in, or when it is asked twice.
    fn leave(&mut self, now: Time, notice: Span, out: &mut Outbox) {
        let place = match &self.phase {
            Phase::Seated(seat) if notice > Span(0) && self.leave_by.is_none() => seat.place(),
            Phase::Seated(_) | Phase::Joining { .. } | Phase::Over => {
                out.send(self.who.coordinator, Message::Leaving { notice: Span(0) });
                return self.finish(Outcome::Left, out);
            }
        };
        self.leave_by = Some(now + notice);
        out.record(Event::Leaving { peer: self.who.me, place, notice });
        out.send(self.who.coordinator, Message::Leaving { notice });
    }

    fn fail(&mut self, reason: String, out: &mut Outbox) {
        let reason = bounded(reason);
        out.send(self.who.coordinator, Message::Failed { reason: reason.clone() });
        self.finish(Outcome::Failed { reason }, out);
    }

    fn finish(&mut self, outcome: Outcome, out: &mut Outbox) {
        self.phase = Phase::Over;
        out.record(Event::Finished { outcome: outcome.clone() });
        out.push(Action::Finish(outcome));
    }

    /// Returns the bytes of boundary inputs and outputs kept for backwards to come.
    pub fn kept_bytes(&self) -> usize {
        match &self.phase {
            Phase::Seated(seat) => seat.kept_bytes(),
            Phase::Joining { .. } | Phase::Over => 0,
        }
    }

    /// Returns how many training microbatches wait here for their backward; `None` before it takes part.
    pub fn in_flight(&self) -> Option<usize> {
        match &self.phase {
            Phase::Seated(seat) => seat.in_flight(),
            Phase::Joining { .. } | Phase::Over => None,
        }
    }
}

/// Notes a checkpoint that is on the disk now, where the driver keeps so many of a place.
fn note_held(join: &mut Join, new: Held, kept: usize) {
    join.held.retain(|held| held.place != new.place || held.step != new.step);
    join.held.push(new);
    // A disk lists them in whatever order; the latest are the ones that are kept.
    join.held.sort_by_key(|held| core::cmp::Reverse(held.step));
    let mut of_place = 0;
    join.held.retain(|held| {
        of_place += usize::from(held.place == new.place);
        held.place != new.place || of_place <= kept
    });
    join.held.truncate(HELD_MAX);
}

/// Returns whether a refusal is of a request to join, and not of what a member said that does not know yet that it is none.
fn ends_joining(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::PlanFull
            | Refusal::NoSuchStage { .. }
            | Refusal::TooMany { .. }
            | Refusal::FieldLength { .. }
    )
}

/// Cuts a text to what a message may hold, between two characters.
fn bounded(mut text: String) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Digest, InnerStep, ReplicaId, StageId};
    use crate::message::Text;
    use crate::plan::Place;
    use alloc::vec::Vec;

    #[test]
    fn the_latest_checkpoints_are_remembered_in_whatever_order_the_disk_lists_them() {
        let held = |replica, step| Held {
            place: Place { stage: StageId(0), replica: ReplicaId(replica) },
            step: InnerStep(step),
            digest: Digest([step as u8; 32]),
        };
        for listed in [[2, 4, 6, 8], [8, 6, 4, 2]] {
            let listed = listed.map(|step| held(0, step)).into_iter().chain([held(1, 2)]).collect();
            let (address, device) = (Bytes::new(), String::new());
            let mut join =
                Join { address, stage: None, device, peak_flops: 0, text: Text::Here, held: listed };
            note_held(&mut join, held(0, 10), 4);
            let steps: Vec<u64> = join.held.iter().map(|held| held.step.0).collect();
            assert_eq!(steps, [10, 8, 6, 4, 2], "and that of another place");
            assert_eq!(join.held[4].place.replica, ReplicaId(1));
        }
    }
}
