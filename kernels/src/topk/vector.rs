//! The scan for candidates on wide vectors.

use super::KEPT;
use crate::simd::{AHEAD, MOST, Simd, WAYS, prefetch_far, simd_fn};

/// Keys that are ranked at once, if there are no more.
const FEW: usize = 16;
const SOME: usize = 48;

/// Rows up to this length stay in the first-level cache while the next one is fetched.
const NEAR: usize = 4096;

/// Rounds whose masks are kept: one bit of a word for each.
const MASKS: usize = 64;

simd_fn! {
    /// As [`super::list`], for all rows of a task.
    pub(super) fn rows<S>(s, cols: usize, k: usize, x: &[f32], out: &mut [i32]) {
        let mut kept = Kept { places: [0; KEPT], keys: [0; KEPT], best: [0; KEPT + 1] };
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(k)) {
            let found =
                if cols <= NEAR { filter::<S, true>(s, x, &mut kept, out) } else { filter::<S, false>(s, x, &mut kept, out) };
            if !found {
                super::list(x, out);
            }
        }
    }
}

/// What reaches the bound of a row.
struct Kept {
    /// In the order of the row.
    places: [u32; KEPT],
    keys: [u64; KEPT],
    /// The places in order, and room for what is none.
    best: [i32; KEPT + 1],
}

/// As [`super::list`], in two passes: the first finds a bound that at least `k` elements reach, among the largest of as many
/// groups as there are lanes; the second keeps what reaches it, few more than `k` of a row without order, and ranks that. False
/// if the row is too short for the number of groups, or if too many reach the bound; then `out` is as it was. If `NEXT`, fetches the next row.
///
/// Where in a row the largest are is what no processor foresees: there is no branch on it but for how many they are.
#[inline(always)]
fn filter<S: Simd, const NEXT: bool>(s: S, x: &[f32], kept: &mut Kept, out: &mut [i32]) -> bool {
    let (k, step) = (out.len(), WAYS * S::LANES);
    let (whole, none) = (x.len() - x.len() % step, s.splat(f32::NEG_INFINITY));
    if x.len() < 2 * KEPT || 4 * k > 3 * step {
        return false;
    }
    let mut best = [none; WAYS];
    for i in (0..whole).step_by(step) {
        for (way, best) in best.iter_mut().enumerate() {
            let i = i + way * S::LANES;
            if !NEXT {
                prefetch_far(x.as_ptr().wrapping_add(i + AHEAD));
            }
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
    let (mut count, least) = (0, s.splat(bound));
    for start in (0..whole).step_by(MASKS * step) {
        let (mut masks, mut any, mut more) = ([0u64; MASKS], 0u64, 0);
        for (round, mask) in masks.iter_mut().enumerate().take((whole - start) / step) {
            let mut below = 0;
            for way in 0..WAYS {
                // SAFETY: below `whole`.
                let x = unsafe {
                    let at = x.as_ptr().add(start + round * step + way * S::LANES);
                    // The next row arrives while this one's largest are ranked; asked for in the first pass it would be waited for.
                    if NEXT {
                        prefetch_far(at.wrapping_add(x.len()));
                    }
                    s.load(at)
                };
                below |= u64::from(s.bits(s.lt(x, least))) << (way * S::LANES);
            }
            // A NaN is not below.
            *mask = !below & (u64::MAX >> (64 - step));
            any |= u64::from(*mask != 0) << round;
            more += mask.count_ones() as usize;
        }
        if count + more > KEPT {
            return false;
        }
        for place in &mut kept.places[count..count + more] {
            let round = any.trailing_zeros() as usize % MASKS;
            let mask = &mut masks[round];
            *place = (start + round * step) as u32 + mask.trailing_zeros();
            *mask &= *mask - 1;
            any &= !(u64::from(*mask == 0) << round);
        }
        count += more;
    }
    for i in (whole..x.len()).filter(|&i| x[i] >= bound || x[i].is_nan()) {
        if count == KEPT {
            return false;
        }
        kept.places[count] = i as u32;
        count += 1;
    }
    match count {
        0..=FEW => rank::<FEW>(x, kept, count),
        _ if count <= SOME => rank::<SOME>(x, kept, count),
        _ => rank::<KEPT>(x, kept, count),
    }
    out.copy_from_slice(&kept.best[..k]);
    true
}

/// Puts the first `count` of the places in order; there are at most `N`.
#[inline(always)]
fn rank<const N: usize>(x: &[f32], kept: &mut Kept, count: usize) {
    let Kept { places, keys, best } = kept;
    for (key, &place) in keys.iter_mut().zip(&places[..count]) {
        *key = super::key(x[place as usize], place as usize);
    }
    // Below all keys, which differ: what is none comes behind them.
    keys[count..N].fill(0);
    let mut ranks = [0u64; N];
    for &other in &keys[..N] {
        for (rank, &key) in ranks.iter_mut().zip(&keys[..N]) {
            *rank = if other > key { *rank + 1 } else { *rank };
        }
    }
    for (&rank, &key) in ranks.iter().zip(&keys[..N]) {
        best[rank as usize] = !(key as u32) as i32;
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
        let mut above = [zero; WAYS];
        for lanes in lanes[..N * S::LANES].chunks_exact(WAYS) {
            for (above, &lane) in above.iter_mut().zip(lanes) {
                *above = s.add(*above, s.select(s.lt(v, s.splat(lane)), one, zero));
            }
        }
        let above = s.add(s.add(above[0], above[1]), s.add(above[2], above[3]));
        least = s.max(s.neg(s.select(s.lt(above, most), v, s.splat(f32::INFINITY))), least);
    }
    -s.top(least)
}
