//! Token-level generation for training's questions, and logits of whole sequences.

use std::collections::HashSet;
use std::ops::ControlFlow;

use swift_graph::op;
use swift_graph::{Bindings, Graph, SymbolId};
use swift_plugin::Mode;
use swift_runtime::{Device, HostTensor, Inputs, Store};

use crate::{AdaptedModel, Engine, EngineOptions, Program, Request, Result, Sampling, ServeError, Stop};

/// A finished sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// New tokens, without the stop token.
    pub tokens: Vec<i32>,
    /// Why it ended.
    pub stop: Stop,
}

/// An engine that continues lists of prompts.
pub struct Generator {
    engine: Engine,
}

impl Generator {
    /// Traces and compiles decoding for `slots` sequences of at most `capacity` tokens, prompt included, in exact arithmetic, and
    /// reserves the cache.
    ///
    /// # Errors
    /// When a plugin fails, the model has no cache, or memory runs out.
    pub fn new(
        model: &mut AdaptedModel,
        device: &dyn Device,
        store: &mut Store,
        slots: usize,
        capacity: usize,
    ) -> Result<Generator> {
        Generator::with_options(model, device, store, EngineOptions::new(slots, capacity))
    }

    /// As [`Generator::new`], with other arithmetic or another cache.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn with_options(
        model: &mut AdaptedModel,
        device: &dyn Device,
        store: &mut Store,
        options: EngineOptions,
    ) -> Result<Generator> {
        Ok(Generator { engine: Engine::new(model, device, store, options, None)? })
    }

    /// Arena bytes of a packed run of `tokens` tokens over all slots.
    ///
    /// # Errors
    /// When a size overflows.
    pub fn peak_bytes(&self, tokens: usize) -> Result<usize> {
        self.engine.peak_bytes(tokens)
    }

    /// Continues every prompt. `on_token` hears of each new token as (prompt index, token) and may end that sequence.
    ///
    /// # Errors
    /// When a prompt is empty or does not fit the cache, or the device fails.
    pub fn generate(
        &mut self,
        store: &mut Store,
        prompts: &[Vec<i32>],
        max_new_tokens: usize,
        stop_tokens: &HashSet<i32>,
        sampling: &Sampling,
        mut on_token: impl FnMut(usize, i32) -> ControlFlow<()>,
    ) -> Result<Vec<Generated>> {
        let mut made = vec![Generated { tokens: Vec::new(), stop: Stop::Caller }; prompts.len()];
        let stop_tokens: Vec<i32> = stop_tokens.iter().copied().collect();
        let mut ids = Vec::with_capacity(prompts.len());
        for (i, prompt) in prompts.iter().enumerate() {
            let mut request = Request::new(prompt.clone(), max_new_tokens);
            (request.sampling, request.stop_tokens, request.stream) = (sampling.clone(), stop_tokens.clone(), i as u64);
            let id = self.engine.submit(request).inspect_err(|_| {
                for &id in &ids {
                    self.engine.cancel(id);
                }
            })?;
            ids.push(id);
        }
        self.engine.refresh(store)?;
        self.engine.drain(store, |update| {
            let Ok(at) = ids.binary_search(&update.request) else { return ControlFlow::Break(()) };
            let mut flow = ControlFlow::Continue(());
            if let Some(token) = &update.token {
                made[at].tokens.push(token.id);
                flow = on_token(at, token.id);
            }
            if let (Some(stop), ControlFlow::Continue(())) = (update.finished, flow) {
                made[at].stop = stop;
            }
            flow
        })?;
        Ok(made)
    }
}

/// `cap·tanh(x/cap)`, where there is a cap.
pub(crate) fn capped(g: &mut Graph, x: swift_graph::NodeId, cap: Option<f32>) -> Result<swift_graph::NodeId> {
    let Some(cap) = cap else { return Ok(x) };
    let small = g.scale(x, 1.0 / f64::from(cap))?;
    let bent = g.unary(op::UnaryOp::Tanh, small)?;
    Ok(g.scale(bent, f64::from(cap))?)
}

/// Logits of every token of one sequence, `[tokens, vocab]` f32: for comparison with other software.
///
/// # Errors
/// When a plugin or the device fails, or a token is outside the vocabulary.
pub fn logits(model: &mut AdaptedModel, device: &dyn Device, store: &mut Store, tokens: &[i32]) -> Result<HostTensor> {
    let traced = model.trace(Mode::Train)?;
    let mut g = Graph::default();
    let (head, _) = model.splice(&mut g, &traced, true, false)?;
    let logits = g.linear(head.hidden, head.weight)?;
    let logits = capped(&mut g, logits, head.softcap)?;
    g.outputs.push(("logits".into(), logits));
    run_one(device, store, g, tokens, "logits")
}

/// A named output of an encoder for every token of one sequence, `[tokens, d]` f32: BERT's "last_hidden_state".
///
/// # Errors
/// When a plugin or the device fails, the model has no such output, or a token is outside the vocabulary.
pub fn encode(
    model: &mut AdaptedModel,
    device: &dyn Device,
    store: &mut Store,
    tokens: &[i32],
    output: &str,
) -> Result<HostTensor> {
    let traced = model.trace(Mode::Encode)?;
    let Some((_, value)) = traced.outputs.iter().find(|(name, _)| name == output) else {
        let named: Vec<&str> = traced.outputs.iter().map(|(name, _)| name.as_str()).collect();
        return Err(ServeError::Request(format!("the model has no output `{output}`; it has: {}", named.join(", "))));
    };
    let mut g = Graph::default();
    let map = model.inline(&mut g, &traced, true, false)?;
    g.outputs = vec![(output.to_string(), map[value.index()])];
    run_one(device, store, g, tokens, output)
}

fn run_one(device: &dyn Device, store: &mut Store, g: Graph, tokens: &[i32], output: &str) -> Result<HostTensor> {
    let mut program = Program::compile(device, store, g)?;
    let n = tokens.len();
    let bindings = Bindings::new().with(SymbolId::TOKENS, n as u64).with(SymbolId::SEQUENCES, 1);
    let mut inputs = Inputs::default();
    let column = |values: Vec<i32>| HostTensor::I32 { shape: vec![n], data: values };
    inputs.set("ids", column(tokens.to_vec()));
    inputs.set("positions", column((0..n as i32).collect()));
    inputs.set("segments", column(vec![0; n]));
    program.refresh(store)?;
    Ok(program.main.run(store, &bindings, &inputs)?.take(output)?)
}
