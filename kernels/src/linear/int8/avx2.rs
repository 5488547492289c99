//! AVX2 products: levels times activations in pairs of 16 bits, summed there for as long as they
//! cannot overflow, then in 32.
//!
//! A vector holds four levels of each of eight rows; the two of a panel meet up to four rows of
//! activations, each of which is broadcast four values at a time. With levels of `b` bits a
//! pair of products is below `2 (2^b - 1) 127`, so 8 steps of 4 bits, 4 of 5 and 2 of 6 fit. Signed levels
//! lend their signs to the activations, as there is no product of signed bytes.

use std::arch::x86_64::*;

use super::rows::Line;
use super::{SHIFT, Tile};
use crate::panels::{self, BLOCK, Block, PANEL, SUMMED};

/// Rows of activations at a time.
const TOKENS: usize = 4;

/// # Safety
/// See [`super::TileFn`].
pub(super) unsafe fn tile(t: &Tile) {
    let panels::Kind { groups, signed, .. } = t.kind;
    // SAFETY: the selected function has the same contract.
    unsafe {
        match (groups, signed) {
            (1, true) => by_tokens::<1, 0>(t),
            (1, false) if t.kind.bits() == 4 => by_tokens::<1, 8>(t),
            (1, false) => by_tokens::<1, 4>(t),
            (_, true) => by_tokens::<2, 0>(t),
            (_, false) => by_tokens::<2, 4>(t),
        }
    }
}

/// # Safety
/// See [`super::TileFn`].
unsafe fn by_tokens<const GROUPS: usize, const CHAIN: usize>(t: &Tile) {
    let parts = t.tokens.div_ceil(TOKENS);
    for index in 0..t.panels * parts {
        let (panel, token) = (index / parts, index % parts * TOKENS);
        // SAFETY: `panel` panels, and `token` lines and sums lie before; the functions take as many rows as they are named for.
        unsafe {
            let (data, acc) = (t.data.add(panel * t.data_stride), t.acc.add(panel * t.acc_stride + token * PANEL));
            let part = Tile { data, lines: t.lines.add(token), acc, ..*t };
            match t.tokens - token {
                1 => product::<GROUPS, CHAIN, 1>(&part),
                2 => product::<GROUPS, CHAIN, 2>(&part),
                3 => product::<GROUPS, CHAIN, 3>(&part),
                _ => product::<GROUPS, CHAIN, TOKENS>(&part),
            }
        }
    }
}

/// Products of `T` rows. `CHAIN` steps are summed in 16 bits; 0 stands for signed levels.
///
/// # Safety
/// See [`super::TileFn`]; there are `T` rows.
#[target_feature(enable = "avx2,fma")]
#[expect(clippy::needless_range_loop, reason = "constant trip counts, unrolled into registers")]
unsafe fn product<const GROUPS: usize, const CHAIN: usize, const T: usize>(t: &Tile) {
    let (ones, offset) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
    let (shift, off) = (_mm256_set1_ps(SHIFT), _mm256_set1_ps(-SHIFT));
    let steps = BLOCK / 4 / GROUPS;
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    // SAFETY: `T` rows of sums and lines, and `count` blocks, by the caller's promise.
    unsafe {
        let sums = |i: usize, half: usize| t.acc.add(i * PANEL + half * 8);
        if GROUPS == 1 {
            acc = std::array::from_fn(|i| [_mm256_loadu_ps(sums(i, 0)), _mm256_loadu_ps(sums(i, 1))]);
        }
        for index in 0..t.count {
            let block: &Block = &*t.data.cast::<Block>().add(index);
            let line = t.lines.add(index * t.stride);
            for group in 0..GROUPS {
                let mut total = [[_mm256_setzero_si256(); 2]; T];
                if CHAIN == 0 {
                    for step in group * steps..(group + 1) * steps {
                        let q = levels(block, step).map(|q| _mm256_xor_si256(q, offset));
                        let magnitude = q.map(|q| _mm256_abs_epi8(q));
                        for i in 0..T {
                            let p = broadcast(line.add(i), step);
                            for half in 0..2 {
                                let pairs = _mm256_maddubs_epi16(magnitude[half], _mm256_sign_epi8(p, q[half]));
                                total[i][half] = _mm256_add_epi32(total[i][half], _mm256_madd_epi16(pairs, ones));
                            }
                        }
                    }
                } else {
                    for chain in 0..steps / CHAIN.max(1) {
                        let mut sums = [[_mm256_setzero_si256(); 2]; T];
                        for step in 0..CHAIN {
                            let step = group * steps + chain * CHAIN + step;
                            let q = levels(block, step);
                            for i in 0..T {
                                let p = broadcast(line.add(i), step);
                                for half in 0..2 {
                                    sums[i][half] = _mm256_add_epi16(sums[i][half], _mm256_maddubs_epi16(q[half], p));
                                }
                            }
                        }
                        for i in 0..T {
                            for half in 0..2 {
                                total[i][half] = _mm256_add_epi32(total[i][half], _mm256_madd_epi16(sums[i][half], ones));
                            }
                        }
                    }
                }
                for i in 0..T {
                    let activations = if GROUPS == 1 { (*line.add(i)).sum } else { (*line.add(i)).halves[group] };
                    let d = _mm256_set1_ps((*line.add(i)).d);
                    for half in 0..2 {
                        let scale = _mm256_load_ps(block.scales[group].as_ptr().add(8 * half));
                        let shifted = _mm256_add_ps(_mm256_cvtepi32_ps(total[i][half]), shift);
                        let mut sum = _mm256_fmadd_ps(shifted, scale, _mm256_mul_ps(scale, off));
                        if CHAIN != 0 {
                            let minimum = _mm256_load_ps(block.minima[group].as_ptr().add(8 * half));
                            sum = _mm256_fmadd_ps(minimum, _mm256_set1_ps(activations), sum);
                        }
                        acc[i][half] = _mm256_fmadd_ps(sum, d, acc[i][half]);
                    }
                }
            }
            if GROUPS == 2 && index % SUMMED == SUMMED - 1 {
                for i in 0..T {
                    for half in 0..2 {
                        let of_unit = std::mem::replace(&mut acc[i][half], _mm256_setzero_ps());
                        _mm256_storeu_ps(sums(i, half), _mm256_add_ps(_mm256_loadu_ps(sums(i, half)), of_unit));
                    }
                }
            }
        }
        if GROUPS == 1 {
            for i in 0..T {
                _mm256_storeu_ps(sums(i, 0), acc[i][0]);
                _mm256_storeu_ps(sums(i, 1), acc[i][1]);
            }
        }
    }
}

/// Four values of each of 16 rows.
#[inline]
#[target_feature(enable = "avx2")]
fn levels(block: &Block, step: usize) -> [__m256i; 2] {
    let at = block.levels[step * 4 * PANEL..][..4 * PANEL].as_ptr();
    // SAFETY: 64 bytes by the slice; blocks and so steps are aligned.
    unsafe { [_mm256_load_si256(at.cast()), _mm256_load_si256(at.add(32).cast())] }
}

/// # Safety
/// The line can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast(line: *const Line, step: usize) -> __m256i {
    // SAFETY: by the caller's promise; a line starts with 32 bytes.
    _mm256_set1_epi32(unsafe { line.cast::<i32>().add(step).read_unaligned() })
}
