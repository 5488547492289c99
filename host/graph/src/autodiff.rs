//! Reverse-mode differentiation: appends the gradient computation of a scalar to its own graph.
//!
//! Every op states its rule next to its shape rule ([`OpRule::backward`]); this module walks the graph backwards, sums what arrives
//! at a value, and visits only nodes between the loss and a wanted parameter. A frozen parameter therefore costs nothing: no product
//! for it, and none for what lies upstream of it alone. Values that are not floats, and everything behind `stop-grad`, carry no
//! gradient. A wanted parameter that the loss does not depend on gets an explicit zero.

use std::collections::{HashMap, HashSet};

use crate::op::{self, Op};
use crate::{DType, Error, Graph, NodeId, OpRule, ParamId, Result, Shape};

/// Appends the gradients of `loss` (one element) in the parameters `wrt` and sets [`Graph::backward_start`]. The result is in the
/// order of `wrt`.
///
/// # Errors
/// When the loss is not one float, an op on the way has no backward rule (the error names it and its scope path), or a limit is
/// reached.
pub fn differentiate(g: &mut Graph, loss: NodeId, wrt: &[ParamId]) -> Result<Vec<(ParamId, NodeId)>> {
    let ty = g.get(loss).ok_or_else(|| Error::attr("differentiate", "the loss is not a node of this graph"))?.ty().clone();
    if !ty.dtype.is_float() || ty.shape.elements()?.as_fixed() != Some(1) {
        return Err(Error::shape("differentiate", "the loss must be one float", &[ty]));
    }
    let needs = needs(g, wrt);
    let border = NodeId(g.len() as u32);
    let scope = g.scope();
    let mut grads = Gradients::default();
    let seed = g.full(ty.shape, 1.0, ty.dtype)?;
    grads.map.insert((loss, 0), seed);
    grads.reached.insert(loss);
    let walked = (0..=loss.0).rev().map(NodeId).try_for_each(|node| {
        if !needs[node.index()] || !grads.reached.contains(&node) || matches!(g.node(node).op, Op::Param(_)) {
            return Ok(());
        }
        g.set_scope(g.node(node).scope);
        let (op, inputs) = (g.node(node).op.clone(), g.node(node).inputs.clone());
        op.backward(&mut Backward { g, node, inputs, needs: &needs, grads: &mut grads }).map_err(|e| g.at_scope(e))
    });
    g.set_scope(scope);
    walked?;
    g.backward_start.get_or_insert(border);
    let nodes: Vec<(NodeId, ParamId)> = g
        .ids()
        .take(border.index())
        .filter_map(|n| if let Op::Param(p) = &g.node(n).op { Some((n, p.id)) } else { None })
        .collect();
    wrt.iter()
        .map(|&param| {
            let mut total = None;
            for (node, _) in nodes.iter().filter(|(_, p)| *p == param) {
                total = match (total, grads.map.get(&(*node, 0)).copied()) {
                    (Some(a), Some(b)) => Some(g.add(a, b)?),
                    (a, b) => a.or(b),
                };
            }
            let grad = match total {
                Some(grad) => grad,
                None => {
                    let shape = Shape::fixed(&g.params()[param.index()].shape);
                    g.full(shape, 0.0, DType::F32)?
                }
            };
            Ok((param, grad))
        })
        .collect()
}

/// Which values depend on a wanted parameter in a differentiable way.
fn needs(g: &Graph, wrt: &[ParamId]) -> Vec<bool> {
    let wanted: HashSet<ParamId> = wrt.iter().copied().collect();
    let mut needs: Vec<bool> = Vec::with_capacity(g.len());
    for node in g.nodes() {
        needs.push(match &node.op {
            Op::Param(p) => wanted.contains(&p.id),
            Op::StopGrad(_) => false,
            _ => node.ty().dtype.is_float() && node.inputs.iter().any(|i| needs[i.index()]),
        });
    }
    needs
}

#[derive(Default)]
struct Gradients {
    /// Gradient of each output of a node.
    map: HashMap<(NodeId, u8), NodeId>,
    /// Nodes with a gradient at any output.
    reached: HashSet<NodeId>,
}

/// What an op's backward rule sees: the node, the gradient of its output, and the graph to append to.
pub struct Backward<'a> {
    /// The graph.
    pub g: &'a mut Graph,
    node: NodeId,
    inputs: Vec<NodeId>,
    needs: &'a [bool],
    grads: &'a mut Gradients,
}

impl Backward<'_> {
    /// The forward node, which is also its output 0.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// An input of the forward node.
    pub fn input(&self, i: usize) -> NodeId {
        self.inputs[i]
    }

    /// All inputs of the forward node.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// Whether an input's gradient is wanted. Rules ask before they build anything expensive.
    pub fn needs(&self, i: usize) -> bool {
        self.needs[self.inputs[i].index()]
    }

    /// An output of the forward node.
    ///
    /// # Errors
    /// When a limit is reached.
    pub fn output(&mut self, index: u8) -> Result<NodeId> {
        self.g.part(self.node, index)
    }

    /// Gradient of output 0, for rules that support no gradient at other outputs.
    ///
    /// # Errors
    /// When a gradient arrived at another output.
    pub fn d_out(&mut self) -> Result<NodeId> {
        let node = self.g.node(self.node);
        if let Some(k) = (1..node.outputs.len() as u8).find(|&k| self.grads.map.contains_key(&(self.node, k))) {
            return Err(Error::attr(node.op.name(), format!("output {k} has no backward rule; stop its gradient")));
        }
        self.grads.map.get(&(self.node, 0)).copied().ok_or_else(|| Error::attr(node.op.name(), "is reached by no gradient"))
    }

    /// Adds to the gradient of input `i`; without effect where none is wanted.
    ///
    /// # Errors
    /// When the gradient's shape is not the input's.
    pub fn add(&mut self, i: usize, grad: NodeId) -> Result<()> {
        let input = self.inputs[i];
        if self.needs[input.index()] { self.add_to((input, 0), grad) } else { Ok(()) }
    }

    /// Hands the gradient of a part to its producer.
    pub(crate) fn add_part(&mut self, index: u8, grad: NodeId) -> Result<()> {
        self.add_to((self.inputs[0], index), grad)
    }

    fn add_to(&mut self, target: (NodeId, u8), grad: NodeId) -> Result<()> {
        let want = self.g.node(target.0).outputs[usize::from(target.1)].clone();
        if self.g.ty(grad).shape != want.shape {
            let got = [self.g.ty(grad).clone()];
            return Err(Error::shape(
                self.g.node(self.node).op.name(),
                format!("the gradient of {want} has another shape"),
                &got,
            ));
        }
        let grad = self.g.cast(grad, want.dtype)?;
        let sum = match self.grads.map.get(&target) {
            Some(&old) => self.g.add(old, grad)?,
            None => grad,
        };
        self.grads.map.insert(target, sum);
        self.grads.reached.insert(target.0);
        Ok(())
    }

    /// For ops that have no rule.
    ///
    /// # Errors
    /// Always.
    pub fn refuse(&self) -> Result<()> {
        Err(Error::NoBackward { op: self.g.node(self.node).op.name() })
    }

    /// A scalar in the type of `like`.
    pub(crate) fn number(&mut self, value: f64, like: NodeId) -> Result<NodeId> {
        let dtype = self.g.ty(like).dtype;
        self.g.scalar(value, dtype)
    }

    /// Zeros like `like`.
    pub(crate) fn zeros(&mut self, like: NodeId) -> Result<NodeId> {
        let ty = self.g.ty(like).clone();
        self.g.full(ty.shape, 0.0, ty.dtype)
    }

    /// 1 where `f(a, b)` holds, else 0, in the type of `a`.
    pub(crate) fn indicator(&mut self, f: op::BinaryOp, a: NodeId, b: NodeId) -> Result<NodeId> {
        let dtype = self.g.ty(a).dtype;
        let holds = self.g.binary(f, a, b)?;
        self.g.cast(holds, dtype)
    }

    /// Sums `grad` down to input `i`'s shape and adds it.
    pub(crate) fn add_summed(&mut self, i: usize, grad: NodeId) -> Result<()> {
        let shape = self.g.ty(self.inputs[i]).shape.clone();
        let grad = self.g.sum_to(grad, &shape)?;
        self.add(i, grad)
    }
}
