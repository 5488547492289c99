//! The reference interpreter: every node in order, in f64. It is the debugger and the oracle of kernels, passes and gradients.
//!
//! It keeps every value, so it is for small graphs. Integers and booleans are whole numbers in f64; a cast between float types is
//! the identity, as on the CPU device. Effects are carried out after the last node and returned, never written into [`Env`]: use
//! [`Env::apply`] for that. Attention over a cache sees what earlier nodes of the same run wrote.

mod tensor;

use std::cell::RefCell;
use std::collections::BTreeMap;

pub use tensor::Tensor;
pub(crate) use tensor::product;

use crate::{Bindings, Dim, Error, Graph, Node, NodeId, OpRule, Result, StateId, Target, Type};

/// What one run reads. Names, not ids, so that one environment serves a graph and whatever passes make of it.
#[derive(Clone, Debug, Default)]
pub struct Env {
    /// Values of symbols.
    pub bindings: Bindings,
    /// Inputs by name.
    pub inputs: BTreeMap<String, Tensor>,
    /// Parameters by name.
    pub params: BTreeMap<String, Tensor>,
    /// States by name; an absent one is zero.
    pub states: BTreeMap<String, Tensor>,
    /// Fail at the first node that makes a NaN out of inputs without one.
    pub refuse_nan: bool,
}

impl Env {
    /// Carries a run's writes over into the next run.
    pub fn apply(&mut self, values: &Values) {
        self.params.extend(values.params.iter().map(|(k, v)| (k.clone(), v.clone())));
        self.states.extend(values.states.iter().map(|(k, v)| (k.clone(), v.clone())));
    }

    fn find<'a>(kind: &'static str, table: &'a BTreeMap<String, Tensor>, name: &str) -> Result<&'a Tensor> {
        table.get(name).ok_or_else(|| Error::Missing {
            kind,
            name: name.to_string(),
            known: table.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }
}

/// What one run computed.
#[derive(Clone, Debug, Default)]
pub struct Values {
    nodes: Vec<Vec<Tensor>>,
    /// Named results.
    pub outputs: BTreeMap<String, Tensor>,
    /// Parameters that effects wrote, by name.
    pub params: BTreeMap<String, Tensor>,
    /// States that effects or cached attention wrote, by name.
    pub states: BTreeMap<String, Tensor>,
}

impl Values {
    /// A node's value.
    ///
    /// # Panics
    /// When the node is another graph's.
    #[track_caller]
    pub fn of(&self, id: NodeId) -> &Tensor {
        &self.nodes[id.index()][0]
    }

    /// All outputs of a node.
    ///
    /// # Panics
    /// When the node is another graph's.
    #[track_caller]
    pub fn all_of(&self, id: NodeId) -> &[Tensor] {
        &self.nodes[id.index()]
    }
}

/// What an op's reference evaluation sees.
pub struct Eval<'a> {
    graph: &'a Graph,
    env: &'a Env,
    node: &'a Node,
    values: &'a [Vec<Tensor>],
    caches: &'a RefCell<BTreeMap<StateId, Tensor>>,
}

impl<'a> Eval<'a> {
    /// Number of inputs.
    pub fn arity(&self) -> usize {
        self.node.inputs.len()
    }

    /// Value of an input.
    pub fn input(&self, i: usize) -> &'a Tensor {
        &self.values[self.node.inputs[i].index()][0]
    }

    /// Type of an input.
    pub fn input_type(&self, i: usize) -> &'a Type {
        self.graph.ty(self.node.inputs[i])
    }

    /// Further output of the node that the first input is.
    pub(crate) fn part(&self, index: u8) -> Tensor {
        self.values[self.node.inputs[0].index()][usize::from(index)].clone()
    }

    /// Whole numbers of an input.
    pub fn whole(&self, i: usize) -> Vec<i64> {
        self.input(i).data.iter().map(|&v| v as i64).collect()
    }

    /// Sizes of an output.
    ///
    /// # Errors
    /// When a symbol is not bound.
    pub fn shape(&self, output: usize) -> Result<Vec<usize>> {
        self.node.outputs[output].shape.eval(&self.env.bindings)
    }

    /// A dimension's value.
    ///
    /// # Errors
    /// When a symbol is not bound.
    pub fn dim(&self, dim: &Dim) -> Result<usize> {
        Ok(dim.eval(&self.env.bindings)? as usize)
    }

    /// A one-output result in output 0's shape.
    ///
    /// # Errors
    /// When a symbol is not bound.
    pub fn one(&self, data: Vec<f64>) -> Result<Vec<Tensor>> {
        Ok(vec![Tensor::new(self.shape(0)?, data)])
    }

    /// A run-time error of this op.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::Value { op: self.node.op.name(), message: message.into() }
    }

    /// `value` as an index below `size`.
    ///
    /// # Errors
    /// When it is not.
    pub fn index(&self, value: i64, size: usize, what: &str) -> Result<usize> {
        usize::try_from(value).ok().filter(|&v| v < size).ok_or_else(|| self.error(format!("{what} {value} is not below {size}")))
    }

    pub(crate) fn bound_input(&self, id: crate::InputId) -> Result<Tensor> {
        Env::find("input", &self.env.inputs, &self.graph.inputs()[id.index()].name).cloned()
    }

    pub(crate) fn bound_param(&self, id: crate::ParamId) -> Result<Tensor> {
        Env::find("parameter", &self.env.params, &self.graph.params()[id.index()].name).cloned()
    }

    pub(crate) fn bound_state(&self, id: StateId) -> Result<Tensor> {
        read_state(self.graph, self.env, id)
    }

    /// Reads and writes a cache in place.
    pub(crate) fn with_cache<T>(&self, id: StateId, use_it: impl FnOnce(&mut Tensor) -> Result<T>) -> Result<T> {
        let mut caches = self.caches.borrow_mut();
        let cache = match caches.entry(id) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => e.insert(self.bound_state(id)?),
        };
        use_it(cache)
    }
}

fn read_state(g: &Graph, env: &Env, id: StateId) -> Result<Tensor> {
    let info = &g.states()[id.index()];
    let shape = info.ty.shape.eval(&env.bindings)?;
    match env.states.get(&info.name) {
        Some(t) if t.shape != shape => {
            Err(Error::Bind(format!("state `{}` is {shape:?}, but a tensor {:?} is bound", info.name, t.shape)))
        }
        Some(t) => Ok(t.clone()),
        None => Ok(Tensor::zeros(shape)),
    }
}

/// Runs all nodes in order.
///
/// # Errors
/// When something is not bound or has another shape than the graph says, an index is out of range, or a NaN turns up and
/// [`Env::refuse_nan`] is set. The error names the scope path.
pub fn run(g: &Graph, env: &Env) -> Result<Values> {
    let mut values: Vec<Vec<Tensor>> = Vec::with_capacity(g.len());
    let caches = RefCell::new(BTreeMap::new());
    for id in g.ids() {
        let node = g.node(id);
        let cx = Eval { graph: g, env, node, values: &values, caches: &caches };
        let outputs = eval_checked(&cx).map_err(|e| at(g, node, e))?;
        values.push(outputs);
    }
    let mut result = Values { nodes: values, ..Values::default() };
    for (name, id) in &g.outputs {
        result.outputs.insert(name.clone(), result.of(*id).clone());
    }
    for (id, cache) in caches.into_inner() {
        result.states.insert(g.states()[id.index()].name.clone(), cache);
    }
    for effect in &g.effects {
        let value = result.of(effect.value).clone();
        let (name, table, old) = match effect.target {
            Target::Param(p) => {
                let name = &g.params()[p.index()].name;
                let old = result.params.get(name).or_else(|| env.params.get(name)).cloned();
                (name, &mut result.params, old)
            }
            Target::State(s) => {
                let name = &g.states()[s.index()].name;
                let old = result.states.get(name).cloned().map_or_else(|| read_state(g, env, s), Ok)?;
                (name, &mut result.states, Some(old))
            }
        };
        let mut new = match old {
            Some(old) if effect.accumulate => old.zip(&value, |a, b| a + b),
            _ => value,
        };
        if let Target::State(s) = effect.target
            && let Some(map) = g.states()[s.index()].map
        {
            map.round(&mut new.data);
        }
        table.insert(name.clone(), new);
    }
    Ok(result)
}

fn eval_checked(cx: &Eval<'_>) -> Result<Vec<Tensor>> {
    let node = cx.node;
    let outputs = node.op.eval(cx)?;
    for (k, out) in outputs.iter().enumerate() {
        let want = cx.shape(k)?;
        if out.shape != want || out.data.len() != want.iter().product::<usize>() {
            return Err(cx.error(format!("output {k} must be {want:?} and is {:?}", out.shape)));
        }
    }
    let nan = |t: &Tensor| t.data.iter().any(|v| v.is_nan());
    if cx.env.refuse_nan && outputs.iter().any(nan) {
        let from = if (0..cx.arity()).any(|i| nan(cx.input(i))) { "passes on" } else { "makes" };
        return Err(cx.error(format!("{from} a NaN")));
    }
    Ok(outputs)
}

fn at(g: &Graph, node: &Node, error: Error) -> Error {
    match g.scope_path(node.scope) {
        scope if scope.is_empty() => error,
        scope => Error::At { scope, source: Box::new(error) },
    }
}
