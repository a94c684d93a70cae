//! Rebalancing: where a newcomer goes, and when a member moves to another stage, from measured speeds.
//!
//! Owns the choice, and the inertia that keeps noise from moving anybody. Knows nothing of how speeds are measured, of
//! how a peer that moves drains and fetches its new stage, nor of memory: a member holds any stage (`initial` sees to
//! that).

use crate::ids::{PeerId, StageId};
use crate::plan::Place;
use crate::time::{Span, Time};
use alloc::vec::Vec;
use core::cmp::Reverse;

pub mod initial;
pub mod turns;

/// A move must bring the pace of the slower of its two stages from below 3 to 4. Equal peers whose measured speeds err
/// by less than a seventh then never move between stages that differ by one member: (1 - 1/7) / (1 + 1/7) = 3/4.
const GAIN: (u128, u128) = (3, 4);

/// How much longer than the download of a stage's state nothing moves after a move, which so costs a quarter of a
/// peer's time at most.
const COOL_DOWN_MULTIPLES: u64 = 3;

/// How long a move must have been worth while: a vacancy that was just made is filled by who comes for it, and a member that moves
/// is missing at its stage meanwhile.
const WATCH_MIN: Span = Span::seconds(30);

/// Who holds a stage in the latest plan, and how fast each is, in microbatches an hour or any other common unit.
///
/// A peer that is on its way counts where it goes, and one without a measurement with the speed it was placed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageLoad {
    /// The stage.
    pub stage: StageId,
    /// Its members with their speeds.
    pub members: Vec<(PeerId, u64)>,
}

/// One member's change to another stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// Who moves.
    pub peer: PeerId,
    /// The stage it leaves, which keeps another member.
    pub from: StageId,
    /// The stage it is to hold.
    pub to: StageId,
}

impl StageLoad {
    /// Returns how fast the members are together.
    fn speed(&self) -> u128 {
        self.members.iter().map(|(_, speed)| u128::from(*speed)).sum()
    }

    /// Orders stages by their need: those without a member first, then the slowest, ties by number.
    fn need(&self) -> (usize, u128, StageId) {
        (self.members.len().min(1), self.speed(), self.stage)
    }
}

/// Chooses a vacant place for a newcomer, whatever its speed.
///
/// A wish is honoured if its stage has a vacancy. Otherwise a stage without a member comes first, since the run stands
/// without it; then the slowest, since it sets the pace. Ties go to the lowest place; `None` if nothing is vacant. A
/// stage that is not among the loads has no member.
pub fn vacancy(vacant: &[Place], loads: &[StageLoad], wish: Option<StageId>) -> Option<Place> {
    let wished = vacant.iter().filter(|place| Some(place.stage) == wish).min();
    let need = |place: &&Place| {
        let load = loads.iter().find(|load| load.stage == place.stage);
        (load.map_or((0, 0, place.stage), StageLoad::need), **place)
    };
    wished.or_else(|| vacant.iter().min_by_key(need)).copied()
}

/// Decides at the borders of outer steps whether a member moves.
#[derive(Clone, Debug)]
pub struct Rebalancer {
    replicas_max: usize,
    phase: Phase,
}

/// What the last windows have led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is afoot; in the last window a move to this stage was worth while, if any, and has been since then.
    Watching(Option<(StageId, Time)>),
    /// A peer was told to move.
    Moving,
    /// Nobody moves before this moment.
    Cooling(Time),
}

/// A move with what speaks for it.
#[derive(Clone, Copy, Debug)]
struct Prospect {
    step: Move,
    richness: u128,
    pace: u128,
}

impl Rebalancer {
    /// Starts without history; no move makes a stage larger than `replicas_max`.
    pub fn new(replicas_max: u16) -> Self {
        Self { replicas_max: usize::from(replicas_max), phase: Phase::Watching(None) }
    }

    /// Looks at one window of measurements, at the border of an outer step, and returns a move if one is due.
    ///
    /// The stage that needs it most receives a peer if min(speed) / min(speed after the move) < 3/4, over the two
    /// stages the move concerns, in two windows on end and for half a minute. Over all stages it could never begin when two
    /// are equally slow.
    /// Each move raises the lower of two speeds by a third at least, so that without new measurements no series of
    /// moves comes back to where it was. No stage is left empty.
    ///
    /// A stage without a member gets one at once, in any phase: the run stands, and would never see a second window.
    ///
    /// After a move the caller says `moved` or `called_off`; until then nothing else moves, empty stages excepted.
    pub fn consider(&mut self, now: Time, loads: &[StageLoad]) -> Option<Move> {
        let poorest = loads.iter().min_by_key(|load| load.need())?;
        let step = best_move(loads, poorest).filter(|_| poorest.members.len() < self.replicas_max);
        if poorest.members.is_empty() {
            if step.is_some() {
                self.phase = Phase::Moving;
            }
            return step;
        }
        match self.phase {
            Phase::Moving => None,
            Phase::Cooling(until) if now < until => None,
            Phase::Watching(Some((before, since))) if step.is_some_and(|step| step.to == before) => {
                if now.since(since) < WATCH_MIN {
                    return None;
                }
                self.phase = Phase::Moving;
                step
            }
            Phase::Watching(_) | Phase::Cooling(_) => {
                self.phase = Phase::Watching(step.map(|step| (step.to, now)));
                None
            }
        }
    }

    /// Notes that the peer works in its new stage, whose state it fetched in `took`: nothing moves for three times as
    /// long.
    pub fn moved(&mut self, now: Time, took: Span) {
        self.phase = Phase::Cooling(now + Span(took.0.saturating_mul(COOL_DOWN_MULTIPLES)));
    }

    /// Notes that the move did not come about, because the peer was lost or could not.
    pub fn called_off(&mut self) {
        self.phase = Phase::Watching(None);
    }
}

/// Finds the best move to a stage, if one is worth while.
///
/// Of the moves whose gain is within a quarter of the best, which noise may feign, it takes the one from the fastest
/// stage.
fn best_move(loads: &[StageLoad], to: &StageLoad) -> Option<Move> {
    let before = to.speed();
    let sources = loads.iter().filter(|from| from.stage != to.stage && from.members.len() > 1);
    let prospects = sources.flat_map(|from| {
        let richness = from.speed();
        from.members.iter().map(move |(peer, speed)| {
            let pace = (richness - u128::from(*speed)).min(before + u128::from(*speed));
            Prospect { step: Move { peer: *peer, from: from.stage, to: to.stage }, richness, pace }
        })
    });
    let worth = |pace: u128| to.members.is_empty() || before * GAIN.1 < pace * GAIN.0;
    let prospects: Vec<Prospect> = prospects.filter(|prospect| worth(prospect.pace)).collect();
    let best = prospects.iter().map(|prospect| prospect.pace).max()?;
    let near = prospects.iter().filter(|prospect| prospect.pace * GAIN.1 >= best * GAIN.0);
    near.max_by_key(|prospect| (prospect.richness, prospect.pace, Reverse(prospect.step)))
        .map(|prospect| prospect.step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ReplicaId;
    use alloc::vec;

    /// A moment at which the window of that number may decide.
    fn window(number: u64) -> Time {
        Time(number * WATCH_MIN.0)
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    pub(super) struct Draws(pub(super) u64);

    impl Draws {
        /// Draws a number from `low` to `high`, both included.
        pub(super) fn within(&mut self, low: u64, high: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            low + (mixed ^ (mixed >> 31)) % (high - low + 1)
        }
    }

    pub(super) fn peer(number: usize) -> PeerId {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(number as u64).to_be_bytes());
        PeerId(key)
    }

    fn place(stage: u16, replica: u16) -> Place {
        Place { stage: StageId(stage), replica: ReplicaId(replica) }
    }

    /// Stages from their members' speeds; peers are numbered through.
    fn loads(stages: &[&[u64]]) -> Vec<StageLoad> {
        let mut peers = (0..).map(peer);
        let stages = stages.iter().enumerate();
        stages
            .map(|(stage, speeds)| StageLoad {
                stage: StageId(stage as u16),
                members: speeds.iter().map(|speed| (peers.next().unwrap(), *speed)).collect(),
            })
            .collect()
    }

    fn carry_out(loads: &mut [StageLoad], step: Move) {
        let from = &mut loads[usize::from(step.from.0)].members;
        let at = from.iter().position(|(peer, _)| *peer == step.peer).unwrap();
        let member = from.remove(at);
        assert!(!from.is_empty(), "{step:?} leaves its stage empty");
        loads[usize::from(step.to.0)].members.push(member);
    }

    fn speeds(loads: &[StageLoad]) -> Vec<u128> {
        loads.iter().map(StageLoad::speed).collect()
    }

    /// Considers windows a minute apart, with downloads of 100 s, until nothing moves for ten of them; returns the
    /// moves.
    fn settle(rebalancer: &mut Rebalancer, loads: &mut [StageLoad]) -> Vec<Move> {
        let (mut now, mut moves, mut calm) = (Time(0), vec![], 0);
        while calm < 10 {
            now = now + Span::seconds(60);
            calm += 1;
            if let Some(step) = rebalancer.consider(now, loads) {
                carry_out(loads, step);
                moves.push(step);
                now = now + Span::seconds(100);
                rebalancer.moved(now, Span::seconds(100));
                calm = 0;
            }
            assert!(moves.len() < 100, "endless moves: {moves:?}");
        }
        moves
    }

    #[test]
    fn a_newcomer_goes_where_it_is_needed_most() {
        let loads = loads(&[&[4, 4], &[5], &[], &[0], &[5]]);
        let all = [place(4, 1), place(1, 2), place(1, 1), place(3, 1), place(2, 0), place(0, 2)];
        for (vacant, wish, expected) in [
            (&all[..], None, Some(place(2, 0))),
            (&all, Some(0), Some(place(0, 2))),
            (&all, Some(1), Some(place(1, 1))),
            (&all, Some(9), Some(place(2, 0))),
            (&all[..4], None, Some(place(3, 1))),
            (&all[..3], None, Some(place(1, 1))),
            (&all[..3], Some(2), Some(place(1, 1))),
            (&[place(3, 1), place(7, 0)], None, Some(place(7, 0))),
            (&[], Some(0), None),
        ] {
            assert_eq!(vacancy(vacant, &loads, wish.map(StageId)), expected, "{vacant:?}, wish {wish:?}");
        }
    }

    #[test]
    fn a_move_must_be_worth_while() {
        for (stages, moves) in [
            (&[&[10_u64, 10, 10][..], &[10, 10]][..], false),
            (&[&[10, 10, 10], &[10]], true),         // 10 to 20
            (&[&[10, 10, 10, 10], &[10, 10]], true), // 20 to 30
            (&[&[10; 5], &[10, 10, 10]], false),     // 30 to 40: 3/4 is not below 3/4
            (&[&[10, 10, 10, 11, 11], &[30]], true), // 30 to 41
            (&[&[10], &[1]], false),                 // nobody can be spared
            (&[&[], &[1]], false),                   // nor here
            (&[&[100, 100], &[1; 3]], true),         // 3 to 100
            (&[&[0, 0], &[0, 0]], false),
        ] {
            let (mut rebalancer, loads) = (Rebalancer::new(u16::MAX), loads(stages));
            assert_eq!(rebalancer.consider(window(1), &loads), None, "{stages:?}: first window");
            assert_eq!(rebalancer.consider(window(2), &loads).is_some(), moves, "{stages:?}");
        }
        assert_eq!(Rebalancer::new(9).consider(Time(1), &[]), None);
    }

    #[test]
    fn the_richest_stage_gives_if_its_peers_fit_about_as_well_as_any() {
        for (stages, peer_moving) in [
            (&[&[10_u64, 10, 10][..], &[10, 10, 10, 10], &[10]][..], 3),
            (&[&[10, 10, 11], &[10, 10, 10, 10], &[5]], 3), // 5 to 15, though 16 could be had
            (&[&[8, 1], &[4, 4], &[1]], 2),                 // 1 to 4, and to 2 from the richest
        ] {
            let (mut rebalancer, loads) = (Rebalancer::new(u16::MAX), loads(stages));
            let step = [1, 2].map(|now| rebalancer.consider(window(now), &loads))[1];
            assert_eq!(step.map(|step| step.peer), Some(peer(peer_moving)), "{stages:?}");
        }
    }

    #[test]
    fn two_windows_on_end_must_agree() {
        let (needy, well) = (loads(&[&[10, 10, 10], &[10]]), loads(&[&[10, 10], &[10, 10]]));
        let other = loads(&[&[10], &[10, 10, 10]]);
        let mut rebalancer = Rebalancer::new(u16::MAX);
        let windows = [&needy, &well, &needy, &other, &needy, &needy];
        let mut moves = |at: fn(u64) -> Time| -> Vec<bool> {
            (0..)
                .zip(windows)
                .map(|(number, loads)| rebalancer.consider(at(number), loads).is_some())
                .collect()
        };
        assert_eq!(moves(Time), [false; 6], "not for long enough");
        assert_eq!(moves(window), [false, false, false, false, false, true]);
    }

    #[test]
    fn nothing_moves_while_one_moves_nor_while_it_cools() {
        let needy = loads(&[&[10, 10, 10, 10], &[10, 10], &[10]]);
        let mut rebalancer = Rebalancer::new(u16::MAX);
        let at = |rebalancer: &mut Rebalancer, seconds| {
            rebalancer.consider(Time(0) + Span::seconds(seconds), &needy).map(|step| step.to)
        };
        let to = Some(StageId(2));
        assert_eq!([1, 30, 31, 61].map(|s| at(&mut rebalancer, s)), [None, None, to, None]);
        rebalancer.moved(Time(0) + Span::seconds(70), Span::seconds(20));
        assert_eq!([71, 129, 130, 159, 160].map(|s| at(&mut rebalancer, s)), [None, None, None, None, to]);
        rebalancer.called_off();
        assert_eq!([161, 191].map(|s| at(&mut rebalancer, s)), [None, to], "a call-off needs no cooling");
    }

    #[test]
    fn noise_among_equal_peers_moves_nobody() {
        let mut draws = Draws(1);
        for case in 0..300 {
            let members = draws.within(1, 6);
            let counts: Vec<u64> = (0..draws.within(2, 6)).map(|_| members + draws.within(0, 1)).collect();
            let mut rebalancer = Rebalancer::new(u16::MAX);
            for number in 0..40 {
                let noisy: Vec<Vec<u64>> = counts
                    .iter()
                    .map(|count| (0..*count).map(|_| draws.within(860, 1_140)).collect())
                    .collect();
                let noisy: Vec<&[u64]> = noisy.iter().map(Vec::as_slice).collect();
                let step = rebalancer.consider(window(number), &loads(&noisy));
                assert_eq!(step, None, "case {case}, window {number}: {noisy:?}");
            }
        }
    }

    #[test]
    fn a_stage_lost_to_churn_gets_one_peer_of_the_richest_at_once() {
        let mut draws = Draws(2);
        for case in 0..200 {
            let mut noisy =
                |count: usize| -> Vec<u64> { (0..count).map(|_| draws.within(900, 1_100)).collect() };
            let mut loads = loads(&[&noisy(3), &noisy(4), &[], &noisy(3)]);
            let mut rebalancer = Rebalancer::new(4);
            let step = rebalancer.consider(Time(0), &loads).unwrap();
            assert_eq!((step.from, step.to), (StageId(1), StageId(2)), "case {case}");
            carry_out(&mut loads, step);
            rebalancer.moved(Time(0), Span(0));
            assert_eq!(settle(&mut rebalancer, &mut loads).len(), 1, "case {case}: 3, 3, 1, 3 to 2, 3, 2, 3");
        }
    }

    #[test]
    fn an_empty_stage_waits_for_no_other_move() {
        let mut rebalancer = Rebalancer::new(u16::MAX);
        let needy = loads(&[&[10, 10, 10], &[10], &[10]]);
        rebalancer.consider(window(0), &needy);
        assert!(rebalancer.consider(window(1), &needy).is_some());
        let emptied = loads(&[&[10, 10], &[10, 10], &[]]);
        assert_eq!(rebalancer.consider(window(2), &emptied).map(|step| step.to), Some(StageId(2)));
        rebalancer.moved(window(3), Span::seconds(100));
        assert!(rebalancer.consider(window(4), &emptied).is_some(), "nor for the cool-down");
    }

    #[test]
    fn stages_that_are_equally_slow_are_helped_one_after_the_other() {
        let mut loads = loads(&[&[10; 4], &[10], &[10], &[10; 4]]);
        let moves = settle(&mut Rebalancer::new(u16::MAX), &mut loads);
        assert_eq!(moves.iter().map(|step| (step.from.0, step.to.0)).collect::<Vec<_>>(), [(0, 1), (3, 2)]);
        assert_eq!(speeds(&loads), [30, 20, 20, 30]);
    }

    #[test]
    fn a_full_stage_receives_nobody() {
        let full = loads(&[&[40, 40], &[1, 1]]);
        let mut rebalancer = Rebalancer::new(2);
        assert_eq!([1, 2, 3].map(|now| rebalancer.consider(window(now), &full)), [None; 3]);
        let mut rebalancer = Rebalancer::new(3);
        assert!([1, 2].map(|now| rebalancer.consider(window(now), &full))[1].is_some());
    }

    #[test]
    fn moves_come_to_an_end_and_never_slow_the_run() {
        let mut draws = Draws(3);
        for case in 0..500 {
            let stages: Vec<Vec<u64>> = (0..draws.within(2, 6))
                .map(|_| (0..draws.within(1, 6)).map(|_| 100 << draws.within(0, 2)).collect())
                .collect();
            let stages: Vec<&[u64]> = stages.iter().map(Vec::as_slice).collect();
            let mut loads = loads(&stages);
            let before = speeds(&loads).into_iter().min().unwrap();
            let mut rebalancer = Rebalancer::new(u16::MAX);
            let moves = settle(&mut rebalancer, &mut loads);
            let after = speeds(&loads).into_iter().min().unwrap();
            assert!(after >= before, "case {case}: {stages:?} with {moves:?}");
            let back = moves.iter().any(|a| moves.iter().any(|b| (a.peer, a.from) == (b.peer, b.to)));
            assert!(!back, "case {case}: a peer came back in {moves:?}");
        }
    }
}
