//! What goes wrong in a ring of replicas, and at which message or store.
//!
//! Owns the vocabulary and the drawing. Knows nothing of what a message says or of who dies of it.

use crate::draws::Draws;

/// Something that happens to a message, or at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It never arrives.
    Drop,
    /// It arrives much later than anyone waits.
    Delay,
    /// It arrives twice.
    Duplicate,
    /// It arrives behind the next one of the same two peers.
    Swap,
    /// Its sender dies before it is sent.
    SenderDies,
    /// Its receiver dies before it is heard.
    ReceiverDies,
    /// The coordinator dies when it is sent, and starts again.
    CoordinatorDies,
}

/// All of them.
pub const TROUBLES: [Trouble; 7] = [
    Trouble::Drop,
    Trouble::Delay,
    Trouble::Duplicate,
    Trouble::Swap,
    Trouble::SenderDies,
    Trouble::ReceiverDies,
    Trouble::CoordinatorDies,
];

/// When a coordinator dies, as its disk sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreMoment {
    /// What it wanted to be durable is not.
    Before,
    /// It is, but nobody was told.
    After,
}

/// What goes wrong in one life of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    /// Nothing.
    None,
    /// One thing, at the message of this number.
    At {
        /// Messages are counted from 0, in the order in which they are sent.
        message: u64,
        /// What happens.
        trouble: Trouble,
    },
    /// The coordinator dies around the store of this number.
    AtStore {
        /// Stores are counted from 0.
        store: u64,
        /// Before or after it.
        moment: StoreMoment,
    },
    /// Everything, now and then, as the seed has it.
    Drawn {
        /// How many replicas may die.
        deaths: u16,
        /// How often the coordinator may die.
        restarts: u16,
    },
}

/// Decides, message by message, what goes wrong.
#[derive(Debug)]
pub struct Fate {
    mischief: Mischief,
    draws: Draws,
}

impl Fate {
    /// Makes the fate of a seed.
    pub fn new(seed: u64, mischief: Mischief) -> Self {
        Self { mischief, draws: Draws::new(seed, "mischief", &[]) }
    }

    /// Returns what happens to the message of this number.
    pub fn of_message(&mut self, number: u64) -> Option<Trouble> {
        match &mut self.mischief {
            Mischief::None | Mischief::AtStore { .. } => None,
            Mischief::At { message, trouble } => (*message == number).then_some(*trouble),
            Mischief::Drawn { deaths, restarts } => match self.draws.below(1000) {
                0..50 => Some(Trouble::Drop),
                50..100 => Some(Trouble::Duplicate),
                100..120 => Some(Trouble::Delay),
                120..150 => Some(Trouble::Swap),
                150..155 => spend(deaths, Trouble::SenderDies),
                155..160 => spend(deaths, Trouble::ReceiverDies),
                160..164 => spend(restarts, Trouble::CoordinatorDies),
                _ => None,
            },
        }
    }

    /// Returns when around the store of this number the coordinator dies.
    pub fn of_store(&mut self, number: u64) -> Option<StoreMoment> {
        match &mut self.mischief {
            Mischief::None | Mischief::At { .. } => None,
            Mischief::AtStore { store, moment } => (*store == number).then_some(*moment),
            Mischief::Drawn { restarts, .. } => match self.draws.below(20) {
                0 => spend(restarts, StoreMoment::Before),
                1 => spend(restarts, StoreMoment::After),
                _ => None,
            },
        }
    }
}

fn spend<T>(left: &mut u16, what: T) -> Option<T> {
    *left = left.checked_sub(1)?;
    Some(what)
}
