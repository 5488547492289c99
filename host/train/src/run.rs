//! Putting a run together: data, model, adapter, weights, programs, and the memory that they will take.

use std::collections::BTreeMap;
use std::sync::Arc;

use swift_data::{Batch, Grouping, Sampler, SamplerOptions, Turn, collate};
use swift_formats::Checkpoint;
use swift_graph::passes::{Options, Recompute};
use swift_graph::{Bindings, SymbolId};
use swift_plugin::Plugin;
use swift_runtime::{Device, Executable, HostTensor, Inputs, Store};
use swift_serve::{AdaptedModel, Generator, compile};

use crate::checkpoint::{self, TrainerState};
use crate::dataset::{Data, Unit};
use crate::{MemoryPlan, Plugins, Programs, Result, Text, TrainConfig, TrainError, UpdateSpec, assemble, memory, text_of};

/// Rows of a window that bins are packed from.
const PACKING_WINDOW: usize = 1024;
/// New tokens of a sample answer at most.
pub(crate) const SAMPLE_TOKENS: usize = 64;
/// Cache slots of the generator that measures accuracy.
const GENERATOR_SLOTS: usize = 32;

/// A prepared run. [`Run::train`] starts it.
pub struct Run {
    pub(crate) config: TrainConfig,
    pub(crate) model: AdaptedModel,
    pub(crate) store: Store,
    pub(crate) programs: Programs,
    pub(crate) text: Text,
    pub(crate) data: Data,
    pub(crate) sampler: Sampler,
    pub(crate) total_steps: u64,
    pub(crate) plugins: BTreeMap<String, Plugin>,
    pub(crate) generator: Option<Generator>,
    /// Question that is asked before and after training.
    pub(crate) question: Option<Vec<Turn>>,
    /// Where training begins: nowhere, or at the checkpoint to go on from.
    pub(crate) start: TrainerState,
    fixed_bytes: u64,
}

/// What is asked before and after training, to show what it changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// Nothing.
    None,
    /// The first held-out conversation.
    HeldOut,
    /// This.
    Text(String),
}

impl Run {
    /// Loads data and model, traces and compiles. Nothing is written.
    ///
    /// # Errors
    /// When any of it is broken or does not fit together.
    pub fn prepare(
        config: TrainConfig,
        checkpoint: Arc<Checkpoint>,
        plugins: &dyn Plugins,
        device: &dyn Device,
        question: Question,
    ) -> Result<Run> {
        check(&config)?;
        let mut used: BTreeMap<String, Plugin> = BTreeMap::new();
        let mut load = |name: &str| -> Result<Plugin> {
            let plugin = plugins.load(name)?;
            used.insert(plugin.about().name.clone(), plugin.clone());
            Ok(plugin)
        };
        let model_plugin = load(&config.model_plugin)?;
        let tuner = load(&config.tuner_type)?;
        let loss = load(&config.loss_type)?;
        let optimizer = load(&config.optimizer)?;
        let text = text_of(&checkpoint)?;
        let mut model = AdaptedModel::open(checkpoint, &model_plugin)?;
        if let Some(quantization) = config.quantization() {
            model.quantize(quantization)?;
        }
        model.adapt(&tuner, &config.tuner_config.to_string())?;
        let mut loss = loss.loss()?;
        let loss_config = config.loss_config.to_string();
        let paired = loss.needs(&loss_config)?.paired;
        let data = crate::dataset::load(&config, &text, plugins, paired)?;
        for plugin in &data.plugins {
            used.insert(plugin.about().name.clone(), plugin.clone());
        }

        let mut store = device.store();
        match config.from_scratch {
            true => model.load_fresh(&mut store, config.seed)?,
            false => model.load(&mut store, config.seed)?,
        }
        let update = UpdateSpec { config: &config.optimizer_config.to_string(), max_grad_norm: config.max_grad_norm };
        let options = Options { recompute: recompute(&config.recompute)? };
        let mut guest = optimizer.optimizer()?;
        let programs = assemble(&mut model, &mut loss, &loss_config, &mut guest, &update, device, &mut store, &options)?;
        let init = model.init_graph()?.map(|g| compile(device, &store, g)).transpose()?;
        let sampler = sampler(&config, &data.train)?;
        let total_steps = total_steps(&config, &sampler);
        let question = match question {
            Question::None => None,
            Question::HeldOut => Some(data.question.clone()).filter(|turns| !turns.is_empty()),
            Question::Text(prompt) => Some(vec![Turn::new("user", prompt)]),
        };
        let generator = match generator_size(&text, &data, question.as_deref())? {
            Some((slots, capacity)) => Some(Generator::new(&mut model, device, &mut store, slots, capacity)?),
            None => None,
        };
        // What is mapped of the weights is planned, not measured: pages that preparation read, for the norms of DoRA say, leave this
        // process's memory until training reads them. What the store owns is counted apart.
        let checkpoint = model.checkpoint();
        checkpoint.names().iter().for_each(|name| checkpoint.release(name));
        let held = store.bytes();
        let resident = memory::resident_bytes().unwrap_or(0).saturating_sub((held.owned + held.states) as u64);
        let fixed_bytes = resident + device.working_bytes() as u64;
        let mut run = Run {
            config,
            model,
            store,
            programs,
            text,
            data,
            sampler,
            total_steps,
            plugins: used,
            generator,
            question,
            start: TrainerState::default(),
            fixed_bytes,
        };
        run.start_values(init)?;
        run.seek_start()?;
        Ok(run)
    }

    /// Goes to the checkpoint to resume from, if there is one.
    fn seek_start(&mut self) -> Result<()> {
        let graph_hash = self.programs.graph_hash.clone();
        let Some(from) = self.config.resume_from_checkpoint.clone() else {
            self.start = TrainerState { graph_hash, max_steps: self.total_steps, ..TrainerState::default() };
            return Ok(());
        };
        self.start = checkpoint::resume(&from, &mut self.model, &mut self.store, &self.programs.slots, &graph_hash)?;
        if self.start.global_step >= self.total_steps {
            let done = self.start.global_step;
            let reason =
                format!("it has made {done} of {} updates; raise `--max_steps` or `--num_train_epochs`", self.total_steps);
            return Err(TrainError::Resume { path: from, reason });
        }
        self.sampler.seek(self.start.sampler);
        Ok(())
    }

    /// Data-dependent initial values of the adapter, then constants of the frozen base.
    fn start_values(&mut self, init: Option<Box<dyn Executable>>) -> Result<()> {
        let bindings = Bindings::new().with(SymbolId::TOKENS, 1).with(SymbolId::SEQUENCES, 1);
        if let Some(mut init) = init {
            init.run(&mut self.store, &bindings, &Inputs::default())?;
        }
        if let Some(prologue) = &mut self.programs.prologue {
            prologue.run(&mut self.store, &bindings, &Inputs::default())?;
        }
        Ok(())
    }

    /// Measures every launch of training steps from now on.
    pub fn set_profiling(&mut self, on: bool) {
        self.programs.train.set_profiling(on);
        self.programs.updates.iter_mut().for_each(|(_, update)| update.set_profiling(on));
    }

    /// What was measured, by program.
    pub fn profiles(&self) -> Vec<(&'static str, String)> {
        let updates = self.programs.updates.iter().filter_map(|(_, u)| u.profile()).map(|p| ("update", p.to_string()));
        self.programs.train.profile().map(|p| ("forward and backward", p.to_string())).into_iter().chain(updates).collect()
    }

    /// The configuration.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The compiled graphs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Tokenizer and template.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// Updates that the run will make.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Rows for training, held-out rows, and rows that were dropped for their length.
    pub fn rows(&self) -> (usize, usize, usize) {
        (self.data.train.len(), self.data.eval.len(), self.data.dropped)
    }

    /// Held-out questions with exact answers.
    pub fn probes(&self) -> &[crate::Probe] {
        &self.data.probes
    }

    /// The model and its weights, for generation beside training.
    pub fn model(&mut self) -> (&mut AdaptedModel, &mut Store, &Text) {
        (&mut self.model, &mut self.store, &self.text)
    }

    /// What the run will take. The batches of a run are a function of its seed, so the largest is known.
    ///
    /// # Errors
    /// When a size overflows.
    pub fn memory_plan(&self) -> Result<MemoryPlan> {
        let mut sampler = self.sampler.clone();
        let left = self.total_steps - self.start.global_step;
        let batches = left.saturating_mul(self.config.gradient_accumulation_steps as u64);
        // A run over more batches than this sees its largest one with near certainty among the first.
        let mut largest: BTreeMap<usize, usize> = BTreeMap::new();
        for _ in 0..batches.min(200_000) {
            let batch = self.train_batch(&sampler.next_batch().samples);
            let sequences = largest.entry(batch.tokens()).or_default();
            *sequences = (*sequences).max(batch.sequences);
        }
        let mut plan = MemoryPlan { fixed: self.fixed_bytes, ..MemoryPlan::default() };
        for (&tokens, &sequences) in largest.iter().rev().take(4) {
            let arena = self.programs.train.peak_bytes(&bindings(tokens, sequences))? as u64;
            if arena > plan.arena {
                (plan.arena, plan.tokens) = (arena, tokens as u64);
            }
        }
        for unit in self.eval_batches() {
            let batch = collate(unit.iter().copied());
            plan.arena = plan.arena.max(self.programs.eval.main.peak_bytes(&bindings(batch.tokens(), batch.sequences))? as u64);
        }
        for (_, update) in &self.programs.updates {
            plan.arena = plan.arena.max(update.peak_bytes(&bindings(1, 1))? as u64);
        }
        if let Some(generator) = &self.generator {
            plan.arena = plan.arena.max(generator.peak_bytes(self.longest_prompt())? as u64);
        }
        let bytes = self.store.bytes();
        (plan.weights, plan.training) = (bytes.shared as u64, (bytes.owned + bytes.states) as u64);
        Ok(plan)
    }

    /// Prompt tokens of the generator's largest packed run.
    fn longest_prompt(&self) -> usize {
        let mut lengths: Vec<usize> = self
            .data
            .probes
            .iter()
            .filter_map(|p| crate::evaluate::prompt_ids(&self.text, &p.turns).ok())
            .map(|p| p.len())
            .collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.iter().take(GENERATOR_SLOTS).sum()
    }

    pub(crate) fn train_batch(&self, samples: &[usize]) -> Batch {
        collate(samples.iter().flat_map(|&i| self.data.train[i].iter()))
    }

    /// Held-out units grouped into batches.
    pub(crate) fn eval_batches(&self) -> Vec<Vec<&swift_data::Encoded>> {
        let chunks = self.data.eval.chunks(self.config.per_device_eval_batch_size.max(1));
        chunks.map(|units| units.iter().flatten().collect()).collect()
    }
}

/// Symbols of one packed batch.
pub(crate) fn bindings(tokens: usize, sequences: usize) -> Bindings {
    Bindings::new()
        .with(SymbolId::TOKENS, tokens as u64)
        .with(SymbolId::SEQUENCES, sequences as u64)
        .with(SymbolId::PAIRS, (sequences as u64 / 2).max(1))
}

/// Inputs of one packed batch.
pub(crate) fn inputs(batch: &Batch, total_tokens: f32, total_sequences: f32, rng: [i32; 2]) -> Inputs {
    let n = batch.tokens();
    let column = |values: &[i32]| HostTensor::i32([n], values.to_vec());
    let mut inputs = Inputs::default();
    inputs.set("ids", column(&batch.ids));
    inputs.set("positions", column(&batch.positions));
    inputs.set("segments", column(&batch.segments));
    inputs.set("targets", column(&batch.labels));
    inputs.set("loss-weights", HostTensor::f32([n], batch.weights.clone()));
    // Pairs lie side by side: sequence 2i is the chosen answer of pair i, 2i + 1 the rejected one.
    let pairs = (batch.sequences / 2).max(1) as i32;
    let every_second = |first: i32| HostTensor::i32([pairs as usize], (0..pairs).map(|i| 2 * i + first).collect());
    inputs.set("chosen", every_second(0));
    inputs.set("rejected", every_second(1));
    inputs.set("total.tokens", HostTensor::scalar(total_tokens));
    inputs.set("total.sequences", HostTensor::scalar(total_sequences));
    inputs.set("rng", HostTensor::i32([2], rng.to_vec()));
    inputs
}

fn recompute(name: &str) -> Result<Recompute> {
    match name {
        "none" => Ok(Recompute::None),
        "cheap" => Ok(Recompute::Cheap),
        "layers" => Ok(Recompute::Layers),
        other => Err(TrainError::Config(format!("recompute `{other}`: known are none, cheap and layers"))),
    }
}

fn check(config: &TrainConfig) -> Result<()> {
    let positive = [
        ("per_device_train_batch_size", config.per_device_train_batch_size as u64),
        ("per_device_eval_batch_size", config.per_device_eval_batch_size as u64),
        ("gradient_accumulation_steps", config.gradient_accumulation_steps as u64),
        ("logging_steps", config.logging_steps),
        ("save_steps", config.save_steps),
        ("eval_steps", config.eval_steps),
        ("max_length", config.max_length as u64),
    ];
    if let Some((name, _)) = positive.iter().find(|(_, v)| *v == 0) {
        return Err(TrainError::Config(format!("`--{name}` must be at least 1")));
    }
    if config.dataset.is_empty() {
        return Err(TrainError::Config("no `--dataset` was given".into()));
    }
    if config.max_steps == 0 || (config.max_steps < 0 && (config.num_train_epochs.is_nan() || config.num_train_epochs <= 0.0)) {
        return Err(TrainError::Config("`--max_steps` or `--num_train_epochs` must be positive".into()));
    }
    if !config.learning_rate.is_finite() || config.learning_rate < 0.0 {
        return Err(TrainError::Config(format!("`--learning_rate {}` must be a number of at least 0", config.learning_rate)));
    }
    Ok(())
}

fn sampler(config: &TrainConfig, units: &[Unit]) -> Result<Sampler> {
    let lengths = units.iter().map(|u| u.iter().map(|s| s.len()).sum()).collect();
    let batch = config.per_device_train_batch_size;
    let grouping = match config.packing {
        true => Grouping::Bins { length: config.max_length, batch, window: PACKING_WINDOW },
        false => Grouping::Samples { batch },
    };
    Ok(Sampler::new(lengths, SamplerOptions { grouping, seed: config.data_seed, shuffle: true, drop_last: false })?)
}

fn total_steps(config: &TrainConfig, sampler: &Sampler) -> u64 {
    if config.max_steps > 0 {
        return config.max_steps as u64;
    }
    let epochs = config.num_train_epochs;
    let whole = sampler.steps_before(epochs.floor() as u64) as f64;
    let rest = epochs.fract() * sampler.epoch_len(epochs.floor() as u64) as f64;
    ((whole + rest) / config.gradient_accumulation_steps as f64).ceil().max(1.0) as u64
}

/// Slots and capacity of the cache that the held-out questions and the sample need.
fn generator_size(text: &Text, data: &Data, question: Option<&[Turn]>) -> Result<Option<(usize, usize)>> {
    let mut capacity = 0;
    for probe in &data.probes {
        let prompt = crate::evaluate::prompt_ids(text, &probe.turns)?.len();
        capacity = capacity.max(prompt + text.tokenizer.encode(&probe.answer, false)?.len() + 8);
    }
    if let Some(question) = question {
        capacity = capacity.max(crate::evaluate::prompt_ids(text, question)?.len() + SAMPLE_TOKENS + 1);
    }
    let slots = if data.probes.is_empty() { 1 } else { GENERATOR_SLOTS };
    Ok((capacity > 0).then_some((slots, capacity)))
}

impl Run {
    /// (what, bytes) of the largest values that live where the training graph's arena is fullest.
    ///
    /// # Errors
    /// When a size overflows.
    pub fn largest_buffers(&self, count: usize) -> Result<Vec<(String, u64)>> {
        let tokens = self.memory_plan()?.tokens.max(1) as usize;
        let usage = self.programs.train.plan().usage(&bindings(tokens, 1), &|_| Ok(0))?;
        let mut found: Vec<(String, u64)> =
            usage.at_peak.iter().map(|r| (format!("{} at `{}`", r.op, r.scope), r.bytes as u64)).collect();
        found.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        found.truncate(count);
        Ok(found)
    }
}
