//! Reductions of a head's whole distribution, and of two heads': entropy, mean logit, divergence. As with cross-entropy, logits
//! `[n, vocab]` never exist. For raw logits `r`, `z = cap·tanh(r/cap) / temperature` and `p = softmax(z)`.

use super::{OpRule, ReduceOp, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor, product};
use crate::{Dim, Error, Float, Graph, Result, Type};

/// How a head turns raw logits into `z`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bend {
    /// Smooth bound of raw logits, where set.
    pub softcap: Option<Float>,
    /// Logits are divided by it.
    pub temperature: Float,
}

impl Bend {
    fn check(&self, op: &'static str) -> Result<()> {
        let positive = |v: f64| v.is_finite() && v > 0.0;
        if positive(self.temperature.0) && self.softcap.is_none_or(|c| positive(c.0)) {
            return Ok(());
        }
        Err(Error::attr(op, "temperature and softcap must be positive"))
    }

    /// `z` of a row.
    fn logits(&self, x: &[f64], w: &Tensor) -> Vec<f64> {
        let mut z = product([1, x.len(), w.shape[0]], (x, false), (&w.data, true));
        for z in &mut z {
            *z = self.softcap.map_or(*z, |c| c.0 * (*z / c.0).tanh()) / self.temperature.0;
        }
        z
    }

    /// Turns the gradient in `z` into that in the raw logits.
    fn chain(&self, z: &[f64], d_z: &mut [f64]) {
        for (d, z) in d_z.iter_mut().zip(z) {
            let slope = self.softcap.map_or(1.0, |c| 1.0 - (z * self.temperature.0 / c.0).powi(2));
            *d *= slope / self.temperature.0;
        }
    }
}

/// `x [n, d]` and a weight `[vocab, d]`.
fn check_head(op: &'static str, inputs: &[Type]) -> Result<()> {
    floats(op, inputs)?;
    let (x, w) = (&inputs[0].shape, &inputs[1].shape);
    if x.rank() == 2 && w.rank() == 2 && x[1] == w[1] {
        return Ok(());
    }
    Err(Error::shape(op, "takes x [n, d] and a weight [vocab, d]", inputs))
}

/// Further inputs that hold a number for each row.
fn check_rows(op: &'static str, rows: usize, inputs: &[Type]) -> Result<()> {
    if inputs[inputs.len() - rows..].iter().all(|t| t.shape.dims() == &inputs[0].shape[..1]) {
        return Ok(());
    }
    Err(Error::shape(op, format!("the last {rows} inputs must be [n]"), inputs))
}

/// `d_x` and, if asked for, `d_w` from the gradients in the raw logits, row by row.
fn gradients(cx: &Eval<'_>, weight_grad: bool, mut row: impl FnMut(usize, &[f64]) -> Vec<f64>) -> Result<Vec<Tensor>> {
    let (x, w) = (cx.input(0), cx.input(1));
    let (mut dx, mut dw) = (Vec::new(), vec![0.0; w.data.len()]);
    for (i, x) in x.rows().enumerate() {
        let d_logits = row(i, x);
        dx.extend(product([1, d_logits.len(), x.len()], (&d_logits, false), (&w.data, false)));
        for (dw, g) in dw.chunks_exact_mut(x.len()).zip(&d_logits) {
            dw.iter_mut().zip(x).for_each(|(dw, x)| *dw += g * x);
        }
    }
    let mut out = vec![Tensor::new(cx.shape(0)?, dx)];
    if weight_grad {
        out.push(Tensor::new(cx.shape(1)?, dw));
    }
    Ok(out)
}

/// What [`LinearStatistic`] takes of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Statistic {
    /// `-Σ p log p`.
    Entropy,
    /// Mean of `z`.
    Mean,
}

/// Inputs `x [n, d]`, `w [vocab, d]`. Outputs: the statistic `[n]` and the log-sum-exp `[n]` (zeros where it is not needed).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearStatistic {
    /// Which.
    pub statistic: Statistic,
    /// From raw logits to `z`.
    pub bend: Bend,
}

impl OpRule for LinearStatistic {
    fn name(&self) -> &'static str {
        "linear-statistic"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        check_head(self.name(), inputs)?;
        self.bend.check(self.name())?;
        let rows = Type::f32(vec![inputs[0].shape[0].clone()]);
        Ok(vec![rows.clone(), rows])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (mut value, mut kept) = (Vec::new(), Vec::new());
        for x in cx.input(0).rows() {
            let z = self.bend.logits(x, cx.input(1));
            match self.statistic {
                Statistic::Entropy => {
                    let lse = ReduceOp::LogSumExp.eval(&z);
                    value.push(z.iter().map(|z| (z - lse).exp() * (lse - z)).sum());
                    kept.push(lse);
                }
                Statistic::Mean => {
                    value.push(z.iter().sum::<f64>() / z.len() as f64);
                    kept.push(0.0);
                }
            }
        }
        Ok(vec![Tensor::new(cx.shape(0)?, value), Tensor::new(cx.shape(1)?, kept)])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, value, lse) = (cx.d_out()?, cx.node(), cx.output(1)?);
        let op = LinearStatisticBackward { forward: self.clone(), weight_grad: cx.needs(1) };
        let weight_grad = op.weight_grad;
        let dx = cx.g.push(op, &[cx.input(0), cx.input(1), value, lse, d])?;
        if weight_grad {
            let dw = cx.g.part(dx, 1)?;
            cx.add(1, dw)?;
        }
        cx.add(0, dx)
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(2, inputs[0].shape.iter().chain(&inputs[1].shape[..1]))
    }
}

/// Inputs `x`, `w`, both outputs of the forward op and `d [n]`; outputs `d_x [n, d]` and, with `weight_grad`, `d_w [vocab, d]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearStatisticBackward {
    /// Of what.
    pub forward: LinearStatistic,
    /// Whether output 1 is computed.
    pub weight_grad: bool,
}

impl OpRule for LinearStatisticBackward {
    fn name(&self) -> &'static str {
        "linear-statistic-backward"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 5)?;
        check_head(self.name(), inputs)?;
        check_rows(self.name(), 3, inputs)?;
        self.forward.bend.check(self.name())?;
        Ok(inputs[..1 + usize::from(self.weight_grad)].to_vec())
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let LinearStatistic { statistic, bend } = &self.forward;
        gradients(cx, self.weight_grad, |i, x| {
            let (z, d) = (bend.logits(x, cx.input(1)), cx.input(4).data[i]);
            let mut d_z: Vec<f64> = match statistic {
                Statistic::Entropy => {
                    let lse = ReduceOp::LogSumExp.eval(&z);
                    let entropy: f64 = z.iter().map(|z| (z - lse).exp() * (lse - z)).sum();
                    z.iter().map(|z| -d * (z - lse).exp() * (z - lse + entropy)).collect()
                }
                Statistic::Mean => vec![d / z.len() as f64; z.len()],
            };
            bend.chain(&z, &mut d_z);
            d_z
        })
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(if self.weight_grad { 6 } else { 4 }, inputs[0].shape.iter().chain(&inputs[1].shape[..1]))
    }
}

/// Divergence of two heads over one vocabulary, `p` of inputs `x [n, d]`, `w [vocab, d]` and `q` of `y [n, e]`, `v [vocab, e]`:
///
/// `alpha` 0 is `KL(p|q)`, 1 is `KL(q|p)`, and between, with `m = alpha·p + (1 - alpha)·q`, the generalized Jensen-Shannon
/// divergence `alpha·KL(p|m) + (1 - alpha)·KL(q|m)` (Agarwal et al. 2024, whose limits, scaled, are these).
///
/// Outputs `[n]`: the divergence, the log-sum-exps of both, and the part of the divergence that is an average over `p`, which the gradient in
/// `p` needs. Exchanging the heads and `alpha` for `1 - alpha` changes nothing but which part that is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearDivergence {
    /// Which divergence, 0 to 1.
    pub alpha: Float,
    /// From raw logits to `z`, by head.
    pub bends: [Bend; 2],
}

/// Logits, their log-sum-exps, the divergence and the average over `p` of one row.
struct Pair {
    z: [Vec<f64>; 2],
    lse: [f64; 2],
    value: f64,
    share: f64,
}

impl LinearDivergence {
    fn check(&self, op: &'static str, inputs: &[Type]) -> Result<()> {
        check_head(op, &inputs[..2])?;
        check_head(op, &inputs[2..4])?;
        if inputs[0].shape[0] != inputs[2].shape[0] || inputs[1].shape[0] != inputs[3].shape[0] {
            return Err(Error::shape(op, "takes two heads of the same rows and vocabulary", inputs));
        }
        self.bends.iter().try_for_each(|bend| bend.check(op))?;
        if (0.0..=1.0).contains(&self.alpha.0) { Ok(()) } else { Err(Error::attr(op, "alpha must be in 0..=1")) }
    }

    /// Log of the mixture.
    fn mixture(&self, p: f64, q: f64) -> f64 {
        let (a, b) = (p + self.alpha.0.ln(), q + (1.0 - self.alpha.0).ln());
        a.max(b) + (-(a - b).abs()).exp().ln_1p()
    }

    fn pair(&self, cx: &Eval<'_>, i: usize) -> Pair {
        let row = |t: &Tensor| t.data[i * t.cols()..][..t.cols()].to_vec();
        let z = [0, 1].map(|h| self.bends[h].logits(&row(cx.input(2 * h)), cx.input(2 * h + 1)));
        let lse = [0, 1].map(|h| ReduceOp::LogSumExp.eval(&z[h]));
        let (mut value, mut share) = (0.0, 0.0);
        for (p, q) in z[0].iter().zip(&z[1]) {
            let (p, q) = (p - lse[0], q - lse[1]);
            let (from_p, from_q) = match self.alpha.0 {
                0.0 => (p.exp() * (p - q), 0.0),
                1.0 => (0.0, q.exp() * (q - p)),
                alpha => {
                    let m = self.mixture(p, q);
                    (alpha * p.exp() * (p - m), (1.0 - alpha) * q.exp() * (q - m))
                }
            };
            value += from_p + from_q;
            share += from_p;
        }
        Pair { z, lse, value, share }
    }
}

impl OpRule for LinearDivergence {
    fn name(&self) -> &'static str {
        "linear-divergence"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 4)?;
        self.check(self.name(), inputs)?;
        Ok(vec![Type::f32(vec![inputs[0].shape[0].clone()]); 4])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let pairs: Vec<Pair> = (0..cx.input(0).shape[0]).map(|i| self.pair(cx, i)).collect();
        let column = |output: usize, f: fn(&Pair) -> f64| Ok(Tensor::new(cx.shape(output)?, pairs.iter().map(f).collect()));
        Ok(vec![column(0, |p| p.value)?, column(1, |p| p.lse[0])?, column(2, |p| p.lse[1])?, column(3, |p| p.share)?])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, value, share) = (cx.d_out()?, cx.node(), cx.output(3)?);
        let lse = [cx.output(1)?, cx.output(2)?];
        for head in [0, 1] {
            let (p, q) = (2 * head, 2 - 2 * head);
            let weight_grad = cx.needs(p + 1);
            if !cx.needs(p) && !weight_grad {
                continue;
            }
            let forward = if head == 0 { self.clone() } else { self.exchanged() };
            let share = if head == 0 { share } else { cx.g.sub(value, share)? };
            let inputs = [cx.input(p), cx.input(p + 1), cx.input(q), cx.input(q + 1), lse[head], lse[1 - head], share, d];
            let dx = cx.g.push(LinearDivergenceBackward { forward, weight_grad }, &inputs)?;
            if weight_grad {
                let dw = cx.g.part(dx, 1)?;
                cx.add(p + 1, dw)?;
            }
            cx.add(p, dx)?;
        }
        Ok(())
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        let head = |x: &Type, w: &Type| count(2, x.shape.iter().chain(&w.shape[..1]));
        head(&inputs[0], &inputs[1])?.add(&head(&inputs[2], &inputs[3])?)
    }
}

impl LinearDivergence {
    fn exchanged(&self) -> LinearDivergence {
        let [p, q] = self.bends.clone();
        LinearDivergence { alpha: Float(1.0 - self.alpha.0), bends: [q, p] }
    }
}

/// Gradients in the first head. Inputs `x`, `w`, `y`, `v`, both log-sum-exps, the average over `p`, and `d [n]`; outputs `d_x [n, d]`
/// and, with `weight_grad`, `d_w [vocab, d]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearDivergenceBackward {
    /// Of what.
    pub forward: LinearDivergence,
    /// Whether output 1 is computed.
    pub weight_grad: bool,
}

impl OpRule for LinearDivergenceBackward {
    fn name(&self) -> &'static str {
        "linear-divergence-backward"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 8)?;
        self.forward.check(self.name(), inputs)?;
        check_rows(self.name(), 4, inputs)?;
        Ok(inputs[..1 + usize::from(self.weight_grad)].to_vec())
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        gradients(cx, self.weight_grad, |i, _| {
            let Pair { z, lse, share, .. } = self.forward.pair(cx, i);
            let d = cx.input(7).data[i];
            let gradient = |(zp, zq): (&f64, &f64)| {
                let (p, q) = (zp - lse[0], zq - lse[1]);
                d * match self.forward.alpha.0 {
                    0.0 => p.exp() * (p - q - share),
                    1.0 => p.exp() - q.exp(),
                    alpha => p.exp() * (alpha * (p - self.forward.mixture(p, q)) - share),
                }
            };
            let mut d_z: Vec<f64> = z[0].iter().zip(&z[1]).map(gradient).collect();
            self.forward.bends[0].chain(&z[0], &mut d_z);
            d_z
        })
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        let head = |x: &Type, w: &Type, factor| count(factor, x.shape.iter().chain(&w.shape[..1]));
        head(&inputs[0], &inputs[1], if self.weight_grad { 6 } else { 4 })?.add(&head(&inputs[2], &inputs[3], 2)?)
    }
}
