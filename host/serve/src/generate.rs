//! Generation with continuous batching over a KV cache: whenever a sequence ends, the next prompt takes its slot, and its prompt
//! tokens ride along with the other sequences' single tokens in one packed run.

use std::collections::HashSet;
use std::ops::ControlFlow;

use swift_graph::op;
use swift_graph::{Bindings, DType, Dim, Graph, SymbolId, Type};
use swift_plugin::Mode;
use swift_runtime::{Device, HostTensor, Inputs, Store};

use crate::{AdaptedModel, Program, Result, Sampling, ServeError};

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A stop token came.
    Token,
    /// The limit on new tokens or the cache's capacity was reached.
    Length,
    /// The caller said so.
    Caller,
}

/// A finished sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// New tokens, without the stop token.
    pub tokens: Vec<i32>,
    /// Why it ended.
    pub stop: Stop,
}

/// One compiled decoding graph and its cache.
pub struct Generator {
    program: Program,
    slots: usize,
    capacity: usize,
}

struct Sequence {
    prompt: usize,
    /// Tokens that are not in the cache yet: the prompt at first, then the token drawn last.
    pending: Vec<i32>,
    cached: usize,
    tokens: Vec<i32>,
}

impl Generator {
    /// Traces and compiles decoding for `slots` sequences of at most `capacity` tokens, prompt included, and reserves the cache.
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
        let traced = model.trace(Mode::Decode)?;
        let mut g = Graph::default();
        let (head, _) = model.splice(&mut g, &traced, true, false)?;
        let rows = g.input("rows", Type::new(DType::S32, vec![Dim::symbol(SymbolId::SEQUENCES)]))?;
        let last = g.push(op::GatherRows, &[head.hidden, rows])?;
        let logits = g.linear(last, head.weight)?;
        let logits = capped(&mut g, logits, head.softcap)?;
        g.outputs.push(("logits".into(), logits));
        let bindings = bindings(1, 1, slots, capacity);
        for state in g.caches().into_iter().map(|id| &g.states()[id.index()]) {
            store.ensure_cache(&state.name, state.ty.dtype, &state.ty.shape.eval(&bindings)?)?;
        }
        Ok(Generator { program: Program::compile(device, store, g)?, slots, capacity })
    }

    /// Arena bytes of a packed run of `tokens` tokens over all slots.
    ///
    /// # Errors
    /// When a size overflows.
    pub fn peak_bytes(&self, tokens: usize) -> Result<usize> {
        Ok(self.program.main.peak_bytes(&self.bindings(tokens.max(1), self.slots.min(tokens.max(1))))?)
    }

    fn bindings(&self, tokens: usize, sequences: usize) -> Bindings {
        bindings(tokens, sequences, self.slots, self.capacity)
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
        for (i, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() || prompt.len() >= self.capacity {
                return Err(ServeError::Request(format!(
                    "prompt {i} has {} tokens; it needs at least 1 and must leave room in a cache of {}",
                    prompt.len(),
                    self.capacity
                )));
            }
        }
        self.program.refresh(store)?;
        let mut done: Vec<Option<Generated>> = prompts.iter().map(|_| None).collect();
        let mut slots: Vec<Option<Sequence>> = (0..self.slots).map(|_| None).collect();
        let mut next = 0;
        loop {
            for slot in slots.iter_mut().filter(|s| s.is_none()) {
                if next == prompts.len() {
                    break;
                }
                *slot = Some(Sequence { prompt: next, pending: prompts[next].clone(), cached: 0, tokens: Vec::new() });
                next += 1;
            }
            if slots.iter().all(Option::is_none) {
                break;
            }
            let logits = self.step(store, &mut slots)?;
            let vocab = logits.len() / slots.iter().flatten().count();
            for (row, slot) in slots.iter_mut().filter(|s| s.is_some()).enumerate() {
                let Some(sequence) = slot else { continue };
                let row = &logits[row * vocab..(row + 1) * vocab];
                let token = sampling.draw(row, sequence.prompt as u64, sequence.tokens.len() as u64);
                let stop = if stop_tokens.contains(&token) {
                    Some(Stop::Token)
                } else {
                    sequence.tokens.push(token);
                    sequence.pending = vec![token];
                    let full = sequence.tokens.len() >= max_new_tokens || sequence.cached + 1 >= self.capacity;
                    match on_token(sequence.prompt, token) {
                        ControlFlow::Break(()) => Some(Stop::Caller),
                        ControlFlow::Continue(()) => full.then_some(Stop::Length),
                    }
                };
                if let Some(stop) = stop {
                    done[sequence.prompt] = Some(Generated { tokens: std::mem::take(&mut sequence.tokens), stop });
                    *slot = None;
                }
            }
        }
        Ok(done.into_iter().flatten().collect())
    }

    /// Runs all pending tokens; returns the logits of each live sequence's last token, in slot order.
    fn step(&mut self, store: &mut Store, slots: &mut [Option<Sequence>]) -> Result<Vec<f32>> {
        let (mut ids, mut positions, mut segments, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (slot, sequence) in slots.iter_mut().enumerate() {
            let Some(sequence) = sequence else { continue };
            for token in sequence.pending.drain(..) {
                ids.push(token);
                positions.push(sequence.cached as i32);
                segments.push(slot as i32);
                sequence.cached += 1;
            }
            rows.push(ids.len() as i32 - 1);
        }
        let bindings = self.bindings(ids.len(), rows.len());
        let mut inputs = Inputs::default();
        for (name, values) in [("ids", ids), ("positions", positions), ("segments", segments), ("rows", rows)] {
            inputs.set(name, HostTensor::i32([values.len()], values));
        }
        // Every slot has pages of its own.
        let columns = columns(self.capacity);
        inputs.set("pages", HostTensor::i32([self.slots, columns], (0..(self.slots * columns) as i32).collect()));
        let mut outputs = self.program.main.run(store, &bindings, &inputs)?;
        match outputs.take("logits")? {
            HostTensor::F32 { data, .. } => Ok(data),
            HostTensor::I32 { .. } => Err(ServeError::Request("the decoding graph gave no float logits".into())),
        }
    }
}

/// Pages of a cache that hold a sequence.
fn columns(capacity: usize) -> usize {
    capacity.div_ceil(op::CachedAttention::PAGE as usize)
}

fn bindings(tokens: usize, sequences: usize, slots: usize, capacity: usize) -> Bindings {
    Bindings::new()
        .with(SymbolId::TOKENS, tokens as u64)
        .with(SymbolId::SEQUENCES, sequences as u64)
        .with(SymbolId::SLOTS, slots as u64)
        .with(SymbolId::CAPACITY, columns(capacity) as u64)
        .with(SymbolId::PAGES, (slots * columns(capacity)) as u64)
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
