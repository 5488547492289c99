//! Gated linear units on vectors.

use super::Gate;
use crate::simd::{Simd, map2_to, math, put_up_to, simd_fn};

/// Squares of gates are bounded here, far beyond where the slope is flat, so that no infinity meets a zero.
const LARGEST_SQUARE: f32 = 1e4;

simd_fn! {
    /// Callers uphold the contract of [`super::glu_raw`].
    pub(super) fn forward<S>(s, f: Gate, past: bool, len: usize, gate: *const f32, up: *const f32, out: *mut f32) {
        // SAFETY: promised by the callers.
        unsafe {
            match f {
                Gate::Silu => map2_to(s, past, gate, up, out, len, |gate, up| s.mul(math::silu(s, gate), up)),
                Gate::GeluTanh => map2_to(s, past, gate, up, out, len, |gate, up| s.mul(math::gelu_tanh(s, gate), up)),
                Gate::GeluErf => map2_to(s, past, gate, up, out, len, |gate, up| s.mul(math::gelu_erf(s, gate), up)),
            }
        }
    }
}

simd_fn! {
    /// Callers uphold the contract of [`super::glu_bwd_raw`].
    pub(super) fn backward<S>(s, f: Gate, past: [bool; 2], len: usize, inputs: [*const f32; 3], outputs: [*mut f32; 2]) {
        let one = s.splat(1.0);
        // SAFETY: promised by the callers.
        unsafe {
            match f {
                Gate::Silu => each(s, past, len, inputs, outputs, |x| {
                    let sigmoid = math::sigmoid(s, x);
                    let value = s.mul(x, sigmoid);
                    (value, s.fma(value, s.sub(one, sigmoid), sigmoid))
                }),
                Gate::GeluTanh => each(s, past, len, inputs, outputs, |x| {
                    let square = s.min(s.splat(LARGEST_SQUARE), s.mul(x, x));
                    // 2 sqrt(2 / pi), and that times 0.044715 and three times it.
                    let u = s.mul(x, s.fma(square, s.splat(0.071_354_82), s.splat(1.595_769_2)));
                    let sigmoid = math::sigmoid(s, u);
                    let value = s.mul(x, sigmoid);
                    let steep = s.fma(square, s.splat(0.214_064_44), s.splat(1.595_769_2));
                    (value, s.fma(s.mul(value, s.sub(one, sigmoid)), steep, sigmoid))
                }),
                Gate::GeluErf => each(s, past, len, inputs, outputs, |x| {
                    let half = s.splat(0.5);
                    let below = s.fma(math::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half, half);
                    // 1 / sqrt(2 pi).
                    let density = s.mul(math::exp2(s, s.mul(s.mul(x, x), s.splat(-0.5 * std::f32::consts::LOG2_E))), s.splat(0.398_942_3));
                    (s.mul(x, below), s.fma(x, density, below))
                }),
            }
        }
    }
}

/// Applies the value and the slope that `f` gives for a gate.
///
/// # Safety
/// See [`super::glu_bwd_raw`].
#[inline(always)]
unsafe fn each<S: Simd>(
    s: S,
    past: [bool; 2],
    len: usize,
    [gate, up, d_out]: [*const f32; 3],
    [d_gate, d_up]: [*mut f32; 2],
    f: impl Fn(S::F) -> (S::F, S::F),
) {
    for i in (0..len).step_by(S::LANES) {
        let n = len - i;
        // SAFETY: every access is below `len`; all loads come before the stores.
        unsafe {
            let (value, slope) = f(s.load_up_to(gate.add(i), n));
            let (up, d_out) = (s.load_up_to(up.add(i), n), s.load_up_to(d_out.add(i), n));
            let d_gate_value = s.mul(s.mul(d_out, up), slope);
            let d_up_value = s.mul(d_out, value);
            put_up_to(s, past[0], d_gate.add(i), n, d_gate_value);
            put_up_to(s, past[1], d_up.add(i), n, d_up_value);
        }
    }
}
