//! AVX-512: 16 blocks of words, 64 elements, at a time.
//!
//! A vector holds one counter word of eight blocks in the low halves of its 64-bit lanes, where
//! the widening multiplication reads its operands and leaves the low half of its product; what
//! is in the high halves never matters. A round is then six instructions for eight blocks. Lane
//! `2 j` is block `j` and lane `2 j + 1` block `4 + j`, so that one interleaving of pairs of
//! words puts all of them into the order of the elements.

use std::arch::x86_64::*;

use super::{Mask, scalar};
use crate::random::{MULTIPLIERS, ROUNDS, WEYL};

/// Elements of a step.
const STEP: usize = 64;

/// # Safety
/// See [`super::Apply`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn apply(mask: &Mask, block: u64, len: usize, x: *const f32, out: *mut f32) {
    let lanes = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let threshold = _mm512_set1_epi32(mask.threshold.cast_signed());
    let scale = _mm512_set1_ps(mask.scale);
    let whole = len - len % STEP;
    for start in (0..whole).step_by(STEP) {
        let first = block + start as u64 / 4;
        let low = _mm512_add_epi64(_mm512_set1_epi64(first.cast_signed()), lanes);
        let words = words(mask, [low, _mm512_add_epi64(low, _mm512_set1_epi64(8))]);
        for (i, words) in words.into_iter().enumerate() {
            let kept = _mm512_cmpge_epu32_mask(words, threshold);
            // SAFETY: 16 elements below `whole`.
            unsafe {
                let at = start + 16 * i;
                _mm512_storeu_ps(out.add(at), _mm512_maskz_mul_ps(kept, _mm512_loadu_ps(x.add(at)), scale));
            }
        }
    }
    // SAFETY: the rest of both buffers.
    unsafe { scalar::apply(mask, block + whole as u64 / 4, len - whole, x.add(whole), out.add(whole)) };
}

/// The 64 words of two vectors of eight blocks each, in order.
#[inline]
#[target_feature(enable = "avx512f")]
fn words(mask: &Mask, blocks: [__m512i; 2]) -> [__m512i; 4] {
    let multiplier = MULTIPLIERS.map(|m| _mm512_set1_epi64(i64::from(m)));
    let stream = _mm512_set1_epi64(i64::from(mask.stream));
    let mut key = mask.key;
    let mut c = blocks.map(|index| [index, _mm512_srli_epi64::<32>(index), stream, _mm512_setzero_si512()]);
    for _ in 0..ROUNDS {
        let round = key.map(|k| _mm512_set1_epi32(k.cast_signed()));
        for c in &mut c {
            let p = [_mm512_mul_epu32(c[0], multiplier[0]), _mm512_mul_epu32(c[2], multiplier[1])];
            let high = p.map(|p| _mm512_srli_epi64::<32>(p));
            // 0x96: the exclusive or of three.
            c[0] = _mm512_ternarylogic_epi32::<0x96>(high[1], c[1], round[0]);
            c[2] = _mm512_ternarylogic_epi32::<0x96>(high[0], c[3], round[1]);
            [c[3], c[1]] = p;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    let [a, b] = c.map(|[c0, c1, c2, c3]| {
        // Odd halves from the even halves of the second word.
        let pair = |even, odd| _mm512_mask_shuffle_epi32::<0b10_10_00_00>(even, 0xaaaa, odd);
        let (front, back) = (pair(c0, c1), pair(c2, c3));
        [_mm512_unpacklo_epi64(front, back), _mm512_unpackhi_epi64(front, back)]
    });
    [a[0], a[1], b[0], b[1]]
}
