//! Linear layers in whole numbers: activations quantized to 8 bits, weights repacked into panels.
//!
//! The mode for inference. A weight is repacked once ([`crate::panels::repack`]), the activations are quantized
//! once for all layers that read them ([`quantize_rows`]), and one kernel serves a single row,
//! which is bound by reading the panels, as well as hundreds, which are bound by the multipliers:
//! 8-bit products, four to a lane, are summed in 32 bits (`maddubs` on AVX2, `vpdpbusd` on
//! AVX-512, tiles on AMX for many rows and signed levels with one scale in a block), and each group's sum is scaled into a float.
//!
//! ```text
//! panel      16 output rows, padded with zero rows; units of whole blocks along k, in memory order (see [`crate::panels`])
//! tile       up to 12 rows of activations, a cache line for every 32 values of each (see `rows`)
//! in cache   levels u8 [8 steps][16 rows][4 values], scale and minimum f32 [16 rows]    (`Block`)
//! ```
//!
//! A few rows of activations are multiplied with panels as they are stored, unpacked in registers, so that all that is read
//! is the panel; several panels far from each other at a time, as memory answers several streams faster than one. For many, a
//! task widens a stretch of two panels into cache and multiplies it with its tiles of activations before it goes on, so the
//! levels are unpacked once for some hundred rows.
//!
//! **Contract.** Activations are rounded to multiples of `d = max |x| / 127` within each 32 of a
//! row; weights are exact. With `w = s q + m` in each group of 32 (or of 16, where a format has
//! finer scales), and `x ≈ d p`, a dot product is, for each 32 values,
//!
//! ```text
//! sum = fma(C + sum(q p), s, -C s)    sum = fma(m, sum(p), sum) of each group; the second unless q is signed
//! acc = fma(sum, d, acc)
//! ```
//!
//! with `C = 1.5 · 2²³`, whose multiples are exact, so that the first line is `s sum(q p)`, rounded once. Where there are two
//! groups, `acc` is that of 256 values, and those are added up. That is what `scalar` spells out; all levels agree with it
//! bitwise. So does a row with itself in any batch, whatever the number of threads. Against the exact product the error is at
//! most `sum |w| max |x| / 254` over the blocks of 32, whatever the format, plus roundings of `f32`: `k / 32 + 4` of them on
//! the way of each product, where there are two groups `k / 256 + 20`, of `2⁻²⁴` of `sum (|s q| + |m|) |x|` each.
//! Blocks of `x` below `1e-36` count as zero. A block with a NaN or an infinity makes its whole
//! row of `y` NaN, and so does a scale of a weight with its whole column; an infinite minimum makes it infinite or NaN.

use super::Layer;
use crate::elementwise;
use crate::format::{Layout, Weight};
use crate::gemm::Addend;
use crate::gemm::blocked::run;
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::panels::{self, AHEAD, BLOCK, Block, Kind, PANEL, TASK_BYTES, repacked_bytes, share_out, streams};
use crate::pool::{Disjoint, Pool};

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod rows;
mod scalar;
#[cfg(test)]
mod tests;

pub(super) use rows::quantize_chosen;
pub use rows::{quantize_rows, quantized_words};

use rows::{Line, Rows, TILE};

/// `1.5 · 2²³`. A whole number below 2²² is the low bits of its sum with this, so it becomes a float by adding bits, and a float becomes
/// the nearest one, ties to even, by adding floats.
const SHIFT: f32 = 12_582_912.0;

/// Blocks of 32 along `k` that are widened at a time: with a tile of activations they fit L1.
const STRETCH: usize = 16;

/// Panels that are multiplied together.
const PAIR: usize = 2;

/// Panels of one task.
const GROUP: usize = 2;

/// The same where there are tasks enough: more of an output's row is written at a time.
const WIDE_GROUP: usize = 4;

/// Tiles of activations that are multiplied in one go at [`Isa::Amx`], so that the matrix unit seldom starts anew.
const RUN: usize = 4;

/// Bytes of activations of one task: they stay in L2 while panels pass.
const KEPT: usize = 1 << 20;

/// A product of some blocks of one or a pair of panels with rows of activations of one tile, or of whole tiles.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "the portable product takes one tile and fetches nothing ahead")
)]
struct Tile {
    kind: Kind,
    panels: usize,
    /// The blocks as `Block`s, or the units that hold them; panels are `data_stride` bytes apart.
    data: *const u8,
    data_stride: usize,
    /// Blocks.
    count: usize,
    /// Activations of the first row, from the first block on; other rows follow, other blocks are `stride` apart.
    lines: *const Line,
    stride: usize,
    /// Sums `[panels, tokens, PANEL]`, continued; panels are `acc_stride` apart.
    acc: *mut f32,
    acc_stride: usize,
    /// At most `TILE`.
    tokens: usize,
    /// Tiles, one or, at [`Isa::Amx`], several whole ones. Their sums follow one another, their lines are `next` apart.
    tiles: usize,
    next: usize,
    /// What will be read next, of panels `ahead_stride` apart, and how many bytes of it to fetch with each block.
    ahead: *const u8,
    ahead_stride: usize,
    fetched: usize,
}

/// # Safety
/// The pointers are valid for the extents; the instruction set is supported.
type TileFn = unsafe fn(&Tile);

/// The product of widened blocks.
fn tile_fn(isa: Isa) -> TileFn {
    match isa {
        Isa::Scalar => scalar::tile,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::tile,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => avx512::tile,
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => amx::tile,
        #[cfg(not(target_arch = "x86_64"))]
        _ => scalar::tile,
    }
}

/// The level whose kernels multiply.
fn level(isa: Isa, kind: Kind, m: usize) -> Isa {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if !amx::pays(kind, m) => Isa::Avx512,
        _ => {
            let _ = (kind, m);
            isa
        }
    }
}

/// The product of units as they are stored, where there is one for so few rows.
fn direct_fn(isa: Isa, m: usize) -> Option<TileFn> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx if m <= panels::FEW => Some(avx512::direct),
        _ => {
            let _ = m;
            None
        }
    }
}

/// One of several products of the same input, with what its layer does; `y` is `[m, w.rows]`.
///
/// A layer with an activation cannot add what `y` held: that is gone by then.
#[derive(Debug)]
pub struct Part<'a> {
    /// Weight in panels.
    pub w: Weight<'a>,
    /// What happens to the product.
    pub layer: Layer<'a>,
    /// Result.
    pub y: &'a mut [f32],
}

/// `y = alpha x Wᵀ + bias + beta y`: `x` is `m` rows from [`quantize_rows`], `y` is `[m, w.rows]`.
///
/// `y` is overwritten, not read, when `beta` is zero. Error and contract are the module's.
///
/// # Panics
/// When a length does not match, or the format cannot be repacked.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "the signature of the exact product")]
pub fn linear_int8(pool: &Pool, m: usize, alpha: f32, x: &[u32], w: &Weight<'_>, bias: Option<&[f32]>, y: &mut [f32], beta: f32) {
    let addend = if beta == 0.0 { Addend::None } else { Addend::Output { beta } };
    linear_int8_many(pool, m, x, [Part { w: *w, layer: Layer { alpha, bias, activation: None, addend }, y }]);
}

/// Products with the same activations, `m` rows from [`quantize_rows`], in one parallel loop: queries, keys and values, say.
///
/// # Panics
/// As [`linear_int8`], when weights differ in their columns, and when an activation is to be added to what the output held.
#[track_caller]
pub fn linear_int8_many<const N: usize>(pool: &Pool, m: usize, x: &[u32], parts: [Part<'_>; N]) {
    let Some(k) = parts.first().map(|part| part.w.cols) else { return };
    let x = Rows::new(m, k, x);
    let tiles = m.div_ceil(TILE);
    let (mut groups, mut bytes) = (0, 0);
    let panels = parts.iter().map(|part| part.w.rows.div_ceil(PANEL)).sum::<usize>();
    let wide = parts.iter().map(|part| part.w.rows.div_ceil(PANEL).div_ceil(WIDE_GROUP)).sum::<usize>();
    let direct = direct_fn(pool.isa(), m);
    let group_panels = match direct {
        Some(_) => streams(pool, m, panels),
        None if tiles > 1 && wide * tiles.div_ceil(8) >= 4 * pool.threads() => WIDE_GROUP,
        None => GROUP,
    };
    let parts = parts.map(|Part { w, layer, y }| {
        assert_eq!(w.layout, Layout::Panels, "whole numbers are multiplied with panels");
        let (n, kind) = (w.rows, Kind::of(w.format).expect("the format was repacked"));
        assert_eq!(w.cols, k, "weights take other activations");
        assert_eq!(Some(w.data.len()), repacked_bytes(w.format, n, k), "panels do not match their shape and format");
        assert_eq!(y.len(), m * n, "output does not match the batch and the weight");
        assert!(layer.bias.is_none_or(|bias| bias.len() == n), "bias does not match the weight's rows");
        match layer.addend {
            Addend::None => {}
            Addend::Output { .. } => assert!(layer.activation.is_none(), "an activation overwrites what the output held"),
            Addend::Matrix { values, row_stride, .. } => {
                let len = m.saturating_sub(1) * row_stride + n;
                assert!(row_stride >= n && (m == 0 || values.len() >= len), "addend is shorter than its {m} by {n} shape");
            }
        }
        let first = groups;
        groups += n.div_ceil(PANEL).div_ceil(group_panels);
        bytes += w.data.len();
        Open { kind, n, k, m, data: w.data, y: Disjoint::new(y), layer, groups: first..groups }
    });
    if m == 0 || groups == 0 {
        return;
    }
    let small = m * panels * PANEL * k < 1 << 18;
    let part_of = |group: usize| parts.iter().find(|part| part.groups.contains(&group)).expect("groups are those of the parts");
    if let Some(multiply) = direct {
        return share_out(pool, small, groups, bytes, &|group| {
            let part = part_of(group);
            part.read(pool.isa(), multiply, &x, group - part.groups.start, part.groups.len());
        });
    }
    // Groups of a task: several where there are few rows, since a panel is then read in half a microsecond.
    let several = match m {
        1..8 => (TASK_BYTES * groups / bytes.max(1)).clamp(1, groups.div_ceil(4 * pool.threads())),
        _ => 1,
    };
    let kept = tiles.div_ceil((KEPT / (TILE * (k / BLOCK).max(1) * size_of::<Line>())).max(1));
    // Small weights have few groups for the threads to share: then ranges of a hundred rows, so that widening stays cheap.
    let ranges = kept.max((8 * pool.threads()).div_ceil(groups).min(tiles.div_ceil(8)));
    let tasks = groups.div_ceil(several);
    run(pool, small, ranges * tasks, &|task| {
        let (range, task) = (task / tasks, task % tasks);
        // Ranges of nearly equal length.
        let tiles = range * tiles / ranges..(range + 1) * tiles / ranges;
        for group in task * several..groups.min((task + 1) * several) {
            let part = part_of(group);
            let first = (group - part.groups.start) * group_panels;
            part.multiply(pool.isa(), &x, first..part.n.div_ceil(PANEL).min(first + group_panels), tiles.clone());
        }
    });
}

/// A checked part, open to tasks.
struct Open<'a> {
    kind: Kind,
    n: usize,
    k: usize,
    m: usize,
    data: &'a [u8],
    y: Disjoint<'a, f32>,
    layer: Layer<'a>,
    /// Its groups of panels among those of all parts.
    groups: std::ops::Range<usize>,
}

impl Open<'_> {
    fn panel_bytes(&self) -> usize {
        self.k / self.kind.unit * self.kind.unit_bytes()
    }

    /// A panel from a block on, the first of its unit.
    fn panel(&self, panel: usize, block: usize) -> &[u8] {
        &self.data[panel * self.panel_bytes()..][..self.panel_bytes()][block / self.kind.blocks() * self.kind.unit_bytes()..]
    }

    /// Every `apart`-th panel from `first` on, as they are stored, with all rows of activations.
    fn read(&self, isa: Isa, multiply: TileFn, x: &Rows<'_>, first: usize, apart: usize) {
        let &Open { kind, n, k, m, .. } = self;
        let panels = (n.div_ceil(PANEL) - first).div_ceil(apart);
        let columns = |panel: usize| (first + panel * apart) * PANEL..n.min((first + panel * apart + 1) * PANEL);
        with_scratch(panels * m * PANEL, |acc| {
            acc.fill(0.0);
            let (tokens, lines) = x.tile(0, 0);
            let data = self.panel(first, 0).as_ptr();
            let tile = Tile {
                kind,
                panels,
                data,
                data_stride: apart * self.panel_bytes(),
                count: k / BLOCK,
                lines: lines.as_ptr(),
                stride: tokens,
                acc: acc.as_mut_ptr(),
                acc_stride: m * PANEL,
                tokens,
                tiles: 1,
                next: 0,
                ahead: data.wrapping_add(AHEAD),
                ahead_stride: apart * self.panel_bytes(),
                fetched: kind.unit_bytes() / kind.blocks(),
            };
            // SAFETY: `count` blocks of each panel lie at `data`, lines of them for each row from `lines` on, and the sums from `acc`
            // on; the level is the pool's.
            unsafe { multiply(&tile) };
            for (index, acc) in acc.chunks_exact(PANEL).enumerate() {
                self.finish(isa, index % m, columns(index / m), acc, PANEL);
            }
        });
    }

    /// The panels of a group with some tiles of activations.
    fn multiply(&self, isa: Isa, x: &Rows<'_>, panels: std::ops::Range<usize>, tiles: std::ops::Range<usize>) {
        let &Open { kind, n, k, m, .. } = self;
        let isa = level(isa, kind, m);
        let (blocks, unit) = (k / BLOCK, kind.blocks());
        let (first, panels) = (panels.start, panels.len());
        let rows = tiles.start * TILE..m.min(tiles.end * TILE);
        let columns = first * PANEL..n.min((first + panels) * PANEL);
        let multiply = tile_fn(isa);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level comes from a pool, which has checked it against the CPU; no one else takes the registers meanwhile.
        let _tiles = (isa == Isa::Amx).then(|| unsafe { amx::take() });
        // Stretches of nearly equal length, of whole units.
        let stretch = ((blocks / unit).div_ceil(blocks.div_ceil(STRETCH).max(1)) * unit).max(unit);
        // A pair of panels is widened and multiplied with all tiles before the next one, so that it stays in the first cache.
        let room = PAIR * stretch * Block::WORDS;
        let fetched = if tiles.len() <= 4 { kind.unit_bytes() / unit } else { 0 };
        with_scratch(room + panels * rows.len() * PANEL, |scratch| {
            let (widened, acc) = scratch.split_at_mut(room);
            let widened = Block::of(widened);
            for start in (0..blocks.max(1)).step_by(stretch) {
                let count = stretch.min(blocks - start);
                for panel in (0..panels).step_by(PAIR) {
                    let pair = PAIR.min(panels - panel);
                    for (panel, widened) in (panel..panel + pair).zip(widened.chunks_exact_mut(stretch)) {
                        let units = &self.panel(first + panel, start)[..count / unit * kind.unit_bytes()];
                        panels::widen(isa, kind, units, &mut widened[..count]);
                    }
                    let mut rest = tiles.clone();
                    while !rest.is_empty() {
                        let tile = rest.start;
                        let (tokens, lines) = x.tile(tile, start);
                        let run = if isa == Isa::Amx { (rows.end / TILE - tile).clamp(1, RUN) } else { 1 };
                        rest.start += run;
                        let sums = |panel: usize| (panel * rows.len() + tile * TILE - rows.start) * PANEL;
                        for panel in (panel..panel + pair).take_while(|_| start == 0) {
                            acc[sums(panel)..][..run * tokens * PANEL].fill(0.0);
                        }
                        let next = self.panel(first + panel, start).as_ptr().wrapping_add(count * fetched);
                        let tile = Tile {
                            kind,
                            panels: pair,
                            data: widened.as_ptr().cast(),
                            data_stride: stretch * size_of::<Block>(),
                            count,
                            lines: lines.as_ptr(),
                            stride: tokens,
                            acc: acc[sums(panel)..].as_mut_ptr(),
                            acc_stride: rows.len() * PANEL,
                            tokens,
                            tiles: run,
                            next: blocks * TILE,
                            // A few tiles are soon done, so what comes next is fetched meanwhile.
                            ahead: next,
                            ahead_stride: self.panel_bytes(),
                            fetched: if tile == tiles.start { fetched } else { 0 },
                        };
                        // SAFETY: `count` blocks of each panel lie at `data`, lines of them for each row from `lines` on, and the
                        // tile's sums from `acc` on; the level is the pool's.
                        unsafe { multiply(&tile) };
                    }
                }
            }
            // Rows of `y` are far from each other: their lines are fetched some rows before they are written.
            let fetch_row = |row: usize| {
                if row < rows.end {
                    // SAFETY: this task alone has these columns of these rows.
                    fetch(unsafe { self.y.slice(row * n + columns.start, columns.len()) });
                }
            };
            (rows.start..rows.start + TILE).for_each(fetch_row);
            for row in rows.clone() {
                fetch_row(row + TILE);
                self.finish(isa, row, columns.clone(), &acc[(row - rows.start) * PANEL..], rows.len() * PANEL);
            }
        });
    }

    /// Writes some columns of a row, of which this task alone has them: sums of panels that are `stride` apart.
    fn finish(&self, isa: Isa, row: usize, columns: std::ops::Range<usize>, acc: &[f32], stride: usize) {
        // SAFETY: by the condition.
        let y = unsafe { self.y.slice(row * self.n + columns.start, columns.len()) };
        finish(isa, self, columns.start, acc, stride, y);
        if let Some(activation) = self.layer.activation {
            elementwise::apply(isa, activation, y);
        }
        if let Addend::Matrix { values, row_stride, beta } = self.layer.addend {
            let values = &values[row * row_stride + columns.start..];
            y.iter_mut().zip(values).for_each(|(y, value)| *y += beta * value);
        }
    }
}

/// Fetches lines that will be written.
fn fetch(y: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in y.chunks(64 / size_of::<f32>()) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: fetching touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
    }
    let _ = y;
}

/// Writes the sums of a row, of panels that are `stride` apart, to `y`, the outputs from `column` on.
fn finish(isa: Isa, part: &Open<'_>, column: usize, acc: &[f32], stride: usize, y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        return vector(isa, part, column, acc, stride, y);
    }
    let _ = isa;
    finish_with(part, column, acc, stride, y);
}

#[cfg(target_arch = "x86_64")]
crate::simd::simd_fn! {
    /// The portable code, compiled with wide instructions.
    fn vector<S>(_s, part: &Open<'_>, column: usize, acc: &[f32], stride: usize, y: &mut [f32]) {
        finish_with(part, column, acc, stride, y);
    }
}

#[inline(always)]
fn finish_with(part: &Open<'_>, column: usize, acc: &[f32], stride: usize, y: &mut [f32]) {
    let Layer { alpha, bias, addend, .. } = part.layer;
    let beta = if let Addend::Output { beta } = addend { beta } else { 0.0 };
    let sums = |panel: usize| acc[panel * stride..][..PANEL].as_array::<PANEL>().expect("of this length");
    let (whole, rest) = y.as_chunks_mut::<PANEL>();
    let last = whole.len();
    // Whole panels have a constant length, for compilers to vectorise.
    for (panel, y) in whole.iter_mut().enumerate() {
        let mut value = sums(panel).map(|acc| alpha * acc);
        if let Some(bias) = bias {
            let bias = bias[column + panel * PANEL..][..PANEL].as_array::<PANEL>().expect("of this length");
            value.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
        if beta != 0.0 {
            value.iter_mut().zip(&*y).for_each(|(value, y)| *value += beta * y);
        }
        *y = value;
    }
    if !rest.is_empty() {
        for (j, (y, acc)) in rest.iter_mut().zip(sums(last)).enumerate() {
            let value = alpha * acc + bias.map_or(0.0, |bias| bias[column + last * PANEL + j]);
            *y = if beta == 0.0 { value } else { value + beta * *y };
        }
    }
}
