//! The event log: one JSON line an event, in order, as every driver writes it; and what a scenario asks of it.
//!
//! Owns the form of a line, the digest over all lines, and the sums. Its memory is one loss a step, whatever the length
//! of the log. Knows nothing of who makes the events.

use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use trestle_protocol::event::{Event, TaskKind};
use trestle_protocol::ids::{Digest, PeerId};
use trestle_protocol::message::Outcome;
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
        match event {
            Event::Step(summary) => {
                self.steps = summary.step.0 + 1;
                self.stepped = at;
                self.losses.push((summary.step.0, summary.loss));
                let staleness = summary.reports.iter().map(|(_, report)| report.staleness).max();
                self.staleness = self.staleness.max(staleness.unwrap_or(0));
            }
            Event::Evaluated { step, loss, .. } => self.evaluations.push((step.0, *loss)),
            Event::Ledger { planned, credited, duplicates } => {
                self.planned += planned * credited.len() as u64;
                self.credited += credited.iter().sum::<u64>();
                self.duplicate_receipts += duplicates;
            }
            Event::Durable { step, .. } => self.durable.push(step.0),
            Event::Started { step } => {
                self.steps = step.0;
                self.started.get_or_insert(at);
            }
            Event::Computed {
                task: TaskKind::Forward | TaskKind::Backward | TaskKind::Step, took, ..
            } => {
                let computed = self.computed.entry(peer).or_default();
                *computed = computed.saturating_add(*took);
            }
            Event::Duplicate { .. } => self.duplicates += 1,
            Event::Refused { .. } => self.refused += 1,
            Event::Rejected { .. } => self.rejected += 1,
            Event::LeaseExpired { .. } => self.expired += 1,
            Event::PeerLost { .. } => self.lost_peers += 1,
            Event::Finished { outcome: Outcome::Failed { .. } } => self.failed += 1,
            Event::Finished { outcome: Outcome::Done | Outcome::Stopped { .. } }
            | Event::Joined { .. }
            | Event::Planned { .. }
            | Event::Leased { .. }
            | Event::Computed { task: TaskKind::Save | TaskKind::Load, .. }
            | Event::Saved { .. }
            | Event::RefusedBy { .. }
            | Event::Draining { .. } => {}
        }
    }

    /// Returns the share of the time from the first lease to the last step for which the busiest worker computed.
    pub fn busy(&self) -> f64 {
        let wall = self.stepped.since(self.started.unwrap_or_default());
        let busiest = self.computed.values().max().copied().unwrap_or_default();
        if wall.0 == 0 { 0.0 } else { busiest.0 as f64 / wall.0 as f64 }
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
