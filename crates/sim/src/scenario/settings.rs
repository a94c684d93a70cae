//! Settings: what a scenario says of the run and of the world, before anything runs.
//!
//! Owns the verbs that set something and their defaults. Knows nothing of how a swarm is run.

use crate::compute::{Rate, Spans};
use crate::draws::Permille;
use crate::link::{Link, Shared};
use crate::scenario::words::{self, Line, ParseError};
use std::collections::BTreeMap;
use trestle_protocol::ids::{Digest, ReplicaId, StageId};
use trestle_protocol::spec::sync::{OuterRule, SyncCodec, SyncSpec};
use trestle_protocol::spec::{
    BoundaryForm, BoundarySpec, CheckpointSpec, DataSource, DataSpec, Decay, Dtype, EvaluationSpec,
    ModelSpec, OptimizerKind, OptimizerSpec, PipelineSpec, Retain, RunSpec, Schedule, Tokenizer,
    TrainingSpec,
};
use trestle_protocol::time::Span;
use trestle_settings::model::model_config;

/// What answers when a stage computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is computed; see the cost model.
    Cost,
    /// A tiny Llama, in f32 on the processor.
    Real,
}

/// Everything that a scenario sets.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The run, but for its stages' layers and the manifest of real data.
    pub spec: RunSpec,
    /// Pipeline stages.
    pub stages: u16,
    /// Layers of each stage.
    pub layers: u32,
    /// Whether `in_flight` was given; else it follows from the stages.
    pub in_flight: Option<u32>,
    /// What computes.
    pub kind: Kind,
    /// How long it takes, where it is given directly.
    pub spans: Spans,
    /// Operations a second of the devices; forward and backward follow from it and the size of the stage.
    pub flops: Option<f64>,
    /// Bytes of a stage's pseudo-gradient on its way, where nothing is computed.
    pub contribution: u64,
    /// Bytes of the state that a newcomer fetches; else those of the stage's weights and moments.
    pub state: Option<u64>,
    /// The links of all peers.
    pub link: Link,
    /// The links of single stages' peers.
    pub own_links: BTreeMap<StageId, Link>,
    /// How many times longer the devices of single stages take.
    pub slow: BTreeMap<StageId, u64>,
}

/// The settings that a scenario may leave out: 4 stages of a model that a processor trains in milliseconds.
impl Default for Settings {
    fn default() -> Self {
        Self {
            spec: default_spec(),
            stages: 4,
            layers: 1,
            in_flight: None,
            kind: Kind::Cost,
            spans: Spans {
                forward: Span::millis(3),
                backward: Span::millis(6),
                step: Span::millis(1),
                save: Span::millis(20),
                load: Span::millis(50),
                copy: Rate(0),
                beside: Rate(0),
                jitter: Permille(0),
            },
            flops: None,
            contribution: 64 * 1024,
            state: None,
            link: Link {
                latency: Span::millis(1),
                bandwidth: 0,
                downlink: 0,
                shared: Shared::ByPair,
                jitter: Permille(0),
            },
            own_links: BTreeMap::new(),
            slow: BTreeMap::new(),
        }
    }
}

fn default_spec() -> RunSpec {
    RunSpec {
        name: "scenario".into(),
        seed: 1,
        model: ModelSpec {
            vocabulary: 256,
            width: 32,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            ffn_width: 64,
            sequence_len: 32,
            rope_theta: 10_000.0,
            norm_epsilon: 1e-5,
        },
        boundary: BoundarySpec { form: BoundaryForm::Resbm, width: 8, encoder_width: 16, wire: Dtype::Bf16 },
        pipeline: default_pipeline(),
        training: TrainingSpec {
            steps: 10,
            warmup_steps: 0,
            decay: Decay::Constant,
            final_ratio: 1.0,
            gradient_clip: 1.0,
        },
        optimizer: OptimizerSpec {
            kind: OptimizerKind::AdamW,
            learning_rate: 3e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            muon_learning_rate: 3e-3,
            muon_momentum: 0.95,
        },
        sync: SyncSpec::mean(10),
        data: DataSpec {
            source: DataSource::Generated { tokens: 100_000 },
            tokenizer: Tokenizer::Bytes,
            held_out_permille: 50,
            manifest: Digest([0; 32]),
        },
        evaluation: EvaluationSpec { every: 0, microbatches: 0 },
        checkpoint: CheckpointSpec { every: 0 },
    }
}

fn default_pipeline() -> PipelineSpec {
    PipelineSpec {
        stage_layers: Vec::new(),
        replicas: 1,
        schedule: Schedule::Flush,
        microbatch_size: 2,
        microbatches_per_step: 4,
        in_flight_max: 5,
        retain: Retain::Graph,
        compute: Dtype::F32,
    }
}

/// Whether a verb sets something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The verb has set it.
    Set,
    /// The verb is another kind of verb.
    NotMine,
}

impl Settings {
    /// Carries out a verb, if it sets something.
    ///
    /// # Errors
    /// Names the word that cannot be read.
    pub fn take(&mut self, line: &mut Line<'_>) -> Result<Taken, ParseError> {
        let spec = &mut self.spec;
        match line.verb {
            "seed" => spec.seed = line.number(0, "a whole number, for example `seed 7`")?,
            "stages" => self.take_stages(line)?,
            "replicas" => spec.pipeline.replicas = line.number(1, "for example `replicas 1`")?,
            "schedule" => spec.pipeline.schedule = schedule(line)?,
            "steps" => spec.training.steps = line.number(1, "for example `steps 100`")?,
            "microbatches" => {
                spec.pipeline.microbatches_per_step = line.number(1, "for example `microbatches 4`")?
            }
            "microbatch_size" => {
                spec.pipeline.microbatch_size = line.number(1, "for example `microbatch_size 2`")?
            }
            "in_flight" => self.in_flight = Some(line.number(1, "for example `in_flight 5`")?),
            "model" => self.take_model(line)?,
            "boundary" => self.take_boundary(line)?,
            "optimizer" => self.take_optimizer(line)?,
            "retain" => spec.pipeline.retain = retain(line)?,
            "evaluate" => {
                line.set("every", &mut spec.evaluation.every, words::number, "10")?;
                spec.evaluation.microbatches = 1;
                line.set("microbatches", &mut spec.evaluation.microbatches, words::positive, "2")?;
            }
            "checkpoint" => line.set("every", &mut spec.checkpoint.every, words::number, "10")?,
            "data" => {
                if let Some(tokens) = line.value("tokens", words::positive, "100_000")? {
                    spec.data.source = DataSource::Generated { tokens };
                }
            }
            "sync" => self.take_sync(line)?,
            "compute" => self.take_compute(line)?,
            "link" => self.take_link(line)?,
            "slow" => self.take_slow(line)?,
            _ => return Ok(Taken::NotMine),
        }
        Ok(Taken::Set)
    }

    /// Returns the run spec that the settings make.
    pub fn run_spec(&self) -> RunSpec {
        let mut spec = self.spec.clone();
        spec.pipeline.stage_layers = vec![self.layers; usize::from(self.stages)];
        spec.model.layers = self.layers * u32::from(self.stages);
        spec.pipeline.in_flight_max = self.in_flight.unwrap_or(u32::from(self.stages) + 1);
        if spec.boundary.form == BoundaryForm::None {
            spec.boundary.width = spec.model.width;
        }
        spec
    }

    /// Returns how long the devices of each stage compute: as given, or, where a rate is given, as many operations as the
    /// model counts over that rate (forward one third, backward two).
    pub fn stage_spans(&self, spec: &RunSpec) -> Vec<Spans> {
        let tokens = spec.microbatch_tokens() as f64;
        let model = model_config(spec);
        let of_stage = |stage: u16| {
            let mut spans = self.spans;
            if let Some(rate) = self.flops {
                let seconds = model.stage_train_flops_per_token(usize::from(stage)) * tokens / rate;
                spans.forward = Span((seconds * 1e6 / 3.0).round() as u64);
                spans.backward = Span((seconds * 2e6 / 3.0).round() as u64);
            }
            spans.slower(self.slow.get(&StageId(stage)).copied().unwrap_or(1))
        };
        (0..spec.stages()).map(of_stage).collect()
    }

    /// Returns the links of single peers: workers are counted from 1, stage after stage.
    pub fn links_of_peers(&self) -> BTreeMap<usize, Link> {
        let replicas = usize::from(self.spec.pipeline.replicas);
        let peers =
            |stage: StageId| (0..replicas).map(move |replica| 1 + usize::from(stage.0) * replicas + replica);
        self.own_links.iter().flat_map(|(stage, link)| peers(*stage).map(|peer| (peer, *link))).collect()
    }

    /// Makes every link and device take exactly its mean.
    pub fn remove_jitter(&mut self) {
        self.link.jitter = Permille(0);
        self.own_links.values_mut().for_each(|link| link.jitter = Permille(0));
        self.spans.jitter = Permille(0);
    }

    fn take_stages(&mut self, line: &mut Line<'_>) -> Result<(), ParseError> {
        self.stages = line.number(1, "for example `stages 4`")?;
        line.set("layers", &mut self.layers, words::positive, "2")
    }

    fn take_model(&mut self, line: &mut Line<'_>) -> Result<(), ParseError> {
        let model = &mut self.spec.model;
        line.set("vocabulary", &mut model.vocabulary, words::positive, "256")?;
        line.set("width", &mut model.width, words::positive, "64")?;
        line.set("heads", &mut model.heads, words::positive, "4")?;
        line.set("kv_heads", &mut model.kv_heads, words::positive, "2")?;
        line.set("ffn_width", &mut model.ffn_width, words::positive, "128")?;
        line.set("sequence_len", &mut model.sequence_len, words::positive, "32")
    }

    fn take_boundary(&mut self, line: &mut Line<'_>) -> Result<(), ParseError> {
        let boundary = &mut self.spec.boundary;
        let hint = "`boundary none`, `boundary resbm` or `boundary fused`";
        let word = line.required(hint)?;
        boundary.form = match word {
            "none" => BoundaryForm::None,
            "resbm" => BoundaryForm::Resbm,
            "fused" => BoundaryForm::Fused,
            _ => return Err(line.error(word, "is no form of a boundary", hint)),
        };
        line.set("width", &mut boundary.width, words::positive, "8")?;
        line.set("encoder_width", &mut boundary.encoder_width, words::positive, "16")?;
        line.set("wire", &mut boundary.wire, dtype, "bf16")
    }

    fn take_optimizer(&mut self, line: &mut Line<'_>) -> Result<(), ParseError> {
        let optimizer = &mut self.spec.optimizer;
        let hint = "`optimizer adamw` or `optimizer muon`";
        let word = line.required(hint)?;
        optimizer.kind = match word {
            "adamw" => OptimizerKind::AdamW,
            "muon" => OptimizerKind::Muon,
            _ => return Err(line.error(word, "is no optimizer", hint)),
        };
        line.set("rate", &mut optimizer.learning_rate, words::real, "0.001")?;
        optimizer.muon_learning_rate = optimizer.learning_rate;
        Ok(())
    }

    fn take_sync(&mut self, line: &mut Line<'_>) -> Result<(), ParseError> {
        let sync = &mut self.spec.sync;
        line.set("every", &mut sync.inner_steps, words::positive, "10")?;
        line.set("delay", &mut sync.delay, words::whole, "2")?;
        line.set("rule", &mut sync.rule, rule, "nesterov")?;
        line.set("rate", &mut sync.learning_rate, words::real, "0.7")?;
        line.set("momentum", &mut sync.momentum, words::real, "0.9")?;
        line.set("ramp", &mut sync.momentum_ramp, words::whole, "20")?;
        line.set("codec", &mut sync.codec, codec, "bf16")?;
        line.set("decay", &mut sync.error_decay, words::real, "0.95")?;
        line.set("contribution", &mut self.contribution, words::bytes, "12MB")?;
        self.state = line.value("state", words::bytes, "60MB")?.or(self.state);
        line.set("copy", &mut self.spans.copy, words::rate, "8GB/s")?;
        line.set("beside", &mut self.spans.beside, words::rate, "300MB/s")
    }

    fn take_compute(&mut self, line: &mut Line<'_>) -> Result<(), ParseError> {
        let hint = "`compute cost` or `compute real`";
        let word = line.required(hint)?;
        self.kind = match word {
            "cost" => Kind::Cost,
            "real" => Kind::Real,
            _ => return Err(line.error(word, "is nothing that computes", hint)),
        };
        self.flops = line.value("flops", words::flops, "20T")?.or(self.flops);
        let spans = &mut self.spans;
        line.set("forward", &mut spans.forward, words::span, "3ms")?;
        line.set("backward", &mut spans.backward, words::span, "6ms")?;
        line.set("step", &mut spans.step, words::span, "1ms")?;
        line.set("save", &mut spans.save, words::span, "20ms")?;
        line.set("load", &mut spans.load, words::span, "50ms")?;
        line.set("jitter", &mut spans.jitter, words::permille, "10%")
    }

    /// Reads a link: of all peers, or with `stage=N` of one stage's peers. `bandwidth` is a pair's own, `uplink` and
    /// `downlink` are what a peer has for all others.
    fn take_link(&mut self, line: &mut Line<'_>) -> Result<(), ParseError> {
        let stage = self.stage(line)?;
        let mut link = self.link;
        line.set("latency", &mut link.latency, words::span, "40ms")?;
        line.set("bandwidth", &mut link.bandwidth, words::bandwidth, "856Mbit")?;
        if let Some(uplink) = line.value("uplink", words::bandwidth, "856Mbit")? {
            (link.bandwidth, link.shared) = (uplink, Shared::ByPeer);
        }
        if let Some(downlink) = line.value("downlink", words::bandwidth, "1322Mbit")? {
            (link.downlink, link.shared) = (downlink, Shared::ByPeer);
        }
        line.set("jitter", &mut link.jitter, words::permille, "5%")?;
        match stage {
            Some(stage) => drop(self.own_links.insert(stage, link)),
            None => self.link = link,
        }
        Ok(())
    }

    fn take_slow(&mut self, line: &mut Line<'_>) -> Result<(), ParseError> {
        let lacks = |word| line.error(word, "is missing", "for example `slow stage=2 factor=3`");
        let (no_stage, no_factor) = (lacks("stage"), lacks("factor"));
        let stage = self.stage(line)?.ok_or(no_stage)?;
        let factor = line.value("factor", words::positive, "3")?.ok_or(no_factor)?;
        self.slow.insert(stage, factor);
        Ok(())
    }

    /// Reads `stage=N`, which must exist: `stages` comes before it.
    ///
    /// # Errors
    /// There is no such stage.
    pub fn stage(&self, line: &mut Line<'_>) -> Result<Option<StageId>, ParseError> {
        let Some(stage) = line.value("stage", words::number, "1")? else { return Ok(None) };
        match u16::try_from(stage) {
            Ok(stage) if stage < self.stages => Ok(Some(StageId(stage))),
            Ok(_) | Err(_) => {
                let problem = format!("does not exist, the run has {} stages", self.stages);
                Err(line.error(
                    &format!("stage={stage}"),
                    problem,
                    "stages are counted from 0; say `stages N` before",
                ))
            }
        }
    }
}

impl Settings {
    /// Reads `replica=N`, which must exist: `replicas` comes before it; the first where none is given.
    ///
    /// # Errors
    /// There is no such replica.
    pub fn replica(&self, line: &mut Line<'_>) -> Result<ReplicaId, ParseError> {
        let replicas = self.spec.pipeline.replicas;
        match line.value("replica", words::whole, "1")? {
            None => Ok(ReplicaId(0)),
            Some(replica) if replica < replicas => Ok(ReplicaId(replica)),
            Some(replica) => {
                let problem = format!("does not exist, each stage has {replicas}");
                let hint = "replicas are counted from 0; say `replicas N` before";
                Err(line.error(&format!("replica={replica}"), problem, hint))
            }
        }
    }
}

fn schedule(line: &mut Line<'_>) -> Result<Schedule, ParseError> {
    let hint = "`schedule flush` or `schedule async staleness=1`";
    match line.required(hint)? {
        "flush" => Ok(Schedule::Flush),
        "async" => {
            let staleness_max = line.value("staleness", words::positive, "1")?.unwrap_or(1);
            Ok(Schedule::Async { staleness_max })
        }
        word => Err(line.error(word, "is no schedule", hint)),
    }
}

fn retain(line: &mut Line<'_>) -> Result<Retain, ParseError> {
    let hint = "`retain graph` or `retain input`";
    match line.required(hint)? {
        "graph" => Ok(Retain::Graph),
        "input" => Ok(Retain::Input),
        word => Err(line.error(word, "is nothing that a stage keeps", hint)),
    }
}

fn rule(word: &str) -> Option<OuterRule> {
    match word {
        "mean" => Some(OuterRule::Mean),
        "nesterov" => Some(OuterRule::Nesterov),
        "plain" => Some(OuterRule::Plain),
        _ => None,
    }
}

fn codec(word: &str) -> Option<SyncCodec> {
    match word {
        "f32" => Some(SyncCodec::F32),
        "bf16" => Some(SyncCodec::Bf16),
        "int8" => Some(SyncCodec::Int8),
        "sparseloco" => Some(SyncCodec::SparseLoCo),
        _ => None,
    }
}

fn dtype(word: &str) -> Option<Dtype> {
    match word {
        "f32" => Some(Dtype::F32),
        "bf16" => Some(Dtype::Bf16),
        _ => None,
    }
}
