//! The unfolded image: one row for each weight of a filter, one column for each place that the filter is put.
//!
//! ```text
//! unfolded[(c, r, s)][(y, x)] = image[c][y stride - lo + r dilation][x stride - lo + s dilation]     0 outside
//! ```
//!
//! It is made by rows or by columns, whichever lies together in the image: weights that are next to each other see neighbours at every place,
//! but places are neighbours only where filters are put close together.

use super::Conv;
use crate::gemm::pack::{Panels, Rows};

/// Weights of a line of a filter from which on a column is made of whole lines.
const LINE: usize = 8;

/// The places along one axis at which one weight of a filter meets the image.
struct Meets {
    /// First place, and the first beyond the last.
    first: usize,
    end: usize,
    /// Where in the image the first is.
    at: usize,
}

/// Where filters meet images, for all images of a convolution.
pub(super) struct Taps<'a> {
    conv: &'a Conv,
    /// Size of the output.
    places: [usize; 2],
    /// For each weight along each axis.
    meets: [Vec<Meets>; 2],
}

impl<'a> Taps<'a> {
    pub(super) fn new(conv: &'a Conv) -> Taps<'a> {
        let places = conv.output();
        let meets = [0, 1].map(|axis| {
            let (stride, padding) = (conv.stride[axis], conv.pad_lo[axis]);
            let meets = |tap: usize| {
                let shift = tap * conv.dilation[axis];
                let first = padding.saturating_sub(shift).div_ceil(stride);
                let end = (conv.input[axis] + padding).saturating_sub(shift).div_ceil(stride).min(places[axis]);
                Meets { first: first.min(end), end, at: (first * stride + shift).saturating_sub(padding) }
            };
            (0..conv.kernel[axis]).map(meets).collect()
        });
        Taps { conv, places, meets }
    }

    /// The channels of one group of one image, unfolded.
    pub(super) fn of(&'a self, image: &'a [f32]) -> Unfold<'a> {
        Unfold { rows: ByRow { taps: self, image }, columns: ByColumn { taps: self, image } }
    }

    /// Channel of a row, and where its weight meets the image.
    fn of_row(&self, row: usize) -> (usize, &Meets, &Meets) {
        let [high, wide] = self.conv.kernel;
        (row / (high * wide), &self.meets[0][row / wide % high], &self.meets[1][row % wide])
    }

    /// Adds the rows of one channel of an unfolded gradient back to where they were taken from; `plane` is overwritten.
    pub(super) fn fold(&self, rows: &[f32], plane: &mut [f32]) {
        plane.fill(0.0);
        let (wide, [down_stride, stride]) = (self.conv.input[1], self.conv.stride);
        let [high_places, places] = self.places;
        for (tap, row) in rows.chunks_exact(high_places * places).enumerate() {
            let (_, down, along) = self.of_row(tap);
            for y in down.first..down.end {
                let line = &mut plane[(down.at + (y - down.first) * down_stride) * wide..][..wide];
                let values = &row[y * places..][along.first..along.end];
                let cells = &mut line[along.at.min(wide)..];
                if stride == 1 {
                    cells.iter_mut().zip(values).for_each(|(cell, value)| *cell += value);
                } else {
                    cells.iter_mut().step_by(stride).zip(values).for_each(|(cell, value)| *cell += value);
                }
            }
        }
    }
}

/// The channels of one group of one image, as a matrix that is made while it is packed.
pub(super) struct Unfold<'a> {
    rows: ByRow<'a>,
    columns: ByColumn<'a>,
}

impl Unfold<'_> {
    /// The matrix.
    pub(super) fn panels(&self) -> Panels<'_> {
        if self.is_by_column() { Panels::MadeTransposed(&self.columns) } else { Panels::Made(&self.rows) }
    }

    /// Its transpose.
    pub(super) fn transposed(&self) -> Panels<'_> {
        if self.is_by_column() { Panels::Made(&self.columns) } else { Panels::MadeTransposed(&self.rows) }
    }

    fn is_by_column(&self) -> bool {
        let conv = self.rows.taps.conv;
        conv.kernel[1] >= LINE && conv.stride[1] > 1 && conv.dilation[1] == 1
    }
}

struct ByRow<'a> {
    taps: &'a Taps<'a>,
    image: &'a [f32],
}

impl Rows for ByRow<'_> {
    fn stretch(&self, i: usize, j: usize, out: &mut [f32]) {
        let conv = self.taps.conv;
        let (channel, down, along) = self.taps.of_row(i);
        let [high, wide] = conv.input;
        let plane = &self.image[channel * high * wide..][..high * wide];
        let places = self.taps.places[1];
        if conv.stride == [1, 1] && places == wide {
            return same(plane, places, down, along, j, out);
        }
        let [down_stride, stride] = conv.stride;
        let (mut y, mut x, mut rest) = (j / places, j % places, out);
        while !rest.is_empty() {
            let len = rest.len().min(places - x);
            let (row, after) = rest.split_at_mut(len);
            let (first, end) = (along.first.clamp(x, x + len), along.end.clamp(x, x + len));
            if (down.first..down.end).contains(&y) && first < end {
                row[..first - x].fill(0.0);
                row[end - x..].fill(0.0);
                let line = &plane[(down.at + (y - down.first) * down_stride) * wide..][..wide];
                let line = &line[along.at + (first - along.first) * stride..];
                let row = &mut row[first - x..end - x];
                match stride {
                    1 => row.copy_from_slice(&line[..row.len()]),
                    // With a distance that the compiler knows, in vectors.
                    2 => every::<2>(line, row),
                    _ => row.iter_mut().zip(line.iter().step_by(stride)).for_each(|(out, value)| *out = *value),
                }
            } else {
                row.fill(0.0);
            }
            (y, x, rest) = (y + 1, 0, after);
        }
    }
}

/// Every `STRIDE`-th value.
fn every<const STRIDE: usize>(line: &[f32], out: &mut [f32]) {
    let (whole, _) = line.as_chunks::<STRIDE>();
    let count = whole.len().min(out.len());
    out.iter_mut().zip(whole).for_each(|(out, values)| *out = values[0]);
    if count < out.len() {
        out[count] = line[count * STRIDE];
    }
}

/// A stretch where lines of the output are as long as those of the image: it lies in the image as it is, but for what is outside at the
/// ends of lines.
fn same(plane: &[f32], wide: usize, down: &Meets, along: &Meets, j: usize, out: &mut [f32]) {
    let all = j..j + out.len();
    let (start, end) = ((down.first * wide).clamp(all.start, all.end), (down.end * wide).clamp(all.start, all.end));
    // Where the image has the first value of the first line, at most `wide` before the plane.
    let (from, back) = (down.at * wide + along.at, down.first * wide + along.first);
    let at = |j: usize| (j + from).checked_sub(back);
    out[..start - j].fill(0.0);
    out[end - j..].fill(0.0);
    let mut out = &mut out[start - j..end - j];
    if out.is_empty() {
        return;
    }
    let mut first = start;
    // Ends of lines that reach beyond the plane are outside, too.
    if at(first).is_none() {
        let missing = (back - from - first).min(out.len());
        out[..missing].fill(0.0);
        (first, out) = (first + missing, &mut out[missing..]);
    }
    let Some(source) = at(first).map(|source| source.min(plane.len())) else { return };
    let held = (plane.len() - source).min(out.len());
    out[..held].copy_from_slice(&plane[source..][..held]);
    out[held..].fill(0.0);
    // One value or two in each line, one by one: faster than filling ranges.
    for outside in (0..along.first).chain(along.end..wide) {
        let ahead = (outside + wide - first % wide) % wide;
        out.iter_mut().skip(ahead).step_by(wide).for_each(|value| *value = 0.0);
    }
}

struct ByColumn<'a> {
    taps: &'a Taps<'a>,
    image: &'a [f32],
}

impl Rows for ByColumn<'_> {
    fn stretch(&self, i: usize, j: usize, out: &mut [f32]) {
        let conv = self.taps.conv;
        let ([high, wide], [lines, weights], places) = (conv.input, conv.kernel, self.taps.places[1]);
        let (y, x) = (i / places, i % places);
        // Weights of a line that meet the image, and where the first of them does.
        let (top, left) = (y * conv.stride[0], x * conv.stride[1]);
        let (first, end) = (conv.pad_lo[1].saturating_sub(left), (wide + conv.pad_lo[1]).saturating_sub(left).min(weights));
        let (mut line, mut weight, mut rest) = (j / weights, j % weights, out);
        while !rest.is_empty() {
            let len = rest.len().min(weights - weight);
            let (row, after) = rest.split_at_mut(len);
            let (first, end) = (first.clamp(weight, weight + len), end.clamp(weight, weight + len));
            let row_of_image = (top + line % lines * conv.dilation[0]).checked_sub(conv.pad_lo[0]).filter(|&row| row < high);
            match row_of_image {
                Some(at) if first < end => {
                    row[..first - weight].fill(0.0);
                    row[end - weight..].fill(0.0);
                    let from = (line / lines * high + at) * wide + left + first - conv.pad_lo[1];
                    let row = &mut row[first - weight..end - weight];
                    row.copy_from_slice(&self.image[from..][..row.len()]);
                }
                _ => row.fill(0.0),
            }
            (line, weight, rest) = (line + 1, 0, after);
        }
    }
}
