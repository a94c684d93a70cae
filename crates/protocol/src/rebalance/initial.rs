//! The first placement: peers of mixed speed to stages, so that the slowest stage is as fast as it can be.
//!
//! Owns that one optimisation, which is bin covering and so NP-hard: a good answer always, the best where a bounded
//! search can prove it. Knows nothing of wishes, addresses or plans.

use crate::ids::{PeerId, ReplicaId, StageId};
use crate::plan::Place;
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;

/// A peer that could hold a stage, with what was measured of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applicant {
    /// Who.
    pub peer: PeerId,
    /// How fast it is, in microbatches an hour or any other common unit; 0 counts as 1, since a stage needs somebody.
    pub speed: u64,
    /// What it has for a stage.
    pub memory_bytes: u64,
}

/// Steps of the search. 8 peers on 4 stages need 4^9 / 3 = 87,381 at most, so all cases up to there are exact, and most
/// larger ones, as the bound cuts early; beyond, the best that was found stands. All steps take less than a tenth of a
/// second.
const SEARCH_STEPS_MAX: u32 = 100_000;

/// Peers beyond which nothing is searched, as it calls itself once for each. With so many the steps before come close.
const SEARCH_PEERS_MAX: usize = 64;

/// Exchanges in the improvement before the search; each raises the slowest stage, and a few for each stage suffice.
const EXCHANGES_MAX: usize = 1_024;

/// Assigns peers to places so that the least summed speed of a stage is as great as possible.
///
/// `need_bytes` is what the largest stage needs: peers with less memory stay out, so that rebalancing may move any
/// member to any stage. Of the others the fastest `stages` times `replicas` get a place, ties by peer. Within a stage
/// replica 0 is the fastest. `None` if a stage would be empty.
pub fn initial(
    applicants: &[Applicant],
    stages: u16,
    replicas: u16,
    need_bytes: u64,
) -> Option<Vec<(Place, PeerId)>> {
    let mut able: Vec<&Applicant> = applicants.iter().filter(|a| a.memory_bytes >= need_bytes).collect();
    able.sort_by_key(|a| (Reverse(a.speed), a.peer));
    able.truncate(usize::from(stages) * usize::from(replicas));
    if stages == 0 || able.len() < usize::from(stages) {
        return None;
    }
    let speeds: Vec<u128> = able.iter().map(|a| u128::from(a.speed.max(1))).collect();
    let mut draft = Draft::fastest_first(&speeds, usize::from(stages), usize::from(replicas));
    draft.improve(&speeds);
    let seats = Search::best(&speeds, usize::from(replicas), draft);
    let mut taken = vec![0; usize::from(stages)];
    let mut assignment: Vec<(Place, PeerId)> = Vec::new();
    for (applicant, stage) in able.iter().zip(seats) {
        let place = Place { stage: StageId(stage as u16), replica: ReplicaId(taken[stage]) };
        taken[stage] += 1;
        assignment.push((place, applicant.peer));
    }
    assignment.sort_unstable();
    Some(assignment)
}

/// An assignment in the making: the stage of each peer, fastest peer first, and what follows for each stage.
#[derive(Clone, Debug)]
struct Draft {
    seats: Vec<usize>,
    sums: Vec<u128>,
    counts: Vec<usize>,
}

/// What would raise the slowest stage: who comes, who goes in return, and how fast the slower of the two stages is
/// then.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    pace: u128,
    comes: usize,
    goes: usize,
}

impl Draft {
    fn empty(stages: usize) -> Self {
        Self { seats: vec![], sums: vec![0; stages], counts: vec![0; stages] }
    }

    /// Gives each peer in turn, the fastest first, to the slowest stage that has a place; the first of equals.
    fn fastest_first(speeds: &[u128], stages: usize, replicas: usize) -> Self {
        let mut draft = Self::empty(stages);
        for speed in speeds {
            let open = (0..stages).filter(|stage| draft.counts[*stage] < replicas);
            let Some(stage) = open.min_by_key(|stage| draft.sums[*stage]) else { break };
            draft.sit(stage, *speed);
        }
        draft
    }

    fn sit(&mut self, stage: usize, speed: u128) {
        self.seats.push(stage);
        self.sums[stage] += speed;
        self.counts[stage] += 1;
    }

    fn rise(&mut self, stage: usize, speed: u128) {
        self.seats.pop();
        self.sums[stage] -= speed;
        self.counts[stage] -= 1;
    }

    fn pace(&self) -> u128 {
        self.sums.iter().copied().min().unwrap_or(0)
    }

    /// Exchanges a member of the slowest stage for a faster one of another while both stages end up faster than it was.
    ///
    /// Each time the sums, in ascending order, rise lexicographically: the series ends.
    fn improve(&mut self, speeds: &[u128]) {
        for _ in 0..EXCHANGES_MAX {
            let Some(slowest) = (0..self.sums.len()).min_by_key(|stage| self.sums[*stage]) else { return };
            let Some(exchange) = self.best_exchange(speeds, slowest) else { return };
            let other = self.seats[exchange.comes];
            self.shift(exchange.comes, slowest, speeds);
            self.shift(exchange.goes, other, speeds);
        }
    }

    /// Finds the exchange after which the slower of the two stages is fastest.
    fn best_exchange(&self, speeds: &[u128], slowest: usize) -> Option<Exchange> {
        let others = (0..speeds.len()).filter(|peer| self.seats[*peer] != slowest);
        let exchanges = others.flat_map(|comes| {
            let members = (0..speeds.len()).filter(|peer| self.seats[*peer] == slowest);
            members.filter_map(move |goes| {
                let gain = speeds[comes].checked_sub(speeds[goes])?;
                let pace = (self.sums[slowest] + gain).min(self.sums[self.seats[comes]] - gain);
                Some(Exchange { pace, comes, goes })
            })
        });
        exchanges.filter(|exchange| exchange.pace > self.sums[slowest]).max_by_key(|exchange| exchange.pace)
    }

    fn shift(&mut self, peer: usize, to: usize, speeds: &[u128]) {
        let from = core::mem::replace(&mut self.seats[peer], to);
        self.sums[from] -= speeds[peer];
        self.counts[from] -= 1;
        self.sums[to] += speeds[peer];
        self.counts[to] += 1;
    }
}

/// A depth-first search with a bound, over one peer after the other.
struct Search<'a> {
    speeds: &'a [u128],
    replicas: usize,
    draft: Draft,
    best: Draft,
    steps_left: u32,
}

impl<'a> Search<'a> {
    /// Returns the seats of the best assignment found, that of `start` if none is better.
    fn best(speeds: &'a [u128], replicas: usize, start: Draft) -> Vec<usize> {
        let draft = Draft::empty(start.sums.len());
        let mut search = Self { speeds, replicas, draft, best: start, steps_left: SEARCH_STEPS_MAX };
        if speeds.len() <= SEARCH_PEERS_MAX {
            search.descend();
        }
        search.best.seats
    }

    /// Tries all seats for the next peer. Of stages that are alike so far only the first is tried.
    fn descend(&mut self) {
        if !self.could_beat_best() || self.steps_left == 0 {
            return;
        }
        self.steps_left -= 1;
        let Some(speed) = self.speeds.get(self.draft.seats.len()).copied() else {
            self.best = self.draft.clone();
            return;
        };
        let alike = |draft: &Draft, a: usize, b: usize| {
            (draft.sums[a], draft.counts[a]) == (draft.sums[b], draft.counts[b])
        };
        for stage in 0..self.draft.sums.len() {
            let tried = (0..stage).any(|earlier| alike(&self.draft, earlier, stage));
            if !tried && self.draft.counts[stage] < self.replicas {
                self.draft.sit(stage, speed);
                self.descend();
                self.draft.rise(stage, speed);
            }
        }
    }

    /// Returns whether the peers without a seat could together raise every stage above the best pace so far.
    fn could_beat_best(&self) -> bool {
        let goal = self.best.pace() + 1;
        let lacking: u128 = self.draft.sums.iter().map(|sum| goal.saturating_sub(*sum)).sum();
        lacking <= self.speeds.iter().skip(self.draft.seats.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rebalance::tests::{Draws, peer};

    const NEED: u64 = 16;

    fn applicants(speeds: &[u64]) -> Vec<Applicant> {
        let speeds = speeds.iter().enumerate();
        speeds.map(|(at, speed)| Applicant { peer: peer(at), speed: *speed, memory_bytes: NEED }).collect()
    }

    fn sums(applicants: &[Applicant], stages: u16, assignment: &[(Place, PeerId)]) -> Vec<u64> {
        let mut sums = vec![0; usize::from(stages)];
        for (place, peer) in assignment {
            let applicant = applicants.iter().find(|a| a.peer == *peer).unwrap();
            sums[usize::from(place.stage.0)] += applicant.speed;
        }
        sums
    }

    /// The best pace over all ways to give each peer a stage or none, in the most plain way.
    fn best_pace(applicants: &[Applicant], stages: usize, replicas: usize) -> Option<u64> {
        let ways = (stages as u32 + 1).pow(applicants.len() as u32);
        let pace_of = |way: u32| {
            let (mut sums, mut counts, mut rest) = (vec![0; stages], vec![0; stages], way as usize);
            for applicant in applicants {
                let choice = rest % (stages + 1);
                rest /= stages + 1;
                if choice < stages {
                    sums[choice] += applicant.speed;
                    counts[choice] += 1;
                    if applicant.memory_bytes < NEED || counts[choice] > replicas {
                        return None;
                    }
                }
            }
            counts.iter().all(|count| *count > 0).then(|| sums.into_iter().min().unwrap())
        };
        (0..ways).filter_map(pace_of).max()
    }

    /// Asserts what holds of every assignment: each peer and place once, enough memory, replicas without gaps.
    fn assert_sound(applicants: &[Applicant], stages: u16, replicas: u16, assignment: &[(Place, PeerId)]) {
        let able = applicants.iter().filter(|a| a.memory_bytes >= NEED).count();
        assert_eq!(assignment.len(), able.min(usize::from(stages) * usize::from(replicas)));
        assert!(assignment.is_sorted_by(|a, b| a.0 < b.0));
        for (at, (place, peer)) in assignment.iter().enumerate() {
            assert!(place.stage.0 < stages && place.replica.0 < replicas);
            assert!(applicants.iter().any(|a| a.peer == *peer && a.memory_bytes >= NEED));
            assert!(assignment.iter().skip(at + 1).all(|(_, other)| other != peer));
            let before = place.replica.0.checked_sub(1).map(|r| Place { replica: ReplicaId(r), ..*place });
            assert!(before.is_none_or(|before| assignment.iter().any(|(place, _)| *place == before)));
        }
    }

    #[test]
    fn mixed_speeds_are_balanced() {
        for (speeds, stages, replicas, expected) in [
            (&[1, 2, 4, 1, 2, 4][..], 2, 3, Some(7)),
            (&[3, 3, 2, 2, 2], 2, 3, Some(6)), // fastest first would have 5
            (&[3, 3, 2, 2, 2], 2, 2, Some(5)), // the slowest stays out
            (&[4, 2, 2, 1, 1, 1, 1], 3, 4, Some(4)),
            (&[9, 8, 6, 6, 4, 3, 2, 1], 3, 4, Some(13)), // these four need the search
            (&[9, 8, 7, 5, 4, 3, 2, 1], 3, 3, Some(13)),
            (&[8, 5, 4, 4, 3, 3, 1], 3, 4, Some(9)),
            (&[9, 9, 8, 6, 2, 2], 2, 4, Some(18)),
            (&[9, 1, 1], 3, 2, Some(1)),
            (&[5, 0], 2, 1, Some(0)),
            (&[9, 9], 3, 2, None),
            (&[9, 9], 0, 2, None),
            (&[9, 9], 1, 0, None),
        ] {
            let applicants = applicants(speeds);
            let assignment = initial(&applicants, stages, replicas, NEED);
            let pace = assignment.as_ref().map(|a| sums(&applicants, stages, a).into_iter().min().unwrap());
            assert_eq!(pace, expected, "{speeds:?} on {stages} stages of {replicas}");
            assert!(assignment.is_none_or(|a| {
                assert_sound(&applicants, stages, replicas, &a);
                true
            }));
        }
    }

    #[test]
    fn those_who_cannot_hold_a_stage_stay_out() {
        let mut applicants = applicants(&[100, 1, 2, 3]);
        applicants[0].memory_bytes = NEED - 1;
        let assignment = initial(&applicants, 3, 2, NEED).unwrap();
        let place = |stage| Place { stage: StageId(stage), replica: ReplicaId(0) };
        assert_eq!(assignment, [(place(0), peer(3)), (place(1), peer(2)), (place(2), peer(1))]);
        applicants[1].memory_bytes = 0;
        assert_eq!(initial(&applicants, 3, 2, NEED), None);
    }

    #[test]
    fn small_cases_are_exact() {
        let mut draws = Draws(11);
        for case in 0..250 {
            let stages = draws.within(1, 3) as u16;
            let replicas = draws.within(1, 5) as u16;
            let count = draws.within(1, 8);
            let mixed = draws.within(0, 1);
            let speeds: Vec<u64> =
                (0..count).map(|_| [1 << draws.within(0, 2), draws.within(1, 30)][mixed as usize]).collect();
            let mut applicants = applicants(&speeds);
            applicants.iter_mut().for_each(|a| a.memory_bytes = NEED - 1 + draws.within(0, 15));
            let assignment = initial(&applicants, stages, replicas, NEED);
            let pace = assignment.as_ref().map(|a| sums(&applicants, stages, a).into_iter().min().unwrap());
            let best = best_pace(&applicants, usize::from(stages), usize::from(replicas));
            assert_eq!(pace, best, "case {case}: {applicants:?} on {stages} stages of {replicas}");
            if let Some(assignment) = assignment {
                assert_sound(&applicants, stages, replicas, &assignment);
            }
        }
    }

    #[test]
    fn large_cases_come_close_to_the_mean() {
        let mut draws = Draws(12);
        for case in 0..20 {
            let (stages, replicas) = (draws.within(8, 40) as u16, 8);
            let speeds: Vec<u64> =
                (0..stages * 7).map(|_| (100 << draws.within(0, 2)) + draws.within(0, 30)).collect();
            let applicants = applicants(&speeds);
            let assignment = initial(&applicants, stages, replicas, NEED).unwrap();
            assert_sound(&applicants, stages, replicas, &assignment);
            let pace = sums(&applicants, stages, &assignment).into_iter().min().unwrap();
            let mean = speeds.iter().sum::<u64>() / u64::from(stages);
            assert!(pace * 100 >= mean * 98, "case {case}: pace {pace} of a mean of {mean}");
        }
    }

    #[test]
    fn the_order_of_applicants_is_without_effect() {
        let mut applicants = applicants(&[4, 1, 2, 2, 4, 1, 1]);
        let assignment = initial(&applicants, 3, 3, NEED);
        applicants.reverse();
        assert_eq!(initial(&applicants, 3, 3, NEED), assignment);
    }
}
