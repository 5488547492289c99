//! What surrounds a product goes into its epilogue: `alpha·x·Wᵀ + bias + addend` is one pass over memory.
//!
//! - a LoRA branch `y + s·linear(h, B)`, a residual `r + linear(x, W)` and a bias `linear(x, W) + b`;
//! - numbers that multiply a product or its input;
//! - gradient fan-in: a sum over [`op::LinearDx`] becomes a chain in which each product adds the one before.
//!
//! A product is absorbed only by its single reader, so nothing is computed twice. Of two candidates the later one takes the
//! earlier as its addend, which lets it run in place.

use crate::op::{self, BinaryOp, Op, UnaryOp};
use crate::passes::rewrite::{number, rebuild, uses};
use crate::{Float, Graph, NodeId, Result, Type};

/// Moves factors and addends into products.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn epilogue(g: &Graph) -> Result<Graph> {
    let uses = uses(g);
    let mut images: Vec<Option<NodeId>> = vec![None; g.len()];
    rebuild(g, |new, id, inputs| {
        for (&old, &image) in g.node(id).inputs.iter().zip(inputs) {
            images[old.index()] = Some(image);
        }
        let mapped = |id: NodeId| images[id.index()];
        let node = g.node(id);
        match &node.op {
            Op::Binary(op::Binary(f @ (BinaryOp::Add | BinaryOp::Sub))) => {
                sum(g, &uses, new, &mapped, *f, [node.inputs[0], node.inputs[1]], node.ty())
            }
            Op::Binary(op::Binary(BinaryOp::Mul | BinaryOp::Div)) | Op::Unary(op::Unary(UnaryOp::Neg)) => {
                match branch(g, &uses, id, true) {
                    Some(b) if b.op_without_addend() && b.product != id => b.emit(g, new, &mapped, None),
                    _ => Ok(None),
                }
            }
            Op::Linear(_) | Op::LinearDx(_) | Op::LinearDw(_) => input_factor(g, &uses, new, &mapped, id),
            _ => Ok(None),
        }
    })
}

/// A product times a number, read once.
struct Branch {
    product: NodeId,
    factor: f64,
    op: Op,
}

/// Follows numbers that multiply down to a product. Everything on the way but the root must have one reader.
fn branch(g: &Graph, uses: &[u32], root: NodeId, free_root: bool) -> Option<Branch> {
    let (mut at, mut factor) = (root, 1.0);
    loop {
        if uses[at.index()] != 1 && !(free_root && at == root) {
            return None;
        }
        let node = g.node(at);
        match &node.op {
            Op::Linear(_) | Op::LinearDx(_) | Op::LinearDw(_) => {
                return Some(Branch { product: at, factor, op: node.op.clone() });
            }
            op => {
                let (next, c) = factor_of(g, op, &node.inputs, node.ty())?;
                factor *= c;
                at = next;
            }
        }
    }
}

/// `(x, c)` where the node is `x · c` with a number `c` and `x` of the same type.
fn factor_of(g: &Graph, op: &Op, inputs: &[NodeId], ty: &Type) -> Option<(NodeId, f64)> {
    let found = match op {
        Op::Unary(op::Unary(UnaryOp::Neg)) => (inputs[0], -1.0),
        Op::Binary(op::Binary(BinaryOp::Div)) => (inputs[0], number(g, inputs[1]).filter(|&c| c != 0.0)?.recip()),
        Op::Binary(op::Binary(BinaryOp::Mul)) => match (number(g, inputs[0]), number(g, inputs[1])) {
            (_, Some(c)) => (inputs[0], c),
            (Some(c), None) => (inputs[1], c),
            _ => return None,
        },
        _ => return None,
    };
    (g.ty(found.0) == ty && found.1.is_finite()).then_some(found)
}

type Mapped<'a> = &'a dyn Fn(NodeId) -> Option<NodeId>;

impl Branch {
    /// A factor may only be moved into the product alone.
    fn op_without_addend(&self) -> bool {
        match &self.op {
            Op::Linear(l) => !l.addend && (!l.bias || self.factor == 1.0),
            Op::LinearDx(l) => !l.addend,
            _ => true,
        }
    }

    /// Whether the product can take an addend.
    fn open(&self) -> bool {
        self.op_without_addend() && !matches!(self.op, Op::LinearDw(_))
    }

    /// The product with its factor and, if given, an addend. `None` when an input has no image, which cannot happen for live nodes.
    fn emit(&self, g: &Graph, new: &mut Graph, mapped: Mapped<'_>, addend: Option<NodeId>) -> Result<Option<NodeId>> {
        let inputs: Option<Vec<NodeId>> = g.node(self.product).inputs.iter().map(|&i| mapped(i)).collect();
        let Some(mut inputs) = inputs else { return Ok(None) };
        inputs.extend(addend);
        let scaled = |alpha: Float| Float(alpha.0 * self.factor);
        let has = addend.is_some();
        match &self.op {
            Op::Linear(l) => new.push(op::Linear { alpha: scaled(l.alpha), addend: has, ..l.clone() }, &inputs),
            Op::LinearDx(l) => new.push(op::LinearDx { alpha: scaled(l.alpha), addend: has }, &inputs),
            Op::LinearDw(l) => new.push(op::LinearDw { alpha: scaled(l.alpha) }, &inputs),
            _ => return Ok(None),
        }
        .map(Some)
    }
}

fn sum(
    g: &Graph,
    uses: &[u32],
    new: &mut Graph,
    mapped: Mapped<'_>,
    f: BinaryOp,
    [a, b]: [NodeId; 2],
    ty: &Type,
) -> Result<Option<NodeId>> {
    let sign = if f == BinaryOp::Sub { -1.0 } else { 1.0 };
    let left = branch(g, uses, a, false);
    let right = branch(g, uses, b, false).map(|r| Branch { factor: r.factor * sign, ..r });
    // `a - product` is a sum; `product - b` is not, unless `b` is a product too, and then the first case has it.
    let mut tries = vec![(right, b, a)];
    if f == BinaryOp::Add {
        tries.push((left, a, b));
        tries.sort_by_key(|(branch, _, _)| std::cmp::Reverse(branch.as_ref().map(|b| b.product)));
    }
    for (branch, side, other) in tries {
        let Some(branch) = branch.filter(Branch::open) else { continue };
        if g.ty(side) != ty {
            continue;
        }
        if g.ty(other) == ty {
            let addend = mapped(other);
            if let Some(image) = branch.emit(g, new, mapped, addend)? {
                return Ok(Some(image));
            }
        }
        // A vector over the last axis is a bias.
        if let (Op::Linear(l), BinaryOp::Add) = (&branch.op, f) {
            let fits = !l.bias
                && branch.factor == 1.0
                && g.ty(other).shape.rank() == 1
                && g.ty(other).shape.last() == ty.shape.last()
                && g.ty(other).dtype == ty.dtype;
            let product = g.node(branch.product);
            if let (true, Some(x), Some(w), Some(bias)) =
                (fits, mapped(product.inputs[0]), mapped(product.inputs[1]), mapped(other))
            {
                return new.push(op::Linear { alpha: l.alpha, bias: true, ..op::Linear::plain() }, &[x, w, bias]).map(Some);
            }
        }
    }
    match f {
        BinaryOp::Add => chained(g, uses, new, mapped, [a, b], ty),
        _ => Ok(None),
    }
}

/// `r + (product + … + product)`, where every product has the next as its addend: `r` goes to the innermost, which runs first.
fn chained(
    g: &Graph,
    uses: &[u32],
    new: &mut Graph,
    mapped: Mapped<'_>,
    [a, b]: [NodeId; 2],
    ty: &Type,
) -> Result<Option<NodeId>> {
    for (side, other) in [(b, a), (a, b)] {
        if g.ty(side) != ty || g.ty(other) != ty {
            continue;
        }
        let (mut outer, mut at) = (Vec::new(), side);
        while uses[at.index()] == 1
            && let Op::Linear(op::Linear { addend: true, .. }) | Op::LinearDx(op::LinearDx { addend: true, .. }) = &g.node(at).op
        {
            outer.push(at);
            at = g.node(at).inputs[g.node(at).inputs.len() - 1];
        }
        let inner = Branch { product: at, factor: 1.0, op: g.node(at).op.clone() };
        let product = matches!(inner.op, Op::Linear(_) | Op::LinearDx(_)) && uses[at.index()] == 1;
        if outer.is_empty() || !product || !inner.open() || other >= at {
            continue;
        }
        let Some(mut image) = inner.emit(g, new, mapped, mapped(other))? else { continue };
        for &product in outer.iter().rev() {
            let node = g.node(product);
            let rest = node.inputs[..node.inputs.len() - 1].iter().map(|&i| mapped(i)).collect::<Option<Vec<_>>>();
            let Some(mut inputs) = rest else { return Ok(None) };
            inputs.push(image);
            image = new.push(node.op.clone(), &inputs)?;
        }
        return Ok(Some(image));
    }
    Ok(None)
}

/// A number that multiplies the first input of a product goes into `alpha`.
fn input_factor(g: &Graph, uses: &[u32], new: &mut Graph, mapped: Mapped<'_>, id: NodeId) -> Result<Option<NodeId>> {
    let node = g.node(id);
    let (x, from) = (node.inputs[0], g.node(node.inputs[0]));
    if uses[x.index()] != 1 || matches!(from.op, Op::Full(_)) {
        return Ok(None);
    }
    let Some((source, c)) = factor_of(g, &from.op, &from.inputs, from.ty()) else { return Ok(None) };
    let inputs: Option<Vec<NodeId>> =
        std::iter::once(mapped(source)).chain(node.inputs[1..].iter().map(|&i| mapped(i))).collect();
    let Some(inputs) = inputs else { return Ok(None) };
    let scaled = |alpha: Float| Float(alpha.0 * c);
    match &node.op {
        Op::Linear(l) => new.push(op::Linear { alpha: scaled(l.alpha), ..l.clone() }, &inputs),
        Op::LinearDx(l) => new.push(op::LinearDx { alpha: scaled(l.alpha), ..l.clone() }, &inputs),
        Op::LinearDw(l) => new.push(op::LinearDw { alpha: scaled(l.alpha) }, &inputs),
        _ => return Ok(None),
    }
    .map(Some)
}
