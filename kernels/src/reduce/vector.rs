//! Reductions on vectors. The loops of [`scalar`] are compiled again for wide vectors; only the
//! exponentials need code of their own.

use super::{Reduce, scalar};
use crate::simd::{AHEAD, Simd, WAYS, map_to, map2_to, math, prefetch, prefetch_far, simd_fn};

/// Vectors whose exponentials are summed in `f32` before they are added to an `f64`.
const BLOCK: usize = 64;

/// Sums of exponentials that do not wait for each other.
const PAIR: usize = 2;

/// Longer rows do not stay in the first-level cache beside the next one.
const NEAR: usize = 4096;

/// How far to fetch ahead in rows of `len`: most often the next row follows.
fn ahead(len: usize) -> usize {
    if len <= NEAR { len } else { AHEAD }
}

/// `sum(e^(x - top))`, storing the terms in `out` if there is one.
#[inline(always)]
fn exp_sum<S: Simd>(s: S, x: &[f32], top: f32, out: Option<*mut f32>) -> f64 {
    let (shift, unit) = (s.splat(top), s.splat(std::f32::consts::LOG2_E));
    let mut sum = 0.0;
    let (step, ahead) = (PAIR * S::LANES, ahead(x.len()));
    for start in (0..x.len()).step_by(BLOCK * S::LANES) {
        let end = x.len().min(start + BLOCK * S::LANES);
        let whole = end - (end - start) % step;
        let mut acc = [s.zero(); PAIR];
        for i in (start..whole).step_by(step) {
            for (way, acc) in acc.iter_mut().enumerate() {
                let i = i + way * S::LANES;
                prefetch_far(x.as_ptr().wrapping_add(i + ahead));
                // SAFETY: the vector lies below `whole`; `out` has room for the row.
                unsafe {
                    let e = math::exp2(s, s.mul(s.sub(s.load(x.as_ptr().add(i)), shift), unit));
                    if let Some(out) = out {
                        s.store(out.add(i), e);
                    }
                    *acc = s.add(*acc, e);
                }
            }
        }
        for i in (whole..end).step_by(S::LANES) {
            let n = (end - i).min(S::LANES);
            // SAFETY: `i + n <= end`, the length of the row at most, which `out` has room for.
            unsafe {
                let e = math::exp2(s, s.mul(s.sub(s.load_part(x.as_ptr().add(i), n), shift), unit));
                if let Some(out) = out {
                    s.store_part(out.add(i), n, e);
                }
                // Lanes above the row hold e^-top; they must not count.
                let mut lanes = [0.0; 16];
                s.store_part(lanes.as_mut_ptr(), n, e);
                acc[0] = s.add(acc[0], s.load(lanes.as_ptr()));
            }
        }
        sum += f64::from(s.sum(s.add(acc[0], acc[1])));
    }
    sum
}

/// Largest element that is a number.
#[inline(always)]
fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut acc = [s.splat(f32::NEG_INFINITY); WAYS];
    let step = WAYS * S::LANES;
    let whole = x.len() - x.len() % step;
    for i in (0..whole).step_by(step) {
        for (way, acc) in acc.iter_mut().enumerate() {
            // SAFETY: below `whole`. The second operand of `max` wins if either is NaN.
            *acc = unsafe { s.max(s.load(x.as_ptr().add(i + way * S::LANES)), *acc) };
        }
    }
    let top = s.top(s.max(s.max(acc[0], acc[1]), s.max(acc[2], acc[3])));
    x[whole..].iter().fold(top, |a, &x| a.max(x))
}

simd_fn! {
    /// As [`scalar::row`].
    pub(super) fn row<S>(s, op: Reduce, x: &[f32]) -> f64 {
        if op != Reduce::LogSumExp {
            return scalar::row(op, x);
        }
        let top = scalar::row(Reduce::Max, x);
        if !top.is_finite() {
            return top;
        }
        top + exp_sum(s, x, top as f32, None).ln()
    }
}

simd_fn! {
    /// As [`scalar::columns`].
    pub(super) fn columns<S>(_s, op: Reduce, x: &[f32], stride: usize, column: usize, out: &mut [f32]) {
        scalar::columns(op, x, stride, column, out);
    }
}

simd_fn! {
    /// As [`scalar::picked`].
    pub(super) fn picked<S>(_s, op: Reduce, rows: &[u32], x: &[f32], d: usize, column: usize, out: &mut [f32]) {
        scalar::picked(op, rows, x, d, column, out);
    }
}

simd_fn! {
    /// `terms` is `out`, or a row in the cache if the result is stored past it.
    pub(super) fn softmax<S>(s, past: bool, x: &[f32], terms: *mut f32, out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        // A NaN is no matter here: it makes the sum NaN, and that all elements.
        let top = largest(s, x);
        let sum = exp_sum(s, x, top, Some(terms));
        let scale = s.splat((1.0 / sum) as f32);
        // SAFETY: both have a row; they are one or do not overlap.
        unsafe { map_to(s, past, terms, out.as_mut_ptr(), out.len(), |e| s.mul(e, scale)) };
    }
}

simd_fn! {
    pub(super) fn softmax_dx<S>(s, past: bool, y: &[f32], dy: &[f32], dx: &mut [f32]) {
        let len = y.len();
        assert!(dy.len() == len && dx.len() == len);
        let (mut dot, ahead) = (0.0, ahead(len));
        for start in (0..len).step_by(BLOCK * S::LANES) {
            let end = len.min(start + BLOCK * S::LANES);
            let mut acc = s.zero();
            for i in (start..end).step_by(S::LANES) {
                for next in [y, dy] {
                    prefetch(next.as_ptr().wrapping_add(i + ahead));
                }
                // SAFETY: below the length of both slices.
                acc = unsafe {
                    s.fma(s.load_up_to(y.as_ptr().add(i), end - i), s.load_up_to(dy.as_ptr().add(i), end - i), acc)
                };
            }
            dot += f64::from(s.sum(acc));
        }
        let dot = s.splat(dot as f32);
        // SAFETY: all slices have `len` elements and do not overlap.
        unsafe {
            map2_to(s, past, y.as_ptr(), dy.as_ptr(), dx.as_mut_ptr(), len, |y, dy| s.mul(y, s.sub(dy, dot)));
        }
    }
}
