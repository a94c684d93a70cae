//! Scenarios that nobody wrote: shapes, schedules, links and faults drawn from a number, on the cost model. Whatever they
//! are, every run ends, after its restarts, with all its work done once.

use std::fmt::Write;
use trestle_protocol::message::Outcome;
use trestle_sim::draws::Draws;
use trestle_sim::run_scenario;
use trestle_sim::scenario::expectation::Verdict;
use trestle_sim::swarm::Ending;

/// Scenarios drawn in each run of the test.
const SCENARIOS: u64 = 300;

/// Draws a scenario. Faults come at most twice, and each is followed by a restart.
fn draw(number: u64) -> String {
    let mut draws = Draws::new(number, "drawn scenario", &[]);
    let mut text = String::new();
    let mut say =
        |line: std::fmt::Arguments<'_>| writeln!(text, "{line}").expect("a string takes everything");
    let steps = 1 + draws.below(12);
    let stages = 1 + draws.below(6);
    say(format_args!("seed {number}\nstages {stages}\nsteps {steps}\nmicrobatches {}", 1 + draws.below(6)));
    say(format_args!("in_flight {}", 1 + draws.below(9)));
    match draws.below(3) {
        0 => say(format_args!("schedule flush")),
        staleness => say(format_args!("schedule async staleness={staleness}")),
    }
    if draws.below(2) == 0 {
        say(format_args!("evaluate every={} microbatches={}", draws.below(5), 1 + draws.below(6)));
    }
    say(format_args!("checkpoint every={}", draws.below(5)));
    let (forward, jitter) = (1 + draws.below(9000), draws.below(91));
    say(format_args!("compute cost forward={forward}us backward={}us jitter={jitter}%", 2 * forward));
    let (latency, bandwidth) = (draws.below(200), 1 + draws.below(200));
    say(format_args!("link latency={latency}ms bandwidth={bandwidth}Mbit jitter={}%", draws.below(101)));
    if draws.below(3) == 0 {
        say(format_args!("link stage={} latency={}ms", draws.below(stages), draws.below(900)));
    }
    if draws.below(3) == 0 {
        say(format_args!("slow stage={} factor={}", draws.below(stages), 1 + draws.below(8)));
    }
    let hostile = draws.below(4) == 0;
    let mut early = false;
    for running in ["train", "resume", "resume"] {
        if hostile {
            say(format_args!("hostile every={}ms", 1 + draws.below(20)));
        }
        let step = 1 + draws.below(steps);
        let at =
            if draws.below(2) == 0 { format!("step:{step}") } else { format!("{}ms", draws.below(3000)) };
        match draws.below(4) {
            0 | 1 if running != "train" || steps > 1 => say(format_args!("crash at={at}")),
            2 => {
                // Who asks for a place after the coordinator has closed finds it gone.
                early |= !at.starts_with("step");
                say(format_args!("drain at={at}"));
            }
            _ => {}
        }
        say(format_args!("{running}"));
    }
    say(format_args!(
        "resume\n----\noutcome=done steps={steps} durable={steps} lost=0 duplicates=0 expired=0"
    ));
    if !hostile {
        say(format_args!("refused=0 rejected=0"));
    }
    if !early {
        say(format_args!("failed=0"));
    }
    text
}

#[test]
fn every_drawn_scenario_ends_well() {
    for number in 0..SCENARIOS {
        let text = draw(number);
        let report = run_scenario(&text, None).unwrap_or_else(|error| panic!("{error} in\n{text}"));
        for ending in &report.outcome.endings {
            let stands =
                matches!(ending, Ending::Stuck | Ending::Headless | Ending::Left(Outcome::Failed { .. }));
            assert!(!stands, "scenario {number}: {ending:?}\n{report}\n{text}");
        }
        assert_eq!(report.verdict(), Verdict::Met, "scenario {number}\n{report}\n{text}");
    }
}
