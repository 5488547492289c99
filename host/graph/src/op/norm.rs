//! Root-mean-square norm (Zhang and Sennrich 2019): `y = x / sqrt(mean(x²) + eps) · w`.

use super::{OpRule, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Dim, Error, Float, Graph, Result, Shape, Type};

/// Inputs `x [..., d]`, and `w [d]` if there is one. Output 0 is `y`, output 1 the inverse root `[...]` for the backward pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: Float,
    /// Multiply by `1 + w` (Gemma) instead of `w`.
    pub unit_offset: bool,
    /// Whether there is a weight.
    pub weight: bool,
}

impl OpRule for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1 + usize::from(self.weight))?;
        floats(self.name(), inputs)?;
        let x = &inputs[0];
        let d = x.shape.last().ok_or_else(|| Error::shape(self.name(), "needs an axis", inputs))?;
        if self.weight && inputs[1].shape.dims() != std::slice::from_ref(d) {
            return Err(Error::shape(self.name(), format!("the weight must be [{d}]"), inputs));
        }
        let rows: Shape = x.shape[..x.shape.rank() - 1].iter().cloned().collect();
        Ok(vec![x.clone(), Type::f32(rows)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, d) = (cx.input(0), cx.input(0).cols());
        let inv: Vec<f64> =
            x.rows().map(|r| 1.0 / (r.iter().map(|v| v * v).sum::<f64>() / d as f64 + self.eps.0).sqrt()).collect();
        let scale = |j: usize| weight_at(cx, self.weight, self.unit_offset, j);
        let y = x.data.iter().enumerate().map(|(i, v)| v * inv[i / d] * scale(i % d)).collect();
        Ok(vec![Tensor::new(cx.shape(0)?, y), Tensor::new(cx.shape(1)?, inv)])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, x, inv) = (cx.d_out()?, cx.input(0), cx.output(1)?);
        if cx.needs(0) {
            let op = RmsNormDx { unit_offset: self.unit_offset, weight: self.weight };
            let inputs = if self.weight { vec![x, cx.input(1), inv, d] } else { vec![x, inv, d] };
            let dx = cx.g.push(op, &inputs)?;
            cx.add(0, dx)?;
        }
        if self.weight && cx.needs(1) {
            let dw = cx.g.push(RmsNormDw, &[x, inv, d])?;
            cx.add(1, dw)?;
        }
        Ok(())
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(4, inputs[0].shape.iter())
    }
}

/// Gradient in x: inputs `x`, `w` if there is one, `inv_rms`, `d_y`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RmsNormDx {
    /// As in [`RmsNorm`].
    pub unit_offset: bool,
    /// As in [`RmsNorm`].
    pub weight: bool,
}

impl OpRule for RmsNormDx {
    fn name(&self) -> &'static str {
        "rms-norm-dx"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3 + usize::from(self.weight))?;
        if inputs[0].shape != inputs[inputs.len() - 1].shape {
            return Err(Error::shape(self.name(), "x and d_y must have one shape", inputs));
        }
        let x = &inputs[0].shape;
        let split = x.rank().checked_sub(1).ok_or_else(|| Error::shape(self.name(), "needs an axis", inputs))?;
        if inputs[inputs.len() - 2].shape.dims() != &x[..split] || (self.weight && inputs[1].shape.dims() != &x[split..]) {
            return Err(Error::shape(self.name(), "takes x [..., d], a weight [d] and an inverse root [...]", inputs));
        }
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        // With x̂ = x·inv and g = d_y·w: d_x = inv·(g - x̂·mean(g·x̂)).
        let (x, d) = (cx.input(0), cx.input(0).cols());
        let (inv, dy) = (cx.input(cx.arity() - 2), cx.input(cx.arity() - 1));
        let mut out = Vec::with_capacity(x.data.len());
        for ((x, dy), inv) in x.rows().zip(dy.rows()).zip(&inv.data) {
            let g: Vec<f64> = dy.iter().enumerate().map(|(j, v)| v * weight_at(cx, self.weight, self.unit_offset, j)).collect();
            let mean = g.iter().zip(x).map(|(g, x)| g * x * inv).sum::<f64>() / d as f64;
            out.extend(g.iter().zip(x).map(|(g, x)| inv * (g - x * inv * mean)));
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(8, inputs[0].shape.iter())
    }
}

/// Gradient in the weight: inputs `x`, `inv_rms`, `d_y`, output `[d]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RmsNormDw;

impl OpRule for RmsNormDw {
    fn name(&self) -> &'static str {
        "rms-norm-dw"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3)?;
        let x = &inputs[0].shape;
        if x != &inputs[2].shape || x.rank() == 0 || inputs[1].shape.dims() != &x[..x.rank() - 1] {
            return Err(Error::shape(self.name(), "takes x and d_y of one shape [..., d] and an inverse root [...]", inputs));
        }
        Ok(vec![Type::f32(x.last().cloned().into_iter().collect::<Shape>())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, inv, dy) = (cx.input(0), cx.input(1), cx.input(2));
        let mut out = vec![0.0; x.cols()];
        for ((x, dy), inv) in x.rows().zip(dy.rows()).zip(&inv.data) {
            for (out, (x, dy)) in out.iter_mut().zip(x.iter().zip(dy)) {
                *out += x * inv * dy;
            }
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(3, inputs[0].shape.iter())
    }
}

/// Factor of column `j`: the weight (input 1), one plus it, or one.
fn weight_at(cx: &Eval<'_>, weight: bool, unit_offset: bool, j: usize) -> f64 {
    if weight { cx.input(1).data[j] + f64::from(u8::from(unit_offset)) } else { 1.0 }
}
