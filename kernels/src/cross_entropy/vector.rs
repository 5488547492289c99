//! Per-row work of cross-entropy on vectors.

use super::Spec;
use super::scalar::Gradient;
use crate::simd::{map, math, simd_fn};

/// Vectors that are summed in `f32` before they are added to an `f64`.
const BLOCK: usize = 64;

simd_fn! {
    /// Turns raw logits into `z`.
    pub(super) fn prepare<S>(s, spec: &Spec, logits: &mut [f32]) {
        let (pointer, len) = (logits.as_mut_ptr(), logits.len());
        // SAFETY: in place on one slice.
        unsafe {
            match spec.softcap {
                Some(cap) => {
                    let (inside, outside) = (s.splat(1.0 / cap), s.splat(cap / spec.temperature));
                    map(s, pointer, pointer, len, |z| s.mul(outside, math::tanh(s, s.mul(z, inside))));
                }
                None if spec.temperature != 1.0 => {
                    let scale = s.splat(1.0 / spec.temperature);
                    map(s, pointer, pointer, len, |z| s.mul(z, scale));
                }
                None => {}
            }
        }
    }
}

simd_fn! {
    /// Log of the sum of exponentials, and the mean.
    pub(super) fn lse_mean<S>(s, z: &[f32]) -> (f64, f64) {
        let len = z.len();
        let whole = len / S::LANES * S::LANES;
        let mut top = [s.splat(f32::NEG_INFINITY); 4];
        for (index, i) in (0..whole).step_by(S::LANES).enumerate() {
            // SAFETY: a whole vector below `len`.
            top[index % 4] = s.max(unsafe { s.load(z.as_ptr().add(i)) }, top[index % 4]);
        }
        let top = s.top(s.max(s.max(top[0], top[1]), s.max(top[2], top[3])));
        let top = z[whole..].iter().fold(top, |a, &b| a.max(b));
        let shift = s.splat(top);
        let (mut sum, mut total) = (0.0, 0.0);
        for start in (0..whole).step_by(BLOCK * S::LANES) {
            let (mut terms, mut values) = (s.zero(), s.zero());
            for i in (start..whole.min(start + BLOCK * S::LANES)).step_by(S::LANES) {
                // SAFETY: a whole vector below `len`.
                let z = unsafe { s.load(z.as_ptr().add(i)) };
                terms = s.add(terms, math::exp(s, s.sub(z, shift)));
                values = s.add(values, z);
            }
            sum += f64::from(s.sum(terms));
            total += f64::from(s.sum(values));
        }
        for &z in &z[whole..] {
            sum += (f64::from(z) - f64::from(top)).exp();
            total += f64::from(z);
        }
        (f64::from(top) + sum.ln(), total / len as f64)
    }
}

simd_fn! {
    /// Turns `z` into its gradient, but for the target.
    pub(super) fn gradient<S>(s, gradient: Gradient, lse: f32, z: &mut [f32]) {
        let (pointer, len) = (z.as_mut_ptr(), z.len());
        let (probability, even) = (s.splat(gradient.probability), s.splat(gradient.even));
        let (shift, bend, one) = (s.splat(lse), s.splat(gradient.bend), s.splat(1.0));
        // SAFETY: in place on one slice.
        unsafe {
            map(s, pointer, pointer, len, |z| {
                let value = s.sub(s.mul(probability, math::exp(s, s.sub(z, shift))), even);
                let bent = s.mul(z, bend);
                s.mul(value, s.fnma(bent, bent, one))
            });
        }
    }
}
