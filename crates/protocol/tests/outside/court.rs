//! A court: an arbiter alone, with replicas that say what a test has them say.

use std::mem::take;
use trestle_protocol::agenda::Agenda;
use trestle_protocol::event::{Event, OuterSummary};
use trestle_protocol::ids::{
    Attempt, Digest, InnerStep, OuterStep, PeerId, PlanNumber, ReplicaId, SeatId, StageId,
};
use trestle_protocol::message::{Message, Refusal};
use trestle_protocol::plan::{Member, Place, Plan};
use trestle_protocol::port::{Action, Outbox};
use trestle_protocol::spec::Schedule;
use trestle_protocol::spec::sync::SyncSpec;
use trestle_protocol::sync::arbiter::{Arbiter, ArbiterConfig, Committed, Weighing};
use trestle_protocol::sync::say::{Begin, Round, Say};
use trestle_protocol::time::{Span, Time};

use crate::replicas::replicated;

/// Who does not answer for as long is lost.
pub(crate) const SILENCE: Span = Span::seconds(3);

/// Two digests that differ.
pub(crate) const X: Digest = Digest([1; 32]);
pub(crate) const Y: Digest = Digest([2; 32]);

pub(crate) fn peer(stage: u16, replica: u16) -> PeerId {
    PeerId([(stage * 16 + replica + 1) as u8; 32])
}

pub(crate) fn place(stage: u16, replica: u16) -> Place {
    Place { stage: StageId(stage), replica: ReplicaId(replica) }
}

pub(crate) fn plan(stages: u16, replicas: u16) -> Plan {
    let places = (0..stages).flat_map(|stage| (0..replicas).map(move |replica| (stage, replica)));
    let members = places.map(|(stage, replica)| Member {
        peer: peer(stage, replica),
        place: place(stage, replica),
        address: bytes::Bytes::new(),
        seat: SeatId(u32::from(stage * replicas + replica) + 1),
        enters: InnerStep(0),
        until: None,
    });
    let (coordinator, members) = (PeerId([0; 32]), members.collect());
    Plan { number: PlanNumber(1), coordinator, members, turns: Vec::new() }
}

pub(crate) fn round(outer: u64, attempt: u16) -> Round {
    Round { outer: OuterStep(outer), attempt: Attempt(attempt) }
}

/// An outer step every two inner steps, four in the run.
pub(crate) fn border(outer: u64) -> InnerStep {
    InnerStep(outer * 2 + 2)
}

pub(crate) struct Court {
    pub(crate) arbiter: Arbiter,
    pub(crate) now: Time,
    pub(crate) events: Vec<Event>,
    /// Whether receipts are still to come.
    pub(crate) awaits_receipts: bool,
    members: Vec<(u16, u16)>,
    out: Outbox,
    said: Vec<(PeerId, Say)>,
}

impl Court {
    pub(crate) fn new(stages: u16, replicas: u16, weighing: Weighing) -> Self {
        Self::again(stages, replicas, weighing, None)
    }

    /// Opens where another was; `committed` is what was durable.
    pub(crate) fn again(
        stages: u16,
        replicas: u16,
        weighing: Weighing,
        committed: Option<Committed>,
    ) -> Self {
        let spec = replicated(replicas, Schedule::Flush, SyncSpec::mean(2));
        let agenda = Agenda::new(&spec);
        let config =
            ArbiterConfig { agenda, step_tokens: spec.step_tokens(), weighing, silence_min: SILENCE };
        Self {
            arbiter: Arbiter::new(config, &plan(stages, replicas), InnerStep(0), committed),
            now: Time(0),
            events: Vec::new(),
            awaits_receipts: false,
            members: (0..stages)
                .flat_map(|stage| (0..replicas).map(move |replica| (stage, replica)))
                .collect(),
            out: Outbox::default(),
            said: Vec::new(),
        }
    }

    fn drain(&mut self) {
        while let Some(action) = self.out.pop() {
            if let Action::Send { to, message: Message::Sync(say) } = action {
                self.said.push((to, say));
            } else if let Action::Record(event) = action {
                self.events.push(event);
            } else {
                panic!("an arbiter has no business with {action:?}");
            }
        }
    }

    /// Gives what the arbiter has said since this was asked last.
    pub(crate) fn said(&mut self) -> Vec<(PeerId, Say)> {
        take(&mut self.said)
    }

    pub(crate) fn hear(&mut self, from: PeerId, say: Say) -> Result<(), Refusal> {
        let heard = self.arbiter.received(self.now, from, say, &mut self.out);
        self.advance();
        heard
    }

    pub(crate) fn advance(&mut self) {
        let awaits = self.awaits_receipts;
        self.arbiter.advance(self.now, &|_| awaits, &mut self.out);
        self.drain();
    }

    pub(crate) fn wait(&mut self, span: Span) {
        self.now = self.now + span;
        self.advance();
    }

    pub(crate) fn lose(&mut self, stage: u16, replica: u16) {
        self.arbiter.lost(peer(stage, replica));
        self.advance();
    }

    /// Lets the commit that was asked for come to the disk.
    pub(crate) fn store(&mut self) -> Committed {
        let committed = self.arbiter.take_store().expect("a commit is to be stored");
        self.arbiter.stored(self.now, &mut self.out);
        self.drain();
        committed
    }

    pub(crate) fn reach(&mut self, stage: u16, replica: u16, outer: u64, heard: u16) {
        let say = Say::Reached { outer: OuterStep(outer), step: border(outer), heard: Attempt(heard) };
        self.hear(peer(stage, replica), say).expect("it stands at the border");
    }

    pub(crate) fn reach_all(&mut self, outer: u64) {
        for (stage, replica) in self.members.clone() {
            self.reach(stage, replica, outer, 0);
        }
    }

    pub(crate) fn vote(&mut self, stage: u16, replica: u16, round: Round, digest: Digest) {
        let say = Say::Vote { round, digest, rates: Vec::new() };
        self.hear(peer(stage, replica), say).expect("a vote is heard");
    }

    pub(crate) fn claim(&mut self, replica: u16, round: Round, shard: u16, blob: Digest) {
        self.hear(peer(0, replica), Say::Claim { round, shard, blob }).expect("a claim is heard");
    }

    /// Gives the one round of the first stage that was begun since what was said was asked for last.
    pub(crate) fn begun(&mut self) -> Begin {
        let begins = self.said().into_iter().filter_map(|(to, say)| {
            let Say::Begin(begin) = say else { return None };
            self.members
                .iter()
                .any(|(stage, replica)| *stage == 0 && peer(0, *replica) == to)
                .then_some(begin)
        });
        let begins: Vec<Begin> = begins.collect();
        assert!(begins.iter().all(|begin| *begin == begins[0]), "all hear the same: {begins:?}");
        begins.into_iter().next().expect("a round begins")
    }

    pub(crate) fn summaries(&self) -> Vec<&OuterSummary> {
        let mut summaries = Vec::new();
        for event in &self.events {
            if let Event::Outer(summary) = event {
                summaries.push(summary);
            }
        }
        summaries
    }
}
