//! Tuner (PEFT) plugins: which sites get which parameters, what replaces a site's result, what merges into its weight.

use std::collections::{HashMap, HashSet};

use swift_graph::{DType, Graph, NodeId, Shape, Type};

use crate::Result;
use crate::bindings::guest;
use crate::bindings::tensor::types::ErrorCode;
use crate::check;
use crate::decl::{Kind, ParamDecl, SiteBinding, SiteInfo, SiteKind};
use crate::guest::Guest;
use crate::load::Plugin;
use crate::trace::{Fault, Loan, Role, Trace};

/// What a tuner does to one site.
#[derive(Clone, Debug, PartialEq)]
pub struct SitePlan {
    /// The site's number.
    pub id: u32,
    /// Parameters added there; names are the site's own.
    pub params: Vec<ParamDecl>,
    /// Whether the site's weight is trained.
    pub train_base: bool,
}

/// What a tuner does to a model.
#[derive(Clone, Debug, PartialEq)]
pub struct TunerPlan {
    /// Per site, in the order of the answer; sites that are absent stay as they are.
    pub sites: Vec<SitePlan>,
    /// Parameters that all sites share.
    pub common: Vec<ParamDecl>,
}

/// One tensor of an adapter file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportEntry {
    /// Full parameter name: site path, dot, declared name.
    pub param: String,
    /// Name in the file.
    pub name: String,
    /// Whether the file holds the transpose.
    pub transpose: bool,
}

/// An adapter's files in some layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportPlan {
    /// Tensors.
    pub entries: Vec<ExportEntry>,
    /// The configuration file.
    pub config_json: String,
}

/// An instance of a tuner plugin. [`TunerGuest::plan`] comes first; the other calls are about its last answer.
pub struct TunerGuest {
    guest: Guest,
    typed: guest::peft::Guest,
}

impl Plugin {
    /// A tuner guest.
    ///
    /// # Errors
    /// When the plugin is no tuner or cannot be instantiated.
    pub fn tuner(&self) -> Result<TunerGuest> {
        let (guest, typed) =
            self.guest(Kind::Peft, guest::peft::GuestIndices::new, |i, store, instance| i.load(store, instance))?;
        Ok(TunerGuest { guest, typed })
    }
}

impl TunerGuest {
    /// Chooses sites and declares parameters.
    ///
    /// # Errors
    /// When the plugin refuses the configuration or answers with nonsense.
    pub fn plan(&mut self, config: &str, sites: &[SiteInfo]) -> Result<TunerPlan> {
        let typed = &self.typed;
        let infos: Vec<_> = sites.iter().map(Into::into).collect();
        let plan = self.guest.ask("peft.plan", |store| typed.call_plan(store, config, &infos))?;
        let list = |params: Vec<crate::bindings::host::decl::ParamDecl>| params.into_iter().map(Into::into).collect();
        let plan = TunerPlan {
            sites: plan
                .sites
                .into_iter()
                .map(|s| SitePlan { id: s.id, params: list(s.params), train_base: s.train_base })
                .collect(),
            common: list(plan.common),
        };
        self.check(&plan, sites).map_err(|message| self.guest.answer("peft.plan", message))?;
        Ok(plan)
    }

    fn check(&self, plan: &TunerPlan, sites: &[SiteInfo]) -> Result<(), String> {
        let limits = self.guest.limits();
        check::params("common parameters", &plan.common, limits)?;
        let total = plan.sites.iter().map(|s| s.params.len()).sum::<usize>() + plan.common.len();
        check::count("parameters", total, "params", limits.params)?;
        let known: HashMap<u32, &SiteInfo> = sites.iter().map(|s| (s.id, s)).collect();
        let mut seen = HashSet::new();
        for site in &plan.sites {
            let Some(info) = known.get(&site.id) else {
                return Err(format!("it plans for site {}, which does not exist", site.id));
            };
            if !seen.insert(site.id) {
                return Err(format!("it plans twice for site `{}`", info.path));
            }
            if info.kind != SiteKind::Linear && !site.params.is_empty() {
                return Err(format!("it adds parameters to `{}`; only linear sites take any", info.path));
            }
            check::params("parameters of a site", &site.params, limits).map_err(|e| format!("site `{}`: {e}", info.path))?;
        }
        Ok(())
    }

    /// Appends what replaces the site's plain result, and gives its node.
    ///
    /// # Errors
    /// When the plugin fails or the result has another type than the plain one. The graph is then fit for dropping only.
    pub fn apply(&mut self, g: &mut Graph, site: &SiteBinding) -> Result<NodeId> {
        let typed = &self.typed;
        let x = g.ty(site.x);
        let mut want: Vec<_> = x.shape.dims().to_vec();
        if let Some(last) = want.last_mut() {
            *last = site.info.d_out.into();
        }
        let want = Type::new(x.dtype, want);
        self.guest.traced(
            "peft.apply",
            g,
            Loan::new(Role::Site(Box::new(site.clone())), site.training),
            |store, lent| typed.call_apply(store, lent.root(), lent.root()),
            |trace, value| expect(trace, &value, &want, "the site's result"),
        )
    }

    /// Appends the merged weight `[d_out, d_in]`, if the method has one.
    ///
    /// # Errors
    /// As for [`TunerGuest::apply`].
    pub fn merge(&mut self, g: &mut Graph, site: &SiteBinding) -> Result<Option<NodeId>> {
        let typed = &self.typed;
        let want = Type::f32(Shape::fixed(&[site.info.d_out, site.info.d_in]));
        self.guest.traced(
            "peft.merge",
            g,
            Loan::new(Role::Site(Box::new(site.clone())), false),
            |store, lent| typed.call_merge(store, lent.root(), lent.root()),
            |trace, value| value.map(|v| expect(trace, &v, &want, "the weight")).transpose(),
        )
    }

    /// Appends a data-dependent start of one of the site's parameters; none: its declared `init`.
    ///
    /// # Errors
    /// As for [`TunerGuest::apply`].
    pub fn init_param(&mut self, g: &mut Graph, site: &SiteBinding, name: &str) -> Result<Option<NodeId>> {
        let typed = &self.typed;
        let declared = site.params.iter().chain(&site.common).find(|(n, _)| n == name);
        let Some((_, id)) = declared else {
            return Err(self.guest.answer("peft.init-param", format!("`{name}` is no parameter of `{}`", site.info.path)));
        };
        let want = Type::f32(Shape::fixed(&g.params()[id.index()].shape));
        self.guest.traced(
            "peft.init-param",
            g,
            Loan::new(Role::Site(Box::new(site.clone())), false),
            |store, lent| typed.call_init_param(store, lent.root(), lent.root(), name),
            |trace, value| value.map(|v| expect(trace, &v, &want, "the parameter")).transpose(),
        )
    }

    /// Names and configuration of the adapter's files.
    ///
    /// # Errors
    /// When the plugin does not know the layout or answers with nonsense.
    pub fn export(&mut self, layout: &str) -> Result<ExportPlan> {
        let typed = &self.typed;
        let plan = self.guest.ask("peft.export-as", |store| typed.call_export_as(store, layout))?;
        let entry = |e: guest::peft::ExportEntry| ExportEntry { param: e.param, name: e.name, transpose: e.transpose };
        let plan = ExportPlan { entries: plan.entries.into_iter().map(entry).collect(), config_json: plan.config_json };
        self.check_export(&plan).map_err(|message| self.guest.answer("peft.export-as", message))?;
        Ok(plan)
    }

    fn check_export(&self, plan: &ExportPlan) -> Result<(), String> {
        let limits = self.guest.limits();
        check::count("tensors", plan.entries.len(), "params", limits.params)?;
        for e in &plan.entries {
            check::name("parameter", &e.param, limits)?;
            check::name("tensor", &e.name, limits)?;
        }
        check::distinct("tensor", plan.entries.iter().map(|e| e.name.as_str()))?;
        let config: Result<serde_json::Value, _> = serde_json::from_str(&plan.config_json);
        match config {
            Ok(serde_json::Value::Object(_)) => Ok(()),
            Ok(_) => Err("its configuration is no JSON object".into()),
            Err(e) => Err(format!("its configuration is no JSON: {e}")),
        }
    }

    /// Name of the plugin.
    pub fn plugin(&self) -> &str {
        self.guest.plugin()
    }
}

/// The node behind an answered value, if it has the type wanted. Float types are one family: devices compute them alike.
pub(crate) fn expect(
    trace: &mut Trace,
    value: &wasmtime::component::Resource<crate::bindings::tensor::graph::Value>,
    want: &Type,
    what: &str,
) -> Result<NodeId, Fault> {
    let node = trace.node(value)?;
    let got = trace.graph.ty(node).clone();
    if got.shape != want.shape || got.dtype.is_float() != want.dtype.is_float() {
        return Err(Fault::new(ErrorCode::BadShape, format!("{what} must be {want}; got {got}")));
    }
    if got.dtype == want.dtype || want.dtype == DType::Bool {
        return Ok(node);
    }
    Ok(trace.graph.push(swift_graph::op::Cast(want.dtype), &[node])?)
}
