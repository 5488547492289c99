//! Choice along the last axis: what routers, samplers and group-limited routing are made of.
//!
//! [`TopK`] finds places only; values are read with [`GatherLast`], whose backward rule is [`ScatterLast`] and the other way
//! round. Choice itself has no gradient.

use super::{OpRule, arity, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{DType, Dim, Error, Graph, Result, Shape, Type};

/// Indices of the `k` largest of the last axis: input `x [..., c]`, output `s32 [..., k]`, largest first. Of equal numbers the one
/// with the smaller index comes first; a NaN counts as larger than any number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopK {
    /// How many, at least 1 and at most `c`.
    pub k: u64,
}

/// `shape` with another last dimension.
fn with_last(shape: &Shape, last: Dim) -> Shape {
    shape[..shape.rank() - 1].iter().cloned().chain([last]).collect()
}

impl OpRule for TopK {
    fn name(&self) -> &'static str {
        "top-k"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        floats(self.name(), inputs)?;
        let Some(last) = inputs[0].shape.last() else {
            return Err(Error::shape(self.name(), "needs an axis", inputs));
        };
        if self.k == 0 || self.k > i32::MAX as u64 || last.as_fixed().is_some_and(|c| self.k > c) {
            return Err(Error::shape(self.name(), format!("k is {}, but must be in 1..={last}", self.k), inputs));
        }
        Ok(vec![Type::new(DType::S32, with_last(&inputs[0].shape, Dim::fixed(self.k)))])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, k) = (cx.input(0), self.k as usize);
        if x.cols() < k {
            return Err(cx.error(format!("{k} of {} elements", x.cols())));
        }
        let mut out = Vec::new();
        for row in x.rows() {
            let mut order: Vec<usize> = (0..row.len()).collect();
            // Stable: equal numbers stay in the order of their indices.
            order.sort_by(|&a, &b| match (row[a].is_nan(), row[b].is_nan()) {
                (false, false) => row[b].partial_cmp(&row[a]).expect("neither is a NaN"),
                (a, b) => b.cmp(&a),
            });
            out.extend(order[..k].iter().map(|&i| i as f64));
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        inputs[0].shape.elements()
    }
}

/// `out[..., j] = x[..., idx[..., j]]`: inputs `x [..., c]`, `idx [..., k]` (whole numbers), output `[..., k]`. A negative index
/// gives zero, one past the axis is a run-time error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatherLast;

/// Both have an axis, and what lies before the last one is equal.
fn aligned(x: &Type, idx: &Type) -> bool {
    let (x, at) = (&x.shape, &idx.shape);
    idx.dtype.is_int() && x.rank() > 0 && x.rank() == at.rank() && x[..x.rank() - 1] == at[..at.rank() - 1]
}

impl OpRule for GatherLast {
    fn name(&self) -> &'static str {
        "gather-last"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        let (x, idx) = (&inputs[0], &inputs[1]);
        if !aligned(x, idx) {
            return Err(Error::shape(self.name(), "takes x [..., c] and whole-number indices [..., k]", inputs));
        }
        Ok(vec![Type::new(x.dtype, idx.shape.clone())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, k) = (cx.input(0), cx.input(1).cols());
        let mut out = Vec::new();
        for (i, at) in cx.whole(1).into_iter().enumerate() {
            out.push(match at {
                ..0 => 0.0,
                at => x.data[i / k * x.cols() + cx.index(at, x.cols(), "index")?],
            });
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, x) = (cx.d_out()?, cx.input(0));
        let shape = &cx.g.ty(x).shape;
        let count = shape[shape.rank() - 1].clone();
        let dx = cx.g.push(ScatterLast { count }, &[d, cx.input(1)])?;
        cx.add(0, dx)
    }
}

/// `out[..., idx[..., j]] += x[..., j]` over zeros: inputs `x [..., k]`, `idx [..., k]` (whole numbers), output `[..., count]`. An
/// element with a negative index is skipped, an index past `count` is a run-time error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScatterLast {
    /// Size of the new last axis.
    pub count: Dim,
}

impl OpRule for ScatterLast {
    fn name(&self) -> &'static str {
        "scatter-last"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        floats(self.name(), &inputs[..1])?;
        let (x, idx) = (&inputs[0], &inputs[1]);
        if !aligned(x, idx) || x.shape != idx.shape {
            return Err(Error::shape(self.name(), "takes x [..., k] and whole-number indices [..., k]", inputs));
        }
        Ok(vec![Type::new(x.dtype, with_last(&x.shape, self.count.clone()))])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, mut out) = (cx.input(0), Tensor::zeros(cx.shape(0)?));
        let (k, count) = (x.cols(), out.cols());
        for (i, at) in cx.whole(1).into_iter().enumerate().filter(|(_, at)| *at >= 0) {
            out.data[i / k * count + cx.index(at, count, "index")?] += x.data[i];
        }
        Ok(vec![out])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let dx = cx.g.push(GatherLast, &[d, cx.input(1)])?;
        cx.add(0, dx)
    }
}
