//! Owns the drawing of a plot as SVG.

use super::findings::{Plot, Scale};
use plotters::coord::ranged1d::{KeyPointHint, Ranged};
use plotters::prelude::*;
use std::error::Error;
use std::ops::Range;

const SIZE: (u32, u32) = (900, 420);
const COLOURS: [RGBColor; 4] =
    [RGBColor(9, 105, 218), RGBColor(207, 34, 46), RGBColor(110, 119, 129), RGBColor(26, 127, 55)];

/// One axis of any scale: what is drawn is the logarithm where the scale asks for it.
#[derive(Clone, Copy)]
struct Ruler {
    from: f64,
    to: f64,
    scale: Scale,
}

impl Ruler {
    /// Holds all of these values.
    fn over(values: impl Iterator<Item = f64> + Clone, scale: Scale) -> Ruler {
        let most = values.clone().fold(0.0, f64::max);
        let least = values.fold(f64::INFINITY, f64::min);
        match scale {
            Scale::Linear => {
                Ruler { from: 0.0, to: if most > 0.0 { most * 1.05 } else { 1.0 }, scale }
            }
            Scale::Nines => Ruler { from: 0.0, to: most.max(10.0).log10(), scale },
            Scale::Log => {
                let from = least.clamp(1.0, 1e18).log10().floor();
                Ruler { from, to: most.max(1.0).log10().ceil().max(from + 1.0), scale }
            }
        }
    }

    /// Where a value stands on it.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Nines | Scale::Log => value.max(1.0).log10(),
        }
    }

    fn label(&self, at: f64) -> String {
        match self.scale {
            Scale::Linear => si(at),
            Scale::Log => si(10f64.powf(at)),
            Scale::Nines => match at.round() as i32 {
                0 => "0 %".to_owned(),
                1 => "90 %".to_owned(),
                2 => "99 %".to_owned(),
                n => format!("99.{} %", "9".repeat((n - 2).max(0) as usize)),
            },
        }
    }
}

/// A number with k, M or G.
fn si(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, " G"),
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let text = format!("{scaled:.1}");
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

impl Ranged for Ruler {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.from) / (self.to - self.from);
        limit.0 + (share * f64::from(limit.1 - limit.0)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match self.scale {
            Scale::Linear => (self.from..self.to).key_points_of(hint.max_num_points()),
            Scale::Nines | Scale::Log => {
                (self.from.ceil() as i32..=self.to.floor() as i32).map(f64::from).collect()
            }
        }
    }

    fn range(&self) -> Range<f64> {
        self.from..self.to
    }
}

/// Round numbers within a range.
trait KeyPointsOf {
    fn key_points_of(&self, most: usize) -> Vec<f64>;
}

impl KeyPointsOf for Range<f64> {
    fn key_points_of(&self, most: usize) -> Vec<f64> {
        let raw = (self.end - self.start) / most.clamp(2, 10) as f64;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|s| *s >= raw);
        let step = step.unwrap_or(raw);
        let first = (self.start / step).ceil() as i64;
        (first..).map(|n| n as f64 * step).take_while(|p| *p <= self.end).collect()
    }
}

impl plotters::coord::ranged1d::ValueFormatter<f64> for Ruler {
    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// The plot as one SVG element.
pub fn svg(plot: &Plot) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|e| e.to_string())?;
        let points = || plot.lines.iter().flat_map(|l| l.points.iter());
        let x = Ruler::over(points().map(|p| p.0), plot.x.scale);
        let y = Ruler::over(points().map(|p| p.1), plot.y.scale);
        let mut chart = ChartBuilder::on(&root)
            .caption(&plot.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(x, y)
            .map_err(|e| e.to_string())?;
        chart
            .configure_mesh()
            .x_desc(plot.x.label)
            .y_desc(plot.y.label)
            .x_label_formatter(&|at| x.label(*at))
            .y_label_formatter(&|at| y.label(*at))
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 228, 232))
            .draw()
            .map_err(|e| e.to_string())?;
        if let Some((from, to, name)) = plot.shade {
            let corners = [(x.place(from), y.from), (x.place(to), y.to)];
            let style = COLOURS[1].mix(0.08).filled();
            chart
                .draw_series([Rectangle::new(corners, style)])
                .map_err(|e| e.to_string())?
                .label(name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], style));
        }
        for (line, colour) in plot.lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            let placed = line.points.iter().map(|p| (x.place(p.0), y.place(p.1)));
            chart
                .draw_series(LineSeries::new(placed, style))
                .map_err(|e| e.to_string())?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .draw()
            .map_err(|e| e.to_string())?;
        root.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_every_scale() {
        let nines = Ruler { from: 0.0, to: 4.0, scale: Scale::Nines };
        let texts: Vec<String> =
            nines.range().key_points_of(9).iter().map(|p| nines.label(*p)).collect();
        assert_eq!(nines.label(0.0), "0 %");
        assert_eq!([2.0, 3.0, 4.0].map(|at| nines.label(at)), ["99 %", "99.9 %", "99.99 %"]);
        assert!(texts.len() > 3);
        let log = Ruler::over([30.0, 4_000.0].into_iter(), Scale::Log);
        assert_eq!((log.from, log.to, log.label(3.0)), (1.0, 4.0, "1 k".to_owned()));
        let even = Ruler::over([0.0, 93.0].into_iter(), Scale::Linear);
        assert_eq!(even.range().key_points_of(6), [0.0, 20.0, 40.0, 60.0, 80.0]);
    }
}
