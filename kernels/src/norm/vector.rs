//! RMS normalization on vectors, one row at a time.

use crate::simd::{Simd, prefetch_far, put_up_to, simd_fn};

/// Vectors that are summed independently, to hide the latency of addition.
const WAYS: usize = 4;

/// Sum of `f(i, n)` over vectors of a row: `i` is the first element, `n` how many are left.
#[inline(always)]
fn row_sum<S: Simd>(s: S, len: usize, f: impl Fn(S::F, usize, usize) -> S::F) -> f32 {
    let mut acc = [s.zero(); WAYS];
    let mut i = 0;
    while i + WAYS * S::LANES <= len {
        for (way, acc) in acc.iter_mut().enumerate() {
            *acc = f(*acc, i + way * S::LANES, S::LANES);
        }
        i += WAYS * S::LANES;
    }
    while i < len {
        acc[0] = f(acc[0], i, len - i);
        i += S::LANES;
    }
    s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3])))
}

/// Weight of elements `i..i + n`.
///
/// # Safety
/// The weight, if any, has `i + n` elements.
#[inline(always)]
unsafe fn weight<S: Simd>(s: S, w: Option<&[f32]>, offset: S::F, i: usize, n: usize) -> S::F {
    match w {
        // SAFETY: promised by the caller.
        Some(w) => s.add(unsafe { s.load_up_to(w.as_ptr().add(i), n) }, offset),
        None => s.splat(1.0),
    }
}

simd_fn! {
    pub(super) fn forward<S>(s, past: bool, x: &[f32], w: Option<&[f32]>, eps: f32, offset: f32, y: &mut [f32]) -> f32 {
        let len = x.len();
        assert!(y.len() == len && w.is_none_or(|w| w.len() == len));
        let offset = s.splat(offset);
        let squares = row_sum(s, len, |acc, i, n| {
            // SAFETY: `i + n <= len`.
            let x = unsafe { s.load_up_to(x.as_ptr().add(i), n) };
            s.fma(x, x, acc)
        });
        let inv_rms = 1.0 / (squares / len as f32 + eps).sqrt();
        let scale = s.splat(inv_rms);
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // The next row, while this one is in the cache.
            prefetch_far(x.as_ptr().wrapping_add(len + i));
            // SAFETY: `i + n` is the length of all slices.
            unsafe {
                let x = s.mul(s.load_up_to(x.as_ptr().add(i), n), scale);
                put_up_to(s, past, y.as_mut_ptr().add(i), n, s.mul(x, weight(s, w, offset, i, n)));
            }
        }
        inv_rms
    }
}

simd_fn! {
    pub(super) fn dx<S>(s, past: bool, x: &[f32], w: Option<&[f32]>, offset: f32, inv_rms: f32, dy: &[f32], dx: &mut [f32]) {
        let len = x.len();
        assert!(dy.len() == len && dx.len() == len && w.is_none_or(|w| w.len() == len));
        let offset = s.splat(offset);
        let dot = row_sum(s, len, |acc, i, n| {
            // SAFETY: `i + n <= len`.
            unsafe {
                let g = s.mul(s.load_up_to(dy.as_ptr().add(i), n), weight(s, w, offset, i, n));
                s.fma(g, s.load_up_to(x.as_ptr().add(i), n), acc)
            }
        });
        let pull = s.splat(dot / len as f32 * inv_rms * inv_rms);
        let scale = s.splat(inv_rms);
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            for next in [x, dy] {
                prefetch_far(next.as_ptr().wrapping_add(len + i));
            }
            // SAFETY: `i + n` is the length of all slices.
            unsafe {
                let g = s.mul(s.load_up_to(dy.as_ptr().add(i), n), weight(s, w, offset, i, n));
                let x = s.load_up_to(x.as_ptr().add(i), n);
                put_up_to(s, past, dx.as_mut_ptr().add(i), n, s.mul(scale, s.fnma(x, pull, g)));
            }
        }
    }
}

simd_fn! {
    pub(super) fn dw<S>(s, x: &[f32], inv_rms: f32, dy: &[f32], dw: &mut [f32]) {
        let len = x.len();
        assert!(dy.len() == len && dw.len() == len);
        let scale = s.splat(inv_rms);
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: `i + n` is the length of all slices.
            unsafe {
                let x = s.mul(s.load_up_to(x.as_ptr().add(i), n), scale);
                let acc = s.load_up_to(dw.as_ptr().add(i), n);
                let acc = s.fma(x, s.load_up_to(dy.as_ptr().add(i), n), acc);
                s.store_up_to(dw.as_mut_ptr().add(i), n, acc);
            }
        }
    }
}
