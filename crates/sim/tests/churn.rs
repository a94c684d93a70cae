//! Scenarios of peers that come and go which nobody wrote, and those of them that once failed.

use std::fs;
use std::path::Path;
use trestle_sim::churn::{LONG_FETCHES, draw, run_drawn};
use trestle_sim::run_scenario_logged;
use trestle_sim::scenario::expectation::Verdict;

/// Drawn scenarios in each run of the test.
const DRAWN: u64 = 300;

/// And of those in which newcomers fetch for long.
const DRAWN_LONG: u64 = 100;

/// They are drawn below this number.
const NUMBERS: u64 = 1_000_000_000;

/// Of so many drawn scenarios at most one may stand still because nobody is left who has a stage's last checkpoint.
const SHARDLESS_ONE_IN: usize = 50;

/// Runs a scenario; returns whether it ended with all work done.
fn run(number: u64) -> bool {
    match run_drawn(number) {
        Ok(report) => report.verdict() == Verdict::Met,
        Err(failure) => panic!("{failure}\n{}\nrepeat with: {}", failure.details, failure.repeat()),
    }
}

/// Says where the numbers begin that are drawn: elsewhere with each change of the core, and the same for all who have it.
fn fresh() -> u64 {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/src");
    let mut files = Vec::new();
    let mut folders = vec![core];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the core has sources") {
            let path = entry.expect("its folders can be read").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update(&fs::read(file).expect("its sources can be read"));
    }
    let bytes = *hasher.finalize().as_bytes();
    u64::from_le_bytes(bytes[..8].try_into().expect("a hash is longer")) % NUMBERS
}

/// Lists the numbers of `sim/seeds.txt` that stand behind a word.
fn kept(word: &str) -> Vec<u64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sim/seeds.txt");
    let text = fs::read_to_string(path).expect("the repository keeps its seeds");
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let numbers = lines.filter_map(|line| line.strip_prefix(word));
    numbers.map(|number| number.trim().parse().expect("a seed is a whole number")).collect()
}

#[test]
fn every_drawn_churn_ends_with_all_work_done_once() {
    check(fresh(), DRAWN);
}

#[test]
fn every_drawn_churn_with_long_fetches_ends_with_all_work_done_once() {
    check(LONG_FETCHES + fresh(), DRAWN_LONG);
}

fn check(first: u64, count: u64) {
    let open = kept("open churn ");
    println!("drawn: {first}..{}", first + count);
    let (passed_over, tried): (Vec<u64>, Vec<u64>) =
        (first..first + count).partition(|number| open.contains(number));
    println!("known to fail, and passed over: {passed_over:?}");
    let shardless: Vec<u64> = tried.iter().copied().filter(|number| !run(*number)).collect();
    println!("stood still, for nobody was left with a stage's last checkpoint: {shardless:?}");
    assert!(shardless.len() * SHARDLESS_ONE_IN <= tried.len(), "too often: {shardless:?}");
}

#[test]
fn every_kept_churn_still_passes() {
    for number in kept("churn ") {
        assert!(run(number), "churn {number} stands still");
    }
}

#[test]
fn the_same_churn_gives_the_same_log() {
    for number in [1, 2, 5, 11] {
        let logs = [(); 2].map(|()| {
            let mut log = Vec::new();
            run_scenario_logged(&draw(number), None, &mut log).expect("the scenario runs");
            log
        });
        assert!(!logs[0].is_empty() && logs[0] == logs[1], "churn {number} gives two logs");
    }
}
