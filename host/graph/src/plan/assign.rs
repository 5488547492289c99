//! From a graph to launches, places and buffers.
//!
//! Times are half steps: launch `k` reads and writes at `2k`, its effects run at `2k + 1`.

use std::collections::{HashMap, HashSet};

use super::{Buffer, BufferId, Launch, Place, Plan, in_place_inputs};
use crate::op::{self, Op};
use crate::passes::live;
use crate::{Graph, NodeId, ParamId, Result, StateId, Target};

/// Elements up to which a device keeps a number repeated. Larger ones, such as zeros that clear gradients, are computed where they
/// are needed, most often straight into a state.
const MAX_CONSTANT: u64 = 4096;
/// Read until the end of the run.
const END: usize = usize::MAX;

/// Plans a finished graph. `dense` says which parameters are stored as f32, so that reading one is no work and an update may be
/// written in place.
///
/// # Errors
/// Only when a size overflows or a limit of the graph is reached.
pub fn plan(g: Graph, dense: &dyn Fn(ParamId) -> bool) -> Result<Plan> {
    let g = copy_conflicts(g, dense)?;
    let mut a = Assignment::new(&g, dense);
    a.place_effects(dense);
    a.place_outputs()?;
    let Assignment { launches, places, buffers, .. } = a;
    Ok(Plan { graph: g, launches, buffers, places })
}

/// The node whose bytes each node shows.
fn roots(g: &Graph, dense: &dyn Fn(ParamId) -> bool) -> Vec<NodeId> {
    let mut roots: Vec<NodeId> = Vec::with_capacity(g.len());
    let mut parts: HashMap<(NodeId, u8), NodeId> = HashMap::new();
    for id in g.ids() {
        let node = g.node(id);
        let alias = match &node.op {
            Op::Reshape(_) | Op::StopGrad(_) => true,
            Op::Read(_) => match &g.node(node.inputs[0]).op {
                Op::Param(p) => dense(p.id),
                _ => true,
            },
            Op::Cast(c) => c.0.is_float() && !g.ty(node.inputs[0]).dtype.is_int(),
            _ => false,
        };
        let root = match &node.op {
            Op::Part(p) => *parts.entry((node.inputs[0], p.index)).or_insert(id),
            _ if alias => roots[node.inputs[0].index()],
            _ => id,
        };
        roots.push(root);
    }
    roots
}

/// States in 8 bits that are read as they are stored; all others become floats by a launch of their own.
fn read_packed(g: &Graph) -> HashSet<NodeId> {
    let moments = |node: &crate::Node| matches!(&node.op, Op::Adam(op) if op.packed).then(|| [node.inputs[2], node.inputs[3]]);
    g.nodes().iter().filter_map(moments).flatten().collect()
}

/// Whether a node is a state that a launch turns into floats.
fn unpacks(g: &Graph, packed: &HashSet<NodeId>, id: NodeId) -> bool {
    matches!(&g.node(id).op, Op::State(s) if g.states()[s.id.index()].map.is_some()) && !packed.contains(&id)
}

/// What a node's storage belongs to if it outlives the run.
fn stored_in(g: &Graph, packed: &HashSet<NodeId>, id: NodeId) -> Option<Target> {
    match &g.node(id).op {
        Op::Param(p) => Some(Target::Param(p.id)),
        Op::State(s) => (!unpacks(g, packed, id)).then_some(Target::State(s.id)),
        _ => None,
    }
}

fn launches_itself(g: &Graph, packed: &HashSet<NodeId>, id: NodeId) -> bool {
    match &g.node(id).op {
        Op::State(_) => unpacks(g, packed, id),
        Op::Input(_) | Op::Param(_) | Op::Constant(_) | Op::Part(_) => false,
        Op::Full(op::Full { ty, .. }) | Op::Iota(op::Iota { ty, .. }) => {
            let elements = ty.shape.elements().ok().and_then(|e| e.as_fixed());
            elements.is_none_or(|e| e > MAX_CONSTANT)
        }
        _ => true,
    }
}

/// Appends copies where an output or an effect would show storage that the run itself overwrites, and where effects would
/// have no launch to follow. Values are those from before the run's effects.
fn copy_conflicts(mut g: Graph, dense: &dyn Fn(ParamId) -> bool) -> Result<Graph> {
    let (roots, packed) = (roots(&g, dense), read_packed(&g));
    let written: HashSet<Target> = g.effects.iter().map(|e| e.target).collect();
    let shows_written = |g: &Graph, id: NodeId| stored_in(g, &packed, roots[id.index()]).is_some_and(|t| written.contains(&t));
    let live = live(&g);
    let idle = !g.ids().any(|id| live[id.index()] && roots[id.index()] == id && launches_itself(&g, &packed, id));
    let copy = |g: &mut Graph, id: NodeId| {
        let to = g.ty(id).shape.clone();
        g.push(op::Expand { to }, &[id])
    };
    for k in 0..g.outputs.len() {
        let value = g.outputs[k].1;
        if shows_written(&g, value) {
            g.outputs[k].1 = copy(&mut g, value)?;
        }
    }
    for k in 0..g.effects.len() {
        let value = g.effects[k].value;
        if idle || shows_written(&g, value) {
            g.effects[k].value = copy(&mut g, value)?;
        }
    }
    Ok(g)
}

struct Assignment<'a> {
    g: &'a Graph,
    roots: Vec<NodeId>,
    /// Launch of each node that launches, and of each part's producer.
    launch_of: Vec<Option<usize>>,
    launches: Vec<Launch>,
    /// Half step of the last read of each root; `None` where nobody reads it.
    last_read: Vec<Option<usize>>,
    places: Vec<Place>,
    buffers: Vec<Buffer>,
    /// Launches that read or write stored tensors, by tensor.
    touches: HashMap<Target, usize>,
    /// Caches that ops write themselves.
    caches: HashSet<Target>,
    /// States in 8 bits that are read as they are stored.
    packed: HashSet<NodeId>,
}

impl<'a> Assignment<'a> {
    fn new(g: &'a Graph, dense: &dyn Fn(ParamId) -> bool) -> Assignment<'a> {
        let live = live(g);
        let mut a = Assignment {
            g,
            roots: roots(g, dense),
            launch_of: vec![None; g.len()],
            launches: Vec::new(),
            last_read: vec![None; g.len()],
            places: vec![Place::Unused; g.len()],
            buffers: Vec::new(),
            touches: HashMap::new(),
            caches: HashSet::new(),
            packed: read_packed(g),
        };
        for id in g.ids().filter(|id| live[id.index()]) {
            let (node, root) = (g.node(id), a.roots[id.index()]);
            if let Op::Part(p) = &node.op {
                let launch = a.launch_of[node.inputs[0].index()];
                a.launch_of[id.index()] = launch;
                if let (Some(k), true) = (launch, root == id) {
                    a.launches[k].outputs[usize::from(p.index)] = Some(id);
                }
            }
            if root != id {
                a.places[id.index()] = Place::Alias(root);
            } else if launches_itself(g, &a.packed, id) {
                let k = a.launches.len();
                a.launch_of[id.index()] = Some(k);
                let mut outputs = vec![None; node.outputs.len()];
                outputs[0] = Some(id);
                a.launches.push(Launch { node: id, outputs, effects: Vec::new() });
                node.inputs.iter().for_each(|&i| a.read(i, 2 * k));
                if let Op::State(s) = &node.op {
                    let touch = a.touches.entry(Target::State(s.id)).or_insert(0);
                    *touch = (*touch).max(k);
                }
                if let Op::CachedAttention(c) = &node.op {
                    for cache in [Target::State(c.k_cache), Target::State(c.v_cache)] {
                        a.caches.insert(cache);
                        a.touches.insert(cache, k);
                    }
                }
            } else {
                a.places[id.index()] = match &node.op {
                    Op::Input(i) => Place::Input(i.id),
                    Op::Param(p) => Place::Param(p.id),
                    Op::State(s) => Place::State(s.id),
                    Op::Constant(_) | Op::Full(_) | Op::Iota(_) => Place::Constant,
                    _ => Place::Unused,
                };
            }
        }
        g.outputs.iter().for_each(|(_, id)| a.read(*id, END));
        a
    }

    fn read(&mut self, id: NodeId, time: usize) {
        let root = self.roots[id.index()];
        let last = &mut self.last_read[root.index()];
        *last = Some(last.map_or(time, |t| t.max(time)));
        if let (Some(target), true) = (stored_in(self.g, &self.packed, root), time != END) {
            let touch = self.touches.entry(target).or_insert(0);
            *touch = (*touch).max(time / 2);
        }
    }

    /// Puts each effect either into its producer's output or after the launch that reads the old value last.
    fn place_effects(&mut self, dense: &dyn Fn(ParamId) -> bool) {
        let g = self.g;
        let mut writers: HashMap<Target, usize> = HashMap::new();
        g.effects.iter().for_each(|e| *writers.entry(e.target).or_insert(0) += 1);
        let mut previous: HashMap<Target, usize> = HashMap::new();
        // Values that several effects or outputs want are read again after they are written; one storage serves all.
        for (index, effect) in g.effects.iter().enumerate() {
            let root = self.roots[effect.value.index()];
            let ready = self.launch_of[root.index()];
            let old_read = self.touches.get(&effect.target).copied();
            let can_store = match effect.target {
                Target::Param(p) => dense(p),
                Target::State(s) if g.states()[s.index()].map.is_some() => self.writes_packed(root, s),
                Target::State(s) => g.states()[s.index()].ty.dtype.is_int() == g.ty(effect.value).dtype.is_int(),
            };
            let direct = !effect.accumulate
                && can_store
                && writers[&effect.target] == 1
                && !self.caches.contains(&effect.target)
                && self.places[root.index()] == Place::Unused
                && ready.is_some_and(|k| {
                    old_read.is_none_or(|r| r < k || (r == k && self.reads_elementwise(k, root, effect.target)))
                });
            if direct {
                self.places[root.index()] = match effect.target {
                    Target::Param(p) => Place::Param(p),
                    Target::State(s) => Place::State(s),
                };
                self.last_read[root.index()].get_or_insert(0);
                continue;
            }
            let at = ready.unwrap_or(0).max(old_read.unwrap_or(0)).max(previous.get(&effect.target).copied().unwrap_or(0));
            previous.insert(effect.target, at);
            self.launches[at].effects.push(index);
            self.read(effect.value, 2 * at + 1);
        }
    }

    /// Whether a value is made in the form that a state in 8 bits is stored in.
    fn writes_packed(&self, root: NodeId, state: StateId) -> bool {
        let Some(launch) = self.launch_of[root.index()].map(|k| &self.launches[k]) else { return false };
        let node = self.g.node(launch.node);
        let Some(index) = launch.outputs.iter().position(|o| *o == Some(root)) else { return false };
        let from = node.inputs.get(op::Adam::replaces(index)).map(|i| &self.g.node(*i).op);
        matches!(&node.op, Op::Adam(op) if op.packed) && matches!(from, Some(Op::State(s)) if s.id == state)
    }

    /// Whether launch `k` reads the stored tensor only where it may write `output` over it.
    fn reads_elementwise(&self, k: usize, output: NodeId, target: Target) -> bool {
        let node = self.g.node(self.launches[k].node);
        let Some(index) = self.launches[k].outputs.iter().position(|o| *o == Some(output)) else { return false };
        let safe = in_place_inputs(self.g, node, index);
        let mut inputs = node.inputs.iter().enumerate();
        inputs.all(|(i, id)| stored_in(self.g, &self.packed, self.roots[id.index()]) != Some(target) || safe.contains(&i))
    }

    /// Gives every output that is read its storage, over an input's where that dies here.
    fn place_outputs(&mut self) -> Result<()> {
        for k in 0..self.launches.len() {
            let mut taken: Vec<BufferId> = Vec::new();
            for index in 0..self.launches[k].outputs.len() {
                let Some(id) = self.launches[k].outputs[index] else { continue };
                let Some(last) = self.last_read[id.index()] else {
                    self.launches[k].outputs[index] = None;
                    continue;
                };
                if self.places[id.index()] != Place::Unused {
                    continue;
                }
                let last = if last == END { END } else { (last / 2).max(k) };
                let buffer = match self.dying_input(k, index, &taken) {
                    Some(buffer) => {
                        let b = &mut self.buffers[buffer.0 as usize];
                        b.last = b.last.max(last);
                        buffer
                    }
                    None => {
                        let elements = self.g.ty(id).shape.elements()?;
                        self.buffers.push(Buffer { elements, first: k, last });
                        BufferId(self.buffers.len() as u32 - 1)
                    }
                };
                taken.push(buffer);
                self.places[id.index()] = Place::Arena(buffer);
            }
        }
        Ok(())
    }

    fn dying_input(&self, k: usize, output: usize, taken: &[BufferId]) -> Option<BufferId> {
        let node = self.g.node(self.launches[k].node);
        let safe = in_place_inputs(self.g, node, output);
        safe.iter().find_map(|&i| {
            let root = self.roots[node.inputs[i].index()];
            let Place::Arena(buffer) = self.places[root.index()] else { return None };
            let dies = self.last_read[root.index()] == Some(2 * k) && !taken.contains(&buffer);
            let mut others = node.inputs.iter().enumerate();
            let alone = others.all(|(j, id)| self.roots[id.index()] != root || safe.contains(&j));
            (dies && alone).then_some(buffer)
        })
    }
}
