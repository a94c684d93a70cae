//! Keeping the stages level while the run goes on: turns for replicas of different speed, and moves between stages.
//!
//! Owns when that is looked at, and how it is carried out: at the border of an outer step, by the same ways by which peers
//! leave and join. Knows nothing of how speeds are measured.

use crate::agenda::Exchanges;
use crate::coordinator::{Coordinator, Phase};
use crate::homes::Homes;
use crate::ids::{InnerStep, PeerId, StageId};
use crate::message::Removal;
use crate::plan::{Plan, Turns};
use crate::port::Outbox;
use crate::rebalance::StageLoad;
use crate::roster;
use crate::running::Running;
use crate::time::Time;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

impl Coordinator {
    /// Looks, after a commit, whether replicas should take other turns, or a member should hold another stage.
    pub(super) fn balance(&mut self, now: Time, out: &mut Outbox) {
        let stages = self.spec.stages();
        let Phase::Running(running) = &mut self.phase else { return };
        let undisturbed = running.closing.is_none()
            && running.drain.is_none()
            && !running.roster.stands_still()
            && running.agenda.exchanges() == Exchanges::PseudoGradients;
        if !undisturbed {
            return;
        }
        let turned = running.turn(stages);
        if running.begin_move(now, stages) || turned {
            self.announce_plan(None, out);
        }
    }
}

impl Running {
    /// Gives the replicas of stages other turns, where two commits on end have seen that they would be faster; returns whether
    /// any changed.
    fn turn(&mut self, stages: u16) -> bool {
        let from = InnerStep(self.leases.highest_step().0 + 2);
        if from >= self.agenda.steps() {
            return false;
        }
        let mut seen = BTreeMap::new();
        let mut changed = false;
        for stage in (0..stages).map(StageId) {
            let homes = Homes::of(&self.plan, &self.agenda, stage);
            let present = homes.pattern_at(&self.agenda, from).to_vec();
            let Some(better) = self.paces.better_turns(&self.plan, stage, &present) else { continue };
            if self.turns_seen.contains_key(&stage) {
                self.plan.turns.push(Turns { stage, from, pattern: better });
                changed = true;
            } else {
                seen.insert(stage, better);
            }
        }
        self.turns_seen = seen;
        if changed {
            self.plan.renumber();
            let settled = self.settled_steps();
            forget_old_turns(&mut self.plan, settled);
        }
        changed
    }

    /// Lets a member leave its stage at the next border for one that needs it more; returns whether one does.
    fn begin_move(&mut self, now: Time, stages: u16) -> bool {
        let loads = self.loads_at_work(stages);
        let Some(step) = self.rebalancer.consider(now, &loads) else { return false };
        let border =
            self.arbiter.as_ref().and_then(|arbiter| self.agenda.outer_border_or_end(arbiter.open()));
        let entry = self.plan.members.iter_mut().find(|member| member.peer == step.peer);
        let (Some(border), Some(entry)) = (border.filter(|border| *border < self.agenda.steps()), entry)
        else {
            self.rebalancer.called_off();
            return false;
        };
        if entry.until.is_some() || !roster::has_entered(entry) {
            self.rebalancer.called_off();
            return false;
        }
        entry.until = Some(border);
        self.plan.renumber();
        self.moving = Some((step.peer, step.to, now));
        true
    }

    /// Lists the stages with the speeds of those who hold them; who moves counts where it goes.
    pub(crate) fn loads_at_work(&self, stages: u16) -> Vec<StageLoad> {
        let mut loads = self.paces.loads(&self.plan, stages);
        if let Some((peer, to, _)) = self.moving {
            let speed = loads.iter_mut().find_map(|load| {
                let at = load.members.iter().position(|(member, _)| *member == peer)?;
                Some(load.members.remove(at))
            });
            if let (Some(entry), Some(load)) = (speed, loads.iter_mut().find(|load| load.stage == to)) {
                load.members.push(entry);
            }
        }
        loads
    }

    /// Returns the stage that a peer is to be placed at: where it moves to, or where it wishes.
    pub(crate) fn wish(&self, peer: PeerId, wish: Option<StageId>) -> Option<StageId> {
        self.moving.filter(|(moving, ..)| *moving == peer).map(|(_, to, _)| to).or(wish)
    }

    /// Notes that a member was removed: unless it is on its way to another stage, its move is called off.
    pub(crate) fn keep_moving(&mut self, now: Time, peer: PeerId, why: Removal) {
        match self.moving {
            Some((moving, to, _)) if moving == peer && why == Removal::Moved => {
                self.moving = Some((peer, to, now));
            }
            Some(_) | None => self.stay(peer),
        }
    }

    /// Notes that a member stays where it is.
    pub(crate) fn stay(&mut self, peer: PeerId) {
        if self.moving.is_some_and(|(moving, ..)| moving == peer) {
            self.moving = None;
            self.rebalancer.called_off();
        }
    }

    /// Notes that a peer has entered a stage.
    pub(crate) fn has_moved(&mut self, now: Time, peer: PeerId) {
        if let Some((_, _, since)) = self.moving.filter(|(moving, ..)| *moving == peer) {
            self.rebalancer.moved(now, now.since(since));
            self.moving = None;
        }
    }
}

/// Forgets turns of a stage that later ones have replaced for all that is still to be settled, so that a plan does not grow.
fn forget_old_turns(plan: &mut Plan, settled: InnerStep) {
    let turns = core::mem::take(&mut plan.turns);
    let replaced = |at: usize, turns: &[Turns]| {
        turns[at + 1..].iter().any(|later| later.stage == turns[at].stage && later.from <= settled)
    };
    plan.turns = (0..turns.len()).filter(|at| !replaced(*at, &turns)).map(|at| turns[at].clone()).collect();
}
