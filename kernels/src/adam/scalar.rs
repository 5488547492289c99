//! Specification of the step.

use super::{Dense, Packed, Step};
use crate::dynamic8::{BLOCK, decode, encode};

/// Weight and moments after one step.
fn element(by: &Step, g: f32, w: f32, m: f32, v: f32) -> [f32; 3] {
    let g = by.clip * g;
    let m = m + by.one_minus_beta1 * (g - m);
    let v = by.beta2 * v + by.one_minus_beta2 * (g * g);
    let w = by.decay * w - by.rate * (m / (v.sqrt() / by.correction + by.epsilon));
    [w, m, v]
}

/// # Safety
/// The operands have `len` elements and do not overlap.
pub(super) unsafe fn dense(by: &Step, data: Dense, len: usize) {
    for i in 0..len {
        // SAFETY: promised by the caller.
        unsafe {
            let [w, m, v] = element(by, *data.g.add(i), *data.w.add(i), *data.m.add(i), *data.v.add(i));
            (*data.w.add(i), *data.m.add(i), *data.v.add(i)) = (w, m, v);
        }
    }
}

/// One block, of `len` elements.
///
/// # Safety
/// The operands have `len` elements and one scale, and do not overlap.
pub(super) unsafe fn packed(by: &Step, data: Packed, len: usize) {
    let mut moments = [[0.0; BLOCK]; 2];
    // SAFETY: promised by the caller.
    let (g, w) = unsafe { (std::slice::from_raw_parts(data.g, len), std::slice::from_raw_parts_mut(data.w, len)) };
    for (moment, out) in data.moments.iter().zip(&mut moments) {
        // SAFETY: promised by the caller.
        unsafe { decode(moment.map, std::slice::from_raw_parts(moment.codes, len), *moment.absmax, &mut out[..len]) };
    }
    let [m, v] = &mut moments;
    for i in 0..len {
        [w[i], m[i], v[i]] = element(by, g[i], w[i], m[i], v[i]);
    }
    for (moment, x) in data.moments.iter().zip(&moments) {
        // SAFETY: promised by the caller.
        unsafe { *moment.absmax = encode(moment.map, &x[..len], std::slice::from_raw_parts_mut(moment.codes, len)) };
    }
}
