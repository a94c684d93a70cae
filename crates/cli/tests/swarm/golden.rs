//! Pipelined equals unpipelined: four processes against one engine that holds the whole model.

use trestle_data::{Dataset, Split};
use trestle_model::device::{DeviceKind, threads};
use trestle_model::engine::Engine;
use trestle_model::input::{Duty, Mode, StageInput, StageOutput};
use trestle_protocol::spec::RunSpec;
use trestle_settings::data::{LocalData, data_config};
use trestle_settings::model::engine_config;

use crate::command::{Place, held_out, losses, only, succeed};

/// Steps of the golden comparison.
const STEPS: u64 = 200;

pub(crate) struct OneProcess {
    pub(crate) spec: RunSpec,
    dataset: Dataset,
    engine: Engine,
}

impl OneProcess {
    pub(crate) fn new(place: &Place, run: &str) -> Self {
        threads(1).unwrap();
        let kept = std::fs::read_to_string(place.run_dir(run).join("spec.json")).unwrap();
        let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
        let spec: RunSpec = serde_json::from_value(kept["spec"].clone()).unwrap();
        let dataset = Dataset::open(&data_config(&spec, &LocalData::default()).unwrap()).unwrap();
        let stages = usize::from(spec.stages());
        let engine = Engine::new(engine_config(&spec, 0..stages, DeviceKind::Cpu)).unwrap();
        Self { spec, dataset, engine }
    }

    fn loss(&mut self, split: Split, index: u64, mode: Mode) -> f64 {
        let size = self.spec.pipeline.microbatch_size as usize;
        let text = self.dataset.microbatch(split, index, size).unwrap();
        let input = StageInput::Tokens(&text.inputs);
        let output = self.engine.forward(index, input, Some(&text.targets), mode).unwrap();
        let StageOutput::Loss(loss) = output else { panic!("a whole model gives a loss") };
        if mode == Mode::Train {
            self.engine.backward(index, input, Some(&text.targets), None, Duty::Train).unwrap();
        }
        f64::from(loss)
    }

    pub(crate) fn step(&mut self, step: u64) -> f64 {
        let microbatches = self.spec.pipeline.microbatches_per_step;
        let first = step * u64::from(microbatches);
        let sum: f64 =
            (first..first + u64::from(microbatches)).map(|i| self.loss(Split::Train, i, Mode::Train)).sum();
        self.engine.step(microbatches).unwrap();
        sum / f64::from(microbatches)
    }

    pub(crate) fn held_out(&mut self) -> f64 {
        let count = u64::from(self.spec.evaluation.microbatches);
        let sum: f64 = (0..count).map(|i| self.loss(Split::HeldOut, i, Mode::Evaluate)).sum();
        sum / count as f64
    }
}

#[test]
fn four_stages_with_flush_equal_one_process_to_the_bit() {
    let place = Place::new();
    let events =
        succeed(&mut place.train("flush", &["--steps", &STEPS.to_string(), "--set", "evaluation.every=0"]));
    let mut one = OneProcess::new(&place, "flush");
    let expected: Vec<_> = (0..STEPS).map(|step| (step, one.step(step))).collect();
    assert_eq!(losses(&events), expected);
    assert_eq!(held_out(&events), [(STEPS, one.held_out())]);
    let ledger = only(&events, "ledger");
    let planned = STEPS * 4;
    assert_eq!(ledger["planned"], planned);
    assert_eq!(ledger["credited"], serde_json::json!([planned, planned, planned, planned]));
    assert!(expected[0].1 - expected[STEPS as usize - 1].1 > 0.5, "the loss falls: {expected:?}");
}

#[test]
fn boundary_none_equals_the_dense_model() {
    let dense = ["--steps", "30", "--set", "boundary.form=none", "--set", "boundary.width=32"];
    // Clipping holds each stage to its own share of the bound, and a dense model has one stage.
    let exact = ["--set", "boundary.wire=f32", "--set", "training.gradient_clip=0"];
    let place = Place::new();
    let split = succeed(&mut place.train("none", &[&dense[..], &exact[..]].concat()));
    let mut one = OneProcess::new(&place, "none");
    one.spec.pipeline.stage_layers = vec![4];
    one.engine = Engine::new(engine_config(&one.spec, 0..1, DeviceKind::Cpu)).unwrap();
    let expected: Vec<_> = (0..30).map(|step| (step, one.step(step))).collect();
    assert_eq!(losses(&split), expected);
}

#[test]
fn async_reaches_the_held_out_loss_of_flush() {
    let place = Place::new();
    let set = |field| ["--set", field];
    let length = ["--steps", "400"];
    let fields = [
        set("optimizer.learning_rate=1e-3"),
        set("evaluation.every=0"),
        set("evaluation.microbatches=64"),
        set("checkpoint.every=0"),
    ];
    let steps = [&length[..], &fields.concat()].concat();
    let flush = held_out(&succeed(&mut place.train("flush", &steps)))[0].1;
    let eager = [&steps[..], &["--set", "pipeline.schedule=async"]].concat();
    let events = succeed(&mut place.train("async", &eager));
    let loss = held_out(&events)[0].1;
    assert!((loss / flush - 1.0).abs() < 0.01, "async {loss}, flush {flush}");
    let stale = events.iter().filter(|event| event["event"] == "step").any(|event| {
        event["stages"].as_array().unwrap().iter().any(|stage| stage["staleness"].as_u64().unwrap() > 0)
    });
    assert!(stale, "an async run in which no backward ever meets newer weights is no async run");
}
