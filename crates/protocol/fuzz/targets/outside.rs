//! Fuzzes everything that reads bytes from outside: frames, first words, stored state; and hands what decodes to nodes, alone
//! or in the middle of a run whose replicas agree.
//!
//! Run it from `crates/protocol` with `cargo install cargo-fuzz`, then
//! `cargo +nightly fuzz run outside -- -max_len=4096`. Ten minutes without a crash are a good sign. A crash leaves its
//! input under `fuzz/artifacts`: mend it, and put the shortest script that shows it into `tests/outside/found.rs`.

#![no_main]

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use libfuzzer_sys::fuzz_target;
use std::collections::VecDeque;
use std::sync::OnceLock;
use trestle_protocol::receipt::Seals;
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::handshake;
use trestle_protocol::ids::{Digest, InnerStep, OuterStep, PeerId};
use trestle_protocol::message::{Join, Message, Text};
use trestle_protocol::node::Node;
use trestle_protocol::port::{Action, Input, Output, StoreItem, StoredItem, Took};
use trestle_protocol::spec::sync::SyncSpec;
use trestle_protocol::spec::{
    BoundaryForm, BoundarySpec, CheckpointSpec, DataSource, DataSpec, Decay, Dtype, EvaluationSpec,
    ModelSpec, OptimizerKind, OptimizerSpec, PipelineSpec, Retain, RunSpec, Schedule, Tokenizer,
    TrainingSpec,
};
use trestle_protocol::sync::blob::Blob;
use trestle_protocol::sync::say::Say;
use trestle_protocol::sync::task::{SyncDone, SyncTask};
use trestle_protocol::time::{Span, Time};
use trestle_protocol::wire::{Frame, WIRE_VERSION, decode, encode};
use trestle_protocol::worker::WorkerConfig;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => first_words(rest),
        1 => stored_state(rest),
        2 => frames(rest),
        _ => replicas(rest),
    }
});

fn first_words(bytes: &[u8]) {
    if let Some(hello) = handshake::decode_hello(bytes) {
        handshake::answer(&spec(), &hello);
    }
    handshake::decode_welcome(bytes);
}

/// The fuzzer cannot guess the run's digest, so it gets it for nothing.
fn stored_state(bytes: &[u8]) {
    let mut state = spec().digest().0.to_vec();
    state.extend(bytes);
    drop(Node::coordinator(CoordinatorConfig { spec: spec(), me: id(0), seals: Seals::Signed }, Some(&state)));
    let mut state = replicated().digest().0.to_vec();
    state.extend(bytes);
    drop(Node::coordinator(CoordinatorConfig { spec: replicated(), me: id(0), seals: Seals::Signed }, Some(&state)));
}

/// Cuts the bytes into frames (sender, receiver, length of the header, header) and lets two nodes hear them.
fn frames(mut bytes: &[u8]) {
    let mut nodes = [coordinator(spec()), worker(spec(), 1)];
    nodes[1].handle(Time(0), Input::Connected { peer: id(0) });
    let mut now = Time(1);
    while let [from, to, length, rest @ ..] = bytes {
        let (header, behind) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = behind;
        let payload = if from & 8 == 0 { 0 } else { spec().boundary_bytes() };
        let Some(message) = read(header, payload) else { continue };
        let node = &mut nodes[usize::from(to & 1)];
        node.handle(now, Input::Received { from: id(from & 3), message });
        while node.poll().is_some() {}
        now = Time(now.0 + 1);
    }
}

fn read(header: &[u8], payload: usize) -> Option<Message> {
    let header: Vec<u8> = WIRE_VERSION.to_le_bytes().into_iter().chain(header.iter().copied()).collect();
    let payload = Bytes::from(vec![0; payload]);
    let message = decode(&Frame { header: header.into(), payload }).ok()?;
    assert!(decode(&encode(&message)).is_ok(), "what was read can be written and read");
    Some(message)
}

fn coordinator(spec: RunSpec) -> Node {
    Node::coordinator(CoordinatorConfig { spec, me: id(0), seals: Seals::Signed }, None).expect("no state to refuse")
}

fn worker(spec: RunSpec, seed: u8) -> Node {
    let (text, held) = (Text::Here, Vec::new());
    let join = Join { address: Bytes::new(), stage: None, device: String::new(), peak_flops: 0, text, held };
    Node::worker(WorkerConfig {
        spec,
        key: key(seed),
        seals: Seals::Signed,
        coordinator: id(0),
        coordinator_address: Bytes::new(),
        coordinator_wait: Span(0),
        join,
    })
}

/// Bytes of a shard, which are all 0: what the fuzzer sends beside a header is what was offered.
const SHARD_BYTES: usize = 8;

/// Inputs of a run at most; honest ones need some hundred.
const INPUTS_MAX: usize = 20_000;

/// A run of one stage with three replicas, whose computations answer at once.
struct Replicas {
    nodes: Vec<Node>,
    over: Vec<bool>,
    queue: VecDeque<(usize, Input)>,
    now: Time,
}

/// Cuts the bytes into messages (sender, receiver, inputs before it, length, the message: one about an outer step, behind the
/// mark that makes it one, or any) and puts them into a run.
fn replicas(mut bytes: &[u8]) {
    let mut run = Replicas::new();
    let mark = encode(&Message::Sync(Say::Alive { outer: OuterStep(0) })).header[2];
    while let [from, to, turns, length, rest @ ..] = bytes {
        let (said, behind) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = behind;
        (0..*turns).for_each(|_| run.turn());
        let header: Vec<u8> = if from & 16 == 0 { [&[mark], said].concat() } else { said.to_vec() };
        let Some(message) = read(&header, if from & 8 == 0 { 0 } else { SHARD_BYTES }) else { continue };
        let to = usize::from(to & 3);
        run.queue.push_front((to, Input::Received { from: id(from & 7), message }));
    }
    for _ in 0..INPUTS_MAX {
        if run.queue.is_empty() {
            return;
        }
        run.turn();
    }
    panic!("the run goes in circles");
}

impl Replicas {
    fn new() -> Self {
        let mut nodes = vec![coordinator(replicated())];
        nodes.extend((1..4).map(|seed| worker(replicated(), seed)));
        let queue = (1..4).map(|to| (to, Input::Connected { peer: id(0) })).collect();
        Self { nodes, over: vec![false; 4], queue, now: Time(0) }
    }

    fn turn(&mut self) {
        let Some((to, input)) = self.queue.pop_front() else { return };
        self.now = Time(self.now.0 + 10);
        if self.over[to] {
            return;
        }
        self.nodes[to].handle(self.now, input);
        while let Some(action) = self.nodes[to].poll() {
            if let Some(next) = self.answer(to, action) {
                self.queue.push_back(next);
            }
        }
    }

    fn answer(&mut self, index: usize, action: Action) -> Option<(usize, Input)> {
        let took = Took { total: Span(5), serialise: Span(1) };
        let input = match action {
            Action::Dial { peer, .. } => Input::Connected { peer },
            Action::Send { to, message } => {
                let to = (0..4).find(|at| id(*at) == to)?;
                return Some((usize::from(to), Input::Received { from: id(index as u8), message }));
            }
            Action::Load { .. } | Action::Import { .. } => {
                self.queue.retain(|(to, input)| *to != index || !computed(input));
                Input::Loaded { step: InnerStep(0), took }
            }
            Action::Export { outer } => {
                let blob = || Blob::new(Bytes::from(vec![0; SHARD_BYTES]));
                Input::Exported { outer, agreed: blob(), own: blob(), took }
            }
            Action::Enter { .. } | Action::Discard { .. } => return None,
            Action::Forward { microbatch, .. } => {
                Input::Forwarded { microbatch, output: Output::Loss(1.0), took }
            }
            Action::Backward { microbatch, .. } => Input::Backwarded { microbatch, gradient: None, took },
            Action::Step { .. } => {
                Input::Stepped { gradient_norm: 1.0, learning_rate: 1e-3, took, wire_bytes_total: 0 }
            }
            Action::Sync(task) => Input::Sync(done(task)),
            Action::Store(StoreItem::Checkpoint { step }) => {
                Input::Stored { item: StoredItem::Checkpoint { step, digest: Digest([0; 32]) }, took }
            }
            Action::Store(StoreItem::Coordinator { .. }) => {
                Input::Stored { item: StoredItem::Coordinator, took }
            }
            Action::Record(_) => return None,
            Action::Finish(_) => {
                self.over[index] = true;
                return None;
            }
        };
        Some((index, input))
    }
}

/// Returns whether an input answers something that is not answered any more when another stage is taken hold of.
fn computed(input: &Input) -> bool {
    matches!(
        input,
        Input::Loaded { .. }
            | Input::Exported { .. }
            | Input::Forwarded { .. }
            | Input::Backwarded { .. }
            | Input::Stepped { .. }
            | Input::Sync(_)
            | Input::Stored { .. }
    )
}

fn done(task: SyncTask) -> SyncDone {
    let took = Span(5);
    let blob = || Blob::new(Bytes::from(vec![0; SHARD_BYTES]));
    match task {
        SyncTask::Snapshot { outer, .. } => SyncDone::Snapshotted { outer, took },
        SyncTask::Encode { outer, shares } => {
            let shards = shares.iter().map(|_| blob()).collect();
            SyncDone::Encoded { outer, shares, shards, took }
        }
        SyncTask::Reduce { round, shard, .. } => SyncDone::Reduced { round, shard, result: Ok(blob()), took },
        SyncTask::Stage { round, results, .. } => {
            SyncDone::Staged { round, result: Ok(Digest::of(&results.concat())), took }
        }
        SyncTask::Commit { outer } => SyncDone::Committed { outer, took },
        SyncTask::Restore { outer } => SyncDone::Restored { outer, took },
        SyncTask::Adopt { outer } => SyncDone::Adopted { outer, took },
    }
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed + 1; 32])
}

/// Made once, since a public key costs a multiplication on the curve.
fn id(seed: u8) -> PeerId {
    static IDS: OnceLock<Vec<PeerId>> = OnceLock::new();
    let ids = || (0..8).map(|seed| PeerId(key(seed).verifying_key().to_bytes())).collect();
    IDS.get_or_init(ids)[usize::from(seed)]
}

/// One stage, whose three replicas exchange what they have learnt in each two of four steps.
fn replicated() -> RunSpec {
    let mut spec = spec();
    spec.model.layers = 1;
    spec.pipeline.stage_layers = vec![1];
    spec.pipeline.replicas = 3;
    spec.training.steps = 4;
    spec.sync = SyncSpec::mean(2);
    spec
}

fn spec() -> RunSpec {
    RunSpec {
        name: "fuzz".into(),
        seed: 1,
        model: ModelSpec {
            vocabulary: 16,
            width: 8,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            ffn_width: 16,
            sequence_len: 4,
            rope_theta: 10_000.0,
            norm_epsilon: 1e-5,
        },
        boundary: BoundarySpec { form: BoundaryForm::Resbm, width: 4, encoder_width: 4, wire: Dtype::Bf16 },
        pipeline: PipelineSpec {
            stage_layers: vec![1, 1],
            replicas: 1,
            schedule: Schedule::Flush,
            microbatch_size: 1,
            microbatches_per_step: 4,
            in_flight_max: 3,
            retain: Retain::Input,
            compute: Dtype::F32,
        },
        training: TrainingSpec {
            steps: 3,
            warmup_steps: 0,
            decay: Decay::Constant,
            final_ratio: 1.0,
            gradient_clip: 1.0,
        },
        optimizer: OptimizerSpec {
            kind: OptimizerKind::AdamW,
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            muon_learning_rate: 1e-2,
            muon_momentum: 0.95,
        },
        sync: SyncSpec::mean(10),
        data: DataSpec {
            source: DataSource::Generated { tokens: 1000 },
            tokenizer: Tokenizer::Bytes,
            held_out_permille: 50,
            manifest: Digest([0; 32]),
        },
        evaluation: EvaluationSpec { every: 2, microbatches: 2 },
        checkpoint: CheckpointSpec { every: 2 },
    }
}
