//! The gradient of the weight in the matrix unit, of many channels: as [`super::shifted`], with places as what is summed over.
//!
//! ```text
//! dw[t][o, c] = sum over places p of dy[o, p] image[p + shift(t), c]
//!
//! gradient  [32 outputs][32 places] chunks of a left operand
//! image     [16 channels][high, middle, low][place] a row of a tile each: pairs of this place and the one 16 on
//! ```
//!
//! A chunk of the image for any shift is every row from some place on: it holds each value twice and is split once. Ends of lines, where filters
//! reach into the next one, are zeros of the gradient. Sums of bands are added in order, those of images after each other.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Conv;
use super::shifted::{ROW, Shifted};
use crate::amx::{ROW_BYTES, ROWS, Tiles};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};
use crate::split::{self, CHUNK, DEPTH, PARTS, Tiled, WIDTH};

/// Floats of a band of both operands, split: 2 MB.
const BAND: usize = 1 << 19;

/// Places that are split by one task.
const PLACES: usize = 256;

/// The sum of a group over all images.
pub(super) struct Weight<'a> {
    conv: &'a Conv,
    shifted: Shifted,
    /// Most places of a band.
    most: usize,
}

impl Weight<'_> {
    /// If this pays.
    pub(super) fn new(isa: Isa, conv: &Conv) -> Option<Weight<'_>> {
        let shifted = Shifted::forward(isa, conv)?;
        let place = shifted.results.div_ceil(WIDTH) * CHUNK / DEPTH + shifted.channels.div_ceil(WIDTH) * 2 * PARTS * ROW;
        let most = (BAND / place).saturating_sub(shifted.reach()) / DEPTH * DEPTH;
        (most >= 4 * DEPTH).then_some(Weight { conv, shifted, most })
    }

    /// Overwrites `dw`, the filters of a group; `parts` gives gradient and image of each image. False if there are values that are not finite; then
    /// `dw` is as it was.
    pub(super) fn run<'b>(&self, pool: &Pool, parts: impl Fn(usize) -> (&'b [f32], &'b [f32]), dw: Disjoint<'_, f32>) -> bool {
        let Shifted { channels, results, .. } = self.shifted;
        let (taps, reach, places) = (self.shifted.taps(), self.shifted.reach(), self.shifted.places());
        let (high, wide) = (results.div_ceil(WIDTH), channels.div_ceil(WIDTH));
        let bands = places.div_ceil(self.most);
        let len = places.div_ceil(bands).next_multiple_of(DEPTH);
        let rows = (len + reach).next_multiple_of(ROWS);
        let (left, right) = (high * split::room(len), wide * 2 * PARTS * rows * ROW);
        with_scratch(high * wide * taps * WIDTH * WIDTH, |sums| {
            for image in 0..self.conv.batch {
                let (dy, x) = parts(image);
                for first in (0..places).step_by(len) {
                    let finite = with_scratch(left + right, |scratch| {
                        let (left, right) = scratch.split_at_mut(left);
                        if !self.gradient(pool, dy, first, len, left) || !self.image(pool, x, first, rows, right) {
                            return false;
                        }
                        let (left, right) = (&*left, &*right);
                        pool.run_pieces(sums, WIDTH * WIDTH, |index, sums| {
                            // Weights of a filter one after the other: they read the same gradient, and almost the same image.
                            let (tap, block) = (index % taps, index / taps);
                            let (output, channel) = (block / wide, block % wide);
                            let a = split::chunks(left[output * split::room(len)..].as_ptr());
                            let b = Tiled {
                                first: right[(channel * 2 * PARTS * rows + self.shifted.shift(tap)) * ROW..].as_ptr(),
                                part: rows * ROW_BYTES,
                                half: PARTS * rows * ROW_BYTES,
                                chunk: |step: usize| step * DEPTH * ROW_BYTES,
                            };
                            // SAFETY: the level is the pool's; both operands have so many chunks from there on.
                            unsafe {
                                let _tiles = Tiles::take();
                                split::product_of(&a, &b, len / DEPTH, sums.as_mut_ptr(), image > 0 || first > 0);
                            }
                        });
                        true
                    });
                    if !finite {
                        return false;
                    }
                }
            }
            let (sums, filter) = (&*sums, channels * taps);
            pool.run(results, &|output| {
                // SAFETY: each output has a filter of its own.
                let filter = unsafe { dw.slice(output * filter, filter) };
                for (channel, weights) in filter.chunks_exact_mut(taps).enumerate() {
                    let block = (output / WIDTH * wide + channel / WIDTH) * taps;
                    let at = output % WIDTH * WIDTH + channel % WIDTH;
                    weights.iter_mut().enumerate().for_each(|(tap, weight)| *weight = sums[(block + tap) * WIDTH * WIDTH + at]);
                }
            });
            true
        })
    }

    /// Splits `len` places of the gradient of the output from `first` on. Whether all are finite.
    fn gradient(&self, pool: &Pool, dy: &[f32], first: usize, len: usize, out: &mut [f32]) -> bool {
        let Shifted { results, output, wide, .. } = self.shifted;
        let plane = output[0] * output[1];
        let (finite, pieces) = (AtomicBool::new(true), len.div_ceil(PLACES));
        let out = Disjoint::new(out);
        pool.run(results.div_ceil(WIDTH) * pieces, &|task| {
            let (block, start) = (task / pieces, task % pieces * PLACES);
            let count = PLACES.min(len - start);
            let planes = dy[block * WIDTH * plane..].chunks_exact(plane).take(WIDTH);
            let rows = planes.len();
            let out = out.after(block * split::room(len) + start / DEPTH * CHUNK);
            with_scratch(WIDTH * PLACES, |padded| {
                for (plane, row) in planes.zip(padded.chunks_exact_mut(PLACES)) {
                    lines(plane, output, [0, 0], wide, first + start, &mut row[..count]);
                }
                // SAFETY: the level is the pool's; the rows are there, and chunks of `out` of this task alone.
                if !unsafe { split::left(padded.as_ptr(), PLACES, rows, count, out.as_mut_ptr()) } {
                    finite.store(false, Ordering::Relaxed);
                }
            });
        });
        finite.into_inner()
    }

    /// Splits `len` places of the image from `first` on. Whether all are finite.
    fn image(&self, pool: &Pool, image: &[f32], first: usize, len: usize, out: &mut [f32]) -> bool {
        /// Those of a task and what they are paired with.
        const AND_PAIRS: usize = PLACES + ROWS;
        let Shifted { channels, input, pad_lo, wide, .. } = self.shifted;
        let plane = input[0] * input[1];
        let (finite, pieces) = (AtomicBool::new(true), len.div_ceil(PLACES));
        let out = Disjoint::new(out);
        pool.run(channels.div_ceil(WIDTH) * 2 * pieces, &|task| {
            let (block, start) = (task / pieces, task % pieces * PLACES);
            let count = PLACES.min(len - start);
            let out = out.after((block * PARTS * len + start) * ROW);
            with_scratch(ROWS * AND_PAIRS, |padded| {
                let mut planes = image.chunks_exact(plane).take(channels).skip(block * ROWS);
                for row in padded.chunks_exact_mut(AND_PAIRS) {
                    match planes.next() {
                        Some(plane) => lines(plane, input, pad_lo, wide, first + start, &mut row[..count + ROWS]),
                        None => row.fill(0.0),
                    }
                }
                // SAFETY: the level is the pool's; the values are there, and rows of `out` of this task alone.
                if !unsafe { split::along_places(padded.as_ptr(), AND_PAIRS, count, out.as_mut_ptr(), len * ROW) } {
                    finite.store(false, Ordering::Relaxed);
                }
            });
        });
        finite.into_inner()
    }
}

/// Places from `first` on of a plane with zeros around it, whose lines are then `wide`.
fn lines(plane: &[f32], [high, len]: [usize; 2], [above, before]: [usize; 2], wide: usize, first: usize, out: &mut [f32]) {
    let (mut line, mut x, mut rest) = (first / wide, first % wide, out);
    while !rest.is_empty() {
        let (row, after) = rest.split_at_mut((wide - x).min(rest.len()));
        let (from, to) = (before.clamp(x, x + row.len()), (before + len).clamp(x, x + row.len()));
        match line.checked_sub(above).filter(|&line| line < high && from < to) {
            Some(line) => {
                row[..from - x].fill(0.0);
                row[to - x..].fill(0.0);
                row[from - x..to - x].copy_from_slice(&plane[line * len + from - before..][..to - from]);
            }
            None => row.fill(0.0),
        }
        (line, x, rest) = (line + 1, 0, after);
    }
}
