//! Owns the training of the stages that one process holds: forward, backward, optimizer step, checkpoint. Bytes and
//! tokens go in and come out; no tensor leaves. It may not know where they come from, or in what order they will come.

pub(crate) mod exchange;
pub(crate) mod generation;
pub(crate) mod handover;
pub(crate) mod inspection;
pub(crate) mod network;
pub(crate) mod sample;
pub(crate) mod storage;
pub(crate) mod transfer;
pub(crate) mod weights;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use tch::{Device, TchError, Tensor};

use crate::clip::{average_and_clip, stage_limit, total_norm};
use crate::codec;
use crate::config::{Dtype, ModelConfig, Retain};
use crate::device::DeviceKind;
use crate::engine::network::Network;
use crate::engine::transfer::indices;
use crate::engine::weights::{Sharing, Weights};
use crate::error::ModelError;
use crate::input::{Duty, InputError, Mode, StageInput, StageOutput, StepReport, check_bytes, check_tokens};
use crate::optimizer::Optimizer;
use crate::optimizer::config::OptimizerConfig;
use crate::schedule::ScheduleConfig;
use crate::stage::head;

/// Everything that decides what an engine computes.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The shape of the whole model.
    pub model: ModelConfig,
    /// The stages held here; `0..model.stages()` is the whole model in one process.
    pub held: Range<usize>,
    /// Samples in a microbatch (B).
    pub microbatch_size: usize,
    /// Number format of computation; master weights and gradient sums are f32 in any case.
    pub compute: Dtype,
    /// What is kept between a forward and its backward.
    pub retain: Retain,
    /// The rule of the updates.
    pub optimizer: OptimizerConfig,
    /// The course of the learning rate.
    pub schedule: ScheduleConfig,
    /// Bound on the norm of the whole model's gradient; each stage is held to its share.
    pub clip: Option<f64>,
    /// Decides the first weights, together with the parameters' names.
    pub seed: u64,
    /// Where it runs.
    pub device: DeviceKind,
}

/// What leaves the last stage held, inside its autograd graph.
#[derive(Debug)]
enum Root {
    Boundary(Tensor),
    Loss(Tensor),
}

/// A forward that waits for its backward.
#[derive(Debug)]
struct Graph {
    root: Root,
    /// The leaves that the forward read, which need not be the current ones any more.
    leaves: Vec<Tensor>,
    /// The boundary that came in; tokens have no gradient.
    input: Option<Tensor>,
    /// That of the leaves.
    generation: u64,
}

/// The stages that one process holds, with their weights, optimizer and microbatches in flight.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    device: Device,
    network: Network,
    weights: Weights,
    optimizer: Optimizer,
    graphs: BTreeMap<u64, Graph>,
    version: u64,
    /// Time spent between tensors and bytes since it was last taken.
    codec_time: Cell<Duration>,
}

impl Engine {
    /// Builds the stages and draws their first weights.
    ///
    /// The weights follow from the seed and the parameters' names alone: any partition of the stages over engines starts
    /// from the same bits.
    ///
    /// # Errors
    /// A setting that does not fit, a device that is not there, or too little memory.
    pub fn new(config: EngineConfig) -> Result<Engine, ModelError> {
        config.model.validate()?;
        config.schedule.validate()?;
        let (first, end, stages) = (config.held.start, config.held.end, config.model.stages());
        if first >= end || end > stages {
            return Err(InputError::Held { first, end, stages }.into());
        }
        if config.microbatch_size == 0 {
            return Err(InputError::EmptyMicrobatch.into());
        }
        let device = config.device.check()?.device();
        let build = || -> Result<(Network, Weights), ModelError> {
            let (network, specs) = Network::new(&config.model, config.held.clone(), config.compute, device)?;
            let weights = Weights::new(&specs, config.seed, config.compute, device)?;
            Ok((network, weights))
        };
        let (network, weights) =
            build().map_err(|error| error.during(format!("building stages {first}..{end}")))?;
        let optimizer = Optimizer::new(&config.optimizer, weights.parameters())?;
        Ok(Engine {
            device,
            network,
            weights,
            optimizer,
            graphs: BTreeMap::new(),
            version: 0,
            codec_time: Cell::default(),
            config,
        })
    }

    /// Runs one microbatch through the stages held. With [`Mode::Train`] and the same microbatch number again, the later
    /// forward replaces the earlier.
    ///
    /// Under [`Retain::Input`] nothing is kept, but for one case: an engine that computes the loss keeps the graph of its
    /// latest forward, because the backward that follows at once would only build it again.
    ///
    /// # Errors
    /// Input that does not fit, an output that is not finite, or too little memory. The engine stays usable.
    pub fn forward(
        &mut self,
        microbatch: u64,
        input: StageInput<'_>,
        targets: Option<&[u32]>,
        mode: Mode,
    ) -> Result<StageOutput, ModelError> {
        let keep = match (mode, self.config.retain) {
            (Mode::Evaluate, Retain::Graph | Retain::Input) => false,
            (Mode::Train, Retain::Graph) => {
                self.graphs.remove(&microbatch);
                true
            }
            (Mode::Train, Retain::Input) => {
                self.graphs.clear();
                self.holds_last()
            }
        };
        let run = || -> Result<(StageOutput, Graph), ModelError> {
            let graph = self.trace(microbatch, input, targets)?;
            let output = match &graph.root {
                Root::Boundary(z_bsc) => {
                    let wire = self.config.model.wire;
                    StageOutput::Boundary(self.timed(|| codec::encode(z_bsc, wire))?)
                }
                Root::Loss(loss) => StageOutput::Loss(loss.f_double_value(&[])? as f32),
            };
            Ok((output, graph))
        };
        let result = if keep { run() } else { tch::no_grad(run) };
        let (output, graph) =
            result.map_err(|error| error.during(format!("the forward of microbatch {microbatch}")))?;
        if keep {
            self.graphs.insert(microbatch, graph);
        }
        Ok(output)
    }

    /// Adds one microbatch's gradients to the sums, and returns the gradient of its input for the stage before; stage 0
    /// returns nothing. With [`Duty::Ghost`] it returns the same bytes, computes no other gradient, and leaves the sums as
    /// they are to the bit; stage 0 then only forgets the graph, and looks at nothing it is handed.
    ///
    /// `input` and `targets` are those of the forward: where no graph was kept, the forward runs again with the current
    /// weights. `gradient` is what the next stage returned; the last stage needs none and ignores it.
    ///
    /// # Errors
    /// Input that does not fit (the kept graph stays), or a gradient that is not finite (the graph is gone, the sums stay
    /// as they were). If memory runs out before the sums are touched, the backward can be asked for again; if it runs out
    /// while they grow, they are forgotten whole, and the next step has no gradient.
    pub fn backward(
        &mut self,
        microbatch: u64,
        input: StageInput<'_>,
        targets: Option<&[u32]>,
        gradient: Option<&[u8]>,
        duty: Duty,
    ) -> Result<Option<Vec<u8>>, ModelError> {
        if duty == Duty::Ghost && self.config.held.start == 0 {
            self.discard(microbatch);
            return Ok(None);
        }
        let doing = || format!("the backward of microbatch {microbatch}");
        let seed = self.seed_gradient(microbatch, gradient).map_err(|error| error.during(doing()))?;
        let graph = match self.graphs.remove(&microbatch) {
            Some(graph) => graph,
            None => self.trace(microbatch, input, targets).map_err(|error| error.during(doing()))?,
        };
        let run = || -> Result<(Vec<Tensor>, Option<Vec<u8>>), ModelError> {
            let (gradients, input_gradient) = differentiate(graph, seed, duty)?;
            let bytes = match input_gradient {
                Some(gradient) => Some(self.timed(|| codec::encode(&gradient, self.config.model.wire))?),
                None => None,
            };
            Ok((gradients, bytes))
        };
        let (gradients, bytes) = run().map_err(|error| error.during(doing()))?;
        match duty {
            Duty::Train => {
                self.weights.accumulate(gradients).map_err(|error| ModelError::from(error).during(doing()))?
            }
            Duty::Ghost => {}
        }
        Ok(bytes)
    }

    /// Updates the weights by the gradients summed since the last step, divided by `microbatches`.
    ///
    /// Graphs in flight keep the weights of their forward.
    ///
    /// # Errors
    /// No backward since the last step; a gradient that is not finite, after which weights and version are as before and
    /// the sums are gone; too little memory, after which the weights must be loaded anew.
    pub fn step(&mut self, microbatches: u32) -> Result<StepReport, ModelError> {
        let version = self.version;
        if microbatches == 0 {
            return Err(InputError::NoMicrobatches { version }.into());
        }
        let doing = || format!("optimizer step {version}");
        let mut gradients = self.weights.take_sums().ok_or(InputError::NoGradient { version })?;
        let norms = average_and_clip(self.weights.parameters(), &mut gradients, microbatches, |stage| {
            let model = &self.config.model;
            self.config.clip.map(|clip| stage_limit(clip, model.stage_parameters(stage), model.parameters()))
        })
        .map_err(|error| error.during(doing()))?;
        let sharing = self.sharing();
        let factor = self.config.schedule.factor(version);
        self.weights.unshare(sharing).map_err(|error| ModelError::from(error).during(doing()))?;
        self.optimizer
            .step(&self.weights.values(), &gradients, factor)
            .map_err(|error| error.during(doing()))?;
        self.weights.refresh(sharing).map_err(|error| ModelError::from(error).during(doing()))?;
        self.version += 1;
        Ok(StepReport {
            gradient_norm: total_norm(&norms),
            learning_rate: self.optimizer.learning_rate(factor),
            version: self.version,
        })
    }

    /// Passes a step in which no microbatch was trained here: the version rises, and with it the schedule's place, while
    /// weights, moments and the optimizer's own count of updates stay as they are.
    ///
    /// # Errors
    /// A backward has added to the sums since the last step; nothing changes then.
    pub fn idle(&mut self) -> Result<StepReport, ModelError> {
        let version = self.version;
        if self.weights.sums().iter().any(Option::is_some) {
            return Err(InputError::NotIdle { version }.into());
        }
        let learning_rate = self.optimizer.learning_rate(self.config.schedule.factor(version));
        self.version += 1;
        Ok(StepReport { gradient_norm: 0.0, learning_rate, version: self.version })
    }

    /// Forgets a kept graph; its backward would run the forward again.
    pub fn discard(&mut self, microbatch: u64) {
        self.graphs.remove(&microbatch);
    }

    /// Returns the number of steps that the weights stand for: those taken, those passed idle, and those that came before
    /// [`Engine::set_version`].
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Says at which step a newcomer enters; the schedule goes on from there. Weights, moments, gradient sums and graphs in
    /// flight stay as they are.
    pub fn set_version(&mut self, version: u64) {
        self.version = version;
    }

    /// Returns what decides this engine's computation.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Returns the time spent turning boundaries into tensors and back since it was last asked. On a device that computes
    /// beside the host it includes the wait for what is being encoded.
    pub fn take_codec_time(&mut self) -> Duration {
        self.codec_time.take()
    }

    fn timed<T>(&self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        self.codec_time.set(self.codec_time.get() + began.elapsed());
        result
    }

    /// Returns whether a kept graph reads the current leaves. Versions do not tell: a step passed idle has the leaves of the
    /// step before, and weights taken over are other leaves under the same version.
    fn sharing(&self) -> Sharing {
        let current = self.weights.generation();
        let read = self.graphs.values().any(|graph| graph.generation == current);
        if read { Sharing::Shared } else { Sharing::Sole }
    }

    fn holds_last(&self) -> bool {
        self.config.held.end == self.config.model.stages()
    }

    fn shape_bsc(&self) -> [i64; 3] {
        let model = &self.config.model;
        [self.config.microbatch_size as i64, model.sequence_len as i64, model.boundary_width as i64]
    }

    /// Runs the forward and returns everything its backward needs.
    fn trace(
        &self,
        microbatch: u64,
        input: StageInput<'_>,
        targets: Option<&[u32]>,
    ) -> Result<Graph, ModelError> {
        let targets_bs = match (self.holds_last(), targets) {
            (false, _) => None,
            (true, Some(targets)) => Some(self.tokens(microbatch, "targets", targets)?),
            (true, None) => {
                let stage = self.config.held.end - 1;
                return Err(InputError::Missing { microbatch, what: "targets", stage }.into());
            }
        };
        let (input, boundary) = match self.input(microbatch, input)? {
            (input, Entering::Tokens) => (input, None),
            (input, Entering::Boundary) => {
                let leaf = input.f_set_requires_grad(true)?;
                (leaf.shallow_clone(), Some(leaf))
            }
        };
        let output = self.network.forward(self.weights.leaves(), &input)?;
        let root = match targets_bs {
            Some(targets_bs) => Root::Loss(head::loss(&output, &targets_bs)?),
            None => Root::Boundary(output),
        };
        let (leaves, generation) = (self.weights.handles(), self.weights.generation());
        Ok(Graph { root, leaves, input: boundary, generation })
    }

    fn input(&self, microbatch: u64, input: StageInput<'_>) -> Result<(Tensor, Entering), ModelError> {
        let stage = self.config.held.start;
        match input {
            StageInput::Tokens(tokens) if stage == 0 => {
                Ok((self.tokens(microbatch, "tokens", tokens)?, Entering::Tokens))
            }
            StageInput::Boundary(bytes) if stage > 0 => {
                Ok((self.boundary(microbatch, "boundary bytes", bytes)?, Entering::Boundary))
            }
            StageInput::Tokens(_) => {
                Err(InputError::Kind { stage, got: "tokens", want: "a boundary" }.into())
            }
            StageInput::Boundary(_) => {
                Err(InputError::Kind { stage, got: "a boundary", want: "tokens" }.into())
            }
        }
    }

    fn tokens(&self, microbatch: u64, what: &'static str, tokens: &[u32]) -> Result<Tensor, ModelError> {
        let [b, s, _] = self.shape_bsc();
        check_tokens(microbatch, what, tokens, (b * s) as usize, &self.config.model)?;
        Ok(indices(tokens, b, self.device)?)
    }

    /// Turns a boundary message into a tensor of the format of computation.
    fn boundary(&self, microbatch: u64, what: &'static str, bytes: &[u8]) -> Result<Tensor, ModelError> {
        let model = &self.config.model;
        check_bytes(microbatch, what, bytes, model.boundary_bytes(self.config.microbatch_size))?;
        let tensor = self.timed(|| codec::decode(bytes, &self.shape_bsc(), model.wire, self.device))?;
        Ok(tensor.f_to_kind(self.config.compute.kind())?)
    }

    /// Returns the gradient of what left the last stage held, or nothing where that is the loss.
    fn seed_gradient(&self, microbatch: u64, gradient: Option<&[u8]>) -> Result<Option<Tensor>, ModelError> {
        match (self.holds_last(), gradient) {
            (true, _) => Ok(None),
            (false, Some(bytes)) => Ok(Some(self.boundary(microbatch, "gradient bytes", bytes)?)),
            (false, None) => {
                let stage = self.config.held.end - 1;
                Err(InputError::Missing { microbatch, what: "gradient", stage }.into())
            }
        }
    }
}

/// What kind of input came in.
enum Entering {
    Tokens,
    Boundary,
}

/// Returns the gradients of a graph's leaves, in slot order, and of its input; consumes the graph. A ghost's leaves have
/// none. There must be something to differentiate by: a ghost has an input.
fn differentiate(
    graph: Graph,
    seed: Option<Tensor>,
    duty: Duty,
) -> Result<(Vec<Tensor>, Option<Tensor>), TchError> {
    let Graph { root, leaves, input, generation: _ } = graph;
    let scalar = match (root, seed) {
        (Root::Loss(loss), _) | (Root::Boundary(loss), None) => loss,
        // The gradient of sum(z * dz) with respect to z is dz itself, exactly.
        (Root::Boundary(z_bsc), Some(dz_bsc)) => z_bsc.f_mul(&dz_bsc)?.f_sum(None)?,
    };
    let trained = match duty {
        Duty::Train => leaves.as_slice(),
        Duty::Ghost => &[],
    };
    let sources: Vec<&Tensor> = trained.iter().chain(&input).collect();
    let mut gradients = Tensor::f_run_backward(&[scalar], &sources, false, false)?;
    let input_gradient = if input.is_some() { gradients.pop() } else { None };
    Ok((gradients, input_gradient))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BoundaryForm;
    use crate::optimizer::config::OptimizerKind;

    fn middle() -> Engine {
        let model = ModelConfig {
            vocabulary: 17,
            width: 8,
            layers: 3,
            heads: 2,
            kv_heads: 1,
            ffn_width: 12,
            sequence_len: 4,
            rope_theta: 10_000.0,
            norm_epsilon: 1e-5,
            boundary: BoundaryForm::None,
            boundary_width: 8,
            encoder_width: 2,
            stage_layers: vec![1; 3],
            wire: Dtype::F32,
        };
        let config = EngineConfig {
            held: 1..2,
            model,
            microbatch_size: 1,
            compute: Dtype::F32,
            retain: Retain::Graph,
            optimizer: OptimizerConfig { kind: OptimizerKind::AdamW, ..OptimizerConfig::default() },
            schedule: ScheduleConfig::constant(1),
            clip: None,
            seed: 1,
            device: DeviceKind::Cpu,
        };
        Engine::new(config).expect("the settings fit together")
    }

    #[test]
    fn a_ghost_computes_the_inputs_gradient_and_no_other() {
        let engine = middle();
        let bytes: Vec<u8> = (1..=32u8).flat_map(|number| f32::from(number).to_le_bytes()).collect();
        let differentiated = |duty| {
            let graph = engine.trace(0, StageInput::Boundary(&bytes), None).expect("the forward runs");
            let seed = engine.seed_gradient(0, Some(&bytes)).expect("it fits");
            differentiate(graph, seed, duty).expect("the backward runs")
        };
        let (trained, counted) = differentiated(Duty::Train);
        let (ghost, passed_on) = differentiated(Duty::Ghost);
        assert_eq!((trained.len(), ghost.len()), (engine.weights.leaves().len(), 0));
        assert_eq!(passed_on.expect("it has an input"), counted.expect("it has an input"));
    }
}
