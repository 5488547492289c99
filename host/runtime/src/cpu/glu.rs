//! `f(gate) · up` and its gradients; both work in place.

use swift_graph::op;
use swift_kernels::glu::{Gate, glu_bwd_raw, glu_raw};

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

fn kernel_gate(gate: op::Gate) -> Gate {
    match gate {
        op::Gate::Silu => Gate::Silu,
        op::Gate::GeluTanh => Gate::GeluTanh,
        op::Gate::GeluErf => Gate::GeluErf,
    }
}

/// `out = f(gate) · up`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glu {
    f: Gate,
    gate: Ref,
    up: Ref,
    out: Ref,
}

impl Glu {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        // SAFETY: all have as many elements, and an input is the output or disjoint from it; checked when the launch was prepared.
        unsafe { glu_raw(m.pool, self.f, self.out.len, m.ptr(self.gate), m.ptr(self.up), m.ptr(self.out)) };
        Ok(())
    }
}

pub(super) fn forward(op: &op::Glu, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (gate, up) = (p.input_in_place(0)?, p.input_in_place(1)?);
    Ok(Kernel::Glu(Glu { f: kernel_gate(op.0), gate, up, out: p.output(0)? }))
}

/// Gradients in both inputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GluGradient {
    f: Gate,
    /// `gate`, `up`, `d_out`.
    inputs: [Ref; 3],
    /// `d_gate`, `d_up`.
    outputs: [Ref; 2],
}

impl GluGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let inputs = self.inputs.map(|r| m.ptr(r).cast_const());
        // SAFETY: as above; the outputs are disjoint.
        unsafe { glu_bwd_raw(m.pool, self.f, self.inputs[2].len, inputs, self.outputs.map(|r| m.ptr(r))) };
        Ok(())
    }
}

pub(super) fn backward(op: &op::GluBackward, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let inputs = [p.input_in_place(0)?, p.input_in_place(1)?, p.input_in_place(2)?];
    Ok(Kernel::GluGradient(GluGradient { f: kernel_gate(op.0), inputs, outputs: [p.output(0)?, p.output(1)?] }))
}
