//! Trains replicas of one small model in one process, with the real bytes of the outer step between them, and prints one
//! JSON object with the held-out loss at the end. `docs/outer-quality.md` is made of its lines.
//!
//! usage: outer_quality TEXT [--NAME VALUE]...
//!
//! TEXT is a file of bytes, each a token; its last tenth is held out. The names and their defaults are in [`Settings`]. The
//! tokens of a run depend on `replicas` times `steps` times `group` alone: microbatch i goes to replica i mod R, whatever H is.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use trestle_model::config::{BoundaryForm, Dtype, ModelConfig, Retain};
use trestle_model::device::DeviceKind;
use trestle_model::engine::{Engine, EngineConfig};
use trestle_model::error::ModelError;
use trestle_model::input::{Duty, Mode, StageInput, StageOutput};
use trestle_model::optimizer::config::OptimizerConfig;
use trestle_model::outer::{CodecKind, Exchanged, Layout, Outer, OuterConfig, Ramp, Rule, SHARES_SUM};
use trestle_model::schedule::{ScheduleConfig, ScheduleKind};

type Failure = Box<dyn Error>;

const MICROBATCH_SIZE: usize = 8;
const SEQUENCE_LEN: usize = 64;

/// Microbatches of the held-out part that the loss is taken over.
const HELD_OUT: u64 = 48;

/// What a run may be told, by name.
#[derive(Clone, Debug)]
struct Settings {
    text: PathBuf,
    replicas: usize,
    /// Inner steps from one outer step to the next.
    h: u64,
    /// `f32`, `bf16`, `int8` or `sparseloco`.
    codec: CodecKind,
    /// `mean`, `plain` or `nesterov`.
    rule: String,
    /// `weights` or `gradients`; the latter goes with H = 1 and is the exact average of all microbatches.
    exchange: Exchanged,
    lr_outer: f64,
    momentum: f64,
    /// Outer steps over which the momentum climbs from 0.5.
    ramp: u64,
    error_decay: f64,
    /// Inner steps from the snapshot to the cut-over.
    delay: u64,
    steps: u64,
    /// Microbatches that each replica adds up for an inner step.
    group: u32,
    /// The inner learning rate at its peak.
    lr: f64,
    seed: u64,
}

impl Settings {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Settings, Failure> {
        let mut settings = Settings {
            text: arguments.next().ok_or("no text given")?.into(),
            replicas: 3,
            h: 10,
            codec: CodecKind::F32,
            rule: "nesterov".to_string(),
            exchange: Exchanged::Weights,
            lr_outer: 0.7,
            momentum: 0.9,
            ramp: 0,
            error_decay: 1.0,
            delay: 0,
            steps: 400,
            group: 2,
            lr: 3e-3,
            seed: 1,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} has no value"))?;
            settings.set(&name, &value).map_err(|error| format!("{name} {value}: {error}"))?;
        }
        if settings.delay >= settings.h || settings.h == 0 {
            return Err("the delay must be shorter than H".into());
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        fn number<T: FromStr<Err: Error + 'static>>(value: &str) -> Result<T, Failure> {
            Ok(value.parse()?)
        }
        let word = || serde_json::Value::String(value.to_string());
        match name {
            "--replicas" => self.replicas = number(value)?,
            "--h" => self.h = number(value)?,
            "--codec" => self.codec = serde_json::from_value(word())?,
            "--rule" => self.rule = value.to_string(),
            "--exchange" => self.exchange = serde_json::from_value(word())?,
            "--lr-outer" => self.lr_outer = number(value)?,
            "--momentum" => self.momentum = number(value)?,
            "--ramp" => self.ramp = number(value)?,
            "--error-decay" => self.error_decay = number(value)?,
            "--delay" => self.delay = number(value)?,
            "--steps" => self.steps = number(value)?,
            "--group" => self.group = number(value)?,
            "--lr" => self.lr = number(value)?,
            "--seed" => self.seed = number(value)?,
            _ => return Err("no such setting".into()),
        }
        Ok(())
    }

    fn outer(&self) -> Result<OuterConfig, Failure> {
        let ramp = (self.ramp > 0).then_some(Ramp { from: 0.5, steps: self.ramp });
        let rule = match self.rule.as_str() {
            "mean" => Rule::Mean,
            "plain" => Rule::Plain { learning_rate: self.lr_outer },
            "nesterov" => Rule::Nesterov { learning_rate: self.lr_outer, momentum: self.momentum, ramp },
            other => return Err(format!("no such rule: {other}").into()),
        };
        let (codec, exchanged, error_decay) = (self.codec, self.exchange, self.error_decay);
        Ok(OuterConfig { rule, codec, exchanged, error_decay })
    }

    fn engine(&self) -> EngineConfig {
        let model = ModelConfig {
            vocabulary: 256,
            width: 64,
            layers: 6,
            heads: 4,
            kv_heads: 2,
            ffn_width: 192,
            sequence_len: SEQUENCE_LEN,
            rope_theta: 10_000.0,
            norm_epsilon: 1e-5,
            boundary: BoundaryForm::None,
            boundary_width: 64,
            encoder_width: 64,
            stage_layers: vec![6],
            wire: Dtype::F32,
        };
        let schedule = ScheduleConfig {
            kind: ScheduleKind::Cosine,
            warmup_steps: self.steps / 20,
            steps: self.steps,
            floor: 0.1,
        };
        EngineConfig {
            held: 0..1,
            model,
            microbatch_size: MICROBATCH_SIZE,
            compute: Dtype::F32,
            retain: Retain::Graph,
            optimizer: OptimizerConfig { learning_rate: self.lr, ..OptimizerConfig::default() },
            schedule,
            clip: Some(1.0),
            seed: self.seed,
            device: DeviceKind::Cpu,
        }
    }
}

/// The tokens of microbatch `number` and those that follow each: stretches of the text at places drawn from the seed.
fn sample(text: &[u8], seed: u64, number: u64) -> (Vec<u32>, Vec<u32>) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut tokens = Vec::with_capacity(MICROBATCH_SIZE * SEQUENCE_LEN);
    let mut targets = Vec::with_capacity(MICROBATCH_SIZE * SEQUENCE_LEN);
    for _ in 0..MICROBATCH_SIZE {
        // SplitMix64 (Steele, Lea and Flood, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let start = ((mixed ^ (mixed >> 31)) % (text.len() - SEQUENCE_LEN) as u64) as usize;
        let stretch = text[start..=start + SEQUENCE_LEN].iter().map(|&byte| u32::from(byte));
        tokens.extend(stretch.clone().take(SEQUENCE_LEN));
        targets.extend(stretch.skip(1));
    }
    (tokens, targets)
}

fn loss(engine: &mut Engine, text: &[u8], seed: u64, number: u64, mode: Mode) -> Result<f64, ModelError> {
    let (tokens, targets) = sample(text, seed, number);
    let output = engine.forward(number, StageInput::Tokens(&tokens), Some(&targets), mode)?;
    if mode == Mode::Train {
        engine.backward(number, StageInput::Tokens(&tokens), Some(&targets), None, Duty::Train)?;
    }
    match output {
        StageOutput::Loss(loss) => Ok(f64::from(loss)),
        StageOutput::Boundary(_) => Ok(f64::NAN),
    }
}

/// One replica: the whole model as one stage, and its side of the outer step.
struct Replica {
    engine: Engine,
    outer: Outer,
}

/// All replicas, with an exchange between them that has no network.
struct Swarm {
    settings: Settings,
    layout: Layout,
    replicas: Vec<Replica>,
    /// Bytes of all contributions so far.
    sent: usize,
    outer_steps: u64,
}

impl Swarm {
    fn new(settings: &Settings) -> Result<Swarm, Failure> {
        let first = Engine::new(settings.engine())?;
        let layout = Layout::new(&first.exchange_shapes());
        let mut replicas = Vec::new();
        for _ in 0..settings.replicas {
            let engine = Engine::new(settings.engine())?;
            let weights = layout.gather(&engine.masters()?);
            let outer = Outer::new(settings.outer()?, layout.clone(), weights)?;
            replicas.push(Replica { engine, outer });
        }
        Ok(Swarm { settings: settings.clone(), layout, replicas, sent: 0, outer_steps: 0 })
    }

    /// Takes inner step `step` of all replicas, and what of outer steps belongs to it; returns the mean loss.
    fn step(&mut self, text: &[u8], step: u64) -> Result<f64, Failure> {
        let Settings { h, delay, steps, group, seed, .. } = self.settings;
        let mut sum = 0.0;
        let count = self.replicas.len() as u64 * u64::from(group);
        for number in step * count..(step + 1) * count {
            let replica = number as usize % self.replicas.len();
            sum += loss(&mut self.replicas[replica].engine, text, seed, number, Mode::Train)?;
        }
        match self.settings.exchange {
            Exchanged::Gradients => self.average_gradients()?,
            Exchanged::Weights => {
                for replica in &mut self.replicas {
                    replica.engine.step(group)?;
                }
                let (done, last) = (step + 1, step + 1 == steps);
                // The last exchange is not overlapped with anything.
                if delay > 0 && done > h && done % h == delay {
                    self.adopt_late()?;
                }
                if done.is_multiple_of(h) || last {
                    self.snapshot()?;
                    self.exchange()?;
                    if delay == 0 || last {
                        self.adopt()?;
                    }
                }
            }
        }
        Ok(sum / count as f64)
    }

    fn average_gradients(&mut self) -> Result<(), Failure> {
        for Replica { engine, outer } in &mut self.replicas {
            outer.begin(self.outer_steps, self.layout.gather(&engine.gradient_mean(self.settings.group)?));
        }
        self.exchange()?;
        for Replica { engine, outer } in &mut self.replicas {
            engine.set_gradient_mean(&self.layout.scatter(&outer.adopt(None)), self.settings.group)?;
            engine.step(self.settings.group)?;
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<(), Failure> {
        for Replica { engine, outer } in &mut self.replicas {
            outer.begin(self.outer_steps, self.layout.gather(&engine.masters()?));
        }
        Ok(())
    }

    /// Encodes, reduces, stages and commits the snapshots taken.
    fn exchange(&mut self) -> Result<(), Failure> {
        let count = self.replicas.len() as u32;
        let mut shares = vec![SHARES_SUM / count; count as usize];
        shares[0] += SHARES_SUM % count;
        let contributions = self
            .replicas
            .iter_mut()
            .map(|replica| replica.outer.encode(&shares))
            .collect::<Result<Vec<_>, _>>()?;
        self.sent += contributions.iter().flatten().map(Vec::len).sum::<usize>();
        let mut results = Vec::new();
        for (shard, replica) in self.replicas.iter().enumerate() {
            let parts: Vec<(u64, &[u8])> =
                contributions.iter().map(|shards| (1, shards[shard].as_slice())).collect();
            results.push(replica.outer.reduce(&shares, shard, &parts)?);
        }
        let results: Vec<&[u8]> = results.iter().map(Vec::as_slice).collect();
        let mut digests = Vec::new();
        for Replica { outer, .. } in &mut self.replicas {
            digests.push(outer.stage(&shares, &results)?);
            outer.commit()?;
        }
        self.outer_steps += 1;
        if digests.iter().any(|digest| *digest != digests[0]) {
            return Err("the replicas differ after an outer step".into());
        }
        Ok(())
    }

    fn adopt(&mut self) -> Result<(), Failure> {
        for Replica { engine, outer } in &mut self.replicas {
            engine.set_masters(&self.layout.scatter(&outer.adopt(None)))?;
        }
        Ok(())
    }

    fn adopt_late(&mut self) -> Result<(), Failure> {
        for Replica { engine, outer } in &mut self.replicas {
            let now = self.layout.gather(&engine.masters()?);
            engine.set_masters(&self.layout.scatter(&outer.adopt(Some(now))))?;
        }
        Ok(())
    }
}

fn run(settings: &Settings) -> Result<serde_json::Value, Failure> {
    tch::set_num_threads(1);
    let began = Instant::now();
    let text = std::fs::read(&settings.text)?;
    let (train, held_out) = text.split_at(text.len() / 10 * 9);
    if held_out.len() <= SEQUENCE_LEN {
        return Err("the text is too short".into());
    }
    let mut swarm = Swarm::new(settings)?;
    let mut last = 0.0;
    for step in 0..settings.steps {
        last = swarm.step(train, step)?;
    }
    let engine = &mut swarm.replicas[0].engine;
    let mut sum = 0.0;
    for number in 0..HELD_OUT {
        sum += loss(engine, held_out, 0, number, Mode::Evaluate)?;
    }
    let contributions = swarm.outer_steps as f64 * settings.replicas as f64 * swarm.layout.elements() as f64;
    Ok(serde_json::json!({
        "held_out": sum / HELD_OUT as f64,
        "train": last,
        "outer": settings.outer()?,
        "replicas": settings.replicas, "h": settings.h, "delay": settings.delay, "steps": settings.steps,
        "group": settings.group,
        "lr": settings.lr, "seed": settings.seed,
        "parameters": swarm.layout.elements(),
        "bits_a_parameter": 8.0 * swarm.sent as f64 / contributions,
        "seconds": began.elapsed().as_secs_f64(),
    }))
}

fn main() -> ExitCode {
    match Settings::parse(std::env::args().skip(1)).and_then(|settings| run(&settings)) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}\n\nhint: outer_quality TEXT [--NAME VALUE]..., names in the source");
            ExitCode::FAILURE
        }
    }
}
