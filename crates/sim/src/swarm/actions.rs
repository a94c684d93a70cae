//! What a node asks for, carried out: computations, stores, events, and leaving.
//!
//! Owns how long each takes in virtual time. Knows nothing of connections.

use crate::compute::{Handover, Work};
use crate::disk::Disk;
use crate::peer::{Computing, Life, News};
use crate::swarm::hearsay::heard;
use crate::swarm::{COORDINATOR, Happening, Holding, Swarm, SwarmError};
use bytes::Bytes;
use trestle_protocol::event::Event;
use trestle_protocol::ids::InnerStep;
use trestle_protocol::message::{Held, Outcome};
use trestle_protocol::plan::Place;
use trestle_protocol::port::{Action, Input, StoreItem, StoredItem, Took};
use trestle_protocol::time::{Span, Time};

/// How long the coordinator's state takes to reach the disk: one small synced write.
const STATE_STORE: Span = Span::millis(5);

impl Swarm<'_> {
    /// Tells a node what happened, and carries out what it answers; a frozen one hears of it later.
    pub(super) fn drive(&mut self, index: usize, news: News) -> Result<(), SwarmError> {
        let now = self.now;
        let peer = &mut self.peers[index];
        if peer.life != Life::Up || !peer.is_concerned(&news) {
            return Ok(());
        }
        if peer.frozen_until.is_some() {
            peer.waiting.push_back(news);
            return Ok(());
        }
        let input = news.input;
        if let Some(what) = heard(&input) {
            peer.heard(now, what);
        }
        let shown = peer.clock.shows(now);
        peer.node.handle(shown, input);
        while let Some(action) = self.peers[index].node.poll() {
            self.act(index, action)?;
        }
        let peer = &mut self.peers[index];
        peer.deadline = peer.node.deadline();
        self.kept_bytes_max = self.kept_bytes_max.max(peer.node.kept_bytes());
        let graphs = peer.worker.as_ref().map_or(0, Computing::graphs);
        // One forward may be under way.
        if peer.node.in_flight().is_some_and(|in_flight| graphs > in_flight + 1) {
            self.broken.insert("a device keeps the graph of a forward whose backward will not come".into());
        }
        self.note_waking(index);
        Ok(())
    }

    fn act(&mut self, index: usize, action: Action) -> Result<(), SwarmError> {
        match action {
            Action::Dial { peer, .. } => self.dial(index, peer),
            Action::Send { to, message } => self.send(index, to, &message),
            Action::Load { place, start } => {
                self.settle_at(index, place);
                self.compute(index, |worker, disk, _| worker.load(place, start, disk));
            }
            Action::Export { outer } => self.compute(index, |worker, _, _| worker.export(outer)),
            Action::Import { place, agreed, own, digest } => {
                self.settle_at(index, place);
                let state = Handover { agreed, own, chunks: None };
                self.compute(index, |worker, _, _| worker.import(place, &state, digest));
            }
            Action::Enter { step } => {
                if let Some(worker) = &mut self.peers[index].worker {
                    worker.compute.enter(step);
                }
            }
            Action::Forward { microbatch, data_index, input } => {
                let work = Work { microbatch, data_index, input: input.as_ref() };
                self.compute(index, |worker, _, _| worker.forward(work));
            }
            Action::Backward { microbatch, data_index, input, gradient, duty } => {
                let work = Work { microbatch, data_index, input: input.as_ref() };
                self.compute(index, |worker, _, _| worker.backward(work, gradient.as_ref(), duty));
            }
            Action::Discard { microbatch } => {
                if let Some(worker) = &mut self.peers[index].worker {
                    worker.discard(microbatch);
                }
            }
            Action::Step { microbatches, .. } => {
                self.compute(index, |worker, _, wire_bytes| worker.step(microbatches, wire_bytes));
            }
            Action::Sync(task) => {
                let now = self.now;
                self.compute(index, |worker, _, _| worker.agree(now, task));
            }
            Action::Store(item) => self.store(index, item),
            Action::Record(event) => self.record(index, &event)?,
            Action::Finish(outcome) => {
                self.note_holding(index, &outcome);
                self.leave(index);
                if index == COORDINATOR {
                    self.log.ended(&outcome);
                    self.over_since = Some(self.now);
                }
            }
        }
        Ok(())
    }

    fn compute(&mut self, index: usize, work: impl FnOnce(&mut Computing, &mut Disk, u64) -> (Span, Input)) {
        let now = self.now;
        let peer = &mut self.peers[index];
        let worker = peer.worker.as_mut().expect("only a worker asks for computation");
        if worker.slow.is_some_and(|(until, _)| until <= now) {
            worker.slow = None;
        }
        let (took, input) = work(worker, &mut self.disks[index], peer.wire_bytes);
        let hold = Some(worker.holds);
        self.hear(index, took, News { hold, input });
    }

    /// Lets a worker take hold of a stage: its device is as fast as it is there, and what was asked of it before is not
    /// answered any more.
    fn settle_at(&mut self, index: usize, place: Place) {
        let spans = self.config.spans_of(index, place.stage);
        if let Some(worker) = &mut self.peers[index].worker {
            worker.device.spans = spans;
            worker.holds += 1;
        }
    }

    fn store(&mut self, index: usize, item: StoreItem) {
        if self.now < self.peers[index].disk_full_until {
            let reason = "no space left on device".into();
            return self.hear(index, Span::millis(1), Input::Faulted { reason }.into());
        }
        match item {
            StoreItem::Checkpoint { step } => self.compute(index, |worker, disk, _| worker.save(step, disk)),
            StoreItem::Coordinator { state, .. } => {
                let birth = self.peers[index].birth;
                self.queue.push(self.now + STATE_STORE, Happening::Inked { birth, state });
            }
        }
    }

    pub(super) fn inked(&mut self, birth: u32, state: Bytes) -> Result<(), SwarmError> {
        let coordinator = &self.peers[COORDINATOR];
        if coordinator.life != Life::Up || coordinator.birth != birth {
            return Ok(());
        }
        self.durable = Some(state);
        let took = Took { total: STATE_STORE, serialise: Span(0) };
        self.drive(COORDINATOR, Input::Stored { item: StoredItem::Coordinator, took }.into())
    }

    /// Lets a frozen peer go on, with all that waited for it.
    pub(super) fn thawed(&mut self, index: usize, birth: u32) -> Result<(), SwarmError> {
        let peer = &mut self.peers[index];
        if peer.birth != birth || peer.frozen_until.is_none_or(|until| self.now < until) {
            return Ok(());
        }
        peer.frozen_until = None;
        let waiting = std::mem::take(&mut peer.waiting);
        self.note_waking(index);
        for news in waiting {
            self.drive(index, news)?;
        }
        Ok(())
    }

    fn record(&mut self, index: usize, event: &Event) -> Result<(), SwarmError> {
        self.log.record(self.now, self.peers[index].id, event)?;
        if index != COORDINATOR {
            if matches!(event, Event::Saved { step, .. } if step.0 == self.config.spec.training.steps) {
                // Who dies between this and the last word of the run has done its part.
                self.note_holding(index, &Outcome::Done);
            }
            return Ok(());
        }
        match event {
            Event::Step(summary) => self.stepped(summary.step.0 + 1),
            Event::Started { .. } => {
                self.progress_at = self.now;
                // All of its plan take part; who was still on the way when a coordinator died is removed next.
                self.entered = self.holders.values().copied().collect();
                self.queue_stranger();
            }
            Event::Evaluated { .. } | Event::Durable { .. } | Event::Outer(_) => self.progress_at = self.now,
            Event::Planned { members, .. } => {
                let seated = |(peer, place): &(_, Place)| Some((*place, *self.by_id.get(peer)?));
                self.holders = members.iter().filter_map(seated).collect();
            }
            // A stage's only replica may do very much again before the next step is complete.
            Event::Redo { first, .. } if first.index >= self.redone_to => {
                self.redone_to = first.index + 1;
                self.progress_at = self.now;
            }
            Event::Seated { peer, .. } => self.entered.extend(self.by_id.get(peer)),
            Event::Removed { peer, place, .. } => {
                self.redone_to = 0;
                self.holders.remove(place);
                if let Some(index) = self.by_id.get(peer) {
                    self.entered.remove(index);
                }
            }
            Event::Joined { .. }
            | Event::Leased { .. }
            | Event::LeaseExpired { .. }
            | Event::Computed { .. }
            | Event::Duplicate { .. }
            | Event::Saved { .. }
            | Event::Agreed { .. }
            | Event::Restored { .. }
            | Event::Flawed { .. }
            | Event::Disagreed { .. }
            | Event::Excluded { .. }
            | Event::Ledger { .. }
            | Event::Waiting { .. }
            | Event::Suspected { .. }
            | Event::Trusted { .. }
            | Event::Leaving { .. }
            | Event::Stalled { .. }
            | Event::Resumed { .. }
            | Event::Rerouted { .. }
            | Event::Redo { .. }
            | Event::Refused { .. }
            | Event::Rejected { .. }
            | Event::RefusedBy { .. }
            | Event::PeerLost { .. }
            | Event::Draining { .. }
            | Event::Finished { .. } => {}
        }
        Ok(())
    }

    /// Lets happen what is planned for when so many steps are complete.
    fn stepped(&mut self, steps: u64) {
        self.progress_at = self.now;
        // A coordinator that starts again may tell of a step a second time.
        if steps > self.steps_struck {
            self.steps_struck = steps;
            for fault in self.faults.at_steps(steps) {
                self.queue.push(self.now, Happening::Struck(fault));
            }
        }
    }

    /// Notes what a member holds that ends well, or has written what it ends with.
    fn note_holding(&mut self, index: usize, outcome: &Outcome) {
        let mut entered = self.holders.iter().filter(|(_, holder)| self.entered.contains(holder));
        let place = entered.find(|(_, holder)| **holder == index).map(|(place, _)| *place);
        let worker = self.peers[index].worker.as_ref();
        let (Some(place), Some(worker)) = (place, worker) else { return };
        let Some(descent) = worker.compute.descent().filter(|_| *outcome == Outcome::Done) else { return };
        let (weights, owed) = (descent.weights().clone(), descent.owed().clone());
        self.held.insert(place, (index, Holding { weights, owed, digest: descent.digest() }));
    }

    /// Forgets what those held who have lost their place since, but for what the run's last checkpoint has of it, on a disk that
    /// is left.
    pub(super) fn forget_the_lost(&mut self) {
        let last = InnerStep(self.config.spec.training.steps);
        let durable = self.durable_checkpoints();
        let (holders, entered, disks, peers) = (&self.holders, &self.entered, &self.disks, &self.peers);
        self.held.retain(|place, (owner, _)| {
            let has_place = holders.get(place) == Some(owner) && entered.contains(owner);
            let is_up = peers.get(*owner).is_some_and(|peer| peer.life != Life::Down);
            let on_disk = disks.get(*owner).and_then(|disk| disk.read(*place, last));
            let kept = |(digest, _)| durable.contains(&Held { place: *place, step: last, digest });
            has_place || is_up && on_disk.is_some_and(kept)
        });
    }

    /// Notes what was asked of each worker's compute and should never have been.
    pub(super) fn note_broken(&mut self) {
        for peer in 0..self.peers.len() {
            self.note_broken_at(peer);
        }
    }

    /// Notes what was asked of one worker's compute and should never have been.
    pub(super) fn note_broken_at(&mut self, index: usize) {
        let peer = &self.peers[index];
        let descent = peer.worker.as_ref().and_then(|worker| worker.compute.descent());
        self.followed |= descent.is_some();
        let words = descent.iter().flat_map(|descent| descent.broken());
        self.broken.extend(words.map(|words| format!("peer {index}: {words}")));
    }

    /// Tells what each peer does and has heard last.
    pub(super) fn describe(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (index, peer) in self.peers.iter().enumerate() {
            let place = self.holders.iter().find(|(_, holder)| **holder == index).map(|(place, _)| place);
            let place = place.map_or(String::from("no place"), |Place { stage, replica }| {
                format!("stage {stage}, replica {replica}")
            });
            let heard: Vec<String> = peer.recent.iter().map(|(at, what)| format!("{what} at {at}")).collect();
            let wakes = peer.wakes_at().map_or(String::from("never wakes"), |at| format!("wakes at {at}"));
            let connected = self.connections.at(index);
            let ends = connected.iter().map(|(ends, _)| ends.other(index).to_string()).collect::<Vec<_>>();
            all.push(format!(
                "peer {index} ({}), {place}: {:?}, {wakes}, connected to {}; heard {}",
                peer.id,
                peer.life,
                ends.join(" "),
                heard.join(", ")
            ));
        }
        all
    }
}

/// Returns the time that is later by a span that is drawn between it and half as much more.
pub(super) fn late(now: Time, draws: &mut crate::draws::Draws, span: Span) -> Time {
    now + span + Span(draws.below(span.0 / 2 + 1))
}
