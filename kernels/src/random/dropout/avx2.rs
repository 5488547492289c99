//! AVX2: 8 blocks of words, 32 elements, at a time.
//!
//! As with AVX-512, one counter word of four blocks lies in the low halves of 64-bit lanes and
//! the high halves never matter. The lanes are blocks 0, 2, 1, 3, so that one interleaving of
//! pairs of words puts all of them into the order of the elements.

use std::arch::x86_64::*;

use super::{Mask, scalar};
use crate::random::{MULTIPLIERS, ROUNDS, WEYL};

/// Elements of a step.
const STEP: usize = 32;

/// # Safety
/// See [`super::Apply`].
#[target_feature(enable = "avx2")]
pub(super) unsafe fn apply(mask: &Mask, block: u64, len: usize, x: *const f32, out: *mut f32) {
    let lanes = _mm256_setr_epi64x(0, 2, 1, 3);
    let threshold = _mm256_set1_epi32(mask.threshold.cast_signed());
    let scale = _mm256_set1_ps(mask.scale);
    let whole = len - len % STEP;
    for start in (0..whole).step_by(STEP) {
        let first = block + start as u64 / 4;
        let low = _mm256_add_epi64(_mm256_set1_epi64x(first.cast_signed()), lanes);
        let words = words(mask, [low, _mm256_add_epi64(low, _mm256_set1_epi64x(4))]);
        for (i, words) in words.into_iter().enumerate() {
            // Not below: the larger of the two is the word.
            let kept = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(words, threshold), words));
            // SAFETY: 8 elements below `whole`.
            unsafe {
                let at = start + 8 * i;
                _mm256_storeu_ps(out.add(at), _mm256_and_ps(kept, _mm256_mul_ps(_mm256_loadu_ps(x.add(at)), scale)));
            }
        }
    }
    // SAFETY: the rest of both buffers.
    unsafe { scalar::apply(mask, block + whole as u64 / 4, len - whole, x.add(whole), out.add(whole)) };
}

/// The 32 words of two vectors of four blocks each, in order.
#[inline]
#[target_feature(enable = "avx2")]
fn words(mask: &Mask, blocks: [__m256i; 2]) -> [__m256i; 4] {
    let multiplier = MULTIPLIERS.map(|m| _mm256_set1_epi64x(i64::from(m)));
    let stream = _mm256_set1_epi64x(i64::from(mask.stream));
    let mut key = mask.key;
    let mut c = blocks.map(|index| [index, _mm256_srli_epi64::<32>(index), stream, _mm256_setzero_si256()]);
    for _ in 0..ROUNDS {
        let round = key.map(|k| _mm256_set1_epi32(k.cast_signed()));
        for c in &mut c {
            let p = [_mm256_mul_epu32(c[0], multiplier[0]), _mm256_mul_epu32(c[2], multiplier[1])];
            let high = p.map(|p| _mm256_srli_epi64::<32>(p));
            c[0] = _mm256_xor_si256(high[1], _mm256_xor_si256(c[1], round[0]));
            c[2] = _mm256_xor_si256(high[0], _mm256_xor_si256(c[3], round[1]));
            [c[3], c[1]] = p;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    let [a, b] = c.map(|[c0, c1, c2, c3]| {
        // Odd halves from the even halves of the second word.
        let pair = |even, odd| _mm256_blend_epi32::<0b1010_1010>(even, _mm256_slli_epi64::<32>(odd));
        let (front, back) = (pair(c0, c1), pair(c2, c3));
        [_mm256_unpacklo_epi64(front, back), _mm256_unpackhi_epi64(front, back)]
    });
    [a[0], a[1], b[0], b[1]]
}
