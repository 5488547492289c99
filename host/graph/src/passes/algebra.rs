//! Local identities: what multiplies by one, adds zero, reshapes twice, broadcasts for nothing or computes on two known numbers.
//!
//! Every rule gives the same value up to rounding in the last place. `StopGrad` is dropped only after differentiation.

use super::rewrite::{number, rebuild};
use crate::op::{self, BinaryOp, Op, ReduceOp, UnaryOp};
use crate::{Dim, Float, Graph, NodeId, Result};

/// Applies the identities once, in order.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn algebra(g: &Graph, gradients_done: GradientsDone) -> Result<Graph> {
    rebuild(g, |new, id, inputs| {
        let node = g.node(id);
        let image = match &node.op {
            Op::StopGrad(_) if gradients_done == GradientsDone::Yes => Some(inputs[0]),
            Op::Unary(f) => unary(new, f.0, inputs[0])?,
            Op::Binary(f) => binary(new, f.0, inputs[0], inputs[1], &node.outputs[0])?,
            Op::Select(_) => select(new, inputs, &node.outputs[0])?,
            Op::Cast(c) => cast(new, c, inputs[0])?,
            Op::Reshape(r) => reshape(new, r, inputs[0])?,
            Op::Permute(p) => permute(new, p, inputs[0])?,
            Op::Expand(e) => (new.ty(inputs[0]).shape == e.to).then_some(inputs[0]),
            Op::Reduce(r) => reduce(new, r, inputs[0], &node.outputs[0])?,
            Op::Concat(_) if inputs.len() == 1 => Some(inputs[0]),
            Op::Slice(s) => (new.ty(inputs[0]).shape[s.axis] == s.len).then_some(inputs[0]),
            _ => None,
        };
        // A rule may not change the type that later nodes were checked against.
        Ok(image.filter(|&i| new.ty(i) == node.ty()))
    })
}

/// Whether the graph will not be differentiated any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientsDone {
    /// It may still be.
    No,
    /// It is done.
    Yes,
}

fn unary(new: &mut Graph, f: UnaryOp, x: NodeId) -> Result<Option<NodeId>> {
    let inner = new.node(x);
    match (&inner.op, f) {
        (Op::Unary(g), UnaryOp::Neg) if g.0 == UnaryOp::Neg => Ok(Some(inner.inputs[0])),
        (Op::Unary(g), UnaryOp::LogicalNot) if g.0 == UnaryOp::LogicalNot => Ok(Some(inner.inputs[0])),
        (Op::Full(c), _) if c.ty.dtype.is_float() => {
            let v = c.value.0;
            let v = match f {
                UnaryOp::Neg => -v,
                UnaryOp::Sqrt if v >= 0.0 => v.sqrt(),
                UnaryOp::Rsqrt if v > 0.0 => v.sqrt().recip(),
                UnaryOp::Recip if v != 0.0 => v.recip(),
                UnaryOp::Exp => v.exp(),
                UnaryOp::Log if v > 0.0 => v.ln(),
                _ => return Ok(None),
            };
            let ty = c.ty.clone();
            new.push(op::Full { ty, value: Float(v) }, &[]).map(Some)
        }
        _ => Ok(None),
    }
}

/// The value before a broadcast copy.
fn source(new: &Graph, x: NodeId) -> Option<NodeId> {
    let node = new.node(x);
    matches!(node.op, Op::Expand(_)).then(|| node.inputs[0])
}

fn binary(new: &mut Graph, f: BinaryOp, a: NodeId, b: NodeId, ty: &crate::Type) -> Result<Option<NodeId>> {
    use BinaryOp::*;
    // Elementwise ops broadcast by themselves.
    let covers = |new: &Graph, a: NodeId, b: NodeId| new.ty(a).shape.broadcast(&new.ty(b).shape).as_ref() == Some(&ty.shape);
    let (mut x, mut y) = (a, b);
    if let Some(s) = source(new, x).filter(|&s| covers(new, s, y)) {
        x = s;
    }
    if let Some(s) = source(new, y).filter(|&s| covers(new, x, s)) {
        y = s;
    }
    let same = |new: &Graph, v: NodeId| (new.ty(v) == ty).then_some(v);
    let (nx, ny) = (number(new, x), number(new, y));
    let known = match (f, nx, ny) {
        (Mul | Div, _, Some(1.0)) | (Add | Sub, _, Some(0.0)) | (Pow, _, Some(1.0)) => same(new, x),
        (Mul, Some(1.0), _) | (Add, Some(0.0), _) => same(new, y),
        _ => None,
    };
    if known.is_some() {
        return Ok(known);
    }
    if let (Some(p), Some(q), true) = (nx, ny, ty.dtype.is_float()) {
        let v = match f {
            Add => p + q,
            Sub => p - q,
            Mul => p * q,
            Div if q != 0.0 => p / q,
            Max => p.max(q),
            Min => p.min(q),
            _ => f64::NAN,
        };
        if v.is_finite() {
            return new.push(op::Full { ty: ty.clone(), value: Float(v) }, &[]).map(Some);
        }
    }
    if f == Pow && ny == Some(2.0) {
        return new.mul(x, x).map(Some);
    }
    if f == Pow && ny == Some(0.5) {
        return new.unary(UnaryOp::Sqrt, x).map(Some);
    }
    if f == Mul && ty.dtype.is_float() {
        // x * sigmoid(x), in either order.
        for (v, s) in [(x, y), (y, x)] {
            let node = new.node(s);
            if matches!(node.op, Op::Unary(op::Unary(UnaryOp::Sigmoid))) && node.inputs[0] == v {
                return new.unary(UnaryOp::Silu, v).map(Some);
            }
        }
        // (v * c1) * c2
        for (v, c) in [(x, ny), (y, nx)] {
            let (Some(c), Op::Binary(op::Binary(Mul))) = (c, &new.node(v).op) else { continue };
            let inner = new.node(v).inputs.clone();
            for (u, k) in [(inner[0], inner[1]), (inner[1], inner[0])] {
                if let (Some(k), true) = (number(new, k), new.ty(u) == ty) {
                    return new.scale(u, k * c).map(Some);
                }
            }
        }
    }
    if (x, y) == (a, b) { Ok(None) } else { new.binary(f, x, y).map(Some) }
}

fn select(new: &mut Graph, inputs: &[NodeId], ty: &crate::Type) -> Result<Option<NodeId>> {
    let mut slim = inputs.to_vec();
    for i in 0..3 {
        let Some(s) = source(new, slim[i]) else { continue };
        let kept = std::mem::replace(&mut slim[i], s);
        let shape = |k: usize| &new.ty(slim[k]).shape;
        let all = shape(1).broadcast(shape(2)).and_then(|s| s.broadcast(shape(0)));
        if all.as_ref() != Some(&ty.shape) {
            slim[i] = kept;
        }
    }
    if slim == inputs { Ok(None) } else { new.push(op::Select, &slim).map(Some) }
}

fn cast(new: &mut Graph, c: &op::Cast, x: NodeId) -> Result<Option<NodeId>> {
    let inner = new.node(x);
    if inner.ty().dtype == c.0 {
        return Ok(Some(x));
    }
    match &inner.op {
        // Float types are all computed in one precision, so the one in the middle changes nothing.
        Op::Cast(m) if m.0.is_float() && c.0.is_float() && new.ty(inner.inputs[0]).dtype.is_float() => {
            let from = inner.inputs[0];
            if new.ty(from).dtype == c.0 { Ok(Some(from)) } else { new.push(c.clone(), &[from]).map(Some) }
        }
        Op::Full(f) if f.ty.dtype.is_float() && c.0.is_float() => {
            let full = op::Full { ty: crate::Type::new(c.0, f.ty.shape.clone()), value: f.value };
            new.push(full, &[]).map(Some)
        }
        _ => Ok(None),
    }
}

fn reshape(new: &mut Graph, r: &op::Reshape, x: NodeId) -> Result<Option<NodeId>> {
    let mut from = x;
    while let Op::Reshape(_) = new.node(from).op {
        from = new.node(from).inputs[0];
    }
    if new.ty(from).shape == r.to {
        return Ok(Some(from));
    }
    if let Op::Full(f) = &new.node(from).op {
        let full = op::Full { ty: crate::Type::new(f.ty.dtype, r.to.clone()), value: f.value };
        return new.push(full, &[]).map(Some);
    }
    if from == x { Ok(None) } else { new.push(r.clone(), &[from]).map(Some) }
}

fn permute(new: &mut Graph, p: &op::Permute, x: NodeId) -> Result<Option<NodeId>> {
    if p.axes.is_sorted() {
        return Ok(Some(x));
    }
    let one = Dim::fixed(1);
    let shape = new.ty(x).shape.clone();
    let moved: Vec<usize> = p.axes.iter().copied().filter(|&a| shape[a] != one).collect();
    if moved.is_sorted() {
        // Only axes of size one change places.
        let to = p.axes.iter().map(|&a| shape[a].clone()).collect();
        return new.push(op::Reshape { to }, &[x]).map(Some);
    }
    let Op::Permute(q) = &new.node(x).op else { return Ok(None) };
    let axes: Vec<usize> = p.axes.iter().map(|&a| q.axes[a]).collect();
    let from = new.node(x).inputs[0];
    if axes.is_sorted() { Ok(Some(from)) } else { new.push(op::Permute { axes }, &[from]).map(Some) }
}

fn reduce(new: &mut Graph, r: &op::Reduce, x: NodeId, ty: &crate::Type) -> Result<Option<NodeId>> {
    let one = Dim::fixed(1);
    let trivial = r.axes.iter().all(|&a| new.ty(x).shape[a] == one);
    if !trivial || matches!(r.op, ReduceOp::LogSumExp) {
        return Ok(None);
    }
    new.reshape(x, ty.shape.clone()).map(Some)
}
