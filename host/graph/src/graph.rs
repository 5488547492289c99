//! The arena: nodes, the tables they refer to, scopes, sites and effects.

mod scopes;
mod tables;

use std::collections::{BTreeSet, HashMap};

use crate::dynamic8::Map;
use crate::op::{self, Op, OpRule};
use crate::{DType, Dim, Error, Result, SymbolTable, Type};

use scopes::Scope;
pub use tables::{Effect, InputInfo, ParamInfo, Site, SiteKind, StateInfo, Target};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);
        impl $name {
            /// As an index into its table.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
id!(
    /// A node, and the value that it computes.
    NodeId
);
id!(
    /// A named input of a run: token ids, the learning rate, ...
    InputId
);
id!(
    /// A weight tensor that the weight store owns.
    ParamId
);
id!(
    /// A tensor that survives between runs: optimizer slots, gradient sums, KV caches, folded constants.
    StateId
);
id!(
    /// A place in the scope tree.
    ScopeId
);

/// One operation. Its first output is the node's own value; further outputs are read through [`op::Part`] nodes.
#[derive(Clone, Debug)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// From what; every index is smaller than this node's.
    pub inputs: Vec<NodeId>,
    /// Types of all outputs, at least one.
    pub outputs: Vec<Type>,
    /// Where in the model it was made.
    pub scope: ScopeId,
}

impl Node {
    /// Type of the node's own value.
    pub fn ty(&self) -> &Type {
        &self.outputs[0]
    }
}

/// Bounds on what one trace may build; each is a configuration key of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes in one graph.
    pub nodes: u64,
    /// Bytes of constants in one graph.
    pub constant_bytes: u64,
    /// Depth of the scope tree.
    pub scope_depth: u64,
    /// Parameters and states.
    pub params: u64,
    /// Symbols made by plugins.
    pub symbols: u64,
    /// Axes of a value.
    pub rank: u64,
    /// Inputs of one node.
    pub fan_in: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { nodes: 400_000, constant_bytes: 64 << 20, scope_depth: 64, params: 100_000, symbols: 256, rank: 6, fan_in: 1024 }
    }
}

/// The graph under construction or finished.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: Vec<Node>,
    /// Symbolic dimensions.
    pub symbols: SymbolTable,
    inputs: Vec<InputInfo>,
    params: Vec<ParamInfo>,
    states: Vec<StateInfo>,
    /// Call sites, in trace order.
    pub sites: Vec<Site>,
    /// Writes, in order.
    pub effects: Vec<Effect>,
    /// Named results.
    pub outputs: Vec<(String, NodeId)>,
    /// First node of the backward pass, once [`crate::autodiff`] has run. Recompute selection needs the border.
    pub backward_start: Option<NodeId>,
    /// Bounds.
    pub limits: Limits,
    constant_bytes: u64,
    scopes: Vec<Scope>,
    scope: ScopeId,
    param_nodes: HashMap<ParamId, NodeId>,
    input_nodes: HashMap<InputId, NodeId>,
}

impl Default for Graph {
    fn default() -> Graph {
        Graph::new(Limits::default())
    }
}

impl Graph {
    /// An empty graph.
    pub fn new(limits: Limits) -> Graph {
        Graph {
            nodes: Vec::new(),
            symbols: SymbolTable::default(),
            inputs: Vec::new(),
            params: Vec::new(),
            states: Vec::new(),
            sites: Vec::new(),
            effects: Vec::new(),
            outputs: Vec::new(),
            backward_start: None,
            limits,
            constant_bytes: 0,
            scopes: vec![Scope::root()],
            scope: ScopeId(0),
            param_nodes: HashMap::new(),
            input_nodes: HashMap::new(),
        }
    }

    /// An empty graph over the same symbols, inputs, parameters, states, scopes and limits, with the same ids. Passes rebuild into it.
    pub fn like(other: &Graph) -> Graph {
        Graph {
            nodes: Vec::with_capacity(other.nodes.len()),
            symbols: other.symbols.clone(),
            inputs: other.inputs.clone(),
            params: other.params.clone(),
            states: other.states.clone(),
            sites: Vec::new(),
            effects: Vec::new(),
            outputs: Vec::new(),
            backward_start: None,
            limits: other.limits.clone(),
            constant_bytes: 0,
            scopes: other.scopes.clone(),
            scope: ScopeId(0),
            param_nodes: HashMap::new(),
            input_nodes: HashMap::new(),
        }
    }

    /// Appends a node after checking types and limits; this is the only way nodes come to be.
    ///
    /// # Errors
    /// When shapes or types do not fit or a limit is reached. The message carries the scope path.
    pub fn push(&mut self, op: impl Into<Op>, inputs: &[NodeId]) -> Result<NodeId> {
        let op = op.into();
        self.checked_push(op, inputs).map_err(|e| self.at_scope(e))
    }

    fn checked_push(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId> {
        self.limit("nodes", self.limits.nodes, self.nodes.len() as u64 + 1, || op.name().to_string())?;
        self.limit("fan-in", self.limits.fan_in, inputs.len() as u64, || op.name().to_string())?;
        let types: Vec<Type> = inputs
            .iter()
            .map(|&i| {
                let node = self.nodes.get(i.index());
                node.map(|n| n.ty().clone()).ok_or_else(|| Error::attr(op.name(), format!("names node {} of another graph", i.0)))
            })
            .collect::<Result<_>>()?;
        if let Op::Constant(c) = &op {
            let bytes = self.constant_bytes.saturating_add(c.bytes());
            self.limit("constant-bytes", self.limits.constant_bytes, bytes, || "constant".into())?;
            self.constant_bytes = bytes;
        }
        let outputs = match &op {
            // A part needs its producer's node, not only the producer's first type.
            Op::Part(p) => {
                let producer = &self.nodes[inputs[0].index()];
                let ty = producer.outputs.get(usize::from(p.index));
                vec![
                    ty.cloned()
                        .ok_or_else(|| Error::attr("part", format!("{} has no output {}", producer.op.name(), p.index)))?,
                ]
            }
            other => other.infer(self, &types)?,
        };
        for ty in &outputs {
            self.limit("rank", self.limits.rank, ty.shape.rank() as u64, || op.name().to_string())?;
            // Sizes are products of dimensions; refusing overflow here keeps every later product in range.
            ty.shape.elements()?.mul(&Dim::fixed(8))?;
        }
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs, scope: self.scope });
        Ok(id)
    }

    fn limit(&self, name: &'static str, limit: u64, value: u64, message: impl FnOnce() -> String) -> Result<()> {
        if value > limit { Err(Error::Limit { name, limit, message: message() }) } else { Ok(()) }
    }

    pub(crate) fn at_scope(&self, error: Error) -> Error {
        match error {
            at @ Error::At { .. } => at,
            other if self.scope == ScopeId(0) => other,
            other => Error::At { scope: self.scope_path(self.scope), source: Box::new(other) },
        }
    }

    /// Makes a linear-cross-entropy node compute its unit gradient too, for a head that turned out to be frozen.
    pub(crate) fn request_unit_grad(&mut self, id: NodeId) {
        let x = self.nodes[id.index()].inputs.first().map(|x| self.ty(*x).clone());
        let node = &mut self.nodes[id.index()];
        if let (Op::LinearCrossEntropy(ce), Some(x)) = (&mut node.op, x)
            && !ce.unit_grad
        {
            ce.unit_grad = true;
            node.outputs.push(x);
        }
    }

    /// All nodes in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All node ids in execution order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// One node.
    ///
    /// # Panics
    /// When the id is another graph's; use [`Graph::get`] for ids from outside.
    #[track_caller]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// One node, if it exists.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.index())
    }

    /// Type of a node's value.
    #[track_caller]
    pub fn ty(&self, id: NodeId) -> &Type {
        self.node(id).ty()
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The input of this name, made on first use.
    ///
    /// # Errors
    /// When it exists with another type, or a limit is reached.
    pub fn input(&mut self, name: &str, ty: Type) -> Result<NodeId> {
        let id = match self.inputs.iter().position(|i| i.name == name) {
            Some(at) if self.inputs[at].ty != ty => {
                return Err(Error::Bind(format!("input `{name}` is {}, asked for as {ty}", self.inputs[at].ty)));
            }
            Some(at) => InputId(at as u32),
            None => {
                self.inputs.push(InputInfo { name: name.to_string(), ty });
                InputId(self.inputs.len() as u32 - 1)
            }
        };
        self.input_node(id)
    }

    /// The node of an existing input.
    ///
    /// # Errors
    /// When a limit is reached.
    pub fn input_node(&mut self, id: InputId) -> Result<NodeId> {
        if let Some(&node) = self.input_nodes.get(&id) {
            return Ok(node);
        }
        let node = self.push(op::Input { id }, &[])?;
        self.input_nodes.insert(id, node);
        Ok(node)
    }

    /// Declares a parameter, or finds the one of this name.
    ///
    /// # Errors
    /// When it exists with another shape, or a limit is reached.
    pub fn declare_param(&mut self, info: ParamInfo) -> Result<ParamId> {
        if let Some(at) = self.params.iter().position(|p| p.name == info.name) {
            if self.params[at].shape != info.shape {
                return Err(Error::Bind(format!(
                    "parameter `{}` has shape {:?}, asked for as {:?}",
                    info.name, self.params[at].shape, info.shape
                )));
            }
            return Ok(ParamId(at as u32));
        }
        self.limit("params", self.limits.params, self.params.len() as u64 + 1, || info.name.clone())?;
        self.params.push(info);
        Ok(ParamId(self.params.len() as u32 - 1))
    }

    /// The node that stands for a parameter's storage. Weight-aware ops (linear, embed, norms) take it as it is; all others need
    /// [`op::Read`] over it.
    ///
    /// # Errors
    /// When a limit is reached.
    pub fn param(&mut self, id: ParamId) -> Result<NodeId> {
        if let Some(&node) = self.param_nodes.get(&id) {
            return Ok(node);
        }
        let node = self.push(op::Param { id }, &[])?;
        self.param_nodes.insert(id, node);
        Ok(node)
    }

    /// Declares a state, or finds the one of this name and type.
    ///
    /// # Errors
    /// When it exists with another type, or a limit is reached.
    pub fn declare_state(&mut self, name: &str, ty: Type) -> Result<StateId> {
        self.declare(StateInfo { name: name.to_string(), ty, map: None })
    }

    /// As [`Graph::declare_state`], for a state of floats that is kept in 8 bits.
    ///
    /// # Errors
    /// When it exists with another type or map, it has no float type of fixed size, or a limit is reached.
    pub fn declare_packed_state(&mut self, name: &str, ty: Type, map: Map) -> Result<StateId> {
        if !ty.dtype.is_float() || ty.shape.iter().any(|d| d.as_fixed().is_none()) {
            return Err(Error::Bind(format!("state `{name}` is {ty}; only floats of fixed size are kept in 8 bits")));
        }
        self.declare(StateInfo { name: name.to_string(), ty, map: Some(map) })
    }

    fn declare(&mut self, info: StateInfo) -> Result<StateId> {
        if let Some(at) = self.states.iter().position(|s| s.name == info.name) {
            let known = &self.states[at];
            if *known != info {
                let text = |s: &StateInfo| format!("{}{}", s.ty, s.map.map(|m| format!(" {}", m.name())).unwrap_or_default());
                return Err(Error::Bind(format!("state `{}` is {}, asked for as {}", info.name, text(known), text(&info))));
            }
            return Ok(StateId(at as u32));
        }
        self.limit("params", self.limits.params, self.states.len() as u64 + 1, || info.name.clone())?;
        self.states.push(info);
        Ok(StateId(self.states.len() as u32 - 1))
    }

    /// Reads a state as it was before the run's effects.
    ///
    /// # Errors
    /// When a limit is reached.
    pub fn read_state(&mut self, id: StateId) -> Result<NodeId> {
        self.push(op::State { id }, &[])
    }

    /// Records a write.
    ///
    /// # Errors
    /// When shapes differ, or something would be added to a state in 8 bits.
    pub fn write(&mut self, target: Target, value: NodeId, accumulate: bool) -> Result<()> {
        let want = match target {
            Target::State(s) => self.states[s.index()].ty.shape.clone(),
            Target::Param(p) => crate::Shape::fixed(&self.params[p.index()].shape),
        };
        if let (Target::State(s), true) = (target, accumulate)
            && let StateInfo { name, map: Some(_), .. } = &self.states[s.index()]
        {
            let message = format!("`{name}` is kept in 8 bits: read it, add, and write the sum");
            return Err(self.at_scope(Error::attr("write", message)));
        }
        let got = self.ty(value);
        if got.shape != want {
            return Err(self.at_scope(Error::shape("write", format!("the target's shape is {want}"), std::slice::from_ref(got))));
        }
        self.effects.push(Effect { target, value, accumulate });
        Ok(())
    }

    /// Inputs by id.
    pub fn inputs(&self) -> &[InputInfo] {
        &self.inputs
    }

    /// Parameters by id.
    pub fn params(&self) -> &[ParamInfo] {
        &self.params
    }

    /// Marks which parameters receive gradients.
    pub fn set_trainable(&mut self, id: ParamId, trainable: bool) {
        self.params[id.index()].trainable = trainable;
    }

    /// Chooses what the caches of attention are stored as: f32, f16 or s8.
    ///
    /// # Errors
    /// When it is another type.
    pub fn set_cache_dtype(&mut self, dtype: DType) -> Result<()> {
        if !matches!(dtype, DType::F32 | DType::F16 | DType::S8) {
            return Err(Error::attr("cached-attention", format!("caches are f32, f16 or s8, not {}", dtype.name())));
        }
        for id in self.caches() {
            self.states[id.index()].ty.dtype = dtype;
        }
        Ok(())
    }

    /// The states that attention uses as caches.
    pub fn caches(&self) -> BTreeSet<StateId> {
        let caches = |node: &Node| match &node.op {
            Op::CachedAttention(c) => Some([c.k_cache, c.v_cache]),
            _ => None,
        };
        self.nodes.iter().filter_map(caches).flatten().collect()
    }

    /// States by id.
    pub fn states(&self) -> &[StateInfo] {
        &self.states
    }

    /// A named result.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn output(&self, name: &str) -> Result<NodeId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, id)| *id).ok_or_else(|| Error::Missing {
            kind: "output",
            name: name.to_string(),
            known: self.outputs.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Copies every node of `other` into this graph. `replace` is asked for each node first and may give a node of this graph to
    /// stand for it: that is how sites are rewritten and templates bound. Parameters, states and inputs are matched by name.
    /// Sites are copied; outputs and effects are not. Returns the image of every node.
    ///
    /// # Errors
    /// When a limit is reached or tables disagree.
    pub fn inline(
        &mut self,
        other: &Graph,
        mut replace: impl FnMut(&mut Graph, NodeId, &[NodeId]) -> Result<Option<NodeId>>,
    ) -> Result<Vec<NodeId>> {
        let mut map: Vec<NodeId> = Vec::with_capacity(other.len());
        let base_scope = self.scope;
        let mut scopes = HashMap::from([(ScopeId(0), base_scope)]);
        for id in other.ids() {
            let node = other.node(id);
            let image = match replace(self, id, &map)? {
                Some(image) => image,
                None => {
                    self.scope = self.import_scope(other, node.scope, &mut scopes)?;
                    let inputs: Vec<NodeId> = node.inputs.iter().map(|i| map[i.index()]).collect();
                    match &node.op {
                        Op::Input(i) => {
                            let info = other.inputs[i.id.index()].clone();
                            self.input(&info.name, info.ty)?
                        }
                        Op::Param(p) => {
                            let id = self.declare_param(other.params[p.id.index()].clone())?;
                            self.param(id)?
                        }
                        Op::State(s) => {
                            let id = self.declare(other.states[s.id.index()].clone())?;
                            self.read_state(id)?
                        }
                        Op::CachedAttention(c) => {
                            let mut c = c.clone();
                            for cache in [&mut c.k_cache, &mut c.v_cache] {
                                let info = other.states[cache.index()].clone();
                                *cache = self.declare_state(&info.name, info.ty)?;
                            }
                            self.push(c, &inputs)?
                        }
                        op => self.push(op.clone(), &inputs)?,
                    }
                }
            };
            map.push(image);
        }
        self.scope = base_scope;
        for site in &other.sites {
            let at = |id: NodeId| map[id.index()];
            let copy =
                Site { x: at(site.x), weight: at(site.weight), bias: site.bias.map(at), output: at(site.output), ..site.clone() };
            self.sites.push(copy);
        }
        Ok(map)
    }
}
