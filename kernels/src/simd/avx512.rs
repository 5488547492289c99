//! The 512-bit implementation of [`Simd`].

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "each block is one intrinsic, allowed by the token; memory is the caller's promise"
)]

use super::{Buckets, Simd};
use crate::dynamic8::Map;
use std::arch::x86_64::*;

/// Proof that AVX-512 F, BW, DQ and VL may be executed.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Made only where the instructions are enabled.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) fn new() -> Avx512 {
        Avx512(())
    }
}

#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type F = __m512;
    type M = __mmask16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn look_up(self, table: *const f32, codes: *const u8) -> __m512 {
        unsafe { _mm512_i32gather_ps::<4>(_mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast())), table) }
    }
    #[inline(always)]
    unsafe fn put_signed_codes(self, x: __m512, buckets: &Buckets, out: *mut u8) {
        const SHIFT: u32 = Buckets::shift(Map::Signed);
        unsafe {
            let numbers = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(x, x);
            let bits = _mm512_castps_si512(x);
            let (magnitude, below) = (_mm512_and_si512(bits, _mm512_set1_epi32(i32::MAX)), _mm512_movepi32_mask(bits));
            let bucket = _mm512_srli_epi32::<SHIFT>(magnitude);
            let bucket = _mm512_max_epi32(bucket, _mm512_set1_epi32(buckets.first.cast_signed()));
            let half = _mm512_set1_epi32((buckets.steps.len() / 2) as i32);
            let bucket = _mm512_mask_add_epi32(bucket, below, bucket, half);
            let steps = buckets.steps.as_ptr().wrapping_sub(buckets.first as usize);
            let step = _mm512_mask_i32gather_epi32::<4>(_mm512_setzero_si512(), numbers, bucket, steps.cast());
            // The upper bits are compared: below them the shifted magnitude is zero.
            let beyond = _mm512_cmpgt_epu32_mask(_mm512_slli_epi32::<{ 32 - SHIFT }>(magnitude), step);
            let code = _mm512_mask_add_epi32(step, beyond, step, _mm512_set1_epi32(1));
            let code = _mm512_mask_xor_epi32(code, below, code, _mm512_set1_epi32(0xff));
            _mm_storeu_si128(out.cast(), _mm512_maskz_cvtepi32_epi8(numbers, code));
        }
    }
    #[inline(always)]
    unsafe fn put_unsigned_codes(self, x: __m512, buckets: &Buckets, out: *mut u8) {
        const SHIFT: u32 = Buckets::shift(Map::Unsigned);
        unsafe {
            // NaN becomes zero, too.
            let magnitude = _mm512_castps_si512(_mm512_max_ps(x, _mm512_setzero_ps()));
            let bucket = _mm512_srli_epi32::<SHIFT>(magnitude);
            let bucket = _mm512_max_epi32(bucket, _mm512_set1_epi32(buckets.first.cast_signed()));
            let steps = buckets.steps.as_ptr().wrapping_sub(buckets.first as usize);
            let step = _mm512_i32gather_epi32::<4>(bucket, steps.cast());
            let beyond = _mm512_cmpgt_epu32_mask(_mm512_slli_epi32::<{ 32 - SHIFT }>(magnitude), step);
            let code = _mm512_mask_add_epi32(step, beyond, step, _mm512_set1_epi32(1));
            _mm_storeu_si128(out.cast(), _mm512_cvtepi32_epi8(code));
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: __m512) {
        unsafe { _mm512_mask_storeu_ps(p, first(n), v) }
    }
    #[inline(always)]
    unsafe fn store_stream(self, p: *mut f32, v: __m512) {
        unsafe { _mm512_stream_ps(p, v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn recip(self, a: __m512) -> __m512 {
        // One step of Newton's from 14 bits. Infinity keeps the estimate, which is exact: the step would make it NaN.
        unsafe {
            let estimate = _mm512_rcp14_ps(a);
            let error = _mm512_fnmadd_ps(a, estimate, _mm512_set1_ps(1.0));
            let finite = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(a, _mm512_set1_ps(f32::INFINITY));
            _mm512_mask_fmadd_ps(estimate, finite, error, estimate)
        }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn larger(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))) }
    }
    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        unsafe { f32::from_bits(_mm512_reduce_max_epi32(_mm512_castps_si512(a)).cast_unsigned()) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn floor(self, a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn and(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_and_ps(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_or_ps(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_xor_ps(a, b) }
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn le(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    fn is_nan(self, a: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a) }
    }
    #[inline(always)]
    fn both(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }
    #[inline(always)]
    fn either(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }
    #[inline(always)]
    fn bits(self, a: __mmask16) -> u32 {
        u32::from(a)
    }
    #[inline(always)]
    fn select(self, mask: __mmask16, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }
    #[inline(always)]
    fn fraction(self, x: __m512) -> __m512 {
        unsafe { _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn scale_floor(self, x: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    fn scale(self, x: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    fn split(self, x: __m512) -> (__m512, __m512) {
        unsafe { (_mm512_getmant_ps::<_MM_MANT_NORM_1_2, _MM_MANT_SIGN_SRC>(x), _mm512_getexp_ps(x)) }
    }
    #[inline(always)]
    fn top(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    fn swap_pairs(self, a: __m512) -> __m512 {
        unsafe { _mm512_permute_ps::<0b10_11_00_01>(a) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
}
