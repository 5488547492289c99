//! The 256-bit implementation of [`Simd`].

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "each block is a few intrinsics, allowed by the token; memory is the caller's promise"
)]

use super::{Buckets, Simd};
use crate::dynamic8::Map;
use std::arch::x86_64::*;

/// Proof that AVX2 and FMA may be executed.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Made only where the instructions are enabled.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new() -> Avx2 {
        Avx2(())
    }
}

/// Lane `i` of the mask for `n` is `MASKS[8 - n + i]`.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
fn first(n: usize) -> __m256i {
    let masks = &MASKS[8 - n..][..8];
    unsafe { _mm256_loadu_si256(masks.as_ptr().cast()) }
}

/// Exponents beyond which every power of two is zero or infinite; NaN stays.
#[inline(always)]
fn bounded(s: Avx2, n: __m256) -> __m256 {
    s.min(s.splat(200.0), s.max(s.splat(-200.0), n))
}

/// One more where the trailing bits, shifted up, are beyond those of the step.
#[inline(always)]
unsafe fn next_if_beyond(step: __m256i, trailing: __m256i) -> __m256i {
    unsafe {
        // Comparisons are of signed numbers.
        let sign = _mm256_set1_epi32(i32::MIN);
        let beyond = _mm256_cmpgt_epi32(_mm256_xor_si256(trailing, sign), _mm256_xor_si256(step, sign));
        _mm256_sub_epi32(step, beyond)
    }
}

/// Stores the lowest bytes; the others are zero.
#[inline(always)]
unsafe fn put_bytes(code: __m256i, out: *mut u8) {
    unsafe {
        let words = _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256::<1>(code));
        _mm_storel_epi64(out.cast(), _mm_packus_epi16(words, words));
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type F = __m256;
    type M = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(p, first(n)) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn look_up(self, table: *const f32, codes: *const u8) -> __m256 {
        unsafe { _mm256_i32gather_ps::<4>(table, _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.cast()))) }
    }
    #[inline(always)]
    unsafe fn put_signed_codes(self, x: __m256, buckets: &Buckets, out: *mut u8) {
        const SHIFT: i32 = Buckets::shift(Map::Signed) as i32;
        unsafe {
            let numbers = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_ORD_Q>(x, x));
            let bits = _mm256_castps_si256(x);
            let (magnitude, below) = (_mm256_and_si256(bits, _mm256_set1_epi32(i32::MAX)), _mm256_srai_epi32::<31>(bits));
            let bucket = _mm256_srli_epi32::<SHIFT>(magnitude);
            let bucket = _mm256_max_epi32(bucket, _mm256_set1_epi32(buckets.first.cast_signed()));
            let half = _mm256_set1_epi32((buckets.steps.len() / 2) as i32);
            let bucket = _mm256_add_epi32(bucket, _mm256_and_si256(below, half));
            let steps = buckets.steps.as_ptr().wrapping_sub(buckets.first as usize);
            let step = _mm256_mask_i32gather_epi32::<4>(_mm256_setzero_si256(), steps.cast(), bucket, numbers);
            let code = next_if_beyond(step, _mm256_slli_epi32::<{ 32 - SHIFT }>(magnitude));
            let code = _mm256_and_si256(_mm256_xor_si256(code, below), _mm256_and_si256(numbers, _mm256_set1_epi32(0xff)));
            put_bytes(code, out);
        }
    }
    #[inline(always)]
    unsafe fn put_unsigned_codes(self, x: __m256, buckets: &Buckets, out: *mut u8) {
        const SHIFT: i32 = Buckets::shift(Map::Unsigned) as i32;
        unsafe {
            // NaN becomes zero, too.
            let magnitude = _mm256_castps_si256(_mm256_max_ps(x, _mm256_setzero_ps()));
            let bucket = _mm256_srli_epi32::<SHIFT>(magnitude);
            let bucket = _mm256_max_epi32(bucket, _mm256_set1_epi32(buckets.first.cast_signed()));
            let steps = buckets.steps.as_ptr().wrapping_sub(buckets.first as usize);
            let step = _mm256_i32gather_epi32::<4>(steps.cast(), bucket);
            let code = next_if_beyond(step, _mm256_slli_epi32::<{ 32 - SHIFT }>(magnitude));
            put_bytes(_mm256_and_si256(code, _mm256_set1_epi32(0xff)), out);
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: __m256) {
        unsafe { _mm256_maskstore_ps(p, first(n), v) }
    }
    #[inline(always)]
    unsafe fn store_stream(self, p: *mut f32, v: __m256) {
        unsafe { _mm256_stream_ps(p, v) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn recip(self, a: __m256) -> __m256 {
        // A division of eight lanes costs no more than an estimate of twelve bits and its corrections.
        self.div(self.splat(1.0), a)
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn larger(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn floor(self, a: __m256) -> __m256 {
        unsafe { _mm256_floor_ps(a) }
    }
    #[inline(always)]
    fn and(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_and_ps(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_or_ps(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_xor_ps(a, b) }
    }
    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn le(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn is_nan(self, a: __m256) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a) }
    }
    #[inline(always)]
    fn both(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_and_ps(a, b) }
    }
    #[inline(always)]
    fn either(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_or_ps(a, b) }
    }
    #[inline(always)]
    fn bits(self, a: __m256) -> u32 {
        unsafe { _mm256_movemask_ps(a) as u32 }
    }
    #[inline(always)]
    fn select(self, mask: __m256, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(b, a, mask) }
    }
    #[inline(always)]
    fn fraction(self, x: __m256) -> __m256 {
        let x = bounded(self, x);
        self.sub(x, self.floor(x))
    }
    #[inline(always)]
    fn scale_floor(self, x: __m256, n: __m256) -> __m256 {
        self.scale(x, self.floor(bounded(self, n)))
    }
    #[inline(always)]
    fn scale(self, x: __m256, n: __m256) -> __m256 {
        // Two factors, so that neither leaves the range of normal numbers; the first product is
        // exact, and the second is the one that rounds.
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let rest = _mm256_sub_epi32(n, half);
            let bias = _mm256_set1_epi32(127);
            let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, bias)));
            _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(rest))
        }
    }
    #[inline(always)]
    fn split(self, x: __m256) -> (__m256, __m256) {
        unsafe {
            let small = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(f32::MIN_POSITIVE));
            let normal = _mm256_blendv_ps(x, _mm256_mul_ps(x, _mm256_set1_ps(8_388_608.0)), small);
            let bits = _mm256_castps_si256(normal);
            let exponent = _mm256_sub_epi32(_mm256_srli_epi32::<23>(bits), _mm256_set1_epi32(127));
            let mantissa =
                _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff)), _mm256_set1_epi32(0x3f80_0000));
            let shift = _mm256_and_ps(small, _mm256_set1_ps(23.0));
            (_mm256_castsi256_ps(mantissa), _mm256_sub_ps(_mm256_cvtepi32_ps(exponent), shift))
        }
    }
    #[inline(always)]
    fn swap_pairs(self, a: __m256) -> __m256 {
        unsafe { _mm256_permute_ps::<0b10_11_00_01>(a) }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
