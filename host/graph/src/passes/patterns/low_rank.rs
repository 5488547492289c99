//! A product and a thin one that adds to its result become one op, [`LowRankLinear`]: the thin one costs no pass over memory.
//!
//! After [`super::epilogue`], LoRA's forward pass is `linear(h, B, addend = linear(x, W))` and the gradient in its input a chain of
//! `linear-dx` in which each adds the one before. Two neighbours of such a chain are joined where one is thin, whichever comes first,
//! if nothing else reads what is between them. The branch may have an input of its own, dropped out or not: only results are joined.

use crate::op::{self, LowRankLinear, Op};
use crate::passes::rewrite::{rebuild, uses};
use crate::{Dim, Float, Graph, NodeId, Result};

/// Most terms of a thin product; beyond, sharing the output saves little.
const MOST: u64 = 64;

/// Joins neighbouring products.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn low_rank(g: &Graph) -> Result<Graph> {
    let uses = uses(g);
    rebuild(g, |new, id, inputs| {
        let node = g.node(id);
        // The node's own product ends in an addend that only it reads.
        let Some(outer) = Product::of(&node.op, inputs).filter(|p| p.addend.is_some()) else { return Ok(None) };
        let addend = node.inputs[node.inputs.len() - 1];
        if uses[addend.index()] != 1 || g.ty(addend) != node.ty() {
            return Ok(None);
        }
        let before = new.node(inputs[inputs.len() - 1]);
        let Some(inner) = Product::of(&before.op, &before.inputs) else { return Ok(None) };
        match (outer.thin(new), inner.thin(new)) {
            (true, false) => inner.with(&outer, inner.addend, new).transpose(),
            (false, true) => outer.with(&inner, inner.addend, new).transpose(),
            _ => Ok(None),
        }
    })
}

/// A product as both ops have it, over nodes of the new graph.
struct Product {
    backward: bool,
    alpha: Float,
    x: NodeId,
    w: NodeId,
    bias: Option<NodeId>,
    addend: Option<NodeId>,
}

impl Product {
    fn of(op: &Op, inputs: &[NodeId]) -> Option<Product> {
        let (backward, alpha, bias, addend) = match op {
            Op::Linear(op::Linear { alpha, bias, activation: None, addend }) => (false, *alpha, *bias, *addend),
            Op::LinearDx(op::LinearDx { alpha, addend }) => (true, *alpha, false, *addend),
            _ => return None,
        };
        let (x, w) = (inputs[0], inputs[1]);
        let (bias, addend) = (bias.then(|| inputs[2]), addend.then(|| inputs[inputs.len() - 1]));
        Some(Product { backward, alpha, x, w, bias, addend })
    }

    fn thin(&self, g: &Graph) -> bool {
        g.ty(self.x).shape.last().and_then(Dim::as_fixed).is_some_and(|terms| terms <= MOST)
    }

    /// This product with `low` beside it. `None` where they are not of a kind.
    fn with(&self, low: &Product, addend: Option<NodeId>, new: &mut Graph) -> Option<Result<NodeId>> {
        if self.backward != low.backward || (self.bias.is_some() && low.bias.is_some()) {
            return None;
        }
        let bias = self.bias.or(low.bias);
        let op = LowRankLinear {
            backward: self.backward,
            alpha: self.alpha,
            factor: low.alpha,
            bias: bias.is_some(),
            activation: None,
            addend: addend.is_some(),
        };
        let inputs: Vec<NodeId> = [self.x, self.w, low.x, low.w].into_iter().chain(bias).chain(addend).collect();
        Some(new.push(op, &inputs))
    }
}
