//! A run that was saved and loaded goes on as if it had never stopped, and a checkpoint that does not fit is refused.

mod fixture;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trestle_model::checkpoint::CheckpointError;
use trestle_model::config::{BoundaryForm, Dtype};
use trestle_model::engine::EngineConfig;
use trestle_model::optimizer::config::OptimizerKind;

use fixture::{Line, config, engine, model};

fn train(line: &mut Line, steps: std::ops::Range<u64>) -> Vec<u32> {
    steps
        .map(|step| {
            let loss = line.forward_all(step);
            line.backward_all(step);
            line.step(1);
            loss.to_bits()
        })
        .collect()
}

fn save(line: &Line, folder: &Path) -> Vec<PathBuf> {
    let save_one = |(index, engine): (usize, &trestle_model::engine::Engine)| {
        let path = folder.join(format!("{index}.safetensors"));
        let labels = BTreeMap::from([("data.position".to_string(), "37".to_string())]);
        engine.save(&path, &labels).expect("the checkpoint can be written");
        path
    };
    line.engines.iter().enumerate().map(save_one).collect()
}

#[test]
fn loading_continues_to_the_bit() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
        for compute in [Dtype::F32, Dtype::Bf16] {
            let config = EngineConfig { compute, ..config(model(BoundaryForm::Fused, &[1, 1]), kind) };
            let cuts = [0..1, 1..2];
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let mut line = Line::new(&config, &cuts);
            train(&mut line, 0..3);
            let paths = save(&line, folder.path());
            let want = train(&mut line, 3..6);

            let other = EngineConfig { seed: 999, ..config };
            let mut resumed = Line::new(&other, &cuts);
            // What is under way in the engine that loads must not bleed into the run.
            resumed.forward_all(70);
            resumed.backward_all(70);
            resumed.forward_all(71);
            for (engine, path) in resumed.engines.iter_mut().zip(&paths) {
                let labels = engine.load(path).expect("the checkpoint can be read");
                assert_eq!(labels, BTreeMap::from([("data.position".to_string(), "37".to_string())]));
                assert_eq!(engine.version(), 3);
                assert_eq!(engine.memory().graphs, 0);
            }
            assert_eq!(train(&mut resumed, 3..6), want, "{kind:?} {compute:?}");
            for (resumed, engine) in resumed.engines.iter().zip(&line.engines) {
                let digest = |engine: &trestle_model::engine::Engine| {
                    engine.weights_digest().expect("weights can be read")
                };
                assert_eq!(digest(resumed), digest(engine));
            }
        }
    }
}

#[test]
fn the_stages_weights_make_one_model() {
    let config = config(model(BoundaryForm::Resbm, &[1, 1, 1]), OptimizerKind::AdamW);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut line = Line::new(&config, &[0..1, 1..2, 2..3]);
    train(&mut line, 0..2);
    let paths = save(&line, folder.path());
    let mut whole = engine(&config, 0..3);
    let mut paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let before = whole.weights_digest().expect("weights can be read");
    let error = whole.load_weights(&paths[..2]).expect_err("the last stage is missing");
    assert!(matches!(error, CheckpointError::Missing { .. }), "{error}");
    assert_eq!(whole.weights_digest().expect("weights can be read"), before, "a refusal changes nothing");
    paths.reverse();
    whole.load_weights(&paths).expect("all stages are there");
    assert_eq!(whole.weights().expect("weights can be read"), line.weights());
}

#[test]
fn the_digest_follows_the_weights() {
    let config = config(model(BoundaryForm::None, &[1]), OptimizerKind::AdamW);
    let mut line = Line::whole(&config);
    let digest = |line: &Line| line.engines[0].weights_digest().expect("weights can be read");
    let first = digest(&line);
    assert_eq!(first, digest(&Line::whole(&config)));
    train(&mut line, 0..1);
    assert_ne!(first, digest(&line));
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let config = config(model(BoundaryForm::Resbm, &[1, 1]), OptimizerKind::AdamW);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let paths = save(&Line::new(&config, &[0..1, 1..2]), folder.path());

    let mut wider = config.clone();
    wider.model.boundary_width = 16;
    let mut muon = config.clone();
    muon.optimizer.kind = OptimizerKind::Muon;
    let cases = [
        ("another model", EngineConfig { seed: 5, ..wider }, 0..1, "engine.model"),
        ("another stage", EngineConfig { seed: 5, ..config.clone() }, 1..2, "engine.stages"),
        ("another optimizer", EngineConfig { seed: 5, ..muon }, 0..1, "muon.momentum"),
    ];
    for (what, config, held, word) in cases {
        let mut engine = engine(&config, held);
        let before = engine.weights_digest().expect("weights can be read");
        let error = engine.load(&paths[0]).expect_err(what);
        assert!(error.to_string().contains(word), "{what}: {error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("run file")), "{what}");
        assert_eq!(engine.weights_digest().expect("weights can be read"), before, "{what}");
        assert_eq!(engine.version(), 0);
    }
}

#[test]
fn the_engines_labels_are_its_own() {
    let config = config(model(BoundaryForm::None, &[1]), OptimizerKind::AdamW);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let labels = BTreeMap::from([("engine.version".to_string(), "9".to_string())]);
    let error =
        engine(&config, 0..1).save(&folder.path().join("x"), &labels).expect_err("the label is taken");
    assert!(matches!(error, CheckpointError::Name { .. }), "{error}");
}
