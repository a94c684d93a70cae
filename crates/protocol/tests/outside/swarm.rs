//! A small swarm whose computations answer at once, into whose messages a test can put its own.

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use std::collections::{BTreeMap, VecDeque};
use std::sync::OnceLock;
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::event::{Event, Verdict};
use trestle_protocol::ids::{Digest, InnerStep, OuterStep, PeerId, StageId};
use trestle_protocol::message::{Join, Message, Outcome, Start};
use trestle_protocol::node::Node;
use trestle_protocol::port::{Action, Input, Output, StoreItem, StoredItem, Took};
use trestle_protocol::spec::sync::SyncSpec;
use trestle_protocol::spec::{
    BoundaryForm, BoundarySpec, CheckpointSpec, DataSource, DataSpec, Decay, Dtype, EvaluationSpec,
    ModelSpec, OptimizerKind, OptimizerSpec, PipelineSpec, Retain, RunSpec, Schedule, Tokenizer,
    TrainingSpec,
};
use trestle_protocol::sync::blob::Blob;
use trestle_protocol::sync::task::{Contribution, SyncDone, SyncTask};
use trestle_protocol::time::{Span, Time};
use trestle_protocol::worker::WorkerConfig;

/// Stages of the swarm; the coordinator is peer 0, and stage s peer s + 1.
pub(crate) const STAGES: u16 = 3;

/// More inputs than any honest run of a spec takes; a swarm that needs more goes in circles.
const INPUTS_MAX: usize = 40_000;

/// Three stages, three steps of four microbatches, evaluations of two, a checkpoint after the second step.
pub(crate) fn spec(schedule: Schedule) -> RunSpec {
    RunSpec {
        name: "small".into(),
        seed: 1,
        model: ModelSpec {
            vocabulary: 16,
            width: 8,
            layers: 3,
            heads: 2,
            kv_heads: 1,
            ffn_width: 16,
            sequence_len: 4,
            rope_theta: 10_000.0,
            norm_epsilon: 1e-5,
        },
        boundary: BoundarySpec { form: BoundaryForm::Resbm, width: 4, encoder_width: 4, wire: Dtype::Bf16 },
        pipeline: PipelineSpec {
            stage_layers: vec![1; usize::from(STAGES)],
            replicas: 1,
            schedule,
            microbatch_size: 2,
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

/// The most replicas that a test has.
pub(crate) const REPLICAS_MAX: u16 = 3;

/// The keys of the peers, coordinator first, and one of a stranger behind the last worker.
pub(crate) fn keys() -> &'static [SigningKey] {
    static KEYS: OnceLock<Vec<SigningKey>> = OnceLock::new();
    KEYS.get_or_init(|| {
        let last = (STAGES * REPLICAS_MAX) as u8 + 1;
        (0..=last).map(|index| SigningKey::from_bytes(&[index + 1; 32])).collect()
    })
}

/// Returns the id of a peer, made once, since a public key costs a multiplication on the curve.
pub(crate) fn peer(index: usize) -> PeerId {
    static IDS: OnceLock<Vec<PeerId>> = OnceLock::new();
    let ids = IDS.get_or_init(|| keys().iter().map(|key| PeerId(key.verifying_key().to_bytes())).collect());
    ids[index]
}

/// A swarm on one queue.
pub(crate) struct Swarm {
    spec: RunSpec,
    nodes: Vec<Node>,
    index_of: BTreeMap<PeerId, usize>,
    stage_of: Vec<StageId>,
    /// What stands for the weights of each node, and for those that it has staged.
    weights: Vec<(Digest, Option<Digest>)>,
    queue: VecDeque<(usize, Input)>,
    now: Time,
    taken: usize,
    /// The events of each node.
    pub(crate) events: Vec<Vec<Event>>,
    /// The last state that the coordinator stored.
    pub(crate) state: Option<Bytes>,
    /// How each node ended.
    pub(crate) ended: Vec<Option<Outcome>>,
}

impl Swarm {
    pub(crate) fn new(spec: RunSpec, state: Option<&[u8]>) -> Self {
        let keys = keys();
        let me = peer(0);
        let coordinator = Node::coordinator(CoordinatorConfig { spec: spec.clone(), me }, state)
            .expect("the state is one that a coordinator stored");
        let mut nodes = vec![coordinator];
        let replicas = spec.pipeline.replicas;
        for stage in (0..replicas).flat_map(|_| 0..STAGES) {
            let join = Join {
                address: Bytes::new(),
                stage: Some(StageId(stage)),
                device: "none".into(),
                peak_flops: 0,
            };
            let key = keys[nodes.len()].clone();
            nodes.push(Node::worker(WorkerConfig { spec: spec.clone(), key, coordinator: me, join }));
        }
        let count = nodes.len();
        let mut queue = VecDeque::new();
        for worker in 1..count {
            queue.push_back((worker, Input::Connected { peer: me }));
            queue.push_back((0, Input::Connected { peer: peer(worker) }));
        }
        Self {
            spec,
            nodes,
            index_of: (0..count).map(|index| (peer(index), index)).collect(),
            stage_of: vec![StageId(0); count],
            weights: vec![(Digest([0; 32]), None); count],
            queue,
            now: Time(0),
            taken: 0,
            events: vec![Vec::new(); count],
            state: None,
            ended: vec![None; count],
        }
    }

    /// Lets a message arrive next, before everything that is under way.
    pub(crate) fn inject(&mut self, from: PeerId, to: usize, message: Message) {
        self.queue.push_front((to, Input::Received { from, message }));
    }

    /// Lets a peer connect next.
    pub(crate) fn connect(&mut self, peer: PeerId, to: usize) {
        self.queue.push_front((to, Input::Connected { peer }));
    }

    /// Lets the next input arrive a second time right behind itself, if it is a message.
    pub(crate) fn repeat_next(&mut self) {
        if let Some((to, input @ Input::Received { .. })) = self.queue.front().cloned() {
            self.queue.push_front((to, input));
        }
    }

    /// Takes one input; `None` when there is none left.
    pub(crate) fn turn(&mut self) -> Option<()> {
        let (to, input) = self.queue.pop_front()?;
        self.taken += 1;
        assert!(self.taken < INPUTS_MAX, "the swarm goes in circles");
        self.now = Time(self.now.0 + 10);
        if self.ended[to].is_none() {
            self.nodes[to].handle(self.now, input);
            while let Some(action) = self.nodes[to].poll() {
                self.act(to, action);
            }
        }
        Some(())
    }

    /// Runs until nothing is under way.
    pub(crate) fn run(&mut self) {
        while self.turn().is_some() {}
    }

    /// Runs on until the run is over, through as many deadlines at most.
    pub(crate) fn run_through(&mut self, deadlines: usize) {
        self.run();
        for _ in 0..deadlines {
            let live = (0..self.nodes.len()).filter(|index| self.ended[*index].is_none());
            let next = live.filter_map(|index| Some((self.nodes[index].deadline()?, index))).min();
            let Some((at, index)) = next.filter(|_| self.ended[0].is_none()) else { return };
            self.now = self.now.max(at);
            self.queue.push_back((index, Input::Woke));
            self.run();
        }
    }

    /// Lists where replicas of a stage go on from other weights than were committed for all of them.
    pub(crate) fn parted(&self) -> Vec<String> {
        let mut committed = BTreeMap::new();
        for event in &self.events[0] {
            if let Event::Outer(summary) = event
                && summary.verdict == Verdict::Committed
            {
                committed
                    .extend(summary.digests.iter().map(|(stage, digest)| ((*stage, summary.outer), digest)));
            }
        }
        let mut parted = Vec::new();
        for (index, events) in self.events.iter().enumerate().skip(1) {
            let mut own = None;
            for event in events {
                let Event::Agreed { outer, digest } = event else { continue };
                own = Some(*digest);
                if committed.get(&(self.stage_of[index], *outer)) != Some(&digest) {
                    parted.push(format!("peer {index} took {digest} in outer step {}", outer.0));
                }
            }
            if own.is_some_and(|own| own != self.weights[index].0) {
                parted.push(format!("peer {index} holds {}, and agreed on {own:?}", self.weights[index].0));
            }
        }
        parted
    }

    /// Returns how the coordinator ended.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.ended[0].as_ref()
    }

    /// Returns the refusals that the nodes gave.
    pub(crate) fn refusals(&self) -> Vec<&Event> {
        self.events.iter().flatten().filter(|event| matches!(event, Event::Refused { .. })).collect()
    }

    fn act(&mut self, index: usize, action: Action) {
        let took = Took { total: Span(5), serialise: Span(1) };
        let boundary = || Bytes::from(vec![0; self.spec.boundary_bytes()]);
        let stage = self.stage_of[index];
        let answer = match action {
            Action::Dial { peer, .. } => Input::Connected { peer },
            Action::Send { to, message } => {
                if let Some(&receiver) = self.index_of.get(&to) {
                    self.queue.push_back((receiver, Input::Received { from: peer(index), message }));
                }
                return;
            }
            Action::Load { place, start } => {
                let stage = place.stage;
                assert!(stage.0 < STAGES, "asked to hold stage {stage}, which does not exist");
                self.stage_of[index] = stage;
                let step = match start {
                    Start::Fresh => InnerStep(0),
                    Start::Checkpoint { step, .. } => step,
                };
                Input::Loaded { step, took }
            }
            Action::Forward { microbatch, .. } => {
                let last = stage.0 + 1 == STAGES;
                let output = if last { Output::Loss(1.0) } else { Output::Boundary(boundary()) };
                Input::Forwarded { microbatch, output, took }
            }
            Action::Backward { microbatch, .. } => {
                let gradient = (stage.0 > 0).then(boundary);
                Input::Backwarded { microbatch, gradient, took }
            }
            Action::Sync(task) => Input::Sync(self.sync_done(index, task)),
            Action::Step { .. } => {
                Input::Stepped { gradient_norm: 1.0, learning_rate: 1e-3, took, wire_bytes_total: 0 }
            }
            Action::Store(StoreItem::Checkpoint { step }) => {
                let item = StoredItem::Checkpoint { step, digest: Digest([stage.0 as u8; 32]) };
                Input::Stored { item, took }
            }
            Action::Store(StoreItem::Coordinator(state)) => {
                self.state = Some(state);
                Input::Stored { item: StoredItem::Coordinator, took }
            }
            Action::Record(event) => return self.events[index].push(event),
            Action::Finish(outcome) => {
                self.ended[index] = Some(outcome);
                return;
            }
        };
        self.queue.push_back((index, answer));
    }

    /// Does the arithmetic of an outer step on digests that stand for numbers.
    fn sync_done(&mut self, index: usize, task: SyncTask) -> SyncDone {
        let took = Span(5);
        match task {
            SyncTask::Snapshot { outer } => SyncDone::Snapshotted { outer, took },
            SyncTask::Encode { outer, shares } => {
                let shards =
                    (0_u16..).zip(&shares).map(|(shard, _)| contribution(index, outer, shard)).collect();
                SyncDone::Encoded { outer, shares, shards, took }
            }
            SyncTask::Reduce { round, shard, contributions, .. } => {
                let mut all = Vec::new();
                for Contribution { from, weight, bytes } in contributions {
                    all.extend(from.0.to_le_bytes());
                    all.extend(weight.to_le_bytes());
                    all.extend(&bytes);
                }
                let mean = Bytes::copy_from_slice(&Digest::of(&all).0);
                SyncDone::Reduced { round, shard, result: Ok(Blob::new(mean)), took }
            }
            SyncTask::Stage { round, results, .. } => {
                let (weights, staged) = &mut self.weights[index];
                let next = Digest::of(&[&weights.0, results.concat().as_slice()].concat());
                *staged = Some(next);
                SyncDone::Staged { round, result: Ok(next), took }
            }
            SyncTask::Commit { outer } => {
                let (weights, staged) = &mut self.weights[index];
                *weights = staged.take().expect("what is committed was staged");
                SyncDone::Committed { outer, took }
            }
            SyncTask::Restore { outer } => {
                self.weights[index].1 = None;
                SyncDone::Restored { outer, took }
            }
            SyncTask::Adopt { outer } => SyncDone::Adopted { outer, took },
        }
    }
}

/// Makes what a node contributes to a shard of an outer step.
pub(crate) fn contribution(index: usize, outer: OuterStep, shard: u16) -> Blob {
    let name = format!("{index} {} {shard}", outer.0);
    Blob::new(Bytes::copy_from_slice(&Digest::of(name.as_bytes()).0))
}
