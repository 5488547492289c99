//! Losses: a scalar from the model's head and the batch's fields.

use std::marker::PhantomData;

use crate::bindings::export_world;
use crate::bindings::swift::plugin::trace_host as raw;
use crate::bindings::swift::tensor::graph as raw_graph;
use crate::bindings::swift::tensor::lm_head as raw_head;
use crate::{Config, Dim, Error, ErrorCode, Result, Value, enter, trace};

export_world!(
    traced "package swift:sdk-loss; world loss { export swift:plugin/loss@0.1.0; }",
    "swift:sdk-loss/loss",
    "swift_sdk::loss",
    "__export_loss"
);

pub use exports::swift::plugin::loss::Needs;
use exports::swift::plugin::loss::{self as kind, Guest};

/// A loss.
pub trait Loss: Config {
    /// Refuses values that make no sense together or out of range.
    ///
    /// # Errors
    /// With what is wrong and what would be right.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What the batch must hold beyond targets, loss weights and segments.
    fn needs(&self) -> Needs {
        Needs::new()
    }

    /// This micro-batch's share of the step's loss, and of its metrics.
    fn trace(&self, batch: &Batch) -> LossOutput;
}

impl Needs {
    /// Nothing.
    pub fn new() -> Needs {
        Needs { fields: Vec::new(), reference: false, teacher: false, paired: false, grants: Vec::new() }
    }

    /// A column of the dataset, as f32 or s32 by token or sequence.
    #[must_use]
    pub fn field(mut self, name: &str) -> Needs {
        self.fields.push(name.into());
        self
    }

    /// The frozen reference policy.
    #[must_use]
    pub fn reference(mut self) -> Needs {
        self.reference = true;
        self
    }

    /// A teacher model.
    #[must_use]
    pub fn teacher(mut self) -> Needs {
        self.teacher = true;
        self
    }

    /// Chosen and rejected answers.
    #[must_use]
    pub fn pairs(mut self) -> Needs {
        self.paired = true;
        self
    }
}

impl Default for Needs {
    fn default() -> Needs {
        Needs::new()
    }
}

/// A loss and the metrics that are logged with it.
pub struct LossOutput {
    loss: Value,
    metrics: Vec<(String, Value)>,
}

impl LossOutput {
    /// The loss, a scalar; it is logged as `loss`.
    pub fn new(loss: Value) -> LossOutput {
        LossOutput { loss, metrics: Vec::new() }
    }

    /// Logs a further scalar. The host adds it up over micro-batches, like the loss.
    #[must_use]
    pub fn metric(mut self, name: &str, value: Value) -> LossOutput {
        self.metrics.push((name.into(), value.stop_grad()));
        self
    }
}

/// A packed mini-batch.
pub struct Batch<'a> {
    raw: &'a raw::Batch,
}

impl Batch<'_> {
    /// The model in training.
    pub fn policy(&self) -> Head {
        Head(Some(self.raw.policy()))
    }

    /// The frozen reference; [`Needs::reference`] asks for it.
    pub fn reference(&self) -> Head {
        self.head(self.raw.reference(), "a reference model")
    }

    /// The teacher; [`Needs::teacher`] asks for it.
    pub fn teacher(&self) -> Head {
        self.head(self.raw.teacher(), "a teacher model")
    }

    fn head(&self, head: Option<raw_head::Head>, what: &str) -> Head {
        if head.is_none() {
            trace::fail(Error::missing(format!("the loss uses {what}, which this run does not have")));
        }
        Head(head)
    }

    /// The next token of each token, s32 `[tokens]`; negative: none.
    pub fn targets(&self) -> Value {
        self.field("targets")
    }

    /// Weight of each token in the loss, f32 `[tokens]`.
    pub fn loss_weights(&self) -> Value {
        self.field("loss-weights")
    }

    /// A field by name: "segments", "chosen" and "rejected" with pairs, and what [`Needs::field`] asked for.
    pub fn field(&self, name: &str) -> Value {
        Value::record(|_| self.raw.field(name))
    }

    /// "tokens" (that count in the loss) or "sequences" of the whole step, micro-batches and ranks together, as an f32 scalar.
    /// Losses divide by these, so that accumulating gradients over micro-batches is exact.
    pub fn total(&self, name: &str) -> Value {
        Value::record(|_| self.raw.total(name))
    }

    /// A size of this micro-batch: "tokens", "sequences", "pairs".
    pub fn dim(&self, name: &str) -> Dim {
        trace::record(|_| self.raw.dim(name)).unwrap_or(Dim::Fixed(1))
    }

    /// Sums of `[tokens]` by sequence: `[sequences]`.
    pub fn sum_by_sequence(&self, per_token: &Value) -> Value {
        per_token.segment_sum(&self.field("segments"), self.dim("sequences"))
    }
}

/// The output projection as losses see it: reductions over the vocabulary, fused with the projection.
pub struct Head(Option<raw_head::Head>);

/// How cross-entropy is taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropySpec {
    /// Share of probability spread over the vocabulary.
    pub label_smoothing: f64,
    /// Weight of log²Z.
    pub z_loss: f64,
}

impl CrossEntropySpec {
    fn raw(self) -> raw_head::CeSpec {
        let (label_smoothing, z_loss) = (self.label_smoothing as f32, self.z_loss as f32);
        raw_head::CeSpec { label_smoothing, z_loss, softcap: None, temperature: 1.0 }
    }
}

impl Head {
    fn record(&self, f: impl FnOnce(&raw_graph::Builder, &raw_head::Head) -> Result<raw_graph::Value>) -> Value {
        match &self.0 {
            Some(head) => Value::record(|g| f(g, head)),
            None => Value::failed(),
        }
    }

    /// Final hidden states `[tokens, d]`.
    pub fn hidden(&self) -> Value {
        self.record(|g, head| head.hidden(g))
    }

    /// log p(target), `[tokens]`; 0 where there is no target.
    pub fn token_logprobs(&self, targets: &Value) -> Value {
        let targets = targets.clone().into_raw();
        self.record(|g, head| match &targets {
            Some(targets) => head.token_logprobs(g, targets, CrossEntropySpec::default().raw()),
            None => Err(Error::new(ErrorCode::Internal, "no targets")),
        })
    }

    /// -log p(target) with smoothing and z-loss, `[tokens]`; 0 where there is no target.
    pub fn cross_entropy(&self, targets: &Value, spec: CrossEntropySpec) -> Value {
        let targets = targets.clone().into_raw();
        self.record(|g, head| match &targets {
            Some(targets) => head.cross_entropy(g, targets, spec.raw()),
            None => Err(Error::new(ErrorCode::Internal, "no targets")),
        })
    }

    /// Entropy of the whole distribution, `[tokens]`.
    pub fn entropy(&self) -> Value {
        self.record(|g, head| head.entropy(g, CrossEntropySpec::default().raw()))
    }

    /// Divergence from another head, `[tokens]`: `alpha` 0 is KL(self|other), 1 KL(other|self), between Jensen-Shannon.
    pub fn divergence(&self, other: &Head, alpha: f64, temperature: f64) -> Value {
        self.record(|g, head| match &other.0 {
            Some(other) => head.divergence(g, other, alpha as f32, temperature as f32),
            None => Err(Error::new(ErrorCode::Internal, "no head")),
        })
    }

    /// All logits `[tokens, vocab]`; needs the grant `materialize-logits`.
    pub fn logits(&self) -> Value {
        self.record(|g, head| head.logits(g))
    }
}

#[doc(hidden)]
pub struct Exported<T>(PhantomData<T>);

impl<T: Loss> Guest for Exported<T> {
    fn needs_for(config: String) -> Result<Needs> {
        enter();
        let loss = T::parse(&config)?;
        loss.check()?;
        Ok(loss.needs())
    }

    fn trace(g: &raw_graph::Builder, b: &raw::Batch, config: String) -> Result<kind::Output> {
        enter();
        let loss = T::parse(&config)?;
        loss.check()?;
        let output = trace::run(g, || {
            let LossOutput { loss, metrics } = loss.trace(&Batch { raw: b });
            let metrics = metrics.into_iter().filter_map(|(name, v)| Some((name, v.into_raw()?))).collect();
            loss.into_raw().map(|loss| kind::Output { loss, metrics })
        })?;
        output.ok_or_else(|| Error::new(ErrorCode::Internal, "the loss gave no value"))
    }
}
