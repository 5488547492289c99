//! Output projection and cross-entropy over vocabulary tiles; logits `[n, vocab]` never exist.

use super::{OpRule, ReduceOp, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor, product};
use crate::{Dim, Error, Float, Graph, Result, Shape, Type};

/// `loss = -log p(target)`, with the usual extras. For raw logits `r`, `z = cap·tanh(r/cap) / temperature`, `lse = log Σ e^z` and
/// `loss = lse - (1 - s)·z[target] - s·mean(z) + a·lse²` with smoothing `s` and z-loss factor `a`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CrossEntropySpec {
    /// Weight of the uniform distribution in the target.
    pub label_smoothing: Float,
    /// Factor of `lse²` added to the loss.
    pub z_loss: Float,
    /// `cap·tanh(logit/cap)` where set.
    pub softcap: Option<Float>,
    /// Logits are divided by it.
    pub temperature: Float,
}

/// Inputs `x [n, d]`, `w [vocab, d]`, `targets [n]` (negative: loss, log-sum-exp and gradient are 0). Outputs: loss `[n]`, log-sum-exp `[n]`, and
/// with `unit_grad` the gradient of each row's loss in its x row `[n, d]`, computed from the same logits tile. A frozen head
/// scales it in the backward pass and multiplies by the vocabulary twice a step instead of three times.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearCrossEntropy {
    /// Loss terms.
    pub spec: CrossEntropySpec,
    /// Whether output 2 is computed.
    pub unit_grad: bool,
}

fn check(op: &'static str, spec: &CrossEntropySpec, inputs: &[Type]) -> Result<()> {
    floats(op, &inputs[..2])?;
    let (x, w, t) = (&inputs[0].shape, &inputs[1].shape, &inputs[2]);
    if x.rank() != 2 || w.rank() != 2 || x[1] != w[1] || t.shape.dims() != &x[..1] || !t.dtype.is_int() {
        return Err(Error::shape(op, "takes x [n, d], a weight [vocab, d] and whole-number targets [n]", inputs));
    }
    let (smoothing, positive) = (spec.label_smoothing.0, |v: f64| v.is_finite() && v > 0.0);
    let bounds = positive(spec.temperature.0) && spec.softcap.is_none_or(|c| positive(c.0));
    if !(0.0..1.0).contains(&smoothing) || !bounds || !spec.z_loss.0.is_finite() {
        return Err(Error::attr(op, "label-smoothing must be in 0..1, temperature and softcap positive, z-loss finite"));
    }
    Ok(())
}

impl OpRule for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear-cross-entropy"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3)?;
        check(self.name(), &self.spec, inputs)?;
        let rows = Type::f32(vec![inputs[0].shape[0].clone()]);
        let mut outputs = vec![rows.clone(), rows];
        if self.unit_grad {
            outputs.push(inputs[0].clone());
        }
        Ok(outputs)
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, w) = (cx.input(0), cx.input(1));
        let targets = targets(cx)?;
        let (mut loss, mut lse, mut unit) = (Vec::new(), Vec::new(), Vec::new());
        for (x, target) in x.rows().zip(targets) {
            let Some(target) = target else {
                loss.push(0.0);
                lse.push(0.0);
                unit.resize(unit.len() + x.len(), 0.0);
                continue;
            };
            let row = Row::of(&self.spec, x, w);
            let smoothing = self.spec.label_smoothing.0;
            let mean = row.z.iter().sum::<f64>() / row.z.len() as f64;
            loss.push(row.lse - (1.0 - smoothing) * row.z[target] - smoothing * mean + self.spec.z_loss.0 * row.lse * row.lse);
            lse.push(row.lse);
            unit.extend(product([1, row.z.len(), x.len()], (&row.gradient(&self.spec, target), false), (&w.data, false)));
        }
        let mut out = vec![Tensor::new(cx.shape(0)?, loss), Tensor::new(cx.shape(1)?, lse)];
        if self.unit_grad {
            out.push(Tensor::new(cx.shape(2)?, unit));
        }
        Ok(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (x, w) = (cx.input(0), cx.input(1));
        if !cx.needs(1) {
            // A frozen head: the forward node gives each row's gradient, and the chain rule scales it.
            if !self.unit_grad {
                cx.g.request_unit_grad(cx.node());
            }
            let (d, unit) = (cx.d_out()?, cx.output(2)?);
            let column = Shape::from(vec![cx.g.ty(x).shape[0].clone(), Dim::fixed(1)]);
            let (d, dtype) = (cx.g.reshape(d, column)?, cx.g.ty(x).dtype);
            let d = cx.g.cast(d, dtype)?;
            let dx = cx.g.mul(unit, d)?;
            return cx.add(0, dx);
        }
        let (d, lse) = (cx.d_out()?, cx.output(1)?);
        let op = LinearCrossEntropyBackward { spec: self.spec.clone(), weight_grad: true };
        let dx = cx.g.push(op, &[x, w, cx.input(2), lse, d])?;
        let dw = cx.g.part(dx, 1)?;
        cx.add(0, dx)?;
        cx.add(1, dw)
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(if self.unit_grad { 4 } else { 2 }, inputs[0].shape.iter().chain(&inputs[1].shape[..1]))
    }
}

/// Inputs `x`, `w`, `targets`, `lse`, `d_loss [n]`; outputs `d_x [n, d]` and, with `weight_grad`, `d_w [vocab, d]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearCrossEntropyBackward {
    /// Loss terms.
    pub spec: CrossEntropySpec,
    /// Whether output 1 is computed.
    pub weight_grad: bool,
}

impl OpRule for LinearCrossEntropyBackward {
    fn name(&self) -> &'static str {
        "linear-cross-entropy-backward"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 5)?;
        check(self.name(), &self.spec, inputs)?;
        if inputs[3..].iter().any(|t| t.shape.dims() != &inputs[0].shape[..1]) {
            return Err(Error::shape(self.name(), "lse and d_loss must be [n]", inputs));
        }
        let mut outputs = vec![inputs[0].clone()];
        if self.weight_grad {
            outputs.push(inputs[1].clone());
        }
        Ok(outputs)
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, w, d) = (cx.input(0), cx.input(1), cx.input(4));
        let (mut dx, mut dw) = (Vec::new(), vec![0.0; w.data.len()]);
        for ((x, target), d) in x.rows().zip(targets(cx)?).zip(&d.data) {
            let Some(target) = target else {
                dx.resize(dx.len() + x.len(), 0.0);
                continue;
            };
            let mut logits = Row::of(&self.spec, x, w).gradient(&self.spec, target);
            logits.iter_mut().for_each(|g| *g *= d);
            dx.extend(product([1, logits.len(), x.len()], (&logits, false), (&w.data, false)));
            for (dw, g) in dw.chunks_exact_mut(x.len()).zip(&logits) {
                dw.iter_mut().zip(x).for_each(|(dw, x)| *dw += g * x);
            }
        }
        let mut out = vec![Tensor::new(cx.shape(0)?, dx)];
        if self.weight_grad {
            out.push(Tensor::new(cx.shape(1)?, dw));
        }
        Ok(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(if self.weight_grad { 6 } else { 4 }, inputs[0].shape.iter().chain(&inputs[1].shape[..1]))
    }
}

/// Logits of one row after cap and temperature, and their log-sum-exp.
struct Row {
    z: Vec<f64>,
    lse: f64,
}

impl Row {
    fn of(spec: &CrossEntropySpec, x: &[f64], w: &Tensor) -> Row {
        let mut z = product([1, x.len(), w.shape[0]], (x, false), (&w.data, true));
        for z in &mut z {
            *z = spec.softcap.map_or(*z, |c| c.0 * (*z / c.0).tanh()) / spec.temperature.0;
        }
        let lse = ReduceOp::LogSumExp.eval(&z);
        Row { z, lse }
    }

    /// Gradient of the row's loss in its raw logits.
    fn gradient(&self, spec: &CrossEntropySpec, target: usize) -> Vec<f64> {
        let (smoothing, temperature) = (spec.label_smoothing.0, spec.temperature.0);
        let grad = |(i, z): (usize, &f64)| {
            let hit = if i == target { 1.0 - smoothing } else { 0.0 };
            let even = smoothing / self.z.len() as f64;
            let d_z = (1.0 + 2.0 * spec.z_loss.0 * self.lse) * (z - self.lse).exp() - hit - even;
            let bend = spec.softcap.map_or(1.0, |c| 1.0 - (z * temperature / c.0).powi(2));
            d_z * bend / temperature
        };
        self.z.iter().enumerate().map(grad).collect()
    }
}

/// Targets, `None` where a row has no loss.
fn targets(cx: &Eval<'_>) -> Result<Vec<Option<usize>>> {
    let vocab = cx.input(1).shape[0];
    let target = |t: i64| if t < 0 { Ok(None) } else { cx.index(t, vocab, "target").map(Some) };
    cx.whole(2).into_iter().map(target).collect()
}
