//! A run file in numbers: parameters, messages, operations and memory, before anything runs.
//!
//! Owns the report. May not know how memory is added up, nor any file.

use std::fmt;

use serde::Serialize;
use trestle_fleet::memory::StageMemory;
use trestle_protocol::ids::Digest;
use trestle_protocol::spec::RunSpec;
use trestle_settings::model::model_config;

use crate::failure::Failure;
use crate::run_file::RunFile;
use crate::units::{bytes, count, scaled};

/// What a run will take.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport {
    name: String,
    parameters: u64,
    dense_parameters: u64,
    boundary_message_bytes: u64,
    boundary_bytes_per_token: u64,
    train_flops_per_token: f64,
    steps: u64,
    step_tokens: u64,
    tokens: u64,
    microbatch_tokens: u64,
    in_flight_max: u32,
    stages: Vec<StageReport>,
    fields: Vec<(&'static str, String)>,
}

#[derive(Debug, Serialize)]
struct StageReport {
    stage: usize,
    layers: u32,
    parameters: u64,
    memory: StageMemory,
    memory_total: u64,
}

impl RunReport {
    /// Works out the numbers of a run file; no data is opened, so the number of token ids must be known.
    pub(crate) fn of(run_file: &RunFile) -> Result<Self, Failure> {
        let Some(vocabulary) = run_file.vocabulary() else {
            let error = format!("`model.vocabulary` of run `{}` is left to the tokenizer", run_file.name());
            return Err(Failure::misused(error).hint("say it here: --set model.vocabulary=128256"));
        };
        let spec = run_file.spec(Digest([0; 32]), vocabulary)?;
        let config = model_config(&spec);
        config.validate().map_err(|error| Failure::misused(&error).hint(error.hint()))?;
        let stages = spec.pipeline.stage_layers.iter().enumerate().map(|(stage, &layers)| {
            let memory = StageMemory::of(&spec, &config, stage);
            StageReport {
                stage,
                layers,
                parameters: config.stage_parameters(stage),
                memory,
                memory_total: memory.total(),
            }
        });
        Ok(Self {
            name: spec.name.clone(),
            parameters: config.parameters(),
            dense_parameters: config.dense_parameters(),
            boundary_message_bytes: spec.boundary_bytes() as u64,
            boundary_bytes_per_token: spec.boundary_bytes() as u64 / spec.microbatch_tokens(),
            train_flops_per_token: config.train_flops_per_token(),
            steps: spec.training.steps,
            step_tokens: spec.step_tokens(),
            tokens: spec.step_tokens().saturating_mul(spec.training.steps),
            microbatch_tokens: spec.microbatch_tokens(),
            in_flight_max: spec.pipeline.in_flight_max,
            stages: stages.collect(),
            fields: fields(&spec),
        })
    }
}

/// Lists the fields with defaults filled in, less the manifest's digest, which needs the data.
fn fields(spec: &RunSpec) -> Vec<(&'static str, String)> {
    spec.fields().into_iter().filter(|(field, _)| *field != "data.manifest").collect()
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "run          {}", self.name)?;
        writeln!(
            f,
            "parameters   {} ({} without boundaries)",
            count(self.parameters),
            count(self.dense_parameters)
        )?;
        writeln!(
            f,
            "training     {} steps of {} tokens = {}",
            count(self.steps),
            count(self.step_tokens),
            count(self.tokens)
        )?;
        writeln!(f, "operations   {}FLOP a token, forward and backward", scaled(self.train_flops_per_token))?;
        let message = bytes(self.boundary_message_bytes);
        let (tokens, each) = (count(self.microbatch_tokens), self.boundary_bytes_per_token);
        writeln!(f, "boundary     {message} a message of {tokens} tokens, {each} B a token each way")?;
        writeln!(f, "in flight    {} microbatches at most", self.in_flight_max)?;
        let heads = [
            "stage",
            "layers",
            "parameters",
            "weights",
            "stale",
            "gradients",
            "moments",
            "inputs",
            "activations",
            "memory",
        ];
        writeln!(f, "\n{}", row(&heads.map(String::from)))?;
        for stage in &self.stages {
            let StageMemory { weights, stale_weights, gradients, moments, kept_inputs, activations } =
                stage.memory;
            let [weights, stale, gradients, moments, inputs, activations, total] =
                [weights, stale_weights, gradients, moments, kept_inputs, activations, stage.memory_total]
                    .map(bytes);
            let parameters = count(stage.parameters);
            let (number, layers) = (stage.stage.to_string(), stage.layers.to_string());
            let cells =
                [number, layers, parameters, weights, stale, gradients, moments, inputs, activations, total];
            writeln!(f, "{}", row(&cells))?;
        }
        writeln!(f)?;
        self.fields.iter().try_for_each(|(field, value)| writeln!(f, "{field:<32} {value}"))
    }
}

fn row(cells: &[String; 10]) -> String {
    let [stage, layers, parameters, rest @ ..] = cells;
    let rest: String = rest.iter().map(|cell| format!("{cell:>12}")).collect();
    format!("{stage:>5}{layers:>8}{parameters:>16}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use trestle_model::config::ModelConfig;
    use trestle_protocol::spec::{BoundaryForm, Dtype, OptimizerKind, Schedule};

    fn committed(name: &str) -> (RunSpec, ModelConfig) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runs").join(name);
        let run_file = RunFile::read(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        let spec = run_file.spec(Digest([0; 32]), run_file.vocabulary().unwrap()).unwrap();
        let config = model_config(&spec);
        config.validate().unwrap();
        (spec, config)
    }

    #[test]
    fn every_committed_run_file_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runs");
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".toml"))
            .collect();
        names.sort();
        let expected = ["100b", "15b", "1b", "21b", "3b", "45b", "8b", "demo", "tiny"];
        assert_eq!(names, expected.map(|name| format!("{name}.toml")));
        for name in names {
            let (spec, _) = committed(&name);
            assert_eq!(format!("{}.toml", spec.name), name, "a run is called like its file");
        }
    }

    #[test]
    fn production_sizes_have_the_published_parameters() {
        // Without boundaries; the last three are published to three or four digits only.
        let dense = [
            ("1b", 1_498_482_688),
            ("3b", 3_606_752_256),
            ("8b", 8_030_261_248),
            ("15b", 15_076_418_560),
            ("21b", 21_446_661_120),
            ("45b", 45_197_200_384),
            ("100b", 99_615_863_808),
        ];
        for (name, parameters) in dense {
            let (spec, config) = committed(&format!("{name}.toml"));
            assert_eq!(config.dense_parameters(), parameters, "{name}");
            assert_eq!(
                (spec.boundary.form, spec.boundary.wire),
                (BoundaryForm::Fused, Dtype::Bf16),
                "{name}"
            );
            assert_eq!(
                (spec.boundary.width * 64, spec.optimizer.kind),
                (spec.model.width, OptimizerKind::Muon),
                "{name}"
            );
            let stages: u64 = (0..config.stages()).map(|stage| config.stage_parameters(stage)).sum();
            assert_eq!(stages, config.parameters(), "{name}");
        }
        // The published number of the smallest counts its boundaries: twelve of 2dk numbers each.
        assert_eq!(committed("1b.toml").1.parameters(), 1_500_055_552);
    }

    #[test]
    fn the_hundred_is_cut_and_sent_as_published() {
        let (spec, _) = committed("100b.toml");
        let sixes = [6; 12];
        let expected: Vec<u32> = [4].into_iter().chain(sixes).chain([5, 5, 4]).collect();
        assert_eq!(spec.pipeline.stage_layers, expected);
        assert_eq!((spec.microbatch_tokens(), spec.boundary_bytes()), (8_000, 2_304_000));
    }

    #[test]
    fn tiny_is_large_enough_to_mean_something() {
        let (spec, config) = committed("tiny.toml");
        assert!(config.parameters() >= 5_000_000, "{}", config.parameters());
        assert_eq!((config.stages(), spec.boundary.form), (4, BoundaryForm::Resbm));
        assert_eq!(spec.model.width / spec.boundary.width, 8);
        let samples = spec.pipeline.microbatch_size * spec.pipeline.microbatches_per_step;
        assert_eq!((samples, spec.training.steps), (16, 600));
    }

    #[test]
    fn memory_of_a_large_stage_is_the_sum_on_paper() {
        let (spec, config) = committed("100b.toml");
        let p = config.stage_parameters(7);
        let norms = 2 * 9216 * 6;
        let memory = StageMemory::of(&spec, &config, 7);
        assert_eq!((memory.weights, memory.gradients), (6 * p, 6 * p));
        assert_eq!(memory.moments, 4 * (p - norms) + 8 * norms);
        assert_eq!((memory.kept_inputs, memory.stale_weights), (17 * 2_304_000, 0));
        assert_eq!(memory.total(), 12 * p + memory.moments + memory.kept_inputs + memory.activations);
    }

    #[test]
    fn kept_graphs_hold_on_to_older_weights() {
        let (mut spec, config) = committed("tiny.toml");
        let flush = StageMemory::of(&spec, &config, 1);
        assert_eq!((flush.stale_weights, flush.kept_inputs), (0, 4 * spec.boundary_bytes() as u64));
        spec.pipeline.schedule = Schedule::Async { staleness_max: 3 };
        assert_eq!(StageMemory::of(&spec, &config, 1).kept_inputs, 5 * spec.boundary_bytes() as u64);
        assert_eq!(StageMemory::of(&spec, &config, 1).stale_weights, 3 * 4 * config.stage_parameters(1));
        assert_eq!(StageMemory::of(&spec, &config, 3).stale_weights, 0);
    }
}
