//! Specification of the gates and their slopes, in `f64`.

use super::Gate;
use crate::elementwise::erf;

/// `f(x)` and `f'(x)`.
fn value_and_slope(f: Gate, x: f64) -> (f64, f64) {
    match f {
        Gate::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s + x * s * (1.0 - s))
        }
        Gate::GeluTanh => {
            // x (1 + tanh u) / 2 is x / (1 + e^-2u).
            let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            let s = 1.0 / (1.0 + (-scale * (x + 0.044715 * x * x * x)).exp());
            (x * s, s + x * s * (1.0 - s) * scale * (1.0 + 3.0 * 0.044715 * x * x))
        }
        Gate::GeluErf => {
            let below = 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
            let density = 0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2 * (-0.5 * x * x).exp();
            (x * below, below + x * density)
        }
    }
}

/// # Safety
/// See [`super::glu_raw`].
pub(super) unsafe fn forward(f: Gate, len: usize, gate: *const f32, up: *const f32, out: *mut f32) {
    for i in 0..len {
        // SAFETY: promised by the caller; an element is read before it is written.
        unsafe { *out.add(i) = value_and_slope(f, f64::from(*gate.add(i))).0 as f32 * *up.add(i) };
    }
}

/// # Safety
/// See [`super::glu_bwd_raw`].
pub(super) unsafe fn backward(f: Gate, len: usize, [gate, up, d_out]: [*const f32; 3], [d_gate, d_up]: [*mut f32; 2]) {
    for i in 0..len {
        // SAFETY: promised by the caller; an element is read before it is written.
        unsafe {
            let (value, slope) = value_and_slope(f, f64::from(*gate.add(i)));
            let (up, d_out) = (*up.add(i), *d_out.add(i));
            *d_gate.add(i) = d_out * up * slope as f32;
            *d_up.add(i) = d_out * value as f32;
        }
    }
}
