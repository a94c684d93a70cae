//! The peers that a run begins with: they join until each place has one, and get ready.
//!
//! Owns the way from the first peers to the plan that the run begins with. Knows nothing of a run that goes on.

use crate::coordinator::membership::ready_wait;
use crate::coordinator::{CANDIDATES_PER_PLACE_MAX, Coordinator, Phase, bound_length};
use crate::event::Event;
use crate::ids::{PeerId, PlanNumber};
use crate::message::{HELD_MAX, Join, Message, Refusal, Removal, Start, Wait};
use crate::plan::{Candidate, Fit, Member, Place, Plan, place, place_resumed};
use crate::port::Outbox;
use crate::roster;
use crate::time::Time;
use crate::work::Frontier;
use alloc::collections::BTreeSet;
use alloc::string::ToString;
use alloc::vec::Vec;

impl Coordinator {
    pub(super) fn joined(
        &mut self,
        now: Time,
        from: PeerId,
        join: Join,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        let stages = self.spec.stages();
        let replicas = self.spec.pipeline.replicas;
        join_is_sound(&join, stages)?;
        let candidates_max = CANDIDATES_PER_PLACE_MAX * usize::from(stages) * usize::from(replicas);
        let device = join.device.clone();
        let peak_flops = join.peak_flops;
        let candidate = Candidate { peer: from, address: join.address.clone(), stage: join.stage };
        let candidates = match &mut self.phase {
            Phase::Running(_) => {
                out.record(Event::Joined { peer: from, device, peak_flops });
                return self.joined_under_way(now, from, join, out);
            }
            Phase::Preparing { plan, .. } => {
                let Some(member) = plan.member(from) else {
                    return self.joined_as_spare(from, join, candidates_max, out);
                };
                let (member, plan) = (member.clone(), plan.clone());
                self.joins.insert(from, join);
                let start = self.start_of(&member);
                out.send(from, Message::Placed { plan, start, frontier: Frontier::default() });
                return Ok(());
            }
            Phase::Reviving { candidates, .. } | Phase::Gathering { candidates, .. } => candidates,
            Phase::Over => return Err(Refusal::PlanFull),
        };
        candidates.retain(|c| c.peer != from);
        if candidates.len() >= candidates_max {
            return Err(Refusal::PlanFull);
        }
        candidates.push(candidate);
        let count = candidates.len();
        out.record(Event::Joined { peer: from, device, peak_flops });
        self.joins.insert(from, join);
        if self.awaits_members(now) {
            out.send(from, Message::Waiting { ahead: count as u32 - 1, why: Wait::AwaitsMembers });
        } else if !self.plan_anew(now, out) {
            let enough = count >= usize::from(stages) * usize::from(replicas);
            let why = if enough { Wait::NoShard } else { Wait::AwaitsPeers };
            out.send(from, Message::Waiting { ahead: count as u32 - 1, why });
        }
        Ok(())
    }

    /// Returns whether members of the stored session may still be heard: each may hold what no disk has. Who of them joins anew
    /// has lost it.
    fn awaits_members(&self, now: Time) -> bool {
        let Phase::Reviving { session, anew_at, .. } = &self.phase else { return false };
        let mut members = session.plan.members.iter().filter(|member| roster::has_entered(member));
        anew_at.is_none_or(|at| now < at) && !members.all(|member| self.joins.contains_key(&member.peer))
    }

    /// Makes a plan of those who have joined, if they suffice; returns whether they do.
    pub(super) fn plan_anew(&mut self, now: Time, out: &mut Outbox) -> bool {
        let (stages, replicas) = (self.spec.stages(), self.spec.pipeline.replicas);
        let (candidates, next, before) = match &self.phase {
            Phase::Reviving { session, candidates, .. } => {
                (candidates, PlanNumber(session.plan.number.0.saturating_add(1)), Some(&session.plan))
            }
            // A plan that was made of a stored session may have been given up before the run went on.
            Phase::Gathering { candidates, next } => {
                (candidates, *next, self.durable.session.as_ref().map(|session| &session.plan))
            }
            Phase::Preparing { .. } | Phase::Running(_) | Phase::Over => return false,
        };
        let held = |peer: PeerId| self.joins.get(&peer).map(|join| &join.held[..]).unwrap_or_default();
        let of = |candidates: &[Candidate]| match &self.durable.checkpoint {
            Some(checkpoint) => {
                let was_at = |peer, stage| {
                    before.is_none_or(|plan| plan.place_of(peer).is_some_and(|place| place.stage == stage))
                };
                let has = |candidate: &Candidate, at: Place| match checkpoint.fit(at, held(candidate.peer)) {
                    Fit::Nothing if was_at(candidate.peer, at.stage) => Fit::Missing,
                    fit @ (Fit::Nothing | Fit::Missing | Fit::Stage | Fit::Own) => fit,
                };
                place_resumed(next, self.me, (stages, replicas), candidates, has)
            }
            None => place(next, self.me, stages, replicas, candidates),
        };
        // Who had a place already, in a plan that was given up, keeps it only where that suffices.
        let wish = |candidate: &Candidate| Candidate {
            stage: self.joins.get(&candidate.peer).map_or(candidate.stage, |join| join.stage),
            ..candidate.clone()
        };
        let plan = of(candidates).or_else(|| of(&candidates.iter().map(wish).collect::<Vec<_>>()));
        let Some(plan) = plan else { return false };
        let surplus = candidates.iter().map(|c| c.peer).filter(|peer| plan.place_of(*peer).is_none());
        for (ahead, peer) in (0..).zip(surplus) {
            out.send(peer, Message::Waiting { ahead, why: Wait::NoVacancy });
        }
        // Of those who took part before nobody is left, or one would have said so by now.
        self.durable.go_back();
        self.announce(now, plan, out);
        true
    }

    /// Takes the places away of those who have not got ready in time, and gives them to those who wait.
    pub(super) fn look_who_is_ready(&mut self, now: Time, out: &mut Outbox) {
        let Phase::Preparing { plan, ready, by } = &self.phase else { return };
        if now < *by {
            return;
        }
        let unready = plan.members.iter().map(|member| member.peer).filter(|peer| !ready.contains(peer));
        let unready: Vec<PeerId> = unready.collect();
        for peer in &unready {
            let place = plan.place_of(*peer).expect("it is of the plan");
            let why = Removal::Unready;
            out.record(Event::Removed { peer: *peer, place, why, lost: 0 });
            out.send(*peer, Message::Removed { why });
            self.joins.remove(peer);
        }
        self.gather_again(&unready);
        self.plan_anew(now, out);
    }

    /// Gives up a plan before the run begins, for some of it are gone: the others wait with those who had no place.
    pub(super) fn gather_again(&mut self, gone: &[PeerId]) {
        let Phase::Preparing { plan, .. } = &self.phase else { return };
        let members = plan.members.iter().map(|member| Candidate {
            peer: member.peer,
            address: member.address.clone(),
            stage: Some(member.place.stage),
        });
        let spare = |(peer, join): (&PeerId, &Join)| Candidate {
            peer: *peer,
            address: join.address.clone(),
            stage: join.stage,
        };
        let spares = self.joins.iter().filter(|(peer, _)| plan.place_of(**peer).is_none()).map(spare);
        let here = |candidate: &Candidate| !gone.contains(&candidate.peer);
        let candidates = members.chain(spares).filter(here).collect();
        let next = PlanNumber(plan.number.0.saturating_add(1));
        self.phase = Phase::Gathering { candidates, next };
    }

    /// Lets a peer wait that asks while those who were first get ready.
    fn joined_as_spare(
        &mut self,
        from: PeerId,
        join: Join,
        spares_max: usize,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        if self.joins.len() >= 2 * spares_max {
            return Err(Refusal::PlanFull);
        }
        out.record(Event::Joined { peer: from, device: join.device.clone(), peak_flops: join.peak_flops });
        self.joins.insert(from, join);
        out.send(from, Message::Waiting { ahead: 0, why: Wait::NoVacancy });
        Ok(())
    }

    fn announce(&mut self, now: Time, plan: Plan, out: &mut Outbox) {
        let members = plan.members.iter().map(|m| (m.peer, m.place)).collect();
        out.record(Event::Planned { plan: plan.number, members });
        for member in &plan.members {
            let start = self.start_of(member);
            let frontier = Frontier::default();
            out.send(member.peer, Message::Placed { plan: plan.clone(), start, frontier });
        }
        let waits = plan.members.iter().map(|member| ready_wait(&self.spec, member.place.stage));
        let by = now + waits.max().unwrap_or_default();
        self.phase = Phase::Preparing { plan, ready: BTreeSet::new(), by };
    }

    /// Says what a member starts from: the checkpoint of its place, or that of another replica, whichever it has.
    pub(super) fn start_of(&self, member: &Member) -> Start {
        let Some(checkpoint) = &self.durable.checkpoint else { return Start::Fresh };
        let held = self.joins.get(&member.peer).map(|join| &join.held[..]).unwrap_or_default();
        let (of, digest) = checkpoint.for_place(member.place, held).expect("it holds every stage of the run");
        Start::Checkpoint { step: checkpoint.step, digest, of }
    }
}

/// Refuses a request to take part that is too long, or that asks for a stage that the run has not.
fn join_is_sound(join: &Join, stages: u16) -> Result<(), Refusal> {
    bound_length("device", join.device.len())?;
    bound_length("address", join.address.len())?;
    if join.held.len() > HELD_MAX {
        let (field, got) = ("held".to_string(), join.held.len() as u64);
        return Err(Refusal::TooMany { field, got, max: HELD_MAX as u64 });
    }
    match join.stage.filter(|stage| stage.0 >= stages) {
        Some(stage) => Err(Refusal::NoSuchStage { stage, stages }),
        None => Ok(()),
    }
}
