//! Pictures: panels one below the other, in SVG.
//!
//! Owns how they are drawn. May not know what they show.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::failure::Failure;

const WIDTH: u32 = 960;
const PANEL_HEIGHT: u32 = 300;

/// Colours that are told apart by most people (Okabe and Ito, 2008), and grey.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(190, 190, 190),
];

/// A panel.
pub(crate) enum Panel {
    /// Values over x, one line each.
    Lines(Curves),
    /// Parts of a whole over x, one above the other.
    Parts(Curves),
    /// Rows with bars.
    Bars(Rows),
}

/// Named values over x; all have as many as there are x.
pub(crate) struct Curves {
    pub(crate) title: String,
    pub(crate) x_name: String,
    pub(crate) y_name: String,
    pub(crate) x: Vec<f64>,
    pub(crate) curves: Vec<(String, Vec<f64>)>,
}

/// A stretch of a row: from, until, and a colour's number.
pub(crate) type Stretch = (f64, f64, usize);

/// Named rows, each with its stretches; what the colours mean.
pub(crate) struct Rows {
    pub(crate) title: String,
    pub(crate) x_name: String,
    pub(crate) rows: Vec<(String, Vec<Stretch>)>,
    pub(crate) colours: Vec<String>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Axis = plotters::coord::types::RangedCoordf64;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<Axis, Axis>>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Refuses a file that no picture can be drawn to, before anything is worked out for it.
///
/// # Errors
/// The file is no `.svg`.
pub(crate) fn check(file: Option<&Path>) -> Result<(), Failure> {
    match file {
        Some(file) if file.extension().is_none_or(|extension| extension != "svg") => {
            let error = format!("picture `{}` is no .svg", file.display());
            Err(Failure::misused(error).hint("pictures are drawn as SVG: --picture run.svg"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Draws panels, one below the other, to a file that must end in `.svg`.
///
/// # Errors
/// The file is no `.svg`, or cannot be written.
pub(crate) fn draw(file: &Path, panels: &[Panel]) -> Result<(), Failure> {
    check(Some(file))?;
    let name = file.display();
    let mut text = String::new();
    let height = PANEL_HEIGHT * panels.len() as u32;
    let drawn = {
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(Into::into).and_then(|()| {
            let areas = root.split_evenly((panels.len(), 1));
            areas.iter().zip(panels).try_for_each(|(area, panel)| panel.draw(area))?;
            root.present().map_err(Into::into)
        })
    };
    drawn.map_err(|error: Box<dyn std::error::Error>| {
        Failure::failed(format!("picture `{name}` cannot be drawn: {error}"))
    })?;
    std::fs::write(file, text)
        .map_err(|error| Failure::failed(format!("picture `{name}` cannot be written: {error}")))
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> Drawn {
        match self {
            Panel::Lines(curves) => curves.lines(area),
            Panel::Parts(curves) => curves.parts(area),
            Panel::Bars(rows) => rows.draw(area),
        }
    }
}

fn colour(number: usize) -> RGBColor {
    PALETTE[number % PALETTE.len()]
}

impl Curves {
    fn x_range(&self) -> std::ops::Range<f64> {
        let (first, last) = (self.x.first().copied().unwrap_or(0.0), self.x.last().copied().unwrap_or(1.0));
        first..if last > first { last } else { first + 1.0 }
    }

    /// Draws the axes, the upright one from 0 up to a value.
    fn plane<'a>(&self, area: &Area<'a>, most: f64) -> Result<Chart<'a>, Box<dyn std::error::Error>> {
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(72)
            .build_cartesian_2d(self.x_range(), 0.0..most)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(&self.x_name).y_desc(&self.y_name).light_line_style(TRANSPARENT).draw()?;
        Ok(chart)
    }

    fn lines(&self, area: &Area<'_>) -> Drawn {
        let most = self.curves.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max);
        let most = if most > 0.0 { most * 1.1 } else { 1.0 };
        let mut chart = self.plane(area, most)?;
        for (number, (name, values)) in self.curves.iter().enumerate() {
            let points = self.x.iter().copied().zip(values.iter().copied());
            let line = LineSeries::new(points, colour(number).stroke_width(2));
            chart.draw_series(line)?.label(name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 18, y)], colour(number).stroke_width(2))
            });
        }
        legend(&mut chart)
    }

    fn parts(&self, area: &Area<'_>) -> Drawn {
        let mut chart = self.plane(area, 1.0)?;
        // From the top down, so that each covers the feet of the one above it.
        let mut until = vec![0.0; self.x.len()];
        let mut layers = Vec::new();
        for (number, (name, values)) in self.curves.iter().enumerate() {
            until.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            layers.push((number, name, until.clone()));
        }
        for (number, name, tops) in layers.into_iter().rev() {
            let points: Vec<(f64, f64)> =
                self.x.iter().copied().zip(tops.into_iter().map(|top| top.min(1.0))).collect();
            let layer = AreaSeries::new(points, 0.0, colour(number).filled());
            chart
                .draw_series(layer)?
                .label(name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour(number).filled()));
        }
        legend(&mut chart)
    }
}

impl Rows {
    fn draw(&self, area: &Area<'_>) -> Drawn {
        let bars = || self.rows.iter().flat_map(|(_, bars)| bars);
        let last = bars().map(|(_, until, _)| *until).fold(0.0, f64::max);
        let count = self.rows.len();
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(96)
            .build_cartesian_2d(0.0..if last > 0.0 { last } else { 1.0 }, 0.0..count.max(1) as f64)?;
        // The first row is at the top; its name stands beside its middle.
        let name = |y: &f64| {
            let row = count as f64 - y;
            let row = (row.fract() == 0.0 && row >= 0.0).then_some(row as usize);
            row.and_then(|row| self.rows.get(row)).map_or(String::new(), |(name, _)| name.clone())
        };
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc(&self.x_name)
            .y_labels(count + 1)
            .y_label_formatter(&name)
            .draw()?;
        for (number, meaning) in self.colours.iter().enumerate() {
            let of_colour = self.rows.iter().enumerate().flat_map(|(row, (_, bars))| {
                let top = (count - row) as f64;
                let mine = bars.iter().filter(move |(.., colour)| *colour == number);
                mine.map(move |(from, until, _)| {
                    Rectangle::new([(*from, top - 0.9), (*until, top - 0.1)], colour(number).filled())
                })
            });
            chart
                .draw_series(of_colour)?
                .label(meaning)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour(number).filled()));
        }
        legend(&mut chart)
    }
}

fn legend<'a, Backend: DrawingBackend + 'a>(
    chart: &mut ChartContext<'a, Backend, Cartesian2d<Axis, Axis>>,
) -> Drawn
where
    Backend::ErrorType: 'static,
{
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(190, 190, 190))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves() -> Curves {
        Curves {
            title: "speed".into(),
            x_name: "hours".into(),
            y_name: "tokens/s".into(),
            x: vec![0.0, 1.0, 2.0],
            curves: vec![("played".into(), vec![1.0, 3.0, 2.0]), ("forecast".into(), vec![0.5, 0.2, 0.3])],
        }
    }

    #[test]
    fn panels_are_drawn_and_say_what_they_show() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("run.svg");
        let rows = Rows {
            title: "pipeline".into(),
            x_name: "seconds".into(),
            rows: vec![
                ("stage 0".into(), vec![(0.0, 1.0, 0), (1.0, 3.0, 1)]),
                ("stage 1".into(), Vec::new()),
            ],
            colours: vec!["forward".into(), "backward".into()],
        };
        let nothing = Curves { x: Vec::new(), curves: vec![("none".into(), Vec::new())], ..curves() };
        let panels =
            [Panel::Lines(curves()), Panel::Parts(curves()), Panel::Bars(rows), Panel::Lines(nothing)];
        draw(&file, &panels).expect("it is drawn");
        let text = std::fs::read_to_string(&file).expect("it was written");
        for said in ["<svg", "tokens/s", "played", "forecast", "stage 1", "backward", "</svg>"] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let error = draw(&folder.path().join("run.png"), &panels).expect_err("it is no SVG");
        assert!(error.to_string().contains("is no .svg"), "{error}");
    }
}
