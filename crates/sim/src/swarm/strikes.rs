//! What a scenario does to the swarm, carried out.
//!
//! Owns who is struck. Knows nothing of messages.

use crate::connections::Ends;
use crate::fault::{Churn, DiskFate, Fault, Restart, Whom};
use crate::peer::Life;
use crate::swarm::{COORDINATOR, Happening, Swarm, SwarmError};
use trestle_protocol::plan::Place;
use trestle_protocol::port::Input;
use trestle_protocol::time::{Span, Time};

/// How long a process lives on after its notice has run out: the core is to leave within it.
const GRACE: Span = Span::seconds(1);

/// An hour, over which rates of churn are given.
const HOUR: Span = Span::seconds(3_600);

impl Swarm<'_> {
    pub(super) fn struck(&mut self, fault: Fault) -> Result<(), SwarmError> {
        match fault {
            Fault::Drain => self.drive(COORDINATOR, Input::Drain.into())?,
            Fault::Crash => self.crashed = true,
            Fault::Kill { whom, restart } => {
                self.each(whom).into_iter().for_each(|peer| self.kill_for(peer, restart));
            }
            Fault::Flap { whom, away, back, times } => {
                let round = away.saturating_add(back);
                for peer in self.each(whom) {
                    for time in 0..u64::from(times) {
                        let restart = Some(Restart { after: away, disk: DiskFate::Kept });
                        let again = Fault::Kill { whom: Whom::Peer(peer), restart };
                        self.queue.push(self.now + Span(round.0 * time), Happening::Struck(again));
                    }
                }
            }
            Fault::Freeze { whom, span } => {
                self.each(whom).into_iter().for_each(|peer| self.freeze(peer, span));
            }
            Fault::Slow { whom, factor, span } => {
                let until = self.now + span;
                for peer in self.each(whom) {
                    if let Some(worker) = &mut self.peers[peer].worker {
                        worker.slow = Some((until, factor));
                    }
                }
            }
            Fault::Cut { from, to, span } => {
                let (ones, others) = (self.each(from), self.each(to));
                for one in &ones {
                    for other in others.iter().filter(|other| !ones.contains(other)) {
                        self.cut(Ends::new(*one, *other), span);
                    }
                }
            }
            Fault::Clock { whom, ppm, ahead } => {
                for peer in self.each(whom) {
                    self.peers[peer].clock.run_off(self.now, ppm, ahead);
                    self.note_waking(peer);
                }
            }
            Fault::DiskFull { whom, span } => {
                for peer in self.each(whom) {
                    self.peers[peer].disk_full_until = self.now + span;
                }
            }
            Fault::Leave { whom, notice } => {
                for peer in self.each(whom) {
                    let birth = self.peers[peer].birth;
                    let at = self.now + notice + GRACE;
                    self.queue.push(at, Happening::NoticeEnds { peer, birth });
                    self.drive(peer, Input::Leave { notice }.into())?;
                }
            }
            Fault::Join { count, stage } => {
                for _ in 0..count {
                    self.expect(self.now, Happening::Came { stage });
                }
            }
        }
        Ok(())
    }

    fn kill_for(&mut self, peer: usize, restart: Option<Restart>) {
        if self.peers[peer].life != Life::Up {
            return;
        }
        self.kill(peer);
        if let Some(Restart { after, disk }) = restart {
            self.expect(self.now + after, Happening::Reborn { peer, disk });
        }
    }

    fn freeze(&mut self, index: usize, span: Span) {
        let (now, until) = (self.now, self.now + span);
        let peer = &mut self.peers[index];
        if peer.life != Life::Up {
            return;
        }
        let until = peer.frozen_until.map_or(until, |already| already.max(until));
        peer.frozen_until = Some(until);
        peer.noted = None;
        let birth = peer.birth;
        self.queue.push(until, Happening::Thawed { peer: index, birth });
        if until.since(now) > self.faults.transport.lost_after {
            self.break_later(index);
        }
    }

    /// Returns the peers that are meant, as things stand now.
    fn each(&self, whom: Whom) -> Vec<usize> {
        let of = |wanted: &dyn Fn(Place) -> bool| {
            let holding = self.holders.iter().filter(|(place, _)| wanted(**place));
            holding.map(|(_, index)| *index).collect::<Vec<_>>()
        };
        match whom {
            Whom::Coordinator => vec![COORDINATOR],
            Whom::Holder(place) if self.holders.is_empty() => vec![self.asked_in_turn(place)],
            Whom::Holder(place) => of(&|at| at == place),
            Whom::Stage(stage) => of(&|at| at.stage == stage),
            Whom::Peer(index) => Some(index).filter(|index| *index < self.peers.len()).into_iter().collect(),
            Whom::All => (0..self.peers.len()).collect(),
        }
    }

    /// Returns which peer asks for a place: the coordinator comes first, then stage after stage.
    fn asked_in_turn(&self, place: Place) -> usize {
        let replicas = usize::from(self.config.spec.pipeline.replicas);
        1 + usize::from(place.stage.0) * replicas + usize::from(place.replica.0)
    }

    pub(super) fn plan_churn(&mut self) {
        if let Some(churn) = self.faults.churn {
            self.deaths_left = churn.deaths_max;
            let at = self.next_death(churn);
            self.queue.push(at, Happening::ChurnTurn);
        }
    }

    /// Lets a worker die, and a newcomer come for it.
    pub(super) fn churn_turn(&mut self) {
        let Some(churn) = self.faults.churn.filter(|_| self.deaths_left > 0) else { return };
        let members: Vec<usize> = self.holders.values().copied().collect();
        let living: Vec<usize> =
            members.into_iter().filter(|peer| self.peers[*peer].life == Life::Up).collect();
        if let Some(&victim) = living.get(self.churn.below(living.len() as u64) as usize) {
            self.deaths_left -= 1;
            self.kill(victim);
            self.expect(self.now + churn.replaced_after, Happening::Came { stage: None });
        }
        let at = self.next_death(churn);
        self.queue.push(at, Happening::ChurnTurn);
    }

    /// Draws when the next worker dies: evenly from now to twice the mean.
    fn next_death(&mut self, churn: Churn) -> Time {
        let places = u64::from(self.config.spec.stages()) * u64::from(self.config.spec.pipeline.replicas);
        let mean = (HOUR.0 * 1000).checked_div(places * u64::from(churn.hourly.0)).unwrap_or(HOUR.0);
        self.now + Span(self.churn.below(2 * mean + 1))
    }
}
