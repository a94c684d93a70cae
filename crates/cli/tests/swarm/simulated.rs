//! The simulator against processes: the same core, the same model, the same losses.

use std::collections::BTreeMap;
use std::rc::Rc;

use trestle_protocol::receipt::Seals;
use trestle_protocol::spec::RunSpec;
use trestle_protocol::time::Span;
use trestle_sim::compute::{Compute, Rate, Spans};
use trestle_sim::draws::Permille;
use trestle_sim::fault::Faults;
use trestle_sim::link::{Link, Shared};
use trestle_sim::real::{RealModel, World};
use trestle_sim::swarm::{Swarm, SwarmConfig, Weights};

use crate::command::{Place, held_out, losses, succeed};

#[test]
fn the_simulator_gives_the_losses_of_the_processes() {
    processes_and_simulator_agree(&["--steps", "40"]);
}

#[test]
fn the_simulator_gives_the_losses_of_processes_that_are_replicas() {
    let overlapped = ["--set", "sync.inner_steps=5", "--set", "sync.delay=2"];
    processes_and_simulator_agree(&[&["--steps", "20", "--replicas", "2"][..], &overlapped].concat());
}

fn processes_and_simulator_agree(options: &[&str]) {
    let place = Place::new();
    let events = succeed(&mut place.train("processes", options));
    let kept = std::fs::read_to_string(place.run_dir("processes").join("spec.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    let spec: RunSpec = serde_json::from_value(kept["spec"].clone()).unwrap();
    let world = World::open(spec.clone()).unwrap();
    assert_eq!(world.spec(), &spec, "the simulator makes the same data");
    let maker = |_: &RunSpec| -> Box<dyn Compute> { Box::new(RealModel::new(Rc::clone(&world))) };
    let jitter = Permille(300);
    let spans = Spans {
        forward: Span::millis(3),
        backward: Span::millis(6),
        step: Span::millis(1),
        save: Span::millis(20),
        load: Span::millis(20),
        copy: Rate(1_000_000_000),
        beside: Rate(500_000_000),
        jitter,
    };
    let config = SwarmConfig {
        seed: 11,
        link: Link {
            latency: Span::millis(40),
            bandwidth: 80_000_000,
            downlink: 0,
            shared: Shared::ByPair,
            jitter,
        },
        own_links: BTreeMap::new(),
        spans: vec![spans; usize::from(spec.stages())],
        own_spans: BTreeMap::new(),
        weights: Weights::default(),
        seals: Seals::Signed,
        spec,
    };
    let mut sink = std::io::sink();
    let mut swarm = Swarm::new(config, &maker, &mut sink);
    swarm.run(Faults::default()).unwrap();
    let tally = swarm.finish().tally;
    assert_eq!(tally.losses, losses(&events));
    assert_eq!(tally.evaluations, held_out(&events));
}
