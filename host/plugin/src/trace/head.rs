//! `head`: reductions over the vocabulary without logits.

use swift_graph::op::{Bend, CrossEntropySpec, LinearCrossEntropy, LinearDivergence, LinearStatistic, Statistic, UnaryOp};
use swift_graph::{Float, NodeId};
use wasmtime::component::Resource;

use super::{Ctx, Fault, Trace, Traced, composite};
use crate::bindings::tensor::graph::{Builder, Value};
use crate::bindings::tensor::lm_head::{CeSpec, Head as HeadResource, Host, HostHead};
use crate::bindings::tensor::types::ErrorCode;

impl Host for Ctx {}

impl HostHead for Ctx {
    fn hidden(&mut self, head: Resource<HeadResource>, g: Resource<Builder>) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let head = trace.head(&head)?;
        Ok(trace.value(head.hidden))
    }

    fn token_logprobs(
        &mut self,
        head: Resource<HeadResource>,
        g: Resource<Builder>,
        targets: Resource<Value>,
        spec: CeSpec,
    ) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        if spec.label_smoothing != 0.0 || spec.z_loss != 0.0 {
            let message = "head.token-logprobs: label-smoothing and z-loss belong to a loss and must be 0 here";
            return Err(Fault::new(ErrorCode::BadConfig, message));
        }
        let loss = cross_entropy(trace, &head, &targets, &spec)?;
        let logprob = trace.graph.unary(UnaryOp::Neg, loss)?;
        Ok(trace.value(logprob))
    }

    fn cross_entropy(
        &mut self,
        head: Resource<HeadResource>,
        g: Resource<Builder>,
        targets: Resource<Value>,
        spec: CeSpec,
    ) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let loss = cross_entropy(trace, &head, &targets, &spec)?;
        Ok(trace.value(loss))
    }

    fn entropy(&mut self, head: Resource<HeadResource>, g: Resource<Builder>, spec: CeSpec) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        if spec.label_smoothing != 0.0 || spec.z_loss != 0.0 {
            let message = "head.entropy: label-smoothing and z-loss belong to a loss and must be 0 here";
            return Err(Fault::new(ErrorCode::BadConfig, message));
        }
        let head = trace.head(&head)?;
        let bend = bend("head.entropy", spec.softcap.or(head.softcap), spec.temperature)?;
        statistic(trace, Statistic::Entropy, bend, [head.hidden, head.weight])
    }

    fn logit_mean(&mut self, head: Resource<HeadResource>, g: Resource<Builder>) -> Traced<Resource<Value>> {
        let trace = self.trace()?;
        trace.builder(&g)?;
        let head = trace.head(&head)?;
        let bend = bend("head.logit-mean", head.softcap, 1.0)?;
        statistic(trace, Statistic::Mean, bend, [head.hidden, head.weight])
    }

    fn divergence(
        &mut self,
        head: Resource<HeadResource>,
        g: Resource<Builder>,
        other: Resource<HeadResource>,
        alpha: f32,
        temperature: f32,
    ) -> Traced<Resource<Value>> {
        const FUNCTION: &str = "head.divergence";
        let trace = self.trace()?;
        trace.builder(&g)?;
        let (p, q) = (trace.head(&head)?, trace.head(&other)?);
        let bends = [bend(FUNCTION, p.softcap, temperature)?, bend(FUNCTION, q.softcap, temperature)?];
        let op = LinearDivergence { alpha: Float::from(alpha), bends };
        let divergence = trace.graph.push(op, &[p.hidden, p.weight, q.hidden, q.weight])?;
        Ok(trace.value(divergence))
    }

    fn begin_rows(
        &mut self,
        _: Resource<HeadResource>,
        _: Resource<Builder>,
        _: Vec<Resource<Value>>,
    ) -> Traced<Resource<Builder>> {
        Err(Fault::unsupported("head.begin-rows"))
    }

    fn end_rows(
        &mut self,
        _: Resource<HeadResource>,
        _: Resource<Builder>,
        _: Resource<Builder>,
        _: Vec<Resource<Value>>,
    ) -> Traced<Vec<Resource<Value>>> {
        Err(Fault::unsupported("head.end-rows"))
    }

    fn logits(&mut self, head: Resource<HeadResource>, g: Resource<Builder>) -> Traced<Resource<Value>> {
        if !self.grants.materialize_logits {
            return Err(Fault::new(ErrorCode::Denied, "head.logits: needs the grant `materialize-logits`").hint(
                "[tokens, vocab] takes gigabytes; use `cross-entropy` or `token-logprobs`, or let the user grant it and the manifest ask for it",
            ));
        }
        let trace = self.trace()?;
        trace.builder(&g)?;
        let head = trace.head(&head)?;
        let mut logits = trace.graph.linear(head.hidden, head.weight)?;
        if let Some(cap) = head.softcap {
            let scaled = trace.graph.scale(logits, 1.0 / f64::from(cap))?;
            let soft = trace.graph.unary(UnaryOp::Tanh, scaled)?;
            logits = trace.graph.scale(soft, f64::from(cap))?;
        }
        Ok(trace.value(logits))
    }

    fn drop(&mut self, _: Resource<HeadResource>) -> wasmtime::Result<()> {
        Ok(())
    }
}

fn bend(function: &'static str, softcap: Option<f32>, temperature: f32) -> Traced<Bend> {
    if let Some(cap) = softcap {
        composite::positive(function, "softcap", cap)?;
    }
    composite::positive(function, "temperature", temperature)?;
    Ok(Bend { softcap: softcap.map(Float::from), temperature: temperature.into() })
}

fn statistic(trace: &mut Trace, statistic: Statistic, bend: Bend, head: [NodeId; 2]) -> Traced<Resource<Value>> {
    let value = trace.graph.push(LinearStatistic { statistic, bend }, &head)?;
    Ok(trace.value(value))
}

fn cross_entropy(trace: &mut Trace, head: &Resource<HeadResource>, targets: &Resource<Value>, spec: &CeSpec) -> Traced<NodeId> {
    let head = trace.head(head)?;
    let targets = trace.node(targets)?;
    let softcap = spec.softcap.or(head.softcap);
    if let Some(cap) = softcap {
        composite::positive("head.cross-entropy", "softcap", cap)?;
    }
    let spec = CrossEntropySpec {
        label_smoothing: spec.label_smoothing.into(),
        z_loss: spec.z_loss.into(),
        softcap: softcap.map(Float::from),
        temperature: spec.temperature.into(),
    };
    Ok(trace.graph.push(LinearCrossEntropy { spec, unit_grad: false }, &[head.hidden, head.weight, targets])?)
}
