//! `silu(gate) · up` and its gradients. Outputs may lie over the inputs: then tiles of them are moved out of the way first.

use swift_kernels::pool::Disjoint;
use swift_kernels::swiglu::{swiglu, swiglu_bwd};

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// Elements moved at a time: both operands stay in the first-level cache.
const TILE: usize = 2048;

/// Elements of one task.
const GRAIN: usize = 8 * TILE;

/// `out = silu(gate) · up`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SwiGlu {
    gate: Ref,
    up: Ref,
    out: Ref,
}

impl SwiGlu {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let (over_gate, over_up) = (m.same(self.gate, self.out), m.same(self.up, self.out));
        if !over_gate && !over_up {
            swiglu(m.pool, self.out.len, m.f32(self.gate), m.f32(self.up), m.f32_mut(self.out));
            return Ok(());
        }
        // Only operands elsewhere become slices beside the output's.
        let gate = (!over_gate).then(|| m.f32(self.gate));
        let up = (!over_up).then(|| m.f32(self.up));
        m.pool.run_pieces(m.f32_mut(self.out), GRAIN, |task, out| {
            let mut copy = [0.0; TILE];
            for (tile, out) in out.chunks_mut(TILE).enumerate() {
                let start = task * GRAIN + tile * TILE;
                let copy = &mut copy[..out.len()];
                copy.copy_from_slice(out);
                let range = start..start + out.len();
                let gate = gate.map_or(&*copy, |gate| &gate[range.clone()]);
                let up = up.map_or(&*copy, |up| &up[range]);
                swiglu(m.pool, out.len(), gate, up, out);
            }
        });
        Ok(())
    }
}

pub(super) fn forward(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (gate, up) = (p.input_in_place(0)?, p.input_in_place(1)?);
    Ok(Kernel::SwiGlu(SwiGlu { gate, up, out: p.output(0)? }))
}

/// Gradients in both inputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SwiGluGradient {
    gate: Ref,
    up: Ref,
    d_out: Ref,
    d_gate: Ref,
    d_up: Ref,
}

impl SwiGluGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let len = self.d_out.len;
        let written = |r: Ref| m.same(r, self.d_gate) || m.same(r, self.d_up);
        // Slices of the inputs that no output covers; `written` ones are read through the outputs.
        let whole = |r: Ref| (!written(r)).then(|| m.f32(r));
        let inputs = [whole(self.gate), whole(self.up), whole(self.d_out)];
        let (d_gate, d_up) = (m.f32_mut(self.d_gate), m.f32_mut(self.d_up));
        if let [Some(gate), Some(up), Some(d_out)] = inputs {
            swiglu_bwd(m.pool, len, gate, up, d_out, d_gate, d_up);
            return Ok(());
        }
        let over_gate = [self.gate, self.up, self.d_out].map(|r| m.same(r, self.d_gate));
        let d_up = Disjoint::new(d_up);
        m.pool.run_pieces(d_gate, GRAIN, |task, d_gate| {
            let mut copies = [[0.0; TILE]; 2];
            for (tile, d_gate) in d_gate.chunks_mut(TILE).enumerate() {
                let (start, count) = (task * GRAIN + tile * TILE, d_gate.len());
                // SAFETY: tiles do not overlap.
                let d_up = unsafe { d_up.slice(start, count) };
                copies[0][..count].copy_from_slice(d_gate);
                copies[1][..count].copy_from_slice(d_up);
                let operand = |i: usize| match inputs[i] {
                    Some(x) => &x[start..start + count],
                    None => &copies[usize::from(!over_gate[i])][..count],
                };
                swiglu_bwd(m.pool, count, operand(0), operand(1), operand(2), d_gate, d_up);
            }
        });
        Ok(())
    }
}

pub(super) fn backward(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (gate, up, d_out) = (p.input_in_place(0)?, p.input_in_place(1)?, p.input_in_place(2)?);
    Ok(Kernel::SwiGluGradient(SwiGluGradient { gate, up, d_out, d_gate: p.output(0)?, d_up: p.output(1)? }))
}
