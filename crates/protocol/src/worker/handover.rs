//! A place's share in handovers: how a newcomer comes to the state of its stage, and what it gives to those who come later.
//!
//! Owns both ends, and the order of fetching, loading and catching up. Knows nothing of the pipeline, or of when a newcomer enters.

use crate::event::Event;
use crate::ids::{Digest, OuterStep, PeerId};
use crate::message::Refusal;
use crate::plan::{Place, Plan};
use crate::port::{Action, Outbox};
use crate::route::NEVER;
use crate::spec::RunSpec;
use crate::sync::blob::Blob;
use crate::sync::donor::Donor;
use crate::sync::intake::{Bounds, Came, Intake};
use crate::sync::passed::{Next, Passed, TakeOver};
use crate::sync::state::StateSay;
use crate::sync::task::SyncDone;
use crate::time::Time;
use alloc::string::String;
use alloc::vec::Vec;

/// Longest part of a state that is believed, in multiples of a stage's f32 weights: the weights, and two moments with their heads.
const STATE_WEIGHTS_MAX: u64 = 6;

/// Bytes that are kept of outer steps for newcomers, in the same unit: as much as a state has.
const PASSED_WEIGHTS_MAX: u64 = 4;

/// How far a newcomer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Has {
    /// Something is on its way.
    Part,
    /// The driver takes hold of what came.
    Loads,
    /// It holds what its stage has.
    All,
}

/// Both ends of a place's handovers.
pub(crate) struct Handover {
    place: Place,
    me: PeerId,
    donor: Donor,
    bounds: Bounds,
    passed_max: u64,
    intake: Option<Intake>,
    /// What the driver takes hold of.
    loading: Option<(OuterStep, Digest)>,
    over: Option<TakeOver>,
}

impl Handover {
    pub(crate) fn new(spec: &RunSpec, place: Place, me: PeerId) -> Self {
        let weights = spec.stage_bytes(place.stage);
        let passed_max = weights.saturating_mul(PASSED_WEIGHTS_MAX);
        let bytes = weights.saturating_mul(STATE_WEIGHTS_MAX);
        Self {
            place,
            me,
            donor: Donor::new(None, passed_max),
            bounds: Bounds { bytes, shards: usize::from(spec.pipeline.replicas) },
            passed_max,
            intake: None,
            loading: None,
            over: None,
        }
    }

    /// Begins with what the driver has by itself.
    pub(crate) fn begin_alone(&mut self, plan: &Plan) {
        (self.intake, self.loading, self.over) = (None, None, None);
        self.gives_from(None, plan);
    }

    /// Begins to fetch, or goes on to where the stage is now.
    pub(crate) fn aim(&mut self, now: Time, target: (OuterStep, Digest), plan: &Plan, out: &mut Outbox) {
        let Some(intake) = &mut self.intake else {
            self.begin_alone(plan);
            let mut intake = Intake::new(target, self.donors(plan), self.bounds, now);
            intake.woke(now, out);
            self.intake = Some(intake);
            return;
        };
        intake.aim(now, target, out);
        self.mend(now, plan, out);
    }

    /// Begins to give, from the state after an outer step on.
    fn gives_from(&mut self, held: Option<(OuterStep, Digest)>, plan: &Plan) {
        self.donor = Donor::new(held, self.passed_max);
        self.donor.expects(self.newcomers(plan).collect());
    }

    /// Hears who takes part, and who comes.
    pub(crate) fn enrol(&mut self, plan: &Plan) {
        let donors = self.donors(plan);
        self.donor.expects(self.newcomers(plan).collect());
        if let Some(intake) = &mut self.intake {
            intake.donors(donors);
        }
    }

    fn donors(&self, plan: &Plan) -> Vec<PeerId> {
        let others = plan.replicas(self.place.stage).filter(|member| member.peer != self.me);
        others.filter(|member| member.enters < NEVER).map(|member| member.peer).collect()
    }

    fn newcomers(&self, plan: &Plan) -> impl Iterator<Item = PeerId> {
        let others = plan.replicas(self.place.stage).filter(|member| member.peer != self.me);
        others.filter(|member| member.enters >= NEVER).map(|member| member.peer)
    }

    /// Returns how far it is; `None` where nothing is taken from others.
    pub(crate) fn stands(&self) -> Option<Has> {
        let intake = self.intake.as_ref()?;
        Some(match (self.loading, &self.over) {
            (Some(_), _) => Has::Loads,
            (None, None) if intake.has_arrived() => Has::All,
            (None, Some(_) | None) => Has::Part,
        })
    }

    /// Returns after which outer step the state is that was taken from others.
    pub(crate) fn holds(&self) -> Option<OuterStep> {
        self.intake.as_ref()?.held().map(|(outer, _)| outer)
    }

    /// Takes a message of another replica of the stage.
    pub(crate) fn received(
        &mut self,
        now: Time,
        from: PeerId,
        say: StateSay,
        out: &mut Outbox,
    ) -> Result<(), Refusal> {
        self.donor.received(from, &say, out)?;
        let Some(intake) = &mut self.intake else { return Ok(()) };
        match intake.received(now, from, say, out)? {
            Some(Came::State { outer, digest, agreed, own }) => {
                self.loading = Some((outer, digest));
                let (agreed, own) = (agreed.bytes().clone(), own.bytes().clone());
                out.push(Action::Import { place: self.place, agreed, own, digest });
            }
            Some(Came::Passed(passed)) => {
                let (over, task) = TakeOver::begin(passed);
                self.over = Some(over);
                out.push(Action::Sync(task));
            }
            None => {}
        }
        Ok(())
    }

    /// Hears that the driver holds the stage.
    pub(crate) fn loaded(&mut self, now: Time, plan: &Plan, out: &mut Outbox) {
        if let Some(held) = self.loading.take() {
            self.has(now, held, plan, out);
        }
    }

    fn has(&mut self, now: Time, held: (OuterStep, Digest), plan: &Plan, out: &mut Outbox) {
        self.gives_from(Some(held), plan);
        if let Some(intake) = &mut self.intake {
            intake.holds(now, held, out);
        }
        self.mend(now, plan, out);
    }

    /// Takes what the driver has computed for an outer step that is caught up with; gives back what is not of one.
    pub(crate) fn sync_done(
        &mut self,
        now: Time,
        done: SyncDone,
        plan: &Plan,
        out: &mut Outbox,
    ) -> Option<SyncDone> {
        let Some(over) = &self.over else { return Some(done) };
        let (task, took) = done.task();
        out.record(Event::Computed { task, microbatch: None, took });
        match over.done(done) {
            Next::Ask(task) => out.push(Action::Sync(task)),
            Next::Done => {
                let held = over.leads_to();
                self.over = None;
                self.has(now, held, plan, out);
            }
            Next::Flawed(reason) => self.start_over(now, reason, plan, out),
        }
        None
    }

    /// Begins anew where what is held leads nowhere.
    fn mend(&mut self, now: Time, plan: &Plan, out: &mut Outbox) {
        let Some(intake) = self.intake.as_ref().filter(|_| self.over.is_none()) else { return };
        if intake.went_astray() {
            self.start_over(
                now,
                "the state that was sent is not the one that was agreed on".into(),
                plan,
                out,
            );
        } else if intake.is_left_behind() {
            self.start_over(now, "what was begun to be fetched leads nowhere".into(), plan, out);
        }
    }

    /// Fetches a state anew, after what came did not fit.
    pub(crate) fn start_over(&mut self, now: Time, reason: String, plan: &Plan, out: &mut Outbox) {
        out.record(Event::Rejected { peer: None, reason });
        let Some(intake) = self.intake.take() else { return };
        self.begin_alone(plan);
        let mut intake = intake.anew(now);
        intake.woke(now, out);
        self.intake = Some(intake);
    }

    /// Hears that a peer would not take what was said to it.
    pub(crate) fn refused(
        &mut self,
        now: Time,
        from: PeerId,
        refusal: &Refusal,
        plan: &Plan,
        out: &mut Outbox,
    ) {
        if let Some(intake) = &mut self.intake {
            intake.refused(from, refusal);
        }
        self.mend(now, plan, out);
    }

    pub(crate) fn exported(&mut self, outer: OuterStep, agreed: Blob, own: Blob, out: &mut Outbox) {
        self.donor.exported(outer, agreed, own, out);
    }

    pub(crate) fn committed(
        &mut self,
        (outer, digest): (OuterStep, Digest),
        passed: Option<Passed>,
        out: &mut Outbox,
    ) {
        self.donor.committed(outer, digest, passed, out);
    }

    /// Hears that the place is entered: nothing is taken any more.
    pub(crate) fn entered(&mut self) {
        self.intake = None;
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.intake.as_ref().and_then(Intake::deadline)
    }

    pub(crate) fn woke(&mut self, now: Time, plan: &Plan, out: &mut Outbox) {
        if let Some(intake) = &mut self.intake {
            intake.woke(now, out);
        }
        self.mend(now, plan, out);
    }
}
