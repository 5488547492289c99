//! AVX-512 VNNI products: `vpdpbusd` multiplies and sums four unsigned levels by four signed
//! activations in each of 16 lanes, the rows of a panel.
//!
//! Signed levels become unsigned by adding 128, which is taken off the sums again.

use std::arch::x86_64::*;

use super::panel::{Block, PANEL};
use super::rows::{BLOCK, Record};
use super::{Tile, panel};

/// Rows of activations at a time: with their sums they take 16 of the 32 registers.
const TOKENS: usize = 8;

/// # Safety
/// See [`super::TileFn`].
pub(super) unsafe fn tile(t: &Tile) {
    let panel::Kind { groups, signed, .. } = t.kind;
    // SAFETY: the selected function has the same contract.
    unsafe {
        match (groups, signed) {
            (1, true) => by_tokens::<1, true>(t),
            (1, false) => by_tokens::<1, false>(t),
            (_, _) => by_tokens::<2, false>(t),
        }
    }
}

/// # Safety
/// See [`super::TileFn`].
unsafe fn by_tokens<const GROUPS: usize, const SIGNED: bool>(t: &Tile) {
    let mut token = 0;
    while token < t.tokens {
        // SAFETY: `token` rows of activations and sums lie before; the functions take as many as they are named for.
        unsafe {
            let part = Tile {
                x: t.x.add(token * t.x_stride),
                records: t.records.add(token * t.record_stride),
                acc: t.acc.add(token * PANEL),
                ..*t
            };
            match t.tokens - token {
                1 => product::<GROUPS, SIGNED, 1>(&part),
                2 => product::<GROUPS, SIGNED, 2>(&part),
                3 => product::<GROUPS, SIGNED, 3>(&part),
                4 => product::<GROUPS, SIGNED, 4>(&part),
                5 => product::<GROUPS, SIGNED, 5>(&part),
                6 => product::<GROUPS, SIGNED, 6>(&part),
                7 => product::<GROUPS, SIGNED, 7>(&part),
                _ => product::<GROUPS, SIGNED, TOKENS>(&part),
            }
        }
        token += TOKENS;
    }
}

/// Products of `T` rows.
///
/// # Safety
/// See [`super::TileFn`]; there are `T` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[expect(clippy::needless_range_loop, reason = "constant trip counts, unrolled into registers")]
unsafe fn product<const GROUPS: usize, const SIGNED: bool, const T: usize>(t: &Tile) {
    let flip = _mm512_set1_epi8(-128);
    let steps = BLOCK / 4 / GROUPS;
    let mut acc = [_mm512_setzero_ps(); T];
    // SAFETY: `T` rows of sums, activations and records, and `count` blocks, by the caller's promise.
    unsafe {
        for i in 0..T {
            acc[i] = _mm512_loadu_ps(t.acc.add(i * PANEL));
        }
        for index in 0..t.count {
            let block: &Block = &*t.blocks.add(index);
            let x = t.x.add(index * BLOCK);
            for group in 0..GROUPS {
                let mut total = [_mm512_setzero_si512(); T];
                for step in group * steps..(group + 1) * steps {
                    let mut q = _mm512_load_si512(block.levels[step * 4 * PANEL..][..4 * PANEL].as_ptr().cast());
                    if SIGNED {
                        q = _mm512_xor_si512(q, flip);
                    }
                    for i in 0..T {
                        let p = x.add(i * t.x_stride + 4 * step).cast::<i32>();
                        total[i] = _mm512_dpbusd_epi32(total[i], q, _mm512_set1_epi32(p.read_unaligned()));
                    }
                }
                for i in 0..T {
                    let record: &Record = &*t.records.add(i * t.record_stride + index);
                    if SIGNED {
                        let added = _mm512_slli_epi32::<7>(_mm512_set1_epi32(record.whole));
                        total[i] = _mm512_sub_epi32(total[i], added);
                    }
                    let scales = _mm512_load_ps(block.scales[group].as_ptr());
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(record.d));
                    acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[i]), scale, acc[i]);
                    if !SIGNED {
                        let sum = if GROUPS == 1 { record.sum } else { record.halves[group] };
                        let minima = _mm512_load_ps(block.minima[group].as_ptr());
                        acc[i] = _mm512_fmadd_ps(minima, _mm512_set1_ps(sum), acc[i]);
                    }
                }
            }
        }
        for i in 0..T {
            _mm512_storeu_ps(t.acc.add(i * PANEL), acc[i]);
        }
    }
}
