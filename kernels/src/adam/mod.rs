//! One step of Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019), in one pass over memory, for
//! moments in f32 or in 8 bits ([`crate::dynamic8`]):
//!
//! ```text
//! g = clip gradient
//! m = m + (1 - beta1)(g - m)
//! v = beta2 v + (1 - beta2) g²
//! w = decay w - rate m / (sqrt(v) / correction + epsilon)
//! ```
//!
//! Weight and moments are overwritten. Relative to the larger of its terms, the error of `m` and `v` is at most `5e-7`, that of the
//! step `m / (...)` at most `2e-6`. Moments in 8 bits are rounded after the step was made from what they were before, so the weight
//! sees no more than the rounding of earlier steps. NaN and infinities pass as the formulas say.

mod scalar;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

use crate::dynamic8::{BLOCK, Map, PackedMut};
use crate::pool::Pool;

/// Elements of one task: whole blocks.
const GRAIN: usize = 128 * BLOCK;

/// The numbers of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// What the gradient is multiplied by.
    pub clip: f32,
    /// `1 - beta1`.
    pub one_minus_beta1: f32,
    /// Decay rate of the squared gradient's mean.
    pub beta2: f32,
    /// `1 - beta2`.
    pub one_minus_beta2: f32,
    /// Added to the denominator.
    pub epsilon: f32,
    /// What the root of `v` is divided by: `sqrt(1 - beta2^t)`.
    pub correction: f32,
    /// Learning rate over `1 - beta1^t`.
    pub rate: f32,
    /// What is left of a weight: `1 - rate of learning * weight decay`.
    pub decay: f32,
}

/// One step with moments in f32.
///
/// # Panics
/// When lengths differ.
#[track_caller]
pub fn step(pool: &Pool, by: &Step, g: &[f32], w: &mut [f32], m: &mut [f32], v: &mut [f32]) {
    assert!(w.len() == g.len() && m.len() == g.len() && v.len() == g.len(), "length of an operand of adam");
    let data = Dense { g: g.as_ptr(), w: w.as_mut_ptr(), m: m.as_mut_ptr(), v: v.as_mut_ptr() };
    each(pool, g.len(), &|start, len| {
        let data = &data;
        // SAFETY: the part lies inside all operands, which the borrows keep apart, and belongs to this task alone.
        unsafe {
            let part = data.after(start);
            match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() => vector::dense(isa, *by, part, len),
                _ => scalar::dense(by, part, len),
            }
        }
    });
}

/// One step with moments in 8 bits: the mean with signs, that of squares usually without.
///
/// # Panics
/// When lengths differ.
#[track_caller]
pub fn step_packed(pool: &Pool, by: &Step, g: &[f32], w: &mut [f32], m: PackedMut<'_>, v: PackedMut<'_>) {
    assert!(w.len() == g.len(), "length of an operand of adam");
    m.check(g.len());
    v.check(g.len());
    let packed = |x: PackedMut<'_>| Moment { map: x.map, codes: x.codes.as_mut_ptr(), absmax: x.absmax.as_mut_ptr() };
    let data = Packed { g: g.as_ptr(), w: w.as_mut_ptr(), moments: [packed(m), packed(v)] };
    each(pool, g.len(), &|start, len| {
        let data = &data;
        let whole = len / BLOCK;
        // SAFETY: as `step`; tasks begin at whole blocks.
        unsafe {
            let part = data.after(start / BLOCK);
            let done = match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() => {
                    vector::packed(isa, *by, part, whole);
                    whole
                }
                _ => 0,
            };
            for block in done..len.div_ceil(BLOCK) {
                scalar::packed(by, part.after(block), BLOCK.min(len - block * BLOCK));
            }
        }
    });
}

fn each(pool: &Pool, len: usize, body: &(dyn Fn(usize, usize) + Sync)) {
    pool.run(len.div_ceil(GRAIN), &|task| body(task * GRAIN, GRAIN.min(len - task * GRAIN)));
}

/// Operands of [`step`] from some element on.
#[derive(Clone, Copy)]
struct Dense {
    g: *const f32,
    w: *mut f32,
    m: *mut f32,
    v: *mut f32,
}

// SAFETY: tasks access disjoint parts.
unsafe impl Sync for Dense {}

impl Dense {
    /// The operands `start` elements further.
    ///
    /// # Safety
    /// They have as many.
    unsafe fn after(self, start: usize) -> Dense {
        // SAFETY: promised by the caller.
        unsafe { Dense { g: self.g.add(start), w: self.w.add(start), m: self.m.add(start), v: self.v.add(start) } }
    }
}

#[derive(Clone, Copy)]
struct Moment {
    map: Map,
    codes: *mut u8,
    absmax: *mut f32,
}

/// Operands of [`step_packed`] from some block on.
#[derive(Clone, Copy)]
struct Packed {
    g: *const f32,
    w: *mut f32,
    moments: [Moment; 2],
}

// SAFETY: tasks access disjoint parts.
unsafe impl Sync for Packed {}

impl Packed {
    /// The operands `blocks` further.
    ///
    /// # Safety
    /// They have as many.
    unsafe fn after(self, blocks: usize) -> Packed {
        let start = blocks * BLOCK;
        // SAFETY: promised by the caller.
        let moments = self.moments.map(|x| unsafe { Moment { codes: x.codes.add(start), absmax: x.absmax.add(blocks), ..x } });
        // SAFETY: as above.
        unsafe { Packed { g: self.g.add(start), w: self.w.add(start), moments } }
    }
}
