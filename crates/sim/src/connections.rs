//! Connections between peers: which stand, which are being made, and which pairs nothing passes between.
//!
//! Owns their states. Knows nothing of time limits, or of what goes over a connection.

use std::collections::{BTreeMap, BTreeSet};
use trestle_protocol::time::Time;
use trestle_protocol::wire::Frame;

/// The two ends of a connection, the lower number first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends(usize, usize);

impl Ends {
    /// Names the pair of two peers.
    pub fn new(a: usize, b: usize) -> Self {
        Self(a.min(b), a.max(b))
    }

    /// Returns both, the lower number first.
    pub fn both(self) -> [usize; 2] {
        [self.0, self.1]
    }

    /// Returns the end that is not this one.
    pub fn other(self, end: usize) -> usize {
        if self.0 == end { self.1 } else { self.0 }
    }
}

/// Tells a connection from those that the same two peers had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

/// What comes of dialling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// A connection stands.
    Stands(Epoch),
    /// It is being dialled already; the answer comes to both.
    Joined,
    /// It is dialled from now on.
    Begun(Epoch),
}

#[derive(Clone, Debug)]
enum State {
    Dialled { call: Epoch, diallers: BTreeSet<usize> },
    Up { epoch: Epoch },
}

/// A message that waits for the end of a cut.
#[derive(Debug)]
pub struct Parked {
    /// Who sent it.
    pub from: usize,
    /// To whom.
    pub to: usize,
    /// What it is.
    pub frame: Frame,
}

#[derive(Debug)]
struct Cut {
    until: Time,
    parked: Vec<Parked>,
}

/// All connections of a swarm.
#[derive(Debug, Default)]
pub struct Connections {
    states: BTreeMap<Ends, State>,
    cuts: BTreeMap<Ends, Cut>,
    epochs: u64,
}

impl Connections {
    /// Returns the connection of a pair, if one stands.
    pub fn epoch(&self, ends: Ends) -> Option<Epoch> {
        match self.states.get(&ends) {
            Some(State::Up { epoch }) => Some(*epoch),
            Some(State::Dialled { .. }) | None => None,
        }
    }

    /// Lists the connections that stand at a peer.
    pub fn at(&self, peer: usize) -> Vec<(Ends, Epoch)> {
        let touching = self.states.keys().filter(|ends| ends.both().contains(&peer));
        touching.filter_map(|ends| Some((*ends, self.epoch(*ends)?))).collect()
    }

    /// Dials.
    pub fn dial(&mut self, dialler: usize, ends: Ends) -> Dialled {
        match self.states.get_mut(&ends) {
            Some(State::Up { epoch }) => Dialled::Stands(*epoch),
            Some(State::Dialled { diallers, .. }) => {
                diallers.insert(dialler);
                Dialled::Joined
            }
            None => {
                self.epochs += 1;
                let call = Epoch(self.epochs);
                self.states.insert(ends, State::Dialled { call, diallers: BTreeSet::from([dialler]) });
                Dialled::Begun(call)
            }
        }
    }

    /// Lets a call succeed; returns whether it was still being made.
    pub fn stand(&mut self, ends: Ends, call: Epoch) -> bool {
        match self.states.get(&ends) {
            Some(State::Dialled { call: current, .. }) if *current == call => {
                self.states.insert(ends, State::Up { epoch: call });
                true
            }
            Some(State::Dialled { .. } | State::Up { .. }) | None => false,
        }
    }

    /// Gives a call up; returns who dialled, if it was still being made.
    pub fn give_up(&mut self, ends: Ends, call: Epoch) -> BTreeSet<usize> {
        match self.states.get(&ends) {
            Some(State::Dialled { call: current, diallers }) if *current == call => {
                let diallers = diallers.clone();
                self.states.remove(&ends);
                diallers
            }
            Some(State::Dialled { .. } | State::Up { .. }) | None => BTreeSet::new(),
        }
    }

    /// Breaks a connection; returns whether it still stood. What is parked for it is lost.
    pub fn break_off(&mut self, ends: Ends, epoch: Epoch) -> bool {
        if self.epoch(ends) != Some(epoch) {
            return false;
        }
        self.states.remove(&ends);
        if let Some(cut) = self.cuts.get_mut(&ends) {
            cut.parked.clear();
        }
        true
    }

    /// Forgets the calls that a peer was making, as when it dies.
    pub fn hang_up(&mut self, peer: usize) {
        self.states.retain(|_, state| match state {
            State::Up { .. } => true,
            State::Dialled { diallers, .. } => {
                diallers.remove(&peer);
                !diallers.is_empty()
            }
        });
    }

    /// Lets nothing pass between two peers until a time.
    pub fn cut(&mut self, ends: Ends, until: Time) {
        let cut = self.cuts.entry(ends).or_insert(Cut { until, parked: Vec::new() });
        cut.until = cut.until.max(until);
    }

    /// Returns whether nothing passes between two peers.
    pub fn is_cut(&self, ends: Ends) -> bool {
        self.cuts.contains_key(&ends)
    }

    /// Keeps a message for the end of a cut; gives it back if nothing is cut.
    pub fn park(&mut self, parked: Parked) -> Option<Parked> {
        match self.cuts.get_mut(&Ends::new(parked.from, parked.to)) {
            Some(cut) => {
                cut.parked.push(parked);
                None
            }
            None => Some(parked),
        }
    }

    /// Ends a cut whose time has come, and gives what it kept.
    pub fn mend(&mut self, now: Time, ends: Ends) -> Vec<Parked> {
        if self.cuts.get(&ends).is_some_and(|cut| cut.until <= now) {
            return self.cuts.remove(&ends).map(|cut| cut.parked).unwrap_or_default();
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn parked() -> Parked {
        Parked { from: 2, to: 1, frame: Frame { header: Bytes::new(), payload: Bytes::new() } }
    }

    #[test]
    fn a_call_joins_both_who_dial_and_stands_once() {
        let (mut connections, ends) = (Connections::default(), Ends::new(2, 1));
        let Dialled::Begun(call) = connections.dial(2, ends) else { panic!("nothing stood") };
        assert_eq!(connections.dial(1, ends), Dialled::Joined);
        assert_eq!(connections.epoch(ends), None);
        assert!(connections.stand(ends, call) && !connections.stand(ends, call));
        assert_eq!(connections.dial(1, ends), Dialled::Stands(call));
        assert_eq!(connections.at(1), [(ends, call)]);
        assert!(connections.give_up(ends, call).is_empty(), "it stands");
        assert!(connections.break_off(ends, call) && !connections.break_off(ends, call));
        let Dialled::Begun(again) = connections.dial(1, ends) else { panic!("it broke") };
        assert_ne!(again, call);
        assert!(connections.give_up(ends, call).is_empty(), "another call");
        assert_eq!(connections.give_up(ends, again), BTreeSet::from([1]));
    }

    #[test]
    fn a_cut_keeps_what_is_sent_unless_the_connection_breaks() {
        let (mut connections, ends) = (Connections::default(), Ends::new(1, 2));
        let Dialled::Begun(call) = connections.dial(1, ends) else { panic!("nothing stood") };
        connections.stand(ends, call);
        assert!(connections.park(parked()).is_some(), "nothing is cut");
        connections.cut(ends, Time(5));
        connections.cut(ends, Time(9));
        assert!(connections.park(parked()).is_none());
        assert!(
            connections.mend(Time(5), ends).is_empty() && connections.is_cut(ends),
            "the longer one holds"
        );
        assert_eq!(connections.mend(Time(9), ends).len(), 1);
        assert!(!connections.is_cut(ends));
        connections.cut(ends, Time(20));
        connections.park(parked());
        connections.break_off(ends, call);
        assert!(connections.mend(Time(20), ends).is_empty());
    }

    #[test]
    fn who_dies_hangs_up_and_others_go_on_dialling() {
        let mut connections = Connections::default();
        let (one, two) = (Ends::new(1, 2), Ends::new(1, 3));
        connections.dial(1, one);
        connections.dial(1, two);
        connections.dial(3, two);
        connections.hang_up(1);
        assert!(matches!(connections.dial(2, one), Dialled::Begun(_)));
        assert_eq!(connections.dial(1, two), Dialled::Joined);
    }
}
