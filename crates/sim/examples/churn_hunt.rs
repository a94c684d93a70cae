//! Hunts for drawn scenarios of churn that break a law.
//!
//! `churn_hunt FROM TO` runs a range on two threads and prints a line for each that fails; `churn_hunt NUMBER` runs one and
//! prints it whole; `churn_hunt shrink NUMBER` takes out of it what does not matter to its failure; `churn_hunt log FILE LOG`
//! runs a scenario from a file and writes its event log.

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use trestle_sim::churn::{draw, run_drawn, shrink};
use trestle_sim::run_scenario_logged;
use trestle_sim::scenario::expectation::Verdict;

/// Threads that hunt: contributors' machines have at least so many cores.
const HUNTERS: usize = 2;

const USAGE: &str =
    "error: expected a number, a range, `shrink NUMBER` or `log FILE LOG`\n\nhint: churn_hunt 0 9999";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<u64>().ok();
    match words.as_slice() {
        ["shrink", word] if number(word).is_some() => {
            number(word).iter().for_each(|number| println!("{}", shrink(&draw(*number))));
            ExitCode::SUCCESS
        }
        ["log", file, log] => logged(file, log).unwrap_or_else(|error| {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }),
        [word] if number(word).is_some() => number(word).map_or(ExitCode::FAILURE, one),
        [from, to] => match (number(from), number(to)) {
            (Some(from), Some(to)) => hunt(from, to),
            (_, _) => misused(),
        },
        _ => misused(),
    }
}

fn misused() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn logged(file: &str, log: &str) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let report = run_scenario_logged(&fs::read_to_string(file)?, None, &mut fs::File::create(log)?)?;
    println!("{report}\n{}", report.outcome.waits.join("\n"));
    Ok(ExitCode::SUCCESS)
}

fn one(number: u64) -> ExitCode {
    match run_drawn(number) {
        Ok(report) => {
            println!("{}\n{report}", draw(number));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}\n{failure}", failure.details);
            ExitCode::FAILURE
        }
    }
}

fn hunt(from: u64, to: u64) -> ExitCode {
    let (next, failed, shardless) = (AtomicU64::new(from), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..HUNTERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > to {
                        return;
                    }
                    match run_drawn(number) {
                        Ok(report) if report.verdict() == Verdict::Met => {}
                        Ok(_) => {
                            shardless.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(failure) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            println!("{failure}");
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    let shardless = shardless.into_inner();
    eprintln!(
        "{failed} of {} failed; {shardless} stood still, for nobody was left with a stage's last checkpoint",
        to.saturating_sub(from) + 1
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
