//! Owns which rule updates which parameter, and the state that makes an update depend on those before it. It may not know
//! how gradients arise, nor the schedule: the caller passes the schedule's factor.

pub(crate) mod adamw;
pub mod config;
pub(crate) mod muon;
pub(crate) mod script;

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::optimizer::adamw::Adamw;
use crate::optimizer::config::{OptimizerConfig, OptimizerKind};
use crate::optimizer::muon::{Muon, batch_len};
use crate::parameter::{Parameter, Role};

/// Name of the saved count of updates.
const UPDATES: &str = "optimizer.updates";

/// Saved names of AdamW's second moments begin so; means of squares, they are never negative.
pub(crate) const SECOND: &str = "adamw.second.";

/// The optimizer of the parameters that one engine holds.
///
/// Every parameter's update depends on its own gradient alone, and matrices are batched only within a stage, so an engine
/// that holds all stages updates each to the same bits as an engine per stage.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    names: Vec<String>,
    shapes: Vec<Vec<i64>>,
    groups: Vec<Group>,
    updates: u64,
}

/// Parameters that one rule updates together.
#[derive(Debug)]
struct Group {
    /// Positions in the list of all parameters.
    members: Vec<usize>,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    Adamw(Adamw),
    Muon(Muon),
}

impl Optimizer {
    /// Makes an optimizer without history for these parameters, on their device.
    ///
    /// # Errors
    /// Settings outside their range; too little memory.
    pub fn new(config: &OptimizerConfig, parameters: &[Parameter]) -> Result<Optimizer, ModelError> {
        config.validate()?;
        let groups = tch::no_grad(|| groups(config, parameters))
            .map_err(|error| error.during("making the optimizer"))?;
        let names = parameters.iter().map(|parameter| parameter.name.clone()).collect();
        let shapes = parameters.iter().map(|parameter| parameter.value.size()).collect();
        Ok(Optimizer { config: config.clone(), names, shapes, groups, updates: 0 })
    }

    /// Updates `values` in place, without autograd. Both lists are f32, in the order of the parameters that
    /// [`Optimizer::new`] was given; `factor` is the schedule's.
    ///
    /// # Errors
    /// A list of another length, or a tensor in it of another shape or number format: then nothing has changed.
    /// libtorch's refusals (memory): then some values may be updated.
    pub fn step(&mut self, values: &[Tensor], gradients: &[Tensor], factor: f64) -> Result<(), ModelError> {
        self.check("values", values)?;
        self.check("gradients", gradients)?;
        // The fused kernel reads and writes memory as it lies; autograd may hand over a transposed view.
        let gradients = gradients.iter().map(Tensor::f_contiguous).collect::<Result<Vec<_>, _>>()?;
        self.updates += 1;
        let (config, updates) = (&self.config, self.updates);
        tch::no_grad(|| {
            self.groups.iter_mut().try_for_each(|Group { members, rule }| {
                let values: Vec<&Tensor> = members.iter().map(|&index| &values[index]).collect();
                let gradients: Vec<&Tensor> = members.iter().map(|&index| &gradients[index]).collect();
                match rule {
                    Rule::Adamw(adamw) => adamw.update(&values, &gradients, config, factor, updates),
                    Rule::Muon(muon) => muon.update(&values, &gradients, config, factor),
                }
            })
        })
        .map_err(|error| ModelError::from(error).during("the optimizer step"))
    }

    /// Returns the learning rate of AdamW under the schedule's factor.
    pub fn learning_rate(&self, factor: f64) -> f64 {
        self.config.learning_rate * factor
    }

    /// Returns how many updates were made.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Returns the bytes of its state.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        self.groups
            .iter()
            .map(|group| match &group.rule {
                Rule::Adamw(adamw) => adamw.first.iter().chain(&adamw.second).map(bytes).sum::<u64>(),
                Rule::Muon(muon) => bytes(&muon.momentum_nrc),
            })
            .sum()
    }

    /// Returns all state by name: `optimizer.updates` (i64), and for each parameter `adamw.first.NAME` and
    /// `adamw.second.NAME`, or `muon.momentum.NAME` (f32, the parameter's shape).
    ///
    /// The tensors share memory with the optimizer: write them out before the next step.
    ///
    /// # Errors
    /// libtorch's refusals.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        let mut state = vec![(UPDATES.to_string(), Tensor::f_from_slice(&[self.updates as i64])?)];
        state.extend(self.moments()?);
        Ok(state)
    }

    /// Takes over what [`Optimizer::state`] returned, perhaps on another device; other tensors in `saved` are ignored.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the count is no count: then nothing has changed.
    pub fn restore(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<(), ModelError> {
        let find =
            |name: &str| saved.get(name).ok_or_else(|| ModelError::StateMissing { name: name.to_string() });
        let slots = self.moments()?;
        for (name, slot) in &slots {
            let (got, expected) = (find(name)?.size(), slot.size());
            if got != expected {
                return Err(ModelError::StateShape { name: name.clone(), got, expected });
            }
        }
        let updates = find(UPDATES)?;
        if updates.size() != [1] {
            return Err(ModelError::StateShape {
                name: UPDATES.into(),
                got: updates.size(),
                expected: vec![1],
            });
        }
        let count = updates.f_to_kind(Kind::Int64)?.f_int64_value(&[0])?;
        self.updates = u64::try_from(count).map_err(|_| ModelError::Setting {
            field: UPDATES,
            value: count as f64,
            expected: "at least 0",
        })?;
        tch::no_grad(|| slots.into_iter().try_for_each(|(name, mut slot)| Ok(slot.f_copy_(find(&name)?)?)))
    }

    /// The fused kernel trusts its caller with all of this.
    fn check(&self, what: &'static str, tensors: &[Tensor]) -> Result<(), ModelError> {
        if tensors.len() != self.names.len() {
            return Err(ModelError::TensorCount { what, got: tensors.len(), expected: self.names.len() });
        }
        for ((tensor, name), shape) in tensors.iter().zip(&self.names).zip(&self.shapes) {
            if tensor.size() != *shape || tensor.f_kind()? != Kind::Float {
                let (name, got, kind) = (name.clone(), tensor.size(), tensor.f_kind()?);
                return Err(ModelError::TensorForm { what, name, got, kind, expected: shape.clone() });
            }
        }
        Ok(())
    }

    /// Takes over a count of updates; AdamW's correction of its moments follows it.
    pub(crate) fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// Returns every tensor of the state by its saved name, sharing memory.
    pub(crate) fn moments(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        let mut slots = Vec::new();
        for Group { members, rule } in &self.groups {
            for (position, &index) in members.iter().enumerate() {
                let name = &self.names[index];
                match rule {
                    Rule::Adamw(adamw) => {
                        slots.push((format!("adamw.first.{name}"), adamw.first[position].shallow_clone()));
                        slots.push((format!("{SECOND}{name}"), adamw.second[position].shallow_clone()));
                    }
                    Rule::Muon(muon) => {
                        slots.push((
                            format!("muon.momentum.{name}"),
                            muon.momentum_nrc.f_get(position as i64)?,
                        ));
                    }
                }
            }
        }
        Ok(slots)
    }
}

/// What decides the group of a parameter; the order of the groups is of no consequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Adamw(Decay),
    Muon { stage: usize, rows: i64, columns: i64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Decay {
    Off,
    On,
}

fn key(kind: OptimizerKind, parameter: &Parameter) -> Key {
    match (kind, parameter.role, parameter.value.size().as_slice()) {
        (OptimizerKind::Muon, Role::Hidden | Role::Boundary, &[rows, columns]) => {
            Key::Muon { stage: parameter.stage, rows, columns }
        }
        (
            OptimizerKind::AdamW | OptimizerKind::Muon,
            Role::Embedding | Role::Head | Role::Hidden | Role::Boundary,
            _,
        ) => Key::Adamw(Decay::On),
        (OptimizerKind::AdamW | OptimizerKind::Muon, Role::Norm, _) => Key::Adamw(Decay::Off),
    }
}

fn groups(config: &OptimizerConfig, parameters: &[Parameter]) -> Result<Vec<Group>, ModelError> {
    let mut keyed: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
    for (index, parameter) in parameters.iter().enumerate() {
        keyed.entry(key(config.kind, parameter)).or_default().push(index);
    }
    let mut groups = Vec::new();
    for (key, members) in keyed {
        let batch = match key {
            Key::Adamw(_) => members.len(),
            Key::Muon { rows, columns, .. } => batch_len(rows * columns),
        };
        for members in members.chunks(batch) {
            let values: Vec<&Tensor> = members.iter().map(|&index| &parameters[index].value).collect();
            let rule = match key {
                Key::Adamw(Decay::Off) => Rule::Adamw(Adamw::new(&values, 0.0)?),
                Key::Adamw(Decay::On) => Rule::Adamw(Adamw::new(&values, config.weight_decay)?),
                Key::Muon { .. } => Rule::Muon(Muon::new(&values)?),
            };
            groups.push(Group { members: members.to_vec(), rule });
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn parameter(name: &str, shape: &[i64], stage: usize, role: Role) -> Parameter {
        let numel: i64 = shape.iter().product();
        let value = (Tensor::arange(numel, (Kind::Float, Device::Cpu)) * 0.731 + name.len() as f64)
            .sin()
            .reshape(shape);
        Parameter { name: name.to_string(), value, stage, role }
    }

    /// Two stages; matrices of one shape in both.
    fn parameters() -> Vec<Parameter> {
        vec![
            parameter("embedding", &[20, 8], 0, Role::Embedding),
            parameter("block.0.norm", &[8], 0, Role::Norm),
            parameter("block.0.query", &[8, 8], 0, Role::Hidden),
            parameter("block.0.up", &[12, 8], 0, Role::Hidden),
            parameter("boundary.0.encoder", &[4, 8], 0, Role::Boundary),
            parameter("boundary.0.decoder", &[8, 4], 1, Role::Boundary),
            parameter("block.1.query", &[8, 8], 1, Role::Hidden),
            parameter("block.1.output", &[8, 8], 1, Role::Hidden),
            parameter("head", &[20, 8], 1, Role::Head),
        ]
    }

    fn config(kind: OptimizerKind) -> OptimizerConfig {
        OptimizerConfig { kind, learning_rate: 1e-2, ..OptimizerConfig::default() }
    }

    fn values(parameters: &[Parameter]) -> Vec<Tensor> {
        parameters.iter().map(|parameter| parameter.value.shallow_clone()).collect()
    }

    fn gradients(parameters: &[Parameter], step: u32) -> Vec<Tensor> {
        parameters.iter().map(|parameter| (&parameter.value * 7.0 + f64::from(step)).cos() * 0.1).collect()
    }

    fn run(optimizer: &mut Optimizer, parameters: &[Parameter], steps: std::ops::Range<u32>) {
        for step in steps {
            let gradients = gradients(parameters, step);
            optimizer.step(&values(parameters), &gradients, 0.5).expect("step");
        }
    }

    fn same(left: &[Parameter], right: &[Parameter]) -> bool {
        left.iter().zip(right).all(|(left, right)| left.value == right.value)
    }

    #[test]
    fn muon_takes_the_matrices_inside_and_adamw_the_rest() {
        let optimizer = Optimizer::new(&config(OptimizerKind::Muon), &parameters()).expect("valid");
        let names: Vec<String> =
            optimizer.state().expect("state").into_iter().map(|(name, _)| name).collect();
        let muon: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("muon.momentum.")).collect();
        let inside = ["block.0.query", "block.0.up", "block.1.output", "block.1.query", "boundary.0.decoder"];
        assert!(inside.iter().all(|name| muon.contains(name)), "{muon:?}");
        assert_eq!(muon.len(), 6);
        let adamw: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("adamw.first.")).collect();
        assert_eq!(adamw, ["block.0.norm", "embedding", "head"]);
        assert_eq!(optimizer.bytes(), 4 * (2 * (8 + 160 + 160) + 3 * 64 + 96 + 32 + 32));
    }

    #[test]
    fn a_batch_of_matrices_lies_within_one_stage_and_shape() {
        let parameters = parameters();
        let optimizer = Optimizer::new(&config(OptimizerKind::Muon), &parameters).expect("valid");
        let batches: Vec<&Group> =
            optimizer.groups.iter().filter(|group| matches!(group.rule, Rule::Muon(_))).collect();
        assert_eq!(batches.len(), 5);
        for Group { members, .. } in batches {
            let first = &parameters[members[0]];
            let alike = |&index: &usize| {
                parameters[index].stage == first.stage && parameters[index].value.size() == first.value.size()
            };
            assert!(members.iter().all(alike), "{members:?}");
        }
    }

    #[test]
    fn each_kind_decays_matrices_but_no_gains() {
        for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
            let parameters = parameters();
            let before: Vec<Tensor> = parameters.iter().map(|parameter| parameter.value.copy()).collect();
            let zeros: Vec<Tensor> = before.iter().map(Tensor::zeros_like).collect();
            let mut optimizer = Optimizer::new(&config(kind), &parameters).expect("valid");
            optimizer.step(&values(&parameters), &zeros, 0.5).expect("step");
            for (parameter, before) in parameters.iter().zip(&before) {
                let kept = if parameter.role == Role::Norm { 1.0 } else { 1.0 - 1e-2 * 0.5 * 0.1 };
                assert!(
                    parameter.value.allclose(&(before * kept), 1e-6, 1e-9, false),
                    "{kind:?} {}",
                    parameter.name
                );
            }
        }
    }

    #[test]
    fn stages_apart_equal_stages_together_bit_for_bit() {
        for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
            let together = parameters();
            run(&mut Optimizer::new(&config(kind), &together).expect("valid"), &together, 0..3);
            let (mut first, mut second) = (parameters(), Vec::new());
            second.extend(first.drain(5..));
            for part in [&first, &second] {
                run(&mut Optimizer::new(&config(kind), part).expect("valid"), part, 0..3);
            }
            first.extend(second);
            assert!(same(&together, &first), "{kind:?}");
            assert!(!same(&together, &parameters()), "{kind:?}");
        }
    }

    #[test]
    fn a_restored_optimizer_goes_on_bit_for_bit() {
        for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
            let parameters = parameters();
            let mut optimizer = Optimizer::new(&config(kind), &parameters).expect("valid");
            run(&mut optimizer, &parameters, 0..3);
            let saved: BTreeMap<String, Tensor> = optimizer
                .state()
                .expect("state")
                .into_iter()
                .map(|(name, tensor)| (name, tensor.copy()))
                .collect();
            let copies: Vec<Parameter> = parameters
                .iter()
                .map(|p| Parameter { name: p.name.clone(), value: p.value.copy(), ..*p })
                .collect();
            let mut restored = Optimizer::new(&config(kind), &copies).expect("valid");
            restored.restore(&saved).expect("same parameters");
            assert_eq!(restored.updates(), 3);
            run(&mut optimizer, &parameters, 3..5);
            run(&mut restored, &copies, 3..5);
            assert!(same(&parameters, &copies), "{kind:?}");
        }
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
        let parameters = parameters();
        let mut optimizer = Optimizer::new(&config(OptimizerKind::Muon), &parameters).expect("valid");
        run(&mut optimizer, &parameters, 0..2);
        let state =
            || -> BTreeMap<String, Tensor> { optimizer.state().expect("state").into_iter().collect() };
        let (before, mut missing, mut shape, mut count) = (state(), state(), state(), state());
        missing.remove("muon.momentum.block.0.up");
        shape.insert("adamw.second.head".into(), Tensor::zeros([20, 9], (Kind::Float, Device::Cpu)));
        count.insert(UPDATES.into(), Tensor::from_slice(&[-1_i64]));
        let copies: BTreeMap<String, Tensor> =
            before.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
        let bad = [
            (missing, "saved state has no tensor muon.momentum.block.0.up"),
            (shape, "saved tensor adamw.second.head has shape [20, 9], expected [20, 8]"),
            (count, "optimizer.updates is -1, expected at least 0"),
        ];
        for (saved, words) in bad {
            let saved = saved.into_iter().map(|(name, tensor)| (name, tensor + 0)).collect();
            assert_eq!(optimizer.restore(&saved).expect_err(words).to_string(), words);
            assert_eq!(optimizer.updates(), 2);
        }
        assert!(before.iter().all(|(name, tensor)| *tensor == copies[name]));
    }

    #[test]
    fn lists_of_another_length_are_refused() {
        let parameters = parameters();
        let mut optimizer = Optimizer::new(&config(OptimizerKind::AdamW), &parameters).expect("valid");
        let error = optimizer
            .step(&values(&parameters), &gradients(&parameters[1..], 0), 1.0)
            .expect_err("one is lacking");
        assert_eq!(error.to_string(), "gradients has 8 tensors, expected 9");
        assert_eq!(optimizer.updates(), 0);
    }

    #[test]
    fn a_gradient_of_another_form_is_an_error_and_no_crash() {
        for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
            let parameters = parameters();
            let mut optimizer = Optimizer::new(&config(kind), &parameters).expect("valid");
            let mut gradients = gradients(&parameters, 0);
            gradients[3] = gradients[3].tr();
            let error = optimizer.step(&values(&parameters), &gradients, 1.0).expect_err("a turned matrix");
            let words = "gradients of block.0.up has shape [8, 12] in Float, expected [12, 8] in Float";
            assert_eq!(error.to_string(), words);
            gradients[3] = gradients[3].tr().to_kind(Kind::BFloat16);
            assert!(optimizer.step(&values(&parameters), &gradients, 1.0).is_err());
            assert!(same(&parameters, &self::parameters()));
        }
    }

    #[test]
    fn the_layout_of_a_gradient_in_memory_is_of_no_consequence() {
        for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
            let (rows, columns) = (parameters(), parameters());
            run(&mut Optimizer::new(&config(kind), &rows).expect("valid"), &rows, 0..1);
            let gradients = gradients(&columns, 0);
            let turned = |tensor: &Tensor| {
                if tensor.dim() == 2 { tensor.tr().contiguous().tr() } else { tensor.copy() }
            };
            let gradients: Vec<Tensor> = gradients.iter().map(turned).collect();
            assert!(gradients.iter().any(|gradient| !gradient.is_contiguous()));
            let mut optimizer = Optimizer::new(&config(kind), &columns).expect("valid");
            optimizer.step(&values(&columns), &gradients, 0.5).expect("step");
            assert!(same(&rows, &columns), "{kind:?}");
        }
    }

    #[test]
    fn bad_settings_are_refused() {
        let bad = OptimizerConfig { beta1: 1.0, ..OptimizerConfig::default() };
        assert!(matches!(Optimizer::new(&bad, &[]), Err(ModelError::Setting { field: "beta1", .. })));
    }
}
