//! What a swift-host plugin is written with, and its only dependency.
//!
//! A numeric plugin *describes* a computation: its functions receive symbolic [`Value`]s, and operators and methods on them append to a
//! graph that the host differentiates, fuses and runs. Nothing is computed in the plugin and no tensor ever enters it.
//!
//! ```no_run
//! //! The house method: a trained offset after every linear layer.
//!
//! use swift_sdk::hf_peft::{self, Targets};
//! use swift_sdk::prelude::*;
//!
//! config! {
//!     /// Adds a trained offset to frozen linear layers.
//!     pub struct Offset {
//!         /// Layers to adapt: "all-linear", a name or a list of names such as "q_proj".
//!         target_modules: Targets = Targets::AllLinear,
//!         /// Factor of the offset.
//!         scale: f64 = 1.0,
//!     }
//! }
//!
//! impl Tuner for Offset {
//!     fn plan(&self, site: &SiteInfo) -> Option<SitePlan> {
//!         self.target_modules.take(site).then(|| SitePlan::new().param("offset", [site.d_out], Init::Zeros))
//!     }
//!
//!     fn apply(&self, site: &Site, x: &Value) -> Value {
//!         site.base(x) + site.param("offset") * self.scale
//!     }
//!
//!     fn export(&self, layout: &str, sites: &[AdaptedSite]) -> Result<ExportPlan> {
//!         hf_peft::export(layout, sites, hf_peft::fields!(self: scale))
//!     }
//! }
//!
//! plugin! { tuner "offset": Offset }
//! # fn main() {}
//! ```
//!
//! **Errors.** Operators return plain values, so that formulas read like formulas. The first operation that fails (shapes that do not
//! fit, a name that does not exist) is remembered, everything after it records nothing, and the host receives that first error with
//! the scope it happened in. [`fail`] does the same for errors of the plugin's own.
//!
//! A plugin implements [`Model`], [`Tuner`], [`Loss`], [`Optimizer`], [`Dataset`] or [`Sampler`] for its configuration type,
//! which [`config!`] declares, and ends with [`plugin!`], which exports it.

mod bindings;
mod config;
mod dim;
mod error;
mod operators;
mod param;
mod plugin;
mod trace;
mod value;

pub mod dataset;
pub mod hf_peft;
pub mod loss;
pub mod model;
pub mod optimizer;
pub mod rows;
pub mod sampler;
pub mod tuner;

pub use serde;
pub use serde_json;

pub use bindings::swift::plugin::decl::{Init, Mode, ParamDecl, ParamInfo, SiteInfo, SiteKind};
pub use bindings::swift::plugin::env::random;
pub use bindings::swift::tensor::types::{Dtype, Error, ErrorCode};
#[doc(hidden)]
pub use config::describe as config_schema;
pub use config::{Config, Field, Json};
pub use dataset::Dataset;
pub use dim::{Dim, IntoShape};
pub use error::Result;
pub use loss::Loss;
pub use model::Model;
pub use optimizer::Optimizer;
pub use param::Param;
pub use sampler::Sampler;
pub use trace::{debug, dry_run, fail, info, remat, scope, warn};
pub use tuner::Tuner;
pub use value::{Value, concat};

#[doc(hidden)]
pub use plugin::{Item, about, enter};

#[doc(hidden)]
pub mod about_world {
    pub use crate::plugin::exports;
    pub use crate::plugin::{__export_about, Guest, Info, Item};
}

/// All that most plugins need.
pub mod prelude {
    pub use crate::dataset::{Part, Sample, Shard, Turn};
    pub use crate::loss::{Batch, CrossEntropySpec, Head, LossOutput, Needs};
    pub use crate::model::{Attention, ConvSpec, ModelPlan, RopeLayout, RopeSpec, Session};
    pub use crate::optimizer::{OptimizerPlan, Step};
    pub use crate::sampler::{Automaton, Constraint, Mask, Matcher, Vocabulary};
    pub use crate::tuner::{AdaptedSite, ExportPlan, Site, SitePlan};
    pub use crate::{
        Config, Dataset, Dim, Dtype, Error, Init, Json, Loss, Mode, Model, Optimizer, Param, ParamDecl, ParamInfo, Result,
        Sampler, SiteInfo, SiteKind, Tuner, Value, concat, config, fail, plugin, scope,
    };
}
