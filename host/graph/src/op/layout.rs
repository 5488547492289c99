//! Ops that move elements.

use super::{OpRule, arity};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Dim, Error, Float, Graph, Result, Shape, Type};

/// Other shape, same elements in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reshape {
    /// New shape.
    pub to: Shape,
}

impl OpRule for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        if inputs[0].shape.elements()? != self.to.elements()? {
            return Err(Error::shape(self.name(), format!("{} holds another number of elements", self.to), inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, self.to.clone())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        cx.one(cx.input(0).data.clone())
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let shape = cx.g.ty(cx.input(0)).shape.clone();
        let d = cx.g.reshape(d, shape)?;
        cx.add(0, d)
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// Axes in another order: output axis `i` is input axis `axes[i]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permute {
    /// A permutation of `0..rank`.
    pub axes: Vec<usize>,
}

impl OpRule for Permute {
    fn name(&self) -> &'static str {
        "permute"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        let mut sorted = self.axes.clone();
        sorted.sort_unstable();
        if sorted != (0..inputs[0].shape.rank()).collect::<Vec<_>>() {
            return Err(Error::shape(self.name(), format!("{:?} is not a permutation of the axes", self.axes), inputs));
        }
        let shape = self.axes.iter().map(|&a| inputs[0].shape[a].clone()).collect::<Shape>();
        Ok(vec![Type::new(inputs[0].dtype, shape)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let x = cx.input(0);
        let strides = x.strides();
        let at = |index: &[usize]| index.iter().zip(&self.axes).map(|(i, &axis)| i * strides[axis]).sum::<usize>();
        Ok(vec![Tensor::from_index(cx.shape(0)?, |index| x.data[at(index)])])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let mut axes = vec![0; self.axes.len()];
        self.axes.iter().enumerate().for_each(|(to, &from)| axes[from] = to);
        let d = cx.g.push(Permute { axes }, &[d])?;
        cx.add(0, d)
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// Broadcast copy by numpy's rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expand {
    /// Shape to fill.
    pub to: Shape,
}

impl OpRule for Expand {
    fn name(&self) -> &'static str {
        "expand"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        if inputs[0].shape.broadcast(&self.to).as_ref() != Some(&self.to) {
            return Err(Error::shape(self.name(), format!("does not broadcast to {}", self.to), inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, self.to.clone())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.input(0).expand(&cx.shape(0)?)])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        cx.add_summed(0, d)
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// `start..start+len` of one axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// Axis.
    pub axis: usize,
    /// First index.
    pub start: Dim,
    /// Number of indices.
    pub len: Dim,
}

impl OpRule for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        let shape = &inputs[0].shape;
        if self.axis >= shape.rank() {
            return Err(Error::shape(self.name(), format!("there is no axis {}", self.axis), inputs));
        }
        // What lies past the end must be provably there: `size - (start + len)` fixed and not negative, or the slice is refused.
        let end = self.start.add(&self.len)?;
        let left = shape[self.axis].sub(&end);
        let inside = match (shape[self.axis].as_fixed(), end.as_fixed()) {
            (Some(size), Some(end)) => end <= size,
            _ => left.is_ok_and(|d| !d.to_string().contains('-')),
        };
        if !inside {
            let message = format!("{}..{end} does not provably lie inside axis {}", self.start, self.axis);
            return Err(Error::shape(self.name(), message, inputs));
        }
        let dims = shape.iter().enumerate().map(|(i, d)| if i == self.axis { self.len.clone() } else { d.clone() });
        Ok(vec![Type::new(inputs[0].dtype, dims.collect::<Shape>())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, start) = (cx.input(0), cx.dim(&self.start)?);
        let (strides, shape) = (x.strides(), cx.shape(0)?);
        if start + shape[self.axis] > x.shape[self.axis] {
            return Err(cx.error(format!("axis {} ends before {}", self.axis, start + shape[self.axis])));
        }
        let at = |index: &[usize]| index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>();
        Ok(vec![Tensor::from_index(shape, |index| x.data[at(index) + start * strides[self.axis]])])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        // Zeros before and after: a border where all sizes are known, else a join with zeros of symbolic size.
        let d = cx.d_out()?;
        let ty = cx.g.ty(cx.input(0)).clone();
        let after = ty.shape[self.axis].sub(&self.start.add(&self.len)?)?;
        let d = if let (Some(lo), Some(hi)) = (self.start.as_fixed(), after.as_fixed()) {
            let side = |n| (0..ty.shape.rank()).map(|i| if i == self.axis { n } else { 0 }).collect::<Vec<u64>>();
            cx.g.push(Pad { lo: side(lo), hi: side(hi), value: Float(0.0) }, &[d])?
        } else {
            let mut zeros = |len: &Dim| {
                let dims = ty.shape.iter().enumerate().map(|(i, d)| if i == self.axis { len.clone() } else { d.clone() });
                cx.g.full(dims.collect::<Shape>(), 0.0, ty.dtype)
            };
            let mut pieces = Vec::new();
            if self.start.as_fixed() != Some(0) {
                pieces.push(zeros(&self.start)?);
            }
            pieces.push(d);
            if after.as_fixed() != Some(0) {
                pieces.push(zeros(&after)?);
            }
            cx.g.push(Concat { axis: self.axis }, &pieces)?
        };
        cx.add(0, d)
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// Join along an axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Concat {
    /// Axis.
    pub axis: usize,
}

impl OpRule for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        let first = inputs.first().ok_or_else(|| Error::shape(self.name(), "takes at least one value", inputs))?;
        let mut total = Dim::fixed(0);
        for ty in inputs {
            let fits = ty.dtype == first.dtype
                && ty.shape.rank() == first.shape.rank()
                && self.axis < ty.shape.rank()
                && (0..ty.shape.rank()).all(|i| i == self.axis || ty.shape[i] == first.shape[i]);
            if !fits {
                return Err(Error::shape(self.name(), format!("values must agree in all but axis {}", self.axis), inputs));
            }
            total = total.add(&ty.shape[self.axis])?;
        }
        let dims = first.shape.iter().enumerate().map(|(i, d)| if i == self.axis { total.clone() } else { d.clone() });
        Ok(vec![Type::new(first.dtype, dims.collect::<Shape>())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let shape = cx.shape(0)?;
        let inner: usize = shape[self.axis + 1..].iter().product();
        let outer: usize = shape[..self.axis].iter().product();
        let mut out = Vec::with_capacity(shape.iter().product());
        for o in 0..outer {
            for i in 0..cx.arity() {
                let x = cx.input(i);
                let run = x.shape[self.axis] * inner;
                out.extend_from_slice(&x.data[o * run..][..run]);
            }
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let mut start = Dim::fixed(0);
        for i in 0..cx.inputs().len() {
            let len = cx.g.ty(cx.input(i)).shape[self.axis].clone();
            let next = start.add(&len)?;
            if cx.needs(i) {
                let part = cx.g.push(Slice { axis: self.axis, start, len }, &[d])?;
                cx.add(i, part)?;
            }
            start = next;
        }
        Ok(())
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// A border of one value, per axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pad {
    /// Elements before, per axis.
    pub lo: Vec<u64>,
    /// Elements after, per axis.
    pub hi: Vec<u64>,
    /// The border's value.
    pub value: Float,
}

impl OpRule for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        let shape = &inputs[0].shape;
        if self.lo.len() != shape.rank() || self.hi.len() != shape.rank() {
            return Err(Error::shape(self.name(), "needs one border size per axis and side", inputs));
        }
        let dims = (0..shape.rank()).map(|i| shape[i].add(&Dim::fixed(self.lo[i]))?.add(&Dim::fixed(self.hi[i])));
        Ok(vec![Type::new(inputs[0].dtype, dims.collect::<Result<Vec<_>>>()?)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let x = cx.input(0);
        let strides = x.strides();
        let inside = |index: &[usize]| {
            let axis = |a: usize| index[a].checked_sub(self.lo[a] as usize).filter(|&i| i < x.shape[a]).map(|i| i * strides[a]);
            (0..index.len()).map(axis).sum::<Option<usize>>()
        };
        Ok(vec![Tensor::from_index(cx.shape(0)?, |index| inside(index).map_or(self.value.0, |at| x.data[at]))])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let mut d = cx.d_out()?;
        let shape = cx.g.ty(cx.input(0)).shape.clone();
        for axis in (0..shape.rank()).filter(|&a| self.lo[a] + self.hi[a] > 0) {
            d = cx.g.push(Slice { axis, start: Dim::fixed(self.lo[axis]), len: shape[axis].clone() }, &[d])?;
        }
        cx.add(0, d)
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}
