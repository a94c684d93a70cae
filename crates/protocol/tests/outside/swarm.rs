//! A small swarm whose computations answer at once, into whose messages a test can put its own.

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::OnceLock;
use trestle_protocol::coordinator::CoordinatorConfig;
use trestle_protocol::event::{Event, Verdict};
use trestle_protocol::ids::{Digest, InnerStep, OuterStep, PeerId, StageId};
use trestle_protocol::message::{Held, Join, Message, Outcome, Start, Text};
use trestle_protocol::node::Node;
use trestle_protocol::port::{Action, Input, Output, StoreItem, StoredItem, Took};
use trestle_protocol::receipt::Seals;
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

/// What a stage agreed on in an outer step.
type Agreed = (StageId, OuterStep, Digest);

/// A swarm on one queue.
pub(crate) struct Swarm {
    spec: RunSpec,
    nodes: Vec<Node>,
    index_of: BTreeMap<PeerId, usize>,
    stage_of: Vec<StageId>,
    /// What stands for the weights of each node, and for those that it has staged.
    weights: Vec<(Digest, Option<Digest>)>,
    /// What each node took in outer steps, and where it stood in that list when it loaded its stage last.
    agreed: Vec<(Vec<Agreed>, usize)>,
    queue: VecDeque<(usize, Input)>,
    /// Nodes whose process is gone.
    killed: BTreeSet<usize>,
    taken: usize,
    /// What the clocks of all nodes show.
    pub(crate) now: Time,
    /// The events of each node.
    pub(crate) events: Vec<Vec<Event>>,
    /// The last state that the coordinator stored.
    pub(crate) state: Option<Bytes>,
    /// How each node ended.
    pub(crate) ended: Vec<Option<Outcome>>,
}

impl Swarm {
    pub(crate) fn new(spec: RunSpec, state: Option<&[u8]>) -> Self {
        let workers = STAGES * spec.pipeline.replicas;
        let mut swarm = Self {
            spec,
            nodes: Vec::new(),
            index_of: BTreeMap::new(),
            stage_of: Vec::new(),
            weights: Vec::new(),
            agreed: Vec::new(),
            queue: VecDeque::new(),
            killed: BTreeSet::new(),
            taken: 0,
            now: Time(0),
            events: Vec::new(),
            state: None,
            ended: Vec::new(),
        };
        swarm.begin(0, coordinator(&swarm.spec, state));
        for index in 0..workers {
            swarm.join(usize::from(index) + 1, Some(StageId(index % STAGES)), Vec::new());
        }
        swarm
    }

    /// Puts a node, with nothing behind it, in a slot that is new or was left.
    fn begin(&mut self, index: usize, node: Node) {
        if index == self.nodes.len() {
            self.nodes.push(node);
            self.index_of.insert(peer(index), index);
            self.stage_of.push(StageId(0));
            self.weights.push((Digest([0; 32]), None));
            self.agreed.push((Vec::new(), 0));
            self.events.push(Vec::new());
            self.ended.push(None);
        } else {
            self.nodes[index] = node;
            self.killed.remove(&index);
            self.ended[index] = None;
        }
    }

    /// Starts a worker, with these checkpoints on its disk, and lets it find the coordinator.
    pub(crate) fn join(&mut self, index: usize, stage: Option<StageId>, held: Vec<Held>) {
        let (address, device, text) = (Bytes::new(), "none".into(), Text::Here);
        self.join_as(index, Join { address, stage, device, peak_flops: 0, text, held });
    }

    /// Likewise, a worker that asks for a place in these words.
    pub(crate) fn join_as(&mut self, index: usize, join: Join) {
        let (spec, key) = (self.spec.clone(), keys()[index].clone());
        let (coordinator, coordinator_address) = (peer(0), Bytes::new());
        let coordinator_wait = Span(0);
        let config = WorkerConfig {
            spec,
            key,
            seals: Seals::Signed,
            coordinator,
            coordinator_address,
            coordinator_wait,
            join,
        };
        self.begin(index, Node::worker(config));
        self.queue.push_back((index, Input::Connected { peer: peer(0) }));
        self.queue.push_back((0, Input::Connected { peer: peer(index) }));
    }

    /// Ends a node's process; all others see their connections to it break.
    pub(crate) fn kill(&mut self, index: usize) {
        self.killed.insert(index);
        self.queue.retain(|(to, _)| *to != index);
        for other in (0..self.nodes.len()).filter(|other| *other != index) {
            let (peer, reason) = (peer(index), "reset".into());
            self.queue.push_back((other, Input::Lost { peer, reason }));
        }
    }

    /// Starts the coordinator again from what it stored last; its workers find it by dialling.
    pub(crate) fn restart_coordinator(&mut self) {
        let state = self.state.clone();
        self.begin(0, coordinator(&self.spec, state.as_deref()));
    }

    /// Tells a node something that is no message.
    pub(crate) fn tell(&mut self, index: usize, input: Input) {
        self.queue.push_back((index, input));
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

    fn lives(&self, index: usize) -> bool {
        self.ended[index].is_none() && !self.killed.contains(&index)
    }

    /// Takes one input; `None` when there is none left.
    pub(crate) fn turn(&mut self) -> Option<()> {
        let (to, input) = self.queue.pop_front()?;
        self.taken += 1;
        assert!(self.taken < INPUTS_MAX, "the swarm goes in circles");
        self.now = Time(self.now.0 + 10);
        if self.lives(to) {
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

    /// Runs on, through the deadlines of all nodes, until the run is over or so much time is.
    pub(crate) fn run_for(&mut self, span: Span) {
        let until = self.now + span;
        self.run();
        while self.ended[0].is_none() {
            let live = (0..self.nodes.len()).filter(|index| self.lives(*index));
            let next = live.filter_map(|index| Some((self.nodes[index].deadline()?, index))).min();
            let Some((at, index)) = next.filter(|(at, _)| *at <= until) else { return };
            self.now = self.now.max(at);
            self.queue.push_back((index, Input::Woke));
            self.run();
        }
    }

    /// Runs until a node has seen something.
    pub(crate) fn run_until(&mut self, index: usize, seen: impl Fn(&Event) -> bool) {
        while !self.events[index].iter().any(&seen) {
            self.turn().expect("it comes to pass before all is quiet");
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
        for (index, (agreed, loaded)) in self.agreed.iter().enumerate() {
            for (stage, outer, digest) in agreed {
                if committed.get(&(*stage, *outer)) != Some(&digest) {
                    parted.push(format!("peer {index} took {digest} in outer step {}", outer.0));
                }
            }
            let own = agreed[*loaded..].last().map(|(_, _, digest)| *digest);
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
            Action::Dial { peer: to, .. } => self.dial(index, to),
            Action::Send { to, message } => {
                if let Some(&receiver) = self.index_of.get(&to) {
                    self.queue.push_back((receiver, Input::Received { from: peer(index), message }));
                }
                return;
            }
            Action::Load { place, start } => {
                let weights = match start {
                    Start::Fresh => Digest([0; 32]),
                    Start::Checkpoint { step, .. } => Digest::of(&step.0.to_le_bytes()),
                    Start::Replicas { .. } => panic!("what comes from replicas is imported"),
                };
                self.hold(index, place.stage, weights);
                Input::Loaded { step: InnerStep(0), took }
            }
            Action::Import { place, agreed, digest, .. } => match agreed.as_ref().try_into().map(Digest) {
                Ok(weights) if weights == digest => {
                    self.hold(index, place.stage, weights);
                    Input::Loaded { step: InnerStep(0), took }
                }
                Ok(_) | Err(_) => Input::Unfit { reason: "other weights".into() },
            },
            Action::Export { outer } => {
                let agreed = Blob::new(Bytes::copy_from_slice(&self.weights[index].0.0));
                let own = Blob::new(Bytes::from(vec![index as u8; 40]));
                Input::Exported { outer, agreed, own, took }
            }
            Action::Enter { .. } | Action::Discard { .. } => return,
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
            Action::Store(StoreItem::Coordinator { state, .. }) => {
                self.state = Some(state);
                Input::Stored { item: StoredItem::Coordinator, took }
            }
            Action::Record(event) => {
                if let Event::Agreed { outer, digest } = &event {
                    self.agreed[index].0.push((stage, *outer, *digest));
                }
                return self.events[index].push(event);
            }
            Action::Finish(outcome) => {
                self.ended[index] = Some(outcome);
                return;
            }
        };
        self.queue.push_back((index, answer));
    }

    /// Connects both ends, where there is another.
    fn dial(&mut self, index: usize, to: PeerId) -> Input {
        match self.index_of.get(&to) {
            Some(&at) if !self.lives(at) => Input::Lost { peer: to, reason: "nobody is there".into() },
            Some(&at) => {
                self.queue.push_back((at, Input::Connected { peer: peer(index) }));
                Input::Connected { peer: to }
            }
            None => Input::Connected { peer: to },
        }
    }

    /// Lets a node hold a stage; what it was computing is not answered any more.
    fn hold(&mut self, index: usize, stage: StageId, weights: Digest) {
        assert!(stage.0 < STAGES, "asked to hold stage {stage}, which does not exist");
        self.stage_of[index] = stage;
        self.weights[index] = (weights, None);
        self.agreed[index].1 = self.agreed[index].0.len();
        self.queue.retain(|(to, input)| {
            let computed = matches!(
                input,
                Input::Loaded { .. }
                    | Input::Unfit { .. }
                    | Input::Exported { .. }
                    | Input::Forwarded { .. }
                    | Input::Backwarded { .. }
                    | Input::Stepped { .. }
                    | Input::Sync(_)
                    | Input::Stored { .. }
            );
            *to != index || !computed
        });
    }

    /// Does the arithmetic of an outer step on digests that stand for numbers.
    fn sync_done(&mut self, index: usize, task: SyncTask) -> SyncDone {
        let took = Span(5);
        match task {
            SyncTask::Snapshot { outer, .. } => SyncDone::Snapshotted { outer, took },
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

fn coordinator(spec: &RunSpec, state: Option<&[u8]>) -> Node {
    let config = CoordinatorConfig { spec: spec.clone(), me: peer(0), seals: Seals::Signed };
    Node::coordinator(config, state).expect("the state is one that a coordinator stored")
}

/// Makes what a node contributes to a shard of an outer step.
pub(crate) fn contribution(index: usize, outer: OuterStep, shard: u16) -> Blob {
    let name = format!("{index} {} {shard}", outer.0);
    Blob::new(Bytes::copy_from_slice(&Digest::of(name.as_bytes()).0))
}
