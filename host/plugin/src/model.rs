//! Model plugins: the plan of parameters, and one graph per mode.

use std::collections::HashSet;

use swift_graph::{Graph, NodeId, Op, SiteKind as GraphSiteKind};

use crate::bindings::guest;
use crate::check;
use crate::decl::{Head, Kind, Mode, ParamDecl, SiteInfo, SiteKind, layer_of};
use crate::guest::Guest;
use crate::load::Plugin;
use crate::trace::{Loan, Role, SessionCtx};
use crate::{Error, Result};

/// How a checkpoint's tensors become a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// As it is.
    Whole(String),
    /// Transposed.
    Transposed(String),
    /// A range of rows: name, first, count.
    Rows(String, u64, u64),
    /// A range of columns: name, first, count.
    Columns(String, u64, u64),
    /// Stacked along a new first axis.
    Stacked(Vec<String>),
    /// Joined along the first axis.
    Joined(Vec<String>),
}

/// Where a parameter comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Parameter.
    pub param: String,
    /// Source.
    pub source: Recipe,
}

/// One layer's KV cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheDecl {
    /// Layer number.
    pub layer: u32,
    /// Heads of keys and values.
    pub kv_heads: u32,
    /// Size of a head.
    pub head_dim: u32,
    /// Tokens that are ever looked at, if bounded.
    pub window: Option<u32>,
}

/// What a model needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPlan {
    /// Parameters.
    pub params: Vec<ParamDecl>,
    /// Where they come from; parameters without one start from their `init`.
    pub bindings: Vec<Binding>,
    /// Caches.
    pub caches: Vec<CacheDecl>,
    /// Inputs it asks for.
    pub inputs: Vec<String>,
}

/// A traced model.
#[derive(Clone, Debug)]
pub struct TracedModel {
    /// The graph, with its sites and named outputs.
    pub graph: Graph,
    /// Final hidden states and output projection.
    pub head: Option<Head>,
    /// Named outputs.
    pub outputs: Vec<(String, NodeId)>,
    /// Scalars to add to the loss, with weights.
    pub aux_losses: Vec<(String, NodeId, f32)>,
}

/// An instance of a model plugin.
pub struct ModelGuest {
    guest: Guest,
    typed: guest::model::Guest,
}

impl Plugin {
    /// A model guest.
    ///
    /// # Errors
    /// When the plugin is no model or cannot be instantiated.
    pub fn model(&self) -> Result<ModelGuest> {
        let (guest, typed) =
            self.guest(Kind::Model, guest::model::GuestIndices::new, |i, store, instance| i.load(store, instance))?;
        Ok(ModelGuest { guest, typed })
    }
}

impl ModelGuest {
    /// Parameters, bindings and caches for a checkpoint's configuration.
    ///
    /// # Errors
    /// When the plugin refuses the configuration or answers with nonsense.
    pub fn plan(&mut self, config: &str) -> Result<ModelPlan> {
        let typed = &self.typed;
        let plan = self.guest.ask("model.plan-for", |store| typed.call_plan_for(store, config))?;
        if plan.caches.iter().any(|c| c.latent_dim.is_some()) {
            return Err(self.guest.answer("model.plan-for", "this host has no latent caches yet"));
        }
        let plan = ModelPlan {
            params: plan.params.into_iter().map(Into::into).collect(),
            bindings: plan.bindings.into_iter().map(|b| Binding { param: b.param, source: b.source.into() }).collect(),
            caches: plan
                .caches
                .into_iter()
                .map(|c| CacheDecl { layer: c.layer, kv_heads: c.kv_heads, head_dim: c.head_dim, window: c.window })
                .collect(),
            inputs: plan.inputs,
        };
        self.check(&plan).map_err(|message| self.guest.answer("model.plan-for", message))?;
        Ok(plan)
    }

    fn check(&self, plan: &ModelPlan) -> Result<(), String> {
        let limits = self.guest.limits();
        check::params("parameters", &plan.params, limits)?;
        check::count("bindings", plan.bindings.len(), "params", limits.params)?;
        check::count("caches", plan.caches.len(), "params", limits.params)?;
        check::count("inputs", plan.inputs.len(), "params", limits.params)?;
        check::distinct("a binding's parameter", plan.bindings.iter().map(|b| b.param.as_str()))?;
        let names: HashSet<&str> = plan.params.iter().map(|p| p.name.as_str()).collect();
        for b in &plan.bindings {
            if !names.contains(b.param.as_str()) {
                return Err(format!("a binding is for `{}`, which is not declared", b.param));
            }
            let sources = b.source.names();
            if sources.is_empty() {
                return Err(format!("the binding of `{}` names no tensor", b.param));
            }
            for source in sources {
                check::name("tensor", source, limits)?;
            }
        }
        let mut layers = HashSet::new();
        for c in &plan.caches {
            if !layers.insert(c.layer) || c.kv_heads == 0 || c.head_dim == 0 {
                return Err(format!("the cache of layer {} is declared twice or is empty", c.layer));
            }
        }
        plan.inputs.iter().try_for_each(|i| check::name("input", i, limits))
    }

    /// The model's graph in one mode.
    ///
    /// # Errors
    /// When the plugin fails.
    pub fn trace(&mut self, config: &str, plan: &ModelPlan, mode: Mode) -> Result<TracedModel> {
        let mut graph = Graph::new(self.guest.limits().graph_limits());
        let role = Role::Model(Box::new(SessionCtx::new(plan, mode)));
        let typed = &self.typed;
        let session = self.guest.traced(
            "model.trace",
            &mut graph,
            Loan::new(role, mode == Mode::Train),
            |store, lent| typed.call_trace(store, lent.root(), config),
            |trace, ()| Ok(std::mem::replace(&mut trace.role, Role::Values)),
        )?;
        let Role::Model(session) = session else { unreachable!("the role was given above") };
        if session.head.is_none() && graph.outputs.is_empty() {
            return Err(self.guest.answer("model.trace", "the model sets neither a head nor an output"));
        }
        let outputs = graph.outputs.clone();
        Ok(TracedModel { graph, head: session.head, outputs, aux_losses: session.aux_losses })
    }

    /// Name of the plugin.
    pub fn plugin(&self) -> &str {
        self.guest.plugin()
    }
}

impl Recipe {
    /// Tensors it reads.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Recipe::Whole(n) | Recipe::Transposed(n) | Recipe::Rows(n, ..) | Recipe::Columns(n, ..) => vec![n],
            Recipe::Stacked(list) | Recipe::Joined(list) => list.iter().map(String::as_str).collect(),
        }
    }
}

impl From<guest::model::Recipe> for Recipe {
    fn from(recipe: guest::model::Recipe) -> Recipe {
        use guest::model::Recipe as W;
        match recipe {
            W::Whole(n) => Recipe::Whole(n),
            W::Transposed(n) => Recipe::Transposed(n),
            W::Rows((n, first, count)) => Recipe::Rows(n, first, count),
            W::Columns((n, first, count)) => Recipe::Columns(n, first, count),
            W::Stacked(list) => Recipe::Stacked(list),
            W::Joined(list) => Recipe::Joined(list),
        }
    }
}

impl TracedModel {
    /// The sites that tuners see: first the graph's own, numbered as in `graph.sites`, then norms and the head, for which only
    /// `train-base` makes sense. `quantised` says of a parameter's name whether its storage is quantized.
    ///
    /// # Errors
    /// When a site's weight is no parameter, which no trace produces.
    pub fn site_infos(&self, quantised: impl Fn(&str) -> bool) -> Result<Vec<SiteInfo>> {
        let g = &self.graph;
        let param = |node: NodeId| match &g.node(node).op {
            Op::Param(p) => Ok(&g.params()[p.id.index()]),
            other => Err(Error::Engine(format!("a site's weight is {other:?}, not a parameter"))),
        };
        let mut sites = Vec::new();
        let mut seen = HashSet::new();
        for (id, site) in g.sites.iter().enumerate() {
            let p = param(site.weight)?;
            seen.insert(p.name.as_str());
            let kind = match site.kind {
                GraphSiteKind::Linear => SiteKind::Linear,
                GraphSiteKind::GroupedLinear => SiteKind::GroupedLinear,
                GraphSiteKind::Embedding => SiteKind::Embedding,
                GraphSiteKind::Conv => SiteKind::Conv,
            };
            // A linear's weight is [out, in], filters are [out, in, ...], experts [e, out, in], a table is [vocab, d].
            let (d_in, d_out, experts) = match kind {
                SiteKind::GroupedLinear => (p.shape[2], p.shape[1], p.shape[0]),
                SiteKind::Linear | SiteKind::Conv => (p.shape[1], p.shape[0], 0),
                _ => (p.shape[0], p.shape[1], 0),
            };
            let info = info(id as u32, site.path.clone(), kind, d_in, d_out, quantised(&p.name));
            sites.push(SiteInfo { experts: experts as u32, ..info });
        }
        let mut rest = Vec::new();
        if let Some(head) = &self.head {
            rest.push((head.weight, SiteKind::Head));
        }
        for node in g.nodes() {
            match &node.op {
                Op::RmsNorm(n) if n.weight => rest.push((node.inputs[1], SiteKind::Norm)),
                Op::Read(_) => rest.push((node.inputs[0], SiteKind::Other)),
                Op::GroupedLinear(_) => rest.push((node.inputs[1], SiteKind::Other)),
                // Filters are read.
                Op::Conv(c) if c.bias => rest.push((node.inputs[2], SiteKind::Other)),
                Op::Linear(_) | Op::Embed(_) => {
                    let kind = if matches!(node.op, Op::Linear(_)) { SiteKind::Other } else { SiteKind::Embedding };
                    let weights = if kind == SiteKind::Other { &node.inputs[1..] } else { &node.inputs[..1] };
                    rest.extend(weights.iter().map(|&w| (w, kind)));
                }
                _ => {}
            }
        }
        for (node, kind) in rest {
            let Ok(p) = param(node) else { continue };
            if !seen.insert(p.name.as_str()) {
                continue;
            }
            let path = p.name.strip_suffix(".weight").unwrap_or(&p.name).to_string();
            let (d_out, d_in) = (p.shape.first().copied().unwrap_or(1), p.shape.get(1).copied().unwrap_or(1));
            sites.push(info(sites.len() as u32, path, kind, d_in, d_out, quantised(&p.name)));
        }
        Ok(sites)
    }
}

fn info(id: u32, path: String, kind: SiteKind, d_in: u64, d_out: u64, quantised: bool) -> SiteInfo {
    SiteInfo { id, layer: layer_of(&path), path, kind, d_in, d_out, experts: 0, quantised }
}
