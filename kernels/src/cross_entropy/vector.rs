//! Per-row work of cross-entropy on vectors.

use super::Spec;
use super::scalar::{FLOOR, Gradient};
use crate::simd::{Simd, map, math, simd_fn};

/// Vectors that are summed in `f32` before they are added to an `f64`.
pub(super) const BLOCK: usize = 64;

/// `e^x`, and zero below [`FLOOR`].
#[inline(always)]
pub(super) fn power<S: Simd>(s: S, x: S::F) -> S::F {
    s.select(s.lt(x, s.splat(FLOOR)), s.zero(), math::exp(s, x))
}

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
        *top = raise(s, z, *top);
        let (pointer, len) = (z.as_mut_ptr(), z.len());
        // SAFETY: the whole slice.
        unsafe {
            match bend {
                0.0 => exponentials::<S, false>(s, pointer, len, *top, 0.0),
                _ => exponentials::<S, true>(s, pointer, len, *top, bend),
            }
        }
    }
}

/// The largest of `top` and all `z`.
#[inline(always)]
pub(super) fn raise<S: Simd>(s: S, z: &[f32], top: f32) -> f32 {
    let whole = z.len() / S::LANES * S::LANES;
    let mut tops = [s.splat(top); 4];
    for (index, i) in (0..whole).step_by(S::LANES).enumerate() {
        // SAFETY: a whole vector below the slice's end.
        tops[index % 4] = s.max(unsafe { s.load(z.as_ptr().add(i)) }, tops[index % 4]);
    }
    let top = s.top(s.max(s.max(tops[0], tops[1]), s.max(tops[2], tops[3])));
    z[whole..].iter().fold(top, |a, &b| a.max(b))
}

/// Turns `z` into `e^(z - top)`, times the slope of a cap if there is one, and sums without that factor.
///
/// # Safety
/// `z` points to `len` floats.
#[inline(always)]
unsafe fn exponentials<S: Simd, const BENT: bool>(s: S, z: *mut f32, len: usize, top: f32, bend: f32) -> f64 {
    let (shift, bend, one) = (s.splat(top), s.splat(bend), s.splat(1.0));
    let mut sum = 0.0;
    for start in (0..len).step_by(BLOCK * S::LANES) {
        let mut terms = s.zero();
        for i in (start..len.min(start + BLOCK * S::LANES)).step_by(S::LANES) {
            // SAFETY: every access is below `len`; lanes beyond it are set to zero before they are summed.
            unsafe {
                let value = s.load_up_to(z.add(i), len - i);
                let e = power(s, s.sub(value, shift));
                let slope = if BENT {
                    let bent = s.mul(value, bend);
                    s.mul(e, s.fnma(bent, bent, one))
                } else {
                    e
                };
                s.store_up_to(z.add(i), len - i, slope);
                terms = s.add(terms, if len - i >= S::LANES { e } else { first(s, e, len - i) });
            }
        }
        sum += f64::from(s.sum(terms));
    }
    sum
}

/// The first `n` lanes, and zeros.
#[inline(always)]
pub(super) fn first<S: Simd>(s: S, v: S::F, n: usize) -> S::F {
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
                let value = s.sub(s.mul(probability, power(s, s.sub(z, shift))), even);
                let bent = s.mul(z, bend);
                s.mul(value, s.fnma(bent, bent, one))
            });
        }
    }
}
