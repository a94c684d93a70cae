//! Every scenario of the repository, and every seed that was kept.

use std::fs;
use std::path::{Path, PathBuf};
use trestle_sim::run_scenario;
use trestle_sim::scenario::expectation::Verdict;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sim")
}

fn run(name: &str, seed: Option<u64>) {
    let path = folder().join("scenarios").join(format!("{name}.txt"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let report = run_scenario(&text, seed).unwrap_or_else(|error| panic!("{name}: {error}"));
    println!("{name}: {report}");
    let again = report.repeat(&format!("sim/scenarios/{name}.txt"));
    assert_eq!(report.verdict(), Verdict::Met, "{name}: {report}\nrepeat with: {again}");
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name), None);
            }
        )*

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

scenarios! {
    async_four_stages
    async_real
    churn_25_percent
    churn_clock_skew
    churn_coordinator
    churn_cut
    churn_disk_full
    churn_disk_full_coordinator
    churn_duplicate
    churn_empty_stage
    churn_flapping
    churn_freeze
    churn_isolate
    churn_join
    churn_kill
    churn_leave
    churn_long_fetch
    churn_long_fetch_real
    churn_one_slot
    churn_partition
    churn_real
    churn_redo_alone
    churn_reorder
    churn_scripted
    churn_slow
    crash_and_resume
    dead_worker
    drain_and_resume
    four_stages_10000
    hostile_stranger
    jitter_reorders
    killed_worker
    one_process
    replicas_four_by_three
    replicas_killed
    replicas_one_batch
    replicas_overlapped
    replicas_real
    replicas_unlike
    replicas_wan_overlapped
    replicas_wan_waiting
    slow_stage
    wan_link
}

#[test]
fn every_scenario_of_the_folder_is_run() {
    let entries = fs::read_dir(folder().join("scenarios")).expect("the repository has scenarios");
    let mut found: Vec<String> = entries
        .map(|entry| entry.expect("readable").path())
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    found.sort();
    assert_eq!(found, NAMES);
}

#[test]
fn every_kept_seed_still_passes() {
    let text = fs::read_to_string(folder().join("seeds.txt")).expect("the repository keeps its seeds");
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        let Some((name, seed)) = line.split_once(char::is_whitespace) else {
            assert_eq!(line, "", "a line holds a scenario and a seed");
            continue;
        };
        if ["ring", "churn", "open"].contains(&name) {
            // A ring or a churn that is drawn; tests of their own run them.
            continue;
        }
        run(name, Some(seed.trim().parse().expect("a seed is a whole number")));
    }
}
