//! `silu(gate) · up` becomes [`op::SwiGlu`], whose backward pass keeps `gate` and `up` only.

use crate::op::{self, BinaryOp, Op, UnaryOp};
use crate::passes::rewrite::{rebuild, uses};
use crate::{Graph, Result};

/// Finds gated activations.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn swiglu(g: &Graph) -> Result<Graph> {
    let uses = uses(g);
    rebuild(g, |new, id, inputs| {
        let node = g.node(id);
        if !matches!(node.op, Op::Binary(op::Binary(BinaryOp::Mul))) {
            return Ok(None);
        }
        for (a, up) in [(0, 1), (1, 0)] {
            let silu = g.node(node.inputs[a]);
            let fits = matches!(silu.op, Op::Unary(op::Unary(UnaryOp::Silu)))
                && uses[node.inputs[a].index()] == 1
                && silu.ty() == node.ty()
                && g.ty(node.inputs[up]) == node.ty();
            if fits {
                let gate = new.node(inputs[a]).inputs[0];
                return new.push(op::SwiGlu, &[gate, inputs[up]]).map(Some);
            }
        }
        Ok(None)
    })
}
