//! Strategies for everything that can come over the wire: messages, handshakes, run specs, with numbers that are sometimes
//! near what a small run expects and sometimes anything.

pub(crate) mod churn;
pub(crate) mod numbers;
pub(crate) mod sync;

use crate::nonsense::churn::{frontier, held, needs, removal, start, state, trained, wait};
use crate::nonsense::numbers::{
    attempt, digest, microbatch, number, outer, plan_number, replica, seat, small_bytes, span, stage, step,
};
use crate::nonsense::sync::{say, sync_spec};
use crate::swarm::{keys, peer, spec};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeSet;
use trestle_protocol::handshake::{Hello, Mismatch, Welcome};
use trestle_protocol::ids::{Digest, PeerId, ReplicaId, SeatId, WeightVersion};
use trestle_protocol::message::{
    HELD_MAX, Join, LEASE_MICROBATCHES_MAX, Message, Outcome, Presence, Refusal, StepReport, Tensor, Text,
};
use trestle_protocol::plan::{Member, Place, Plan, Turns};
use trestle_protocol::receipt::{Receipt, ReceiptError, Statement};
use trestle_protocol::spec::{
    BoundaryForm, BoundarySpec, CheckpointSpec, DataSource, DataSpec, Decay, Difference, Dtype,
    EvaluationSpec, ModelSpec, OptimizerKind, OptimizerSpec, PipelineSpec, Retain, RunSpec, Schedule,
    Tokenizer, TrainingSpec,
};
use trestle_protocol::time::Span;

/// The run that hostile messages are about: its peers' keys, coordinator first, and the size of its tensors.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) keys: &'static [SigningKey],
    pub(crate) peers: Vec<PeerId>,
    pub(crate) run: Digest,
    pub(crate) boundary_bytes: usize,
}

impl World {
    /// Makes the world of the small swarm.
    pub(crate) fn new(spec: &RunSpec) -> Self {
        let peers = (0..keys().len()).map(peer).collect();
        Self { keys: keys(), peers, run: spec.digest(), boundary_bytes: spec.boundary_bytes() }
    }

    fn peer_ids(&self) -> BoxedStrategy<PeerId> {
        prop_oneof![8 => prop::sample::select(self.peers.clone()), 1 => any::<[u8; 32]>().prop_map(PeerId)]
            .boxed()
    }

    /// Any message.
    pub(crate) fn message(&self) -> BoxedStrategy<Message> {
        prop_oneof![
            self.of_coordinators(),
            self.of_members(),
            self.tensor().prop_map(Message::Activation),
            self.tensor().prop_map(Message::Gradient),
            microbatch().prop_map(|microbatch| Message::Diverted { microbatch }),
            state().prop_map(Message::State),
            say().prop_map(Message::Sync),
            self.refusal().prop_map(Message::Refused),
        ]
        .boxed()
    }

    /// What a coordinator says.
    pub(crate) fn of_coordinators(&self) -> BoxedStrategy<Message> {
        let microbatches =
            prop_oneof![8 => vec(microbatch(), 0..6), 1 => vec(microbatch(), LEASE_MICROBATCHES_MAX + 1)];
        prop_oneof![
            (any::<u32>(), wait()).prop_map(|(ahead, why)| Message::Waiting { ahead, why }),
            (self.plan(), start(), frontier()).prop_map(|(plan, start, frontier)| Message::Placed {
                plan,
                start,
                frontier
            }),
            (self.plan(), step())
                .prop_map(|(plan, disturbed_below)| Message::Roster { plan, disturbed_below }),
            (option::of(outer()), step(), vec(trained(), 0..4))
                .prop_map(|(outer, step, trained)| Message::Enter { outer, step, trained }),
            vec(self.peer_ids(), 0..5).prop_map(Message::Suspects),
            frontier().prop_map(Message::Frontier),
            option::of(outer()).prop_map(|outer| Message::Close { outer }),
            removal().prop_map(|why| Message::Removed { why }),
            (microbatches, attempt(), needs(), span()).prop_map(
                |(microbatches, attempt, needs, expires_in)| {
                    Message::Lease { microbatches, attempt, needs, expires_in }
                }
            ),
            step().prop_map(|border| Message::Drain { border }),
            plan_number().prop_map(|plan| Message::Sign { plan }),
            outcome().prop_map(|outcome| Message::Finish { outcome }),
        ]
        .boxed()
    }

    /// What a member tells its coordinator.
    fn of_members(&self) -> BoxedStrategy<Message> {
        prop_oneof![
            join().prop_map(Message::Join),
            (plan_number(), option::of(outer())).prop_map(|(plan, holds)| Message::Ready { plan, holds }),
            Just(Message::Beat),
            (plan_number(), prop_oneof![Just(Presence::Works), Just(Presence::Waits)])
                .prop_map(|(plan, standing)| Message::Present { plan, standing }),
            span().prop_map(|notice| Message::Leaving { notice }),
            plan_number().prop_map(|plan| Message::Signed { plan }),
            (microbatch(), attempt(), any::<f32>()).prop_map(|(microbatch, attempt, loss)| Message::Loss {
                microbatch,
                attempt,
                loss
            }),
            (microbatch(), attempt(), number(8), option::of(step())).prop_map(
                |(microbatch, attempt, seat, trained)| Message::Settled {
                    microbatch,
                    attempt,
                    seat: SeatId(seat as u32),
                    trained
                }
            ),
            vec(self.receipt(), 0..3).prop_map(Message::Receipts),
            report().prop_map(Message::Stepped),
            (step(), digest(), span()).prop_map(|(step, digest, took)| Message::Checkpointed {
                step,
                digest,
                took
            }),
            (self.peer_ids(), ".{0,30}").prop_map(|(peer, reason)| Message::PeerLost { peer, reason }),
            ".{0,30}".prop_map(|reason| Message::Failed { reason }),
        ]
        .boxed()
    }

    fn tensor(&self) -> BoxedStrategy<Tensor> {
        let right = self.boundary_bytes;
        let sizes = prop_oneof![6 => Just(right), 1 => Just(0), 1 => Just(right + 1), 1 => Just(right / 2)];
        (microbatch(), attempt(), stage(), number(8), number(4), needs(), option::of(step()), sizes)
            .prop_map(|(microbatch, attempt, stage, seat, version, needs, trained, size)| Tensor {
                microbatch,
                attempt,
                stage,
                seat: SeatId(seat as u32),
                version: WeightVersion(version),
                needs,
                trained,
                payload: Bytes::from(vec![0; size]),
            })
            .boxed()
    }

    /// Receipts that are truly signed by one of the peers, and ones that are not.
    fn receipt(&self) -> BoxedStrategy<Receipt> {
        let world = self.clone();
        let run = prop_oneof![6 => Just(self.run), 1 => digest()];
        let signer = 0..self.keys.len();
        let statement = (run, stage(), self.peer_ids(), seat(), vec(trained(), 0..5));
        let signed = (statement.clone(), signer).prop_map(
            move |((run, stage, worker, seat, microbatches), signer)| {
                let by = world.peers[signer];
                let statement = Statement { run, stage, worker, seat, by, microbatches };
                Receipt::sign(statement, &world.keys[signer])
            },
        );
        let forged = (statement, self.peer_ids(), vec(any::<u8>(), 0..70)).prop_map(
            |((run, stage, worker, seat, microbatches), by, signature)| {
                forge(Statement { run, stage, worker, seat, by, microbatches }, signature)
            },
        );
        prop_oneof![3 => signed, 1 => forged].boxed()
    }

    fn plan(&self) -> BoxedStrategy<Plan> {
        let place = (stage(), any::<u16>())
            .prop_map(|(stage, replica)| Place { stage, replica: ReplicaId(replica % 3) });
        let member = (self.peer_ids(), place, small_bytes(), seat(), step(), option::of(step())).prop_map(
            |(peer, place, address, seat, enters, until)| Member {
                peer,
                place,
                address,
                seat,
                enters,
                until,
            },
        );
        let turns = (stage(), step(), vec(replica(), 0..5)).prop_map(|(stage, from, pattern)| Turns {
            stage,
            from,
            pattern,
        });
        (plan_number(), self.peer_ids(), vec(member, 0..6), vec(turns, 0..3))
            .prop_map(|(number, coordinator, members, turns)| Plan { number, coordinator, members, turns })
            .boxed()
    }

    /// Any refusal.
    pub(crate) fn refusal(&self) -> BoxedStrategy<Refusal> {
        let peers = self.peer_ids();
        prop_oneof![
            sync::refusal(),
            Just(Refusal::PlanFull),
            (stage(), any::<u16>()).prop_map(|(stage, stages)| Refusal::NoSuchStage { stage, stages }),
            stage().prop_map(|stage| Refusal::StageEmpty { stage }),
            (step(), step()).prop_map(|(step, steps)| Refusal::StepBeyond { step, steps }),
            peers.clone().prop_map(|peer| Refusal::NotMember { peer }),
            peers.prop_map(|peer| Refusal::NotYours { peer }),
            (microbatch(), stage(), stage()).prop_map(|(microbatch, got, held)| Refusal::WrongStage {
                microbatch,
                got,
                held
            }),
            (microbatch(), any::<u64>(), any::<u64>())
                .prop_map(|(microbatch, got, want)| Refusal::TensorLength { microbatch, got, want }),
            microbatch().prop_map(|microbatch| Refusal::NotDue { microbatch }),
            microbatch().prop_map(|microbatch| Refusal::NotOwed { microbatch }),
            microbatch().prop_map(|microbatch| Refusal::Busy { microbatch }),
            microbatch().prop_map(|microbatch| Refusal::Leaves { microbatch }),
            outer().prop_map(|outer| Refusal::NoState { outer }),
            (".{0,20}", any::<u64>(), any::<u64>()).prop_map(|(field, got, max)| Refusal::TooMany {
                field,
                got,
                max
            }),
            microbatch().prop_map(|microbatch| Refusal::LossNotFinite { microbatch }),
            prop::sample::select(RECEIPT_ERRORS.to_vec()).prop_map(Refusal::Receipt),
            (plan_number(), plan_number()).prop_map(|(got, current)| Refusal::StalePlan { got, current }),
            (".{0,20}", any::<u64>(), any::<u64>()).prop_map(|(field, got, max)| Refusal::FieldLength {
                field,
                got,
                max
            }),
        ]
        .boxed()
    }
}

const RECEIPT_ERRORS: [ReceiptError; 8] = [
    ReceiptError::OldSeat,
    ReceiptError::Signature,
    ReceiptError::Run,
    ReceiptError::OwnWork,
    ReceiptError::NotReceiver,
    ReceiptError::NotHolder,
    ReceiptError::NeverLeased,
    ReceiptError::TooMany,
];

/// Makes a receipt with a signature of our choice, as only the wire can.
fn forge(statement: Statement, signature: Vec<u8>) -> Receipt {
    let bytes = postcard::to_allocvec(&(statement, signature)).expect("plain fields serialise");
    postcard::from_bytes(&bytes).expect("a receipt is a statement and a signature")
}

fn join() -> BoxedStrategy<Join> {
    let held = prop_oneof![8 => vec(held(), 0..4), 1 => vec(held(), HELD_MAX..HELD_MAX + 2)];
    let text = prop_oneof![Just(Text::Here), Just(Text::Missing)];
    (small_bytes(), option::of(stage()), ".{0,30}", any::<u64>(), text, held)
        .prop_map(|(address, stage, device, peak_flops, text, held)| Join {
            address,
            stage,
            device,
            peak_flops,
            text,
            held,
        })
        .boxed()
}

fn report() -> BoxedStrategy<StepReport> {
    (step(), any::<(f64, f64)>(), any::<u32>(), any::<[u64; 7]>())
        .prop_map(
            |(
                step,
                (gradient_norm, learning_rate),
                microbatches,
                [compute, serialise, sync, lost, wall, wire_bytes, staleness],
            )| {
                StepReport {
                    step,
                    gradient_norm,
                    learning_rate,
                    microbatches,
                    compute: Span(compute),
                    serialise: Span(serialise),
                    sync: Span(sync),
                    lost: Span(lost),
                    wall: Span(wall),
                    wire_bytes,
                    staleness,
                }
            },
        )
        .boxed()
}

fn outcome() -> BoxedStrategy<Outcome> {
    prop_oneof![
        Just(Outcome::Done),
        Just(Outcome::Left),
        step().prop_map(|step| Outcome::Stopped { step }),
        ".{0,30}".prop_map(|reason| Outcome::Failed { reason }),
    ]
    .boxed()
}

/// Any run spec, sensible or not.
pub(crate) fn run_spec() -> BoxedStrategy<RunSpec> {
    let model = (any::<[u32; 7]>(), any::<(f64, f64)>()).prop_map(|(sizes, (rope_theta, norm_epsilon))| {
        let [vocabulary, width, layers, heads, kv_heads, ffn_width, sequence_len] = sizes;
        ModelSpec {
            vocabulary,
            width,
            layers,
            heads,
            kv_heads,
            ffn_width,
            sequence_len,
            rope_theta,
            norm_epsilon,
        }
    });
    let forms = prop::sample::select(vec![BoundaryForm::None, BoundaryForm::Resbm, BoundaryForm::Fused]);
    let boundary = (forms, any::<(u32, u32)>(), dtype())
        .prop_map(|(form, (width, encoder_width), wire)| BoundarySpec { form, width, encoder_width, wire });
    let data = (
        prop_oneof![
            Just(DataSource::Local),
            any::<u64>().prop_map(|tokens| DataSource::Generated { tokens })
        ],
        any::<u32>(),
        digest(),
    )
        .prop_map(|(source, held_out_permille, manifest)| DataSpec {
            source,
            tokenizer: Tokenizer::File,
            held_out_permille,
            manifest,
        });
    (
        ".{0,20}",
        any::<u64>(),
        model,
        boundary,
        pipeline(),
        training(),
        optimizer(),
        data,
        sync_spec(),
        any::<(u64, u32, u64)>(),
    )
        .prop_map(|(name, seed, model, boundary, pipeline, training, optimizer, data, sync, rest)| {
            let (every, microbatches, checkpoint_every) = rest;
            RunSpec {
                name,
                seed,
                model,
                boundary,
                pipeline,
                training,
                optimizer,
                sync,
                data,
                evaluation: EvaluationSpec { every, microbatches },
                checkpoint: CheckpointSpec { every: checkpoint_every },
            }
        })
        .boxed()
}

fn dtype() -> BoxedStrategy<Dtype> {
    prop::sample::select(vec![Dtype::F32, Dtype::Bf16]).boxed()
}

fn pipeline() -> BoxedStrategy<PipelineSpec> {
    let schedule = prop_oneof![
        Just(Schedule::Flush),
        any::<u32>().prop_map(|staleness_max| Schedule::Async { staleness_max })
    ];
    let retain = prop::sample::select(vec![Retain::Graph, Retain::Input]);
    (vec(any::<u32>(), 0..5), any::<u16>(), schedule, any::<[u32; 3]>(), retain, dtype())
        .prop_map(|(stage_layers, replicas, schedule, [size, per_step, in_flight_max], retain, compute)| {
            PipelineSpec {
                stage_layers,
                replicas,
                schedule,
                microbatch_size: size,
                microbatches_per_step: per_step,
                in_flight_max,
                retain,
                compute,
            }
        })
        .boxed()
}

fn training() -> BoxedStrategy<TrainingSpec> {
    (any::<(u64, u64)>(), prop::sample::select(vec![Decay::Constant, Decay::Cosine]), any::<(f64, f64)>())
        .prop_map(|((steps, warmup_steps), decay, (final_ratio, gradient_clip))| TrainingSpec {
            steps,
            warmup_steps,
            decay,
            final_ratio,
            gradient_clip,
        })
        .boxed()
}

fn optimizer() -> BoxedStrategy<OptimizerSpec> {
    let kind = prop::sample::select(vec![OptimizerKind::AdamW, OptimizerKind::Muon]);
    (kind, any::<[f64; 7]>())
        .prop_map(
            |(
                kind,
                [learning_rate, beta1, beta2, epsilon, weight_decay, muon_learning_rate, muon_momentum],
            )| {
                OptimizerSpec {
                    kind,
                    learning_rate,
                    beta1,
                    beta2,
                    epsilon,
                    weight_decay,
                    muon_learning_rate,
                    muon_momentum,
                }
            },
        )
        .boxed()
}

/// Any first word.
pub(crate) fn hello() -> BoxedStrategy<Hello> {
    (any::<u16>(), digest(), option::of(run_spec().prop_map(Box::new)))
        .prop_map(|(wire_version, run_digest, spec)| Hello { wire_version, run_digest, spec })
        .boxed()
}

/// Any answer to it.
pub(crate) fn welcome() -> BoxedStrategy<Welcome> {
    let difference = (".{0,20}", ".{0,20}", ".{0,20}")
        .prop_map(|(field, ours, theirs)| Mismatch::Field(Difference { field, ours, theirs }));
    prop_oneof![
        option::of(run_spec().prop_map(Box::new)).prop_map(|spec| Welcome::Accepted { spec }),
        any::<(u16, u16)>()
            .prop_map(|(ours, theirs)| Welcome::Refused(Mismatch::WireVersion { ours, theirs })),
        difference.prop_map(Welcome::Refused),
        (digest(), digest()).prop_map(|(ours, theirs)| Welcome::Refused(Mismatch::Run { ours, theirs })),
        Just(Welcome::Refused(Mismatch::NoRun)),
    ]
    .boxed()
}

/// Draws until nothing new comes, and counts the variants.
fn variants<T: std::fmt::Debug>(strategy: &BoxedStrategy<T>, place_of: fn(&T) -> usize) -> BTreeSet<usize> {
    let mut runner = TestRunner::deterministic();
    let mut draw = || strategy.new_tree(&mut runner).expect("the strategy draws").current();
    (0..5_000).map(|_| place_of(&draw())).collect()
}

#[test]
fn every_variant_of_what_can_be_said_is_drawn() {
    let world = World::new(&spec(Schedule::Flush));
    assert_eq!(variants(&state(), churn::place_of), (0..churn::STATES).collect());
    assert_eq!(variants(&say(), sync::place_of), (0..sync::SAYS).collect());
    assert_eq!(variants(&world.message(), message_place), (0..MESSAGES).collect());
    assert_eq!(variants(&world.refusal(), refusal_place), (0..REFUSALS).collect());
}

const MESSAGES: usize = 31;

fn message_place(message: &Message) -> usize {
    match message {
        Message::Join(_) => 0,
        Message::Placed { .. } => 1,
        Message::Ready { .. } => 2,
        Message::Lease { .. } => 3,
        Message::Activation(_) => 4,
        Message::Gradient(_) => 5,
        Message::Loss { .. } => 6,
        Message::Settled { .. } => 7,
        Message::Receipts(_) => 8,
        Message::Sync(_) => 9,
        Message::Stepped(_) => 10,
        Message::Checkpointed { .. } => 11,
        Message::Drain { .. } => 12,
        Message::Finish { .. } => 13,
        Message::PeerLost { .. } => 14,
        Message::Failed { .. } => 15,
        Message::Waiting { .. } => 16,
        Message::Roster { .. } => 17,
        Message::Enter { .. } => 18,
        Message::Beat => 19,
        Message::Present { .. } => 20,
        Message::Suspects(_) => 21,
        Message::Frontier(_) => 22,
        Message::Close { .. } => 23,
        Message::Leaving { .. } => 24,
        Message::Removed { .. } => 25,
        Message::Diverted { .. } => 26,
        Message::State(_) => 27,
        Message::Sign { .. } => 28,
        Message::Signed { .. } => 29,
        Message::Refused(_) => MESSAGES - 1,
    }
}

const REFUSALS: usize = 24;

fn refusal_place(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::PlanFull => 0,
        Refusal::NoSuchStage { .. } => 1,
        Refusal::StageEmpty { .. } => 2,
        Refusal::StepBeyond { .. } => 3,
        Refusal::NotMember { .. } => 4,
        Refusal::NotYours { .. } => 5,
        Refusal::WrongStage { .. } => 6,
        Refusal::TensorLength { .. } => 7,
        Refusal::NotDue { .. } => 8,
        Refusal::NotOwed { .. } => 9,
        Refusal::Busy { .. } => 10,
        Refusal::LossNotFinite { .. } => 11,
        Refusal::Receipt(_) => 12,
        Refusal::StalePlan { .. } => 13,
        Refusal::NotAtBorder { .. } => 14,
        Refusal::OuterAhead { .. } => 15,
        Refusal::BeginUnfit { .. } => 16,
        Refusal::OfferUnfit { .. } => 17,
        Refusal::NotHeld { .. } => 18,
        Refusal::ChunkFalse { .. } => 19,
        Refusal::Leaves { .. } => 20,
        Refusal::NoState { .. } => 21,
        Refusal::TooMany { .. } => 22,
        Refusal::FieldLength { .. } => REFUSALS - 1,
    }
}
