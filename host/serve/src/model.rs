//! A model plugin over a checkpoint, with at most one adapter method spliced into its sites.
//!
//! Tracing happens here and nowhere else: the model plugin is asked once per mode, its graph is copied node by node, and at every
//! site that the tuner took, the tuner's `apply` is called and its result stands in for the plain one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;
use swift_formats::Checkpoint;
use swift_graph::op::Op;
use swift_graph::{Graph, NodeId, ParamId, ParamInfo};
use swift_plugin::{
    ExportPlan, Head, Mode, ModelGuest, ModelPlan, ParamDecl, Plugin, SiteBinding, SiteInfo, SiteKind, SitePlan, TracedModel,
    TunerGuest, TunerPlan,
};

use crate::{Result, ServeError};

pub(crate) struct Adapter {
    pub(crate) guest: TunerGuest,
    pub(crate) plan: TunerPlan,
    /// The method's file layout, asked for once so that saving enters no plugin.
    pub(crate) export: Option<ExportPlan>,
}

/// A checkpoint, its model plugin, and the adapter method if there is one.
pub struct AdaptedModel {
    pub(crate) checkpoint: Arc<Checkpoint>,
    config: String,
    guest: ModelGuest,
    pub(crate) plan: ModelPlan,
    /// Linear and embedding sites in trace order, then one site per parameter that no call site covers.
    pub(crate) sites: Vec<SiteInfo>,
    pub(crate) adapter: Option<Adapter>,
    /// What is rounded while it is loaded.
    pub(crate) quantization: Option<crate::quantize::Plan>,
}

impl AdaptedModel {
    /// Plans the model for the checkpoint's configuration and lists its sites.
    ///
    /// # Errors
    /// When the plugin refuses the configuration.
    pub fn open(checkpoint: Arc<Checkpoint>, plugin: &Plugin) -> Result<AdaptedModel> {
        let config = checkpoint.config().to_string();
        let mut guest = plugin.model()?;
        let plan = guest.plan(&config)?;
        let traced = guest.trace(&config, &plan, Mode::Train)?;
        let sites = list_sites(&traced.graph, &plan, &checkpoint);
        Ok(AdaptedModel { checkpoint, config, guest, plan, sites, adapter: None, quantization: None })
    }

    /// Chooses the adapter method; `config` is the tuner's own configuration.
    ///
    /// # Errors
    /// When the tuner refuses its configuration or names a site that does not exist.
    pub fn adapt(&mut self, plugin: &Plugin, config: &str) -> Result<()> {
        let mut guest = plugin.tuner()?;
        let plan = guest.plan(config, &self.sites)?;
        for site in &plan.sites {
            let info = self.site(site.id).ok_or_else(|| {
                ServeError::Adapter(format!("plugin plans site {}, but the model has {} sites", site.id, self.sites.len()))
            })?;
            if !site.params.is_empty() && info.kind != SiteKind::Linear {
                return Err(ServeError::Adapter(format!(
                    "plugin wants parameters at `{}`, but only linear sites take adapters; others can be trained as they are",
                    info.path
                )));
            }
        }
        if plan.sites.iter().all(|s| s.params.is_empty() && !s.train_base) {
            let paths: Vec<&str> = self.sites.iter().take(8).map(|s| s.path.as_str()).collect();
            return Err(ServeError::Adapter(format!("no site was selected; the model has {} ...", paths.join(", "))));
        }
        let has_params = plan.sites.iter().any(|s| !s.params.is_empty());
        let export = has_params.then(|| guest.export("hf-peft")).transpose()?;
        self.adapter = Some(Adapter { guest, plan, export });
        Ok(())
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// The model's configuration in Hugging Face's spelling.
    pub fn config(&self) -> &Value {
        self.checkpoint.config()
    }

    /// Whether the model reads texts whole and cannot generate: it declares no cache.
    pub fn is_encoder(&self) -> bool {
        self.plan.caches.is_empty()
    }

    /// Parameters of the base, tied ones counted once.
    pub fn base_parameters(&self) -> u64 {
        self.plan.params.iter().filter(|p| p.tied_to.is_none()).map(|p| p.shape.iter().product::<u64>()).sum()
    }

    /// All sites.
    pub fn sites(&self) -> &[SiteInfo] {
        &self.sites
    }

    fn site(&self, id: u32) -> Option<&SiteInfo> {
        self.sites.get(id as usize).filter(|s| s.id == id)
    }

    /// Parameters of the adapter with their full names, `<site path>.<name>`, in plan order.
    pub fn adapter_params(&self) -> Vec<(ParamDecl, SiteInfo)> {
        let Some(adapter) = &self.adapter else { return Vec::new() };
        let full = |site: &SitePlan| {
            let info = self.sites[site.id as usize].clone();
            let named = |p: &ParamDecl| (ParamDecl { name: format!("{}.{}", info.path, p.name), ..p.clone() }, info.clone());
            site.params.iter().map(named).collect::<Vec<_>>()
        };
        adapter.plan.sites.iter().flat_map(full).collect()
    }

    /// Base parameters that are trained as they are.
    pub fn trained_base(&self) -> HashSet<String> {
        let Some(adapter) = &self.adapter else { return HashSet::new() };
        let free = self.plan.params.iter().filter(|p| !p.tags.iter().any(|tag| tag == "frozen"));
        let declared: HashSet<&str> = free.map(|p| p.name.as_str()).collect();
        let mut names = HashSet::new();
        for site in adapter.plan.sites.iter().filter(|s| s.train_base) {
            let path = &self.sites[site.id as usize].path;
            for name in [path.clone(), format!("{path}.weight"), format!("{path}.bias")] {
                if declared.contains(name.as_str()) {
                    names.insert(name);
                }
            }
        }
        names
    }

    /// Names and tags of every trained parameter, base and adapter, in a fixed order.
    pub fn trainable(&self) -> Vec<ParamDecl> {
        let base = self.trained_base();
        let tied = |p: &&ParamDecl| base.contains(&p.name) && p.tied_to.is_none();
        let own = self.adapter_params().into_iter().map(|(p, _)| p).filter(|p| !p.tags.iter().any(|t| t == "frozen"));
        self.plan.params.iter().filter(tied).cloned().chain(own).collect()
    }

    /// The model plugin's own trace, without the adapter.
    ///
    /// # Errors
    /// When the plugin fails.
    pub fn trace(&mut self, mode: Mode) -> Result<TracedModel> {
        Ok(self.guest.trace(&self.config, &self.plan, mode)?)
    }

    /// Copies `traced` into `g`, with the adapter spliced in when `adapted` and dropout left out unless asked for. Returns the image
    /// of the head and of the auxiliary losses.
    ///
    /// # Errors
    /// When the tuner fails or the model has no head.
    pub fn splice(
        &mut self,
        g: &mut Graph,
        traced: &TracedModel,
        adapted: bool,
        dropout: bool,
    ) -> Result<(Head, Vec<(NodeId, f32)>)> {
        let head = traced.head.clone().ok_or_else(|| {
            ServeError::Request("the model has no vocabulary to generate or train on; encoders give hidden states".into())
        })?;
        let map = self.inline(g, traced, adapted, dropout)?;
        let at = |id: NodeId| map[id.index()];
        let aux = traced.aux_losses.iter().map(|(_, v, w)| (at(*v), *w)).collect();
        Ok((Head { hidden: at(head.hidden), weight: at(head.weight), softcap: head.softcap }, aux))
    }

    /// [`AdaptedModel::splice`] for any model: the image of every node.
    pub(crate) fn inline(&mut self, g: &mut Graph, traced: &TracedModel, adapted: bool, dropout: bool) -> Result<Vec<NodeId>> {
        let trained = self.trained_base();
        let mut by_output: HashMap<NodeId, usize> = HashMap::new();
        if adapted && let Some(adapter) = &self.adapter {
            let takes: HashSet<u32> = adapter.plan.sites.iter().filter(|s| !s.params.is_empty()).map(|s| s.id).collect();
            let sites = traced.graph.sites.iter().enumerate();
            by_output.extend(sites.filter(|(i, _)| takes.contains(&(*i as u32))).map(|(i, s)| (s.output, i)));
        }
        let infos = &self.sites;
        let adapter = &mut self.adapter;
        let mut failed = None;
        let map = g.inline(&traced.graph, |g, id, map| {
            let node = traced.graph.node(id);
            if matches!(node.op, Op::Dropout(_)) && !dropout {
                return Ok(Some(map[node.inputs[0].index()]));
            }
            let Some((&site, adapter)) = by_output.get(&id).zip(adapter.as_mut()) else { return Ok(None) };
            match apply(g, adapter, &traced.graph.sites[site], &infos[site], map, dropout) {
                Ok(value) => Ok(Some(value)),
                Err(error) => {
                    let message = swift_graph::Error::Bind(format!("the tuner failed at `{}`", infos[site].path));
                    failed.get_or_insert(error);
                    Err(message)
                }
            }
        });
        let map = match (map, failed) {
            (_, Some(error)) => return Err(error),
            (map, None) => map?,
        };
        for id in 0..g.params().len() as u32 {
            let name = &g.params()[id as usize].name;
            if trained.contains(name) && adapted {
                g.set_trainable(ParamId(id), true);
            }
        }
        Ok(map)
    }

    /// Graph that computes the merged weight of every adapted site, as outputs named by the base parameter.
    ///
    /// # Errors
    /// When the method has no weight form.
    pub fn merge_graph(&mut self) -> Result<Graph> {
        let traced = self.trace(Mode::Train)?;
        let mut g = Graph::default();
        let Some(adapter) = self.adapter.as_mut() else { return Ok(g) };
        for plan in adapter.plan.sites.clone().iter().filter(|s| !s.params.is_empty()) {
            let binding = site_binding(&mut g, &traced.graph, &self.sites[plan.id as usize], plan)?;
            let info = &self.sites[plan.id as usize];
            let merged = adapter.guest.merge(&mut g, &binding)?.ok_or_else(|| {
                ServeError::Adapter(format!("the method has no weight form at `{}`, so it cannot be merged", info.path))
            })?;
            g.outputs.push((format!("{}.weight", info.path), merged));
        }
        Ok(g)
    }

    /// Graph that computes data-dependent initial values, written to their parameters as effects; `None` when every parameter
    /// starts from its declared distribution.
    ///
    /// # Errors
    /// When the tuner fails.
    pub fn init_graph(&mut self) -> Result<Option<Graph>> {
        let traced = self.trace(Mode::Train)?;
        let mut g = Graph::default();
        let Some(adapter) = self.adapter.as_mut() else { return Ok(None) };
        for plan in adapter.plan.sites.clone().iter().filter(|s| !s.params.is_empty()) {
            let binding = site_binding(&mut g, &traced.graph, &self.sites[plan.id as usize], plan)?;
            for (name, id) in &binding.params {
                if let Some(value) = adapter.guest.init_param(&mut g, &binding, name)? {
                    g.write(swift_graph::Target::Param(*id), value, false)?;
                }
            }
        }
        Ok((!g.effects.is_empty()).then_some(g))
    }
}

fn apply(
    g: &mut Graph,
    adapter: &mut Adapter,
    site: &swift_graph::Site,
    info: &SiteInfo,
    map: &[NodeId],
    training: bool,
) -> Result<NodeId> {
    let plan = adapter.plan.sites.iter().find(|s| s.id == info.id).cloned();
    let plan = plan.ok_or_else(|| ServeError::Adapter(format!("`{}` has no plan", info.path)))?;
    let at = |id: NodeId| map[id.index()];
    let mut binding = bind(g, info, &plan, at(site.x), at(site.weight), site.bias.map(at))?;
    binding.training = training;
    Ok(adapter.guest.apply(g, &binding)?)
}

/// A binding outside any model graph: the weight's own parameter, and a placeholder input for x.
fn site_binding(g: &mut Graph, model: &Graph, info: &SiteInfo, plan: &SitePlan) -> Result<SiteBinding> {
    let site = &model.sites[info.id as usize];
    let param = |g: &mut Graph, node: NodeId| -> Result<NodeId> {
        let Op::Param(p) = &model.node(node).op else {
            return Err(ServeError::Adapter(format!("the weight of `{}` is computed, not stored", info.path)));
        };
        let id = g.declare_param(model.params()[p.id.index()].clone())?;
        Ok(g.param(id)?)
    };
    let weight = param(g, site.weight)?;
    let bias = site.bias.map(|b| param(g, b)).transpose()?;
    let x = g.input(&format!("x.{}", info.path), model.ty(site.x).clone())?;
    bind(g, info, plan, x, weight, bias)
}

fn bind(g: &mut Graph, info: &SiteInfo, plan: &SitePlan, x: NodeId, weight: NodeId, bias: Option<NodeId>) -> Result<SiteBinding> {
    let mut params = Vec::with_capacity(plan.params.len());
    for p in &plan.params {
        let trainable = !p.tags.iter().any(|t| t == "frozen");
        let name = format!("{}.{}", info.path, p.name);
        params.push((p.name.clone(), g.declare_param(ParamInfo { name, shape: p.shape.clone(), trainable })?));
    }
    Ok(SiteBinding { info: info.clone(), x, weight, bias, params, common: Vec::new(), training: false })
}

fn list_sites(g: &Graph, plan: &ModelPlan, checkpoint: &Checkpoint) -> Vec<SiteInfo> {
    let name_of = |node: NodeId| match &g.node(node).op {
        Op::Param(p) => Some(g.params()[p.id.index()].name.clone()),
        _ => None,
    };
    let mut covered: HashSet<String> = HashSet::new();
    let mut sites = Vec::new();
    for site in &g.sites {
        let shape = &g.ty(site.weight).shape;
        let size = |axis: usize| shape.get(axis).and_then(|d| d.as_fixed()).unwrap_or(0);
        let kind = match site.kind {
            swift_graph::SiteKind::Linear => SiteKind::Linear,
            swift_graph::SiteKind::GroupedLinear => SiteKind::GroupedLinear,
            swift_graph::SiteKind::Embedding => SiteKind::Embedding,
            swift_graph::SiteKind::Conv => SiteKind::Conv,
        };
        let (d_in, d_out, experts) = match kind {
            SiteKind::GroupedLinear => (size(2), size(1), size(0)),
            SiteKind::Linear | SiteKind::Conv => (size(1), size(0), 0),
            _ => (size(0), size(1), 0),
        };
        let weight = name_of(site.weight);
        let quantised = weight.as_deref().is_some_and(|w| is_quantised(plan, checkpoint, w));
        covered.extend(weight);
        covered.extend(site.bias.and_then(name_of));
        sites.push(SiteInfo {
            id: sites.len() as u32,
            layer: swift_plugin::layer_of(&site.path),
            path: site.path.clone(),
            kind,
            d_in,
            d_out,
            experts: experts as u32,
            quantised,
        });
    }
    for p in plan.params.iter().filter(|p| p.tied_to.is_none() && !covered.contains(&p.name)) {
        let path = p.name.strip_suffix(".weight").unwrap_or(&p.name).to_string();
        let kind = if path == "lm_head" { SiteKind::Head } else { SiteKind::Norm };
        let (d_out, d_in) = (p.shape.first().copied().unwrap_or(1), p.shape.last().copied().unwrap_or(1));
        let quantised = is_quantised(plan, checkpoint, &p.name);
        sites.push(SiteInfo {
            id: sites.len() as u32,
            layer: swift_plugin::layer_of(&path),
            path,
            kind,
            d_in,
            d_out,
            experts: 0,
            quantised,
        });
    }
    sites
}

fn is_quantised(plan: &ModelPlan, checkpoint: &Checkpoint, param: &str) -> bool {
    crate::weights::source_of(plan, param).is_some_and(|tensor| checkpoint.is_quantized(tensor))
}
