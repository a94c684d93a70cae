//! Losses of a run, and whether two runs have the same ones.
//!
//! Owns the comparison, to the bit or nearly so. Knows nothing of how a run was made.

use std::collections::BTreeMap;

/// The losses of a run, nats per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// Mean training loss by inner step.
    pub steps: BTreeMap<u64, f64>,
    /// Held-out loss by border.
    pub evaluations: BTreeMap<u64, f64>,
}

/// When two losses are the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Equal {
    /// When all their bits are.
    ToTheBit,
    /// When they differ by no more than this share.
    Within(f64),
}

impl Equal {
    fn holds(self, want: f64, got: f64) -> bool {
        match self {
            Equal::ToTheBit => want.to_bits() == got.to_bits(),
            Equal::Within(share) => (want - got).abs() <= share * want.abs(),
        }
    }
}

impl Losses {
    /// Finds where losses differ from these: another loss, a place that these lack, or a place that is missing. A place
    /// that was taken twice counts both times. `None` when all are the same.
    pub fn difference(
        &self,
        steps: &[(u64, f64)],
        evaluations: &[(u64, f64)],
        equal: Equal,
    ) -> Option<String> {
        let training = differs("loss of step", &self.steps, steps, equal);
        training.or_else(|| differs("held-out loss at border", &self.evaluations, evaluations, equal))
    }
}

fn differs(what: &str, wanted: &BTreeMap<u64, f64>, found: &[(u64, f64)], equal: Equal) -> Option<String> {
    for (at, loss) in found {
        match wanted.get(at) {
            Some(want) if equal.holds(*want, *loss) => {}
            Some(want) => return Some(format!("{what} {at} is {loss}, there {want}")),
            None => return Some(format!("{what} {at} is {loss}, there none")),
        }
    }
    let present: std::collections::BTreeSet<u64> = found.iter().map(|(at, _)| *at).collect();
    let (at, want) = wanted.iter().find(|(at, _)| !present.contains(at))?;
    Some(format!("{what} {at} is missing, there {want}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bit_and_any_gap_is_a_difference() {
        let losses =
            Losses { steps: BTreeMap::from([(0, 2.0), (1, 1.5)]), evaluations: BTreeMap::from([(2, 1.0)]) };
        let differs = |steps: &[(u64, f64)], evaluations: &[(u64, f64)]| {
            losses.difference(steps, evaluations, Equal::ToTheBit)
        };
        let all = [(0, 2.0), (1, 1.5)];
        assert_eq!(differs(&all, &[(2, 1.0)]), None);
        assert_eq!(
            differs(&[(0, 2.0), (0, 2.0), (1, 1.5)], &[(2, 1.0)]),
            None,
            "trained twice, and the same"
        );
        let off = 1.5 + f64::EPSILON;
        assert_eq!(
            differs(&[(0, 2.0), (1, off)], &[(2, 1.0)]),
            Some(format!("loss of step 1 is {off}, there 1.5"))
        );
        assert_eq!(differs(&all[..1], &[(2, 1.0)]).as_deref(), Some("loss of step 1 is missing, there 1.5"));
        assert_eq!(differs(&all, &[]).as_deref(), Some("held-out loss at border 2 is missing, there 1"));
        assert_eq!(losses.difference(&[(0, 2.0), (1, off)], &[(2, 1.0)], Equal::Within(1e-6)), None);
        assert!(losses.difference(&[(0, 2.0), (1, 1.500_01)], &[(2, 1.0)], Equal::Within(1e-6)).is_some());
        assert_eq!(differs(&[(9, 1.0)], &[]).as_deref(), Some("loss of step 9 is 1, there none"));
    }
}
