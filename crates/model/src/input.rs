//! Owns what callers hand to an engine and get back, and the checks of it. It may not know tensors.

use crate::config::ModelConfig;

/// What enters the first stage that an engine holds.
#[derive(Clone, Copy, Debug)]
pub enum StageInput<'a> {
    /// Token ids of the microbatch, `B·S` of them, row major; for an engine that holds stage 0.
    Tokens(&'a [u32]),
    /// What the stage before sent: `B·S·k` numbers of the wire's format, little endian, row major.
    Boundary(&'a [u8]),
}

/// What leaves the last stage that an engine holds.
#[derive(Clone, Debug, PartialEq)]
pub enum StageOutput {
    /// What the next stage reads: `B·S·k` numbers of the wire's format, little endian, row major.
    Boundary(Vec<u8>),
    /// The mean cross-entropy over the microbatch's `B·S` tokens, in nats; from an engine that holds the last stage.
    Loss(f32),
}

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A backward follows; what it needs is kept.
    Train,
    /// No backward follows; nothing is kept.
    Evaluate,
}

/// What a backward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// The weights' gradients join the sums, and the input's gradient is returned.
    Train,
    /// The input's gradient is returned and no other is computed: this stage's part is trained already, by this replica or
    /// another, and only the stages before it need the microbatch again.
    Ghost,
}

/// What an optimizer step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The norm of the mean gradient over all parameters held, before clipping; 0 for a step without a microbatch.
    pub gradient_norm: f64,
    /// The learning rate that the schedule has for the step.
    pub learning_rate: f64,
    /// The version of the weights after the step.
    pub version: u64,
}

/// What an engine holds in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Bytes of the f32 master weights.
    pub weight_bytes: u64,
    /// Bytes of the copies that computation reads; zero in f32, which reads the masters themselves.
    pub leaf_bytes: u64,
    /// Bytes of the f32 gradient sums; zero between a step and the next backward.
    pub gradient_bytes: u64,
    /// Bytes of the optimizer's moments.
    pub optimizer_bytes: u64,
    /// Number of microbatches whose autograd graph is kept. The size of a graph's activations is not known here.
    pub graphs: usize,
    /// Bytes of older weights that those graphs still hold, because a step was taken since their forward.
    pub stale_bytes: u64,
}

/// Why what a caller handed to an engine was refused; the engine is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The range of stages to hold is empty or beyond the model.
    #[error("stages {first}..{end} cannot be held of a model with {stages} stages")]
    Held {
        /// First stage asked for.
        first: usize,
        /// One past the last.
        end: usize,
        /// Stages of the model.
        stages: usize,
    },
    /// The microbatch has no samples.
    #[error("microbatch_size is 0, expected at least 1")]
    EmptyMicrobatch,
    /// Stage 0 reads tokens and every other stage reads a boundary.
    #[error("stage {stage} was handed {got}, expected {want}")]
    Kind {
        /// The first stage that the engine holds.
        stage: usize,
        /// What came.
        got: &'static str,
        /// What it reads.
        want: &'static str,
    },
    /// Too few or too many tokens, targets or bytes.
    #[error("microbatch {microbatch} has {got} {what}, expected {want}")]
    Length {
        /// Whose it is.
        microbatch: u64,
        /// What was counted.
        what: &'static str,
        /// How many came.
        got: usize,
        /// How many there should be.
        want: usize,
    },
    /// A token id beyond the vocabulary.
    #[error("microbatch {microbatch} has token {token} among its {what}, expected below {vocabulary}")]
    Token {
        /// Whose it is.
        microbatch: u64,
        /// Tokens or targets.
        what: &'static str,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The last stage was given no targets, or another stage no gradient.
    #[error("microbatch {microbatch} lacks its {what}, which stage {stage} needs")]
    Missing {
        /// Whose it is.
        microbatch: u64,
        /// What lacks.
        what: &'static str,
        /// The last stage that the engine holds.
        stage: usize,
    },
    /// A step was asked for before any backward.
    #[error("step {version} has no gradient: no backward has run since the last step")]
    NoGradient {
        /// The version of the weights.
        version: u64,
    },
    /// A step was to be passed idle although gradients wait for it.
    #[error("step {version} cannot be passed idle: a backward has run since the last step")]
    NotIdle {
        /// The version of the weights.
        version: u64,
    },
    /// A step was asked to average over no microbatches.
    #[error("step {version} was asked to average over 0 microbatches")]
    NoMicrobatches {
        /// The version of the weights.
        version: u64,
    },
    /// Only an engine that holds the whole model can continue a text.
    #[error("an engine that holds {held} of {stages} stages cannot generate")]
    NotWhole {
        /// Stages held.
        held: usize,
        /// Stages of the model.
        stages: usize,
    },
    /// A checkpoint was written for another model or other stages.
    #[error("saved {field} is {got}, expected {want}")]
    Saved {
        /// Which label.
        field: &'static str,
        /// What the file says.
        got: String,
        /// What the engine holds.
        want: String,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The temperature is negative or no number.
    #[error("temperature is {temperature}, expected zero or a positive number")]
    Temperature {
        /// What was given, in words.
        temperature: String,
    },
}

impl InputError {
    /// Returns advice for the person or program that called.
    pub fn hint(&self) -> String {
        match self {
            InputError::Held { .. } => {
                "hold at least one stage, and none beyond the run file's stages".into()
            }
            InputError::EmptyMicrobatch => "set microbatch_size to 1 or more".into(),
            InputError::Kind { .. } | InputError::Length { .. } | InputError::Missing { .. } => {
                "check that both sides use the same run file".into()
            }
            InputError::Token { vocabulary, .. } => {
                format!("use the tokenizer that the run file names, or a vocabulary above {vocabulary}")
            }
            InputError::NoGradient { .. } | InputError::NoMicrobatches { .. } => {
                "run the backward of at least one microbatch before a step".into()
            }
            InputError::NotIdle { .. } => "step by the number of microbatches that were trained".into(),
            InputError::NotWhole { .. } => "load the checkpoints of all stages into one engine".into(),
            InputError::Saved { .. } => "resume with the run file that the checkpoint came from".into(),
            InputError::EmptyPrompt => "give a prompt of at least one character".into(),
            InputError::Temperature { .. } => "use 0 for the likeliest token, 0.8 to 1 for variety".into(),
        }
    }
}

/// Checks the tokens or targets of a microbatch.
pub(crate) fn check_tokens(
    microbatch: u64,
    what: &'static str,
    tokens: &[u32],
    want: usize,
    config: &ModelConfig,
) -> Result<(), InputError> {
    if tokens.len() != want {
        return Err(InputError::Length { microbatch, what, got: tokens.len(), want });
    }
    let vocabulary = config.vocabulary;
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(&token) => Err(InputError::Token { microbatch, what, token, vocabulary }),
        None => Ok(()),
    }
}

/// Checks the size of a boundary message.
pub(crate) fn check_bytes(
    microbatch: u64,
    what: &'static str,
    bytes: &[u8],
    want: usize,
) -> Result<(), InputError> {
    if bytes.len() == want {
        return Ok(());
    }
    Err(InputError::Length { microbatch, what, got: bytes.len(), want })
}
