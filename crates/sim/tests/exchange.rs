//! The outer step with something going wrong at every message, and with replicas that lie.

use std::collections::BTreeMap;
use trestle_model::outer::{CodecKind, Exchanged, OuterConfig, Rule};
use trestle_protocol::ids::{OuterStep, ReplicaId};
use trestle_protocol::time::Span;
use trestle_sim::draws::Draws;
use trestle_sim::exchange::account::{Cutover, Notice, RingConfig, RingOutcome};
use trestle_sim::exchange::replica::{Guise, Standing};
use trestle_sim::exchange::trouble::{Mischief, StoreMoment, TROUBLES, Trouble};
use trestle_sim::exchange::{run_ring, run_ring_logged};

/// Lines of a failed ring's log that are shown.
const LOG_LINES: usize = 120;

/// Drawn rings in each run of the test.
const DRAWN: u64 = 300;

const LIES: [Guise; 8] = [
    Guise::ShortShards,
    Guise::RubbishShards,
    Guise::FalseChunks,
    Guise::WrongResults,
    Guise::ShortResults,
    Guise::WrongResultsRightClaims,
    Guise::WrongVotes,
    Guise::Accuser,
];

const LIAR: ReplicaId = ReplicaId(1);

const NESTEROV: Rule = Rule::Nesterov { learning_rate: 0.7, momentum: 0.9, ramp: None };

fn ring(replicas: u16, codec: CodecKind) -> RingConfig {
    let error_decay = if codec == CodecKind::SparseLoCo { 0.95 } else { 1.0 };
    RingConfig {
        seed: 1,
        replicas,
        steps: 3,
        outer: OuterConfig { rule: NESTEROV, codec, exchanged: Exchanged::Weights, error_decay },
        shapes: vec![vec![8, 5], vec![7], vec![6, 6], vec![5], vec![9, 4], vec![3], vec![11], vec![4, 4]],
        cutover: Cutover::AtOnce,
        notice: Notice::Silence,
        guises: BTreeMap::new(),
        honest_from: OuterStep(u64::MAX),
        mischief: Mischief::None,
        time_max: Span::seconds(150),
    }
}

fn run(config: &RingConfig) -> RingOutcome {
    run_ring(config.clone()).unwrap_or_else(|violation| {
        let mut log = Vec::new();
        drop(run_ring_logged(config.clone(), &mut log));
        let tail: Vec<&[u8]> = log.split(|byte| *byte == b'\n').collect();
        let tail = tail[tail.len().saturating_sub(LOG_LINES)..].join(&b'\n');
        panic!("{}\n{violation}\n{config:?}", String::from_utf8_lossy(&tail))
    })
}

/// What a sweep saw.
#[derive(Debug, Default)]
struct Swept {
    runs: u64,
    calm: Span,
    slowest: BTreeMap<&'static str, Span>,
}

/// Runs the ring with each trouble at each message of its second outer step.
fn sweep(base: &RingConfig) -> Swept {
    let calm = run(base);
    assert_eq!(calm.contributors.len() as u64, base.steps);
    assert!(calm.standings.iter().all(|standing| *standing == Standing::Up));
    let mut swept = Swept { calm: calm.took[1], ..Swept::default() };
    for message in calm.sent_before[0]..calm.sent_before[1] {
        for trouble in TROUBLES {
            let config = RingConfig { mischief: Mischief::At { message, trouble }, ..base.clone() };
            let outcome = run(&config);
            let dies = matches!(trouble, Trouble::SenderDies | Trouble::ReceiverDies);
            let up = outcome.standings.iter().filter(|standing| **standing == Standing::Up).count();
            assert!(
                up + usize::from(dies) >= usize::from(base.replicas),
                "{config:?}: {:?}",
                outcome.standings
            );
            assert!(!outcome.standings.contains(&Standing::Excluded), "{config:?}: {:?}", outcome.standings);
            assert_eq!(outcome.contributors.len() as u64, base.steps, "every outer step commits: {config:?}");
            assert_eq!((outcome.restored, outcome.disagreed, outcome.flawed.len()), (0, 0, 0), "{config:?}");
            let died = outcome.standings.contains(&Standing::Dead);
            let what = match trouble {
                Trouble::SenderDies | Trouble::ReceiverDies if died => "a replica dies",
                Trouble::SenderDies | Trouble::ReceiverDies | Trouble::CoordinatorDies => {
                    "the coordinator dies"
                }
                Trouble::Drop | Trouble::Delay | Trouble::Duplicate | Trouble::Swap => {
                    "a message goes astray"
                }
            };
            let slowest = swept.slowest.entry(what).or_default();
            *slowest = (*slowest).max(outcome.took[1]);
            swept.runs += 1;
        }
    }
    swept
}

fn sweep_all(replicas: u16, codec: CodecKind, cutover: Cutover) {
    for notice in [Notice::Silence, Notice::Lost] {
        let swept = sweep(&RingConfig { notice, cutover, ..ring(replicas, codec) });
        println!("{replicas} replicas, {codec:?}, {cutover:?}, {notice:?}: {swept:?}");
        let died = swept.slowest["a replica dies"];
        assert!(died < swept.calm.saturating_add(Span::seconds(2)), "{died:?} beside {:?}", swept.calm);
    }
}

#[test]
fn two_replicas_survive_anything_at_any_message() {
    sweep_all(2, CodecKind::Bf16, Cutover::AtOnce);
}

#[test]
fn three_replicas_survive_anything_at_any_message() {
    sweep_all(3, CodecKind::F32, Cutover::AtOnce);
    sweep_all(3, CodecKind::Int8, Cutover::Late);
    sweep_all(3, CodecKind::SparseLoCo, Cutover::Late);
}

#[test]
fn four_replicas_survive_anything_at_any_message() {
    sweep_all(4, CodecKind::SparseLoCo, Cutover::AtOnce);
}

#[test]
fn five_replicas_survive_anything_at_any_message() {
    sweep_all(5, CodecKind::Bf16, Cutover::Late);
}

#[test]
fn a_coordinator_that_dies_around_a_store_starts_again_from_what_is_durable() {
    for replicas in 2..=5 {
        let base = ring(replicas, CodecKind::Bf16);
        for store in 0..run(&base).stores {
            for moment in [StoreMoment::Before, StoreMoment::After] {
                let outcome =
                    run(&RingConfig { mischief: Mischief::AtStore { store, moment }, ..base.clone() });
                assert_eq!(outcome.contributors.len() as u64, base.steps);
                assert_eq!(outcome.standings, vec![Standing::Up; usize::from(replicas)]);
            }
        }
    }
}

/// Draws a ring in which everything goes wrong now and then.
fn drawn(seed: u64) -> RingConfig {
    let mut draws = Draws::new(seed, "drawn ring", &[]);
    let replicas = 2 + draws.below(4) as u16;
    let codecs = [CodecKind::F32, CodecKind::Bf16, CodecKind::Int8, CodecKind::SparseLoCo];
    let codec = codecs[draws.below(4) as usize];
    RingConfig {
        seed,
        steps: 6,
        cutover: if draws.below(2) == 0 { Cutover::AtOnce } else { Cutover::Late },
        notice: if draws.below(2) == 0 { Notice::Silence } else { Notice::Lost },
        mischief: Mischief::Drawn {
            deaths: draws.below(u64::from(replicas)) as u16,
            restarts: draws.below(3) as u16,
        },
        guises: if draws.below(3) == 0 {
            BTreeMap::from([(LIAR, LIES[draws.below(LIES.len() as u64) as usize])])
        } else {
            BTreeMap::new()
        },
        honest_from: OuterStep(draws.below(4)),
        time_max: Span::seconds(600),
        ..ring(replicas, codec)
    }
}

#[test]
fn drawn_rings_never_part_and_never_stop() {
    for seed in 0..DRAWN {
        run(&drawn(seed));
    }
}

#[test]
fn every_kept_seed_still_passes() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sim/seeds.txt");
    let text = std::fs::read_to_string(path).expect("the repository keeps its seeds");
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    for seed in lines.filter_map(|line| line.strip_prefix("ring ")) {
        run(&drawn(seed.trim().parse().expect("a seed is a whole number")));
    }
}

#[test]
fn the_same_seed_gives_the_same_messages_and_another_seed_others() {
    let digest = |seed| run(&drawn(seed)).digest;
    for seed in 0..8 {
        assert_eq!(digest(seed), digest(seed));
        assert_ne!(digest(seed), digest(seed + 1000));
    }
}

/// How a lie is expected to end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    /// The liar's contribution is left out, with this in the reason, and every outer step commits.
    LeftOut(&'static str),
    /// Reducers or votes differ; an outer step commits without the liar's result or is restored.
    Disagreed,
    /// Nobody can tell.
    Unseen,
}

fn lie(replicas: u16, codec: CodecKind, guise: Guise) -> RingOutcome {
    run(&RingConfig {
        guises: BTreeMap::from([(LIAR, guise)]),
        time_max: Span::seconds(600),
        ..ring(replicas, codec)
    })
}

fn check_lie(replicas: u16, codec: CodecKind, guise: Guise, ends: Ends) {
    let outcome = lie(replicas, codec, guise);
    let told = format!("{replicas} replicas, {codec:?}, {guise:?}: {outcome:?}");
    assert_eq!(outcome.standings, vec![Standing::Up; usize::from(replicas)], "{told}");
    match ends {
        Ends::LeftOut(reason) => {
            assert_eq!(outcome.contributors.len(), 3, "every outer step commits: {told}");
            let counted = outcome.contributors.values().flatten().any(|(replica, _)| *replica == LIAR);
            assert!(!counted, "{told}");
            assert!(outcome.flawed.iter().all(|(replica, _)| *replica == LIAR), "{told}");
            assert!(outcome.flawed.iter().any(|(_, said)| said.contains(reason)), "{told}");
        }
        Ends::Disagreed => assert!(outcome.disagreed > 0, "{told}"),
        Ends::Unseen => assert_eq!((outcome.disagreed, outcome.contributors.len()), (0, 3), "{told}"),
    }
}

#[test]
fn malformed_contributions_cost_their_sender_and_not_the_step() {
    for replicas in 2..=5 {
        for codec in [CodecKind::F32, CodecKind::Bf16, CodecKind::Int8, CodecKind::SparseLoCo] {
            check_lie(replicas, codec, Guise::ShortShards, Ends::LeftOut("bytes, expected"));
            check_lie(replicas, codec, Guise::FalseChunks, Ends::LeftOut("is not the one that was offered"));
        }
        check_lie(replicas, CodecKind::F32, Guise::RubbishShards, Ends::LeftOut("is NaN"));
        check_lie(replicas, CodecKind::Bf16, Guise::RubbishShards, Ends::LeftOut("is NaN"));
        check_lie(replicas, CodecKind::SparseLoCo, Guise::RubbishShards, Ends::LeftOut("expected"));
    }
}

#[test]
fn reducers_that_lie_are_found_out_where_there_are_two_a_shard() {
    for replicas in 3..=5 {
        check_lie(replicas, CodecKind::F32, Guise::WrongResults, Ends::Disagreed);
        check_lie(replicas, CodecKind::SparseLoCo, Guise::WrongResultsRightClaims, Ends::Disagreed);
        check_lie(replicas, CodecKind::Bf16, Guise::WrongVotes, Ends::Disagreed);
        check_lie(replicas, CodecKind::Int8, Guise::ShortResults, Ends::Disagreed);
    }
    check_lie(2, CodecKind::F32, Guise::WrongResults, Ends::Unseen);
    check_lie(2, CodecKind::Int8, Guise::ShortResults, Ends::LeftOut("bytes, expected"));
}

#[test]
fn a_step_that_is_called_off_costs_neither_credit_nor_error_feedback() {
    for codec in [CodecKind::Bf16, CodecKind::SparseLoCo] {
        let guises = BTreeMap::from([(LIAR, Guise::WrongVotes)]);
        let outcome = run(&RingConfig { guises, honest_from: OuterStep(1), ..ring(3, codec) });
        assert_eq!(outcome.restored, 3, "{outcome:?}");
        let weights =
            |outer| outcome.contributors[&OuterStep(outer)].iter().map(|(_, weight)| *weight).collect();
        let (first, second): (Vec<u64>, Vec<u64>) = (weights(1), weights(2));
        assert_eq!(
            (first, second),
            (vec![18, 16, 14], vec![9, 8, 7]),
            "what was earned before counts at the next commit"
        );
    }
}

#[test]
fn an_accuser_may_stop_an_outer_step_and_never_parts_the_others() {
    for replicas in 2..=5 {
        lie(replicas, CodecKind::Bf16, Guise::Accuser);
    }
}
