//! The coordinator's side of the outer step: opens rounds, counts claims and votes, and commits or restores for all.
//!
//! Owns the decision, and who takes part in a round. Never sees a parameter: it compares digests. A commit is durable before
//! anyone hears of it; what is not durably committed is restored (presumed abort), so that a coordinator that starts again
//! answers every replica alike.

use crate::agenda::Agenda;
use crate::event::{Event, OuterSummary, Verdict};
use crate::ids::{Attempt, Digest, InnerStep, OuterStep, PeerId, ReplicaId, SeatId, StageId};
use crate::message::{Message, Refusal};
use crate::plan::{Member, Place, Plan};
use crate::port::Outbox;
use crate::route::NEVER;
use crate::sync::credit::Credit;
use crate::sync::patience::Patience;
use crate::sync::say::{Round, Say, bounded};
use crate::sync::table::{Standing, Table};
use crate::time::{Span, Time};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The wait for the first exchange of a run, whose length nobody has measured yet.
const EXCHANGE_WAIT_FIRST: Span = Span::seconds(30);

/// The wait for the first step's last receipts, which neighbours sign when they have taken their own step.
const CREDIT_WAIT_FIRST: Span = Span::seconds(30);

/// The wait for the first answer to a probe.
const PROBE_WAIT_FIRST: Span = Span::seconds(1);

/// Tries that may end in disagreement before the outer step is restored: one reducer that errs is found by the second try,
/// two by the third.
const DISAGREEMENTS_MAX: u16 = 3;

/// How contributions are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighing {
    /// By the microbatches that others receipted.
    Receipts,
    /// All alike.
    Equal,
}

/// What an arbiter starts with.
#[derive(Clone, Copy, Debug)]
pub struct ArbiterConfig {
    /// When outer steps are due.
    pub agenda: Agenda,
    /// Training tokens of an inner step.
    pub step_tokens: u64,
    /// How contributions are weighed.
    pub weighing: Weighing,
    /// A replica that leaves a probe unanswered for less than this is not taken for lost.
    pub silence_min: Span,
}

/// The quantities that all replicas of all stages share after a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The outer step.
    pub outer: OuterStep,
    /// Inner steps at its border; the learning rate of the next follows from it.
    pub step: InnerStep,
    /// Training tokens of the whole run up to there.
    pub tokens: u64,
    /// Digest of each stage's weights.
    pub digests: Vec<(StageId, Digest)>,
}

/// The judge of a run's outer steps.
#[derive(Debug)]
pub struct Arbiter {
    config: ArbiterConfig,
    tables: BTreeMap<StageId, Table>,
    open: OuterStep,
    /// Nothing was decided since the start: replicas may already stand at a later step than the durable state knows.
    fresh: bool,
    committed: Option<Committed>,
    storing: Option<Committed>,
    to_store: Option<Committed>,
    credit: Credit,
    began: Option<Time>,
    /// When all stood at the border, and only credit was waited for.
    assembled: Option<Time>,
    /// Whether the last receipt of the open outer step has come, before or after its exchange began.
    credited: bool,
    /// When the first try began.
    opened: Option<Time>,
    /// How long an exchange takes when nothing goes wrong.
    exchanges: Patience,
    /// How long the last receipts take to come in, once all stand at the border.
    credits: Patience,
    answers: Patience,
    probe_at: Option<Time>,
    probing: Option<(Time, Time)>,
    lost: Vec<PeerId>,
    /// Replicas that were alone with their vote when an outer step was called off.
    alone: Vec<PeerId>,
    /// Outer steps on end in which replicas disagreed and nobody was alone.
    split: u32,
    restored: Option<OuterStep>,
}

impl Arbiter {
    /// Opens the outer step that begins at `start`; `committed` is what was durable when the coordinator started.
    pub fn new(config: ArbiterConfig, plan: &Plan, start: InnerStep, committed: Option<Committed>) -> Self {
        let mut tables: BTreeMap<StageId, Table> = BTreeMap::new();
        for member in plan.members.iter().filter(|member| member.enters < NEVER) {
            let Place { stage, replica } = member.place;
            tables.entry(stage).or_default().seat(replica, member.peer, member.seat);
        }
        let after = committed
            .as_ref()
            .map_or(OuterStep(0), |committed| OuterStep(committed.outer.0.saturating_add(1)));
        let open = config.agenda.outer_after(start).max(after);
        Self {
            config,
            tables,
            open,
            fresh: true,
            committed,
            storing: None,
            to_store: None,
            credit: Credit::default(),
            began: None,
            assembled: None,
            credited: false,
            opened: None,
            exchanges: Patience::new(EXCHANGE_WAIT_FIRST),
            credits: Patience::new(CREDIT_WAIT_FIRST),
            answers: Patience::new(PROBE_WAIT_FIRST),
            probe_at: None,
            probing: None,
            lost: Vec::new(),
            alone: Vec::new(),
            split: 0,
            restored: None,
        }
    }

    /// Takes a newcomer in, who contributes nothing to the open outer step but follows it.
    pub fn seat(&mut self, member: &Member) {
        let Place { stage, replica } = member.place;
        self.tables.entry(stage).or_default().seat(replica, member.peer, member.seat);
    }

    /// Returns whether a newcomer may still follow the open outer step of a stage: its exchange has not begun, or nobody is
    /// left in it.
    pub fn may_seat(&self, stage: StageId) -> bool {
        let free = |table: &Table| !table.has_begun() || table.is_deserted();
        self.storing.is_none() && self.to_store.is_none() && self.tables.get(&stage).is_none_or(free)
    }

    /// Returns whether the current try counts on what a peer has contributed, so that its loss is not yet that of its work.
    pub fn counts_on(&self, peer: PeerId) -> bool {
        self.tables.values().any(|table| table.counts_on(peer) && !table.is_deserted())
    }

    /// Returns whether a peer stands at the border of the open outer step.
    pub fn has_reached(&self, peer: PeerId) -> bool {
        let place =
            self.place_of(peer).and_then(|(stage, replica)| Some((self.tables.get(&stage)?, replica)));
        place.is_some_and(|(table, replica)| table.has_reached(replica))
    }

    /// Lists the seats that contribute to the current tries, each with the steps that its snapshot has seen.
    pub fn contributions(&self) -> Vec<(SeatId, InnerStep)> {
        self.tables.values().flat_map(Table::contributions).collect()
    }

    /// Counts a microbatch that a receipt credits to a place, in one of that replica's steps.
    pub fn credit(&mut self, step: InnerStep, place: Place) {
        // What is credited behind its commit has no contribution left to weigh.
        let undecided = |outer: &OuterStep| self.committed.as_ref().is_none_or(|last| *outer > last.outer);
        let outer = self.outer_of(step);
        if undecided(&outer) {
            self.credit.add(outer, place);
        }
    }

    /// Counts a microbatch that no commit holds: it comes with the place's next contribution, whatever was committed without it
    /// meanwhile.
    pub fn credit_again(&mut self, step: InnerStep, place: Place) {
        self.credit.add(self.outer_of(step).max(self.open), place);
    }

    fn outer_of(&self, step: InnerStep) -> OuterStep {
        // What is done again when all steps are taken is trained in one behind the last, and is part of the last contribution.
        self.config.agenda.outer_of(step).unwrap_or_else(|| self.config.agenda.outer_last())
    }

    /// Forgets the credit of a place whose holder is lost.
    pub fn forget_credit(&mut self, place: Place) {
        self.credit.forget(place);
    }

    /// Gives what must be durable before the commit may be announced, once; answered by [`Arbiter::stored`].
    pub fn take_store(&mut self) -> Option<Committed> {
        self.to_store.take()
    }

    /// Returns what is durably committed.
    pub fn committed(&self) -> Option<&Committed> {
        self.committed.as_ref()
    }

    /// Returns the outer step that is open.
    pub fn open(&self) -> OuterStep {
        self.open
    }

    /// Returns how many claims and votes of the current tries have come: replicas repeat theirs, and that is no progress.
    pub fn heard(&self) -> usize {
        self.tables.values().map(Table::heard).sum()
    }

    /// Returns whether anyone still takes part.
    pub fn has_members(&self) -> bool {
        self.tables.values().any(|table| !table.is_deserted())
    }

    /// Gives the replicas that were found lost, once.
    pub fn take_lost(&mut self) -> Vec<PeerId> {
        core::mem::take(&mut self.lost)
    }

    /// Gives the replicas that were alone with their vote, once: their weights are not those of the others.
    pub fn take_alone(&mut self) -> Vec<PeerId> {
        core::mem::take(&mut self.alone)
    }

    /// Returns how many outer steps on end replicas disagreed without anyone being alone.
    pub fn split(&self) -> u32 {
        self.split
    }

    /// Gives the outer step that was restored, once.
    pub fn take_restored(&mut self) -> Option<OuterStep> {
        self.restored.take()
    }

    /// Returns when to call [`Arbiter::advance`].
    pub fn deadline(&self) -> Option<Time> {
        let awaits_credit = self.tables.values().any(|table| table.is_assembled() && !table.has_begun());
        let credit = self.assembled.filter(|_| awaits_credit).map(|since| since + self.credits.wait());
        // While a commit is on its way to the disk, nobody is asked anything.
        let probe = self.probe_at.filter(|_| self.storing.is_none());
        credit.into_iter().chain(self.probing.map(|(_, until)| until).or(probe)).min()
    }

    /// Takes a message of a replica.
    pub fn received(&mut self, now: Time, from: PeerId, say: Say, out: &mut Outbox) -> Result<(), Refusal> {
        let Some((stage, replica)) = self.place_of(from) else {
            return Err(Refusal::NotMember { peer: from });
        };
        let outer = match &say {
            Say::Reached { outer, .. } | Say::Alive { outer } => *outer,
            Say::Claim { round, .. } | Say::Flaw { round, .. } | Say::Vote { round, .. } => round.outer,
            Say::Begin(_)
            | Say::Offer { .. }
            | Say::Want { .. }
            | Say::Chunk { .. }
            | Say::Commit { .. }
            | Say::Restore { .. }
            | Say::Probe { .. }
            | Say::Excluded { .. } => return Err(Refusal::NotYours { peer: from }),
        };
        let table = self.tables.get_mut(&stage).expect("a place is at a table");
        if table.standing(replica) == Standing::Gone {
            out.send(from, Message::Sync(Say::Excluded { outer: self.open.max(outer) }));
            return Ok(());
        }
        if let Some(waited) = table.hear(replica, now) {
            self.answers.learn(waited);
        }
        if let Say::Reached { outer, step, .. } = &say {
            let border = self.config.agenda.outer_border_or_end(*outer);
            // At the end a replica may have taken steps for what was done again.
            let beyond = border == Some(self.config.agenda.steps()) && border < Some(*step);
            if border != Some(*step) && !beyond {
                return Err(Refusal::NotAtBorder { outer: *outer, step: *step });
            }
            if self.fresh && self.storing.is_none() && *outer > self.open {
                self.catch_up(*outer, out);
            }
        }
        if outer < self.open {
            self.answer_late(from, stage, outer, out);
            return Ok(());
        }
        if outer > self.open {
            return Err(Refusal::OuterAhead { got: outer, open: self.open });
        }
        self.count(now, (stage, replica), say, out);
        Ok(())
    }

    fn count(&mut self, now: Time, (stage, replica): (StageId, ReplicaId), say: Say, out: &mut Outbox) {
        let open = self.open;
        let Some(table) = self.tables.get_mut(&stage) else { return };
        match say {
            Say::Reached { heard, step, .. } => {
                self.began.get_or_insert(now);
                table.reached(replica, step, heard);
                let wait = self.exchanges.wait();
                self.probe_at.get_or_insert(now + wait);
                table.remind(replica, out);
            }
            Say::Claim { round, shard, blob } => table.claim(round.attempt, shard, replica, blob),
            Say::Vote { round, digest, rates } => table.vote(round.attempt, replica, digest, &rates),
            Say::Flaw { round, contributor, reason } => {
                if table.flaw(round.attempt, contributor) {
                    out.record(Event::Flawed { outer: open, replica: contributor, reason: bounded(&reason) });
                }
            }
            Say::Alive { .. } => {}
            Say::Begin(_)
            | Say::Offer { .. }
            | Say::Want { .. }
            | Say::Chunk { .. }
            | Say::Commit { .. }
            | Say::Restore { .. }
            | Say::Probe { .. }
            | Say::Excluded { .. } => unreachable!("refused before"),
        }
    }

    /// Follows a replica to the step it stands at. The one that is open was decided before this coordinator started, and not
    /// committed, or the durable state would know: it was restored.
    fn catch_up(&mut self, outer: OuterStep, out: &mut Outbox) {
        for table in self.tables.values_mut() {
            for (_, peer) in table.present().filter(|_| table.has_begun()) {
                out.send(peer, Message::Sync(Say::Restore { outer: self.open }));
            }
        }
        self.restored = Some(self.open);
        self.turn_to(outer);
    }

    /// Makes ready for an outer step.
    fn turn_to(&mut self, outer: OuterStep) {
        self.open = outer;
        (self.began, self.assembled, self.opened) = (None, None, None);
        (self.probe_at, self.probing, self.credited) = (None, None, false);
        self.tables.values_mut().for_each(Table::close);
    }

    /// Tells a replica how a step ended that the others have left behind: restored, unless it is the last that was
    /// committed. One that stands before that has missed a commit for good.
    fn answer_late(&self, to: PeerId, stage: StageId, outer: OuterStep, out: &mut Outbox) {
        let say = match &self.committed {
            Some(committed) if committed.outer > outer => Say::Excluded { outer },
            Some(committed) if committed.outer == outer => {
                commit_for(committed, stage).unwrap_or(Say::Excluded { outer })
            }
            Some(_) | None => Say::Restore { outer },
        };
        out.send(to, Message::Sync(say));
    }

    /// Hears that a peer is gone.
    pub fn lost(&mut self, peer: PeerId) {
        let Some((stage, replica)) = self.place_of(peer) else { return };
        if let Some(table) = self.tables.get_mut(&stage) {
            table.leave(replica);
        }
    }

    /// Does whatever can be done now; to be called after every input, and at the deadline. `awaits_receipts` says whether
    /// receipts for a stage's work may still be on their way.
    pub fn advance(&mut self, now: Time, awaits_receipts: &dyn Fn(StageId) -> bool, out: &mut Outbox) {
        self.probe(now, out);
        if self.storing.is_some() {
            return;
        }
        let stages: Vec<StageId> = self.tables.keys().copied().collect();
        let assembled = self.tables.values().all(Table::is_assembled);
        if assembled && self.assembled.is_none() {
            self.assembled = Some(now);
        }
        if let Some(since) = self.assembled.filter(|_| !self.credited) {
            self.credited = !stages.iter().any(|stage| awaits_receipts(*stage));
            if self.credited {
                self.credits.learn(now.since(since));
            }
        }
        let mut hopeless = false;
        for stage in stages {
            hopeless |= !self.advance_stage(now, stage, awaits_receipts, out);
        }
        if hopeless {
            let disagreed = self.tables.values().any(|table| table.disagreement().is_some());
            self.alone.extend(self.tables.values().flat_map(Table::minority));
            self.split = if disagreed && self.alone.is_empty() { self.split + 1 } else { 0 };
            return self.restore(now, out);
        }
        let votes: Option<Vec<(StageId, Digest)>> =
            self.tables.iter().map(|(stage, table)| Some((*stage, table.agreed_vote()?))).collect();
        let step = self.config.agenda.outer_border_or_end(self.open);
        if let (Some(digests), Some(step)) = (votes, step) {
            let tokens = self.config.step_tokens.saturating_mul(step.0);
            let committed = Committed { outer: self.open, step, tokens, digests };
            self.storing = Some(committed.clone());
            self.to_store = Some(committed);
        }
    }

    /// Opens a try of a stage where one is due; returns whether there is hope for this outer step.
    fn advance_stage(
        &mut self,
        now: Time,
        stage: StageId,
        awaits_receipts: &dyn Fn(StageId) -> bool,
        out: &mut Outbox,
    ) -> bool {
        let Some(table) = self.tables.get(&stage) else { return true };
        if table.is_deserted() {
            return true;
        }
        let disagreed = table.disagreement();
        if let Some(shard) = disagreed {
            out.record(Event::Disagreed { outer: self.open, stage, shard });
        }
        let due = if table.has_begun() {
            disagreed.is_some() || table.is_broken()
        } else {
            table.is_assembled() && self.credit_is_in(now, stage, awaits_receipts)
        };
        if !due {
            return true;
        }
        let outer = self.open;
        let weights = self.weights(stage);
        let wait = self.exchanges.wait();
        let Some(table) = self.tables.get_mut(&stage) else { return true };
        if disagreed.is_some() && table.disagreed() >= DISAGREEMENTS_MAX {
            return false;
        }
        self.probe_at = Some(now + wait);
        let begun = table.begin(outer, &weights, out);
        self.opened.get_or_insert(now);
        begun
    }

    fn credit_is_in(&self, now: Time, stage: StageId, awaits_receipts: &dyn Fn(StageId) -> bool) -> bool {
        let waited = self.assembled.is_some_and(|since| now >= since + self.credits.wait());
        match self.config.weighing {
            Weighing::Equal => true,
            Weighing::Receipts => waited || !awaits_receipts(stage),
        }
    }

    /// Returns the weight of each replica of a stage: its credit, or 1 each where nobody has any.
    fn weights(&self, stage: StageId) -> BTreeMap<ReplicaId, u64> {
        let Some(table) = self.tables.get(&stage) else { return BTreeMap::new() };
        let credit = |replica| self.credit.of(self.open, Place { stage, replica });
        let weights: BTreeMap<ReplicaId, u64> =
            table.present().map(|(replica, _)| (replica, credit(replica))).collect();
        match self.config.weighing {
            Weighing::Receipts if weights.values().any(|weight| *weight > 0) => weights,
            Weighing::Receipts | Weighing::Equal => weights.into_keys().map(|replica| (replica, 1)).collect(),
        }
    }

    /// Asks those who owe something whether they are there, when it takes longer than it ever did; who does not answer is
    /// lost.
    fn probe(&mut self, now: Time, out: &mut Outbox) {
        if let Some((asked, until)) = self.probing {
            if now < until {
                return;
            }
            self.probing = None;
            for (stage, table) in &mut self.tables {
                for (replica, peer) in table.silent_since(asked) {
                    table.leave(replica);
                    self.lost.push(peer);
                    out.record(Event::Excluded { outer: self.open, peer, stage: *stage });
                }
            }
            self.probe_at = Some(now + self.exchanges.wait());
            return;
        }
        if self.probe_at.is_none_or(|at| now < at) || self.storing.is_some() {
            return;
        }
        let wait = self.answers.wait().max(self.config.silence_min);
        self.probing = Some((now, now + wait));
        for table in self.tables.values_mut() {
            for peer in table.ask(now) {
                out.send(peer, Message::Sync(Say::Probe { outer: self.open }));
            }
        }
    }

    /// Hears that the commit is durable, and announces it.
    pub fn stored(&mut self, now: Time, out: &mut Outbox) {
        let Some(committed) = self.storing.take() else { return };
        for (stage, table) in &self.tables {
            let Some(commit) = commit_for(&committed, *stage) else { continue };
            for (_, peer) in table.present() {
                out.send(peer, Message::Sync(commit.clone()));
            }
        }
        let took = self.began.map_or(Span(0), |began| now.since(began));
        // What was waited for in vain must not teach patience, or each fault would make the next one last longer.
        let disturbed = self.tables.values().any(|table| table.attempts() > Attempt(1));
        if let Some(opened) = self.opened.filter(|_| !disturbed) {
            self.exchanges.learn(now.since(opened));
        }
        self.split = 0;
        let contributed =
            |Place { stage, replica }| self.tables.get(&stage).is_none_or(|table| table.contributes(replica));
        self.credit.committed(committed.outer, contributed);
        self.conclude(Verdict::Committed, took, &committed.digests, out);
        self.committed = Some(committed);
    }

    /// Calls the open outer step off, though all have voted: it would not hold all that it has to.
    pub fn call_off(&mut self, now: Time, out: &mut Outbox) {
        (self.storing, self.to_store) = (None, None);
        self.restore(now, out);
    }

    fn restore(&mut self, now: Time, out: &mut Outbox) {
        for table in self.tables.values() {
            for (_, peer) in table.present() {
                out.send(peer, Message::Sync(Say::Restore { outer: self.open }));
            }
        }
        let took = self.began.map_or(Span(0), |began| now.since(began));
        self.restored = Some(self.open);
        self.conclude(Verdict::Restored, took, &[], out);
    }

    fn conclude(&mut self, verdict: Verdict, took: Span, digests: &[(StageId, Digest)], out: &mut Outbox) {
        let agenda = self.config.agenda;
        let step = agenda.outer_border(self.open).unwrap_or_else(|| agenda.steps());
        out.record(Event::Outer(OuterSummary {
            outer: self.open,
            step,
            verdict,
            took,
            attempts: self.tables.values().map(Table::attempts).max().unwrap_or_default(),
            contributors: self.tables.iter().map(|(stage, table)| (*stage, table.contributors())).collect(),
            digests: digests.to_vec(),
        }));
        self.fresh = false;
        self.turn_to(OuterStep(self.open.0 + 1));
    }

    /// Returns where a peer takes part, or else where it did.
    fn place_of(&self, peer: PeerId) -> Option<(StageId, ReplicaId)> {
        let places = || {
            self.tables
                .iter()
                .filter_map(move |(stage, table)| Some((*stage, table, table.replica_of(peer)?)))
        };
        let there = places().find(|(_, table, replica)| table.standing(*replica) == Standing::Present);
        there.or_else(|| places().next()).map(|(stage, _, replica)| (stage, replica))
    }

    /// Returns the round that a stage is in.
    pub fn round(&self, stage: StageId) -> Option<Round> {
        let attempt = self.tables.get(&stage).filter(|table| table.has_begun()).map(Table::attempts)?;
        (attempt > Attempt(0)).then_some(Round { outer: self.open, attempt })
    }
}

fn commit_for(committed: &Committed, stage: StageId) -> Option<Say> {
    let (_, digest) = committed.digests.iter().find(|(of, _)| *of == stage)?;
    let Committed { outer, step, tokens, .. } = *committed;
    Some(Say::Commit { outer, step, tokens, digest: *digest })
}
