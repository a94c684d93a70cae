//! What the core has been told of each connection, so that it hears of each change once, however many messages find it gone.
//!
//! Owns that memory. Knows nothing of sockets, and decides nothing about whom to dial.

use std::collections::BTreeMap;

use trestle_protocol::ids::PeerId;
use trestle_protocol::port::Input;

/// All connections of a node, as the core knows them.
#[derive(Debug, Default)]
pub(crate) struct Links(BTreeMap<PeerId, Link>);

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// By the events of the network that were taken so far.
    stands: bool,
    told: Option<Told>,
    dials: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Connected,
    Lost,
}

/// What there is to do for a wish to be connected.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Wish {
    /// Nothing: this is the answer.
    Granted(Box<Input>),
    /// To dial, and to say how it ended to [`Links::dialled`].
    Dial,
    /// Nothing yet: the dial that is under way answers.
    UnderWay,
}

impl Links {
    /// Takes the core's wish to be connected to a peer.
    pub(crate) fn wanted(&mut self, peer: PeerId) -> Wish {
        let link = self.0.entry(peer).or_default();
        if link.stands {
            link.told = Some(Told::Connected);
            return Wish::Granted(Box::new(Input::Connected { peer }));
        }
        link.dials += 1;
        if link.dials > 1 { Wish::UnderWay } else { Wish::Dial }
    }

    /// Takes the end of a dial. That it succeeded is told by [`Links::connected`], which comes before or after.
    pub(crate) fn dialled(&mut self, peer: PeerId, result: Result<(), String>) -> Option<Input> {
        let link = self.0.entry(peer).or_default();
        link.dials = 0;
        match result {
            Err(reason) if !link.stands => {
                link.told = Some(Told::Lost);
                Some(Input::Lost { peer, reason })
            }
            Ok(()) | Err(_) => None,
        }
    }

    /// Takes a connection that stands.
    pub(crate) fn connected(&mut self, peer: PeerId) -> Input {
        let link = self.0.entry(peer).or_default();
        link.stands = true;
        link.told = Some(Told::Connected);
        Input::Connected { peer }
    }

    /// Takes the break of a connection; that it is given up for good afterwards is no news.
    pub(crate) fn broke(&mut self, peer: PeerId, reason: String) -> Option<Input> {
        let link = self.0.entry(peer).or_default();
        link.stands = false;
        self.lost(peer, reason)
    }

    /// Takes a message that could not be sent because no connection stands. While a dial is under way, or the break is about
    /// to be told, that is no news.
    pub(crate) fn unsent(&mut self, peer: PeerId, reason: String) -> Option<Input> {
        let link = self.0.entry(peer).or_default();
        if link.stands || link.dials > 0 { None } else { self.lost(peer, reason) }
    }

    /// Takes a message that could not be sent because too many wait: what is lost with it is as good as a break.
    pub(crate) fn overrun(&mut self, peer: PeerId, reason: String) -> Option<Input> {
        self.lost(peer, reason)
    }

    fn lost(&mut self, peer: PeerId, reason: String) -> Option<Input> {
        let link = self.0.entry(peer).or_default();
        let news = link.told != Some(Told::Lost);
        link.told = Some(Told::Lost);
        news.then_some(Input::Lost { peer, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId([7; 32]);

    fn lost(reason: &str) -> Option<Input> {
        Some(Input::Lost { peer: PEER, reason: reason.into() })
    }

    #[test]
    fn a_break_is_told_once_however_many_messages_find_it() {
        let mut links = Links::default();
        assert_eq!(links.connected(PEER), Input::Connected { peer: PEER });
        assert_eq!(links.unsent(PEER, "before the event".into()), None, "the event tells it");
        assert_eq!(links.broke(PEER, "silent".into()), lost("silent"));
        for _ in 0..100 {
            assert_eq!(links.unsent(PEER, "not connected".into()), None);
        }
        assert_eq!(links.broke(PEER, "gone for good".into()), None);
        links.connected(PEER);
        assert_eq!(links.broke(PEER, "again".into()), lost("again"), "each break is news");
    }

    #[test]
    fn dialling_who_is_connected_is_harmless_and_each_failed_dial_is_told() {
        let mut links = Links::default();
        assert_eq!(links.wanted(PEER), Wish::Dial);
        assert_eq!(links.wanted(PEER), Wish::UnderWay);
        assert_eq!(links.unsent(PEER, "too early".into()), None, "the dial answers");
        assert_eq!(links.dialled(PEER, Err("nobody there".into())), lost("nobody there"));
        assert_eq!(links.wanted(PEER), Wish::Dial);
        assert_eq!(links.dialled(PEER, Err("nobody there".into())), lost("nobody there"));
        assert_eq!(links.wanted(PEER), Wish::Dial);
        links.connected(PEER);
        assert_eq!(links.dialled(PEER, Ok(())), None, "told by the network already");
        assert_eq!(links.wanted(PEER), Wish::Granted(Box::new(Input::Connected { peer: PEER })));
    }

    #[test]
    fn who_was_never_dialled_is_missed_once() {
        let mut links = Links::default();
        assert_eq!(links.unsent(PEER, "not connected".into()), lost("not connected"));
        assert_eq!(links.unsent(PEER, "not connected".into()), None);
    }

    #[test]
    fn a_full_queue_counts_as_a_break_until_the_core_wants_the_peer_again() {
        let mut links = Links::default();
        links.connected(PEER);
        assert_eq!(links.overrun(PEER, "full".into()), lost("full"));
        assert_eq!(links.overrun(PEER, "full".into()), None);
        assert_eq!(links.wanted(PEER), Wish::Granted(Box::new(Input::Connected { peer: PEER })));
        assert_eq!(links.overrun(PEER, "full".into()), lost("full"));
    }
}
