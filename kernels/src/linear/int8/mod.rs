//! Linear layers in whole numbers: activations quantized to 8 bits, weights repacked into panels.
//!
//! The mode for inference. A weight is repacked once ([`repack`]), the activations are quantized
//! once for all layers that read them ([`quantize_rows`]), and one kernel serves a single row,
//! which is bound by reading the panels, as well as hundreds, which are bound by the multipliers:
//! 8-bit products, four to a lane, are summed in 32 bits (`maddubs` on AVX2, `vpdpbusd` on
//! AVX-512), and each group's sum is scaled into a float.
//!
//! ```text
//! panel      16 output rows, padded with zero rows; stretches of whole blocks along k, in memory order
//! stretch    scales of the 16 rows, then the levels of every 32 values of k (see `panel`)
//! in cache   levels u8 [8 steps][16 rows][4 values], scale and minimum f32 [16 rows]    (`Block`)
//! ```
//!
//! A task widens a stretch of its panel into cache and multiplies it with all rows of
//! activations before it goes on, so the levels are unpacked once per call.
//!
//! **Contract.** Activations are rounded to multiples of `d = max |x| / 127` within each 32 of a
//! row; weights are exact. With `w = s q + m` in each group of 32 (or of 16, where a format has
//! finer scales), and `x ≈ d p`, a dot product is, group after group,
//!
//! ```text
//! acc = fma(sum(q p), s d, acc)    acc = fma(m, d sum(p), acc)     (the latter unless q is signed)
//! ```
//!
//! which is what `scalar` spells out; all levels agree with it bitwise. So does a row with itself
//! in any batch, whatever the number of threads. Against the exact product
//! the error is at most `sum |w| max |x| / 254` over the groups, plus roundings of `f32`.
//! Blocks of `x` below `1e-36` count as zero. A block with a NaN or an infinity makes its whole
//! row of `y` NaN.

use crate::format::Format;
use crate::gemm::blocked::run;
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod panel;
mod rows;
mod scalar;
#[cfg(test)]
mod tests;

pub use panel::{repack, repacked_bytes};
pub use rows::{quantize_rows, quantized_words};

use panel::{Block, Kind, PANEL};
use rows::{BLOCK, Record, Rows};

/// A borrowed weight in panels.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    /// Format of the blocks that were repacked.
    pub format: Format,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// What [`repack`] wrote.
    pub data: &'a [u8],
}

/// Blocks of 32 along `k` that are widened at a time: with a tile of activations they fit L1.
const STRETCH: usize = 16;

/// Rows of activations of one task: their stretch stays in L2 beside the sums.
const TOKENS: usize = 256;

/// A product of some blocks of one panel with a few rows of activations.
struct Tile {
    kind: Kind,
    blocks: *const Block,
    count: usize,
    /// Quantized activations of the first row, from the first block on; rows are `x_stride` apart.
    x: *const i8,
    x_stride: usize,
    records: *const Record,
    record_stride: usize,
    /// Sums `[tokens, PANEL]`, continued.
    acc: *mut f32,
    tokens: usize,
}

/// # Safety
/// The pointers are valid for the extents; the instruction set is supported.
type TileFn = unsafe fn(&Tile);

fn tile_fn(isa: Isa) -> TileFn {
    match isa {
        Isa::Scalar => scalar::tile,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::tile,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::tile,
        #[cfg(not(target_arch = "x86_64"))]
        _ => scalar::tile,
    }
}

/// One of several products with the same activations: `y = alpha x Wᵀ + bias + beta y`, where `y` is `[m, w.rows]`.
///
/// `y` is overwritten, not read, when `beta` is zero.
#[derive(Debug)]
pub struct Part<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// Weight.
    pub w: Panels<'a>,
    /// A number for each row of the weight.
    pub bias: Option<&'a [f32]>,
    /// Result.
    pub y: &'a mut [f32],
    /// Factor of what `y` held.
    pub beta: f32,
}

/// A checked part whose output is open to tasks.
struct Open<'a> {
    alpha: f32,
    w: Panels<'a>,
    kind: Kind,
    bias: Option<&'a [f32]>,
    y: Disjoint<'a, f32>,
    beta: f32,
    /// Its panels among those of all parts.
    panels: std::ops::Range<usize>,
}

/// Bytes of panels that a task reads at least, so that handing tasks out costs little beside them.
const TASK_BYTES: usize = 24 << 10;

/// `y = alpha x Wᵀ + bias + beta y`: `x` is `m` rows from [`quantize_rows`], `y` is `[m, w.rows]`.
///
/// `y` is overwritten, not read, when `beta` is zero. Error and contract are the module's.
///
/// # Panics
/// When a length does not match, or the format cannot be repacked.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "the signature of the exact product")]
pub fn linear_int8(pool: &Pool, m: usize, alpha: f32, x: &[u32], w: &Panels<'_>, bias: Option<&[f32]>, y: &mut [f32], beta: f32) {
    linear_int8_many(pool, m, x, [Part { alpha, w: *w, bias, y, beta }]);
}

/// Products with the same activations, `m` rows from [`quantize_rows`], in one parallel loop: queries, keys and values, say.
///
/// # Panics
/// As [`linear_int8`], and when weights differ in their columns.
#[track_caller]
pub fn linear_int8_many<const N: usize>(pool: &Pool, m: usize, x: &[u32], parts: [Part<'_>; N]) {
    let Some(k) = parts.first().map(|part| part.w.cols) else { return };
    let (mut panels, mut bytes) = (0, 0);
    let parts = parts.map(|Part { alpha, w, bias, y, beta }| {
        let kind = Kind::of(w.format).expect("the format was repacked");
        assert_eq!(w.cols, k, "weights take other activations");
        assert_eq!(Some(w.data.len()), repacked_bytes(w.format, w.rows, k), "panels do not match their shape and format");
        assert_eq!(y.len(), m * w.rows, "output does not match the batch and the weight");
        assert!(bias.is_none_or(|bias| bias.len() == w.rows), "bias does not match the weight's rows");
        let first = panels;
        (panels, bytes) = (panels + w.rows.div_ceil(PANEL), bytes + w.data.len());
        Open { alpha, w, kind, bias, y: Disjoint::new(y), beta, panels: first..panels }
    });
    let x = Rows::new(m, k, x);
    if m == 0 || panels == 0 {
        return;
    }
    let chunks = m.div_ceil(TOKENS);
    // Panels of a task: a few where there is one row, since a panel is then read once in half a microsecond.
    let several = match m {
        1..8 => (TASK_BYTES * panels / bytes.max(1)).clamp(1, panels.div_ceil(4 * pool.threads())),
        _ => 1,
    };
    let groups = panels.div_ceil(several);
    run(pool, m * panels * PANEL * k < 1 << 18, groups * chunks, &|task| {
        let (first, group) = (task / groups * TOKENS, task % groups);
        let tokens = TOKENS.min(m - first);
        for panel in group * several..panels.min((group + 1) * several) {
            let Some(part) = parts.iter().find(|part| part.panels.contains(&panel)) else { return };
            part.multiply(pool.isa(), m, &x, panel - part.panels.start, first, tokens);
        }
    });
}

impl Open<'_> {
    /// The product of one panel with `tokens` rows of activations from `first` on.
    fn multiply(&self, isa: Isa, m: usize, x: &Rows<'_>, panel: usize, first: usize, tokens: usize) {
        let (n, k, kind) = (self.w.rows, self.w.cols, self.kind);
        debug_assert!(first + tokens <= m);
        let multiply = tile_fn(isa);
        let unit = kind.unit / BLOCK;
        let unit_bytes = kind.unit_bytes();
        let blocks = k / BLOCK;
        let bytes = &self.w.data[panel * (blocks / unit) * unit_bytes..][..blocks / unit * unit_bytes];
        with_scratch(tokens * PANEL + STRETCH * Block::WORDS, |scratch| {
            let (widened, acc) = scratch.split_at_mut(STRETCH * Block::WORDS);
            let widened = Block::of(widened);
            acc.fill(0.0);
            for start in (0..blocks).step_by(STRETCH) {
                let count = STRETCH.min(blocks - start);
                let from = start / unit * unit_bytes;
                panel::widen(isa, kind, &bytes[from..][..count / unit * unit_bytes], &mut widened[..count]);
                let tile = Tile {
                    kind,
                    blocks: widened.as_ptr(),
                    count,
                    x: x.values[first * k + start * BLOCK..].as_ptr(),
                    x_stride: k,
                    records: x.records[first * blocks + start..].as_ptr(),
                    record_stride: blocks,
                    acc: acc.as_mut_ptr(),
                    tokens,
                };
                // SAFETY: `count` blocks were widened; there are `tokens` rows of activations and sums from
                // these pointers on, checked above; the level is the pool's.
                unsafe { multiply(&tile) };
            }
            let column = panel * PANEL;
            let width = PANEL.min(n - column);
            for (i, acc) in acc.chunks_exact(PANEL).enumerate() {
                // SAFETY: one task alone has these columns of these rows.
                let y = unsafe { self.y.slice((first + i) * n + column, width) };
                for (j, (y, acc)) in y.iter_mut().zip(acc).enumerate() {
                    let value = self.alpha * acc + self.bias.map_or(0.0, |bias| bias[column + j]);
                    *y = if self.beta == 0.0 { value } else { value + self.beta * *y };
                }
            }
        });
    }
}
