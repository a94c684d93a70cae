//! What the picture of a plan shows: an inner step, and what costs time.
//!
//! Owns the choice of panels. May not know how they are drawn.

use trestle_fleet::forecast::Forecast;
use trestle_fleet::pipeline::{Bar, Doing};

use crate::picture::{Panel, Rows};
use crate::plan::words::words;

/// Rows of the first panel at most; beyond, the first replica of each stage stands for all.
const ROWS_MAX: usize = 48;

/// Makes the panels of a forecast, whose inner step takes so many seconds.
pub(crate) fn panels(forecast: &Forecast, (bars, seconds): &(Vec<Bar>, f64)) -> Vec<Panel> {
    vec![Panel::Bars(inner_step(bars, *seconds)), Panel::Bars(losses(forecast))]
}

fn inner_step(bars: &[Bar], seconds: f64) -> Rows {
    let mut places: Vec<(usize, usize)> = bars.iter().map(|bar| (bar.stage, bar.replica)).collect();
    places.sort_unstable();
    places.dedup();
    if places.len() > ROWS_MAX {
        places.retain(|(_, replica)| *replica == 0);
    }
    let row = |(stage, replica): (usize, usize)| {
        let mine = bars.iter().filter(|bar| (bar.stage, bar.replica) == (stage, replica));
        let drawn = mine.map(|bar| {
            let colour = match bar.doing {
                Doing::Forward => 0,
                Doing::Backward => 1,
                Doing::Step => 2,
            };
            (bar.from, bar.until, colour)
        });
        (format!("stage {stage}.{replica}"), drawn.collect())
    };
    Rows {
        title: format!("an inner step with everyone there: {seconds:.1} s"),
        x_name: "seconds".into(),
        rows: places.into_iter().map(row).collect(),
        colours: vec!["forward".into(), "backward".into(), "optimizer step".into()],
    }
}

fn losses(forecast: &Forecast) -> Rows {
    let speed = forecast.pace.tokens_per_second;
    let row =
        |name: String, other: f64| (name, vec![(0.0, speed.min(other), 0), (speed, other.max(speed), 1)]);
    let mut rows = vec![row("as it is".into(), speed)];
    let without = forecast.without.iter();
    rows.extend(without.map(|(loss, other)| row(format!("no {}", words(*loss)), other.tokens_per_second)));
    Rows {
        title: "tokens a second, and without what costs time".into(),
        x_name: "tokens a second".into(),
        rows,
        colours: vec!["forecast".into(), "gain".into()],
    }
}
