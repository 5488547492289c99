//! `session`: the host's side of one model trace.

use std::collections::{HashMap, HashSet};

use swift_graph::{Dim, Graph, ParamInfo, Site, SiteKind, SymbolId, op};
use wasmtime::component::Resource;

use super::{Cache, Ctx, Fault, Role, Trace, Traced, composite};
use crate::bindings::host::decl::Mode as WitMode;
use crate::bindings::host::trace_host::{HostSession, Session};
use crate::bindings::tensor::graph::{Builder, ConvSpec, KvCache, Param, Value};
use crate::bindings::tensor::types::{Dim as WitDim, ErrorCode};
use crate::decl::{Head, Mode};
use crate::limits::LimitHit;
use crate::model::ModelPlan;

/// What the model has said so far.
#[derive(Debug)]
pub(crate) struct SessionCtx {
    pub(crate) mode: Mode,
    /// Parameter name to shape and the name of its storage, which differs for tied ones.
    params: HashMap<String, (String, Vec<u64>)>,
    caches: HashMap<u32, (u32, u32)>,
    /// Caches lent so far, by layer.
    lent: HashMap<u32, u32>,
    /// Paths of sites, names of outputs and auxiliary losses, each behind its kind.
    taken: HashSet<(&'static str, String)>,
    pub(crate) head: Option<Head>,
    pub(crate) aux_losses: Vec<(String, swift_graph::NodeId, f32)>,
}

impl SessionCtx {
    pub(crate) fn new(plan: &ModelPlan, mode: Mode) -> SessionCtx {
        let storage = |p: &crate::ParamDecl| (p.tied_to.clone().unwrap_or_else(|| p.name.clone()), p.shape.clone());
        SessionCtx {
            mode,
            params: plan.params.iter().map(|p| (p.name.clone(), storage(p))).collect(),
            caches: plan.caches.iter().map(|c| (c.layer, (c.kv_heads, c.head_dim))).collect(),
            lent: HashMap::new(),
            taken: HashSet::new(),
            head: None,
            aux_losses: Vec::new(),
        }
    }
}

impl Trace {
    fn session(&mut self, session: &Resource<Session>) -> Traced<(&mut Graph, &mut SessionCtx)> {
        self.index(session.rep(), 1, "session")?;
        match &mut self.role {
            Role::Model(s) => Ok((&mut self.graph, s)),
            _ => Err(Fault::trap("uses a session outside a model trace")),
        }
    }

    fn add_site(&mut self, site: Site) -> Traced<()> {
        self.take("site", &site.path)
            .map_err(|f| f.hint("each path names one call; use the builder's op for further calls with the same weight"))?;
        self.graph.sites.push(site);
        Ok(())
    }

    /// Makes a name belong to one thing of its kind.
    fn take(&mut self, kind: &'static str, name: &str) -> Traced<()> {
        let Role::Model(s) = &mut self.role else { return Err(Fault::trap("uses a session outside a model trace")) };
        if !s.taken.insert((kind, name.to_string())) {
            return Err(Fault::new(ErrorCode::BadConfig, format!("{kind} `{name}` exists already")));
        }
        LimitHit::check("params", self.graph.limits.params, s.taken.len() as u64, || {
            format!("{kind} `{name}` is one more name")
        })?;
        Ok(())
    }
}

impl HostSession for Ctx {
    fn g(&mut self, session: Resource<Session>) -> wasmtime::Result<Resource<Builder>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        trace.session(&session).map_err(Fault::into_trap)?;
        Ok(trace.root())
    }

    fn mode(&mut self, session: Resource<Session>) -> wasmtime::Result<WitMode> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let (_, session) = trace.session(&session).map_err(Fault::into_trap)?;
        Ok(session.mode.into())
    }

    fn dim(&mut self, session: Resource<Session>, name: String) -> Traced<WitDim> {
        let trace = self.trace()?;
        trace.session(&session)?;
        trace.named_dim(&name)
    }

    fn input(&mut self, session: Resource<Session>, name: String) -> Traced<Option<Resource<Value>>> {
        let trace = self.trace()?;
        let (graph, _) = trace.session(&session)?;
        // Media inputs are none until a host feeds them.
        if !matches!(name.as_str(), "ids" | "positions" | "segments") {
            return Ok(None);
        }
        let node = graph.input(&name, composite::per_token())?;
        Ok(Some(trace.value(node)))
    }

    fn param(&mut self, session: Resource<Session>, name: String) -> Traced<Resource<Param>> {
        let trace = self.trace()?;
        let (graph, s) = trace.session(&session)?;
        let Some((storage, shape)) = s.params.get(&name) else {
            let near = s.params.keys().map(String::as_str).filter(|k| shares_suffix(k, &name));
            let mut near: Vec<&str> = near.collect();
            near.sort_unstable();
            return Err(Fault::missing("parameter", &name, near.into_iter().take(5)));
        };
        let info = ParamInfo { name: storage.clone(), shape: shape.clone(), trainable: false };
        let id = graph.declare_param(info)?;
        Ok(trace.lend_param(id))
    }

    fn cache(&mut self, session: Resource<Session>, layer: u32) -> wasmtime::Result<Option<Resource<KvCache>>> {
        let trace = self.trace().map_err(Fault::into_trap)?;
        let (_, s) = trace.session(&session).map_err(Fault::into_trap)?;
        if !matches!(s.mode, Mode::Prefill | Mode::Decode) {
            return Ok(None);
        }
        let Some(&(kv, d)) = s.caches.get(&layer) else {
            return Err(wasmtime::Error::msg(format!("asks for the cache of layer {layer}, which its plan does not declare")));
        };
        if let Some(&index) = s.lent.get(&layer) {
            return Ok(Some(Resource::new_own(trace.rep(index))));
        }
        trace.caches.push(Cache { layer, kv_heads: u64::from(kv), head_dim: u64::from(d) });
        let index = trace.caches.len() as u32 - 1;
        let (_, s) = trace.session(&session).map_err(Fault::into_trap)?;
        s.lent.insert(layer, index);
        Ok(Some(Resource::new_own(trace.rep(index))))
    }

    fn linear(
        &mut self,
        session: Resource<Session>,
        path: String,
        w: Resource<Param>,
        bias: Option<Resource<Param>>,
        x: Resource<Value>,
    ) -> Traced<Resource<Value>> {
        self.name("site path", &path)?;
        let trace = self.trace()?;
        trace.session(&session)?;
        let (output, x, weight, bias) = composite::linear(trace, &w, bias.as_ref(), &x)?;
        trace.add_site(Site { path, kind: SiteKind::Linear, x, weight, bias, output })?;
        Ok(trace.value(output))
    }

    fn grouped_linear(
        &mut self,
        session: Resource<Session>,
        path: String,
        w: Resource<Param>,
        x: Resource<Value>,
        experts: Resource<Value>,
    ) -> Traced<Resource<Value>> {
        self.name("site path", &path)?;
        let trace = self.trace()?;
        trace.session(&session)?;
        let (output, x, weight) = composite::grouped_linear(trace, &w, &x, &experts)?;
        trace.add_site(Site { path, kind: SiteKind::GroupedLinear, x, weight, bias: None, output })?;
        Ok(trace.value(output))
    }

    fn embed(
        &mut self,
        session: Resource<Session>,
        path: String,
        w: Resource<Param>,
        ids: Resource<Value>,
    ) -> Traced<Resource<Value>> {
        self.name("site path", &path)?;
        let trace = self.trace()?;
        trace.session(&session)?;
        let (weight, x) = (trace.param_node(&w)?, trace.node(&ids)?);
        let output = trace.graph.push(op::Embed, &[weight, x])?;
        trace.add_site(Site { path, kind: SiteKind::Embedding, x, weight, bias: None, output })?;
        Ok(trace.value(output))
    }

    fn conv(
        &mut self,
        session: Resource<Session>,
        path: String,
        w: Resource<Param>,
        bias: Option<Resource<Param>>,
        x: Resource<Value>,
        spec: ConvSpec,
    ) -> Traced<Resource<Value>> {
        self.name("site path", &path)?;
        let trace = self.trace()?;
        trace.session(&session)?;
        let (output, x, weight, bias) = composite::conv(trace, &w, bias.as_ref(), &x, spec)?;
        trace.add_site(Site { path, kind: SiteKind::Conv, x, weight, bias, output })?;
        Ok(trace.value(output))
    }

    fn set_head(
        &mut self,
        session: Resource<Session>,
        hidden: Resource<Value>,
        w: Resource<Param>,
        softcap: Option<f32>,
    ) -> Traced<()> {
        let trace = self.trace()?;
        let (hidden, weight) = (trace.node(&hidden)?, trace.param_node(&w)?);
        let (x, t) = (trace.graph.ty(hidden).clone(), trace.graph.ty(weight).clone());
        let tokens = Dim::symbol(SymbolId::TOKENS);
        if x.shape.rank() != 2 || t.shape.rank() != 2 || x.shape[0] != tokens || x.shape[1] != t.shape[1] || !x.dtype.is_float() {
            let message = format!("set-head: takes hidden states [n, d] and a weight [vocab, d]; got {x}, {t}");
            return Err(Fault::new(ErrorCode::BadShape, message));
        }
        if let Some(cap) = softcap {
            composite::positive("set-head", "softcap", cap)?;
        }
        let (_, s) = trace.session(&session)?;
        s.head = Some(Head { hidden, weight, softcap });
        Ok(())
    }

    fn set_output(&mut self, session: Resource<Session>, name: String, v: Resource<Value>) -> Traced<()> {
        self.name("output name", &name)?;
        let trace = self.trace()?;
        let node = trace.node(&v)?;
        trace.session(&session)?;
        trace.take("output", &name)?;
        trace.graph.outputs.push((name, node));
        Ok(())
    }

    fn aux_loss(&mut self, session: Resource<Session>, name: String, v: Resource<Value>, weight: f32) -> Traced<()> {
        self.name("loss name", &name)?;
        let trace = self.trace()?;
        let node = trace.node(&v)?;
        let ty = trace.graph.ty(node).clone();
        if ty.shape.rank() != 0 || !ty.dtype.is_float() || !weight.is_finite() {
            let message = format!("aux-loss `{name}`: takes a float scalar and a finite weight; got {ty}, {weight}");
            return Err(Fault::new(ErrorCode::BadShape, message));
        }
        trace.take("auxiliary loss", &name)?;
        let (_, s) = trace.session(&session)?;
        s.aux_losses.push((name, node, weight));
        Ok(())
    }

    fn drop(&mut self, _: Resource<Session>) -> wasmtime::Result<()> {
        Ok(())
    }
}

/// Whether two parameter names end in the same two parts, so that one may be a misspelling of the other.
fn shares_suffix(a: &str, b: &str) -> bool {
    let tail = |s: &str| s.rsplit('.').take(2).map(str::to_string).collect::<Vec<_>>();
    tail(a) == tail(b)
}
