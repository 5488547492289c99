//! Reductions and softmax.

use super::{BinaryOp, GatherRows, OpRule, UnaryOp, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Dim, Error, Graph, NodeId, Result, Shape, Type};

/// What a reduction computes. Elements that equal the maximum or minimum share its gradient evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the functions' own")]
pub enum ReduceOp {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    LogSumExp,
}

/// Reduction over axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reduce {
    /// Function.
    pub op: ReduceOp,
    /// Axes, ascending and distinct.
    pub axes: Vec<usize>,
    /// Whether reduced axes stay with size 1.
    pub keep: bool,
}

impl OpRule for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        floats(self.name(), inputs)?;
        let rank = inputs[0].shape.rank();
        if !self.axes.is_sorted_by(|a, b| a < b) || self.axes.iter().any(|&a| a >= rank) {
            return Err(Error::shape(self.name(), format!("axes {:?} must be ascending and below {rank}", self.axes), inputs));
        }
        let dims = inputs[0].shape.iter().enumerate().filter_map(|(i, d)| match (self.axes.contains(&i), self.keep) {
            (false, _) => Some(d.clone()),
            (true, true) => Some(Dim::fixed(1)),
            (true, false) => None,
        });
        Ok(vec![Type::new(inputs[0].dtype, dims.collect::<Shape>())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let x = cx.input(0);
        let kept: Vec<usize> = (0..x.shape.len()).filter(|a| !self.axes.contains(a)).collect();
        let mut groups = vec![Vec::new(); kept.iter().map(|&a| x.shape[a]).product()];
        let mut values = x.data.iter();
        Tensor::from_index(x.shape.clone(), |index| {
            let group = kept.iter().fold(0, |at, &a| at * x.shape[a] + index[a]);
            groups[group].extend(values.next());
            0.0
        });
        cx.one(groups.iter().map(|g| self.op.eval(g)).collect())
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, x, y) = (cx.d_out()?, cx.input(0), cx.node());
        let ty = cx.g.ty(x).clone();
        let keep = |cx: &mut Backward<'_>, v: NodeId| {
            let dims = ty.shape.iter().enumerate().map(|(i, d)| if self.axes.contains(&i) { Dim::fixed(1) } else { d.clone() });
            cx.g.reshape(v, dims.collect::<Shape>())
        };
        let (d, y) = (keep(cx, d)?, keep(cx, y)?);
        let sum = |cx: &mut Backward<'_>, v: NodeId| cx.g.reduce(ReduceOp::Sum, v, &self.axes, true);
        let dx = match self.op {
            ReduceOp::Sum => cx.g.expand(d, ty.shape.clone())?,
            ReduceOp::Mean => {
                let dims: Shape = self.axes.iter().map(|&a| ty.shape[a].clone()).collect();
                let share = match dims.elements()?.as_fixed() {
                    Some(count) => cx.g.scale(d, 1.0 / count as f64)?,
                    // A symbolic count becomes a value by counting ones.
                    None => {
                        let ones = cx.g.full(dims, 1.0, ty.dtype)?;
                        let count = cx.g.sum_all(ones)?;
                        cx.g.div(d, count)?
                    }
                };
                cx.g.expand(share, ty.shape.clone())?
            }
            ReduceOp::Max | ReduceOp::Min => {
                let hits = cx.indicator(BinaryOp::Eq, x, y)?;
                let count = sum(cx, hits)?;
                let share = cx.g.div(d, count)?;
                cx.g.mul(hits, share)?
            }
            ReduceOp::Prod => prod_gradient(cx, x, |cx, v| cx.g.reduce(ReduceOp::Prod, v, &self.axes, true), sum, |_, v| Ok(v))
                .and_then(|slope| cx.g.mul(slope, d))?,
            ReduceOp::LogSumExp => {
                let below = cx.g.sub(x, y)?;
                let share = cx.g.unary(UnaryOp::Exp, below)?;
                cx.g.mul(share, d)?
            }
        };
        cx.add(0, dx)
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        inputs[0].shape.elements()
    }
}

/// Softmax over the last axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Softmax;

impl OpRule for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        floats(self.name(), inputs)?;
        if inputs[0].shape.rank() == 0 {
            return Err(Error::shape(self.name(), "needs an axis", inputs));
        }
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let mut out = Vec::with_capacity(cx.input(0).data.len());
        for row in cx.input(0).rows() {
            let lse = ReduceOp::LogSumExp.eval(row);
            out.extend(row.iter().map(|v| (v - lse).exp()));
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, y) = (cx.d_out()?, cx.node());
        let dx = cx.g.push(SoftmaxDx, &[y, d])?;
        cx.add(0, dx)
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(4, inputs[0].shape.iter())
    }
}

/// Gradient of softmax: inputs `y`, `d_y`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SoftmaxDx;

impl OpRule for SoftmaxDx {
    fn name(&self) -> &'static str {
        "softmax-dx"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        if inputs[0] != inputs[1] {
            return Err(Error::shape(self.name(), "takes y and d_y of one type", inputs));
        }
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let mut out = Vec::with_capacity(cx.input(0).data.len());
        for (y, d) in cx.input(0).rows().zip(cx.input(1).rows()) {
            let mean: f64 = y.iter().zip(d).map(|(y, d)| y * d).sum();
            out.extend(y.iter().zip(d).map(|(y, d)| y * (d - mean)));
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(4, inputs[0].shape.iter())
    }
}

/// Reduction of rows by segment: inputs `x [n, ...]`, `segments [n]` (s32; negative rows are skipped), output `[count, ...]`.
/// Segments without a row give 0 (sum, mean, log-sum-exp), 1 (prod) or -inf/inf (max, min).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SegmentReduce {
    /// Function.
    pub op: ReduceOp,
    /// Number of segments.
    pub count: Dim,
}

impl OpRule for SegmentReduce {
    fn name(&self) -> &'static str {
        "segment-reduce"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        floats(self.name(), &inputs[..1])?;
        let (x, segments) = (&inputs[0], &inputs[1]);
        if !segments.dtype.is_int() || segments.shape.rank() != 1 || x.shape.rank() == 0 || x.shape[0] != segments.shape[0] {
            return Err(Error::shape(self.name(), "takes x [n, ...] and whole-number segments [n]", inputs));
        }
        let dims = std::iter::once(self.count.clone()).chain(x.shape[1..].iter().cloned());
        Ok(vec![Type::new(x.dtype, dims.collect::<Shape>())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, shape) = (cx.input(0), cx.shape(0)?);
        let inner: usize = shape[1..].iter().product();
        let mut groups = vec![Vec::new(); shape[0] * inner];
        for (row, segment) in cx.whole(1).into_iter().enumerate().filter(|(_, s)| *s >= 0) {
            let segment = cx.index(segment, shape[0], "segment")?;
            for j in 0..inner {
                groups[segment * inner + j].push(x.data[row * inner + j]);
            }
        }
        let empty = |g: &[f64]| g.is_empty() && matches!(self.op, ReduceOp::Mean | ReduceOp::LogSumExp);
        cx.one(groups.iter().map(|g| if empty(g) { 0.0 } else { self.op.eval(g) }).collect())
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, x, segments, y) = (cx.d_out()?, cx.input(0), cx.input(1), cx.node());
        let ty = cx.g.ty(x).clone();
        let back = |cx: &mut Backward<'_>, v: NodeId| cx.g.push(GatherRows, &[v, segments]);
        let over = |cx: &mut Backward<'_>, op: ReduceOp, v: NodeId| {
            cx.g.push(SegmentReduce { op, count: self.count.clone() }, &[v, segments])
        };
        // A count that divides; segments without rows divide nothing that is read.
        let share = |cx: &mut Backward<'_>, hits: NodeId| {
            let count = over(cx, ReduceOp::Sum, hits)?;
            let one = cx.number(1.0, count)?;
            let count = cx.g.binary(BinaryOp::Max, count, one)?;
            cx.g.div(d, count)
        };
        // Rows that no segment takes gather a zero from `d`, so whatever they are multiplied by must be finite.
        let dx = match self.op {
            ReduceOp::Sum => back(cx, d)?,
            ReduceOp::Mean => {
                let ones = cx.g.full(ty.shape.clone(), 1.0, ty.dtype)?;
                let share = share(cx, ones)?;
                back(cx, share)?
            }
            ReduceOp::Max | ReduceOp::Min => {
                let best = back(cx, y)?;
                let hits = cx.indicator(BinaryOp::Eq, x, best)?;
                let share = share(cx, hits)?;
                let share = back(cx, share)?;
                cx.g.mul(hits, share)?
            }
            ReduceOp::Prod => {
                let prod = |cx: &mut Backward<'_>, v| over(cx, ReduceOp::Prod, v);
                let slope = prod_gradient(cx, x, prod, |cx, v| over(cx, ReduceOp::Sum, v), back)?;
                let d = back(cx, d)?;
                cx.g.mul(slope, d)?
            }
            ReduceOp::LogSumExp => {
                let (lse, d) = (back(cx, y)?, back(cx, d)?);
                let below = cx.g.sub(x, lse)?;
                let zero = cx.number(0.0, below)?;
                let below = cx.g.binary(BinaryOp::Min, below, zero)?;
                let share = cx.g.unary(UnaryOp::Exp, below)?;
                cx.g.mul(share, d)?
            }
        };
        cx.add(0, dx)
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        inputs[0].shape.elements()
    }
}

impl ReduceOp {
    /// The reduction of some numbers in f64.
    pub fn eval(self, values: &[f64]) -> f64 {
        // `f64::max` would hide a NaN.
        let extreme = |a: f64, b: f64, b_wins: bool| if b_wins || b.is_nan() { b } else { a };
        let max = || values.iter().fold(f64::NEG_INFINITY, |a, &b| extreme(a, b, b > a));
        match self {
            ReduceOp::Sum => values.iter().sum(),
            ReduceOp::Mean => values.iter().sum::<f64>() / values.len() as f64,
            ReduceOp::Max => max(),
            ReduceOp::Min => values.iter().fold(f64::INFINITY, |a, &b| extreme(a, b, b < a)),
            ReduceOp::Prod => values.iter().product(),
            ReduceOp::LogSumExp => match max() {
                top if top.is_finite() => top + values.iter().map(|v| (v - top).exp()).sum::<f64>().ln(),
                top => top,
            },
        }
    }
}

/// Slope of a product in each factor, the product of the others, without dividing by zero: with the product of the factors that are
/// not zero and the number of those that are, it is a quotient for none, and for one zero not zero only there. `back` brings a
/// reduced value to where its elements are.
fn prod_gradient(
    cx: &mut Backward<'_>,
    x: NodeId,
    prod: impl Fn(&mut Backward<'_>, NodeId) -> Result<NodeId>,
    sum: impl Fn(&mut Backward<'_>, NodeId) -> Result<NodeId>,
    back: impl Fn(&mut Backward<'_>, NodeId) -> Result<NodeId>,
) -> Result<NodeId> {
    let (zero, one) = (cx.number(0.0, x)?, cx.number(1.0, x)?);
    let is_zero = cx.g.binary(BinaryOp::Eq, x, zero)?;
    let dtype = cx.g.ty(x).dtype;
    let zeros = cx.g.cast(is_zero, dtype)?;
    let factors = cx.g.select(is_zero, one, x)?;
    let (product, zero_count) = (prod(cx, factors)?, sum(cx, zeros)?);
    let (product, zero_count) = (back(cx, product)?, back(cx, zero_count)?);
    let rest = cx.g.div(product, factors)?;
    let others = cx.g.sub(zero_count, zeros)?;
    let alone = cx.g.binary(BinaryOp::Eq, others, zero)?;
    cx.g.select(alone, rest, zero)
}
