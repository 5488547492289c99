//! Per-row work on vectors.

use super::Chain;
use crate::cross_entropy::vector::{BLOCK, first, power, raise};
use crate::simd::{Simd, map, map2, math, simd_fn};

/// The chain rule on vectors.
#[inline(always)]
fn chained<S: Simd>(s: S, chain: Chain, z: S::F, d_z: S::F) -> S::F {
    let bent = s.mul(z, s.splat(chain.bend));
    s.mul(s.mul(d_z, s.splat(chain.factor)), s.fnma(bent, bent, s.splat(1.0)))
}

/// Sums of two terms of each element of `a` and `b`, in `f64` by block.
///
/// # Safety
/// Both point to `len` floats.
#[inline(always)]
unsafe fn sums<S: Simd>(s: S, a: *const f32, b: *const f32, len: usize, f: impl Fn(S::F, S::F) -> (S::F, S::F)) -> [f64; 2] {
    let mut total = [0.0; 2];
    for start in (0..len).step_by(BLOCK * S::LANES) {
        let (mut x, mut y) = (s.zero(), s.zero());
        for i in (start..len.min(start + BLOCK * S::LANES)).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: every access is below `len`; lanes beyond it are set to zero before they are summed.
            let (u, v) = unsafe { f(s.load_up_to(a.add(i), n), s.load_up_to(b.add(i), n)) };
            let whole = n >= S::LANES;
            x = s.add(x, if whole { u } else { first(s, u, n) });
            y = s.add(y, if whole { v } else { first(s, v, n) });
        }
        total[0] += f64::from(s.sum(x));
        total[1] += f64::from(s.sum(y));
    }
    total
}

simd_fn! {
    /// As [`super::scalar::moment`].
    pub(super) fn moment<S>(s, z: &[f32], other: Option<&[f32]>, top: &mut f32) -> [f64; 2] {
        *top = raise(s, z, *top);
        let (shift, len) = (s.splat(*top), z.len());
        let term = |z: S::F, other: S::F| {
            let e = power(s, s.sub(z, shift));
            (e, s.mul(e, s.sub(z, other)))
        };
        // SAFETY: both slices are as long.
        unsafe {
            match other {
                Some(other) => {
                    assert_eq!(other.len(), len);
                    sums(s, z.as_ptr(), other.as_ptr(), len, term)
                }
                None => sums(s, z.as_ptr(), z.as_ptr(), len, |z, _| {
                    let e = power(s, s.sub(z, shift));
                    (e, s.mul(e, z))
                }),
            }
        }
    }
}

simd_fn! {
    /// As [`super::scalar::entropy`].
    pub(super) fn entropy<S>(s, chain: Chain, lse: f32, entropy: f32, z: &mut [f32]) {
        let (pointer, len) = (z.as_mut_ptr(), z.len());
        let (lse, entropy) = (s.splat(lse), s.splat(entropy));
        // SAFETY: in place on one slice.
        unsafe {
            map(s, pointer, pointer, len, |z| {
                let log = s.sub(z, lse);
                chained(s, chain, z, s.neg(s.mul(power(s, log), s.add(log, entropy))))
            });
        }
    }
}

/// `log(alpha e^p + (1 - alpha) e^q)`.
#[inline(always)]
fn mixed<S: Simd>(s: S, alpha: f32, p: S::F, q: S::F) -> S::F {
    let (a, b) = (s.add(p, s.splat(alpha.ln())), s.add(q, s.splat((1.0 - alpha).ln())));
    let apart = math::exp(s, s.neg(s.abs(s.sub(a, b))));
    s.add(s.max(a, b), math::log_1p(s, apart))
}

simd_fn! {
    /// As [`super::scalar::mixture`].
    pub(super) fn mixture<S>(s, alpha: f32, lse: [f32; 2], p: &[f32], q: &[f32]) -> [f64; 2] {
        assert_eq!(p.len(), q.len());
        let [lse_p, lse_q] = lse.map(|lse| s.splat(lse));
        // SAFETY: both slices are as long.
        let [from_p, from_q] = unsafe {
            sums(s, p.as_ptr(), q.as_ptr(), p.len(), |p, q| {
                let (p, q) = (s.sub(p, lse_p), s.sub(q, lse_q));
                let m = mixed(s, alpha, p, q);
                (s.mul(power(s, p), s.sub(p, m)), s.mul(power(s, q), s.sub(q, m)))
            })
        };
        [f64::from(alpha) * from_p, f64::from(1.0 - alpha) * from_q]
    }
}

simd_fn! {
    /// As [`super::scalar::divergence`].
    pub(super) fn divergence<S>(s, alpha: f32, chain: Chain, lse: [f32; 2], share: f32, p: &mut [f32], q: &[f32]) {
        assert_eq!(p.len(), q.len());
        let (pointer, len) = (p.as_mut_ptr(), p.len());
        let [lse_p, lse_q] = lse.map(|lse| s.splat(lse));
        let (scale, share) = (s.splat(alpha), s.splat(share));
        let logs = |z: S::F, q: S::F| (s.sub(z, lse_p), s.sub(q, lse_q));
        // SAFETY: both slices are as long, and the output is the first of them.
        unsafe {
            match alpha {
                0.0 => map2(s, pointer, q.as_ptr(), pointer, len, |z, q| {
                    let (p, q) = logs(z, q);
                    chained(s, chain, z, s.mul(power(s, p), s.sub(s.sub(p, q), share)))
                }),
                1.0 => map2(s, pointer, q.as_ptr(), pointer, len, |z, q| {
                    let (p, q) = logs(z, q);
                    chained(s, chain, z, s.sub(power(s, p), power(s, q)))
                }),
                _ => map2(s, pointer, q.as_ptr(), pointer, len, |z, q| {
                    let (p, q) = logs(z, q);
                    let distance = s.sub(s.mul(scale, s.sub(p, mixed(s, alpha, p, q))), share);
                    chained(s, chain, z, s.mul(power(s, p), distance))
                }),
            }
        }
    }
}
