//! Activations in 8 bits: a cache line for every 32 of them, with what the products need to know of them.
//!
//! ```text
//! tile    12 rows (the last one: what is left), their lines of the first 32 columns, then of the next 32, ...
//! line    32 whole numbers | scale | sums                                                    64 bytes
//! ```
//!
//! A product takes the rows of a tile together and goes along the columns, so it reads lines in the order of memory, whatever the
//! sizes: with rows one after the other, columns that are a power of two would compete for the same few places of the first cache.

use crate::isa::Isa;
use crate::panels::BLOCK;
use crate::pool::{Disjoint, Pool};

use super::SHIFT;

/// Rows whose lines lie side by side.
pub(super) const TILE: usize = 12;

/// The bits of [`SHIFT`], to which sums of products are added.
pub(super) const START: i32 = SHIFT.to_bits() as i32;

/// 32 quantized activations `p`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(super) struct Line {
    pub(super) p: [i8; BLOCK],
    /// Scale: `x ≈ d p`. NaN if any of them is not finite.
    pub(super) d: f32,
    /// `sum(p)`.
    pub(super) sum: f32,
    /// The same for the first and the last 16.
    pub(super) halves: [f32; 2],
    /// [`START`]` - 128 sum(p)`: where sums of products start whose levels were made unsigned by adding 128.
    pub(super) start: i32,
    /// The same for the first and the last 16.
    pub(super) starts: [i32; 2],
    unused: u32,
}

/// Words of a line.
const LINE: usize = size_of::<Line>() / 4;

impl Line {
    /// Lines in words of memory.
    fn of_mut(words: &mut [u32]) -> &mut [Line] {
        const { assert!(align_of::<Line>() == align_of::<u32>()) };
        // SAFETY: a line consists of words, whole lines lie within the slice, and any bit pattern is a line.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() / LINE) }
    }
}

/// Quantized rows, as the kernels see them.
pub(super) struct Rows<'a> {
    rows: usize,
    blocks: usize,
    lines: &'a [Line],
}

impl<'a> Rows<'a> {
    #[track_caller]
    pub(super) fn new(m: usize, k: usize, words: &'a [u32]) -> Rows<'a> {
        assert!(words.len() >= quantized_words(m, k), "quantized activations do not match the batch and the weight");
        // SAFETY: as `Line::of_mut`; there are enough words by the check.
        let lines = unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), m * k / BLOCK) };
        Rows { rows: m, blocks: k / BLOCK, lines }
    }

    /// Rows of tile `tile`, and all lines from those of its column block `block` on.
    pub(super) fn tile(&self, tile: usize, block: usize) -> (usize, &'a [Line]) {
        let first = tile * TILE;
        let width = TILE.min(self.rows - first);
        (width, &self.lines[first * self.blocks + width * block..])
    }
}

/// Words that `m` rows of `k` activations take when quantized.
///
/// # Panics
/// When `k` is not a whole number of blocks of 32.
#[track_caller]
pub const fn quantized_words(m: usize, k: usize) -> usize {
    assert!(k.is_multiple_of(BLOCK), "activations are quantized in whole blocks of 32");
    m * (k / BLOCK) * LINE
}

/// Quantizes `x`, `[m, k]`, into `out`, of at least [`quantized_words`] words; the layout is private to this crate.
///
/// # Panics
/// When a length does not match.
#[track_caller]
pub fn quantize_rows(pool: &Pool, m: usize, k: usize, x: &[f32], out: &mut [u32]) {
    assert_eq!(x.len(), m * k, "activations do not match their shape");
    quantize_chosen(pool, m, k, x, out, &|row| row);
}

/// Quantizes the rows `row(0)` to `row(m - 1)` of `x`, of `k` columns.
#[track_caller]
pub(in super::super) fn quantize_chosen(
    pool: &Pool,
    m: usize,
    k: usize,
    x: &[f32],
    out: &mut [u32],
    row: &(dyn Fn(usize) -> usize + Sync),
) {
    assert!(out.len() >= quantized_words(m, k), "no room for the quantized activations");
    let lines = Disjoint::new(Line::of_mut(&mut out[..quantized_words(m, k)]));
    // Tasks of a few microseconds: some column blocks of a tile.
    const TASK: usize = 1 << 9;
    let (blocks, isa) = (k / BLOCK, pool.isa());
    let part = (TASK / TILE.min(m.max(1))).max(1);
    let parts = blocks.div_ceil(part);
    pool.run(m.div_ceil(TILE) * parts, &|task| {
        let (first, start) = (task / parts * TILE, task % parts * part);
        let (width, count) = (TILE.min(m - first), part.min(blocks - start));
        // SAFETY: tasks have lines of their own.
        let lines = unsafe { lines.slice(first * blocks + start * width, count * width) };
        for i in 0..width {
            let (x, _) = x[row(first + i) * k + start * BLOCK..][..count * BLOCK].as_chunks();
            quantize(isa, x, &mut lines[i..], width);
        }
    });
}

/// Quantizes blocks of a row to every `stride`-th line.
fn quantize(isa: Isa, x: &[[f32; BLOCK]], lines: &mut [Line], stride: usize) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level comes from a pool, which has checked it against the CPU.
        Isa::Avx512 | Isa::Amx => unsafe { super::avx512::quantize(x, lines, stride) },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => vector(isa, x, lines, stride),
        _ => quantize_with(x, lines, stride),
    }
}

#[cfg(target_arch = "x86_64")]
crate::simd::simd_fn! {
    /// The portable code, compiled with wide instructions.
    fn vector<S>(_s, x: &[[f32; BLOCK]], lines: &mut [Line], stride: usize) {
        quantize_with(x, lines, stride);
    }
}

/// The specification.
#[inline(always)]
fn quantize_with(x: &[[f32; BLOCK]], lines: &mut [Line], stride: usize) {
    x.iter().zip(lines.iter_mut().step_by(stride)).for_each(|(x, line)| quantize_block(x, line));
}

/// The scale of a block whose largest magnitude has these bits, and its reciprocal; the latter is zero where nothing is kept.
#[inline(always)]
pub(super) fn scale_of(top: u32) -> (f32, f32) {
    /// Below, the reciprocal overflows.
    const TINY: f32 = 1e-36;
    let largest = f32::from_bits(top);
    if top >= 0x7f80_0000 {
        (f32::NAN, 0.0)
    } else if largest < TINY {
        (0.0, 0.0)
    } else {
        (largest / 127.0, 127.0 / largest)
    }
}

/// Written so that compilers vectorise it.
#[inline(always)]
fn quantize_block(x: &[f32; BLOCK], line: &mut Line) {
    // Bits of magnitudes are ordered as the magnitudes are, NaN above infinity.
    let (d, inverse) = scale_of(x.iter().fold(0, |top, x| (x.to_bits() & 0x7fff_ffff).max(top)));
    let mut whole = [0i32; BLOCK];
    for (q, x) in whole.iter_mut().zip(x) {
        // Zero in blocks that are not finite, whatever `x`.
        let scaled = if inverse == 0.0 { 0.0 } else { x * inverse };
        *q = (scaled + SHIFT).to_bits() as i32 - START;
    }
    for (p, q) in line.p.iter_mut().zip(whole) {
        *p = q as i8;
    }
    let sums = [0, 1].map(|half| whole[half * 16..][..16].iter().sum::<i32>());
    let sum = sums[0] + sums[1];
    *line = Line {
        p: line.p,
        d,
        sum: sum as f32,
        halves: sums.map(|sum| sum as f32),
        start: START - 128 * sum,
        starts: sums.map(|sum| START - 128 * sum),
        unused: 0,
    };
}
