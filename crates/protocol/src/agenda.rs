//! The agenda: all work of a run in its order, as a pure function of the run spec.
//!
//! Owns which microbatch belongs to which inner step, where the borders are, and how old weights may be. Knows nothing of
//! peers or of what is already done.

use crate::ids::{InnerStep, MicrobatchId, OuterStep, ReplicaId, Split};
use crate::spec::sync::OuterRule;
use crate::spec::{RunSpec, Schedule};
use core::ops::Range;

/// How often the end of a run may be agreed on again, after losses.
const LAST_OUTERS_MAX: u64 = 1 << 20;

/// The work of a run. Step `s` starts at border `s`: first its evaluation, if any, then its training microbatches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agenda {
    steps: u64,
    /// Of one replica of the pipeline.
    microbatches_per_step: u64,
    replicas: u64,
    evaluation_every: u64,
    evaluation_microbatches: u64,
    checkpoint_every: u64,
    staleness_max: u64,
    inner_steps: u64,
    delay: u64,
    exchanges: Exchanges,
}

/// What the replicas of a stage exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchanges {
    /// Nothing: there is one replica.
    Nothing,
    /// The mean gradient of each inner step, before the optimizer uses it: data parallelism.
    Gradients,
    /// What each has learnt in some inner steps.
    PseudoGradients,
}

/// A place in the order of the agenda: earlier work sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    step: InnerStep,
    microbatch: MicrobatchId,
}

impl Order {
    /// Returns the step of this place; for a held-out microbatch, its border.
    pub fn step(self) -> InnerStep {
        self.step
    }

    /// Returns the microbatch at this place.
    pub fn microbatch(self) -> MicrobatchId {
        self.microbatch
    }
}

impl Agenda {
    /// Derives the agenda of a run.
    pub fn new(spec: &RunSpec) -> Self {
        let staleness_max = match spec.pipeline.schedule {
            Schedule::Flush => 0,
            Schedule::Async { staleness_max } => u64::from(staleness_max),
        };
        Self {
            steps: spec.training.steps,
            microbatches_per_step: u64::from(spec.pipeline.microbatches_per_step),
            replicas: u64::from(spec.pipeline.replicas),
            evaluation_every: spec.evaluation.every,
            evaluation_microbatches: u64::from(spec.evaluation.microbatches),
            checkpoint_every: spec.checkpoint.every,
            staleness_max,
            inner_steps: u64::from(spec.sync.inner_steps),
            delay: u64::from(spec.sync.delay),
            exchanges: match (spec.pipeline.replicas, spec.sync.rule, spec.sync.inner_steps) {
                (0 | 1, OuterRule::Mean | OuterRule::Nesterov | OuterRule::Plain, _) => Exchanges::Nothing,
                (_, OuterRule::Mean, 1) => Exchanges::Gradients,
                (_, OuterRule::Mean | OuterRule::Nesterov | OuterRule::Plain, _) => {
                    Exchanges::PseudoGradients
                }
            },
        }
    }

    /// Returns the number of inner steps.
    pub fn steps(&self) -> InnerStep {
        InnerStep(self.steps)
    }

    /// Returns the training microbatches of one inner step that one replica of each stage trains.
    pub fn microbatches_per_step(&self) -> u64 {
        self.microbatches_per_step
    }

    /// Returns the training microbatches of one inner step, over all replicas.
    pub fn microbatches_of_all(&self) -> u64 {
        self.microbatches_per_step.saturating_mul(self.replicas)
    }

    /// Returns the replicas of each stage.
    pub fn replicas(&self) -> u64 {
        self.replicas
    }

    /// Returns the replica whose work a microbatch is: they take turns.
    pub fn home(&self, microbatch: MicrobatchId) -> ReplicaId {
        ReplicaId(microbatch.index.checked_rem(self.replicas).unwrap_or(0) as u16)
    }

    /// Returns how many indices below `end` are a replica's.
    pub fn share_below(&self, end: u64, replica: ReplicaId) -> u64 {
        end.saturating_add(self.replicas).saturating_sub(1 + u64::from(replica.0)) / self.replicas.max(1)
    }

    /// Returns what the replicas exchange.
    pub fn exchanges(&self) -> Exchanges {
        self.exchanges
    }

    /// Returns the last border of an outer step at or before a step: what was trained before it, a stage's replicas have agreed on
    /// there, and what was trained since is each one's own.
    pub fn agreed_below(&self, step: InnerStep) -> InnerStep {
        match self.exchanges {
            Exchanges::PseudoGradients if step < self.steps() => {
                InnerStep(step.0 - step.0.checked_rem(self.inner_steps).unwrap_or(0))
            }
            Exchanges::PseudoGradients | Exchanges::Gradients | Exchanges::Nothing => step,
        }
    }

    /// Returns the outer step whose border this is, where the replicas exchange pseudo-gradients; the end of the run is one.
    pub fn outer_at(&self, border: InnerStep) -> Option<OuterStep> {
        let due = border.0.is_multiple_of(self.inner_steps) || border.0 == self.steps;
        let counts = self.exchanges != Exchanges::Nothing && border.0 > 0 && border.0 <= self.steps;
        (due && counts).then(|| OuterStep(border.0.div_ceil(self.inner_steps.max(1)) - 1))
    }

    /// Returns the outer step that an inner step leads to.
    pub fn outer_of(&self, step: InnerStep) -> Option<OuterStep> {
        let counts = self.exchanges != Exchanges::Nothing && step.0 < self.steps;
        counts.then(|| OuterStep(step.0 / self.inner_steps.max(1)))
    }

    /// Returns the outer step that the last inner step leads to.
    pub fn outer_last(&self) -> OuterStep {
        OuterStep(self.steps.saturating_sub(1) / self.inner_steps.max(1))
    }

    /// Returns the outer step that is open for replicas that have taken these inner steps and agreed on them.
    pub fn outer_after(&self, start: InnerStep) -> OuterStep {
        OuterStep(start.0.div_ceil(self.inner_steps.max(1)))
    }

    /// Returns the inner steps at the border of an outer step; `None` beyond the end of the run.
    ///
    /// Gradients are exchanged before the step that uses them, so that its border is the step itself.
    pub fn outer_border(&self, outer: OuterStep) -> Option<InnerStep> {
        let first = outer.0.checked_mul(self.inner_steps).filter(|first| *first < self.steps)?;
        match self.exchanges {
            Exchanges::Nothing => None,
            Exchanges::Gradients => Some(InnerStep(first)),
            Exchanges::PseudoGradients => {
                Some(InnerStep(first.saturating_add(self.inner_steps).min(self.steps)))
            }
        }
    }

    /// Returns the inner steps at the border of an outer step, where outer steps beyond the last have its border, the end of
    /// the run: it is agreed on again when work of the last one was lost. `None` far beyond, and where nothing is exchanged.
    pub fn outer_border_or_end(&self, outer: OuterStep) -> Option<InnerStep> {
        let beyond = || {
            let again = outer.0.checked_sub(self.outer_after(InnerStep(self.steps)).0)?;
            (again < LAST_OUTERS_MAX).then_some(InnerStep(self.steps))
        };
        match self.exchanges {
            Exchanges::Nothing => None,
            Exchanges::Gradients => self.outer_border(outer),
            Exchanges::PseudoGradients => self.outer_border(outer).or_else(beyond),
        }
    }

    /// Returns when replicas that exchange at a border go over to what they agree on: some inner steps later, but not beyond
    /// the first border at which something is evaluated or saved or the run ends, so that this is what was agreed on.
    pub fn cutover_of(&self, border: InnerStep) -> InnerStep {
        let last = border.0.saturating_add(self.delay).min(self.steps);
        let mut borders = (border.0..last).map(InnerStep);
        borders.find(|at| self.consistent_at(*at)).unwrap_or(InnerStep(last.max(border.0)))
    }

    /// Returns how many inner steps are between two outer steps.
    pub fn inner_steps(&self) -> u64 {
        self.inner_steps
    }

    /// Returns the first border at or after a step at which replicas agree: where the run may stop.
    pub fn stop_at_or_after(&self, border: InnerStep) -> InnerStep {
        match self.exchanges {
            Exchanges::Nothing | Exchanges::Gradients => border,
            Exchanges::PseudoGradients => {
                InnerStep(border.0.next_multiple_of(self.inner_steps.max(1)).min(self.steps))
            }
        }
    }

    fn consistent_at(&self, border: InnerStep) -> bool {
        !self.evaluation_at(border).is_empty() || self.saves_at(border)
    }

    /// Returns the training microbatches of the whole run.
    pub fn train_microbatches(&self) -> u64 {
        self.steps.saturating_mul(self.microbatches_of_all())
    }

    /// Returns the training indices of a step.
    pub fn training_of(&self, step: InnerStep) -> Range<u64> {
        let first = step.0.min(self.steps) * self.microbatches_of_all();
        first..(first + self.microbatches_of_all()).min(self.train_microbatches())
    }

    /// Returns the held-out indices that are evaluated with the weights of a border; empty where none are.
    pub fn evaluation_at(&self, border: InnerStep) -> Range<u64> {
        let ends = border.0 == self.steps;
        let periodic = self.evaluation_every > 0 && border.0.is_multiple_of(self.evaluation_every);
        if border.0 == 0 || !(ends || periodic) || border.0 > self.steps {
            return 0..0;
        }
        let ordinal = match border.0.checked_div(self.evaluation_every) {
            Some(whole) if periodic => whole - 1,
            Some(whole) => whole,
            None => 0,
        };
        ordinal * self.evaluation_microbatches..(ordinal + 1) * self.evaluation_microbatches
    }

    /// Returns how many held-out microbatches belong to borders before this one.
    pub fn evaluated_before(&self, border: InnerStep) -> u64 {
        let borders = match border.0.checked_sub(1) {
            Some(last) => last.checked_div(self.evaluation_every).unwrap_or(0),
            None => 0,
        };
        borders * self.evaluation_microbatches
    }

    /// Returns whether the state is saved at a border.
    pub fn saves_at(&self, border: InnerStep) -> bool {
        let periodic = self.checkpoint_every > 0 && border.0.is_multiple_of(self.checkpoint_every);
        border.0 > 0 && border.0 <= self.steps && (periodic || border.0 == self.steps)
    }

    /// Returns how many evaluations lie below a held-out index.
    pub fn evaluations_below(&self, index: u64) -> u64 {
        index.checked_div(self.evaluation_microbatches).unwrap_or(0)
    }

    /// Returns the step a microbatch belongs to; for a held-out one, the border whose weights it measures. `None` when
    /// the agenda does not hold it.
    pub fn step_of(&self, microbatch: MicrobatchId) -> Option<InnerStep> {
        match microbatch.split {
            Split::Train => {
                let step = InnerStep(microbatch.index.checked_div(self.microbatches_of_all())?);
                (step.0 < self.steps).then_some(step)
            }
            Split::HeldOut => {
                let ordinal = microbatch.index.checked_div(self.evaluation_microbatches)?;
                let border = match self.evaluation_every {
                    0 => self.steps,
                    every => ordinal.checked_add(1)?.saturating_mul(every).min(self.steps),
                };
                let border = InnerStep(border);
                self.evaluation_at(border).contains(&microbatch.index).then_some(border)
            }
        }
    }

    /// Returns where a microbatch stands in the order of the agenda; `None` when the agenda does not hold it.
    pub fn order(&self, microbatch: MicrobatchId) -> Option<Order> {
        Some(Order { step: self.step_of(microbatch)?, microbatch })
    }

    /// Returns which microbatch of the data set a microbatch of the run reads: every evaluation reads the same.
    pub fn data_index(&self, microbatch: MicrobatchId) -> u64 {
        match microbatch.split {
            Split::Train => microbatch.index,
            Split::HeldOut => microbatch.index.checked_rem(self.evaluation_microbatches).unwrap_or(0),
        }
    }

    /// Returns how many optimizer steps a stage must have taken before it may run the forward of a microbatch.
    ///
    /// At most `staleness_max` behind the microbatch's own step, and never across a border: there everything drains, so
    /// that what is evaluated or saved is one consistent set of weights.
    pub fn version_needed(&self, microbatch: MicrobatchId) -> Option<u64> {
        let step = self.step_of(microbatch)?.0;
        Some(match microbatch.split {
            Split::HeldOut => step,
            Split::Train => step.saturating_sub(self.staleness_max).max(self.border_at_or_before(step)),
        })
    }

    fn border_at_or_before(&self, step: u64) -> u64 {
        let floor = |every: u64| step.checked_div(every).map_or(0, |n| n * every);
        let evaluated = if self.evaluation_microbatches > 0 { floor(self.evaluation_every) } else { 0 };
        let agreed = match (self.exchanges, self.delay) {
            (Exchanges::Nothing | Exchanges::Gradients, _) | (Exchanges::PseudoGradients, 1..) => 0,
            (Exchanges::PseudoGradients, 0) => floor(self.inner_steps),
        };
        evaluated.max(floor(self.checkpoint_every)).max(agreed)
    }

    /// Walks the agenda from the start of a step.
    pub fn from(self, start: InnerStep) -> impl Iterator<Item = MicrobatchId> {
        (start.0..=self.steps).flat_map(move |step| {
            let step = InnerStep(step);
            let evaluation = self.evaluation_at(step).map(MicrobatchId::held_out);
            evaluation.chain(self.training_of(step).map(MicrobatchId::train))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn agenda(every: u64, checkpoint_every: u64, staleness_max: u64) -> Agenda {
        Agenda {
            steps: 5,
            microbatches_per_step: 3,
            replicas: 1,
            evaluation_every: every,
            evaluation_microbatches: 2,
            checkpoint_every,
            staleness_max,
            inner_steps: 2,
            delay: 0,
            exchanges: Exchanges::Nothing,
        }
    }

    #[test]
    fn every_microbatch_appears_once_and_in_the_order_of_its_step() {
        for every in [0, 1, 2, 5, 7] {
            let agenda = agenda(every, 0, 0);
            let all: Vec<_> = agenda.from(InnerStep(0)).collect();
            let orders: Vec<_> = all.iter().map(|m| agenda.order(*m).expect("on the agenda")).collect();
            assert!(orders.is_sorted(), "every {every}");
            assert_eq!(all.iter().filter(|m| m.split == Split::Train).count(), 15);
            let held_out: Vec<_> =
                all.iter().filter(|m| m.split == Split::HeldOut).map(|m| m.index).collect();
            assert_eq!(held_out, (0..held_out.len() as u64).collect::<Vec<_>>(), "every {every}");
            let borders = [1, 5, 3, 1, 0, 1][usize::min(every as usize, 5)] * 2;
            assert_eq!(held_out.len(), borders, "every {every}");
        }
    }

    #[test]
    fn starting_later_skips_exactly_what_came_before() {
        let agenda = agenda(2, 0, 0);
        let all: Vec<_> = agenda.from(InnerStep(0)).collect();
        let late: Vec<_> = agenda.from(InnerStep(4)).collect();
        assert_eq!(all[all.len() - late.len()..], late[..]);
        assert_eq!(late[0], MicrobatchId::held_out(agenda.evaluated_before(InnerStep(4))));
    }

    #[test]
    fn what_is_not_on_the_agenda_has_no_step() {
        let agenda = agenda(2, 0, 0);
        assert_eq!(agenda.step_of(MicrobatchId::train(15)), None);
        assert_eq!(agenda.step_of(MicrobatchId::held_out(6)), None);
        assert_eq!(agenda.step_of(MicrobatchId::held_out(u64::MAX)), None);
        assert_eq!(agenda.step_of(MicrobatchId::held_out(5)), Some(InnerStep(5)));
    }

    #[test]
    fn no_forward_crosses_a_border_on_old_weights() {
        let agenda = agenda(2, 3, 2);
        let needed: Vec<_> = (0..5)
            .map(|s| agenda.version_needed(MicrobatchId::train(s * 3)).expect("on the agenda"))
            .collect();
        assert_eq!(needed, [0, 0, 2, 3, 4]);
        assert_eq!(agenda.version_needed(MicrobatchId::held_out(0)), Some(2));
        assert!(
            agenda.saves_at(InnerStep(3)) && agenda.saves_at(InnerStep(5)) && !agenda.saves_at(InnerStep(0))
        );
    }

    #[test]
    fn nothing_is_saved_between_a_commit_and_going_over_to_it() {
        let exchanges = Exchanges::PseudoGradients;
        let agenda =
            Agenda { exchanges, replicas: 2, steps: 20, inner_steps: 5, delay: 4, ..agenda(0, 8, 0) };
        let cutovers = [5, 8, 10, 15, 20].map(|border| agenda.cutover_of(InnerStep(border)).0);
        assert_eq!(cutovers, [8, 8, 14, 16, 20]);
    }

    #[test]
    fn outer_steps_beyond_the_last_have_the_border_of_the_end() {
        let agenda = Agenda { exchanges: Exchanges::PseudoGradients, replicas: 2, ..agenda(0, 0, 0) };
        let borders: Vec<_> = (0..5).map(|outer| agenda.outer_border_or_end(OuterStep(outer))).collect();
        assert_eq!(borders, [2, 4, 5, 5, 5].map(|border| Some(InnerStep(border))));
        assert_eq!(agenda.outer_border(OuterStep(3)), None);
        assert_eq!(agenda.outer_border_or_end(OuterStep(u64::MAX)), None);
    }

    #[test]
    fn replicas_have_agreed_on_what_is_below_the_last_border() {
        let below = |exchanges| {
            let agenda = Agenda { exchanges, ..agenda(0, 0, 0) };
            [0, 1, 2, 3, 4, 5].map(|step| agenda.agreed_below(InnerStep(step)).0)
        };
        assert_eq!(below(Exchanges::PseudoGradients), [0, 0, 2, 2, 4, 5]);
        assert_eq!(below(Exchanges::Nothing), [0, 1, 2, 3, 4, 5], "who is alone has all");
    }

    #[test]
    fn flush_needs_the_weights_of_its_own_step() {
        let agenda = agenda(0, 0, 0);
        for index in 0..15 {
            assert_eq!(agenda.version_needed(MicrobatchId::train(index)), Some(index / 3));
        }
    }
}
