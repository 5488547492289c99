//! The step on vectors: everything between the loads and the stores stays in registers.

use super::{Dense, Packed, Step};
use crate::dynamic8::{BLOCK, Map, inverse};
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

simd_fn! {
    /// Callers uphold the contract of [`super::scalar::packed`], for `blocks` whole blocks.
    ///
    /// A block is rounded while the next one makes its step: the step waits for divisions, and rounding for table look-ups.
    pub(super) fn packed<S>(s, by: Step, data: Packed, blocks: usize) {
        let by = Lanes::new(s, &by);
        let Packed { g, w, moments } = data;
        let values = moments.map(|x| x.map.values().as_ptr());
        let buckets = moments.map(|x| x.map.buckets());
        let mut kept = [const { Kept([[0.0; BLOCK]; 2]) }; 2];
        let mut inverses = [s.zero(); 2];
        for block in 0..=blocks {
            let (now, before) = (block % 2, (block + 1) % 2);
            // SAFETY: inside the blocks, which the operands have, and blocks are whole vectors; a fetch accesses nothing. Quotients are
            // one at most, up to rounding, since the divisor is the largest magnitude.
            unsafe {
                let scales = [0, 1].map(|k: usize| if block < blocks { s.splat(*moments[k].absmax.add(block)) } else { s.zero() });
                let mut tops = [s.zero(); 2];
                for i in (0..BLOCK).step_by(S::LANES) {
                    let at = block * BLOCK + i;
                    if block > 0 {
                        for k in [0, 1] {
                            let quotient = s.mul(s.load(kept[k].0[before].as_ptr().add(i)), inverses[k]);
                            let codes = moments[k].codes.add(at - BLOCK);
                            match moments[k].map {
                                Map::Signed => s.put_signed_codes(quotient, buckets[k], codes),
                                Map::Unsigned => s.put_unsigned_codes(quotient, buckets[k], codes),
                            }
                        }
                    }
                    if block < blocks {
                        prefetch(g.wrapping_add(at + AHEAD));
                        prefetch(w.wrapping_add(at + AHEAD));
                        if i % 64 == 0 {
                            moments.iter().for_each(|x| prefetch(x.codes.wrapping_add(at + AHEAD).cast()));
                        }
                        let old = [0, 1].map(|k: usize| s.mul(s.look_up(values[k], moments[k].codes.add(at)), scales[k]));
                        let [new_w, new_m, new_v] = by.element(s, s.load(g.add(at)), s.load(w.add(at)), old[0], old[1]);
                        s.store(w.add(at), new_w);
                        for (k, x) in [new_m, new_v].into_iter().enumerate() {
                            s.store(kept[k].0[now].as_mut_ptr().add(i), x);
                            tops[k] = s.larger(tops[k], s.abs(x));
                        }
                    }
                }
                if block < blocks {
                    for k in [0, 1] {
                        let absmax = s.largest(tops[k]);
                        *moments[k].absmax.add(block) = absmax;
                        inverses[k] = s.splat(inverse(absmax));
                    }
                }
            }
        }
    }
}
