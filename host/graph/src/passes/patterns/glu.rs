//! `f(gate) · up` becomes [`op::Glu`], whose backward pass keeps `gate` and `up` only.

use crate::op::{self, BinaryOp, Gate, Op};
use crate::passes::rewrite::{rebuild, uses};
use crate::{Graph, Result};

/// Finds gated activations.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn glu(g: &Graph) -> Result<Graph> {
    let uses = uses(g);
    rebuild(g, |new, id, inputs| {
        let node = g.node(id);
        if !matches!(node.op, Op::Binary(op::Binary(BinaryOp::Mul))) {
            return Ok(None);
        }
        for (a, up) in [(0, 1), (1, 0)] {
            let gated = g.node(node.inputs[a]);
            let gate = Gate::ALL.into_iter().find(|gate| gated.op == op::Unary(gate.unary()).into());
            if let Some(gate) = gate
                && uses[node.inputs[a].index()] == 1
                && gated.ty() == node.ty()
                && g.ty(node.inputs[up]) == node.ty()
            {
                let x = new.node(inputs[a]).inputs[0];
                return new.push(op::Glu(gate), &[x, inputs[up]]).map(Some);
            }
        }
        Ok(None)
    })
}
