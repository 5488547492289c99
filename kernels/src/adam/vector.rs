//! The step on vectors: everything between the loads and the stores stays in registers.

use super::{Dense, Packed, Step};
use crate::dynamic8::{BLOCK, put_block};
use crate::simd::{Simd, simd_fn};

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

/// Moments of a block between the step and their rounding.
#[repr(align(64))]
struct Block([f32; BLOCK]);

simd_fn! {
    /// Callers uphold the contract of [`super::scalar::packed`], for `blocks` whole blocks.
    pub(super) fn packed<S>(s, by: Step, data: Packed, blocks: usize) {
        let by = Lanes::new(s, &by);
        let Packed { g, w, moments: [m, v] } = data;
        let (values_m, values_v) = (m.map.values().as_ptr(), v.map.values().as_ptr());
        let (mut kept_m, mut kept_v) = (Block([0.0; BLOCK]), Block([0.0; BLOCK]));
        for block in 0..blocks {
            // SAFETY: inside the block, which the operands have; blocks are whole vectors.
            unsafe {
                let (scale_m, scale_v) = (s.splat(*m.absmax.add(block)), s.splat(*v.absmax.add(block)));
                let (mut top_m, mut top_v) = (s.zero(), s.zero());
                for i in (0..BLOCK).step_by(S::LANES) {
                    let at = block * BLOCK + i;
                    let old_m = s.mul(s.look_up(values_m, m.codes.add(at)), scale_m);
                    let old_v = s.mul(s.look_up(values_v, v.codes.add(at)), scale_v);
                    let [new_w, new_m, new_v] = by.element(s, s.load(g.add(at)), s.load(w.add(at)), old_m, old_v);
                    s.store(w.add(at), new_w);
                    s.store(kept_m.0.as_mut_ptr().add(i), new_m);
                    s.store(kept_v.0.as_mut_ptr().add(i), new_v);
                    top_m = s.larger(top_m, s.abs(new_m));
                    top_v = s.larger(top_v, s.abs(new_v));
                }
                for (moment, top, kept) in [(&m, top_m, &kept_m), (&v, top_v, &kept_v)] {
                    let absmax = s.largest(top);
                    *moment.absmax.add(block) = absmax;
                    put_block(s, moment.map, kept.0.as_ptr(), absmax, moment.codes.add(block * BLOCK));
                }
            }
        }
    }
}
