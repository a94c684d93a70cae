//! What a scenario does to a running swarm, and when.
//!
//! Owns the vocabulary. Knows nothing of how a swarm is run.

use crate::draws::Permille;
use trestle_protocol::ids::StageId;
use trestle_protocol::plan::Place;
use trestle_protocol::time::Span;

/// To whom something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The coordinator.
    Coordinator,
    /// Who holds a place at that moment; before there is a plan, the one that asked for it in that turn.
    Holder(Place),
    /// All who hold a stage at that moment.
    Stage(StageId),
    /// A peer by its number: workers are counted from 1 in the order of the places they ask for, and newcomers behind them.
    Peer(usize),
    /// Everyone.
    All,
}

/// What becomes of a peer's disk when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFate {
    /// Its next process finds what was there.
    Kept,
    /// Its next process finds nothing.
    Lost,
}

/// A process that is started in place of one that died, with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// How long after the death.
    pub after: Span,
    /// What it finds.
    pub disk: DiskFate,
}

/// Something that is done to a swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operator asks for the end at the next border.
    Drain,
    /// Every peer dies at once; only what is durable stays.
    Crash,
    /// Peers die.
    Kill {
        /// Who.
        whom: Whom,
        /// Whether they come back.
        restart: Option<Restart>,
    },
    /// Peers die and come back, over and over.
    Flap {
        /// Who.
        whom: Whom,
        /// How long they are away each time.
        away: Span,
        /// How long they are back in between.
        back: Span,
        /// How often.
        times: u32,
    },
    /// Peers handle nothing and send nothing for a while, and then all that has waited.
    Freeze {
        /// Who.
        whom: Whom,
        /// For how long.
        span: Span,
    },
    /// Devices are slower for a while.
    Slow {
        /// Whose.
        whom: Whom,
        /// By how much.
        factor: u64,
        /// For how long.
        span: Span,
    },
    /// Nothing passes between the ones and the others for a while.
    Cut {
        /// The ones.
        from: Whom,
        /// The others; the ones among them stay together.
        to: Whom,
        /// For how long.
        span: Span,
    },
    /// A clock runs off.
    Clock {
        /// Whose.
        whom: Whom,
        /// How much too fast it runs; negative when it is too slow.
        ppm: i64,
        /// By how much it leaps ahead at once.
        ahead: Span,
    },
    /// A disk takes nothing for a while.
    DiskFull {
        /// Whose.
        whom: Whom,
        /// For how long.
        span: Span,
    },
    /// Machines go away, with notice; what is still there when it runs out dies.
    Leave {
        /// Whose.
        whom: Whom,
        /// How long they have.
        notice: Span,
    },
    /// Newcomers ask for places.
    Join {
        /// How many.
        count: u32,
        /// The stage they ask for, if they do.
        stage: Option<StageId>,
    },
}

/// When something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long after the peers start.
    After(Span),
    /// When so many inner steps of the run are complete.
    Steps(u64),
}

/// Workers die all the time, and newcomers take their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Churn {
    /// The share of the workers that goes in an hour.
    pub hourly: Permille,
    /// How long after a death a newcomer asks for a place.
    pub replaced_after: Span,
    /// How many go in all.
    pub deaths_max: u32,
}

/// What happens to single messages with a tensor; the others come once and in order, as on a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noise {
    /// The share that comes twice.
    pub duplicate: Permille,
    /// The share that comes late.
    pub late: Permille,
    /// How much later, at most.
    pub by: Span,
}

/// What the transport does, and the simulator puts up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// How long nothing must be heard on a connection, or of a peer that is dialled, until it is given up.
    pub lost_after: Span,
    /// Virtual time without a step, evaluation, checkpoint or outer step after which a run is taken to be stuck.
    pub silence_max: Span,
    /// Things that may happen in one running before it is taken to be stuck.
    pub happenings_max: u64,
}

impl Default for Transport {
    fn default() -> Self {
        Self { lost_after: Span::seconds(3), silence_max: Span::seconds(7_200), happenings_max: 1 << 24 }
    }
}

/// The faults of one running of the swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// What is done, and when.
    pub planned: Vec<(When, Fault)>,
    /// A stranger who is connected to everyone sends something wrong this often.
    pub stranger_every: Option<Span>,
    /// Peers that ask for a place beyond those that are needed, from the start.
    pub spares: u32,
    /// Whether workers die all the time.
    pub churn: Option<Churn>,
    /// What happens to single messages.
    pub noise: Noise,
    /// What the transport does.
    pub transport: Transport,
}

impl Faults {
    /// Returns what is due when `steps` inner steps are complete.
    pub fn at_steps(&self, steps: u64) -> impl Iterator<Item = Fault> + '_ {
        self.planned.iter().filter(move |(when, _)| *when == When::Steps(steps)).map(|(_, fault)| *fault)
    }

    /// Returns what is done at given times after the start.
    pub fn timed(&self) -> impl Iterator<Item = (Span, Fault)> + '_ {
        self.planned.iter().filter_map(|(when, fault)| match when {
            When::After(span) => Some((*span, *fault)),
            When::Steps(_) => None,
        })
    }
}
