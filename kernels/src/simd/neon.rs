//! The implementation of [`Simd`] for 64-bit ARM, where these instructions are always there.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "each block is a few intrinsics of the base instruction set; memory is the caller's promise"
)]

use super::Simd;
use half::f16;
use std::arch::aarch64::*;

/// NEON, as the token that kernels are generic over.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    #[inline]
    pub(crate) fn new() -> Neon {
        Neon(())
    }
}

/// Exponents beyond which every power of two is zero or infinite; NaN stays.
#[inline(always)]
fn bounded(s: Neon, n: float32x4_t) -> float32x4_t {
    s.min(s.splat(200.0), s.max(s.splat(-200.0), n))
}

#[inline(always)]
fn bits(a: float32x4_t) -> uint32x4_t {
    unsafe { vreinterpretq_u32_f32(a) }
}

#[inline(always)]
fn floats(a: uint32x4_t) -> float32x4_t {
    unsafe { vreinterpretq_f32_u32(a) }
}

impl Simd for Neon {
    const LANES: usize = 4;
    type F = float32x4_t;
    type M = uint32x4_t;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> float32x4_t {
        let mut lanes = [0.0; 4];
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            vld1q_f32(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> float32x4_t {
        let lanes: [f32; 4] = std::array::from_fn(|i| f16::from_bits(unsafe { *p.add(i) }).to_f32());
        unsafe { vld1q_f32(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> float32x4_t {
        let lanes: [f32; 4] = std::array::from_fn(|i| f32::from(unsafe { *p.add(i) }));
        unsafe { vld1q_f32(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize, v: float32x4_t) {
        let mut lanes = [0.0; 4];
        unsafe {
            vst1q_f32(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }
    #[inline(always)]
    unsafe fn store_stream(self, p: *mut f32, v: float32x4_t) {
        // These processors see for themselves that whole lines are written, and do not read them first.
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn recip(self, a: float32x4_t) -> float32x4_t {
        self.div(self.splat(1.0), a)
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn fnma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmsq_f32(c, a, b) }
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // The instruction of this name returns a NaN, and not the second operand.
        self.select(self.lt(a, b), a, b)
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        self.select(self.lt(b, a), a, b)
    }
    #[inline(always)]
    fn sqrt(self, a: float32x4_t) -> float32x4_t {
        unsafe { vsqrtq_f32(a) }
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        unsafe { vrndnq_f32(a) }
    }
    #[inline(always)]
    fn floor(self, a: float32x4_t) -> float32x4_t {
        unsafe { vrndmq_f32(a) }
    }
    #[inline(always)]
    fn and(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { floats(vandq_u32(bits(a), bits(b))) }
    }
    #[inline(always)]
    fn or(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { floats(vorrq_u32(bits(a), bits(b))) }
    }
    #[inline(always)]
    fn xor(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { floats(veorq_u32(bits(a), bits(b))) }
    }
    #[inline(always)]
    fn lt(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        unsafe { vcltq_f32(a, b) }
    }
    #[inline(always)]
    fn le(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        unsafe { vcleq_f32(a, b) }
    }
    #[inline(always)]
    fn eq(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        unsafe { vceqq_f32(a, b) }
    }
    #[inline(always)]
    fn is_nan(self, a: float32x4_t) -> uint32x4_t {
        unsafe { vmvnq_u32(vceqq_f32(a, a)) }
    }
    #[inline(always)]
    fn both(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe { vandq_u32(a, b) }
    }
    #[inline(always)]
    fn either(self, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe { vorrq_u32(a, b) }
    }
    #[inline(always)]
    fn bits(self, a: uint32x4_t) -> u32 {
        const LANE: [u32; 4] = [1, 2, 4, 8];
        unsafe { vaddvq_u32(vandq_u32(a, vld1q_u32(LANE.as_ptr()))) }
    }
    #[inline(always)]
    fn select(self, mask: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(mask, a, b) }
    }
    #[inline(always)]
    fn fraction(self, x: float32x4_t) -> float32x4_t {
        let x = bounded(self, x);
        self.sub(x, self.floor(x))
    }
    #[inline(always)]
    fn scale_floor(self, x: float32x4_t, n: float32x4_t) -> float32x4_t {
        self.scale(x, self.floor(bounded(self, n)))
    }
    #[inline(always)]
    fn scale(self, x: float32x4_t, n: float32x4_t) -> float32x4_t {
        // Two factors, so that neither leaves the range of normal numbers; the first product is
        // exact, and the second is the one that rounds.
        unsafe {
            let n = vcvtnq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            let rest = vsubq_s32(n, half);
            let bias = vdupq_n_s32(127);
            let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, bias)));
            vmulq_f32(vmulq_f32(x, power(half)), power(rest))
        }
    }
    #[inline(always)]
    fn split(self, x: float32x4_t) -> (float32x4_t, float32x4_t) {
        unsafe {
            let small = vcltq_f32(x, vdupq_n_f32(f32::MIN_POSITIVE));
            let normal = bits(vbslq_f32(small, vmulq_f32(x, vdupq_n_f32(8_388_608.0)), x));
            let exponent = vsubq_s32(vreinterpretq_s32_u32(vshrq_n_u32::<23>(normal)), vdupq_n_s32(127));
            let mantissa = vorrq_u32(vandq_u32(normal, vdupq_n_u32(0x007f_ffff)), vdupq_n_u32(0x3f80_0000));
            let shift = self.select(small, vdupq_n_f32(23.0), vdupq_n_f32(0.0));
            (floats(mantissa), vsubq_f32(vcvtq_f32_s32(exponent), shift))
        }
    }
    #[inline(always)]
    fn swap_pairs(self, a: float32x4_t) -> float32x4_t {
        unsafe { vrev64q_f32(a) }
    }
    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        unsafe { vaddvq_f32(a) }
    }
}
