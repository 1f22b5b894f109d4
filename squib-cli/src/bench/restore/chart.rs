//! Latency over RAM size as a picture.

use std::path::Path;

use plotters::prelude::*;

use super::Start;
use crate::error::{Error, Result};

/// Writes an SVG: one line per backend.
pub fn write(path: &Path, starts: &[Start]) -> Result<()> {
    draw(path, starts).map_err(|e| Error::Message(format!("cannot draw {}: {e}", path.display())))
}

fn draw(path: &Path, starts: &[Start]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = |backend: &str| -> Vec<(f64, f64)> {
        let of = starts.iter().filter(|start| start.backend == backend);
        let mut points: Vec<_> = of.map(|s| (s.memory_mib as f64 / 1024.0, s.process.as_secs_f64() * 1e3)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let lines = [("map", points("map"), BLUE), ("file", points("file"), RED)];
    let widest =
        |pick: fn(&(f64, f64)) -> f64| lines.iter().flat_map(|(_, p, _)| p.iter().map(pick)).fold(1.0, f64::max);
    let (right, top) = (widest(|p| p.0), widest(|p| p.1) * 1.25);
    let area = SVGBackend::new(path, (720, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Restore to the first guest instruction", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc("RAM, GiB").y_desc("ms from the start of the process").draw()?;
    for (name, points, colour) in &lines {
        let series = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
        let key = move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], *colour);
        chart.draw_series(series)?.label(format!("--backend {name}")).legend(key);
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}
