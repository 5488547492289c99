//! The scan for candidates on wide vectors.

use super::{KEPT, key};
use crate::simd::{AHEAD, MOST, Simd, WAYS, prefetch_far, simd_fn};

/// Keys that are ranked at once, if there are no more.
const FEW: usize = 16;

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
                // All of it now: spread over both passes it comes later.
                prefetch_far(x.as_ptr().wrapping_add(i + ahead));
                // SAFETY: below `whole`. The second operand of `max` wins if either is NaN.
                *best = unsafe { s.max(s.load(x.as_ptr().add(i)), *best) };
            }
        }
        let bound = if 2 * k <= S::LANES {
            let all = s.max(s.max(best[0], best[1]), s.max(best[2], best[3]));
            reached(s, k, [all])
        } else {
            reached(s, k, best)
        };
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
        for &key in &keys[..count] {
            // Keys differ, so that ranks do. What is not in use is below all of them.
            let rank = if count <= FEW { rank::<FEW>(&keys, key) } else { rank::<KEPT>(&keys, key) };
            if rank < k {
                out[rank] = !(key as u32) as i32;
            }
        }
        true
    }
}

/// The smallest of `N` vectors' lanes that fewer than `k` lanes exceed: at least `k` lanes reach it.
#[inline(always)]
fn reached<S: Simd, const N: usize>(s: S, k: usize, v: [S::F; N]) -> f32 {
    let mut lanes = [0.0; MOST];
    for (n, &v) in v.iter().enumerate() {
        // SAFETY: there is room for as many vectors as a round has.
        unsafe { s.store(lanes.as_mut_ptr().add(n * S::LANES), v) };
    }
    let (zero, one, most) = (s.zero(), s.splat(1.0), s.splat(k as f32));
    let mut least = s.splat(f32::NEG_INFINITY);
    for &v in &v {
        let mut above = zero;
        for &lane in &lanes[..N * S::LANES] {
            above = s.add(above, s.select(s.lt(v, s.splat(lane)), one, zero));
        }
        least = s.max(s.neg(s.select(s.lt(above, most), v, s.splat(f32::INFINITY))), least);
    }
    -s.top(least)
}

/// How many of the first `N` keys are larger than `key`.
#[inline(always)]
fn rank<const N: usize>(keys: &[u64; KEPT], key: u64) -> usize {
    keys[..N].iter().map(|&other| usize::from(other > key)).sum()
}
