//! Models: parameters, where a checkpoint holds them, and the forward pass.

use std::collections::BTreeSet;
use std::marker::PhantomData;

use crate::bindings::export_world;
use crate::bindings::swift::plugin::trace_host as raw;
use crate::bindings::swift::tensor::graph::{AttnSpec, MaskSpec, Value as RawValue};
pub use crate::bindings::swift::tensor::graph::{ConvSpec, RopeLayout, RopeSpec};
use crate::{Config, Dim, Error, Init, Mode, Param, ParamDecl, Result, Value, enter, trace};

export_world!(
    traced "package swift:sdk-model; world model { export swift:plugin/model@0.1.0; }",
    "swift:sdk-model/model",
    "swift_sdk::model",
    "__export_model"
);

pub use exports::swift::plugin::model::Recipe;
use exports::swift::plugin::model::{Binding, CacheDecl, Guest, Plan};

/// A model family. Its configuration is the checkpoint's `config.json`.
pub trait Model: Config {
    /// Parameters, their checkpoint tensors, and caches.
    ///
    /// # Errors
    /// For a configuration that the family does not cover.
    fn plan(&self) -> Result<ModelPlan>;

    /// The forward pass, from "ids" to [`Session::head`]. Called once per mode.
    ///
    /// # Errors
    /// For a configuration that the family does not cover.
    fn trace(&self, session: &Session) -> Result<()>;
}

/// Parameters and caches of a model, in the order declared.
#[derive(Default)]
pub struct ModelPlan {
    params: Vec<ParamDecl>,
    bindings: Vec<Binding>,
    caches: Vec<CacheDecl>,
}

impl ModelPlan {
    /// Empty.
    pub fn new() -> ModelPlan {
        ModelPlan::default()
    }

    /// A parameter that a checkpoint holds under the same name.
    pub fn param(&mut self, name: String, shape: &[u64], init: Init, tags: &[&str]) {
        self.bindings.push(Binding { param: name.clone(), source: Recipe::Whole(name.clone()) });
        let tags = tags.iter().map(|t| (*t).to_string()).collect();
        self.params.push(ParamDecl { name, shape: shape.to_vec(), init, tied_to: None, tags });
    }

    /// A parameter made of checkpoint tensors with other names or layouts.
    pub fn param_from(&mut self, decl: ParamDecl, source: Recipe) {
        self.bindings.push(Binding { param: decl.name.clone(), source });
        self.params.push(decl);
    }

    /// Weight (and bias) of a linear layer for [`Session::linear`]; `std` is the deviation of the start.
    pub fn linear(&mut self, path: &str, d_out: u64, d_in: u64, bias: bool, std: f32) {
        self.param(format!("{path}.weight"), &[d_out, d_in], Init::Normal(std), &[]);
        if bias {
            self.param(format!("{path}.bias"), &[d_out], Init::Zeros, &["no-decay"]);
        }
    }

    /// Filters (and bias) of a convolution for [`Session::conv`]: `d_in` is what a filter sees, channels by groups; `kernel` its size.
    pub fn conv(&mut self, path: &str, d_out: u64, d_in: u64, kernel: &[u64], bias: bool, std: f32) {
        let shape = [&[d_out, d_in], kernel].concat();
        self.param(format!("{path}.weight"), &shape, Init::Normal(std), &[]);
        if bias {
            self.param(format!("{path}.bias"), &[d_out], Init::Zeros, &["no-decay"]);
        }
    }

    /// Token table for [`Session::embed`].
    pub fn embedding(&mut self, path: &str, vocab: u64, d: u64, std: f32) {
        self.param(format!("{path}.weight"), &[vocab, d], Init::Normal(std), &["embedding"]);
    }

    /// Output projection for [`Session::head`].
    pub fn head(&mut self, path: &str, vocab: u64, d: u64, std: f32) {
        self.param(format!("{path}.weight"), &[vocab, d], Init::Normal(std), &["head"]);
    }

    /// Weight of a norm for [`Session::rms_norm`].
    pub fn norm(&mut self, path: &str, d: u64) {
        self.param(format!("{path}.weight"), &[d], Init::Ones, &["norm", "no-decay"]);
    }

    /// Whether a parameter of that name is declared.
    pub fn declares(&self, name: &str) -> bool {
        self.params.iter().any(|p| p.name == name)
    }

    /// Keys and values of one layer.
    pub fn cache(&mut self, layer: u32, kv_heads: u32, head_dim: u32) {
        self.caches.push(CacheDecl { layer, kv_heads, head_dim, window: None, latent_dim: None });
    }

    fn names(&self) -> BTreeSet<String> {
        self.params.iter().map(|p| p.name.clone()).collect()
    }
}

/// Scaled dot-product attention over packed sequences. `..Attention::default()` is causal and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Factor of the scores, usually 1/√head_dim.
    pub scale: f32,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Tokens see no later ones.
    pub causal: bool,
    /// Only tokens nearer than this are seen: the last so many, the own one included, if causal.
    pub window: Option<u32>,
    /// Only tokens in the same block of this many are seen.
    pub chunk: Option<u32>,
    /// First tokens that neither window nor chunk hides.
    pub pinned: u32,
}

impl Default for Attention {
    fn default() -> Attention {
        Attention { scale: 1.0, softcap: None, causal: true, window: None, chunk: None, pinned: 0 }
    }
}

/// A forward trace.
pub struct Session<'a> {
    raw: &'a raw::Session,
    params: BTreeSet<String>,
}

impl Session<'_> {
    /// Training, prefill, decoding or encoding.
    pub fn mode(&self) -> Mode {
        self.raw.mode()
    }

    /// Tokens of the packed batch.
    pub fn tokens(&self) -> Dim {
        trace::record(|_| self.raw.dim("tokens")).unwrap_or(Dim::Fixed(1))
    }

    /// Sequences of the packed batch.
    pub fn sequences(&self) -> Dim {
        trace::record(|_| self.raw.dim("sequences")).unwrap_or(Dim::Fixed(1))
    }

    /// An input by name: "ids", "positions", "segments" (s32 `[tokens]`), "pixels", ...
    pub fn input(&self, name: &str) -> Value {
        Value::record(|_| {
            self.raw.input(name)?.ok_or_else(|| Error::missing(format!("the model reads `{name}`, which this run does not have")))
        })
    }

    /// A parameter of the plan.
    pub fn param(&self, name: &str) -> Param {
        Param::new(trace::record(|_| self.raw.param(name)))
    }

    /// Rows of the table `<path>.weight`.
    pub fn embed(&self, path: &str, ids: &Value) -> Value {
        match &self.param(&format!("{path}.weight")).0 {
            Some(w) => ids.map(|_, ids| self.raw.embed(path, w, ids)),
            None => Value::failed(),
        }
    }

    /// `x · <path>.weightᵀ`, plus `<path>.bias` where the plan declares one. Tuners adapt these sites, by `path`.
    pub fn linear(&self, path: &str, x: &Value) -> Value {
        let bias = self.bias(path);
        let bias = bias.as_ref().and_then(|b| b.0.as_deref());
        match &self.param(&format!("{path}.weight")).0 {
            Some(w) => x.map(|_, x| self.raw.linear(path, w, bias, x)),
            None => Value::failed(),
        }
    }

    /// Convolution of x `[batch, channels, (height,) width]` with the filters `<path>.weight` `[out, channels / groups, (height,) width]`,
    /// plus `<path>.bias` where the plan declares one.
    pub fn conv(&self, path: &str, x: &Value, spec: &ConvSpec) -> Value {
        let bias = self.bias(path);
        let bias = bias.as_ref().and_then(|b| b.0.as_deref());
        match &self.param(&format!("{path}.weight")).0 {
            Some(w) => x.map(|_, x| self.raw.conv(path, w, bias, x, spec)),
            None => Value::failed(),
        }
    }

    /// `<path>.bias`, where the plan declares it.
    fn bias(&self, path: &str) -> Option<Param> {
        let name = format!("{path}.bias");
        self.params.contains(&name).then(|| self.param(&name))
    }

    /// Row i of x `[n, in]` by the matrices `experts[i, ..]` (s32 `[n, k]`) of `<path>.weight` `[e, out, in]`: `[n, k, out]`.
    /// What an expert's second layer reads has one choice a row: `[n · k, in]` with experts `[n · k, 1]`.
    pub fn grouped_linear(&self, path: &str, x: &Value, experts: &Value) -> Value {
        match &self.param(&format!("{path}.weight")).0 {
            Some(w) => x.map2(experts, |_, x, experts| self.raw.grouped_linear(path, w, x, experts)),
            None => Value::failed(),
        }
    }

    /// RMS norm with `<path>.weight`.
    pub fn rms_norm(&self, path: &str, x: &Value, eps: f64) -> Value {
        x.rms_norm(&self.param(&format!("{path}.weight")), eps)
    }

    /// Turns x `[tokens, heads, head_dim]` by the tokens' positions.
    pub fn rope(&self, x: &Value, spec: &RopeSpec) -> Value {
        let positions = self.input("positions");
        x.map2(&positions, |g, x, positions| g.rope(x, positions, spec))
    }

    /// Attention of q `[tokens, heads, d]` over k `[tokens, kv_heads, d]` and v `[tokens, kv_heads, e]` and, in prefill and decode,
    /// the layer's cache: `[tokens, heads, e]`.
    pub fn attention(&self, layer: u32, q: &Value, k: &Value, v: &Value, spec: Attention) -> Value {
        self.attend(layer, q, k, v, spec, None)
    }

    /// Attention with a bias: `[heads, tokens, tokens]` is added to the scores (slow, and not in prefill or decode); `[heads]` is for
    /// each head the score of one more key, whose value is zero (learned sinks).
    pub fn attention_biased(&self, layer: u32, q: &Value, k: &Value, v: &Value, spec: Attention, bias: &Value) -> Value {
        match bias.clone().into_raw() {
            Some(bias) => self.attend(layer, q, k, v, spec, Some(&bias)),
            None => Value::failed(),
        }
    }

    fn attend(&self, layer: u32, q: &Value, k: &Value, v: &Value, spec: Attention, bias: Option<&RawValue>) -> Value {
        let Attention { causal, window, chunk, pinned, .. } = spec;
        let mask = MaskSpec { causal, window, chunk, sinks: pinned, by_segment: true };
        let spec = AttnSpec { scale: spec.scale, softcap: spec.softcap, mask, dropout: 0.0 };
        let cache = trace::record(|_| Ok(self.raw.cache(layer))).flatten();
        let k = k.clone().into_raw();
        let v = v.clone().into_raw();
        match k.zip(v) {
            Some((k, v)) => q.map(|g, q| g.attention(q, &k, &v, spec, bias, cache.as_ref())),
            None => Value::failed(),
        }
    }

    /// The end of a language model: final hidden states `[tokens, d]` and the projection `<path>.weight` `[vocab, d]`; with a cap the
    /// logits are `cap · tanh(logit / cap)`.
    pub fn head(&self, path: &str, hidden: &Value, softcap: Option<f32>) {
        let hidden = hidden.clone().into_raw();
        if let (Some(w), Some(hidden)) = (&self.param(&format!("{path}.weight")).0, hidden) {
            trace::record(|_| self.raw.set_head(&hidden, w, softcap));
        }
    }

    /// A named result, for models that do not end in a vocabulary.
    pub fn output(&self, name: &str, value: &Value) {
        if let Some(value) = value.clone().into_raw() {
            trace::record(|_| self.raw.set_output(name, &value));
        }
    }
}

#[doc(hidden)]
pub struct Exported<T>(PhantomData<T>);

impl<T: Model> Guest for Exported<T> {
    fn plan_for(config: String) -> Result<Plan> {
        enter();
        let ModelPlan { params, bindings, caches } = T::parse(&config)?.plan()?;
        let inputs = ["ids", "positions", "segments"].map(String::from).to_vec();
        Ok(Plan { params, bindings, caches, inputs })
    }

    fn trace(s: &raw::Session, config: String) -> Result<()> {
        enter();
        let model = T::parse(&config)?;
        let params = model.plan()?.names();
        trace::run(&s.g(), || model.trace(&Session { raw: s, params }))?
    }
}
