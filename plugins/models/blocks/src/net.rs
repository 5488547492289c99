//! The forward pass under construction: a place in the model's module tree where layers are called by name.

use std::cell::RefCell;

use swift_sdk::model::{Attention, ModelPlan, Recipe, RopeSpec, Session};
use swift_sdk::{Dim, Init, Mode, ParamDecl, Result, Value, dry_run, scope};

use crate::Norm;

/// Bound on the slots of a cache.
const MOST_SLOTS: u64 = 4096;

/// Sizes of a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    d_in: u64,
    d_out: u64,
    bias: bool,
    transposed: bool,
}

impl Linear {
    /// From `d_in` to `d_out`, without a bias.
    pub fn new(d_in: u64, d_out: u64) -> Linear {
        Linear { d_in, d_out, bias: false, transposed: false }
    }

    /// With a bias, if the configuration says so.
    #[must_use]
    pub fn bias(self, bias: bool) -> Linear {
        Linear { bias, ..self }
    }

    /// Checkpoints hold the weight as `[in, out]` (GPT-2's `Conv1D`).
    #[must_use]
    pub fn stored_transposed(self) -> Linear {
        Linear { transposed: true, ..self }
    }
}

/// A module path, below which layers are called by name. The same calls either declare the layers' parameters or compute.
pub struct Net<'a> {
    /// None while parameters are declared.
    session: Option<&'a Session<'a>>,
    plan: &'a RefCell<ModelPlan>,
    std: f32,
    path: String,
}

impl Net<'_> {
    pub(crate) fn planning(std: f32, forward: impl FnOnce(&Net) -> Result<()>) -> Result<ModelPlan> {
        let plan = RefCell::new(ModelPlan::new());
        dry_run(|| forward(&Net { session: None, plan: &plan, std, path: String::new() }))??;
        Ok(plan.into_inner())
    }

    pub(crate) fn tracing(session: &Session, std: f32, forward: impl FnOnce(&Net) -> Result<()>) -> Result<()> {
        let plan = RefCell::new(ModelPlan::new());
        forward(&Net { session: Some(session), plan: &plan, std, path: String::new() })
    }

    /// The module of that name.
    #[must_use]
    pub fn at(&self, name: &str) -> Net<'_> {
        Net { path: self.join(name), ..*self }
    }

    /// Runs `f` on the module of that name, which messages and dumps name as well.
    pub fn within(&self, name: &str, f: impl FnOnce(&Net) -> Value) -> Value {
        scope(name, || f(&self.at(name)))
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// The call's result while tracing; an empty value, after `declare`, while planning.
    fn layer(&self, declare: impl FnOnce(&mut ModelPlan), call: impl FnOnce(&Session) -> Value) -> Value {
        match self.session {
            Some(session) => call(session),
            None => {
                declare(&mut self.plan.borrow_mut());
                Value::from(0.0)
            }
        }
    }

    /// Whether keys and values go through a cache in this trace.
    pub fn is_cached(&self) -> bool {
        self.session.is_some_and(|s| matches!(s.mode(), Mode::Prefill | Mode::Decode))
    }

    /// For each token, how long its sequence is at the end of this run: f32 `[tokens]`.
    pub fn lengths(&self) -> Value {
        let count = |s: &Session| match s.mode() {
            // Segments are slots of the cache there.
            Mode::Prefill | Mode::Decode => Dim::Fixed(MOST_SLOTS),
            Mode::Train | Mode::Encode => s.sequences(),
        };
        self.layer(
            |_| (),
            |s| {
                let segments = s.input("segments");
                let last = s.input("positions").to_f32().segment_max(&segments, count(s));
                last.gather(&segments) + 1.0
            },
        )
    }

    /// Tokens of the packed batch.
    pub fn tokens(&self) -> Dim {
        self.session.map_or(Dim::Fixed(1), Session::tokens)
    }

    /// An input by name: "ids", "positions", "segments" (s32 `[tokens]`).
    pub fn input(&self, name: &str) -> Value {
        self.layer(|_| (), |s| s.input(name))
    }

    /// A linear layer: `x · Wᵀ + b`. Tuners adapt it by its path.
    pub fn linear(&self, name: &str, x: &Value, spec: Linear) -> Value {
        let path = self.join(name);
        let declare = |plan: &mut ModelPlan| {
            if !spec.transposed {
                return plan.linear(&path, spec.d_out, spec.d_in, spec.bias, self.std);
            }
            let weight = format!("{path}.weight");
            let shape = vec![spec.d_out, spec.d_in];
            let decl = ParamDecl { name: weight.clone(), shape, init: Init::Normal(self.std), tied_to: None, tags: Vec::new() };
            plan.param_from(decl, Recipe::Transposed(weight));
            if spec.bias {
                plan.param(format!("{path}.bias"), &[spec.d_out], Init::Zeros, &["no-decay"]);
            }
        };
        self.layer(declare, |s| s.linear(&path, x))
    }

    /// Rows of a table `[rows, d]`.
    pub fn embed(&self, name: &str, ids: &Value, rows: u64, d: u64) -> Value {
        let path = self.join(name);
        self.layer(|plan| plan.embedding(&path, rows, d, self.std), |s| s.embed(&path, ids))
    }

    /// A norm over the last axis.
    pub fn norm(&self, name: &str, x: &Value, norm: Norm) -> Value {
        let path = self.join(name);
        self.layer(|plan| norm.declare(plan, &path), |s| norm.apply(s, &path, x))
    }

    /// A dense tensor `[sizes]` that no call site covers, of the parameter `name`.
    pub fn tensor(&self, name: &str, shape: &[u64], init: Init, tags: &[&str]) -> Value {
        let path = self.join(name);
        self.layer(|plan| plan.param(path.clone(), shape, init, tags), |s| s.param(&path).read())
    }

    /// A fresh matrix is random: [`Net::tensor`] with the deviation of the model's weights.
    pub fn matrix(&self, name: &str, shape: &[u64], tags: &[&str]) -> Value {
        self.tensor(name, shape, Init::Normal(self.std), tags)
    }

    /// A linear layer for each of `count` experts, `<i>.<name>` in checkpoints; row i of x `[n, in]` goes through those of
    /// `experts[i, ..]`, s32 `[n, k]`: `[n, k, out]`.
    pub fn grouped_linear(&self, name: &str, x: &Value, experts: &Value, count: u64, spec: Linear) -> Value {
        let path = self.join(name);
        let declare = |plan: &mut ModelPlan| {
            let shape = vec![count, spec.d_out, spec.d_in];
            let init = Init::Normal(self.std);
            let decl = ParamDecl { name: format!("{path}.weight"), shape, init, tied_to: None, tags: Vec::new() };
            let parts = (0..count).map(|i| self.join(&format!("{i}.{name}.weight"))).collect();
            plan.param_from(decl, Recipe::Stacked(parts));
        };
        self.layer(declare, |s| s.grouped_linear(&path, x, experts))
    }

    /// The same as [`Net::tensor`], stacked from the checkpoint's tensors `parts`.
    pub fn stacked(&self, name: &str, parts: &[String], shape: &[u64], init: Init, tags: &[&str]) -> Value {
        let path = self.join(name);
        let declare = |plan: &mut ModelPlan| {
            let tags = tags.iter().map(|t| (*t).to_string()).collect();
            let decl = ParamDecl { name: path.clone(), shape: shape.to_vec(), init, tied_to: None, tags };
            plan.param_from(decl, Recipe::Stacked(parts.iter().map(|part| self.join(part)).collect()));
        };
        self.layer(declare, |s| s.param(&path).read())
    }

    pub(crate) fn rope(&self, x: &Value, spec: &RopeSpec) -> Value {
        self.layer(|_| (), |s| s.rope(x, spec))
    }

    /// Attention of a layer; see [`Session::attention`].
    pub(crate) fn attention(&self, layer: u32, q: &Value, k: &Value, v: &Value, heads: (u64, u64), spec: Attention) -> Value {
        let declare = |plan: &mut ModelPlan| {
            if spec.causal {
                plan.cache(layer, heads.0 as u32, heads.1 as u32);
            }
        };
        self.layer(declare, |s| s.attention(layer, q, k, v, spec))
    }

    /// The end of a language model: logits are `hidden · Wᵀ` with the projection `<name>.weight` `[vocab, d]`, which is declared unless
    /// it is a table that was declared before (tied embeddings), and capped by `softcap`.
    pub fn head(&self, name: &str, hidden: &Value, vocab: u64, d: u64, softcap: Option<f64>) {
        let path = self.join(name);
        match self.session {
            Some(session) => session.head(&path, hidden, softcap.map(|c| c as f32)),
            None => {
                let mut plan = self.plan.borrow_mut();
                if !plan.declares(&format!("{path}.weight")) {
                    plan.head(&path, vocab, d, self.std);
                }
            }
        }
    }

    /// A named result, for models that do not end in a vocabulary.
    pub fn output(&self, name: &str, value: &Value) {
        if let Some(session) = self.session {
            session.output(name, value);
        }
    }
}
