//! Output projection and cross-entropy. Tiles live in the launch's scratch.

use swift_graph::op::{CrossEntropySpec, LinearCrossEntropy, LinearCrossEntropyBackward};
use swift_kernels::cross_entropy::{self, Spec};

use super::Kernel;
use super::gather::check;
use super::memory::{Memory, Ref, WeightRef};
use super::prepare::Prepare;
use crate::Result;

fn spec(op: &CrossEntropySpec) -> Spec {
    Spec {
        label_smoothing: op.label_smoothing.0 as f32,
        z_loss: op.z_loss.0 as f32,
        softcap: op.softcap.map(|c| c.0 as f32),
        temperature: op.temperature.0 as f32,
    }
}

/// What both directions read.
#[derive(Clone, Copy, Debug)]
struct Operands {
    spec: Spec,
    n: usize,
    x: Ref,
    weight: WeightRef,
    targets: Ref,
    scratch: Ref,
}

fn operands(op: &CrossEntropySpec, p: &mut Prepare<'_, '_>, trained: bool) -> Result<Operands> {
    let n = p.dims(0)?[0];
    let (x, weight, targets) = (p.input(0)?, p.factor(1)?, p.input(2)?);
    if weight.rows == 0 || weight.cols == 0 {
        return Err(p.unsupported(format!("the weight is empty: {} x {}", weight.rows, weight.cols)));
    }
    let scratch = p.scratch(cross_entropy::scratch_len(n, weight.rows, weight.cols, trained));
    Ok(Operands { spec: spec(op), n, x, weight, targets, scratch })
}

/// Losses, and gradients of each in its row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossEntropy {
    operands: Operands,
    loss: Ref,
    lse: Ref,
    unit_grad: Option<Ref>,
}

impl CrossEntropy {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let o = &self.operands;
        let targets = m.i32(o.targets);
        check("linear-cross-entropy", "target", targets, o.weight.rows, true)?;
        let (loss, lse) = (m.f32_mut(self.loss), m.f32_mut(self.lse));
        let unit = self.unit_grad.map(|r| m.f32_mut(r));
        let weight = m.factor(&o.weight);
        cross_entropy::forward(m.pool, &o.spec, o.n, m.f32(o.x), &weight, targets, loss, lse, unit, m.f32_mut(o.scratch));
        Ok(())
    }
}

pub(super) fn forward(op: &LinearCrossEntropy, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let operands = operands(&op.spec, p, false)?;
    let (loss, lse) = (p.output(0)?, p.output(1)?);
    let unit_grad = if op.unit_grad { p.wanted_output(2)? } else { None };
    Ok(Kernel::CrossEntropy(CrossEntropy { operands, loss, lse, unit_grad }))
}

/// Gradients in x and in the weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrossEntropyGradient {
    operands: Operands,
    lse: Ref,
    d_loss: Ref,
    d_x: Ref,
    d_w: Option<Ref>,
}

impl CrossEntropyGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let o = &self.operands;
        let targets = m.i32(o.targets);
        check("linear-cross-entropy-backward", "target", targets, o.weight.rows, true)?;
        let (x, lse, d_loss, weight) = (m.f32(o.x), m.f32(self.lse), m.f32(self.d_loss), m.factor(&o.weight));
        let (d_x, d_w, scratch) = (m.f32_mut(self.d_x), self.d_w.map(|r| m.f32_mut(r)), m.f32_mut(o.scratch));
        cross_entropy::backward(m.pool, &o.spec, o.n, x, &weight, targets, lse, d_loss, d_x, d_w, scratch);
        Ok(())
    }
}

pub(super) fn backward(op: &LinearCrossEntropyBackward, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let operands = operands(&op.spec, p, op.weight_grad)?;
    let (lse, d_loss) = (p.input(3)?, p.input(4)?);
    let d_x = p.output(0)?;
    let d_w = if op.weight_grad { p.wanted_output(1)? } else { None };
    Ok(Kernel::CrossEntropyGradient(CrossEntropyGradient { operands, lse, d_loss, d_x, d_w }))
}
