//! The generation engine: requests come and go between steps, and every step advances all of them.
//!
//! ```text
//! submit -> queue -> slot: prefill in chunks -> one token a step -> finished -> slot is free
//! ```
//!
//! A step never waits for a long prompt: prompts enter the cache a chunk at a time, beside the tokens of sequences that are already
//! answering ([continuous batching](https://www.usenix.org/conference/osdi22/presentation/yu), Yu et al. 2022; chunked prefill,
//! Agrawal et al. 2023).
//!
//! **Invariant:** what is drawn for a request depends on its logits and its own seed, never on its neighbours. With
//! [`Batching::Reproducible`] its logits do not either, bit by bit.

use std::collections::VecDeque;
use std::sync::Arc;

use swift_data::Tokenizer;
use swift_runtime::{Device, Profile, Store};

use crate::decoder::{Decoder, Packed};
use crate::sampling::log_probabilities;
use crate::stop::AnswerText;
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

/// Sizes of an engine.
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
}

struct Waiting {
    id: RequestId,
    choice: usize,
    request: Arc<Request>,
}

struct Sequence {
    id: RequestId,
    choice: usize,
    request: Arc<Request>,
    /// Tokens in the cache.
    cached: usize,
    answer: Vec<i32>,
    text: AnswerText,
}

impl Sequence {
    fn new(waiting: Waiting) -> Sequence {
        let Waiting { id, choice, request } = waiting;
        let text = AnswerText::new(&request.stop_strings);
        Sequence { id, choice, request, cached: 0, answer: Vec::new(), text }
    }

    /// Tokens that are not in the cache yet.
    fn pending(&self) -> usize {
        self.request.prompt.len() + self.answer.len() - self.cached
    }

    fn token(&self, position: usize) -> i32 {
        let prompt = &self.request.prompt;
        prompt.get(position).copied().unwrap_or_else(|| self.answer[position - prompt.len()])
    }
}

/// A share of a run: the slot, and how many of its pending tokens.
type Share = (usize, usize);

/// Answers requests, all at once.
pub struct Engine {
    decoder: Decoder,
    chunk: usize,
    batching: Batching,
    tokenizer: Option<Arc<Tokenizer>>,
    queue: VecDeque<Waiting>,
    live: Vec<Option<Sequence>>,
    next: u64,
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
        let EngineOptions { slots, capacity, chunk, batching } = options;
        if slots == 0 || capacity == 0 || chunk == 0 {
            return Err(ServeError::Request(format!(
                "an engine of {slots} slots, {capacity} tokens and chunks of {chunk} can answer nothing"
            )));
        }
        let mut decoder = Decoder::new(model, device, store, slots, capacity)?;
        decoder.refresh(store)?;
        let live = (0..slots).map(|_| None).collect();
        Ok(Engine { decoder, chunk, batching, tokenizer, queue: VecDeque::new(), live, next: 0 })
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
        request.sampling.check()?;
        let id = RequestId(self.next);
        self.next += 1;
        let request = Arc::new(request);
        self.queue.extend((0..request.choices).map(|choice| Waiting { id, choice, request: request.clone() }));
        Ok(id)
    }

    /// Ends all answers of a request at once; no update of it follows. Returns whether there were any.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        self.end(|request, _| request == id)
    }

    /// Ends one answer of a request.
    pub fn cancel_choice(&mut self, id: RequestId, choice: usize) -> bool {
        self.end(|request, c| request == id && c == choice)
    }

    fn end(&mut self, of: impl Fn(RequestId, usize) -> bool) -> bool {
        let before = self.queue.len();
        self.queue.retain(|w| !of(w.id, w.choice));
        let mut ended = self.queue.len() < before;
        for slot in &mut self.live {
            if slot.as_ref().is_some_and(|s| of(s.id, s.choice)) {
                *slot = None;
                ended = true;
            }
        }
        ended
    }

    /// Whether nothing is queued or being answered.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.live.iter().all(Option::is_none)
    }

    /// Answers that wait for a slot, and answers in progress.
    pub fn load(&self) -> (usize, usize) {
        (self.queue.len(), self.live.iter().flatten().count())
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
        self.decoder.refresh(store)
    }

    /// Arena bytes of a run of `tokens` tokens over all slots.
    ///
    /// # Errors
    /// When a size overflows.
    pub fn peak_bytes(&self, tokens: usize) -> Result<usize> {
        let tokens = tokens.clamp(1, self.chunk + self.live.len());
        self.decoder.peak_bytes(tokens, self.live.len().min(tokens))
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
        for slot in self.live.iter_mut().filter(|s| s.is_none()) {
            *slot = self.queue.pop_front().map(Sequence::new);
        }
        let mut updates = Vec::new();
        for run in self.plan() {
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

    /// The runs of a step.
    fn plan(&self) -> Vec<Vec<Share>> {
        let live = self.live.iter().enumerate().filter_map(|(slot, s)| Some((slot, s.as_ref()?)));
        let (prompts, answers): (Vec<_>, Vec<_>) = live.partition(|(_, s)| s.answer.is_empty());
        let answers: Vec<Share> = answers.into_iter().map(|(slot, _)| (slot, 1)).collect();
        match self.batching {
            Batching::Reproducible => {
                let first = prompts.first().map(|(slot, s)| vec![(*slot, s.pending().min(self.chunk))]);
                first.into_iter().chain(answers.into_iter().map(|share| vec![share])).collect()
            }
            Batching::Throughput => {
                let mut run = answers;
                let mut room = self.chunk;
                for (slot, s) in prompts {
                    let take = s.pending().min(room);
                    if take > 0 {
                        run.push((slot, take));
                    }
                    room -= take;
                }
                run.sort_unstable();
                if run.is_empty() { Vec::new() } else { vec![run] }
            }
        }
    }

    fn run(&mut self, store: &mut Store, run: &[Share], updates: &mut Vec<Update>) -> Result<()> {
        let mut packed = Packed::default();
        let mut whole = Vec::with_capacity(run.len());
        for &(slot, count) in run {
            let Some(sequence) = self.live[slot].as_mut() else { continue };
            for position in sequence.cached..sequence.cached + count {
                packed.ids.push(sequence.token(position));
                packed.positions.push(position as i32);
                packed.slots.push(slot as i32);
            }
            sequence.cached += count;
            if sequence.pending() == 0 {
                packed.rows.push(packed.ids.len() as i32 - 1);
                whole.push(slot);
            }
        }
        if whole.is_empty() {
            // The graph has no form without logits; one row is cheap.
            packed.rows.push(packed.ids.len() as i32 - 1);
        }
        let rows = packed.rows.len();
        let logits = self.decoder.run(store, packed)?;
        let vocab = logits.len() / rows;
        for (slot, logits) in whole.into_iter().zip(logits.chunks_exact(vocab.max(1))) {
            let Some(sequence) = self.live[slot].as_mut() else { continue };
            let update = advance(sequence, logits, self.decoder.capacity(), self.tokenizer.as_deref())?;
            if update.finished.is_some() {
                self.live[slot] = None;
            }
            updates.push(update);
        }
        Ok(())
    }
}

/// Draws the next token of a sequence.
fn advance(sequence: &mut Sequence, logits: &[f32], capacity: usize, tokenizer: Option<&Tokenizer>) -> Result<Update> {
    let request = &sequence.request;
    let history = History { prompt: &request.prompt, answer: &sequence.answer };
    let stream = request.stream + sequence.choice as u64;
    let id = request.sampling.draw(logits, history, stream, sequence.answer.len() as u64);
    let mut update = Update { request: sequence.id, choice: sequence.choice, token: None, text: String::new(), finished: None };
    if request.stop_tokens.contains(&id) {
        update.finished = Some(Stop::Token);
    } else {
        update.token = Some(Token { id, logprobs: request.logprobs.map(|top| log_probabilities(logits, id, top)) });
        sequence.answer.push(id);
        // The last token needs no room: nothing is drawn after it.
        let full = sequence.answer.len() >= request.max_new_tokens || sequence.cached >= capacity;
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
