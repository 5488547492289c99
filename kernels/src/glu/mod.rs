//! Gated linear units (Shazeer 2020): `out = f(gate) * up`, forward and backward, for `f` of [`Gate`].
//!
//! Outputs are overwritten and may be any of the inputs. Relative error is at most `2e-6`, of the larger product in sums, for SwiGLU;
//! for the GELU gates it is `2e-6` of `max(1, |gate|)` times the other factors. NaN propagates; a gate of `-inf`, and the slope at
//! either infinity, is NaN, as the formulas say.

mod scalar;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

use crate::pool::Pool;
use crate::stream;

/// Elements of one task.
const GRAIN: usize = 32 * 1024;

/// What the gate passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// `x / (1 + e^-x)`: SwiGLU.
    Silu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`: GeGLU as Gemma has it.
    GeluTanh,
    /// `x Phi(x)`: GeGLU as it was published.
    GeluErf,
}

impl Gate {
    /// All gates.
    pub const ALL: [Gate; 3] = [Gate::Silu, Gate::GeluTanh, Gate::GeluErf];
}

/// `out = f(gate) * up`.
///
/// # Panics
/// When lengths differ.
#[track_caller]
pub fn glu(pool: &Pool, f: Gate, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let len = out.len();
    assert!(gate.len() == len && up.len() == len, "length of an operand of glu");
    // SAFETY: lengths are checked and the borrows exclude overlap.
    unsafe { glu_raw(pool, f, len, gate.as_ptr(), up.as_ptr(), out.as_mut_ptr()) }
}

/// [`glu()`] on pointers, in place where they are equal.
///
/// # Safety
/// `gate` and `up` are readable and `out` writable for `len` floats; `out` is equal to an input or does not overlap it.
pub unsafe fn glu_raw(pool: &Pool, f: Gate, len: usize, gate: *const f32, up: *const f32, out: *mut f32) {
    let data = Buffers { inputs: [gate, up], outputs: [out] };
    let past = stream::is_large(pool.isa(), len, out, &data.inputs);
    pool.run(len.div_ceil(GRAIN), &|task| {
        let data = &data;
        let start = task * GRAIN;
        let len = GRAIN.min(len - start);
        // SAFETY: the part lies inside all buffers and belongs to this task alone.
        unsafe {
            let ([gate, up], [out]) = data.at(start);
            match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() => vector::forward(isa, f, past, len, gate, up, out),
                _ => scalar::forward(f, len, gate, up, out),
            }
        }
        if past {
            stream::fence();
        }
    });
}

/// Gradients of [`glu()`]: `d_up = d_out f(gate)`, `d_gate = d_out up f'(gate)`.
///
/// # Panics
/// When lengths differ.
#[track_caller]
pub fn glu_bwd(pool: &Pool, f: Gate, gate: &[f32], up: &[f32], d_out: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    let len = d_out.len();
    assert!(gate.len() == len && up.len() == len, "length of an input of glu_bwd");
    assert!(d_gate.len() == len && d_up.len() == len, "length of an output of glu_bwd");
    let inputs = [gate, up, d_out].map(<[f32]>::as_ptr);
    // SAFETY: lengths are checked and the borrows exclude overlap.
    unsafe { glu_bwd_raw(pool, f, len, inputs, [d_gate.as_mut_ptr(), d_up.as_mut_ptr()]) }
}

/// [`glu_bwd`] on pointers, in place where they are equal: inputs `gate`, `up`, `d_out`, outputs `d_gate`, `d_up`.
///
/// # Safety
/// Inputs are readable and outputs writable for `len` floats; an output is equal to an input or does not overlap it, and the outputs
/// do not overlap each other.
pub unsafe fn glu_bwd_raw(pool: &Pool, f: Gate, len: usize, inputs: [*const f32; 3], outputs: [*mut f32; 2]) {
    let data = Buffers { inputs, outputs };
    let past = outputs.map(|out| stream::is_large(pool.isa(), len, out, &inputs));
    pool.run(len.div_ceil(GRAIN), &|task| {
        let data = &data;
        let start = task * GRAIN;
        let len = GRAIN.min(len - start);
        // SAFETY: the part lies inside all buffers and belongs to this task alone.
        unsafe {
            let (inputs, outputs) = data.at(start);
            match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() => vector::backward(isa, f, past, len, inputs, outputs),
                _ => scalar::backward(f, len, inputs, outputs),
            }
        }
        if past.contains(&true) {
            stream::fence();
        }
    });
}

/// Shared by tasks that touch disjoint parts.
struct Buffers<const I: usize, const O: usize> {
    inputs: [*const f32; I],
    outputs: [*mut f32; O],
}

// SAFETY: tasks access disjoint parts.
unsafe impl<const I: usize, const O: usize> Sync for Buffers<I, O> {}

impl<const I: usize, const O: usize> Buffers<I, O> {
    /// The buffers from element `start` on.
    ///
    /// # Safety
    /// They have as many.
    unsafe fn at(&self, start: usize) -> ([*const f32; I], [*mut f32; O]) {
        // SAFETY: promised by the caller.
        unsafe { (self.inputs.map(|p| p.add(start)), self.outputs.map(|p| p.add(start))) }
    }
}
