//! The row norms of an adapted weight, without forming it (DoRA, Liu et al. 2024):
//!
//! `Σⱼ (W + s·B·A)²  =  Σⱼ W²  +  2s·Σᵣ (W·Aᵀ)∘B  +  s²·Σᵣ (B·(A·Aᵀ))∘B`
//!
//! The last two are one sum over `r` of `(2s·A·Wᵀ + s²·A·Aᵀ·Bᵀ)∘Bᵀ`, where `A·Wᵀ` is a thin product over the stored (possibly
//! quantized) weight and the other product adds to it in place. The first term depends on `W` alone; where `W` is frozen,
//! [`super::super::fold_frozen`] computes it once. The identity is exact, so gradients may flow through it as well.

use crate::op::{self, BinaryOp, Op, ReduceOp};
use crate::passes::rewrite::{number, rebuild};
use crate::{Float, Graph, NodeId, Result};

/// Rewrites sums of squares over rows of `W + s·B·A`.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn dora_norm(g: &Graph) -> Result<Graph> {
    rebuild(g, |new, id, inputs| {
        let node = g.node(id);
        let Op::Reduce(r) = &node.op else { return Ok(None) };
        if r.op != ReduceOp::Sum || r.axes != [1] || g.ty(node.inputs[0]).shape.rank() != 2 {
            return Ok(None);
        }
        // The new graph has the images of the whole expression; it is matched there, so only its nodes are used.
        let Some(z) = square_of(new, inputs[0]) else { return Ok(None) };
        let Some(found) = adapted_weight(new, z) else { return Ok(None) };
        let rows = found.row_squares(new)?;
        new.reshape(rows, node.ty().shape.clone()).map(Some)
    })
}

/// `x` where the node is `x·x` or `x²`.
fn square_of(g: &Graph, id: NodeId) -> Option<NodeId> {
    let node = g.node(id);
    match &node.op {
        Op::Binary(op::Binary(BinaryOp::Mul)) if node.inputs[0] == node.inputs[1] => Some(node.inputs[0]),
        Op::Binary(op::Binary(BinaryOp::Pow)) if number(g, node.inputs[1]) == Some(2.0) => Some(node.inputs[0]),
        _ => None,
    }
}

struct Adapted {
    /// The parameter node.
    weight: NodeId,
    /// Its dense view.
    dense: NodeId,
    /// `[out, r]`, after `transpose_b`.
    b: NodeId,
    /// `[r, in]`, after `transpose_a`.
    a: NodeId,
    flip_b: bool,
    flip_a: bool,
    scale: f64,
}

fn adapted_weight(g: &Graph, z: NodeId) -> Option<Adapted> {
    let sum = g.node(z);
    let Op::Binary(op::Binary(BinaryOp::Add)) = sum.op else { return None };
    for (w, delta) in [(sum.inputs[0], sum.inputs[1]), (sum.inputs[1], sum.inputs[0])] {
        let Some(weight) = parameter(g, w).filter(|_| g.ty(w) == sum.ty()) else { continue };
        let (mut at, mut scale) = (delta, 1.0);
        loop {
            let node = g.node(at);
            if g.ty(at) != sum.ty() {
                break;
            }
            match &node.op {
                Op::MatMul(m) if g.ty(node.inputs[1]).shape.rank() == 2 && g.ty(node.inputs[0]).shape.rank() == 2 => {
                    let [b, a] = [node.inputs[0], node.inputs[1]];
                    let (flip_b, flip_a) = (m.transpose_a, m.transpose_b);
                    return Some(Adapted { weight, dense: w, b, a, flip_b, flip_a, scale });
                }
                Op::Binary(op::Binary(BinaryOp::Mul)) => match (number(g, node.inputs[0]), number(g, node.inputs[1])) {
                    (_, Some(c)) => (at, scale) = (node.inputs[0], scale * c),
                    (Some(c), None) => (at, scale) = (node.inputs[1], scale * c),
                    _ => break,
                },
                Op::Binary(op::Binary(BinaryOp::Div)) => match number(g, node.inputs[1]) {
                    Some(c) if c != 0.0 => (at, scale) = (node.inputs[0], scale / c),
                    _ => break,
                },
                _ => break,
            }
        }
    }
    None
}

/// The parameter node behind a dense view. A stopped gradient may be looked through where the parameter takes none anyway.
fn parameter(g: &Graph, id: NodeId) -> Option<NodeId> {
    let node = g.node(id);
    match &node.op {
        Op::Read(_) => matches!(g.node(node.inputs[0]).op, Op::Param(_)).then(|| node.inputs[0]),
        Op::StopGrad(_) => {
            parameter(g, node.inputs[0]).filter(|&p| matches!(&g.node(p).op, Op::Param(p) if !g.params()[p.id.index()].trainable))
        }
        _ => None,
    }
}

impl Adapted {
    /// `[out]`.
    fn row_squares(&self, g: &mut Graph) -> Result<NodeId> {
        let transpose = |g: &mut Graph, x: NodeId| g.push(op::Permute { axes: vec![1, 0] }, &[x]);
        let a = if self.flip_a { transpose(g, self.a)? } else { self.a };
        let (b, bt) = if self.flip_b { (transpose(g, self.b)?, self.b) } else { (self.b, transpose(g, self.b)?) };
        let squares = g.mul(self.dense, self.dense)?;
        let plain = g.reduce(ReduceOp::Sum, squares, &[1], false)?;
        let cross = g.push(op::Linear { alpha: Float(2.0 * self.scale), ..op::Linear::plain() }, &[a, self.weight])?;
        let gram = g.push(op::MatMul { transpose_a: false, transpose_b: true }, &[a, a])?;
        let own = op::Linear { alpha: Float(self.scale * self.scale), addend: true, ..op::Linear::plain() };
        let both = g.push(own, &[gram, b, cross])?;
        let both = g.mul(both, bt)?;
        let both = g.reduce(ReduceOp::Sum, both, &[0], false)?;
        g.add(plain, both)
    }
}
