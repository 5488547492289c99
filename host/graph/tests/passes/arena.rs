//! Runs a plan as a device would: values live in one arena at the planned offsets, ops are evaluated one launch at a time by the
//! interpreter. A value that the plan overwrites too early comes out wrong here.

use std::collections::BTreeMap;

use swift_graph::interp::{Env, Tensor, Values, run};
use swift_graph::op::Op;
use swift_graph::plan::{Place, Plan};
use swift_graph::{Graph, NodeId, ParamId, StateId, Target};

/// Scratch bytes that the simulation asks for and fills with NaN.
pub(crate) const SCRATCH: usize = 192;

pub(crate) fn simulate(plan: &Plan, env: &Env) -> Values {
    let layout = plan.layout(&env.bindings, &|_| Ok(SCRATCH)).unwrap();
    let mut s =
        Simulation { plan, env, offsets: &layout.offsets, arena: vec![f64::NAN; layout.bytes / 4], stored: BTreeMap::new() };
    for (k, param) in plan.graph.params().iter().enumerate() {
        s.stored.insert(format!("param {k}"), env.params[&param.name].data.clone());
    }
    for (k, state) in plan.graph.states().iter().enumerate() {
        let shape = state.ty.shape.eval(&env.bindings).unwrap();
        let value = env.states.get(&state.name).cloned().unwrap_or_else(|| Tensor::zeros(shape));
        s.stored.insert(format!("state {k}"), value.data);
    }
    for (k, launch) in plan.launches.iter().enumerate() {
        let at = layout.scratch[k] / 4;
        s.arena[at..at + SCRATCH / 4].fill(f64::NAN);
        let (outputs, caches) = s.launch(launch.node);
        for (k, state) in plan.graph.states().iter().enumerate() {
            if let Some(cache) = caches.get(&state.name) {
                s.stored.insert(format!("state {k}"), cache.data.clone());
            }
        }
        for (value, node) in outputs.into_iter().zip(&launch.outputs) {
            if let Some(node) = node {
                s.write(*node, &value.data);
            }
        }
        for &e in &launch.effects {
            s.effect(e);
        }
    }
    let mut result = Values::default();
    for (name, id) in &plan.graph.outputs {
        result.outputs.insert(name.clone(), s.read(*id));
    }
    let written: Vec<Target> = plan.graph.effects.iter().map(|e| e.target).collect();
    for (k, param) in plan.graph.params().iter().enumerate() {
        if written.contains(&Target::Param(ParamId(k as u32))) {
            let shape = param.shape.iter().map(|&d| d as usize).collect();
            result.params.insert(param.name.clone(), Tensor::new(shape, s.stored[&format!("param {k}")].clone()));
        }
    }
    let cached =
        |id| plan.graph.nodes().iter().any(|n| matches!(&n.op, Op::CachedAttention(c) if c.k_cache == id || c.v_cache == id));
    for (k, state) in plan.graph.states().iter().enumerate() {
        let id = StateId(k as u32);
        if written.contains(&Target::State(id)) || cached(id) {
            let shape = state.ty.shape.eval(&env.bindings).unwrap();
            result.states.insert(state.name.clone(), Tensor::new(shape, s.stored[&format!("state {k}")].clone()));
        }
    }
    result
}

struct Simulation<'a> {
    plan: &'a Plan,
    env: &'a Env,
    offsets: &'a [usize],
    arena: Vec<f64>,
    stored: BTreeMap<String, Vec<f64>>,
}

impl Simulation<'_> {
    fn shape(&self, id: NodeId) -> Vec<usize> {
        self.plan.graph.ty(id).shape.eval(&self.env.bindings).unwrap()
    }

    fn root(&self, mut id: NodeId) -> NodeId {
        while let Place::Alias(to) = self.plan.places[id.index()] {
            id = to;
        }
        id
    }

    fn read(&self, id: NodeId) -> Tensor {
        let (shape, root) = (self.shape(id), self.root(id));
        let len: usize = shape.iter().product();
        let data = match self.plan.places[root.index()] {
            Place::Arena(b) => self.arena[self.offsets[b.0 as usize] / 4..][..len].to_vec(),
            Place::Param(p) => self.stored[&format!("param {}", p.0)].clone(),
            Place::State(s) => self.stored[&format!("state {}", s.0)].clone(),
            Place::Input(i) => self.env.inputs[&self.plan.graph.inputs()[i.index()].name].data.clone(),
            Place::Constant => self.launch(root).0.remove(0).data,
            other => panic!("node {} is read but is {other:?}", id.0),
        };
        Tensor::new(shape, data)
    }

    fn write(&mut self, id: NodeId, data: &[f64]) {
        match self.plan.places[id.index()] {
            Place::Arena(b) => {
                let at = self.offsets[b.0 as usize] / 4;
                self.arena[at..at + data.len()].copy_from_slice(data);
            }
            Place::Param(p) => *self.stored.get_mut(&format!("param {}", p.0)).unwrap() = data.to_vec(),
            Place::State(s) => *self.stored.get_mut(&format!("state {}", s.0)).unwrap() = data.to_vec(),
            other => panic!("output {} is {other:?}", id.0),
        }
    }

    fn effect(&mut self, index: usize) {
        let effect = &self.plan.graph.effects[index];
        let value = self.read(effect.value);
        let key = match effect.target {
            Target::Param(p) => format!("param {}", p.0),
            Target::State(s) => format!("state {}", s.0),
        };
        let old = self.stored.get_mut(&key).unwrap();
        for (o, v) in old.iter_mut().zip(value.data) {
            *o = if effect.accumulate { *o + v } else { v };
        }
    }

    /// All outputs of one op and the caches that it wrote, in a graph of its own over values taken from storage.
    fn launch(&self, id: NodeId) -> (Vec<Tensor>, BTreeMap<String, Tensor>) {
        let node = self.plan.graph.node(id);
        let mut g = Graph::like(&self.plan.graph);
        let mut env = Env { bindings: self.env.bindings.clone(), ..Env::default() };
        let mut inputs = Vec::new();
        for (k, &input) in node.inputs.iter().enumerate() {
            let name = format!("operand {k}");
            inputs.push(g.input(&name, self.plan.graph.ty(input).clone()).unwrap());
            env.inputs.insert(name, self.read(input));
        }
        if let Op::CachedAttention(_) = node.op {
            for (k, state) in self.plan.graph.states().iter().enumerate() {
                let shape = state.ty.shape.eval(&self.env.bindings).unwrap();
                env.states.insert(state.name.clone(), Tensor::new(shape, self.stored[&format!("state {k}")].clone()));
            }
        }
        let copy = g.push(node.op.clone(), &inputs).unwrap();
        let values = run(&g, &env).unwrap();
        (values.all_of(copy).to_vec(), values.states)
    }
}
