//! The loss curve as a PNG.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use crate::{Result, TrainError};

/// One curve: label and (step, value) points in step order.
pub struct Curve<'a> {
    /// Legend text.
    pub label: &'a str,
    /// Points.
    pub points: &'a [(u64, f64)],
}

/// Factor of the running mean that the bold line shows; tensorboard's default smoothing.
const SMOOTHING: f64 = 0.6;

/// Draws `curves` into `path`, replacing what is there only once the picture is complete. Curves without a finite point are left
/// out; with none at all no file is written.
///
/// # Errors
/// When the picture cannot be drawn or written.
pub fn loss_curve(path: &Path, title: &str, curves: &[Curve<'_>]) -> Result<()> {
    let finite: Vec<(&str, Vec<(f64, f64)>)> = curves
        .iter()
        .map(|c| (c.label, c.points.iter().filter(|p| p.1.is_finite()).map(|p| (p.0 as f64, p.1)).collect::<Vec<_>>()))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    if finite.is_empty() {
        return Ok(());
    }
    let pixels = draw(title, &finite).map_err(TrainError::Plot)?;
    swift_formats::write_file(path, |out| {
        let mut encoder = png::Encoder::new(out, WIDTH, HEIGHT);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        Ok(writer.finish()?)
    })?;
    Ok(())
}

const WIDTH: u32 = 960;
const HEIGHT: u32 = 540;

/// RGB pixels, row by row.
fn draw(title: &str, curves: &[(&str, Vec<(f64, f64)>)]) -> Result<Vec<u8>, String> {
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the bundled font is broken".to_string())?;
    let all = || curves.iter().flat_map(|(_, p)| p.iter().copied());
    let x_max = all().map(|p| p.0).fold(1.0, f64::max);
    let y_max = all().map(|p| p.1).fold(f64::MIN, f64::max);
    let y_min = all().map(|p| p.1).fold(f64::MAX, f64::min).min(0.0);
    let y_max = if y_max > y_min { y_max * 1.05 } else { y_min + 1.0 };

    let mut pixels = vec![0u8; 3 * WIDTH as usize * HEIGHT as usize];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, (WIDTH, HEIGHT)).into_drawing_area();
        let text = |e: DrawingAreaErrorKind<_>| e.to_string();
        root.fill(&WHITE).map_err(text)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..x_max, y_min..y_max)
            .map_err(text)?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc("loss")
            .light_line_style(WHITE)
            .label_style(("sans-serif", 15))
            .draw()
            .map_err(text)?;
        for (i, (label, points)) in curves.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            if points.len() > 20 {
                chart.draw_series(LineSeries::new(points.iter().copied(), color.mix(0.25))).map_err(text)?;
            }
            let line = if points.len() > 20 { smooth(points) } else { points.clone() };
            chart
                .draw_series(LineSeries::new(line, color.stroke_width(2)))
                .map_err(text)?
                .label(*label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 15))
            .draw()
            .map_err(text)?;
        root.present().map_err(text)?;
    }
    Ok(pixels)
}

fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut mean = points[0].1;
    let follow = |&(x, y): &(f64, f64)| {
        mean = SMOOTHING * mean + (1.0 - SMOOTHING) * y;
        (x, mean)
    };
    points.iter().map(follow).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_becomes_a_png_and_nan_does_not_break_it() {
        let dir = std::env::temp_dir().join(format!("swift-plot-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("train_loss.png");
        let points: Vec<(u64, f64)> = (0..50).map(|i| (i, if i == 7 { f64::NAN } else { 3.0 / (1.0 + i as f64) })).collect();
        loss_curve(&path, "test", &[Curve { label: "loss", points: &points }]).unwrap();
        assert_eq!(&std::fs::read(&path).unwrap()[1..4], b"PNG");
        loss_curve(&dir.join("none.png"), "test", &[Curve { label: "loss", points: &[] }]).unwrap();
        assert!(!dir.join("none.png").exists());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
