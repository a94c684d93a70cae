//! The contest of routes: the router of the core against chance, and how far it stays behind one who knows everything.

use trestle_sim::contest::chooser::{Deadline, Experience, Policy};
use trestle_sim::contest::{ContestConfig, ContestOutcome, EPOCHS, MICROBATCHES, run_contest};

/// Seed and layers of the contests that are run each time; the example runs more.
const CONTESTS: [(u64, usize); 3] = [(1, 3), (2, 5), (3, 8)];

/// The router takes at most this share of the time that chance takes, with the same timeout.
const SHARE_OF_CHANCE_MAX: f64 = 0.70;

/// And at most so many times what the oracle takes: `docs/routing.md` has 1.30 with the timeout.
const TIMES_ORACLE_MAX: f64 = 1.6;

const FIXED: Policy = Policy::Router(Experience::Shared, Deadline::Fixed);
const MEASURED: Policy = Policy::Router(Experience::Shared, Deadline::Measured);
const ALONE: Policy = Policy::Router(Experience::Own, Deadline::Measured);

fn run(seed: u64, layers: usize, policy: Policy) -> ContestOutcome {
    let outcome = run_contest(ContestConfig { seed, layers, policy });
    outcome.unwrap_or_else(|| panic!("{policy:?} with {layers} layers and seed {seed} does not end"))
}

fn seconds(policy: Policy) -> [f64; CONTESTS.len()] {
    CONTESTS.map(|(seed, layers)| run(seed, layers, policy).total.as_secs_f64())
}

#[test]
fn the_router_beats_chance_by_a_third_and_comes_near_the_oracle() {
    let [chance, fixed, measured, alone, oracle] =
        [Policy::FreeSlots, FIXED, MEASURED, ALONE, Policy::Oracle].map(seconds);
    for (at, contest) in CONTESTS.iter().enumerate() {
        let [chance, fixed, measured] = [chance[at], fixed[at], measured[at]];
        assert!(fixed <= SHARE_OF_CHANCE_MAX * chance, "{contest:?}: {fixed} s, chance {chance} s");
        assert!(measured <= SHARE_OF_CHANCE_MAX * chance, "{contest:?}: {measured} s, chance {chance} s");
    }
    let [chance, fixed, measured, alone, oracle] =
        [chance, fixed, measured, alone, oracle].map(|totals| totals.iter().sum::<f64>());
    assert!(measured < fixed, "{measured} s, with the timeout {fixed} s");
    assert!(fixed < TIMES_ORACLE_MAX * oracle, "{fixed} s, the oracle {oracle} s");
    assert!(oracle < measured, "who knows everything is beaten: {measured} s, the oracle {oracle} s");
    assert!(alone < 0.85 * chance, "a sender that learns alone: {alone} s, chance {chance} s");
}

#[test]
fn the_same_seed_gives_the_same_contest() {
    for policy in [Policy::FreeSlots, MEASURED, ALONE] {
        let [once, again, other] = [1, 1, 2].map(|seed| run(seed, 3, policy));
        assert_eq!(once, again);
        assert_ne!(once, other);
    }
}

#[test]
fn every_microbatch_passes_every_layer_both_ways() {
    let outcome = run(1, 3, MEASURED);
    assert_eq!(outcome.epochs.len(), EPOCHS);
    let (tasks, spoiled) =
        ((EPOCHS * MICROBATCHES * 6) as u64, outcome.late + outcome.failed + outcome.refused);
    assert!(outcome.sent >= tasks && outcome.sent <= tasks + spoiled, "{outcome:?}");
    assert!(outcome.late > 0 && outcome.failed > 0 && outcome.refused > 0, "{outcome:?}");
}
