//! The update that an AdamW plugin writes becomes one op, [`Adam`]:
//!
//! ```text
//! m' = m + (g - m)·c        v' = v·c + (g·g)·c        w' = w·decay - (m' / (sqrt(v') / correction + c))·rate
//! ```
//!
//! with numbers `c` and scalars for the rest, sums and products in either order. `g` may be a gradient times a scalar (clipping), and
//! the weight may not decay. Both moments must be written somewhere and read by nothing else. Moments that are states in 8 bits, and
//! that are written back to where they came from, are left to the op.

use std::collections::HashMap;

use crate::op::{Adam, BinaryOp, Op, UnaryOp};
use crate::passes::rewrite::{Rebuild, live, number, uses};
use crate::{DType, Float, Graph, NodeId, Result, StateId, Target, Type};

/// Finds steps of Adam.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn adam(g: &Graph) -> Result<Graph> {
    let (live, uses) = (live(g), uses(g));
    let found: HashMap<NodeId, Found> =
        g.ids().filter(|id| live[id.index()]).filter_map(|id| Some((id, Found::at(g, &uses, id)?))).collect();
    if found.is_empty() {
        return Ok(g.clone());
    }
    let mut r = Rebuild::new(g);
    for id in g.ids().filter(|id| live[id.index()]) {
        if g.backward_start == Some(id) {
            r.mark_backward();
        }
        let inputs = r.inputs(id);
        let image = match found.get(&id) {
            Some(found) => found.emit(g, &mut r, id)?,
            None => r.copy(id, &inputs)?,
        };
        r.set(id, image);
    }
    super::super::dead_code(&r.finish())
}

/// A step, over nodes of the old graph.
struct Found {
    op: Adam,
    grad: NodeId,
    clip: Option<NodeId>,
    w: NodeId,
    decay: Option<NodeId>,
    old: [NodeId; 2],
    new: [NodeId; 2],
    correction: NodeId,
    rate: NodeId,
}

impl Found {
    fn at(g: &Graph, uses: &[u32], id: NodeId) -> Option<Found> {
        let ty = g.ty(id);
        if ty.dtype != DType::F32 {
            return None;
        }
        let [kept, change] = binary(g, id, BinaryOp::Sub)?;
        let (w, decay) = scaled(g, kept).map_or((kept, None), |(w, decay)| (w, Some(decay)));
        let (direction, rate) = scaled(g, change)?;
        let [new_m, below] = binary(g, direction, BinaryOp::Div)?;
        let (root, epsilon) = either(g, below, BinaryOp::Add, |x| number(g, x))?;
        let [root, correction] = binary(g, root, BinaryOp::Div)?;
        let Op::Unary(crate::op::Unary(UnaryOp::Sqrt)) = g.node(root).op else { return None };
        let new_v = g.node(root).inputs[0];

        let [a, b] = binary(g, new_m, BinaryOp::Add)?;
        let (m, (apart, one_minus_beta1)) = times_number(g, b).map(|x| (a, x)).or_else(|| Some((b, times_number(g, a)?)))?;
        let [clipped, same_m] = binary(g, apart, BinaryOp::Sub)?;
        let [a, b] = binary(g, new_v, BinaryOp::Add)?.map(|x| times_number(g, x));
        let (a, b) = (a?, b?);
        let squares = |x: NodeId| binary(g, x, BinaryOp::Mul) == Some([clipped; 2]);
        let ((v, beta2), one_minus_beta2) = if squares(b.0) { (a, b.1) } else { (b, squares(a.0).then_some(a.1)?) };
        let (grad, clip) = scaled(g, clipped).map_or((clipped, None), |(grad, clip)| (grad, Some(clip)));

        let fits = [grad, w, m, v].into_iter().all(|x| g.ty(x) == ty) && m == same_m && g.ty(correction).shape.rank() == 0;
        // One reader inside, and one write.
        let targets = [new_m, new_v].map(|x| target(g, x));
        if !fits || [new_m, new_v].into_iter().any(|x| uses[x.index()] != 2) || targets.contains(&None) {
            return None;
        }
        let packed = |old: NodeId, readers: u32, target: Option<Target>| {
            let id = packed_state(g, old)?;
            let alone = g.effects.iter().filter(|e| e.target == Target::State(id)).count() == 1;
            (uses[old.index()] == readers && target == Some(Target::State(id)) && alone).then_some(())
        };
        let packed = packed(m, 2, targets[0]).is_some() && packed(v, 1, targets[1]).is_some();
        let number = Float::from;
        let op = Adam {
            one_minus_beta1: number(one_minus_beta1),
            beta2: number(beta2),
            one_minus_beta2: number(one_minus_beta2),
            epsilon: number(epsilon),
            packed,
        };
        Some(Found { op, grad, clip, w, decay, old: [m, v], new: [new_m, new_v], correction, rate })
    }

    /// Appends the op; gives the new weight, and makes its other results stand for the moments.
    fn emit(&self, g: &Graph, r: &mut Rebuild<'_>, id: NodeId) -> Result<NodeId> {
        r.new.set_scope(g.node(id).scope);
        let ty = Type::scalar(DType::F32);
        let one = r.new.push(crate::op::Full { ty, value: Float(1.0) }, &[])?;
        let scalar = |x: Option<NodeId>| x.map_or(one, |x| r.at(x));
        let scalars = [scalar(self.clip), scalar(self.decay), r.at(self.correction), r.at(self.rate)];
        let values = [self.grad, self.w, self.old[0], self.old[1]].map(|x| r.at(x));
        let inputs: Vec<NodeId> = values.into_iter().chain(scalars).collect();
        let w = r.new.push(self.op.clone(), &inputs)?;
        for (index, moment) in (1..).zip(self.new) {
            let part = r.new.part(w, index)?;
            r.set(moment, part);
        }
        Ok(w)
    }
}

fn binary(g: &Graph, id: NodeId, op: BinaryOp) -> Option<[NodeId; 2]> {
    let node = g.node(id);
    matches!(&node.op, Op::Binary(b) if b.0 == op).then(|| [node.inputs[0], node.inputs[1]])
}

/// One operand, and what `second` makes of the other.
fn either<T>(g: &Graph, id: NodeId, op: BinaryOp, second: impl Fn(NodeId) -> Option<T>) -> Option<(NodeId, T)> {
    let [a, b] = binary(g, id, op)?;
    second(b).map(|x| (a, x)).or_else(|| Some((b, second(a)?)))
}

/// A value and the number that it is multiplied by.
fn times_number(g: &Graph, id: NodeId) -> Option<(NodeId, f64)> {
    either(g, id, BinaryOp::Mul, |x| number(g, x))
}

/// A value and the scalar that it is multiplied by.
fn scaled(g: &Graph, id: NodeId) -> Option<(NodeId, NodeId)> {
    (g.ty(id).shape.rank() > 0).then_some(())?;
    either(g, id, BinaryOp::Mul, |x| (g.ty(x) == &Type::scalar(DType::F32)).then_some(x))
}

/// Where a value is written, if only there.
fn target(g: &Graph, id: NodeId) -> Option<Target> {
    let mut writes = g.effects.iter().filter(|e| e.value == id && !e.accumulate);
    let first = writes.next()?.target;
    writes.next().is_none().then_some(first)
}

fn packed_state(g: &Graph, id: NodeId) -> Option<StateId> {
    let Op::State(s) = &g.node(id).op else { return None };
    g.states()[s.id.index()].map.map(|_| s.id)
}
