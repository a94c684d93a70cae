//! Where a worker stands in its run, for the person whose computer it is.
//!
//! Owns how that is read off what passes between coordinator and core. Decides nothing, and writes no words.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use trestle_protocol::ids::PeerId;
use trestle_protocol::message::{Message, Removal, Start, Wait};
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Action, Input};
use trestle_protocol::sync::state::{StatePart, StateSay};
use trestle_protocol::time::{Span, Time};

/// Where a worker stands; each is said when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The coordinator has heard of it and has no place for it yet.
    Waiting {
        /// Peers that are served before it.
        ahead: u32,
        /// What it waits for.
        why: Wait,
    },
    /// It has a place.
    Placed {
        /// Which.
        place: Place,
        /// Where its weights come from.
        start: Start,
        /// Other replicas of its stage.
        replicas: usize,
    },
    /// Other replicas offer the state of its stage.
    Fetching {
        /// How much.
        bytes: u64,
        /// How many offer it.
        replicas: usize,
    },
    /// It has begun to compute.
    Training,
    /// Its connection to the coordinator is gone, and it tries to get it back.
    Apart,
    /// It leaves, and hands in what it has.
    Leaving {
        /// How long it can stay.
        notice: Span,
    },
    /// It has lost its place, and asks for another.
    Removed {
        /// Why.
        why: Removal,
    },
}

/// Hears where a worker stands.
pub type StandingWatch = mpsc::UnboundedSender<(Time, Standing)>;

/// Reads off what passes where a worker stands, and tells each change once.
#[derive(Debug)]
pub(crate) struct Observer {
    me: PeerId,
    coordinator: PeerId,
    watch: StandingWatch,
    last: Option<Standing>,
    replicas: usize,
    /// The size of the first offer of each part, and who offers.
    offers: BTreeMap<StatePart, u64>,
    computing: bool,
}

impl Observer {
    pub(crate) fn new(me: PeerId, coordinator: PeerId, watch: StandingWatch) -> Self {
        Self { me, coordinator, watch, last: None, replicas: 0, offers: BTreeMap::new(), computing: false }
    }

    /// Sees what the core is about to hear.
    pub(crate) fn hears(&mut self, at: Time, input: &Input) {
        let standing = match input {
            Input::Received { from, message } if *from == self.coordinator => self.told(message),
            Input::Received { message: Message::State(StateSay::Offer { part, manifest, .. }), .. }
                if !matches!(part, StatePart::Result(_)) =>
            {
                self.offers.entry(*part).or_insert(manifest.bytes);
                let bytes = self.offers.values().sum();
                // Two parts are offered together.
                (self.offers.len() == 2).then_some(Standing::Fetching { bytes, replicas: self.replicas })
            }
            Input::Lost { peer, .. } if *peer == self.coordinator => Some(Standing::Apart),
            Input::Connected { peer } if *peer == self.coordinator && self.last == Some(Standing::Apart) => {
                self.computing.then_some(Standing::Training)
            }
            Input::Leave { notice } => Some(Standing::Leaving { notice: *notice }),
            Input::Received { .. }
            | Input::Connected { .. }
            | Input::Lost { .. }
            | Input::Rejected { .. }
            | Input::Forwarded { .. }
            | Input::Backwarded { .. }
            | Input::Stepped { .. }
            | Input::Sync(_)
            | Input::Stored { .. }
            | Input::Loaded { .. }
            | Input::Unfit { .. }
            | Input::Faulted { .. }
            | Input::Exported { .. }
            | Input::Drain
            | Input::Woke => None,
        };
        self.tell(at, standing);
    }

    /// Sees what the core wants done.
    pub(crate) fn wants(&mut self, at: Time, action: &Action) {
        if let Action::Forward { .. } = action
            && !self.computing
        {
            self.computing = true;
            self.tell(at, Some(Standing::Training));
        }
    }

    fn told(&mut self, message: &Message) -> Option<Standing> {
        match message {
            Message::Waiting { ahead, why } => Some(Standing::Waiting { ahead: *ahead, why: *why }),
            Message::Placed { plan, start, .. } => {
                let place = plan.place_of(self.me)?;
                self.replicas = plan.replicas(place.stage).filter(|member| member.peer != self.me).count();
                self.offers.clear();
                self.computing = false;
                Some(Standing::Placed { place, start: *start, replicas: self.replicas })
            }
            Message::Removed { why } => {
                self.computing = false;
                Some(Standing::Removed { why: *why })
            }
            Message::Join(_)
            | Message::Roster { .. }
            | Message::Ready { .. }
            | Message::Enter { .. }
            | Message::Beat
            | Message::Present { .. }
            | Message::Suspects(_)
            | Message::Frontier(_)
            | Message::Close { .. }
            | Message::Sign { .. }
            | Message::Signed { .. }
            | Message::Leaving { .. }
            | Message::Lease { .. }
            | Message::Activation(_)
            | Message::Gradient(_)
            | Message::Loss { .. }
            | Message::Settled { .. }
            | Message::Diverted { .. }
            | Message::Receipts(_)
            | Message::Sync(_)
            | Message::State(_)
            | Message::Stepped(_)
            | Message::Checkpointed { .. }
            | Message::Drain { .. }
            | Message::Finish { .. }
            | Message::PeerLost { .. }
            | Message::Failed { .. }
            | Message::Refused(_) => None,
        }
    }

    fn tell(&mut self, at: Time, standing: Option<Standing>) {
        let Some(standing) = standing.filter(|standing| self.last != Some(*standing)) else { return };
        self.last = Some(standing);
        // Whoever watched may have stopped watching.
        let _ = self.watch.send((at, standing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use trestle_protocol::ids::{
        Digest, InnerStep, MicrobatchId, OuterStep, PlanNumber, ReplicaId, SeatId, StageId,
    };
    use trestle_protocol::plan::{Member, Plan};
    use trestle_protocol::sync::blob::Blob;
    use trestle_protocol::work::Frontier;

    const ME: PeerId = PeerId([1; 32]);
    const COORDINATOR: PeerId = PeerId([9; 32]);
    const DONOR: PeerId = PeerId([2; 32]);

    fn plan() -> Plan {
        let member = |peer, replica| Member {
            peer,
            place: Place { stage: StageId(2), replica: ReplicaId(replica) },
            address: Bytes::new(),
            seat: SeatId(1),
            enters: InnerStep(0),
            until: None,
        };
        let members = vec![member(DONOR, 0), member(ME, 1)];
        Plan { number: PlanNumber(3), coordinator: COORDINATOR, members, turns: Vec::new() }
    }

    fn from(from: PeerId, message: Message) -> Input {
        Input::Received { from, message }
    }

    #[test]
    fn each_change_is_told_once_and_only_the_coordinator_is_believed() {
        let (watch, mut told) = mpsc::unbounded_channel();
        let mut observer = Observer::new(ME, COORDINATOR, watch);
        let waiting = |ahead| Message::Waiting { ahead, why: Wait::NoVacancy };
        let start = Start::Replicas { outer: OuterStep(4), digest: Digest([0; 32]) };
        let placed = Message::Placed { plan: plan(), start, frontier: Frontier::default() };
        let offer = |part, bytes: usize| {
            let manifest = Blob::new(vec![0; bytes].into()).manifest().clone();
            Message::State(StateSay::Offer { outer: OuterStep(4), part, digest: Digest([4; 32]), manifest })
        };
        for input in [
            from(COORDINATOR, waiting(2)),
            from(COORDINATOR, waiting(2)),
            from(DONOR, Message::Removed { why: Removal::Silent }),
            from(COORDINATOR, waiting(0)),
            from(COORDINATOR, placed),
            from(DONOR, offer(StatePart::Agreed, 100)),
            from(DONOR, offer(StatePart::Own, 30)),
            from(DONOR, offer(StatePart::Own, 30)),
        ] {
            observer.hears(Time(0), &input);
        }
        let forward = Action::Forward { microbatch: MicrobatchId::train(0), data_index: 0, input: None };
        observer.wants(Time(0), &forward);
        observer.wants(Time(0), &forward);
        observer.hears(Time(0), &Input::Lost { peer: COORDINATOR, reason: "silent".into() });
        observer.hears(Time(0), &Input::Connected { peer: COORDINATOR });
        observer.hears(Time(0), &from(COORDINATOR, Message::Removed { why: Removal::Silent }));
        let place = Place { stage: StageId(2), replica: ReplicaId(1) };
        let mut seen = Vec::new();
        while let Ok((_, standing)) = told.try_recv() {
            seen.push(standing);
        }
        assert_eq!(
            seen,
            [
                Standing::Waiting { ahead: 2, why: Wait::NoVacancy },
                Standing::Waiting { ahead: 0, why: Wait::NoVacancy },
                Standing::Placed { place, start, replicas: 1 },
                Standing::Fetching { bytes: 130, replicas: 1 },
                Standing::Training,
                Standing::Apart,
                Standing::Training,
                Standing::Removed { why: Removal::Silent },
            ]
        );
    }
}
