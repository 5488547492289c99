//! A function of a product, and what is added to it, go into the product's epilogue: `f(x·Wᵀ + bias) + addend` is one pass over memory.
//!
//! For complete graphs only: where gradients follow, the backward pass reads what the function was applied to, and the product keeps
//! its readers. Gated units have a kernel of their own ([`super::glu`]) and come first.

use crate::op::{self, BinaryOp, Op, UnaryOp};
use crate::passes::rewrite::{rebuild, uses};
use crate::{Graph, NodeId, Result};

/// Moves activations, and then addends, into products that only they read.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn activation(g: &Graph) -> Result<Graph> {
    let uses = uses(g);
    rebuild(g, |new, id, inputs| {
        let node = g.node(id);
        // The product of the new graph that the node's input `i` became, if the node may take it over.
        let product = |new: &Graph, i: usize| -> Option<(Op, Vec<NodeId>)> {
            let (old, image) = (node.inputs[i], new.node(inputs[i]));
            let single = uses[old.index()] == 1 && g.ty(old) == node.ty();
            single.then(|| (image.op.clone(), image.inputs.clone()))
        };
        match &node.op {
            Op::Unary(op::Unary(f)) if is_activation(*f) => {
                let Some((mut op, operands)) = product(new, 0) else { return Ok(None) };
                match epilogue(&mut op) {
                    Some((activation @ None, false)) => *activation = Some(*f),
                    _ => return Ok(None),
                }
                new.push(op, &operands).map(Some)
            }
            Op::Binary(op::Binary(BinaryOp::Add)) => {
                for (side, other) in [(0, 1), (1, 0)] {
                    if let Some((mut op, mut operands)) = product(new, side)
                        && let Some((Some(_), addend @ false)) = epilogue(&mut op)
                        && g.ty(node.inputs[other]) == node.ty()
                    {
                        *addend = true;
                        operands.push(inputs[other]);
                        return new.push(op, &operands).map(Some);
                    }
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    })
}

/// Activation and addend of a product that may have both.
fn epilogue(op: &mut Op) -> Option<(&mut Option<UnaryOp>, &mut bool)> {
    match op {
        Op::Linear(l) => Some((&mut l.activation, &mut l.addend)),
        Op::LowRankLinear(l) if !l.backward => Some((&mut l.activation, &mut l.addend)),
        _ => None,
    }
}

/// What networks put after a layer; other functions stay with the elementwise programs around them.
fn is_activation(f: UnaryOp) -> bool {
    use UnaryOp::{GeluErf, GeluTanh, Relu, Sigmoid, Silu, Tanh};
    matches!(f, Silu | GeluErf | GeluTanh | Relu | Sigmoid | Tanh)
}
