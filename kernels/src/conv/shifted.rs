//! Convolutions of many channels in the matrix unit, forward and the gradient of the input: the image is split once, and each weight of a
//! filter reads it from another place on.
//!
//! ```text
//! y[p, o] = sum over weights t of a filter and channels c of image[p + shift(t), c] w[t][c, o]
//!
//! image     [32 channels][high, middle, low][place] a row of a tile each, 16 pairs of channels
//! filters   [32 filters][weight][32 channels] chunks of a right operand
//! ```
//!
//! Places are those of the image with its zeros, line after line, so that a weight is at the same distance from each of them; what is computed
//! at the ends of lines, where filters reach into the next one, is not kept. An image is taken in bands of places that stay in the second cache.
//! The gradient of the input is the same sum over the gradient of the output, with filters turned round.
//!
//! An image or a filter with values that are not finite is left to the product of the unfolded image.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Conv, Direct, FOLDED};
use crate::amx::{ROW_BYTES, ROWS, Tiles};
use crate::gemm::scratch::with_scratch;
use crate::gemm::transposed;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};
use crate::split::{self, CHUNK, DEPTH, PARTS, Tiled, WIDTH};

/// Floats of a row of a tile.
pub(super) const ROW: usize = ROW_BYTES / size_of::<f32>();

/// Places that are split by one task.
const PLACES: usize = 256;

/// Tiles of places of one task.
const TILES: usize = 4;

/// A sum over shifted images.
pub(super) struct Shifted {
    /// Channels that are summed over, and channels of the result.
    pub(super) channels: usize,
    pub(super) results: usize,
    /// Size of the image, and of the result.
    pub(super) input: [usize; 2],
    pub(super) output: [usize; 2],
    kernel: [usize; 2],
    dilation: [usize; 2],
    pub(super) pad_lo: [usize; 2],
    /// Places of a line of the image with its zeros.
    pub(super) wide: usize,
    /// Distances in the weight from one result, and from one channel, to the next.
    apart: [usize; 2],
    /// Whether the last weight comes first.
    turned: bool,
}

impl Shifted {
    /// The convolution of one image and group, if this pays.
    pub(super) fn forward(isa: Isa, conv: &Conv) -> Option<Shifted> {
        let (channels, results) = (conv.in_channels / conv.groups, conv.out_channels / conv.groups);
        let taps = conv.kernel[0] * conv.kernel[1];
        Shifted {
            channels,
            results,
            input: conv.input,
            output: conv.output(),
            kernel: conv.kernel,
            dilation: conv.dilation,
            pad_lo: conv.pad_lo,
            wide: conv.input[1] + conv.pad_lo[1] + conv.pad_hi[1],
            apart: [channels * taps, taps],
            turned: false,
        }
        .if_it_pays(isa, conv)
    }

    /// The gradient of the input of one image and group, if this pays.
    pub(super) fn backward(isa: Isa, conv: &Conv) -> Option<Shifted> {
        let (channels, results) = (conv.out_channels / conv.groups, conv.in_channels / conv.groups);
        let taps = conv.kernel[0] * conv.kernel[1];
        let reach = [0, 1].map(|axis| conv.dilation[axis] * (conv.kernel[axis] - 1));
        let output = conv.output();
        if (0..2).any(|axis| conv.pad_lo[axis] > reach[axis] || conv.pad_hi[axis] > reach[axis]) {
            return None;
        }
        Shifted {
            channels,
            results,
            input: output,
            output: conv.input,
            kernel: conv.kernel,
            dilation: conv.dilation,
            pad_lo: [0, 1].map(|axis| reach[axis] - conv.pad_lo[axis]),
            wide: conv.input[1] + reach[1],
            apart: [taps, results * taps],
            turned: true,
        }
        .if_it_pays(isa, conv)
    }

    /// Tests take it wherever it is right.
    fn if_it_pays(self, isa: Isa, conv: &Conv) -> Option<Shifted> {
        let right = isa == Isa::Amx && conv.stride == [1, 1] && self.channels > 0 && self.results > 0 && self.taps() > 1;
        // At most an eighth of what is computed is thrown away along each.
        let filled = |len: usize, unit: usize| 8 * len >= 7 * len.next_multiple_of(unit);
        let pays = filled(self.channels, DEPTH)
            && filled(self.results, WIDTH)
            && 8 * self.output[1] >= 7 * self.wide
            && self.places() >= 8 * WIDTH;
        (right && self.most() >= 8 * WIDTH && (pays || cfg!(test))).then_some(self)
    }

    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Places from the first of the result to its last.
    pub(super) fn places(&self) -> usize {
        (self.output[0] - 1) * self.wide + self.output[1]
    }

    pub(super) fn shift(&self, tap: usize) -> usize {
        tap / self.kernel[1] * self.dilation[0] * self.wide + tap % self.kernel[1] * self.dilation[1]
    }

    /// The last weight's.
    pub(super) fn reach(&self) -> usize {
        self.shift(self.taps() - 1)
    }

    /// Floats of a place, split.
    fn depth(&self) -> usize {
        self.channels.div_ceil(DEPTH) * PARTS * ROW
    }

    /// Most places of a band.
    fn most(&self) -> usize {
        (FOLDED / self.depth()).saturating_sub(self.reach()) / WIDTH * WIDTH
    }

    /// Calls `body` with what computes the planes of an image and group, the first of its output; if that says that it did not, they are
    /// arbitrary.
    pub(super) fn over(&self, pool: &Pool, w: &[f32], body: impl FnOnce(&Direct<'_>)) {
        let group = self.results * self.channels * self.taps();
        let room = self.results.div_ceil(WIDTH) * self.taps() * self.channels.div_ceil(DEPTH) * CHUNK;
        with_scratch(w.len() / group * room, |filters| {
            let mut split = w.chunks_exact(group).zip(filters.chunks_exact_mut(room));
            if !split.all(|(w, filters)| self.filters(pool, w, filters)) {
                return body(&|_, _, _, _| false);
            }
            let filters = &*filters;
            body(&|group, image, bias, out| {
                let [high, wide] = self.output;
                assert!(out.len() >= self.results * high * wide, "planes of a convolution");
                assert!(bias.is_none_or(|bias| bias.len() == self.results), "bias of a convolution");
                self.run(pool, image, &filters[group * room..][..room], bias, out)
            });
        });
    }

    /// Splits the filters of a group. Whether all are finite.
    fn filters(&self, pool: &Pool, w: &[f32], split: &mut [f32]) -> bool {
        let (taps, chunks) = (self.taps(), self.channels.div_ceil(DEPTH));
        let finite = AtomicBool::new(true);
        pool.run_pieces(split, chunks * CHUNK, |index, out| {
            let (first, tap) = (index / taps * WIDTH, index % taps);
            let at = if self.turned { taps - 1 - tap } else { tap };
            let results = WIDTH.min(self.results - first);
            for (chunk, out) in out.chunks_exact_mut(CHUNK).enumerate() {
                let channels = DEPTH.min(self.channels - chunk * DEPTH);
                let mut values = [0.0; DEPTH * WIDTH];
                for result in 0..results {
                    let from = &w[(first + result) * self.apart[0] + chunk * DEPTH * self.apart[1] + at..];
                    for (value, &w) in
                        values[result..].iter_mut().step_by(WIDTH).zip(from.iter().step_by(self.apart[1])).take(channels)
                    {
                        *value = w;
                    }
                }
                // SAFETY: the level is the pool's; the rows are there, and room for a chunk.
                if !unsafe { split::right(values.as_ptr(), WIDTH, WIDTH, DEPTH, out.as_mut_ptr()) } {
                    finite.store(false, Ordering::Relaxed);
                }
            }
        });
        finite.into_inner()
    }

    /// Overwrites the planes of `out`. False if the image has values that are not finite; then they are arbitrary.
    fn run(&self, pool: &Pool, image: &[f32], filters: &[f32], bias: Option<&[f32]>, out: Disjoint<'_, f32>) -> bool {
        let places = self.places();
        let bands = places.div_ceil(self.most());
        let len = places.div_ceil(bands).next_multiple_of(WIDTH);
        let reach = self.reach();
        with_scratch(self.depth() * (len + reach), |scratch| {
            (0..places).step_by(len).all(|first| {
                let len = len.min((places - first).next_multiple_of(WIDTH));
                let split = Disjoint::new(&mut scratch[..self.depth() * (len + reach)]);
                if !self.split(pool, image, first, len + reach, split) {
                    return false;
                }
                let tiles = len / WIDTH;
                let steps: Vec<usize> = (0..self.taps())
                    .flat_map(|tap| (0..self.channels.div_ceil(DEPTH)).map(move |chunk| (tap, chunk)))
                    .map(|(tap, chunk)| (chunk * PARTS * (len + reach) + self.shift(tap)) * ROW_BYTES)
                    .collect();
                pool.run(tiles.div_ceil(TILES), &|task| {
                    // SAFETY: the level is the pool's.
                    let _tiles = unsafe { Tiles::take() };
                    for tile in task * TILES..tiles.min((task + 1) * TILES) {
                        let at = tile * WIDTH;
                        let rows = Tiled {
                            first: split.after(at * ROW).as_mut_ptr().cast_const(),
                            part: (len + reach) * ROW_BYTES,
                            half: ROWS * ROW_BYTES,
                            chunk: |step: usize| steps[step],
                        };
                        let lines = [0, ROWS].map(|half| self.lines(first + at + half));
                        for (block, filters) in filters.chunks_exact(steps.len() * CHUNK).enumerate() {
                            let mut sums = MaybeUninit::<[f32; WIDTH * WIDTH]>::uninit();
                            // SAFETY: tiles are taken; the image has rows for all shifts of these places, and filters a chunk for each step.
                            // Each task has places of its own, for which the output has a plane of each result.
                            unsafe {
                                split::product_of(
                                    &rows,
                                    &split::chunks(filters.as_ptr()),
                                    steps.len(),
                                    sums.as_mut_ptr().cast(),
                                    false,
                                );
                                self.put(sums.assume_init_ref(), block * WIDTH, &lines, bias, out);
                            }
                        }
                    }
                });
                true
            })
        })
    }

    /// Splits `len` places of the image from `first` on. Whether all are finite.
    fn split(&self, pool: &Pool, image: &[f32], first: usize, len: usize, out: Disjoint<'_, f32>) -> bool {
        let ([high, wide], plane) = (self.input, self.input[0] * self.input[1]);
        let (finite, pieces) = (AtomicBool::new(true), len.div_ceil(PLACES));
        pool.run(self.channels.div_ceil(DEPTH) * pieces, &|task| {
            let (chunk, piece) = (task / pieces, task % pieces);
            let channels = &image[chunk * DEPTH * plane..];
            let out = out.after(chunk * PARTS * len * ROW);
            let (mut at, end) = (piece * PLACES, len.min((piece + 1) * PLACES));
            let mut all = true;
            while at < end {
                let (line, x) = ((first + at) / self.wide, (first + at) % self.wide);
                let count = ROWS.min(self.wide - x).min(end - at);
                // Places of the image among these.
                let from = self.pad_lo[1].saturating_sub(x).min(count);
                let to = (self.pad_lo[1] + wide).saturating_sub(x).min(count);
                let line = line.checked_sub(self.pad_lo[0]).filter(|&line| line < high && from < to);
                let lanes = if line.is_some() { ((1u32 << to) - (1 << from)) as u16 } else { 0 };
                let src = channels.as_ptr().wrapping_add(line.unwrap_or(0) * wide + x).wrapping_sub(self.pad_lo[1]);
                // SAFETY: the level is the pool's; lanes are of lines of the chunk's channels, and rows of places in `out` of this task alone.
                all &= unsafe {
                    let channels = DEPTH.min(self.channels - chunk * DEPTH);
                    split::places(src, plane, channels, (lanes, count), out.after(at * ROW).as_mut_ptr(), len * ROW)
                };
                at += count;
            }
            if !all {
                finite.store(false, Ordering::Relaxed);
            }
        });
        finite.into_inner()
    }

    /// The parts of 16 places from `place` on that are of the result.
    fn lines(&self, place: usize) -> Lines {
        let [high, wide] = self.output;
        let mut lines = Lines { count: 0, parts: [(0, 0); ROWS] };
        let mut lane = 0;
        while lane < ROWS {
            let (line, x) = ((place + lane) / self.wide, (place + lane) % self.wide);
            let len = (self.wide - x).min(ROWS - lane);
            let kept = wide.saturating_sub(x).min(len);
            if line < high && kept > 0 {
                let mask = (((1u32 << kept) - 1) << lane) as u16;
                lines.parts[lines.count] = (mask, (line * wide + x).wrapping_sub(lane));
                lines.count += 1;
            }
            lane += len;
        }
        lines
    }

    /// Writes the sums of 32 places for up to 32 results from `first` on.
    ///
    /// # Safety
    /// AVX-512 F; the planes of `out` hold the places, and no other thread reads or writes them.
    #[target_feature(enable = "avx512f")]
    unsafe fn put(
        &self,
        sums: &[f32; WIDTH * WIDTH],
        first: usize,
        halves: &[Lines; 2],
        bias: Option<&[f32]>,
        out: Disjoint<'_, f32>,
    ) {
        let plane = self.output[0] * self.output[1];
        for (half, lines) in halves.iter().enumerate() {
            for from in (0..WIDTH.min(self.results - first)).step_by(ROWS) {
                let mut block = [_mm512_setzero_ps(); ROWS];
                for (row, values) in block.iter_mut().enumerate() {
                    // SAFETY: 16 of the 32 sums of a place.
                    *values = unsafe { _mm512_loadu_ps(sums.as_ptr().add((half * ROWS + row) * WIDTH + from)) };
                }
                for (i, &values) in transposed(block).iter().enumerate().take(self.results - first - from) {
                    let result = first + from + i;
                    let values = bias.map_or(values, |bias| _mm512_add_ps(values, _mm512_set1_ps(bias[result])));
                    let to = out.as_mut_ptr().wrapping_add(result * plane);
                    for &(lanes, at) in &lines.parts[..lines.count] {
                        // SAFETY: promised by the caller. A store of all lanes is faster than one of some.
                        unsafe {
                            match lanes {
                                u16::MAX => _mm512_storeu_ps(to.wrapping_add(at), values),
                                _ => _mm512_mask_storeu_ps(to.wrapping_add(at), lanes, values),
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Parts of 16 places in the planes of a result: which of them, and where in a plane the first of the 16 would be.
struct Lines {
    count: usize,
    parts: [(u16, usize); ROWS],
}
