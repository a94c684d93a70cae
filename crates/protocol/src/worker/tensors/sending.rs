//! To whom of the next stage a microbatch goes, and when it goes to another.
//!
//! Owns that choice and how long an answer is waited for. Knows nothing of what comes back.

use crate::event::Event;
use crate::ids::{MicrobatchId, PeerId, StageId};
use crate::message::{Message, Tensor};
use crate::pipeline::Pipeline;
use crate::pipeline::kept::Sent;
use crate::port::Outbox;
use crate::route;
use crate::router::pace::Weight;
use crate::time::{Span, Time};
use crate::work::Needs;
use crate::worker::identity::Identity;
use crate::worker::tensors::{ANSWER_WAIT_FIRST, Traffic};
use alloc::vec::Vec;
use bytes::Bytes;

/// An answer is late after so many times the longest that was measured, and [`ANSWER_SLACK`]. Between a forward and its
/// backward a border may lie, at which everything waits, so that the median says little.
const ANSWER_FACTOR: u64 = 4;

/// Added always: what is late is done twice, which costs more than this wait.
const ANSWER_SLACK: Span = Span::seconds(5);

/// A microbatch that is to be sent.
struct Due {
    index: u64,
    /// For which stages it passes.
    needs: Needs,
    /// Who was waited for.
    before: Option<PeerId>,
    /// Who is sent it again, because its connection was won back.
    again: Option<PeerId>,
    /// Who had it, or would not take it.
    tried: Vec<PeerId>,
    /// Who would not take it.
    refused: Vec<PeerId>,
}

impl Traffic {
    /// Chooses a replica of the next stage: the one to which the microbatch falls, or else the one that the router has next.
    pub(super) fn choose(
        &mut self,
        now: Time,
        who: &Identity,
        microbatch: MicrobatchId,
        needs: &Needs,
        avoiding: &[PeerId],
    ) -> Option<PeerId> {
        let usable = |peer: PeerId| self.is_usable(peer) && !avoiding.contains(&peer);
        let (plan, agenda, next) = (&self.plan, &who.agenda, self.next());
        if !needs.includes(next) {
            return route::choose_again(plan, agenda, next, microbatch, needs, usable);
        }
        let home = route::choose(plan, agenda, next, microbatch, |_| true).filter(|home| usable(*home));
        if home.is_some() {
            return home;
        }
        let step = agenda.step_of(microbatch)?;
        let works = |peer: PeerId| plan.member(peer).is_some_and(|member| member.works_at(step));
        let avoided = self.router.peers().filter(|peer| !usable(*peer) || !works(*peer));
        let avoided: Vec<PeerId> = avoided.collect();
        let routed = self.router.choose(now, Weight::Backward, &avoided);
        // Where all are banned for a failure, or about to leave, one of them is better than none.
        let usable = |peer: PeerId| self.is_usable(peer) && !avoiding.contains(&peer);
        routed.or_else(|| route::choose(&self.plan, &who.agenda, next, microbatch, usable))
    }

    fn is_usable(&self, peer: PeerId) -> bool {
        !self.suspects.contains(&peer) && !self.unusable.contains(&peer)
    }

    pub(super) fn next(&self) -> StageId {
        StageId(self.place.stage.0.saturating_add(1))
    }

    pub(super) fn send_activation(
        &self,
        who: &Identity,
        microbatch: MicrobatchId,
        to: PeerId,
        Sent { attempt, needs }: Sent,
        payload: Bytes,
        out: &mut Outbox,
    ) {
        let (stage, seat) = (self.next(), self.seat);
        let version = self.pipeline.as_ref().map(Pipeline::version).unwrap_or_default();
        let tensor = Tensor {
            microbatch,
            attempt,
            stage,
            seat,
            version,
            needs: needs.clone(),
            trained: None,
            payload,
        };
        out.send(to, Message::Activation(tensor));
        if !needs.includes(stage) {
            return;
        }
        // Whom it falls to need not wait for it.
        let home = route::choose(&self.plan, &who.agenda, stage, microbatch, |_| true);
        if let Some(home) = home.filter(|home| *home != to) {
            out.send(home, Message::Diverted { microbatch });
        }
    }

    /// Sends what has no one to wait for, and elsewhere what is waited for in vain.
    pub(crate) fn dispatch(&mut self, now: Time, who: &Identity, out: &mut Outbox) {
        for Due { index, needs, before, again, tried, refused } in self.due(now) {
            let microbatch = MicrobatchId::train(index);
            let to = again
                .or_else(|| self.choose(now, who, microbatch, &needs, &tried))
                // All were asked: those who still can be are asked again.
                .or_else(|| self.choose(now, who, microbatch, &needs, &refused));
            let (Some(to), Some(pipeline)) = (to, &mut self.pipeline) else { continue };
            let Some((sent, payload)) = pipeline.resend(index, to, now) else { continue };
            if let Some(from) = before.filter(|before| *before != to) {
                out.record(Event::Rerouted { microbatch, from, to });
            }
            self.send_activation(who, microbatch, to, sent, payload, out);
        }
        self.won_back.clear();
    }

    /// Lists what is to be sent now.
    fn due(&mut self, now: Time) -> Vec<Due> {
        let Some(pipeline) = &self.pipeline else { return Vec::new() };
        let (late, next) = (self.late(), self.next());
        // Asked of all that is in flight, with every event.
        let usable = self.plan.replicas(next).map(|member| member.peer).filter(|peer| self.is_usable(*peer));
        let usable: Vec<PeerId> = usable.collect();
        let sound = |peer: PeerId| usable.contains(&peer);
        let (mut due, mut lates) = (Vec::new(), Vec::new());
        for (index, kept) in pipeline.unanswered() {
            let target = kept.waits_for();
            let back = |peer: PeerId| self.won_back.contains(&peer);
            match target {
                Some((peer, since)) if sound(peer) && !back(peer) => {
                    if now.since(since) < late {
                        continue;
                    }
                    lates.push((peer, now.since(since)));
                }
                Some(_) | None => {}
            }
            let before = target.map(|(peer, _)| peer).or(kept.before);
            let refused = kept.refused_by.clone();
            let tried = kept.sent_to.iter().map(|(peer, _)| *peer).chain(refused.iter().copied()).collect();
            let again = before.filter(|peer| back(*peer) && sound(*peer));
            due.push(Due { index, needs: kept.needs.clone(), before, again, tried, refused });
        }
        for (peer, waited) in lates {
            self.router.late(peer, waited);
        }
        due
    }

    fn late(&self) -> Span {
        self.answer_longest.map_or(ANSWER_WAIT_FIRST, |longest| {
            Span(longest.0.saturating_mul(ANSWER_FACTOR)).saturating_add(ANSWER_SLACK)
        })
    }

    pub(crate) fn deadline(&self, now: Time) -> Option<Time> {
        let pipeline = self.pipeline.as_ref()?;
        let waits = pipeline.unanswered().filter_map(|(_, kept)| kept.waits_for());
        // What is late already was looked at; it is looked at again with the next beat.
        waits.map(|(_, since)| since + self.late()).filter(|at| *at > now).min()
    }
}
