//! Fuzzes everything that reads bytes from outside: frames, first words, stored state; and hands what decodes to nodes.
//!
//! Run it from `crates/protocol` with `cargo install cargo-fuzz`, then
//! `cargo +nightly fuzz run outside -- -max_len=4096`. Ten minutes without a crash are a good sign. A crash leaves its
//! input under `fuzz/artifacts`: mend it, and put the shortest script that shows it into `tests/outside/found.rs`.

#![no_main]

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use libfuzzer_sys::fuzz_target;
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::handshake;
use trestle_protocol::ids::{Digest, PeerId};
use trestle_protocol::message::Join;
use trestle_protocol::node::Node;
use trestle_protocol::port::Input;
use trestle_protocol::spec::{
    BoundaryForm, BoundarySpec, CheckpointSpec, DataSource, DataSpec, Decay, Dtype, EvaluationSpec,
    ModelSpec, OptimizerKind, OptimizerSpec, OuterSpec, PipelineSpec, Retain, RunSpec, Schedule, Tokenizer,
    TrainingSpec,
};
use trestle_protocol::time::Time;
use trestle_protocol::wire::{Frame, WIRE_VERSION, decode, encode};
use trestle_protocol::worker::WorkerConfig;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => first_words(rest),
        1 => stored_state(rest),
        _ => frames(rest),
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
    drop(Node::coordinator(CoordinatorConfig { spec: spec(), me: id(0) }, Some(&state)));
}

/// Cuts the bytes into frames (sender, receiver, length of the header, header) and lets two nodes hear them.
fn frames(mut bytes: &[u8]) {
    let coordinator = CoordinatorConfig { spec: spec(), me: id(0) };
    let join = Join { address: Bytes::new(), stage: None, device: String::new(), peak_flops: 0 };
    let worker = WorkerConfig { spec: spec(), key: key(1), coordinator: id(0), join };
    let mut nodes = [Node::coordinator(coordinator, None).expect("no state to refuse"), Node::worker(worker)];
    nodes[1].handle(Time(0), Input::Connected { peer: id(0) });
    let mut now = Time(1);
    while let [from, to, length, rest @ ..] = bytes {
        let (header, behind) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = behind;
        let header: Vec<u8> = WIRE_VERSION.to_le_bytes().into_iter().chain(header.iter().copied()).collect();
        let payload = Bytes::from(vec![0; if from & 8 == 0 { 0 } else { spec().boundary_bytes() }]);
        let Ok(message) = decode(&Frame { header: header.into(), payload }) else { continue };
        assert!(decode(&encode(&message)).is_ok(), "what was read can be written and read");
        let node = &mut nodes[usize::from(to & 1)];
        node.handle(now, Input::Received { from: id(from & 3), message });
        while node.poll().is_some() {}
        now = Time(now.0 + 1);
    }
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed + 1; 32])
}

fn id(seed: u8) -> PeerId {
    PeerId(key(seed).verifying_key().to_bytes())
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
        outer: OuterSpec { inner_steps: 10 },
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
