//! A product with a weight and one of low rank beside it.

use swift_graph::op::LowRankLinear;
use swift_kernels::elementwise::Unary;
use swift_kernels::gemm::Addend;
use swift_kernels::linear::{Layer, int8, linear};
use swift_kernels::lora::{LowRank, low_rank_add, low_rank_linear, low_rank_linear_dx};

use super::Kernel;
use super::elementwise::unary_op;
use super::linear::{Rounding, addend, place_of_addend};
use super::memory::{Memory, Ref, WeightRef};
use super::prepare::Prepare;
use crate::Result;

/// Both products, and what is added to them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowRankProduct {
    backward: bool,
    m: usize,
    alpha: f32,
    factor: f32,
    x: Ref,
    weight: WeightRef,
    h: Ref,
    v: WeightRef,
    bias: Option<Ref>,
    activation: Option<Unary>,
    addend: Option<Ref>,
    out: Ref,
    int8: Option<Rounding>,
}

impl LowRankProduct {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let cols = if self.backward { self.weight.cols } else { self.weight.rows };
        let addend = addend(m, self.addend, self.out, cols);
        let bias = self.bias.map(|b| m.f32(b));
        let low = LowRank { factor: self.factor, h: m.f32(self.h), v: m.factor(&self.v) };
        if let Some(rounding) = self.int8 {
            rounding.begin(m);
            if let Some(panels) = m.panels(&self.weight) {
                // The adapter's product stays exact.
                let x = m.rounded(self.m, panels.cols, self.x);
                let out = m.f32_mut(self.out);
                let (first, last) = match self.activation {
                    None => (addend, Addend::None),
                    Some(_) => (Addend::None, addend),
                };
                let layer = Layer { alpha: self.alpha, bias, activation: None, addend: first };
                int8::linear_int8_many(m.pool, self.m, x, [int8::Part { w: panels, layer, y: &mut *out }]);
                match self.activation {
                    None => linear(m.pool, self.m, low.factor, low.h, &low.v, None, out, 1.0),
                    activation => low_rank_add(m.pool, self.m, &low, activation, last, out),
                }
                return Ok(());
            }
        }
        let (weight, x, out) = (m.factor(&self.weight), m.f32(self.x), m.f32_mut(self.out));
        if self.backward {
            low_rank_linear_dx(m.pool, self.m, self.alpha, x, &weight, &low, addend, out);
        } else {
            let layer = Layer { alpha: self.alpha, bias, activation: self.activation, addend };
            low_rank_linear(m.pool, self.m, x, &weight, &low, &layer, out);
        }
        Ok(())
    }
}

pub(super) fn prepare(op: &LowRankLinear, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let dims = p.dims(0)?;
    let m = dims[..dims.len() - 1].iter().product();
    let (x, weight, h, v) = (p.input(0)?, p.factor(1)?, p.input(2)?, p.factor(3)?);
    if let Some(w) = [&weight, &v].into_iter().find(|w| w.rows == 0 || w.cols == 0) {
        return Err(p.unsupported(format!("a weight is empty: {} x {}", w.rows, w.cols)));
    }
    let bias = if op.bias { Some(p.input(4)?) } else { None };
    let addend = place_of_addend(p, op.addend, op.activation.is_some())?;
    let int8 = if op.backward { None } else { p.rounding(m, x, &weight).map(|repeats| Rounding { repeats }) };
    let activation = op.activation.map(unary_op);
    let (backward, alpha, factor) = (op.backward, op.alpha.0 as f32, op.factor.0 as f32);
    let out = p.output(0)?;
    Ok(Kernel::LowRank(LowRankProduct { backward, m, alpha, factor, x, weight, h, v, bias, activation, addend, out, int8 }))
}
