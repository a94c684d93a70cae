//! How fast microbatches go through a pipeline of unlike peers: queues, links, and the gates of the schedule, event by event.
//!
//! Owns that small model. It knows stages, turns and times alone: no faults, no outer steps, no messages; what the protocol does
//! about those is played by the simulator.

use crate::cost::Spans;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap};

/// A replica of a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Replica {
    /// How long it computes.
    pub spans: Spans,
    /// Bytes a second that it sends.
    pub up: f64,
    /// Bytes a second that it receives.
    pub down: f64,
    /// Seconds from it to the middle of the network.
    pub delay: f64,
}

/// Which replica of the next stage a microbatch goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// In turns, as often as it is fast: by the microbatch's number, as this system does.
    Turns,
    /// By chance, each as often as it is fast; drawn from a seed.
    Chance(u64),
}

/// How many inner steps a forward may be ahead of the weights it uses; 0 drains the pipeline at each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staleness(pub u64);

/// What goes through the pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// Bytes of the message behind each stage.
    pub messages: Vec<f64>,
    /// Microbatches in an inner step of all replicas together.
    pub step_microbatches: usize,
    /// Microbatches that a replica of the first stage may have between first forward and last backward.
    pub in_flight_max: usize,
    /// The schedule.
    pub staleness: Staleness,
    /// The routing.
    pub routing: Routing,
}

/// Inner steps that are played at least; the first fills the pipeline.
const STEPS_MIN: usize = 6;

/// A pipeline that is filled is played for so many times what it holds.
const FILLS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Forward,
    Backward,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Happening {
    Arrived { stage: usize, replica: usize, microbatch: usize, way: Way },
    Computed { stage: usize, replica: usize },
}

/// What a replica does for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// A forward.
    Forward,
    /// A backward.
    Backward,
    /// An optimizer step.
    Step,
}

/// A replica computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    /// At which stage.
    pub stage: usize,
    /// Which replica.
    pub replica: usize,
    /// Seconds at which it begins.
    pub from: f64,
    /// And ends.
    pub until: f64,
    /// What it does.
    pub doing: Doing,
}

struct Due {
    at: f64,
    /// Of what happens at the same time, what was due first happens first.
    order: u64,
    what: Happening,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The earliest is the greatest, for a heap that gives the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.order.cmp(&self.order))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Task {
    Forward(usize),
    Backward(usize),
    Step,
}

#[derive(Default)]
struct Desk {
    forwards: BTreeSet<usize>,
    backwards: BTreeSet<usize>,
    task: Option<Task>,
    in_flight: usize,
    sent_at: f64,
    received_at: f64,
    /// Steps taken.
    version: usize,
    /// Backwards of each step that fall to it, and those that are done.
    owed: Vec<usize>,
    done: Vec<usize>,
}

struct Play<'a> {
    stages: &'a [Vec<Replica>],
    load: &'a Load,
    /// The replica of each stage that each microbatch falls to.
    ways: Vec<Vec<u32>>,
    desks: Vec<Vec<Desk>>,
    due: BinaryHeap<Due>,
    order: u64,
    now: f64,
    /// Microbatches of each step that are not through, and when the last one was.
    left: Vec<usize>,
    ended: Vec<f64>,
    /// What was computed, where that is asked for.
    bars: Option<Vec<Bar>>,
}

/// Returns the seconds of an inner step, once the pipeline is filled.
///
/// # Panics
/// If a stage has no replica, or a step has no microbatch.
pub fn step_seconds(stages: &[Vec<Replica>], load: &Load) -> f64 {
    let (steps, first, last) = counted(stages, load);
    let mut play = Play::new(stages, load, steps);
    play.run();
    (play.ended[last] - play.ended[first]) / (last - first) as f64
}

/// Lists what each replica computes in an inner step, once the pipeline is filled; from 0 on, in seconds, with how long it is.
///
/// # Panics
/// If a stage has no replica, or a step has no microbatch.
pub fn timeline(stages: &[Vec<Replica>], load: &Load) -> (Vec<Bar>, f64) {
    let (steps, first, last) = counted(stages, load);
    let mut play = Play::new(stages, load, steps);
    play.bars = Some(Vec::new());
    play.run();
    let middle = first + (last - first) / 2;
    let (from, until) = (play.ended[middle], play.ended[middle + 1]);
    let bars = play.bars.unwrap_or_default().into_iter().filter(|bar| bar.until > from && bar.from < until);
    let moved = |bar: Bar| Bar { from: bar.from.max(from) - from, until: bar.until.min(until) - from, ..bar };
    (bars.map(moved).collect(), until - from)
}

/// Returns how many steps are played, and from the end of which to the end of which they are looked at.
fn counted(stages: &[Vec<Replica>], load: &Load) -> (usize, usize, usize) {
    assert!(stages.iter().all(|stage| !stage.is_empty()) && load.step_microbatches > 0);
    let held = load.in_flight_max * stages[0].len();
    let filling = held.div_ceil(load.step_microbatches);
    let steps = STEPS_MIN.max(FILLS * filling);
    // The last steps run out of work behind them.
    (steps, filling.max(1) - 1, steps - 1 - filling.min(steps / 4).max(1))
}

impl<'a> Play<'a> {
    fn new(stages: &'a [Vec<Replica>], load: &'a Load, steps: usize) -> Self {
        let count = steps * load.step_microbatches;
        let mut chance = match load.routing {
            Routing::Turns => None,
            Routing::Chance(seed) => Some(ChaCha8Rng::seed_from_u64(seed)),
        };
        let ways: Vec<Vec<u32>> = stages.iter().map(|stage| ways(stage, count, chance.as_mut())).collect();
        let desk = |_: &Replica| Desk { owed: vec![0; steps], done: vec![0; steps], ..Desk::default() };
        let mut desks: Vec<Vec<Desk>> = stages.iter().map(|stage| stage.iter().map(desk).collect()).collect();
        for (way, desks) in ways.iter().zip(&mut desks) {
            for (microbatch, replica) in way.iter().enumerate() {
                desks[*replica as usize].owed[microbatch / load.step_microbatches] += 1;
            }
        }
        for (microbatch, replica) in ways[0].iter().enumerate() {
            desks[0][*replica as usize].forwards.insert(microbatch);
        }
        let left = vec![load.step_microbatches; steps];
        let ended = vec![0.0; steps];
        let due = BinaryHeap::new();
        Self { stages, load, ways, desks, due, order: 0, now: 0.0, left, ended, bars: None }
    }

    fn run(&mut self) {
        for replica in 0..self.stages[0].len() {
            self.begin(0, replica);
        }
        while let Some(due) = self.due.pop() {
            self.now = due.at;
            match due.what {
                Happening::Arrived { stage, replica, microbatch, way } => {
                    let desk = &mut self.desks[stage][replica];
                    match way {
                        Way::Forward => desk.forwards.insert(microbatch),
                        Way::Backward => desk.backwards.insert(microbatch),
                    };
                    self.begin(stage, replica);
                }
                Happening::Computed { stage, replica } => {
                    self.computed(stage, replica);
                    self.begin(stage, replica);
                }
            }
        }
    }

    fn happens(&mut self, at: f64, what: Happening) {
        self.order += 1;
        self.due.push(Due { at, order: self.order, what });
    }

    /// Begins what a replica does next, if there is something: an optimizer step, a backward, a forward.
    fn begin(&mut self, stage: usize, replica: usize) {
        let spans = self.stages[stage][replica].spans;
        let desk = &mut self.desks[stage][replica];
        if desk.task.is_some() {
            return;
        }
        // Where nothing falls to it, a step takes no time.
        while desk.owed.get(desk.version) == Some(&0) {
            desk.version += 1;
        }
        let whole = desk.owed.get(desk.version).is_some_and(|owed| desk.done[desk.version] == *owed);
        let ahead = desk.version + self.load.staleness.0 as usize;
        let full = stage == 0 && desk.in_flight >= self.load.in_flight_max;
        let forward = desk.forwards.first().copied();
        let forward = forward.filter(|microbatch| microbatch / self.load.step_microbatches <= ahead && !full);
        let (task, seconds) = if whole {
            (Task::Step, spans.step)
        } else if let Some(microbatch) = desk.backwards.pop_first() {
            (Task::Backward(microbatch), spans.backward)
        } else if let Some(microbatch) = forward {
            desk.forwards.remove(&microbatch);
            desk.in_flight += 1;
            (Task::Forward(microbatch), spans.forward)
        } else {
            return;
        };
        desk.task = Some(task);
        if let Some(bars) = &mut self.bars {
            let doing = match task {
                Task::Forward(_) => Doing::Forward,
                Task::Backward(_) => Doing::Backward,
                Task::Step => Doing::Step,
            };
            bars.push(Bar { stage, replica, from: self.now, until: self.now + seconds, doing });
        }
        self.happens(self.now + seconds, Happening::Computed { stage, replica });
    }

    fn computed(&mut self, stage: usize, replica: usize) {
        let last = stage + 1 == self.stages.len();
        let desk = &mut self.desks[stage][replica];
        match desk.task.take().expect("it computes") {
            Task::Step => desk.version += 1,
            Task::Forward(microbatch) if last => _ = desk.backwards.insert(microbatch),
            Task::Forward(microbatch) => self.send((stage, replica), stage + 1, microbatch, Way::Forward),
            Task::Backward(microbatch) => {
                let step = microbatch / self.load.step_microbatches;
                desk.done[step] += 1;
                desk.in_flight -= 1;
                if stage > 0 {
                    return self.send((stage, replica), stage - 1, microbatch, Way::Backward);
                }
                self.left[step] -= 1;
                if self.left[step] == 0 {
                    self.ended[step] = self.now;
                }
            }
        }
    }

    /// Sends a message, behind what goes the same way at both ends.
    fn send(&mut self, (stage, replica): (usize, usize), to: usize, microbatch: usize, way: Way) {
        let receiver = self.ways[to][microbatch] as usize;
        let bytes = self.load.messages[stage.min(to)];
        let (from, at) = (self.stages[stage][replica], self.stages[to][receiver]);
        let desk = &mut self.desks[stage][replica];
        let begun = desk.sent_at.max(self.now);
        desk.sent_at = begun + bytes / from.up;
        let desk = &mut self.desks[to][receiver];
        let first = (begun + from.delay + at.delay).max(desk.received_at);
        let arrived = (first + bytes / at.down).max(begun + bytes / from.up + from.delay + at.delay);
        desk.received_at = arrived;
        self.happens(arrived, Happening::Arrived { stage: to, replica: receiver, microbatch, way });
    }
}

/// Draws to whom each microbatch falls at a stage.
fn ways(stage: &[Replica], count: usize, mut chance: Option<&mut ChaCha8Rng>) -> Vec<u32> {
    let took: Vec<f64> = stage.iter().map(|replica| replica.spans.microbatch()).collect();
    let rates: f64 = took.iter().map(|took| 1.0 / took).sum();
    let mut until = took.clone();
    let turn = |_| match &mut chance {
        Some(chance) => {
            let mut at = f64::from(chance.next_u32()) / (f64::from(u32::MAX) + 1.0) * rates;
            let hit = |took: &f64| {
                at -= 1.0 / took;
                at < 0.0
            };
            took.iter().position(hit).unwrap_or(took.len() - 1) as u32
        }
        None => {
            let next = (0..until.len()).min_by(|a, b| until[*a].total_cmp(&until[*b])).unwrap_or(0);
            until[next] += took[next];
            next as u32
        }
    };
    (0..count).map(turn).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(forward: f64, backward: f64, step: f64) -> Replica {
        Replica { spans: Spans { forward, backward, step }, up: 1e9, down: 1e9, delay: 0.0 }
    }

    fn load(stages: usize, step_microbatches: usize, in_flight_max: usize, staleness: u64) -> Load {
        let (staleness, routing) = (Staleness(staleness), Routing::Turns);
        Load { messages: vec![0.0; stages], step_microbatches, in_flight_max, staleness, routing }
    }

    fn near(got: f64, want: f64) {
        assert!((got / want - 1.0).abs() < 1e-9, "{got}, not {want}");
    }

    #[test]
    fn one_stage_takes_the_sum_of_its_work() {
        near(step_seconds(&[vec![replica(1.0, 2.0, 0.5)]], &load(1, 4, 8, 0)), 12.5);
    }

    #[test]
    fn a_timeline_has_the_work_of_a_step() {
        let stages: Vec<_> = (0..3).map(|_| vec![replica(1.0, 2.0, 0.5), replica(1.0, 2.0, 0.5)]).collect();
        let load = load(3, 8, 16, 4);
        let (bars, length) = timeline(&stages, &load);
        near(length, step_seconds(&stages, &load));
        let busy: f64 = bars.iter().map(|bar| bar.until - bar.from).sum();
        // Each stage has 8 microbatches of 3 seconds and two steps of half a second.
        near(busy, 3.0 * 25.0);
        assert!(
            bars.iter().all(|bar| bar.from >= 0.0 && bar.until <= length && bar.stage < 3 && bar.replica < 2)
        );
    }

    /// (S - 1) / (G + S - 1) of the time is the bubble of a schedule that drains.
    #[test]
    fn a_drained_pipeline_has_the_bubble_of_theory() {
        let stages: Vec<_> = (0..4).map(|_| vec![replica(1.0, 2.0, 0.0)]).collect();
        near(step_seconds(&stages, &load(4, 8, 64, 0)), 3.0 * (8.0 + 3.0));
    }

    #[test]
    fn a_pipeline_that_is_not_drained_is_as_fast_as_its_slowest_stage() {
        let mut stages: Vec<_> = (0..4).map(|_| vec![replica(1.0, 2.0, 0.0)]).collect();
        stages[2] = vec![replica(2.0, 3.0, 1.0)];
        near(step_seconds(&stages, &load(4, 8, 16, 8)), 8.0 * 5.0 + 1.0);
    }

    #[test]
    fn too_few_in_flight_leave_stages_waiting() {
        let stages: Vec<_> = (0..4).map(|_| vec![replica(1.0, 2.0, 0.0)]).collect();
        near(step_seconds(&stages, &load(4, 8, 1, 8)), 8.0 * 12.0);
    }

    #[test]
    fn a_narrow_link_sets_the_pace() {
        let stages: Vec<_> = (0..2).map(|_| vec![Replica { up: 10.0, ..replica(1.0, 1.0, 0.0) }]).collect();
        let mut load = load(2, 8, 32, 8);
        load.messages = vec![50.0, 0.0];
        near(step_seconds(&stages, &load), 8.0 * 5.0);
    }

    /// What the simulator, which runs the protocol, took for the same: 200 steps in 198.5 s, and in 259.9 s with one of two replicas
    /// of the first stage at half speed (sim/scenarios/replicas_unlike.txt).
    #[test]
    fn steps_take_what_the_protocol_takes_in_the_simulator() {
        let replica = |factor: f64| Replica {
            spans: Spans { forward: 0.03 * factor, backward: 0.06 * factor, step: 0.001 * factor },
            up: 1e12,
            down: 1e12,
            delay: 0.0005,
        };
        let mut stages = vec![vec![replica(1.0); 2]; 4];
        let load = load(4, 16, 5, 0);
        let alike = step_seconds(&stages, &load);
        assert!((alike / (198.5 / 200.0) - 1.0).abs() < 0.02, "{alike}");
        stages[0][0] = replica(2.0);
        let unlike = step_seconds(&stages, &load);
        assert!((unlike / (259.9 / 200.0) - 1.0).abs() < 0.10, "{unlike}");
    }

    #[test]
    fn turns_share_work_by_speed_and_chance_costs_time() {
        let stages = vec![vec![replica(1.0, 2.0, 0.0), replica(2.0, 4.0, 0.0)]; 3];
        let mut load = load(3, 30, 30, 30);
        let turns = step_seconds(&stages, &load);
        near(turns, 60.0);
        load.in_flight_max = 3;
        let turns = step_seconds(&stages, &load);
        load.routing = Routing::Chance(1);
        let chance = step_seconds(&stages, &load);
        assert!(chance > 1.05 * turns, "{chance} by chance, {turns} in turns");
    }
}
