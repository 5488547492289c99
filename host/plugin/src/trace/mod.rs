//! One trace: the graph that a plugin's calls append to, and the tables behind its handles.
//!
//! **Handles.** A resource's representation is `base + index` into the graph's nodes or one of the tables here; there is no table
//! of handles beside wasmtime's own. wasmtime guarantees that a guest can only name handles that it was given; `base` grows past every
//! representation ever used in a store, so a handle kept from an earlier call is recognised and refused. Dropping one does nothing.
//!
//! **Errors.** What a plugin could have got wrong (shapes, names) is returned to it as a value with the scope path filled in. Limits and
//! misuse of handles trap: there is nothing sensible that a guest could do about them.

mod builder;
mod composite;
mod head;
mod lent;
mod session;
mod value;

use std::collections::HashMap;

use swift_graph::{Dim, Graph, NodeId, Op, ParamId, Shape, StateId, SymbolId};
use wasmtime::component::Resource;

use crate::bindings::tensor::graph::{Builder, KvCache, Param, State, Value};
use crate::bindings::tensor::lm_head::Head as HeadResource;
use crate::bindings::tensor::types::{Dim as WitDim, Error as WitError, ErrorCode};
use crate::decl::{Head, SiteBinding, StepBinding};
use crate::guest::Ctx;
use crate::limits::LimitHit;

pub(crate) use session::SessionCtx;

/// Why a host function fails: with a value that the guest sees, or with a trap.
#[derive(Debug)]
pub(crate) enum Fault {
    Error(Box<WitError>),
    Trap(wasmtime::Error),
}

pub(crate) type Traced<T> = Result<T, Fault>;

impl Fault {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Fault {
        Fault::Error(Box::new(WitError { code, message: message.into(), where_at: None, hint: None }))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Fault {
        if let Fault::Error(e) = &mut self {
            e.hint = Some(hint.into());
        }
        self
    }

    pub(crate) fn trap(message: impl Into<String>) -> Fault {
        Fault::Trap(wasmtime::Error::msg(message.into()))
    }

    pub(crate) fn missing<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Fault {
        let known: Vec<&str> = known.take(20).collect();
        let name: String = name.chars().take(80).collect();
        Fault::new(ErrorCode::Missing, format!("there is no {kind} `{name}`")).hint(if known.is_empty() {
            format!("this call has no {kind}")
        } else {
            format!("there are: {}", known.join(", "))
        })
    }

    pub(crate) fn unsupported(op: &str) -> Fault {
        Fault::new(ErrorCode::UnsupportedOp, format!("{op}: this host does not run it yet"))
            .hint(format!("ask `has-op(\"{op}\", 1)` first and build it from other ops where the answer is false"))
    }

    /// As a trap, for functions that have no error to return.
    pub(crate) fn into_trap(self) -> wasmtime::Error {
        match self {
            Fault::Error(e) => wasmtime::Error::msg(match &e.where_at {
                Some(scope) => format!("{} (at `{scope}`)", e.message),
                None => e.message.clone(),
            }),
            Fault::Trap(trap) => trap,
        }
    }
}

impl From<swift_graph::Error> for Fault {
    fn from(error: swift_graph::Error) -> Fault {
        use swift_graph::Error as G;
        let where_at = match &error {
            G::At { scope, .. } => Some(scope.clone()),
            _ => None,
        };
        let root = error.root();
        let code = match root {
            G::Limit { name, limit, message } => {
                return Fault::Trap(wasmtime::Error::new(LimitHit { name, limit: *limit, message: message.clone() }));
            }
            G::BadDType { .. } => ErrorCode::BadDtype,
            G::BadAttr { .. } => ErrorCode::BadConfig,
            G::Missing { .. } => ErrorCode::Missing,
            G::NoBackward { .. } => ErrorCode::UnsupportedOp,
            _ => ErrorCode::BadShape,
        };
        Fault::Error(Box::new(WitError { code, message: root.to_string(), where_at, hint: None }))
    }
}

impl From<LimitHit> for Fault {
    fn from(hit: LimitHit) -> Fault {
        Fault::Trap(wasmtime::Error::new(hit))
    }
}

impl From<wasmtime::Error> for Fault {
    fn from(trap: wasmtime::Error) -> Fault {
        Fault::Trap(trap)
    }
}

/// What the call was lent.
#[derive(Debug)]
pub(crate) enum Role {
    Model(Box<SessionCtx>),
    Site(Box<SiteBinding>),
    Batch {
        fields: Vec<(String, NodeId)>,
        totals: Vec<(String, NodeId)>,
        reference: Option<u32>,
        teacher: Option<u32>,
    },
    Step(Box<StepBinding>),
    /// Only values (the optimizer's schedule, the sampler's logits).
    Values,
}

/// Everything that a call is lent.
#[derive(Debug)]
pub(crate) struct Loan {
    pub(crate) role: Role,
    /// Heads by number; the policy's is 0.
    pub(crate) heads: Vec<Head>,
    /// Whether dropout drops.
    pub(crate) training: bool,
}

impl Loan {
    /// Without heads.
    pub(crate) fn new(role: Role, training: bool) -> Loan {
        Loan { role, heads: Vec::new(), training }
    }
}

/// A trace in progress.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) graph: Graph,
    pub(crate) role: Role,
    base: u32,
    dims: Vec<Dim>,
    dim_index: HashMap<Dim, u32>,
    params: Vec<ParamId>,
    param_index: HashMap<ParamId, u32>,
    states: Vec<StateId>,
    caches: Vec<Cache>,
    heads: Vec<Head>,
    /// Scopes that this call has opened and not closed.
    depth: u64,
    /// Dropouts so far, which are their streams.
    dropouts: u32,
    /// Whether dropout drops.
    training: bool,
}

/// A cache that the plan declares. Its states are declared where it is used, because only there the size of values is known.
#[derive(Clone, Copy, Debug)]
struct Cache {
    layer: u32,
    kv_heads: u64,
    head_dim: u64,
}

impl Trace {
    pub(crate) fn new(graph: Graph, loan: Loan, base: u32) -> Trace {
        // Well-known symbols come first, so that their numbers are the same in every trace.
        let dims: Vec<Dim> = (0..graph.symbols.len() as u32).map(|i| Dim::symbol(SymbolId(i))).collect();
        let dim_index = dims.iter().enumerate().map(|(i, d)| (d.clone(), i as u32)).collect();
        let dropouts = graph.nodes().iter().filter(|n| matches!(n.op, Op::Dropout(_))).count() as u32;
        Trace {
            graph,
            role: loan.role,
            base,
            dims,
            dim_index,
            params: Vec::new(),
            param_index: HashMap::new(),
            states: Vec::new(),
            caches: Vec::new(),
            heads: loan.heads,
            depth: 0,
            dropouts,
            training: loan.training,
        }
    }

    /// First representation that no handle of this trace has.
    pub(crate) fn next_base(&self) -> u32 {
        let tables = [self.graph.len(), self.params.len(), self.states.len(), self.caches.len(), self.heads.len()];
        self.base.saturating_add(tables.into_iter().max().unwrap_or(0) as u32).saturating_add(1)
    }

    fn index(&self, rep: u32, len: usize, what: &str) -> Traced<usize> {
        match rep.checked_sub(self.base).map(|i| i as usize) {
            Some(i) if i < len => Ok(i),
            _ => Err(Fault::trap(format!("uses a {what} of a trace that is over; handles must not be kept between calls"))),
        }
    }

    pub(crate) fn rep(&self, index: u32) -> u32 {
        self.base + index
    }

    /// The node behind a value.
    pub(crate) fn node(&self, value: &Resource<Value>) -> Traced<NodeId> {
        self.index(value.rep(), self.graph.len(), "value").map(|i| NodeId(i as u32))
    }

    fn nodes(&self, values: &[Resource<Value>]) -> Traced<Vec<NodeId>> {
        values.iter().map(|v| self.node(v)).collect()
    }

    /// A handle for a node.
    pub(crate) fn value(&self, node: NodeId) -> Resource<Value> {
        Resource::new_own(self.base + node.0)
    }

    fn push(&mut self, op: impl Into<Op>, inputs: &[NodeId]) -> Traced<Resource<Value>> {
        let node = self.graph.push(op, inputs)?;
        Ok(self.value(node))
    }

    fn param_id(&self, param: &Resource<Param>) -> Traced<ParamId> {
        self.index(param.rep(), self.params.len(), "param").map(|i| self.params[i])
    }

    /// The storage node behind a param.
    fn param_node(&mut self, param: &Resource<Param>) -> Traced<NodeId> {
        let id = self.param_id(param)?;
        Ok(self.graph.param(id)?)
    }

    fn lend_param(&mut self, id: ParamId) -> Resource<Param> {
        // One entry per parameter however often it is asked for, so that asking costs no memory.
        let next = self.params.len() as u32;
        let index = *self.param_index.entry(id).or_insert(next);
        if index == next {
            self.params.push(id);
        }
        Resource::new_own(self.base + index)
    }

    fn state_id(&self, state: &Resource<State>) -> Traced<StateId> {
        self.index(state.rep(), self.states.len(), "state").map(|i| self.states[i])
    }

    fn lend_state(&mut self, id: StateId) -> Resource<State> {
        let index = self.states.iter().position(|s| *s == id).unwrap_or_else(|| {
            self.states.push(id);
            self.states.len() - 1
        });
        Resource::new_own(self.base + index as u32)
    }

    fn cache(&self, cache: &Resource<KvCache>) -> Traced<Cache> {
        self.index(cache.rep(), self.caches.len(), "kv-cache").map(|i| self.caches[i])
    }

    fn head(&self, head: &Resource<HeadResource>) -> Traced<Head> {
        self.index(head.rep(), self.heads.len(), "head").map(|i| self.heads[i].clone())
    }

    /// There is one builder, the root: regions are not hosted.
    fn builder(&self, builder: &Resource<Builder>) -> Traced<()> {
        self.index(builder.rep(), 1, "builder").map(|_| ())
    }

    pub(crate) fn root<T: 'static>(&self) -> Resource<T> {
        Resource::new_own(self.base)
    }

    fn dim_in(&self, dim: WitDim) -> Traced<Dim> {
        match dim {
            WitDim::Fixed(size) => Ok(Dim::fixed(size)),
            WitDim::Sym(i) => self.dims.get(i as usize).cloned().ok_or_else(|| {
                Fault::new(ErrorCode::BadShape, format!("symbolic size {i} does not exist; this trace has {}", self.dims.len()))
            }),
        }
    }

    fn shape_in(&self, shape: Vec<WitDim>) -> Traced<Shape> {
        shape.into_iter().map(|d| self.dim_in(d)).collect()
    }

    fn dim_out(&mut self, dim: &Dim, limit: u64) -> Traced<WitDim> {
        if let Some(size) = dim.as_fixed() {
            return Ok(WitDim::Fixed(size));
        }
        if let Some(&i) = self.dim_index.get(dim) {
            return Ok(WitDim::Sym(i));
        }
        LimitHit::check("dims", limit, self.dims.len() as u64 + 1, || format!("`{dim}` is one more symbolic size"))?;
        let i = self.dims.len() as u32;
        self.dims.push(dim.clone());
        self.dim_index.insert(dim.clone(), i);
        Ok(WitDim::Sym(i))
    }

    fn shape_out(&mut self, shape: &Shape, limit: u64) -> Traced<Vec<WitDim>> {
        shape.dims().iter().map(|d| self.dim_out(d, limit)).collect()
    }

    /// A size that the host names.
    fn named_dim(&self, name: &str) -> Traced<WitDim> {
        let known = [("tokens", SymbolId::TOKENS), ("sequences", SymbolId::SEQUENCES), ("pairs", SymbolId::PAIRS)];
        match known.iter().find(|(n, _)| *n == name) {
            Some((_, id)) => Ok(WitDim::Sym(id.0)),
            None => Err(Fault::missing("size", name, known.iter().map(|(n, _)| *n))),
        }
    }

    /// `axis` counted from the end where negative.
    fn axis(&self, x: NodeId, axis: i32, op: &str) -> Traced<usize> {
        let shape = &self.graph.ty(x).shape;
        let rank = shape.rank() as i64;
        let at = if axis < 0 { i64::from(axis) + rank } else { i64::from(axis) };
        if (0..rank).contains(&at) {
            Ok(at as usize)
        } else {
            let message = format!("{op}: axis {axis} is not in {}", self.graph.ty(x));
            Err(Fault::new(ErrorCode::BadShape, message).hint(format!("axes are {}..{}", -rank, rank - 1)))
        }
    }
}

impl Ctx {
    /// The trace in progress.
    pub(crate) fn trace(&mut self) -> Traced<&mut Trace> {
        self.count()?;
        self.trace.as_mut().ok_or_else(|| Fault::trap("calls a tensor function while nothing is being traced"))
    }

    /// Counts a call into the host.
    pub(crate) fn count(&mut self) -> Result<(), LimitHit> {
        self.calls += 1;
        LimitHit::check("host-calls", self.limits.host_calls, self.calls, || {
            "the guest calls host functions without an end".into()
        })
    }

    /// Adds the scope path to an error that has none.
    fn located(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Error(mut e) if e.where_at.is_none() => {
                e.where_at = self.scope().filter(|s| !s.is_empty());
                Fault::Error(e)
            }
            other => other,
        }
    }

    /// Current scope path.
    pub(crate) fn scope(&self) -> Option<String> {
        self.trace.as_ref().map(|t| t.graph.scope_path(t.graph.scope()))
    }

    /// Refuses names that are too long to appear in messages and files.
    pub(crate) fn name(&self, what: &str, name: &str) -> Traced<()> {
        let limit = self.limits.string_bytes;
        LimitHit::check("string-bytes", limit, name.len() as u64, || format!("a {what} of {} bytes", name.len()))?;
        Ok(())
    }
}

impl crate::bindings::tensor::types::Host for Ctx {
    fn convert_error(&mut self, fault: Fault) -> wasmtime::Result<WitError> {
        match self.located(fault) {
            Fault::Error(e) => Ok(*e),
            Fault::Trap(trap) => Err(trap),
        }
    }
}
