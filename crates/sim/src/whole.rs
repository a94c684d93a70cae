//! The whole model in one process: what a pipeline must equal.
//!
//! Owns the plain loop of training, step by step, without peers, queues or time. Knows the agenda, since which
//! microbatches make a step and an evaluation is part of the run.

use crate::compute::Fault;
use crate::losses::Losses;
use crate::real::{World, mode};
use trestle_model::device::DeviceKind;
use trestle_model::engine::Engine;
use trestle_model::input::{Duty, StageInput, StageOutput};
use trestle_protocol::agenda::Agenda;
use trestle_protocol::ids::{InnerStep, MicrobatchId};
use trestle_settings::model::engine_config;

/// Trains a run in one process and returns its losses.
///
/// # Errors
/// The model or the data fails.
pub fn train_whole(world: &World) -> Result<Losses, Fault> {
    let spec = world.spec();
    let agenda = Agenda::new(spec);
    let words = |error: &dyn std::error::Error| Fault(error.to_string());
    let mut engine = Engine::new(engine_config(spec, 0..usize::from(spec.stages()), DeviceKind::Cpu))
        .map_err(|error| words(&error))?;
    let mut losses = Losses::default();
    for step in (0..=spec.training.steps).map(InnerStep) {
        let mut held_out = Vec::new();
        for index in agenda.evaluation_at(step) {
            held_out.push(forward(world, &mut engine, &agenda, MicrobatchId::held_out(index))?);
        }
        if !held_out.is_empty() {
            losses.evaluations.insert(step.0, mean(&held_out));
        }
        let mut trained = Vec::new();
        for index in agenda.training_of(step) {
            let microbatch = MicrobatchId::train(index);
            trained.push(forward(world, &mut engine, &agenda, microbatch)?);
            let text = world.text(microbatch.split, agenda.data_index(microbatch))?;
            let input = StageInput::Tokens(&text.inputs);
            engine
                .backward(index, input, Some(&text.targets), None, Duty::Train)
                .map_err(|error| words(&error))?;
        }
        if !trained.is_empty() {
            engine.step(trained.len() as u32).map_err(|error| words(&error))?;
            losses.steps.insert(step.0, mean(&trained));
        }
    }
    Ok(losses)
}

fn forward(
    world: &World,
    engine: &mut Engine,
    agenda: &Agenda,
    microbatch: MicrobatchId,
) -> Result<f32, Fault> {
    let text = world.text(microbatch.split, agenda.data_index(microbatch))?;
    let input = StageInput::Tokens(&text.inputs);
    let output = engine.forward(microbatch.index, input, Some(&text.targets), mode(microbatch));
    match output.map_err(|error| Fault(error.to_string()))? {
        StageOutput::Loss(loss) => Ok(loss),
        StageOutput::Boundary(_) => Err(Fault("a whole model gave a boundary in place of a loss".into())),
    }
}

/// Sums in the order of the microbatches, as the coordinator does.
fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64
}
