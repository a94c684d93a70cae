//! What the picture of a played run shows: speed over time, and where the time of the peers went.
//!
//! Owns the choice of panels. May not know how they are drawn.

use trestle_sim::course::Slice;
use trestle_sim::fleet::FleetOutcome;

use crate::picture::{Curves, Panel};

/// Points of a curve at most.
const POINTS_MAX: usize = 120;

/// What the time of the peers is spent on, as a part of a slice: of all peers with a place, there or not.
type Part = (&'static str, fn(&Slice, f64) -> f64);

const PARTS: &[Part] = &[
    ("computing", |slice, whole| (slice.compute - slice.lost).max(0.0) / whole),
    ("outer steps", |slice, whole| slice.sync / whole),
    ("thrown away", |slice, whole| slice.lost / whole),
    ("waiting", |slice, whole| (slice.wall - slice.compute - slice.sync).max(0.0) / whole),
    ("away, or in no report", |slice, whole| (1.0 - slice.wall / whole).max(0.0)),
];

/// Makes the panels of a run.
pub(super) fn panels(outcome: &FleetOutcome) -> Vec<Panel> {
    let course = &outcome.sim.tally.course;
    let slices = course.slices();
    // The last slice is not whole.
    let slices = &slices[..slices.len().saturating_sub(1)];
    let together = slices.len().div_ceil(POINTS_MAX).max(1);
    let width = course.width().0 as f64 / 1e6;
    let points: Vec<(Slice, f64)> = slices
        .chunks(together)
        .map(|chunk| {
            (chunk.iter().fold(Slice::default(), |sum, slice| sum.and(slice)), width * chunk.len() as f64)
        })
        .collect();
    let hours = |at: usize| (at as f64 + 0.5) * width * together as f64 / 3600.0;
    let x: Vec<f64> = (0..points.len()).map(hours).collect();
    let speed = points.iter().map(|(slice, seconds)| slice.tokens / seconds).collect();
    let forecast = vec![outcome.forecast.pace.tokens_per_second; x.len()];
    let spec = &outcome.sim.spec;
    let peers = f64::from(spec.stages()) * f64::from(spec.pipeline.replicas);
    let part = |(name, of): &Part| {
        let values = points.iter().map(|(slice, seconds)| of(slice, peers * seconds)).collect();
        ((*name).to_owned(), values)
    };
    vec![
        Panel::Lines(Curves {
            title: format!("{}: speed", outcome.sim.spec.name),
            x_name: "hours".into(),
            y_name: "tokens a second".into(),
            x: x.clone(),
            curves: vec![("played".into(), speed), ("forecast".into(), forecast)],
        }),
        Panel::Parts(Curves {
            title: "where the time of the peers with a place went".into(),
            x_name: "hours".into(),
            y_name: "part of the time".into(),
            x,
            curves: PARTS.iter().map(part).collect(),
        }),
    ]
}
