//! Tuners: methods that adapt a frozen model (LoRA and its kin), written as what each linear layer computes instead.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::rc::Rc;

use crate::bindings::export_world;
use crate::bindings::swift::plugin::trace_host as raw;
use crate::bindings::swift::tensor::graph as raw_graph;
use crate::{Config, Error, ErrorCode, Init, Param, ParamDecl, Result, SiteInfo, SiteKind, Value, enter, trace};

export_world!(
    traced "package swift:sdk-tuner; world tuner { export swift:plugin/peft@0.1.0; }",
    "swift:sdk-tuner/tuner",
    "swift_sdk::tuner",
    "__export_tuner"
);

use exports::swift::plugin::peft::{self, ExportEntry, Guest, TunerPlan};

/// A tuner. The host calls [`Tuner::plan`] with every site of a model, then traces [`Tuner::apply`] where it took one.
pub trait Tuner: Config + Clone {
    /// Refuses values that make no sense together or out of range.
    ///
    /// # Errors
    /// With what is wrong and what would be right.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The parameters to add at a site, or none to leave it alone.
    fn plan(&self, site: &SiteInfo) -> Option<SitePlan>;

    /// Parameters shared by all sites.
    fn common(&self) -> Vec<ParamDecl> {
        Vec::new()
    }

    /// A starting value computed from the base weight, for parameters that need one; none keeps the declared start.
    fn init(&self, _site: &Site, _param: &str) -> Option<Value> {
        None
    }

    /// What the site computes now, instead of `site.base(x)`.
    fn apply(&self, site: &Site, x: &Value) -> Value;

    /// The weight that computes the same without the adapter; none if there is no such weight.
    fn merge(&self, _site: &Site) -> Option<Value> {
        None
    }

    /// Names and configuration of the adapter's files in a layout such as "hf-peft".
    ///
    /// # Errors
    /// When the layout cannot hold this tuner.
    fn export(&self, layout: &str, _sites: &[AdaptedSite]) -> Result<ExportPlan> {
        Err(Error::new(ErrorCode::UnsupportedOp, format!("this tuner has no layout `{layout}`")))
    }
}

impl SiteInfo {
    /// Whether it is a linear layer; the head and embeddings are not.
    pub fn is_linear(&self) -> bool {
        self.kind == SiteKind::Linear
    }

    /// Last part of the path: `q_proj`.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }
}

/// What a tuner adds at one site.
#[derive(Clone, Default)]
pub struct SitePlan {
    params: Vec<ParamDecl>,
    train_base: bool,
}

impl SitePlan {
    /// Nothing yet.
    pub fn new() -> SitePlan {
        SitePlan::default()
    }

    /// Adds a trained parameter.
    #[must_use]
    pub fn param<const N: usize>(mut self, name: &str, shape: [u64; N], init: Init) -> SitePlan {
        let shape = shape.to_vec();
        self.params.push(ParamDecl { name: name.into(), shape, init, tied_to: None, tags: Vec::new() });
        self
    }

    /// Trains the site's own weight.
    #[must_use]
    pub fn train_base(mut self) -> SitePlan {
        self.train_base = true;
        self
    }
}

/// A call site of the model inside a trace. What is not asked for is never computed.
pub struct Site<'a> {
    raw: &'a raw::Site,
}

impl Site<'_> {
    /// What is known of it.
    pub fn info(&self) -> SiteInfo {
        self.raw.info()
    }

    /// W·x + bias, the site's plain computation.
    pub fn base(&self, x: &Value) -> Value {
        x.map(|g, x| self.raw.base(g, x))
    }

    /// W·x without the bias.
    pub fn project(&self, x: &Value) -> Value {
        match self.bias() {
            Some(bias) => self.base(x) - bias,
            None => self.base(x),
        }
    }

    /// The bias `[d_out]`, if the site has one.
    pub fn bias(&self) -> Option<Value> {
        trace::record(|g| self.raw.bias(g)).flatten().map(Value::own)
    }

    /// y + bias, or y where there is none.
    pub fn with_bias(&self, y: Value) -> Value {
        match self.bias() {
            Some(bias) => y + bias,
            None => y,
        }
    }

    /// W, dense `[d_out, d_in]`. Meant for starting values, merging and norms: [`Site::base`] multiplies by the weight as it is stored.
    pub fn weight(&self) -> Value {
        Value::record(|g| self.raw.weight(g))
    }

    /// A parameter of the site's plan.
    pub fn param(&self, name: &str) -> Param {
        Param::new(trace::record(|_| self.raw.param(name)))
    }

    /// A parameter of [`Tuner::common`].
    pub fn common(&self, name: &str) -> Param {
        Param::new(trace::record(|_| self.raw.common(name)))
    }
}

/// A site that the tuner took, with the names it declared there.
#[derive(Clone)]
pub struct AdaptedSite {
    /// The site.
    pub info: SiteInfo,
    /// Declared parameter names.
    pub params: Vec<String>,
}

/// Files of an adapter.
#[derive(Clone, Default)]
pub struct ExportPlan {
    entries: Vec<ExportEntry>,
    config: crate::Json,
}

impl ExportPlan {
    /// No tensors; `config` becomes `adapter_config.json`.
    pub fn new(config: crate::Json) -> ExportPlan {
        ExportPlan { entries: Vec::new(), config }
    }

    /// Writes a site's parameter under `name`.
    pub fn tensor(&mut self, site: &AdaptedSite, param: &str, name: String) {
        self.entries.push(ExportEntry { param: format!("{}.{param}", site.info.path), name, transpose: false });
    }
}

/// The tuner of this instance and the sites it took, from `plan` on.
struct Planned {
    tuner: Rc<dyn Any>,
    sites: Rc<[AdaptedSite]>,
}

thread_local! {
    static PLANNED: RefCell<Option<Planned>> = const { RefCell::new(None) };
}

fn planned<T: Tuner>() -> Result<(Rc<T>, Rc<[AdaptedSite]>)> {
    PLANNED
        .with_borrow(|p| p.as_ref().and_then(|p| Some((p.tuner.clone().downcast().ok()?, p.sites.clone()))))
        .ok_or_else(|| Error::new(ErrorCode::Internal, "`plan` must be called first in an instance of a tuner"))
}

#[doc(hidden)]
pub struct Exported<T>(PhantomData<T>);

impl<T: Tuner> Exported<T> {
    /// Runs one traced hook; none when the hook gave none.
    fn trace(
        g: &raw_graph::Builder,
        site: &raw::Site,
        hook: impl FnOnce(&T, &Site) -> Option<Value>,
    ) -> Result<Option<raw_graph::Value>> {
        enter();
        let (tuner, _) = planned::<T>()?;
        trace::run(g, || hook(&tuner, &Site { raw: site }).and_then(Value::into_raw))
    }
}

impl<T: Tuner> Guest for Exported<T> {
    fn plan(config: String, sites: Vec<SiteInfo>) -> Result<TunerPlan> {
        enter();
        let tuner = T::parse(&config)?;
        tuner.check()?;
        let (mut plans, mut adapted) = (Vec::new(), Vec::new());
        for info in &sites {
            if let Some(SitePlan { params, train_base }) = tuner.plan(info) {
                adapted.push(AdaptedSite { info: info.clone(), params: params.iter().map(|p| p.name.clone()).collect() });
                plans.push(peft::SitePlan { id: info.id, params, train_base });
            }
        }
        if plans.is_empty() {
            let names: BTreeSet<&str> = sites.iter().map(SiteInfo::name).collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Error::config("the tuner takes no layer of this model").hint(format!("its layers are named {names}")));
        }
        let common = tuner.common();
        PLANNED.set(Some(Planned { tuner: Rc::new(tuner), sites: adapted.into() }));
        Ok(TunerPlan { sites: plans, common })
    }

    fn init_param(g: &raw_graph::Builder, s: &raw::Site, name: String) -> Result<Option<raw_graph::Value>> {
        Self::trace(g, s, |tuner, site| tuner.init(site, &name))
    }

    fn apply(g: &raw_graph::Builder, s: &raw::Site) -> Result<raw_graph::Value> {
        let out = Self::trace(g, s, |tuner, site| Some(tuner.apply(site, &Value::own(s.x()))))?;
        out.ok_or_else(|| Error::new(ErrorCode::Internal, "`apply` gave no value"))
    }

    fn merge(g: &raw_graph::Builder, s: &raw::Site) -> Result<Option<raw_graph::Value>> {
        Self::trace(g, s, |tuner, site| tuner.merge(site))
    }

    fn export_as(layout: String) -> Result<peft::ExportPlan> {
        enter();
        let (tuner, sites) = planned::<T>()?;
        let ExportPlan { entries, config } = tuner.export(&layout, &sites)?;
        Ok(peft::ExportPlan { entries, config_json: format!("{config:#}") })
    }
}
