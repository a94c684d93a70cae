//! Which peer holds which stage, so that the slowest stage is as fast as possible.
//!
//! Owns the search, and the bound it is held against. Knows nothing of devices or links: a peer is how fast it would be where.

use std::collections::BTreeMap;

/// Peers that are alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// How many there are.
    pub count: usize,
    /// Microbatches a second that one would do at each stage; `None` where it has too little memory.
    pub rates: Vec<Option<f64>>,
}

/// Who holds what.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The classes of each stage's replicas, in order.
    pub stages: Vec<Vec<usize>>,
    /// Microbatches a second of the slowest stage.
    pub rate: f64,
    /// No placement is faster than this.
    pub bound: f64,
}

/// Why nobody can hold a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplaceable {
    /// There are too few peers for all places.
    #[error("{places} places, and {peers} peers")]
    TooFew {
        /// Places: stages x replicas.
        places: usize,
        /// Peers.
        peers: usize,
    },
    /// Too few peers have the memory of a stage.
    #[error("stage {stage} fits into too few peers' memory")]
    Memory {
        /// The first such stage.
        stage: usize,
    },
}

/// Placements that are all looked at, where there are no more of them.
const SEARCH_MAX: u64 = 200_000;

/// Exchanges that are tried at most; each makes the slowest stage faster, and few are needed.
const EXCHANGES_MAX: usize = 10_000;

/// Gives each stage as many replicas.
///
/// The fastest peers are dealt out one by one, each to the stage that has least so far (longest processing time first); then peers
/// of the slowest stage change places with others as long as that helps. Where there are few enough placements, all are looked at.
///
/// # Errors
/// Too few peers, or too little memory.
pub fn place(classes: &[Class], stages: usize, replicas: usize) -> Result<Placement, Unplaceable> {
    let (places, peers) = (stages * replicas, classes.iter().map(|class| class.count).sum());
    if peers < places {
        return Err(Unplaceable::TooFew { places, peers });
    }
    let mut deal = Deal::new(classes, stages, replicas);
    deal.deal_out()?;
    deal.improve();
    let bound = bound(classes, replicas, stages);
    let found = Placement { rate: deal.slowest().1, bound, stages: deal.listed() };
    Ok(Search::of(classes, replicas, &found).map_or(found.clone(), |best| best.unwrap_or(found)))
}

/// Returns the rate of the slowest stage if peers took places one after the other, in their order, stage by stage, whatever their
/// speed; `None` where one does not fit into its place.
pub fn in_order(classes: &[Class], stages: usize, replicas: usize) -> Option<f64> {
    let mut peers = classes.iter().flat_map(|class| core::iter::repeat_n(class, class.count));
    let rate = |stage: usize| {
        let rates: Option<Vec<f64>> = peers.by_ref().take(replicas).map(|class| class.rates[stage]).collect();
        rates.map(|rates| rates.iter().sum::<f64>())
    };
    let rates: Option<Vec<f64>> = (0..stages).map(rate).collect();
    rates.map(|rates| rates.into_iter().fold(f64::INFINITY, f64::min))
}

struct Deal<'a> {
    classes: &'a [Class],
    replicas: usize,
    free: Vec<usize>,
    held: Vec<BTreeMap<usize, usize>>,
    rates: Vec<f64>,
}

impl<'a> Deal<'a> {
    fn new(classes: &'a [Class], stages: usize, replicas: usize) -> Self {
        let free = classes.iter().map(|class| class.count).collect();
        let held = vec![BTreeMap::new(); stages];
        Self { classes, replicas, free, held, rates: vec![0.0; stages] }
    }

    fn rate(&self, class: usize, stage: usize) -> Option<f64> {
        self.classes[class].rates[stage]
    }

    /// Returns how fast a class is, wherever it fits, beside the others.
    fn speed(&self, class: usize) -> f64 {
        let rates = self.classes[class].rates.iter().flatten();
        rates.copied().fold(0.0, f64::max)
    }

    fn open(&self, stage: usize) -> usize {
        self.replicas - self.held[stage].values().sum::<usize>()
    }

    fn put(&mut self, class: usize, stage: usize) {
        self.free[class] -= 1;
        *self.held[stage].entry(class).or_default() += 1;
        self.rates[stage] += self.rate(class, stage).unwrap_or(0.0);
    }

    fn take(&mut self, class: usize, stage: usize) {
        self.free[class] += 1;
        let left = self.held[stage].get_mut(&class).expect("it is held there");
        *left -= 1;
        if *left == 0 {
            self.held[stage].remove(&class);
        }
        self.rates[stage] -= self.rate(class, stage).unwrap_or(0.0);
    }

    /// Returns a stage whose open places cannot all be filled any more: each stage against who fits into it, those that fit into
    /// least first.
    fn lacks(&self, open: impl Fn(usize) -> usize) -> Option<usize> {
        let mut free = self.free.clone();
        let fits = |class: usize, stage: usize| self.rate(class, stage).is_some();
        let choices = |stage: usize| (0..free.len()).filter(|class| fits(*class, stage)).count();
        let mut order: Vec<usize> = (0..self.held.len()).collect();
        order.sort_by_key(|stage| choices(*stage));
        for stage in order {
            let mut needed = open(stage);
            // Who fits into fewest stages has least use elsewhere.
            let mut able: Vec<usize> = (0..free.len()).filter(|class| fits(*class, stage)).collect();
            able.sort_by_key(|class| self.classes[*class].rates.iter().flatten().count());
            for class in able {
                let taken = needed.min(free[class]);
                free[class] -= taken;
                needed -= taken;
            }
            if needed > 0 {
                return Some(stage);
            }
        }
        None
    }

    fn deal_out(&mut self) -> Result<(), Unplaceable> {
        if let Some(stage) = self.lacks(|stage| self.open(stage)) {
            return Err(Unplaceable::Memory { stage });
        }
        let mut order: Vec<usize> = (0..self.classes.len()).collect();
        order.sort_by(|a, b| self.speed(*b).total_cmp(&self.speed(*a)));
        // Where all fit everywhere, nothing can be in another's way.
        let tight = self.classes.iter().any(|class| class.rates.iter().any(Option::is_none));
        for class in order {
            for _ in 0..self.classes[class].count {
                let mut stages: Vec<usize> = (0..self.held.len())
                    .filter(|at| self.open(*at) > 0 && self.rate(class, *at).is_some())
                    .collect();
                // By what is there now, then by what is still to come.
                stages.sort_by(|a, b| {
                    self.rates[*a].total_cmp(&self.rates[*b]).then(self.open(*b).cmp(&self.open(*a)))
                });
                let Some(stage) = stages.into_iter().find(|stage| !tight || self.leaves_room(class, *stage))
                else {
                    break;
                };
                self.put(class, stage);
            }
        }
        match (0..self.held.len()).find(|stage| self.open(*stage) > 0) {
            Some(stage) => Err(Unplaceable::Memory { stage }),
            None => Ok(()),
        }
    }

    fn leaves_room(&mut self, class: usize, stage: usize) -> bool {
        self.put(class, stage);
        let lacks = self.lacks(|at| self.open(at));
        self.take(class, stage);
        lacks.is_none()
    }

    fn listed(&self) -> Vec<Vec<usize>> {
        let listed =
            |held: &BTreeMap<usize, usize>| held.iter().flat_map(|(class, n)| vec![*class; *n]).collect();
        self.held.iter().map(listed).collect()
    }

    fn slowest(&self) -> (usize, f64) {
        let stages = self.rates.iter().copied().enumerate();
        stages.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
    }

    /// Has peers of the slowest stage change places, with those of other stages or with who has none, as long as that helps.
    fn improve(&mut self) {
        for _ in 0..EXCHANGES_MAX {
            let Some(Exchange { out, into, filled, .. }) = self.best_exchange() else { return };
            let (slowest, _) = self.slowest();
            self.take(out, slowest);
            if let Some((other, _)) = filled {
                self.take(into, other);
            }
            self.put(into, slowest);
            if let Some((other, by)) = filled {
                self.put(by, other);
            }
        }
    }

    fn best_exchange(&self) -> Option<Exchange> {
        let (slowest, rate) = self.slowest();
        let mut best: Option<Exchange> = None;
        let mut offer = |exchange: Exchange| {
            let better = best.as_ref().is_none_or(|best| exchange.least > best.least);
            if exchange.least > rate * (1.0 + 1e-12) && better {
                best = Some(exchange);
            }
        };
        for &out in self.held[slowest].keys() {
            let without = rate - self.rate(out, slowest).unwrap_or(0.0);
            for into in (0..self.classes.len()).filter(|into| *into != out) {
                let Some(here) = self.rate(into, slowest).map(|gain| without + gain) else { continue };
                if self.free[into] > 0 {
                    offer(Exchange { least: here, out, into, filled: None });
                }
                for other in (0..self.held.len()).filter(|other| *other != slowest) {
                    if here <= rate || !self.held[other].contains_key(&into) {
                        continue;
                    }
                    let left = self.rates[other] - self.rate(into, other).unwrap_or(0.0);
                    // In its place comes who goes, or who has none.
                    for by in (0..self.classes.len()).filter(|by| *by == out || self.free[*by] > 0) {
                        let Some(there) = self.rate(by, other).map(|gain| left + gain) else { continue };
                        offer(Exchange { least: here.min(there), out, into, filled: Some((other, by)) });
                    }
                }
            }
        }
        best
    }
}

/// One peer of the slowest stage goes and another comes, whose former place is filled.
struct Exchange {
    /// The rate of the slower of the stages that it touches.
    least: f64,
    out: usize,
    into: usize,
    filled: Option<(usize, usize)>,
}

/// A search through all placements.
struct Search<'a> {
    classes: &'a [Class],
    replicas: usize,
    free: Vec<usize>,
    /// The classes of each place, in order; within a stage they rise.
    places: Vec<usize>,
    best: Option<Placement>,
    least: f64,
    bound: f64,
}

impl<'a> Search<'a> {
    /// Looks for a better placement than one that was found; `None` where there are too many to look at.
    fn of(classes: &'a [Class], replicas: usize, found: &Placement) -> Option<Option<Placement>> {
        // Ways to choose so many of some classes, at one stage.
        let (n, k) = (classes.len() + replicas - 1, replicas as u64);
        let ways =
            (1..=k).try_fold(1_u64, |ways, i| Some(ways.checked_mul((n as u64 + 1).checked_sub(i)?)? / i))?;
        let all = (0..found.stages.len()).try_fold(1_u64, |all, _| all.checked_mul(ways));
        all.filter(|all| *all <= SEARCH_MAX)?;
        let free = classes.iter().map(|class| class.count).collect();
        let (least, bound) = (found.rate, found.bound);
        let mut search = Self { classes, replicas, free, places: Vec::new(), best: None, least, bound };
        search.go(found.stages.len(), 0.0, f64::INFINITY);
        Some(search.best)
    }

    fn go(&mut self, stages: usize, rate: f64, least: f64) {
        let place = self.places.len();
        if place == stages * self.replicas {
            (self.least, self.best) = (least, Some(self.placement(least)));
            return;
        }
        let (stage, at) = (place / self.replicas, place % self.replicas);
        let from = if at == 0 { 0 } else { self.places[place - 1] };
        for class in from..self.classes.len() {
            let Some(more) = self.classes[class].rates[stage].filter(|_| self.free[class] > 0) else {
                continue;
            };
            let rate = rate + more;
            let whole = at + 1 == self.replicas;
            if whole && rate <= self.least {
                continue;
            }
            self.free[class] -= 1;
            self.places.push(class);
            if whole {
                self.go(stages, 0.0, least.min(rate))
            } else {
                self.go(stages, rate, least)
            }
            self.places.pop();
            self.free[class] += 1;
        }
    }

    fn placement(&self, rate: f64) -> Placement {
        let stages = self.places.chunks(self.replicas).map(<[usize]>::to_vec).collect();
        Placement { stages, rate, bound: self.bound }
    }
}

/// Returns what no placement exceeds: if every stage had its best peers to itself, and if all places together had the best
/// peers, whose work could be cut at will.
fn bound(classes: &[Class], replicas: usize, stages: usize) -> f64 {
    let best = |count: usize, rate: &dyn Fn(&Class) -> f64| {
        let mut rates: Vec<(f64, usize)> = classes.iter().map(|class| (rate(class), class.count)).collect();
        rates.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (mut left, mut sum) = (count, 0.0);
        for (rate, there) in rates {
            let taken = left.min(there);
            sum += rate * taken as f64;
            left -= taken;
        }
        sum
    };
    let alone = |stage: usize| best(replicas, &|class| class.rates[stage].unwrap_or(0.0));
    let alone = (0..stages).map(alone).fold(f64::INFINITY, f64::min);
    // A peer's time at a stage counts by how much of it the stage's best peer would need: then a placement at rate x takes
    // x / fastest of each stage, and no peer gives more than its largest part.
    let fastest: Vec<f64> = (0..stages)
        .map(|stage| classes.iter().filter_map(|class| class.rates[stage]).fold(0.0, f64::max))
        .collect();
    let needed: f64 = fastest.iter().map(|fastest| 1.0 / fastest).sum();
    let parts = |class: &Class| {
        let parts = class.rates.iter().zip(&fastest).map(|(rate, fastest)| rate.unwrap_or(0.0) / fastest);
        parts.fold(0.0, f64::max)
    };
    alone.min(best(replicas * stages, &parts) / needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    /// Tries every placement.
    fn exhaustive(classes: &[Class], stages: usize, replicas: usize) -> Option<f64> {
        fn go(
            classes: &[Class],
            free: &mut [usize],
            rates: &mut Vec<f64>,
            place: usize,
            replicas: usize,
            best: &mut Option<f64>,
        ) {
            if place == rates.len() * replicas {
                let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
                *best = Some(best.map_or(least, |best| best.max(least)));
                return;
            }
            let stage = place / replicas;
            for class in 0..classes.len() {
                let Some(rate) = classes[class].rates[stage].filter(|_| free[class] > 0) else { continue };
                free[class] -= 1;
                rates[stage] += rate;
                go(classes, free, rates, place + 1, replicas, best);
                rates[stage] -= rate;
                free[class] += 1;
            }
        }
        let mut free: Vec<usize> = classes.iter().map(|class| class.count).collect();
        let mut best = None;
        go(classes, &mut free, &mut vec![0.0; stages], 0, replicas, &mut best);
        best
    }

    #[test]
    fn small_fleets_are_placed_as_well_as_can_be() {
        let mut draws = ChaCha8Rng::seed_from_u64(7);
        let mut draw = |below: u32| draws.next_u32() % below;
        let (mut placed, mut refused, mut worst) = (0, 0, 1.0_f64);
        for case in 0..300 {
            let stages = 2 + draw(2) as usize;
            let replicas = 1 + draw(2) as usize;
            let weights: Vec<f64> = (0..stages).map(|_| 1.0 + f64::from(draw(100)) / 200.0).collect();
            let class = |_| {
                let (count, speed, room) =
                    (1 + draw(3) as usize, 1.0 + f64::from(draw(400)) / 100.0, draw(5));
                let fits = |stage: usize| room > 0 || stage % 2 == 1;
                let rates = weights.iter().enumerate().map(|(at, w)| fits(at).then_some(speed / w)).collect();
                Class { count, rates }
            };
            let classes: Vec<Class> = (0..3).map(class).collect();
            match (place(&classes, stages, replicas), exhaustive(&classes, stages, replicas)) {
                (Ok(found), Some(best)) => {
                    assert!(
                        found.rate >= best * (1.0 - 1e-9),
                        "case {case}: {} of {best}, {classes:?}",
                        found.rate
                    );
                    assert!(best <= found.bound * (1.0 + 1e-9), "case {case}: {best}, bound {}", found.bound);
                    assert!(found.stages.iter().all(|held| held.len() == replicas));
                    let mut deal = Deal::new(&classes, stages, replicas);
                    deal.deal_out().expect("it fits");
                    deal.improve();
                    worst = worst.min(deal.slowest().1 / best);
                    placed += 1;
                }
                (Err(_), None) => refused += 1,
                (found, best) => panic!("case {case}: {found:?}, the best is {best:?}: {classes:?}"),
            }
        }
        assert!(placed > 200 && refused > 10, "{placed} placed, {refused} refused");
        assert!(worst > 0.8, "what larger fleets get: dealt out and exchanged, {worst} of the best");
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let class = |count, rates: [Option<f64>; 2]| Class { count, rates: rates.to_vec() };
        let few = [class(3, [Some(1.0), Some(1.0)])];
        assert_eq!(place(&few, 2, 2), Err(Unplaceable::TooFew { places: 4, peers: 3 }));
        let small = [class(3, [Some(1.0), None]), class(1, [Some(2.0), Some(2.0)])];
        assert_eq!(place(&small, 2, 2), Err(Unplaceable::Memory { stage: 1 }));
        // The fastest must take the stage that nobody else fits into.
        let placed = place(&small, 2, 1).expect("it fits");
        assert_eq!(placed.stages, [[0], [1]]);
    }
}
