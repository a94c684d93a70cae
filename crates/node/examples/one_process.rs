//! A run in one process, without pipeline or network: the yardstick of the swarm, and of PyTorch.
//!
//! usage: one_process train RUN_DIR THREADS            trains the run of RUN_DIR/spec.json; prints one JSON object
//!        one_process export RUN_DIR FOLDER            writes first weights, samples in training order and settings
//!                                                     for `crates/model/tests/parity/train_reference.py`

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};
use trestle_data::{Dataset, Microbatch, Split};
use trestle_model::device::{DeviceKind, threads};
use trestle_model::engine::Engine;
use trestle_model::input::{Duty, Mode, StageInput, StageOutput};
use trestle_protocol::spec::RunSpec;
use trestle_settings::data::{LocalData, data_config};
use trestle_settings::model::engine_config;

type Fallible<T> = Result<T, Box<dyn Error>>;

struct Run {
    spec: RunSpec,
    dataset: Dataset,
    engine: Engine,
}

impl Run {
    fn open(directory: &Path) -> Fallible<Self> {
        let kept: Value = serde_json::from_str(&fs::read_to_string(directory.join("spec.json"))?)?;
        let spec: RunSpec = serde_json::from_value(kept["spec"].clone())?;
        let path = |name: &str| kept[name].as_str().map(Into::into);
        let local = LocalData {
            path: path("data"),
            field: kept["field"].as_str().map(Into::into),
            tokenizer: path("tokenizer"),
        };
        let dataset = Dataset::open(&data_config(&spec, &local)?)?;
        let stages = usize::from(spec.stages());
        let engine = Engine::new(engine_config(&spec, 0..stages, DeviceKind::Cpu))?;
        Ok(Self { spec, dataset, engine })
    }

    fn text(&self, split: Split, index: u64) -> Fallible<Microbatch> {
        Ok(self.dataset.microbatch(split, index, self.spec.pipeline.microbatch_size as usize)?)
    }

    fn loss(&mut self, split: Split, index: u64, mode: Mode) -> Fallible<f64> {
        let text = self.text(split, index)?;
        let input = StageInput::Tokens(&text.inputs);
        let StageOutput::Loss(loss) = self.engine.forward(index, input, Some(&text.targets), mode)? else {
            return Err("a whole model gives a loss".into());
        };
        if mode == Mode::Train {
            self.engine.backward(index, input, Some(&text.targets), None, Duty::Train)?;
        }
        Ok(f64::from(loss))
    }

    fn train(&mut self) -> Fallible<Value> {
        let per_step = u64::from(self.spec.pipeline.microbatches_per_step);
        let began = Instant::now();
        let mut losses = Vec::new();
        for step in 0..self.spec.training.steps {
            let mut sum = 0.0;
            for index in step * per_step..(step + 1) * per_step {
                sum += self.loss(Split::Train, index, Mode::Train)?;
            }
            self.engine.step(self.spec.pipeline.microbatches_per_step)?;
            losses.push(sum / per_step as f64);
        }
        let seconds = began.elapsed().as_secs_f64();
        let tokens = (self.spec.training.steps * self.spec.step_tokens()) as f64;
        let count = u64::from(self.spec.evaluation.microbatches);
        let mut held_out = 0.0;
        for index in 0..count {
            held_out += self.loss(Split::HeldOut, index, Mode::Evaluate)? / count as f64;
        }
        let tokens_per_second = tokens / seconds;
        Ok(
            json!({ "held_out": held_out, "seconds": seconds, "tokens_per_second": tokens_per_second, "losses": losses }),
        )
    }

    fn export(&self, folder: &Path) -> Fallible<Value> {
        fs::create_dir_all(folder)?;
        let config = self.engine.config();
        let settings = json!({
            "model": config.model, "optimizer": config.optimizer, "schedule": config.schedule, "clip": config.clip,
        });
        fs::write(folder.join("config.json"), settings.to_string())?;
        self.engine.save(&folder.join("weights.safetensors"), &BTreeMap::new())?;
        let microbatches = self.spec.training.steps * u64::from(self.spec.pipeline.microbatches_per_step);
        self.write_samples(&folder.join("tokens.bin"), Split::Train, microbatches)?;
        let held_out = u64::from(self.spec.evaluation.microbatches);
        self.write_samples(&folder.join("held_out.bin"), Split::HeldOut, held_out)?;
        Ok(json!({
            "steps": self.spec.training.steps,
            "batch": self.spec.pipeline.microbatch_size,
            "microbatches": self.spec.pipeline.microbatches_per_step,
        }))
    }

    fn write_samples(&self, path: &Path, split: Split, microbatches: u64) -> Fallible<()> {
        let length = self.spec.model.sequence_len as usize;
        let mut bytes = Vec::new();
        for index in 0..microbatches {
            let text = self.text(split, index)?;
            for (inputs, targets) in text.inputs.chunks(length).zip(text.targets.chunks(length)) {
                let sample = inputs.iter().chain(targets.last());
                bytes.extend(sample.flat_map(|token| token.to_le_bytes()));
            }
        }
        Ok(fs::write(path, bytes)?)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["train", directory, count] => count
            .parse()
            .map_err(Into::into)
            .and_then(|count| threads(count).map_err(Into::into))
            .and_then(|()| Run::open(Path::new(directory))?.train()),
        ["export", directory, folder] => {
            Run::open(Path::new(directory)).and_then(|run| run.export(Path::new(folder)))
        }
        _ => Err("usage: one_process train RUN_DIR THREADS | export RUN_DIR FOLDER".into()),
    };
    match result {
        Ok(value) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
