//! The one way a pass changes a graph: visit the live nodes in order and build a new graph over the same tables. Scopes, effects,
//! outputs, sites and the border of the backward pass follow their nodes; dead nodes are left behind.

use crate::op::Op;
use crate::{Graph, NodeId, Result, Site};

/// A graph being rebuilt.
pub(crate) struct Rebuild<'a> {
    old: &'a Graph,
    /// What is built so far.
    pub(crate) new: Graph,
    map: Vec<Option<NodeId>>,
}

impl<'a> Rebuild<'a> {
    /// Nothing copied yet.
    pub(crate) fn new(old: &'a Graph) -> Rebuild<'a> {
        Rebuild { old, new: Graph::like(old), map: vec![None; old.len()] }
    }

    /// The image of a node that was visited.
    pub(crate) fn at(&self, id: NodeId) -> NodeId {
        self.map[id.index()].expect("inputs are visited before their node")
    }

    /// The image, if the node was visited.
    pub(crate) fn get(&self, id: NodeId) -> Option<NodeId> {
        self.map[id.index()]
    }

    /// Makes `image` stand for `id`.
    pub(crate) fn set(&mut self, id: NodeId, image: NodeId) {
        self.map[id.index()] = Some(image);
    }

    /// The images of a node's inputs.
    pub(crate) fn inputs(&self, id: NodeId) -> Vec<NodeId> {
        self.old.node(id).inputs.iter().map(|&i| self.at(i)).collect()
    }

    /// Copies a node over given inputs, in its own scope, without recording an image.
    pub(crate) fn copy(&mut self, id: NodeId, inputs: &[NodeId]) -> Result<NodeId> {
        let node = self.old.node(id);
        self.new.set_scope(node.scope);
        copy_op(&mut self.new, &node.op, inputs)
    }

    /// Must be called before the first node of the old backward pass is visited.
    pub(crate) fn mark_backward(&mut self) {
        self.new.backward_start = Some(NodeId(self.new.len() as u32));
    }

    /// Carries effects, outputs and sites over.
    pub(crate) fn finish(mut self) -> Graph {
        for effect in &self.old.effects {
            let effect = crate::Effect { value: self.at(effect.value), ..effect.clone() };
            self.new.effects.push(effect);
        }
        for (name, id) in &self.old.outputs {
            let image = self.at(*id);
            self.new.outputs.push((name.clone(), image));
        }
        for site in &self.old.sites {
            let bias = site.bias.map(|b| self.get(b));
            let parts = (self.get(site.x), self.get(site.weight), self.get(site.output));
            if let ((Some(x), Some(weight), Some(output)), false) = (parts, bias == Some(None)) {
                self.new.sites.push(Site { x, weight, output, bias: bias.flatten(), ..site.clone() });
            }
        }
        if self.new.backward_start.is_some_and(|b| b.index() >= self.new.len()) {
            self.new.backward_start = None;
        }
        self.new.set_scope(crate::ScopeId(0));
        self.new
    }
}

/// Copies one op; leaves that a graph holds once are looked up instead.
pub(crate) fn copy_op(new: &mut Graph, op: &Op, inputs: &[NodeId]) -> Result<NodeId> {
    match op {
        Op::Input(i) => new.input_node(i.id),
        Op::Param(p) => new.param(p.id),
        op => new.push(op.clone(), inputs),
    }
}

/// Rebuilds `old`. For each live node `rule` gets the new graph, the old id and the images of the inputs, and may name a node of
/// the new graph to stand for it; otherwise the node is copied.
pub(crate) fn rebuild(
    old: &Graph,
    mut rule: impl FnMut(&mut Graph, NodeId, &[NodeId]) -> Result<Option<NodeId>>,
) -> Result<Graph> {
    let live = live(old);
    let mut r = Rebuild::new(old);
    for id in old.ids() {
        if old.backward_start == Some(id) {
            r.mark_backward();
        }
        if !live[id.index()] {
            continue;
        }
        let inputs = r.inputs(id);
        r.new.set_scope(old.node(id).scope);
        let image = match rule(&mut r.new, id, &inputs)? {
            Some(image) => image,
            None => r.copy(id, &inputs)?,
        };
        r.set(id, image);
    }
    Ok(r.finish())
}

/// Which nodes an output or an effect depends on. Ops that write a cache are effects of their own.
pub(crate) fn live(g: &Graph) -> Vec<bool> {
    let mut live = vec![false; g.len()];
    g.outputs.iter().for_each(|(_, id)| live[id.index()] = true);
    g.effects.iter().for_each(|e| live[e.value.index()] = true);
    for id in g.ids().rev() {
        let node = g.node(id);
        if matches!(node.op, Op::CachedAttention(_)) {
            live[id.index()] = true;
        }
        if live[id.index()] {
            node.inputs.iter().for_each(|i| live[i.index()] = true);
        }
    }
    live
}

/// How often live nodes, outputs and effects read each node.
pub(crate) fn uses(g: &Graph) -> Vec<u32> {
    let live = live(g);
    let mut uses = vec![0; g.len()];
    for id in g.ids().filter(|id| live[id.index()]) {
        g.node(id).inputs.iter().for_each(|i| uses[i.index()] += 1);
    }
    g.outputs.iter().for_each(|(_, id)| uses[id.index()] += 1);
    g.effects.iter().for_each(|e| uses[e.value.index()] += 1);
    uses
}

/// The number, if the node is one everywhere.
pub(crate) fn number(g: &Graph, id: NodeId) -> Option<f64> {
    match &g.node(id).op {
        Op::Full(f) => Some(f.value.0),
        Op::Expand(_) | Op::Reshape(_) => number(g, g.node(id).inputs[0]),
        _ => None,
    }
}
