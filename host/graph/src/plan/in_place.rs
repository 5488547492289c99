//! Which ops may write over which of their inputs.

use crate::op::{Adam, Op, Span};
use crate::{Graph, Node};

/// Inputs whose bytes output `output` may take over: every element is read before it is written, by the same lane. Other inputs
/// may show the same bytes only if they are in the list too.
pub fn in_place_inputs(g: &Graph, node: &Node, output: usize) -> Vec<usize> {
    let ty = &node.outputs[output];
    let candidates: Vec<usize> = match &node.op {
        Op::Fused(f) => (0..f.spans.len()).filter(|&i| f.spans[i] == Span::Full).collect(),
        Op::Unary(_) | Op::Cast(_) | Op::Dropout(_) | Op::Rope(_) | Op::ScatterRows(_) => vec![0],
        Op::Binary(_) | Op::Glu(_) => vec![0, 1],
        Op::Select(_) => vec![0, 1, 2],
        Op::Adam(_) => vec![Adam::replaces(output)],
        Op::GluBackward(_) => vec![output, 1 - output, 2],
        // An activation would overwrite what is added after it.
        Op::Linear(l) if l.addend && l.activation.is_none() => vec![node.inputs.len() - 1],
        Op::LinearDx(l) if l.addend => vec![2],
        Op::LowRankLinear(l) if l.addend && l.activation.is_none() => vec![node.inputs.len() - 1],
        _ => Vec::new(),
    };
    let same = |i: &usize| {
        let from = g.ty(node.inputs[*i]);
        // A program's input may be reshaped; its elements are in the same order.
        let size = if matches!(node.op, Op::Fused(_)) {
            matches!((from.shape.elements(), ty.shape.elements()), (Ok(a), Ok(b)) if a == b)
        } else {
            from.shape == ty.shape
        };
        size && from.dtype.is_int() == ty.dtype.is_int()
    };
    candidates.into_iter().filter(same).collect()
}
