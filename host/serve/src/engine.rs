//! The generation engine: requests come and go between steps, and every step advances all of them.
//!
//! ```text
//! submit -> queue -> slot: prefill in chunks -> one token a step -> finished -> slot and pages are free
//! ```
//!
//! A step never waits for a long prompt: prompts enter the cache a chunk at a time, beside the tokens of sequences that are already
//! answering ([continuous batching](https://www.usenix.org/conference/osdi22/presentation/yu), Yu et al. 2022; chunked prefill,
//! Agrawal et al. 2023).
//!
//! **Invariant:** what is drawn for a request depends on its logits and its own seed, never on its neighbours. With
//! [`Batching::Reproducible`] its logits do not either, bit by bit.

use std::sync::Arc;

use swift_data::Tokenizer;
use swift_graph::DType;
use swift_plugin::Plugin;
use swift_runtime::{Device, Precision, Profile, Store};

use crate::decoder::{Decoder, DecoderOptions, Packed, columns};
use crate::plugged::{Draw, Row, SamplerId, Samplers};
use crate::sampling::log_probabilities;
use crate::schedule::{Counters, Scheduler, Sequence, Share};
use crate::{AdaptedModel, History, Result, Sampling, ServeError};

/// How sequences share runs of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Batching {
    /// All tokens of a step in one run.
    #[default]
    Throughput,
    /// Every sequence in runs of its own, prompts in chunks that depend on the prompt only: a request's logits are then bitwise the
    /// same whatever else is being answered. Exact products sum a row in an order that depends on how many rows there are, so nothing
    /// less will do; answers of several sequences together are slower by far.
    Reproducible,
}

/// What keys and values are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// Single precision: nothing is rounded.
    #[default]
    F32,
    /// Half precision, half the memory.
    F16,
    /// 8 bits with a factor for each token of a head, about a quarter of the memory.
    Int8,
}

impl CacheType {
    fn dtype(self) -> DType {
        match self {
            CacheType::F32 => DType::F32,
            CacheType::F16 => DType::F16,
            CacheType::Int8 => DType::S8,
        }
    }
}

/// Sizes of an engine, and how it computes.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Sequences that are answered at once.
    pub slots: usize,
    /// Tokens of one sequence, prompt included.
    pub capacity: usize,
    /// Prompt tokens that are run at once; bounds memory, and how long a step takes.
    pub chunk: usize,
    /// How sequences share runs.
    pub batching: Batching,
    /// Arithmetic of products with quantized weights.
    pub precision: Precision,
    /// What keys and values are stored as.
    pub cache: CacheType,
    /// Tokens that the cache holds, of all sequences together: at least one sequence of full length. Where there are fewer than
    /// `slots x capacity`, sequences wait for each other. `None` for as many as that.
    pub cache_tokens: Option<usize>,
    /// Whether sequences that begin alike compute their common beginning once, as far as it fills pages of 64 tokens.
    pub share_prefixes: bool,
}

impl EngineOptions {
    /// Prompt tokens that are run at once unless said otherwise. More make a prompt no faster, and activations take room for each.
    pub const CHUNK: usize = 256;

    /// Exact arithmetic, a cache in f32, shared beginnings.
    pub fn new(slots: usize, capacity: usize) -> EngineOptions {
        EngineOptions {
            slots,
            capacity,
            chunk: EngineOptions::CHUNK,
            batching: Batching::default(),
            precision: Precision::default(),
            cache: CacheType::default(),
            cache_tokens: None,
            share_prefixes: true,
        }
    }
}

/// What is to be continued, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tokens.
    pub prompt: Vec<i32>,
    /// At least 1. The capacity may end an answer earlier.
    pub max_new_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens that end the answer and are not part of it.
    pub stop_tokens: Vec<i32>,
    /// Sampler plugins, in the order in which their transforms apply; what all of their matchers allow may come.
    pub samplers: Vec<SamplerId>,
    /// Texts that end the answer and are not part of it; these need a tokenizer.
    pub stop_strings: Vec<String>,
    /// Report log-probabilities, and those of so many of the likeliest tokens.
    pub logprobs: Option<usize>,
    /// Number of answers, drawn apart.
    pub choices: usize,
    /// Random stream of the first choice; the others follow.
    pub stream: u64,
}

impl Request {
    /// One greedy answer of at most `max_new_tokens`.
    pub fn new(prompt: Vec<i32>, max_new_tokens: usize) -> Request {
        Request {
            prompt,
            max_new_tokens,
            sampling: Sampling::default(),
            samplers: Vec::new(),
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            logprobs: None,
            choices: 1,
            stream: 0,
        }
    }
}

/// Names a request of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

impl RequestId {
    pub(crate) fn of(number: u64) -> RequestId {
        RequestId(number)
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A stop token came.
    Token,
    /// A stop string came.
    Text,
    /// The limit on new tokens or the cache's capacity was reached.
    Length,
    /// The caller said so.
    Caller,
    /// A sampler plugin failed or left no token to draw; [`Update::failure`] says more.
    Failed,
}

/// A new token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its number.
    pub id: i32,
    /// Natural logarithm of its probability before any transform, and the likeliest tokens with theirs; if asked for.
    pub logprobs: Option<(f32, Vec<(i32, f32)>)>,
}

/// What a step did to one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Request.
    pub request: RequestId,
    /// Which of its answers.
    pub choice: usize,
    /// The new token; none when a stop token came.
    pub token: Option<Token>,
    /// Text that became certain, whole characters only. Empty without a tokenizer.
    pub text: String,
    /// Set on the answer's last update.
    pub finished: Option<Stop>,
    /// Why a failed answer ended.
    pub failure: Option<String>,
}

/// Answers requests, all at once.
pub struct Engine {
    decoder: Decoder,
    scheduler: Scheduler,
    chunk: usize,
    tokenizer: Option<Arc<Tokenizer>>,
    samplers: Samplers,
    /// Requests and answers so far.
    next: (u64, u64),
}

impl Engine {
    /// Traces and compiles the model and reserves the cache. Without a tokenizer, updates carry no text and stop strings are refused.
    ///
    /// # Errors
    /// When a plugin fails, the model has no cache, a size is 0 or memory runs out.
    pub fn new(
        model: &mut AdaptedModel,
        device: &dyn Device,
        store: &mut Store,
        options: EngineOptions,
        tokenizer: Option<Arc<Tokenizer>>,
    ) -> Result<Engine> {
        let EngineOptions { slots, capacity, chunk, batching, precision, share_prefixes, .. } = options;
        if slots == 0 || capacity == 0 || chunk == 0 {
            return Err(ServeError::Request(format!(
                "an engine of {slots} slots, {capacity} tokens and chunks of {chunk} can answer nothing"
            )));
        }
        let most = slots.saturating_mul(columns(capacity));
        let pages = options.cache_tokens.map_or(most, |tokens| columns(tokens).min(most));
        if pages < columns(capacity) {
            return Err(ServeError::Request(format!(
                "a cache of {} tokens does not hold a sequence of {capacity}",
                options.cache_tokens.unwrap_or(0)
            )));
        }
        let of = DecoderOptions { slots, capacity, pages, precision, cache: options.cache.dtype() };
        let mut decoder = Decoder::new(model, device, store, of)?;
        decoder.refresh(store)?;
        let scheduler = Scheduler::new(slots, pages, chunk, batching, share_prefixes);
        Ok(Engine { decoder, scheduler, chunk, tokenizer, samplers: Samplers::default(), next: (0, 0) })
    }

    /// Makes a sampler plugin ready for requests of this engine: traces and compiles its transform, opens its matcher.
    ///
    /// # Errors
    /// When the plugin is no sampler, refuses the configuration or fails.
    pub fn add_sampler(&mut self, plugin: &Plugin, config: &str, device: &dyn Device, store: &Store) -> Result<SamplerId> {
        self.samplers.add(plugin, config, self.decoder.vocab(), self.tokenizer.as_deref(), device, store)
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When the prompt is empty or does not fit the cache, or a setting is out of range.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        let capacity = self.decoder.capacity();
        if request.prompt.is_empty() || request.prompt.len() >= capacity {
            return Err(ServeError::Request(format!(
                "the prompt has {} tokens; it needs at least 1 and must leave room in a cache of {capacity}",
                request.prompt.len()
            )));
        }
        if request.max_new_tokens == 0 || request.choices == 0 {
            return Err(ServeError::Request("`max_new_tokens` and `n` must be at least 1".into()));
        }
        if self.tokenizer.is_none() && request.stop_strings.iter().any(|s| !s.is_empty()) {
            return Err(ServeError::Request("stop strings need a tokenizer".into()));
        }
        if !self.samplers.know(&request.samplers) {
            return Err(ServeError::Request("the request names a sampler of another engine".into()));
        }
        request.sampling.check()?;
        let id = RequestId::of(self.next.0);
        self.next.0 += 1;
        let request = Arc::new(request);
        for choice in 0..request.choices {
            self.scheduler.submit(Sequence::new(id, choice, request.clone(), self.next.1));
            self.next.1 += 1;
        }
        Ok(id)
    }

    /// Ends all answers of a request at once; no update of it follows. Returns whether there were any.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        self.scheduler.end(|request, _| request == id)
    }

    /// Ends one answer of a request.
    pub fn cancel_choice(&mut self, id: RequestId, choice: usize) -> bool {
        self.scheduler.end(|request, c| request == id && c == choice)
    }

    /// Whether nothing is queued or being answered.
    pub fn is_idle(&self) -> bool {
        self.load() == (0, 0)
    }

    /// Answers that wait for a slot, and answers in progress.
    pub fn load(&self) -> (usize, usize) {
        self.scheduler.load()
    }

    /// What was computed and what was found in the cache, since the start.
    pub fn counters(&self) -> Counters {
        self.scheduler.counters
    }

    /// Tokens of one sequence that fit, prompt included.
    pub fn capacity(&self) -> usize {
        self.decoder.capacity()
    }

    /// Computes again what depends on weights alone; to be called after weights have changed.
    ///
    /// # Errors
    /// When the device fails.
    pub fn refresh(&mut self, store: &mut Store) -> Result<()> {
        self.scheduler.forget();
        self.decoder.refresh(store)
    }

    /// Arena bytes of a run of `tokens` tokens over all slots.
    ///
    /// # Errors
    /// When a size overflows.
    pub fn peak_bytes(&self, tokens: usize) -> Result<usize> {
        let slots = self.scheduler.slots();
        let tokens = tokens.clamp(1, self.chunk + slots);
        self.decoder.peak_bytes(tokens, slots.min(tokens))
    }

    /// Starts (with empty totals) or stops to measure launches.
    pub fn set_profiling(&mut self, on: bool) {
        self.decoder.set_profiling(on);
    }

    /// What was measured; `None` when profiling is off.
    pub fn profile(&self) -> Option<&Profile> {
        self.decoder.profile()
    }

    /// Advances every answer by at most one token and tells what came. Nothing happens when idle.
    ///
    /// # Errors
    /// When the device or the tokenizer fails.
    pub fn step(&mut self, store: &mut Store) -> Result<Vec<Update>> {
        if !self.decoder.keeps_cache(store) {
            // Another engine of this store wrote to its cache.
            self.scheduler.restart();
        }
        let mut updates = Vec::new();
        for run in self.scheduler.plan() {
            self.run(store, &run, &mut updates)?;
        }
        Ok(updates)
    }

    /// Steps until everything is answered. `on` hears of each update and may end that answer.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn drain(&mut self, store: &mut Store, mut on: impl FnMut(&Update) -> std::ops::ControlFlow<()>) -> Result<()> {
        while !self.is_idle() {
            for update in self.step(store)? {
                if on(&update).is_break() {
                    self.cancel_choice(update.request, update.choice);
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, store: &mut Store, run: &[Share], updates: &mut Vec<Update>) -> Result<()> {
        let mut packed = Packed::default();
        let mut whole = Vec::with_capacity(run.len());
        for &Share { slot, count } in run {
            let Some(sequence) = self.scheduler.sequence(slot) else { continue };
            let cached = sequence.cached();
            for position in cached..cached + count {
                packed.ids.push(sequence.token(position));
                packed.positions.push(position as i32);
                packed.slots.push(slot as i32);
            }
            self.decoder.set_pages(slot, sequence.table());
            if sequence.pending() == count {
                packed.rows.push(packed.ids.len() as i32 - 1);
                whole.push(slot);
            }
        }
        if whole.is_empty() {
            // The graph has no form without logits; one row is cheap.
            packed.rows.push(packed.ids.len() as i32 - 1);
        }
        let rows = packed.rows.len();
        let capacity = self.decoder.capacity();
        let logits = self.decoder.run(store, packed)?;
        run.iter().for_each(|&share| self.scheduler.ran(share));
        let vocab = logits.len() / rows;
        let rows: Vec<Row<'_>> = whole.iter().filter_map(|&slot| Some(row(slot, self.scheduler.get(slot)?))).collect();
        let masks = self.samplers.masks(&rows);
        for ((slot, logits), mask) in whole.into_iter().zip(logits.chunks_exact(vocab.max(1))).zip(masks) {
            let Some(sequence) = self.scheduler.sequence(slot) else { continue };
            let drawn = mask.and_then(|mask| draw(slot, sequence, &mut self.samplers, store, &mask, logits));
            let update = match drawn {
                Ok(id) => advance(sequence, logits, id, capacity, self.tokenizer.as_deref())?,
                Err(failure) => fail(sequence, failure, self.tokenizer.as_deref())?,
            };
            if update.finished.is_some() {
                self.scheduler.finish(slot);
            }
            updates.push(update);
        }
        Ok(())
    }
}

/// An answer as samplers see it.
fn row(slot: usize, sequence: &Sequence) -> Row<'_> {
    Row { slot, order: sequence.order(), samplers: &sequence.request.samplers, answer: &sequence.answer }
}

/// The next token of a sequence; the error is why there is none.
fn draw(
    slot: usize,
    sequence: &Sequence,
    samplers: &mut Samplers,
    store: &mut Store,
    mask: &[u32],
    logits: &[f32],
) -> Result<i32, String> {
    let Request { prompt, sampling, stream, samplers: plugged, .. } = &*sequence.request;
    let history = History { prompt, answer: &sequence.answer };
    let (stream, position) = (stream + sequence.choice as u64, sequence.answer.len() as u64);
    match plugged.is_empty() {
        true => Ok(sampling.draw(logits, history, stream, position)),
        false => samplers.draw(store, &row(slot, sequence), mask, logits, &Draw { sampling, history, stream, position }),
    }
}

/// Ends an answer whose samplers fail; its neighbours go on.
fn fail(sequence: &mut Sequence, failure: String, tokenizer: Option<&Tokenizer>) -> Result<Update> {
    let text = tokenizer.map(|tokenizer| sequence.text.finish(tokenizer)).transpose()?.map_or_else(String::new, |rest| rest.text);
    Ok(Update {
        request: sequence.id,
        choice: sequence.choice,
        token: None,
        text,
        finished: Some(Stop::Failed),
        failure: Some(failure),
    })
}

/// Appends the drawn token to a sequence.
fn advance(sequence: &mut Sequence, logits: &[f32], id: i32, capacity: usize, tokenizer: Option<&Tokenizer>) -> Result<Update> {
    let request = &sequence.request;
    let (text, finished, failure) = (String::new(), None, None);
    let mut update = Update { request: sequence.id, choice: sequence.choice, token: None, text, finished, failure };
    if request.stop_tokens.contains(&id) {
        update.finished = Some(Stop::Token);
    } else {
        update.token = Some(Token { id, logprobs: request.logprobs.map(|top| log_probabilities(logits, id, top)) });
        sequence.answer.push(id);
        // The last token needs no room: nothing is drawn after it.
        let full = sequence.answer.len() >= request.max_new_tokens || sequence.cached() >= capacity;
        update.finished = full.then_some(Stop::Length);
    }
    let Some(tokenizer) = tokenizer else { return Ok(update) };
    if update.token.is_some() {
        let piece = sequence.text.push(tokenizer, id)?;
        update.text = piece.text;
        if piece.stopped {
            update.finished = Some(Stop::Text);
            return Ok(update);
        }
    }
    if update.finished.is_some() {
        let rest = sequence.text.finish(tokenizer)?;
        update.text.push_str(&rest.text);
        if rest.stopped {
            update.finished = Some(Stop::Text);
        }
    }
    Ok(update)
}
