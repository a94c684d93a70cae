//! What a script does, as far as it can be done to processes too.
//!
//! Owns the names by which the coordinator's log tells of it. Knows nothing of how it is done.

use trestle_protocol::ids::StageId;
use trestle_protocol::plan::Place;
use trestle_protocol::time::Span;
use trestle_sim::fault::{Fault, Faults, When, Whom};

/// One thing that is done to a swarm.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deed {
    /// The holder of a place dies.
    Kill(Place),
    /// The holder of a place is told to leave.
    Leave(Place, Span),
    /// A newcomer asks for a place of a stage.
    Join(StageId),
}

/// The deeds of a script, each with the number of complete inner steps at which it is done.
pub(crate) fn deeds(faults: &Faults) -> Vec<(u64, Deed)> {
    let deeds = faults.planned.iter().map(|(when, fault)| match when {
        When::Steps(steps) => (*steps, deed(*fault)),
        When::After(_) => panic!("{when:?}: the simulator and processes share steps, not times"),
    });
    deeds.collect()
}

fn deed(fault: Fault) -> Deed {
    match fault {
        Fault::Kill { whom: Whom::Holder(place), restart: None } => Deed::Kill(place),
        Fault::Leave { whom: Whom::Holder(place), notice } => Deed::Leave(place, notice),
        Fault::Join { count: 1, stage: Some(stage) } => Deed::Join(stage),
        Fault::Kill { .. }
        | Fault::Leave { .. }
        | Fault::Join { .. }
        | Fault::Drain
        | Fault::Crash
        | Fault::Flap { .. }
        | Fault::Freeze { .. }
        | Fault::Slow { .. }
        | Fault::Cut { .. }
        | Fault::Clock { .. }
        | Fault::DiskFull { .. } => panic!("{fault:?}: there is no deed for it yet"),
    }
}

impl Deed {
    /// Names the event that shows that it takes effect, as the order of a log does.
    pub(crate) fn effect(self) -> String {
        match self {
            Deed::Kill(place) => format!("removed {}", named(place)),
            Deed::Leave(place, _) => format!("leaving {}", named(place)),
            Deed::Join(stage) => format!("seated {stage}."),
        }
    }

    /// Names the event by which all of its effect is there.
    pub(crate) fn effect_whole(self) -> String {
        match self {
            Deed::Kill(place) | Deed::Leave(place, _) => format!("removed {}", named(place)),
            Deed::Join(stage) => format!("seated {stage}."),
        }
    }
}

/// Names a place as scripts do.
pub(crate) fn named(place: Place) -> String {
    format!("{}.{}", place.stage, place.replica)
}
