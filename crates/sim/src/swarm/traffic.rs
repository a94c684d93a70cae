//! What passes between peers: connections that are dialled, stand and break, and the messages on them.
//!
//! Owns when a message arrives, and when it never does. Knows nothing of what a message means.

use crate::connections::{Dialled, Ends, Epoch, Parked};
use crate::link::{Delivery, Freight, Look};
use crate::peer::{self, Life};
use crate::swarm::actions::late;
use crate::swarm::{Happening, STRANGER, Swarm, SwarmError, Weights};
use trestle_protocol::ids::PeerId;
use trestle_protocol::message::Message;
use trestle_protocol::port::Input;
use trestle_protocol::sync::say::Say;
use trestle_protocol::sync::state::{StatePart, StateSay};
use trestle_protocol::time::Span;
use trestle_protocol::wire::{self, Frame};

impl Swarm<'_> {
    /// Sends a message on the connection that stands; without one it is lost.
    pub(super) fn send(&mut self, from: usize, to: PeerId, message: &Message) {
        let frame = wire::encode(message);
        let (freight, times) = self.freight(message);
        self.messages += 1;
        let bytes = frame.header.len() as u64 + frame.payload.len() as u64 * times;
        self.wire_bytes += bytes;
        self.peers[from].wire_bytes += bytes;
        // A stranger is sent refusals and is no peer of ours.
        let Some(&to) = self.by_id.get(&to) else { return };
        if let Some(stranger) = &mut self.stranger {
            stranger.hear(&frame);
        }
        if self.connections.epoch(Ends::new(from, to)).is_none() {
            return;
        }
        if let Some(Parked { from, to, frame }) = self.connections.park(Parked { from, to, frame }) {
            self.carry(from, to, freight, (frame, times));
        }
    }

    fn freight(&self, message: &Message) -> (Freight, u64) {
        let Weights { contribution, state } = self.config.weights;
        let results = matches!(message, Message::State(StateSay::Chunk { part: StatePart::Result(_), .. }));
        let times = if results || matches!(message, Message::Sync(Say::Chunk { .. })) {
            contribution
        } else if matches!(message, Message::State(StateSay::Chunk { .. })) {
            state
        } else {
            1
        };
        (freight(message), times)
    }

    fn carry(&mut self, from: usize, to: usize, freight: Freight, (frame, times): (Frame, u64)) {
        let Some(epoch) = self.connections.epoch(Ends::new(from, to)) else { return };
        if freight == Freight::Bulk {
            if let Some((look, at)) = self.links.queue(self.now, (from, to), epoch, (frame, times)) {
                self.queue.push(at, Happening::Turn(look));
            }
            return;
        }
        let at = self.links.send(self.now, from, to, frame.bytes(), freight);
        let arrived = |frame| Happening::Arrived { from, to, epoch: Some(epoch), frame };
        if freight == Freight::Control {
            return self.queue.push(at, arrived(frame));
        }
        let noise = self.faults.noise;
        let strikes =
            |draws: &mut crate::draws::Draws, share: u32| share > 0 && draws.below(1000) < u64::from(share);
        let mut at = at;
        if strikes(&mut self.noise, noise.late.0) {
            at = at + Span(self.noise.below(noise.by.0 + 1));
        }
        if strikes(&mut self.noise, noise.duplicate.0) {
            let again = at + Span(self.noise.below(noise.by.0 + 1));
            self.queue.push(again, arrived(frame.clone()));
        }
        self.queue.push(at, arrived(frame));
    }

    pub(super) fn turn(&mut self, look: Look) {
        let sender = &self.peers[look.lane.from()];
        if let Some(until) = sender.frozen_until {
            return self.queue.push(until, Happening::Turn(look));
        }
        if sender.life != Life::Up {
            return;
        }
        let (delivery, next) = self.links.turn(self.now, look);
        if let Some(Delivery { from, to, at, epoch, frame }) = delivery {
            self.queue.push(at, Happening::Arrived { from, to, epoch: Some(epoch), frame });
        }
        if let Some(next) = next {
            self.queue.push(next, Happening::Turn(look));
        }
    }

    pub(super) fn arrive(
        &mut self,
        from: usize,
        to: usize,
        epoch: Option<Epoch>,
        frame: &Frame,
    ) -> Result<(), SwarmError> {
        let stands = self.connections.epoch(Ends::new(from, to));
        // Who leaves closes its connections behind all that it has sent.
        let left = self.peers.get(from).is_some_and(|peer| peer.life == Life::Left) && stands.is_none();
        if epoch.is_some() && stands != epoch && !left {
            return Ok(());
        }
        let from = self.id_of(from);
        let input = match wire::decode(frame) {
            Ok(message) => Input::Received { from, message },
            Err(error) => Input::Rejected { peer: Some(from), reason: error.to_string() },
        };
        self.drive(to, input.into())
    }

    /// Dials a peer by its id.
    pub(super) fn dial(&mut self, dialler: usize, peer: PeerId) {
        match self.by_id.get(&peer) {
            Some(&other) => self.call(dialler, other),
            None => self.hear(dialler, Span(0), Input::Lost { peer, reason: "no such peer".into() }.into()),
        }
    }

    /// Dials a peer; the answer comes when the handshake is over, or when nobody waits for it any longer.
    pub(super) fn call(&mut self, dialler: usize, other: usize) {
        let ends = Ends::new(dialler, other);
        match self.connections.dial(dialler, ends) {
            Dialled::Stands(_) => {
                let peer = self.peers[other].id;
                self.hear(dialler, Span(0), Input::Connected { peer }.into());
            }
            Dialled::Joined => {}
            Dialled::Begun(call) => {
                let took = self.links.handshake(dialler, other);
                self.queue.push(self.now + took, Happening::Shaken { ends, call });
                let wait = self.faults.transport.lost_after;
                let gives_up = late(self.now + took, &mut self.noise, wait);
                self.queue.push(gives_up, Happening::Unanswered { ends, call });
            }
        }
    }

    pub(super) fn shaken(&mut self, ends: Ends, call: Epoch) -> Result<(), SwarmError> {
        if !self.reaches(ends) || !self.connections.stand(ends, call) {
            return Ok(());
        }
        for end in ends.both() {
            let peer = self.id_of(ends.other(end));
            self.drive(end, Input::Connected { peer }.into())?;
        }
        Ok(())
    }

    pub(super) fn unanswered(&mut self, ends: Ends, call: Epoch) -> Result<(), SwarmError> {
        if self.reaches(ends) {
            return self.shaken(ends, call);
        }
        for dialler in self.connections.give_up(ends, call) {
            let peer = self.id_of(ends.other(dialler));
            self.drive(dialler, Input::Lost { peer, reason: "no answer".into() }.into())?;
        }
        Ok(())
    }

    fn reaches(&self, ends: Ends) -> bool {
        ends.both().iter().all(|end| self.peers[*end].is_responsive()) && !self.connections.is_cut(ends)
    }

    /// Breaks a connection, of which both ends hear.
    pub(super) fn broken(&mut self, ends: Ends, epoch: Epoch, reason: &str) -> Result<(), SwarmError> {
        if !self.connections.break_off(ends, epoch) {
            return Ok(());
        }
        for end in ends.both() {
            let peer = self.id_of(ends.other(end));
            self.drive(end, Input::Lost { peer, reason: reason.into() }.into())?;
        }
        Ok(())
    }

    /// Breaks the connections of a peer that nothing is heard of, once that is noticed.
    pub(super) fn break_later(&mut self, index: usize) {
        for (ends, epoch) in self.connections.at(index) {
            let at = late(self.now, &mut self.noise, self.faults.transport.lost_after);
            self.queue.push(at, Happening::Broken { ends, epoch, reason: "nothing heard" });
        }
    }

    /// Lets nothing pass between two peers for a while; a connection breaks only if that is noticed.
    pub(super) fn cut(&mut self, ends: Ends, span: Span) {
        self.connections.cut(ends, self.now + span);
        self.queue.push(self.now + span, Happening::Mended(ends));
        let noticed = late(self.now, &mut self.noise, self.faults.transport.lost_after);
        if let Some(epoch) = self.connections.epoch(ends).filter(|_| noticed < self.now + span) {
            self.queue.push(noticed, Happening::Broken { ends, epoch, reason: "nothing heard" });
        }
    }

    /// Sends what has waited for the end of a cut.
    pub(super) fn mended(&mut self, ends: Ends) {
        for Parked { from, to, frame } in self.connections.mend(self.now, ends) {
            let freight = if frame.payload.is_empty() { Freight::Control } else { Freight::Tensor };
            self.carry(from, to, freight, (frame, 1));
        }
    }

    /// Lets a peer close its connections, behind all that it has sent, and take no more part.
    pub(super) fn leave(&mut self, index: usize) {
        self.note_broken_at(index);
        self.peers[index].life = Life::Left;
        self.connections.hang_up(index);
        for (ends, epoch) in self.connections.at(index) {
            let at = self.links.send(self.now, index, ends.other(index), 0, Freight::Control);
            self.queue.push(at, Happening::Broken { ends, epoch, reason: "closed" });
        }
    }

    /// Lets a peer die, which the others notice after a while.
    pub(super) fn kill(&mut self, victim: usize) {
        if self.peers[victim].life != Life::Up {
            return;
        }
        self.note_broken_at(victim);
        let peer = &mut self.peers[victim];
        peer.life = Life::Down;
        peer.frozen_until = None;
        peer.waiting.clear();
        self.connections.hang_up(victim);
        self.links.clear_from(victim);
        self.break_later(victim);
    }

    pub(super) fn queue_stranger(&mut self) {
        if let Some(every) = self.faults.stranger_every {
            self.queue.push(self.now + every, Happening::StrangerTurn);
        }
    }

    pub(super) fn stranger_speaks(&mut self) {
        let Some(stranger) = &mut self.stranger else { return };
        let (to, frame) = stranger.speak(self.peers.len());
        let freight = if frame.payload.is_empty() { Freight::Control } else { Freight::Tensor };
        let at = self.links.send(self.now, STRANGER, to, frame.bytes(), freight);
        self.queue.push(at, Happening::Arrived { from: STRANGER, to, epoch: None, frame });
        self.queue_stranger();
    }

    /// Returns the id of a peer, or of the stranger.
    pub(super) fn id_of(&self, index: usize) -> PeerId {
        match self.peers.get(index) {
            Some(peer) => peer.id,
            None => peer::id(&peer::key(self.config.seed, index)),
        }
    }
}

fn freight(message: &Message) -> Freight {
    match message {
        Message::Activation(_) | Message::Gradient(_) => Freight::Tensor,
        Message::Sync(Say::Chunk { .. }) | Message::State(StateSay::Chunk { .. }) => Freight::Bulk,
        Message::Sync(_)
        | Message::State(_)
        | Message::Join(_)
        | Message::Waiting { .. }
        | Message::Placed { .. }
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
        | Message::Removed { .. }
        | Message::Lease { .. }
        | Message::Loss { .. }
        | Message::Settled { .. }
        | Message::Diverted { .. }
        | Message::Receipts(_)
        | Message::Stepped(_)
        | Message::Checkpointed { .. }
        | Message::Drain { .. }
        | Message::Finish { .. }
        | Message::PeerLost { .. }
        | Message::Failed { .. }
        | Message::Refused(_) => Freight::Control,
    }
}
