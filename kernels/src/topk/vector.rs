//! The scan for candidates on wide vectors.

use super::{KEPT, key};
use crate::simd::{AHEAD, WAYS, prefetch, simd_fn};

/// Rows up to this length stay in the first-level cache while the next one is fetched.
const NEAR: usize = 4096;

simd_fn! {
    /// As [`super::list`].
    pub(super) fn list<S>(_s, x: &[f32], out: &mut [i32]) {
        super::list(x, out);
    }
}

simd_fn! {
    /// As [`super::list`], in two passes: the first finds a bound that at least `k` elements reach, among the largest of as many
    /// groups as there are lanes; the second keeps what reaches it, few more than `k` of a row without order, and ranks that. False
    /// if the row is too short for the number of groups, or if too many reach the bound; then `out` is as it was.
    pub(super) fn filter<S>(s, x: &[f32], out: &mut [i32]) -> bool {
        let (k, step) = (out.len(), WAYS * S::LANES);
        let (whole, none) = (x.len() - x.len() % step, s.splat(f32::NEG_INFINITY));
        if x.len() < 2 * KEPT || 4 * k > 3 * step {
            return false;
        }
        let ahead = if x.len() <= NEAR { x.len() } else { AHEAD };
        let mut best = [none; WAYS];
        for i in (0..whole).step_by(step) {
            for (way, best) in best.iter_mut().enumerate() {
                let i = i + way * S::LANES;
                prefetch(x.as_ptr().wrapping_add(i + ahead));
                // SAFETY: below `whole`. The second operand of `max` wins if either is NaN.
                *best = unsafe { s.max(s.load(x.as_ptr().add(i)), *best) };
            }
        }
        let mut bound = f32::NEG_INFINITY;
        for _ in 0..k {
            bound = s.top(s.max(s.max(best[0], best[1]), s.max(best[2], best[3])));
            let reached = s.splat(bound);
            for best in &mut best {
                *best = s.select(s.lt(*best, reached), *best, none);
            }
        }
        let (mut keys, mut count) = ([0u64; KEPT], 0);
        let mut keep = |i: usize| {
            if count < KEPT {
                keys[count] = key(x[i], i);
            }
            count += 1;
        };
        let least = s.splat(bound);
        for i in (0..whole).step_by(step) {
            let mut below = 0;
            for way in 0..WAYS {
                // SAFETY: below `whole`.
                let x = unsafe { s.load(x.as_ptr().add(i + way * S::LANES)) };
                below |= u64::from(s.bits(s.lt(x, least))) << (way * S::LANES);
            }
            // A NaN is not below.
            let mut reach = !below & (u64::MAX >> (64 - step));
            while reach != 0 {
                keep(i + reach.trailing_zeros() as usize);
                reach &= reach - 1;
            }
        }
        (whole..x.len()).filter(|&i| x[i] >= bound || x[i].is_nan()).for_each(&mut keep);
        if count > KEPT {
            return false;
        }
        let keys = &keys[..count];
        for &key in keys {
            // Keys differ, so that ranks do.
            let rank = keys.iter().map(|&other| usize::from(other > key)).sum::<usize>();
            if rank < k {
                out[rank] = !(key as u32) as i32;
            }
        }
        true
    }
}
