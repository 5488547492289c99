//! The unfolded image: one row for each weight of a filter, one column for each place that the filter is put.
//!
//! ```text
//! unfolded[(c, r, s)][(y, x)] = image[c][y stride - lo + r dilation][x stride - lo + s dilation]     0 outside
//! ```

use super::Conv;
use crate::gemm::pack::Rows;

/// The channels of one group of one image, as a matrix that is made while it is packed.
pub(super) struct Unfold<'a> {
    conv: &'a Conv,
    image: &'a [f32],
}

/// The places along one axis at which one weight of a filter meets the image.
struct Meets {
    /// First place, and the first beyond the last.
    first: usize,
    end: usize,
    /// Where in the image the first is.
    at: usize,
    stride: usize,
}

/// Where weight `tap` of axis `axis` meets the image.
fn meets(conv: &Conv, axis: usize, tap: usize) -> Meets {
    let (stride, padding, places) = (conv.stride[axis], conv.pad_lo[axis], conv.output()[axis]);
    let shift = tap * conv.dilation[axis];
    let first = padding.saturating_sub(shift).div_ceil(stride);
    let end = (conv.input[axis] + padding).saturating_sub(shift).div_ceil(stride).min(places);
    Meets { first: first.min(end), end, at: (first * stride + shift).saturating_sub(padding), stride }
}

impl<'a> Unfold<'a> {
    pub(super) fn new(conv: &'a Conv, image: &'a [f32]) -> Unfold<'a> {
        Unfold { conv, image }
    }

    /// Channel and weight of a row.
    fn weight_of(conv: &Conv, row: usize) -> (usize, [usize; 2]) {
        let [high, wide] = conv.kernel;
        (row / (high * wide), [row / wide % high, row % wide])
    }
}

impl Rows for Unfold<'_> {
    fn stretch(&self, i: usize, j: usize, out: &mut [f32]) {
        let conv = self.conv;
        let (channel, [r, s]) = Unfold::weight_of(conv, i);
        let [high, wide] = conv.input;
        let plane = &self.image[channel * high * wide..][..high * wide];
        let places = conv.output()[1];
        let (down, along) = (meets(conv, 0, r), meets(conv, 1, s));
        let (mut y, mut x, mut rest) = (j / places, j % places, out);
        while !rest.is_empty() {
            let len = rest.len().min(places - x);
            let (row, after) = rest.split_at_mut(len);
            row.fill(0.0);
            let (first, end) = (along.first.max(x), along.end.min(x + len));
            if (down.first..down.end).contains(&y) && first < end {
                let line = &plane[(down.at + (y - down.first) * down.stride) * wide..][..wide];
                let from = along.at + (first - along.first) * along.stride;
                let row = &mut row[first - x..end - x];
                if along.stride == 1 {
                    row.copy_from_slice(&line[from..][..row.len()]);
                } else {
                    let values = line[from..].iter().step_by(along.stride);
                    row.iter_mut().zip(values).for_each(|(out, value)| *out = *value);
                }
            }
            (y, x, rest) = (y + 1, 0, after);
        }
    }
}

/// Adds the rows of one channel of an unfolded gradient back to where they were taken from; `plane` is overwritten.
pub(super) fn fold(conv: &Conv, rows: &[f32], plane: &mut [f32]) {
    plane.fill(0.0);
    let wide = conv.input[1];
    let [high_places, places] = conv.output();
    for (tap, row) in rows.chunks_exact(high_places * places).enumerate() {
        let (_, [r, s]) = Unfold::weight_of(conv, tap);
        let (down, along) = (meets(conv, 0, r), meets(conv, 1, s));
        for y in down.first..down.end {
            let line = &mut plane[(down.at + (y - down.first) * down.stride) * wide..][..wide];
            let values = &row[y * places..][along.first..along.end];
            let cells = line[along.at.min(wide)..].iter_mut().step_by(along.stride);
            cells.zip(values).for_each(|(cell, value)| *cell += value);
        }
    }
}
