//! The plot of `squib bench diff`: how long a guest stands still, by what was written and by how much RAM it has.

use std::path::Path;

use plotters::prelude::*;

use crate::error::{Error, Result};

const SIZE: (u32, u32) = (900, 360);
const LINE: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);

/// Writes the SVG. Points are (MiB, milliseconds).
pub fn write(path: &Path, by_dirty: &[(f64, f64)], by_memory: &[(f64, f64)]) -> Result<()> {
    draw(path, by_dirty, by_memory)
        .map_err(|reason| Error::Message(format!("cannot draw {}: {reason}", path.display())))
}

fn draw(path: &Path, by_dirty: &[(f64, f64)], by_memory: &[(f64, f64)]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(SIZE.0 / 2);
    let top = by_dirty.iter().chain(by_memory).map(|point| point.1).fold(1.0, f64::max) * 1.15;
    chart(&left, "Pause by memory written since the last diff", "MiB written", by_dirty, top)?;
    chart(&right, "Pause by RAM (4 MiB written)", "MiB of RAM", by_memory, top)?;
    area.present()?;
    Ok(())
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    label: &str,
    points: &[(f64, f64)],
    top: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let first = points.first().map_or(1.0, |point| point.0);
    let last = points.last().map_or(2.0, |point| point.0);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(55)
        .build_cartesian_2d((first..last * 1.2).log_scale().base(2.0), 0.0..top)?;
    chart.configure_mesh().x_desc(label).y_desc("pause, ms").light_line_style(WHITE).draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), LINE.stroke_width(2)))?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, LINE.filled())))?;
    Ok(())
}
