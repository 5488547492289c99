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
        let product = |new: &Graph, i: usize| -> Option<(op::Linear, Vec<NodeId>)> {
            let (old, image) = (node.inputs[i], new.node(inputs[i]));
            let single = uses[old.index()] == 1 && g.ty(old) == node.ty();
            match &image.op {
                Op::Linear(l) if single && !l.addend => Some((l.clone(), image.inputs.clone())),
                _ => None,
            }
        };
        match &node.op {
            Op::Unary(op::Unary(f)) if is_activation(*f) => match product(new, 0) {
                Some((l, operands)) if l.activation.is_none() => {
                    new.push(op::Linear { activation: Some(*f), ..l }, &operands).map(Some)
                }
                _ => Ok(None),
            },
            Op::Binary(op::Binary(BinaryOp::Add)) => {
                for (side, other) in [(0, 1), (1, 0)] {
                    if let Some((l, mut operands)) = product(new, side)
                        && l.activation.is_some()
                        && g.ty(node.inputs[other]) == node.ty()
                    {
                        operands.push(inputs[other]);
                        return new.push(op::Linear { addend: true, ..l }, &operands).map(Some);
                    }
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    })
}

/// What networks put after a layer; other functions stay with the elementwise programs around them.
fn is_activation(f: UnaryOp) -> bool {
    use UnaryOp::{GeluErf, GeluTanh, Relu, Sigmoid, Silu, Tanh};
    matches!(f, Silu | GeluErf | GeluTanh | Relu | Sigmoid | Tanh)
}
