//! Panels in `f32`: levels are unpacked as for products in whole numbers, and become floats a column of the panel at a time.

use std::arch::x86_64::*;

use super::for_format;
use super::unpack::{Packed, Source};
use crate::format::Format;
use crate::panels::{AHEAD, BLOCK, Column, FEW, Kind, PANEL, STREAMS};

/// Writes the columns of whole units, `stride` floats apart.
///
/// # Safety
/// AVX-512 F, BW and VNNI; there is room.
pub(in crate::panels) unsafe fn columns(kind: Kind, units: &[u8], out: *mut f32, stride: usize) {
    // SAFETY: the selected function has the same contract.
    unsafe { for_format!(kind.format, columns_of(units, out, stride)) }
}

/// Of so many panels, how many are multiplied with `m` rows of activations at once.
pub(in crate::panels) fn panels(m: usize, panels: usize) -> usize {
    match (m, panels) {
        (..=2, 4..) => 4,
        (3..=4, 2..) => 2,
        _ => 1,
    }
}

/// Sums of the whole units of each of [`panels`] panels with `m` rows of activations, `k` apart.
///
/// # Safety
/// AVX-512 F, BW and VNNI; each row has as many activations as the units columns; `m` is at most [`FEW`].
pub(in crate::panels) unsafe fn dots(
    kind: Kind,
    units: [&[u8]; STREAMS],
    m: usize,
    x: *const f32,
    k: usize,
    out: &mut [[Column; FEW]],
) {
    // SAFETY: the selected function has the same contract.
    unsafe { for_format!(kind.format, dots_of(units, m, x, k, out)) }
}

/// Calls a macro for the eight steps of a block.
macro_rules! steps {
    ($body:ident!($($arg:tt)*)) => {
        $body!(0, $($arg)*);
        $body!(1, $($arg)*);
        $body!(2, $($arg)*);
        $body!(3, $($arg)*);
        $body!(4, $($arg)*);
        $body!(5, $($arg)*);
        $body!(6, $($arg)*);
        $body!(7, $($arg)*);
    };
}

/// Scales and minima of a block's groups.
#[derive(Clone, Copy)]
struct Scaling {
    scales: [__m512; 2],
    minima: [__m512; 2],
}

impl Scaling {
    /// # Safety
    /// See [`Source::minimum`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn of<S: Source>(source: S, block: usize) -> Scaling {
        // SAFETY: by the caller's promise.
        unsafe {
            let scales = [source.scale(block, 0), source.scale(block, S::GROUPS - 1)];
            let minima = if S::SIGNED {
                [_mm512_setzero_ps(); 2]
            } else {
                [source.minimum(block, 0), source.minimum(block, S::GROUPS - 1)]
            };
            Scaling { scales, minima }
        }
    }

    /// Four columns of one step. Products of levels with their scales are exact, so that one rounding is all there is.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn four<S: Source>(&self, step: usize, levels: __m512i) -> [__m512; 4] {
        let group = if S::GROUPS == 2 { step / 4 } else { 0 };
        let (scale, minimum) = (self.scales[group], self.minima[group]);
        if S::SIGNED {
            let levels = _mm512_xor_si512(levels, _mm512_set1_epi8(-128));
            let parts = [
                _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(levels)),
                _mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(levels)),
                _mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(levels)),
                _mm512_srai_epi32::<24>(levels),
            ];
            parts.map(|level| _mm512_mul_ps(_mm512_cvtepi32_ps(level), scale))
        } else {
            let low = _mm512_set1_epi32(255);
            let parts = [
                _mm512_and_si512(levels, low),
                _mm512_and_si512(_mm512_srli_epi32::<8>(levels), low),
                _mm512_and_si512(_mm512_srli_epi32::<16>(levels), low),
                _mm512_srli_epi32::<24>(levels),
            ];
            parts.map(|level| _mm512_fmadd_ps(_mm512_cvtepi32_ps(level), scale, minimum))
        }
    }
}

macro_rules! write_step {
    ($step:literal, $source:ident, $block:ident, $scaling:ident, $out:ident, $stride:ident) => {
        let columns = $scaling.four::<S>($step, $source.step::<$step>($block));
        for (v, column) in columns.into_iter().enumerate() {
            _mm512_storeu_ps($out.add((4 * $step + v) * $stride), column);
        }
    };
}

/// # Safety
/// See [`columns`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn columns_of<S: Source>(units: &[u8], mut out: *mut f32, stride: usize) {
    for unit in units.chunks_exact(S::BYTES) {
        // SAFETY: a whole unit, and room for its columns, by the caller's promise.
        unsafe {
            let source = S::unit(unit.as_ptr());
            for block in 0..S::BLOCKS {
                let scaling = Scaling::of(source, block);
                steps!(write_step!(source, block, scaling, out, stride));
                out = out.wrapping_add(BLOCK * stride);
            }
        }
    }
}

/// # Safety
/// See [`dots`].
unsafe fn dots_of<S: Source>(units: [&[u8]; STREAMS], m: usize, x: *const f32, k: usize, out: &mut [[Column; FEW]]) {
    // SAFETY: as many rows and panels as the functions are named for.
    unsafe {
        match (m, out.len()) {
            (1, 4) => rows::<S, 1, 4, 2>(units, x, k, out),
            (1, _) => rows::<S, 1, 1, 4>(units, x, k, out),
            (2, 4) => rows::<S, 2, 4, 1>(units, x, k, out),
            (2, _) => rows::<S, 2, 1, 4>(units, x, k, out),
            (3, 2) => rows::<S, 3, 2, 1>(units, x, k, out),
            (3, _) => rows::<S, 3, 1, 2>(units, x, k, out),
            (4, 2) => rows::<S, 4, 2, 1>(units, x, k, out),
            (4, _) => rows::<S, 4, 1, 2>(units, x, k, out),
            (5, _) => rows::<S, 5, 1, 1>(units, x, k, out),
            (6, _) => rows::<S, 6, 1, 1>(units, x, k, out),
            (7, _) => rows::<S, 7, 1, 1>(units, x, k, out),
            _ => rows::<S, FEW, 1, 1>(units, x, k, out),
        }
    }
}

macro_rules! add_step {
    ($step:literal, $sources:ident, $block:ident, $scaling:ident, $x:ident, $k:ident, $acc:ident) => {
        for panel in 0..P {
            let columns = $scaling[panel].four::<S>($step, $sources[panel].step::<$step>($block));
            for v in 0..4 {
                for i in 0..T {
                    let x = _mm512_set1_ps(*$x.add(i * $k + 4 * $step + v));
                    $acc[panel][v % SUMS][i] = _mm512_fmadd_ps(columns[v], x, $acc[panel][v % SUMS][i]);
                }
            }
        }
    };
}

/// `T` rows of activations with `P` panels, with several sums each where there are few.
///
/// # Safety
/// See [`dots`]; there are `T` rows and `P` places.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn rows<S: Source, const T: usize, const P: usize, const SUMS: usize>(
    units: [&[u8]; STREAMS],
    mut x: *const f32,
    k: usize,
    out: &mut [[Column; FEW]],
) {
    let mut acc = [[[_mm512_setzero_ps(); T]; SUMS]; P];
    let fetched = S::BYTES / S::BLOCKS;
    for unit in 0..units[0].len() / S::BYTES {
        // SAFETY: whole units, and activations for their columns, by the caller's promise; fetching ahead touches nothing.
        unsafe {
            let units: [*const u8; P] = std::array::from_fn(|panel| units[panel].as_ptr().add(unit * S::BYTES));
            let sources = units.map(|unit| S::unit(unit));
            for block in 0..S::BLOCKS {
                for line in (0..fetched).step_by(64) {
                    for unit in units {
                        let ahead = unit.wrapping_add(AHEAD + block * fetched + line);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                    }
                }
                let scaling = sources.map(|source| Scaling::of(source, block));
                steps!(add_step!(sources, block, scaling, x, k, acc));
                x = x.wrapping_add(BLOCK);
            }
        }
    }
    for (acc, out) in acc.iter().zip(out) {
        for (i, out) in out.iter_mut().enumerate().take(T) {
            let mut sum = acc[0][i];
            for part in &acc[1..] {
                sum = _mm512_add_ps(sum, part[i]);
            }
            const { assert!(PANEL == 16) };
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}
