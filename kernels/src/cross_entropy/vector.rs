//! Per-row work of cross-entropy on vectors.

use super::Spec;
use super::scalar::Gradient;
use crate::simd::{Simd, map, math, simd_fn};

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
    /// As [`super::scalar::online`].
    pub(super) fn online<S>(s, bend: f32, z: &mut [f32], top: &mut f32) -> f64 {
        let (pointer, len) = (z.as_mut_ptr(), z.len());
        let whole = len / S::LANES * S::LANES;
        let mut tops = [s.splat(*top); 4];
        for (index, i) in (0..whole).step_by(S::LANES).enumerate() {
            // SAFETY: a whole vector below `len`.
            tops[index % 4] = s.max(unsafe { s.load(pointer.add(i)) }, tops[index % 4]);
        }
        let most = s.top(s.max(s.max(tops[0], tops[1]), s.max(tops[2], tops[3])));
        let most = z[whole..].iter().fold(most, |a, &b| a.max(b));
        *top = most;
        let (shift, bend, one) = (s.splat(most), s.splat(bend), s.splat(1.0));
        let mut sum = 0.0;
        for start in (0..len).step_by(BLOCK * S::LANES) {
            let mut terms = s.zero();
            for i in (start..len.min(start + BLOCK * S::LANES)).step_by(S::LANES) {
                // SAFETY: every access is below `len`; lanes beyond it are loaded as zeros and set to zero.
                unsafe {
                    let z = s.load_up_to(pointer.add(i), len - i);
                    let e = math::exp(s, s.sub(z, shift));
                    let bent = s.mul(z, bend);
                    s.store_up_to(pointer.add(i), len - i, s.mul(e, s.fnma(bent, bent, one)));
                    terms = s.add(terms, if len - i >= S::LANES { e } else { first(s, e, len - i) });
                }
            }
            sum += f64::from(s.sum(terms));
        }
        sum
    }
}

/// The first `n` lanes, and zeros.
#[inline(always)]
fn first<S: Simd>(s: S, v: S::F, n: usize) -> S::F {
    let mut lanes = [0.0; 16];
    // SAFETY: a vector has at most 16 lanes.
    unsafe {
        s.store(lanes.as_mut_ptr(), v);
        s.load_part(lanes.as_ptr(), n)
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
