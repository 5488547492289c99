//! The step on vectors: everything between the loads and the stores stays in registers.

use super::{Dense, Packed, Step};
use crate::dynamic8::{BLOCK, Buckets, Map, inverse};
use crate::simd::{Simd, prefetch, simd_fn};

/// The numbers of a step in every lane.
struct Lanes<S: Simd> {
    clip: S::F,
    one_minus_beta1: S::F,
    beta2: S::F,
    one_minus_beta2: S::F,
    epsilon: S::F,
    inverse: S::F,
    rate: S::F,
    decay: S::F,
}

impl<S: Simd> Lanes<S> {
    #[inline(always)]
    fn new(s: S, by: &Step) -> Lanes<S> {
        Lanes {
            clip: s.splat(by.clip),
            one_minus_beta1: s.splat(by.one_minus_beta1),
            beta2: s.splat(by.beta2),
            one_minus_beta2: s.splat(by.one_minus_beta2),
            epsilon: s.splat(by.epsilon),
            inverse: s.splat(1.0 / by.correction),
            rate: s.splat(by.rate),
            decay: s.splat(by.decay),
        }
    }

    /// Weight and moments after one step.
    #[inline(always)]
    fn element(&self, s: S, g: S::F, w: S::F, m: S::F, v: S::F) -> [S::F; 3] {
        let g = s.mul(self.clip, g);
        let m = s.fma(self.one_minus_beta1, s.sub(g, m), m);
        let v = s.fma(self.one_minus_beta2, s.mul(g, g), s.mul(self.beta2, v));
        let below = s.fma(s.sqrt(v), self.inverse, self.epsilon);
        let w = s.fnma(self.rate, s.div(m, below), s.mul(self.decay, w));
        [w, m, v]
    }
}

simd_fn! {
    /// Callers uphold the contract of [`super::scalar::dense`].
    pub(super) fn dense<S>(s, by: Step, data: Dense, len: usize) {
        let by = Lanes::new(s, &by);
        let Dense { g, w, m, v } = data;
        let whole = len - len % S::LANES;
        // SAFETY: below `len`, which the operands have.
        unsafe {
            for i in (0..whole).step_by(S::LANES) {
                let [new_w, new_m, new_v] =
                    by.element(s, s.load(g.add(i)), s.load(w.add(i)), s.load(m.add(i)), s.load(v.add(i)));
                s.store(w.add(i), new_w);
                s.store(m.add(i), new_m);
                s.store(v.add(i), new_v);
            }
            let rest = len - whole;
            let part = |x: *const f32| s.load_part(x.add(whole), rest);
            let [new_w, new_m, new_v] = by.element(s, part(g), part(w), part(m), part(v));
            s.store_part(w.add(whole), rest, new_w);
            s.store_part(m.add(whole), rest, new_m);
            s.store_part(v.add(whole), rest, new_v);
        }
    }
}

/// How far ahead of its use memory is fetched, in elements: more streams than the processor follows by itself.
const AHEAD: usize = 4 * BLOCK;

/// A moment of two blocks, between the step and its rounding.
#[repr(align(64))]
struct Kept([[f32; BLOCK]; 2]);

impl Kept {
    const EMPTY: Kept = Kept([[0.0; BLOCK]; 2]);
}

/// How a moment is rounded, known when the loop is compiled.
trait Rounding {
    /// # Safety
    /// As [`Simd::put_signed_codes`].
    unsafe fn put<S: Simd>(s: S, x: S::F, buckets: &Buckets, out: *mut u8);
}

struct Signed;

impl Rounding for Signed {
    #[inline(always)]
    unsafe fn put<S: Simd>(s: S, x: S::F, buckets: &Buckets, out: *mut u8) {
        // SAFETY: promised by the caller.
        unsafe { s.put_signed_codes(x, buckets, out) };
    }
}

struct Unsigned;

impl Rounding for Unsigned {
    #[inline(always)]
    unsafe fn put<S: Simd>(s: S, x: S::F, buckets: &Buckets, out: *mut u8) {
        // SAFETY: promised by the caller.
        unsafe { s.put_unsigned_codes(x, buckets, out) };
    }
}

simd_fn! {
    /// Callers uphold the contract of [`super::scalar::packed`], for `blocks` whole blocks.
    pub(super) fn packed<S>(s, by: Step, data: Packed, blocks: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            match data.moments.map(|x| x.map) {
                [Map::Signed, Map::Unsigned] => packed_as::<S, Signed, Unsigned>(s, &by, data, blocks),
                [Map::Signed, Map::Signed] => packed_as::<S, Signed, Signed>(s, &by, data, blocks),
                [Map::Unsigned, Map::Unsigned] => packed_as::<S, Unsigned, Unsigned>(s, &by, data, blocks),
                [Map::Unsigned, Map::Signed] => packed_as::<S, Unsigned, Signed>(s, &by, data, blocks),
            }
        }
    }
}

/// A block is rounded while the next one makes its step: the step waits for divisions, and rounding for table look-ups.
///
/// # Safety
/// As [`packed`].
#[inline(always)]
unsafe fn packed_as<S: Simd, M: Rounding, V: Rounding>(s: S, by: &Step, data: Packed, blocks: usize) {
    if blocks == 0 {
        return;
    }
    let by = Lanes::new(s, by);
    let Packed { g, w, moments: [m, v] } = data;
    let (values_m, values_v) = (m.map.values().as_ptr(), v.map.values().as_ptr());
    let (buckets_m, buckets_v) = (m.map.buckets(), v.map.buckets());
    let (mut kept_m, mut kept_v) = (Kept::EMPTY, Kept::EMPTY);
    let (kept_m, kept_v) = (kept_m.0.as_mut_ptr().cast::<f32>(), kept_v.0.as_mut_ptr().cast::<f32>());
    let (mut inverse_m, mut inverse_v) = (s.zero(), s.zero());
    for block in 0..=blocks {
        // Where this block's moments are kept, and those of the one before.
        let (now, before) = (block % 2 * BLOCK, (block + 1) % 2 * BLOCK);
        let start = block * BLOCK;
        // SAFETY: inside the blocks, which the operands have, and blocks are whole vectors; a fetch accesses nothing. Quotients are
        // one at most, up to rounding, since the divisor is the largest magnitude.
        unsafe {
            if block == blocks {
                for i in (0..BLOCK).step_by(S::LANES) {
                    M::put(s, s.mul(s.load(kept_m.add(before + i)), inverse_m), buckets_m, m.codes.add(start - BLOCK + i));
                    V::put(s, s.mul(s.load(kept_v.add(before + i)), inverse_v), buckets_v, v.codes.add(start - BLOCK + i));
                }
                return;
            }
            let (scale_m, scale_v) = (s.splat(*m.absmax.add(block)), s.splat(*v.absmax.add(block)));
            let (mut top_m, mut top_v) = (s.zero(), s.zero());
            for i in (0..BLOCK).step_by(S::LANES) {
                let at = start + i;
                prefetch(g.wrapping_add(at + AHEAD));
                prefetch(w.wrapping_add(at + AHEAD));
                if i % 64 == 0 {
                    prefetch(m.codes.wrapping_add(at + AHEAD).cast());
                    prefetch(v.codes.wrapping_add(at + AHEAD).cast());
                }
                let old_m = s.mul(s.look_up(values_m, m.codes.add(at)), scale_m);
                let old_v = s.mul(s.look_up(values_v, v.codes.add(at)), scale_v);
                let [new_w, new_m, new_v] = by.element(s, s.load(g.add(at)), s.load(w.add(at)), old_m, old_v);
                if block > 0 {
                    M::put(s, s.mul(s.load(kept_m.add(before + i)), inverse_m), buckets_m, m.codes.add(at - BLOCK));
                    V::put(s, s.mul(s.load(kept_v.add(before + i)), inverse_v), buckets_v, v.codes.add(at - BLOCK));
                }
                s.store(w.add(at), new_w);
                s.store(kept_m.add(now + i), new_m);
                s.store(kept_v.add(now + i), new_v);
                (top_m, top_v) = (s.larger(top_m, s.abs(new_m)), s.larger(top_v, s.abs(new_v)));
            }
            let (absmax_m, absmax_v) = (s.largest(top_m), s.largest(top_v));
            (*m.absmax.add(block), *v.absmax.add(block)) = (absmax_m, absmax_v);
            (inverse_m, inverse_v) = (s.splat(inverse(absmax_m)), s.splat(inverse(absmax_v)));
        }
    }
}
