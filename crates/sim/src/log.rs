//! The event log: one JSON line an event, in order, as every driver writes it; and what a scenario asks of it.
//!
//! Owns the form of a line, the digest over all lines, and the sums. Its memory is one loss a step, whatever the length
//! of the log. Knows nothing of who makes the events.

use crate::course::Course;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use trestle_protocol::accounts::Account;
use trestle_protocol::event::{Event, OuterSummary, StepSummary, TaskKind, Verdict};
use trestle_protocol::ids::{Digest, OuterStep, PeerId, StageId};
use trestle_protocol::message::{Outcome, StepReport};
use trestle_protocol::plan::Place;
use trestle_protocol::time::{Span, Time};

/// A line of the log: `{"at":<microseconds>,"peer":"<hex>","event":{...}}`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at: Time,
    peer: String,
    event: &'a Event,
}

/// Writes events and counts them.
pub struct EventLog<'a> {
    sink: &'a mut dyn Write,
    hasher: blake3::Hasher,
    line: Vec<u8>,
    tally: Tally,
}

/// What is counted of a log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Lines.
    pub events: u64,
    /// Inner steps done, as the coordinator counts them.
    pub steps: u64,
    /// Mean training loss of each step, nats per token; a step that is trained again after a crash is here twice.
    pub losses: Vec<(u64, f64)>,
    /// Held-out loss at each border.
    pub evaluations: Vec<(u64, f64)>,
    /// Training microbatches that the ledgers planned, times stages.
    pub planned: u64,
    /// What the ledgers credited, summed over stages.
    pub credited: u64,
    /// Receipts for work that was credited already.
    pub duplicate_receipts: u64,
    /// Things that arrived twice.
    pub duplicates: u64,
    /// Messages that were refused.
    pub refused: u64,
    /// Bytes that were no message.
    pub rejected: u64,
    /// Leases that ran out.
    pub expired: u64,
    /// Peers lost, counted at each that noticed.
    pub lost_peers: u64,
    /// Each border at which the run became durable.
    pub durable: Vec<u64>,
    /// Largest staleness that a worker reported.
    pub staleness: u64,
    /// Nodes that ended otherwise than well, the coordinator among them, over all runnings.
    pub failed: u64,
    /// How the run ended at its coordinator.
    pub outcome: Option<Outcome>,
    /// When work first began.
    pub started: Option<Time>,
    /// When the last step was complete.
    pub stepped: Time,
    /// How long each worker computed.
    pub computed: BTreeMap<PeerId, Span>,
    /// What is counted of the outer steps.
    pub outer: OuterTally,
    /// What is counted of peers that come and go.
    pub members: MemberTally,
    /// What came of it over time.
    pub course: Course,
}

/// What is counted of peers that come and go, as the coordinator tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberTally {
    /// Peers that took a place under way.
    pub seated: u64,
    /// Members that may have been gone.
    pub suspected: u64,
    /// Members that lost their place, for whatever reason.
    pub removed: u64,
    /// Members that asked to leave.
    pub leaving: u64,
    /// How often a stage had no replica left.
    pub stalled: u64,
    /// How often one had a replica again.
    pub resumed: u64,
    /// Microbatches that went to another replica than before, at each peer that sent them.
    pub rerouted: u64,
    /// Microbatches that were leased again because work at some stage was lost.
    pub redone: u64,
    /// Who has trained what, as the last ledger has it.
    pub accounts: Vec<Account>,
    /// What peers of each stage did although it was there already, or was asked of another of that stage or one before it too.
    pub raced: BTreeMap<StageId, u64>,
    /// Members of each stage that lost their places.
    pub lost_at: BTreeMap<StageId, u64>,
}

/// What is counted of the outer steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OuterTally {
    /// Those committed for all stages.
    pub committed: u64,
    /// Those restored for all stages.
    pub restored: u64,
    /// Replicas that took over a commit, over all outer steps.
    pub agreed: u64,
    /// Those whose weights then were not those of their stage's commit.
    pub apart: u64,
    /// Contributions and results that were found flawed, at each peer that noticed.
    pub flawed: u64,
    /// Shards, or votes, on which replicas differed.
    pub disagreed: u64,
    /// Replicas that the others went on without.
    pub excluded: u64,
    /// What the weights of each stage are after the outer steps that were committed.
    pub digests: BTreeMap<(OuterStep, StageId), Digest>,
    /// Where each peer stands.
    pub places: BTreeMap<PeerId, Place>,
    /// For how long computing stood still for outer steps at each place, and how long its inner steps took, from the first
    /// that had to do with one.
    pub stood: BTreeMap<Place, (Span, Span)>,
}

impl<'a> EventLog<'a> {
    /// Starts a log.
    pub fn new(sink: &'a mut dyn Write) -> Self {
        Self { sink, hasher: blake3::Hasher::new(), line: Vec::new(), tally: Tally::default() }
    }

    /// Writes an event of a peer.
    ///
    /// # Errors
    /// What the sink says.
    pub fn record(&mut self, at: Time, peer: PeerId, event: &Event) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, &Line { at, peer: peer.to_hex(), event })?;
        self.line.push(b'\n');
        self.hasher.update(&self.line);
        self.sink.write_all(&self.line)?;
        self.tally.count(at, peer, event);
        Ok(())
    }

    /// Notes how the run ended at its coordinator.
    pub fn ended(&mut self, outcome: &Outcome) {
        self.tally.outcome = Some(outcome.clone());
    }

    /// Forgets how an earlier part of the run ended.
    pub fn begins(&mut self) {
        self.tally.outcome = None;
    }

    /// Returns the sums so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the digest of all lines, and the sums.
    pub fn finish(self) -> (Digest, Tally) {
        (Digest(*self.hasher.finalize().as_bytes()), self.tally)
    }
}

impl Tally {
    fn count(&mut self, at: Time, peer: PeerId, event: &Event) {
        self.events += 1;
        self.course.take(at, event);
        match event {
            Event::Step(summary) => self.stepped(at, summary),
            Event::Planned { members, .. } => self.outer.places.extend(members.iter().copied()),
            Event::Outer(summary) => self.outer.decided(summary),
            Event::Agreed { outer, digest } => self.outer.agreed(peer, *outer, *digest),
            Event::Flawed { .. } => self.outer.flawed += 1,
            Event::Disagreed { .. } => self.outer.disagreed += 1,
            Event::Excluded { .. } => self.outer.excluded += 1,
            Event::Evaluated { step, loss, .. } => self.evaluations.push((step.0, *loss)),
            Event::Ledger { planned, credited, duplicates, accounts, .. } => {
                self.planned += planned * credited.len() as u64;
                self.credited += credited.iter().sum::<u64>();
                self.duplicate_receipts += duplicates;
                self.members.accounts.clone_from(accounts);
            }
            Event::Seated { peer, place, .. } => {
                self.outer.places.insert(*peer, *place);
                self.members.seated += 1;
            }
            Event::Suspected { .. } => self.members.suspected += 1,
            // Who is removed or leaves tells it too.
            Event::Removed { peer: gone, place, .. } if *gone != peer => {
                self.members.removed += 1;
                *self.members.lost_at.entry(place.stage).or_default() += 1;
            }
            Event::Removed { .. } => {}
            Event::Leaving { peer: gone, .. } => self.members.leaving += u64::from(*gone != peer),
            Event::Stalled { .. } => self.members.stalled += 1,
            Event::Resumed { .. } => self.members.resumed += 1,
            Event::Rerouted { to, .. } => {
                self.members.rerouted += 1;
                self.raced_from(*to);
            }
            Event::Redo { count, .. } => self.members.redone += count,
            Event::Durable { step, .. } => self.durable.push(step.0),
            Event::Started { step } => {
                // A coordinator that starts again may know of fewer than were told.
                self.steps = self.steps.max(step.0);
                self.started.get_or_insert(at);
            }
            Event::Computed { task, took, .. } => self.computed(peer, *task, *took),
            Event::Duplicate { from, .. } => {
                self.duplicates += 1;
                self.raced(*from);
            }
            Event::Refused { .. } => self.refused += 1,
            Event::Rejected { .. } => self.rejected += 1,
            Event::LeaseExpired { .. } => {
                self.expired += 1;
                *self.members.raced.entry(StageId(0)).or_default() += 1;
            }
            Event::PeerLost { .. } => self.lost_peers += 1,
            Event::Finished { outcome: Outcome::Failed { .. } } => self.failed += 1,
            Event::Finished { outcome: Outcome::Done | Outcome::Stopped { .. } | Outcome::Left }
            | Event::Joined { .. }
            | Event::Waiting { .. }
            | Event::Trusted { .. }
            | Event::Leased { .. }
            | Event::Restored { .. }
            | Event::Saved { .. }
            | Event::RefusedBy { .. }
            | Event::Draining { .. } => {}
        }
    }

    fn stepped(&mut self, at: Time, summary: &StepSummary) {
        // A coordinator that starts again tells of some steps a second time.
        self.steps = self.steps.max(summary.step.0 + 1);
        self.stepped = at;
        self.losses.push((summary.step.0, summary.loss));
        let staleness = summary.reports.iter().map(|(_, report)| report.staleness).max();
        self.staleness = self.staleness.max(staleness.unwrap_or(0));
        summary.reports.iter().for_each(|(place, report)| self.outer.stood(*place, report));
    }

    /// Adds up what is computed for training.
    fn computed(&mut self, peer: PeerId, task: TaskKind, took: Span) {
        match task {
            TaskKind::Forward | TaskKind::Backward | TaskKind::Step => {
                let computed = self.computed.entry(peer).or_default();
                *computed = computed.saturating_add(took);
            }
            TaskKind::Save
            | TaskKind::Load
            | TaskKind::Export
            | TaskKind::Snapshot
            | TaskKind::Encode
            | TaskKind::Reduce
            | TaskKind::Stage
            | TaskKind::Commit
            | TaskKind::Restore
            | TaskKind::Adopt => {}
        }
    }

    /// What goes around a replica may have gone through it before: the stages behind it may have it from both, and who was to
    /// give the receipt for the first may be lost.
    fn raced_from(&mut self, peer: PeerId) {
        let Some(first) = self.outer.places.get(&peer).map(|place| place.stage) else { return };
        let last = self.outer.places.values().map(|place| place.stage).max().unwrap_or(first);
        for stage in (first.0..=last.0).map(StageId) {
            *self.members.raced.entry(stage).or_default() += 1;
        }
    }

    fn raced(&mut self, peer: PeerId) {
        if let Some(place) = self.outer.places.get(&peer) {
            *self.members.raced.entry(place.stage).or_default() += 1;
        }
    }

    /// Returns the share of the time from the first lease to the last step for which the busiest worker computed.
    pub fn busy(&self) -> f64 {
        let wall = self.stepped.since(self.started.unwrap_or_default());
        let busiest = self.computed.values().max().copied().unwrap_or_default();
        if wall.0 == 0 { 0.0 } else { busiest.0 as f64 / wall.0 as f64 }
    }
}

impl OuterTally {
    fn stood(&mut self, place: Place, report: &StepReport) {
        // What comes before the first outer step has none to stand still for.
        if report.sync == Span(0) && !self.stood.contains_key(&place) {
            return;
        }
        let (stood, wall) = self.stood.entry(place).or_default();
        *stood = stood.saturating_add(report.sync);
        *wall = wall.saturating_add(report.wall);
    }

    fn decided(&mut self, summary: &OuterSummary) {
        match summary.verdict {
            Verdict::Committed => self.committed += 1,
            Verdict::Restored => self.restored += 1,
        }
        let digests = summary.digests.iter().map(|(stage, digest)| ((summary.outer, *stage), *digest));
        self.digests.extend(digests);
    }

    fn agreed(&mut self, peer: PeerId, outer: OuterStep, digest: Digest) {
        self.agreed += 1;
        let stage = self.places.get(&peer).map(|place| place.stage);
        let committed = stage.and_then(|stage| self.digests.get(&(outer, stage)));
        if committed != Some(&digest) {
            self.apart += 1;
        }
    }

    /// Returns the share of its time for which a worker did not stand still for an outer step, where that is least.
    pub fn utilisation(&self) -> f64 {
        let share = |(stood, wall): &(Span, Span)| 1.0 - stood.0 as f64 / wall.0.max(1) as f64;
        self.stood.values().map(share).fold(1.0, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trestle_protocol::ids::InnerStep;

    #[test]
    fn a_line_has_the_form_that_every_driver_writes() {
        let mut text = Vec::new();
        let mut log = EventLog::new(&mut text);
        log.record(Time(7), PeerId([0xab; 32]), &Event::Draining { border: InnerStep(3) }).expect("memory");
        let (digest, tally) = log.finish();
        let hex = "ab".repeat(32);
        let want = format!("{{\"at\":7,\"peer\":\"{hex}\",\"event\":{{\"Draining\":{{\"border\":3}}}}}}\n");
        assert_eq!(String::from_utf8(text).expect("JSON is text"), want);
        assert_eq!((digest, tally.events), (Digest::of(want.as_bytes()), 1));
    }
}
