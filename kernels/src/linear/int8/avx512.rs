//! AVX-512 VNNI products: `vpdpbusd` multiplies and sums four unsigned levels by four signed
//! activations in each of 16 lanes, the rows of a panel.
//!
//! Signed levels are unsigned with 128 added ([`crate::panels`]), and a sum starts at what takes that off again, which each line
//! of activations knows: the offset costs nothing. All sums start at the bits of [`SHIFT`] besides, so that what comes out is a
//! float without a conversion: `SHIFT` and the sum, whose multiple a multiply-add takes off with the one of `SHIFT`. There is one
//! product for every kind of [`Source`]: a few rows of activations read panels as they are stored and unpack them in registers;
//! many read blocks that were widened into cache by the same unpacking. The sum of a group is scaled with two multiply-adds
//! beside eight or, of 16 products, four `vpdpbusd`; a minimum costs one more.

use std::arch::x86_64::*;
use std::sync::atomic::{Ordering, compiler_fence};

use super::rows::{Line, START, scale_of};
use super::{PAIR, SHIFT, Tile};
use crate::format::Format;
use crate::panels::avx512::{Packed, Source, Wide, for_format};
use crate::panels::{BLOCK, FEW, Kind, PANEL};

/// Products of at most [`FEW`] rows with units as they are stored.
///
/// # Safety
/// See [`super::TileFn`]; the data are units.
pub(super) unsafe fn direct(t: &Tile) {
    // SAFETY: the selected function has the same contract.
    unsafe { for_format!(t.kind.format, few(t)) }
}

/// As many panels at a time as there are registers for.
///
/// # Safety
/// See [`super::TileFn`].
unsafe fn few<S: Source>(t: &Tile) {
    let mut done = 0;
    while done < t.panels {
        // SAFETY: `done` panels and their sums lie before; as many panels, of those left, and rows as the functions are named for.
        unsafe {
            let (data, acc) = (t.data.add(done * t.data_stride), t.acc.add(done * t.acc_stride));
            let t = Tile { data, acc, ahead: t.ahead.wrapping_add(done * t.ahead_stride), ..*t };
            done += match (t.tokens, t.panels - done) {
                (1, 4..) => product::<S, 4, 1>(&t),
                (1, 2..) => product::<S, 2, 1>(&t),
                (1, _) => product::<S, 1, 1>(&t),
                (2, 4..) => product::<S, 4, 2>(&t),
                (2, 2..) => product::<S, 2, 2>(&t),
                (2, _) => product::<S, 1, 2>(&t),
                (3, 2..) => product::<S, 2, 3>(&t),
                (3, _) => product::<S, 1, 3>(&t),
                (4, 2..) => product::<S, 2, 4>(&t),
                (4, _) => product::<S, 1, 4>(&t),
                (5, _) => product::<S, 1, 5>(&t),
                (6, _) => product::<S, 1, 6>(&t),
                (7, _) => product::<S, 1, 7>(&t),
                _ => product::<S, 1, FEW>(&t),
            };
        }
    }
}

/// Products with blocks.
///
/// # Safety
/// See [`super::TileFn`]; the data are blocks.
pub(super) unsafe fn tile(t: &Tile) {
    let Kind { groups, signed, .. } = t.kind;
    // SAFETY: the selected function has the same contract.
    unsafe {
        match (groups, signed, t.panels) {
            (1, true, 1) => by_tokens::<Wide<1, true>, 1>(t),
            (1, true, _) => by_tokens::<Wide<1, true>, PAIR>(t),
            (1, false, 1) => by_tokens::<Wide<1, false>, 1>(t),
            (1, false, _) => by_tokens::<Wide<1, false>, PAIR>(t),
            (_, true, 1) => by_tokens::<Wide<2, true>, 1>(t),
            (_, true, _) => by_tokens::<Wide<2, true>, PAIR>(t),
            (_, false, 1) => by_tokens::<Wide<2, false>, 1>(t),
            (_, false, _) => by_tokens::<Wide<2, false>, PAIR>(t),
        }
    }
}

/// Rows of activations at a time, of two panels: their sums, whole and scaled, take 24 registers of 32.
const ROWS: usize = 6;

/// A tile in parts of at most [`ROWS`] rows, nearly equal.
///
/// # Safety
/// See [`super::TileFn`]; there are `P` panels.
unsafe fn by_tokens<S: Source, const P: usize>(t: &Tile) {
    let parts = t.tokens.div_ceil(ROWS);
    for part in 0..parts {
        let (first, end) = (part * t.tokens / parts, (part + 1) * t.tokens / parts);
        // What lies ahead is fetched once.
        let fetched = if part == 0 { t.fetched } else { 0 };
        // SAFETY: `first` lines and sums lie before the part; as many rows as the functions are named for.
        unsafe {
            let acc = t.acc.add(first * PANEL);
            let t = Tile { lines: t.lines.add(first), acc, tokens: end - first, fetched, ..*t };
            match t.tokens {
                1 => product::<S, P, 1>(&t),
                2 => product::<S, P, 2>(&t),
                3 => product::<S, P, 3>(&t),
                4 => product::<S, P, 4>(&t),
                5 => product::<S, P, 5>(&t),
                _ => product::<S, P, ROWS>(&t),
            };
        }
    }
}

/// Multiplies some steps of a block of each panel into the sums of each row.
macro_rules! multiply {
    ($sources:ident, $block:ident, $lines:ident, $total:ident, $($step:literal)*) => {$(
        let q = $sources.map(|source| source.step::<$step>($block));
        for i in 0..T {
            let p = _mm512_set1_epi32($lines.add(i).cast::<i32>().add($step).read_unaligned());
            for panel in 0..P {
                $total[panel][i] = _mm512_dpbusd_epi32($total[panel][i], q[panel], p);
            }
        }
    )*};
}

/// Products of `P` panels with `T` rows; the number of panels.
///
/// # Safety
/// See [`super::TileFn`]; there are `P` panels and `T` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[expect(clippy::needless_range_loop, reason = "constant trip counts, unrolled into registers")]
unsafe fn product<S: Source, const P: usize, const T: usize>(t: &Tile) -> usize {
    let mut acc = [[_mm512_setzero_ps(); T]; P];
    let shift = _mm512_castps_si512(_mm512_set1_ps(SHIFT));
    // SAFETY: `P` panels with `T` rows of sums, `T` rows of lines, and `count` blocks, by the caller's promise; lines start with
    // 32 bytes; fetching ahead touches nothing.
    unsafe {
        let sums = |panel: usize, i: usize| t.acc.add(panel * t.acc_stride + i * PANEL);
        if S::GROUPS == 1 {
            acc = std::array::from_fn(|panel| std::array::from_fn(|i| _mm512_loadu_ps(sums(panel, i))));
        }
        let mut lines = t.lines;
        let mut ahead = t.ahead;
        for unit in 0..t.count / S::BLOCKS {
            let sources: [S; P] = std::array::from_fn(|panel| S::unit(t.data.add(panel * t.data_stride + unit * S::BYTES)));
            for block in 0..S::BLOCKS {
                for line in (0..t.fetched).step_by(64) {
                    for panel in 0..P {
                        let line = ahead.wrapping_add(panel * t.ahead_stride + line).cast();
                        if S::STORED {
                            _mm_prefetch::<_MM_HINT_T0>(line);
                        } else {
                            // The first cache has no room for it yet.
                            _mm_prefetch::<_MM_HINT_T1>(line);
                        }
                    }
                }
                ahead = ahead.wrapping_add(t.fetched);
                macro_rules! group {
                    ($group:literal: $($step:literal)*) => {
                        let mut total = [[shift; T]; P];
                        if S::SIGNED {
                            for i in 0..T {
                                let line = &*lines.add(i);
                                let start = _mm512_set1_epi32(if S::GROUPS == 1 { line.start } else { line.starts[$group] });
                                for panel in 0..P {
                                    total[panel][i] = start;
                                }
                            }
                        }
                        multiply!(sources, block, lines, total, $($step)*);
                        if S::GROUPS == 2 {
                            // What scales is read when it is needed: else sums have to leave their registers for it.
                            compiler_fence(Ordering::SeqCst);
                        }
                        let scale = sources.map(|source| source.scale(block, $group));
                        let off = scale.map(|scale| _mm512_mul_ps(scale, _mm512_set1_ps(-SHIFT)));
                        let minimum = if S::SIGNED { scale } else { sources.map(|source| source.minimum(block, $group)) };
                        for i in 0..T {
                            let line = &*lines.add(i);
                            let activations = _mm512_set1_ps(if S::GROUPS == 1 { line.sum } else { line.halves[$group] });
                            let d = _mm512_set1_ps(line.d);
                            for panel in 0..P {
                                let shifted = _mm512_castsi512_ps(total[panel][i]);
                                let mut sum = _mm512_fmadd_ps(shifted, scale[panel], off[panel]);
                                if !S::SIGNED {
                                    sum = _mm512_fmadd_ps(minimum[panel], activations, sum);
                                }
                                acc[panel][i] = _mm512_fmadd_ps(sum, d, acc[panel][i]);
                            }
                        }
                    };
                }
                if S::GROUPS == 1 {
                    group!(0: 0 1 2 3 4 5 6 7);
                } else {
                    group!(0: 0 1 2 3);
                    group!(1: 4 5 6 7);
                }
                lines = lines.add(t.stride);
            }
            if S::GROUPS == 2 {
                for panel in 0..P {
                    for i in 0..T {
                        let of_unit = std::mem::replace(&mut acc[panel][i], _mm512_setzero_ps());
                        _mm512_storeu_ps(sums(panel, i), _mm512_add_ps(_mm512_loadu_ps(sums(panel, i)), of_unit));
                    }
                }
            }
        }
        if S::GROUPS == 1 {
            for panel in 0..P {
                for i in 0..T {
                    _mm512_storeu_ps(sums(panel, i), acc[panel][i]);
                }
            }
        }
    }
    P
}

/// Quantizes blocks of a row to every `stride`-th line; the same numbers as the portable code's.
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn quantize(x: &[[f32; BLOCK]], lines: &mut [Line], stride: usize) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    for (x, line) in x.iter().zip(lines.iter_mut().step_by(stride)) {
        // SAFETY: 32 floats are read, and a line is written: 32 bytes, and twice four words, in the order of its fields.
        unsafe {
            let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
            let [a, b] = x.map(|x| _mm512_and_si512(_mm512_castps_si512(x), magnitude));
            let (d, inverse) = scale_of(_mm512_reduce_max_epu32(_mm512_max_epu32(a, b)));
            // Zero in blocks that are not finite, whatever `x`.
            let kept = if inverse == 0.0 { 0 } else { !0 };
            let by = _mm512_set1_ps(inverse);
            let p = x.map(|x| _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(kept, _mm512_mul_ps(x, by))));
            let to = (&raw mut *line).cast::<__m128i>();
            to.write_unaligned(p[0]);
            to.add(1).write_unaligned(p[1]);
            let [a, b] = p.map(|p| _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), p));
            // The sums of both halves, twice, and of all.
            let halves = _mm_hadd_epi32(_mm_hadd_epi32(a, b), _mm_hadd_epi32(a, b));
            let all = _mm_add_epi32(halves, _mm_shuffle_epi32::<0b10_11_00_01>(halves));
            let sums = _mm_unpacklo_epi64(all, halves);
            to.add(2).write_unaligned(_mm_castps_si128(_mm_move_ss(_mm_cvtepi32_ps(sums), _mm_set_ss(d))));
            let shift = _mm_setr_epi32(START, START, START, 0);
            let starts = _mm_sub_epi32(shift, _mm_slli_epi32::<7>(_mm_srli_si128::<4>(sums)));
            to.add(3).write_unaligned(starts);
        }
    }
}
