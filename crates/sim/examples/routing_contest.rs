//! Prints the table of `docs/routing.md`: four ways of choosing the next peer, over some seeds and all numbers of layers.
//!
//! `cargo run --release -p trestle-sim --example routing_contest [SEEDS]`

use trestle_sim::contest::chooser::{POLICIES, Policy};
use trestle_sim::contest::{ContestConfig, ContestOutcome, run_contest};

const SEEDS: u64 = 5;

fn main() {
    let seeds = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(SEEDS);
    println!("total virtual time in seconds, mean and standard deviation over {seeds} seeds\n");
    println!(
        "| layers | free slots | shared, 60 s | shared, measured | own, 60 s | own, measured | oracle |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut all = vec![Vec::new(); POLICIES.len()];
    for layers in 3..=8 {
        let mut cells = Vec::new();
        for (policy, all) in POLICIES.into_iter().zip(&mut all) {
            let outcomes: Vec<ContestOutcome> =
                (1..=seeds).filter_map(|seed| run(seed, layers, policy)).collect();
            cells.push(cell(&outcomes.iter().map(|outcome| outcome.total.as_secs_f64()).collect::<Vec<_>>()));
            all.extend(outcomes);
        }
        println!("| {layers} | {} |", cells.join(" | "));
    }
    println!(
        "\n| | time against chance | sent | late | failed | refused | duplicates | first epoch | last epoch |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let best = mean(&all[0], |outcome| outcome.total.as_secs_f64());
    for (policy, outcomes) in POLICIES.into_iter().zip(&all) {
        let of = |count: fn(&ContestOutcome) -> u64| mean(outcomes, |outcome| count(outcome) as f64);
        let epoch = |at: fn(&ContestOutcome) -> f64| mean(outcomes, at);
        println!(
            "| {policy:?} | {:.1} % | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} s | {:.0} s |",
            100.0 * mean(outcomes, |outcome| outcome.total.as_secs_f64()) / best,
            of(|outcome| outcome.sent),
            of(|outcome| outcome.late),
            of(|outcome| outcome.failed),
            of(|outcome| outcome.refused),
            of(|outcome| outcome.duplicates),
            epoch(|outcome| outcome.epochs.first().map_or(0.0, |span| span.as_secs_f64())),
            epoch(|outcome| outcome.epochs.last().map_or(0.0, |span| span.as_secs_f64())),
        );
    }
}

fn run(seed: u64, layers: usize, policy: Policy) -> Option<ContestOutcome> {
    let outcome = run_contest(ContestConfig { seed, layers, policy });
    if outcome.is_none() {
        eprintln!("{policy:?} with {layers} layers and seed {seed} does not end");
    }
    outcome
}

fn mean(outcomes: &[ContestOutcome], of: impl Fn(&ContestOutcome) -> f64) -> f64 {
    outcomes.iter().map(of).sum::<f64>() / outcomes.len() as f64
}

fn cell(totals: &[f64]) -> String {
    let mean = totals.iter().sum::<f64>() / totals.len() as f64;
    let variance = totals.iter().map(|total| (total - mean).powi(2)).sum::<f64>() / totals.len() as f64;
    format!("{mean:.0} ± {:.0}", variance.sqrt())
}
