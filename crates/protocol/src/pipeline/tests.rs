//! Tables for the queue.

mod agreeing;
mod churn;

use super::*;
use crate::ids::SeatId;
use crate::spec::sync::SyncSpec;
use crate::spec::tests::spec;
use alloc::vec;
use alloc::vec::Vec;

const BEFORE: Asker = Asker::Peer(PeerId([1; 32]));
const ALSO_BEFORE: Asker = Asker::Peer(PeerId([3; 32]));
const NEXT: PeerId = PeerId([2; 32]);

fn answer(from: PeerId, trained: Option<InnerStep>) -> Answer {
    Answer { from, seat: SeatId(4), trained }
}
const OTHER_NEXT: PeerId = PeerId([4; 32]);

/// The stage of the queues here, which is neither the first nor the last.
const STAGE: StageId = StageId(1);

fn bytes() -> Option<Bytes> {
    Some(Bytes::from_static(b"input"))
}

fn train(index: u64) -> MicrobatchId {
    MicrobatchId::train(index)
}

fn only(stages: &[u16]) -> Needs {
    Needs::Only(stages.iter().copied().map(StageId).collect())
}

fn settled(train_below: u64) -> Frontier {
    Frontier { train_below, held_out_below: 0 }
}

/// A queue of the only replica, of a run that is spoilt for a test.
fn queue(spoil: impl FnOnce(&mut RunSpec)) -> Pipeline {
    let mut spec = spec();
    spoil(&mut spec);
    Pipeline::new(&spec, InnerStep(0), STAGE, ReplicaId(0))
}

/// A queue of the first of two replicas, which agree after each two of `steps`; even indices fall to it.
fn replicated(steps: u64) -> Pipeline {
    queue(|spec| {
        spec.pipeline.replicas = 2;
        spec.sync = SyncSpec::mean(2);
        spec.training.steps = steps;
        spec.evaluation.every = 0;
        spec.checkpoint.every = 0;
    })
}

fn offer(pipeline: &mut Pipeline, microbatch: MicrobatchId) -> Result<Offered, Refusal> {
    pipeline.offer(microbatch, Attempt(0), Needs::All, BEFORE, bytes())
}

/// Offers it again, for some stages.
fn redo(pipeline: &mut Pipeline, index: u64, needs: Needs) -> Result<Offered, Refusal> {
    pipeline.offer(train(index), Attempt(1), needs, BEFORE, bytes())
}

/// Runs the next computation, which has to be a forward, and sends its output on.
fn forward(pipeline: &mut Pipeline) -> Option<u64> {
    let task = pipeline.start()?;
    let Task::Forward { microbatch, .. } = task else { panic!("{task:?} is not a forward") };
    pipeline.forwarded(microbatch, bytes());
    pipeline.resend(microbatch.index, NEXT, Time(0));
    Some(microbatch.index)
}

/// Runs every forward that may start, and returns their indices; of a queue that spins, the first hundred.
fn forwards(pipeline: &mut Pipeline) -> Vec<u64> {
    core::iter::from_fn(|| forward(pipeline)).take(100).collect()
}

fn gradient(pipeline: &mut Pipeline, index: u64) {
    let taken = pipeline.offer_gradient(train(index), answer(NEXT, Some(InnerStep(0))), Bytes::new());
    assert_eq!(taken, Ok(Offered::Queued));
}

/// Runs the next computation, which has to be a backward.
fn back(pipeline: &mut Pipeline) -> Option<(u64, Duty, Returned)> {
    let task = pipeline.start()?;
    let Task::Backward { microbatch, input, duty, .. } = task else { panic!("{task:?} is not a backward") };
    assert_eq!(input, bytes(), "the boundary input is kept until the backward");
    Some((microbatch.index, duty, pipeline.backwarded(microbatch)))
}

fn backward(pipeline: &mut Pipeline) -> Option<u64> {
    back(pipeline).map(|(index, ..)| index)
}

/// Has a microbatch go all the way, from here to the last stage and back.
fn finish(pipeline: &mut Pipeline, index: u64) -> (Duty, Returned) {
    assert_eq!(forward(pipeline), Some(index));
    gradient(pipeline, index);
    let (done, duty, returned) = back(pipeline).expect("its backward may start");
    assert_eq!(done, index);
    (duty, returned)
}

/// Takes the optimizer step that is due, and returns how many microbatches are in it.
fn step(pipeline: &mut Pipeline, step: u64) -> u32 {
    let task = pipeline.start();
    let Some(Task::Step { step: of, microbatches }) = task else { panic!("{task:?} is not a step") };
    assert_eq!((of, pipeline.stepped()), (InnerStep(step), (InnerStep(step), microbatches)));
    microbatches
}

#[test]
fn backward_goes_before_forward_and_in_order_under_flush() {
    let mut pipeline = queue(|_| {});
    (0..3).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
    assert_eq!(forwards(&mut pipeline), [0, 1, 2]);
    offer(&mut pipeline, train(3)).unwrap();
    gradient(&mut pipeline, 1);
    assert_eq!(pipeline.start(), None, "1 waits for 0, and 3 for room");
    gradient(&mut pipeline, 0);
    assert_eq!([backward(&mut pipeline), backward(&mut pipeline)], [Some(0), Some(1)]);
    assert_eq!(forwards(&mut pipeline), [3]);
}

#[test]
fn async_takes_gradients_as_they_come_and_does_not_wait_for_the_step() {
    let mut pipeline = queue(|spec| spec.pipeline.schedule = Schedule::Async { staleness_max: 1 });
    (0..5).for_each(|i| drop(offer(&mut pipeline, train(i))));
    assert_eq!(forwards(&mut pipeline), [0, 1, 2]);
    gradient(&mut pipeline, 2);
    assert_eq!(backward(&mut pipeline), Some(2));
    gradient(&mut pipeline, 0);
    gradient(&mut pipeline, 1);
    assert_eq!([backward(&mut pipeline), backward(&mut pipeline)], [Some(0), Some(1)]);
    assert_eq!(forwards(&mut pipeline), [3, 4], "4 belongs to the next step");
}

#[test]
fn a_step_waits_for_its_gradients_and_for_the_evaluation_at_its_border() {
    let mut spec = spec();
    spec.evaluation.every = 1;
    let mut pipeline = Pipeline::new(&spec, InnerStep(1), STAGE, ReplicaId(0));
    for index in 4..8 {
        offer(&mut pipeline, train(index)).unwrap();
        finish(&mut pipeline, index);
    }
    assert_eq!(pipeline.start(), None, "the evaluation at border 1 is not done");
    for index in 0..4 {
        offer(&mut pipeline, MicrobatchId::held_out(index)).unwrap();
    }
    assert_eq!([forward(&mut pipeline), forward(&mut pipeline)], [Some(0), Some(1)]);
    assert_eq!(step(&mut pipeline, 1), 4);
    assert_eq!(pipeline.start(), None, "nobody has said that the weights are final");
    pipeline.close(None);
    assert_eq!(pipeline.start(), Some(Task::Save { border: InnerStep(2) }));
    pipeline.saved();
    assert_eq!(forwards(&mut pipeline), [2, 3], "the evaluation at the end");
}

#[test]
fn an_evaluation_that_others_did_is_not_waited_for() {
    let mut spec = spec();
    spec.evaluation.every = 1;
    let at_border = || {
        let mut pipeline = Pipeline::new(&spec, InnerStep(1), STAGE, ReplicaId(0));
        for index in 4..8 {
            offer(&mut pipeline, train(index)).unwrap();
            finish(&mut pipeline, index);
        }
        pipeline
    };
    let mut diverted = at_border();
    diverted.diverted(MicrobatchId::held_out(0));
    assert_eq!(diverted.start(), None, "half of it");
    diverted.diverted(MicrobatchId::held_out(1));
    assert_eq!(step(&mut diverted, 1), 4);
    let mut told = at_border();
    told.reached(Frontier { train_below: 4, held_out_below: 2 });
    assert_eq!(step(&mut told, 1), 4);
}

#[test]
fn what_is_known_is_merged_and_what_is_not_owed_is_refused() {
    let mut pipeline = queue(|_| {});
    offer(&mut pipeline, train(0)).unwrap();
    assert_eq!(offer(&mut pipeline, train(0)), Ok(Offered::Merged));
    let answered = |pipeline: &mut Pipeline, microbatch, from| {
        pipeline.offer_gradient(microbatch, answer(from, None), Bytes::new())
    };
    let not_owed = Err(Refusal::NotOwed { microbatch: train(0) });
    assert_eq!(answered(&mut pipeline, train(0), NEXT), not_owed);
    forwards(&mut pipeline);
    assert_eq!(answered(&mut pipeline, train(0), PeerId([7; 32])), not_owed);
    let held_out = MicrobatchId::held_out(0);
    let refused = Err(Refusal::NotOwed { microbatch: held_out });
    assert_eq!(answered(&mut pipeline, held_out, NEXT), refused);
    gradient(&mut pipeline, 0);
    assert_eq!(answered(&mut pipeline, train(0), NEXT), Ok(Offered::Duplicate));
    let (_, _, returned) = back(&mut pipeline).unwrap();
    assert_eq!(returned.askers, [BEFORE], "who asks twice is answered once");
    assert_eq!(answered(&mut pipeline, train(0), NEXT), Ok(Offered::Duplicate), "done is done");
    assert_eq!(pipeline.kept_bytes(), 0);
    let beyond = train(1_000);
    assert_eq!(offer(&mut pipeline, beyond), Err(Refusal::NotDue { microbatch: beyond }));
}

#[test]
fn the_queue_is_bounded() {
    let mut pipeline = queue(|spec| spec.training.steps = 1_000);
    let taken = (0..100).filter(|i| offer(&mut pipeline, train(*i)).is_ok()).count();
    assert_eq!(taken, 3 + 2 * (3 + 4));
    assert_eq!(offer(&mut pipeline, train(99)), Err(Refusal::Busy { microbatch: train(99) }));
    assert_eq!(offer(&mut pipeline, train(0)), Ok(Offered::Merged), "what is in it takes no more room");
    assert_eq!(forwards(&mut pipeline).len(), 3, "no more in flight than the run file allows");
    assert_eq!(pipeline.kept_bytes(), 3 * 2 * 5, "inputs and outputs");
}

#[test]
fn earlier_work_takes_the_room_of_the_last_that_waits() {
    let mut pipeline = queue(|spec| spec.training.steps = 1_000);
    let taken = (1..100).filter(|i| offer(&mut pipeline, train(*i)).is_ok()).count() as u64;
    assert_eq!(pipeline.take_displaced(), []);
    assert_eq!(offer(&mut pipeline, train(0)), Ok(Offered::Queued), "without it nothing would go on");
    assert_eq!(pipeline.take_displaced(), [(train(taken), BEFORE)], "and who asked for the last hears it");
    assert_eq!(pipeline.take_displaced(), [], "once");
    assert_eq!(offer(&mut pipeline, train(taken)), Err(Refusal::Busy { microbatch: train(taken) }));
}

#[test]
fn what_is_owed_is_known_with_who_owes_it_and_since_when() {
    let mut pipeline = queue(|_| {});
    (0..3).for_each(|i| assert_eq!(offer(&mut pipeline, train(i)), Ok(Offered::Queued)));
    for index in 0..3 {
        assert!(pipeline.start().is_some());
        assert_eq!(pipeline.forwarded(train(index), bytes()).needs, Needs::All);
    }
    let owed = |pipeline: &Pipeline| {
        pipeline.unanswered().map(|(index, kept)| (index, kept.waits_for())).collect::<Vec<_>>()
    };
    assert_eq!(owed(&pipeline), [(0, None), (1, None), (2, None)], "nobody was asked yet");
    let sent = Sent { attempt: Attempt(0), needs: Needs::All };
    assert_eq!(pipeline.resend(0, NEXT, Time(5)), Some((sent.clone(), bytes().unwrap())));
    assert_eq!(pipeline.resend(0, OTHER_NEXT, Time(7)), Some((sent, bytes().unwrap())));
    assert_eq!(pipeline.resend(9, NEXT, Time(7)), None);
    assert_eq!(pipeline.waited_for(0, NEXT), Some(Time(5)));
    pipeline.resend(1, NEXT, Time(8));
    pipeline.refused(1, NEXT);
    assert_eq!(owed(&pipeline), [(0, Some((OTHER_NEXT, Time(7)))), (1, None), (2, None)]);
    let refused_by =
        |pipeline: &Pipeline| pipeline.unanswered().nth(1).map(|(_, kept)| kept.refused_by.clone());
    assert_eq!(refused_by(&pipeline), Some(vec![NEXT]));
    pipeline.forgive();
    assert_eq!(refused_by(&pipeline), Some(vec![]));
    let late = pipeline.offer_gradient(train(0), answer(NEXT, None), Bytes::new());
    assert_eq!(late, Ok(Offered::Queued), "the first who answers is heard, if it was asked at all");
    assert_eq!(owed(&pipeline), [(1, None), (2, None)]);
    assert_eq!(back(&mut pipeline).unwrap().2.answer, Some(answer(NEXT, None)));
}

#[test]
fn the_last_stage_owes_itself_the_backward() {
    let mut pipeline = Pipeline::new(&spec(), InnerStep(0), StageId(2), ReplicaId(0));
    offer(&mut pipeline, train(0)).unwrap();
    assert!(matches!(pipeline.start(), Some(Task::Forward { .. })));
    pipeline.forwarded(train(0), None);
    assert_eq!(pipeline.unanswered().count(), 0);
    let (_, _, returned) = back(&mut pipeline).unwrap();
    assert_eq!((returned.answer, returned.trained), (None, Some(InnerStep(0))));
}

#[test]
fn a_queue_that_stands_at_the_border_of_a_stop_saves_there() {
    let mut pipeline = queue(|spec| spec.checkpoint.every = 0);
    pipeline.reached(settled(4));
    assert_eq!(step(&mut pipeline, 0), 0);
    pipeline.drain(InnerStep(1));
    assert_eq!(pipeline.start(), Some(Task::Save { border: InnerStep(1) }));
    let mut before = queue(|spec| spec.checkpoint.every = 0);
    before.drain(InnerStep(1));
    before.reached(settled(4));
    assert_eq!(step(&mut before, 0), 0);
    assert_eq!(before.start(), Some(Task::Save { border: InnerStep(1) }));
}
