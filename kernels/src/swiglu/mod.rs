//! SwiGLU gating (Shazeer 2020): `out = silu(gate) * up`, forward and backward.
//!
//! Outputs are overwritten. Relative error is at most `2e-6`, of the larger product in sums.

mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vector;

use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};

/// Elements of one task.
const GRAIN: usize = 16 * 1024;

/// `out = silu(gate) * up` over `len` elements.
#[track_caller]
pub fn swiglu(pool: &Pool, len: usize, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == len && up.len() == len && out.len() == len, "length of an operand of swiglu");
    pool.run_pieces(out, GRAIN, |index, out| {
        let range = index * GRAIN..index * GRAIN + out.len();
        let (gate, up) = (&gate[range.clone()], &up[range]);
        match pool.isa() {
            #[cfg(target_arch = "x86_64")]
            isa @ (Isa::Avx2 | Isa::Avx512) => vector::forward(isa, gate, up, out),
            _ => scalar::forward(gate, up, out),
        }
    });
}

/// Gradients of [`swiglu`]: `d_up = d_out silu(gate)`, `d_gate = d_out up silu'(gate)`.
#[track_caller]
pub fn swiglu_bwd(pool: &Pool, len: usize, gate: &[f32], up: &[f32], d_out: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    assert!(gate.len() == len && up.len() == len && d_out.len() == len, "length of an input of swiglu_bwd");
    assert!(d_gate.len() == len && d_up.len() == len, "length of an output of swiglu_bwd");
    let d_gate = Disjoint::new(d_gate);
    pool.run_pieces(d_up, GRAIN, |index, d_up| {
        let range = index * GRAIN..index * GRAIN + d_up.len();
        // SAFETY: tasks have ranges of their own.
        let d_gate = unsafe { d_gate.slice(range.start, range.len()) };
        let (gate, up, d_out) = (&gate[range.clone()], &up[range.clone()], &d_out[range]);
        match pool.isa() {
            #[cfg(target_arch = "x86_64")]
            isa @ (Isa::Avx2 | Isa::Avx512) => {
                vector::backward(isa, gate, up, d_out, d_gate, d_up);
            }
            _ => scalar::backward(gate, up, d_out, d_gate, d_up),
        }
    });
}
