//! The loop: batches in, updates out. Plugins are not called here.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use swift_data::collate;
use swift_runtime::{Device, HostTensor, Inputs, Outputs};
use swift_serve::Sampling;

use crate::checkpoint::{self, TrainerState};
use crate::run::{SAMPLE_TOKENS, bindings, inputs};
use crate::{Accuracy, Curve, Result, Run, RunFolder, Strategy, Summary, TrainError, answer, loss_curve, memory};

/// What a run tells while it goes.
pub enum Event<'a> {
    /// An update was made.
    Step {
        /// Updates done.
        step: u64,
        /// Updates of the run.
        total: u64,
        /// Loss of this update.
        loss: f32,
        /// Training tokens per second so far.
        tokens_per_second: f64,
    },
    /// Held-out rows were evaluated.
    Evaluated {
        /// Updates done.
        step: u64,
        /// Mean loss over held-out tokens.
        loss: f64,
    },
    /// Held-out questions were asked.
    Answered {
        /// Updates done.
        step: u64,
        /// What came.
        accuracy: &'a Accuracy,
    },
    /// The sample question was asked.
    Sampled {
        /// Updates done.
        step: u64,
        /// The question's last turn.
        question: &'a str,
        /// The answer.
        answer: &'a str,
    },
    /// A checkpoint was written.
    Saved {
        /// Where.
        path: &'a std::path::Path,
    },
    /// The run goes on from a checkpoint.
    Resumed {
        /// Updates done before.
        step: u64,
    },
}

/// Hears of a run's progress, and may end it.
pub trait Observer {
    /// Something happened.
    fn on(&mut self, event: Event<'_>);
    /// Whether the run should save and stop.
    fn interrupted(&self) -> bool;
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Figures, as in `summary.json`.
    pub summary: Summary,
    /// The run's folder.
    pub folder: PathBuf,
    /// The last checkpoint.
    pub checkpoint: Option<PathBuf>,
}

/// Sums of one logging interval.
#[derive(Default)]
struct Interval {
    updates: u64,
    loss: f64,
    metrics: Vec<(String, f64)>,
}

impl Run {
    /// Trains, evaluates, saves. An interrupted run leaves a checkpoint to go on from.
    ///
    /// # Errors
    /// When the device fails, the loss stops being a number, or files cannot be written.
    pub fn train(&mut self, device: &dyn Device, folder: &RunFolder, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut state = self.start.clone();
        if state.global_step > 0 {
            observer.on(Event::Resumed { step: state.global_step });
        }
        let plan = self.memory_plan()?;
        let calls_before = self.plugin_calls();
        let mut summary = self.summary_at_start();
        summary.planned_peak_bytes = plan.peak();
        summary.memory_plan = plan;
        let mut last_eval = None;
        if self.config.eval_strategy != Strategy::No && state.global_step == 0 {
            last_eval = self.evaluate(0, &mut state, folder, observer)?;
            summary.eval_loss_before = last_eval;
        }
        if let Some(accuracy) = self.ask(state.global_step, observer)? {
            summary.accuracy_before = Some(accuracy.share());
        }
        summary.sample_before = self.sample(state.global_step, observer)?;

        let started = Instant::now();
        let mut busy = 0.0;
        let tokens_at_start = state.tokens;
        let mut interval = Interval::default();
        let mut saved: Option<PathBuf> = None;
        while state.global_step < self.total_steps {
            let begun = Instant::now();
            let (loss, grad_norm, epoch, lr) = self.update(&mut state, &mut interval)?;
            busy += begun.elapsed().as_secs_f64();
            let step = state.global_step;
            let tokens_per_second = (state.tokens - tokens_at_start) as f64 / busy.max(1e-9);
            observer.on(Event::Step { step, total: self.total_steps, loss, tokens_per_second });
            if !loss.is_finite() {
                return Err(TrainError::NotFinite { step, loss });
            }
            state.losses.push(loss);
            let logs = step.is_multiple_of(self.config.logging_steps) || step == self.total_steps;
            if logs || (step == 1 && self.config.logging_first_step) {
                let elapsed = started.elapsed().as_secs_f64();
                self.log(folder, &mut interval, step, grad_norm, lr, epoch, elapsed, tokens_per_second)?;
            }
            let stop = observer.interrupted();
            let ends = step == self.total_steps;
            let epoch_ends = self.sampler.epoch_len(epoch) as u64 == state.sampler.step - self.sampler.steps_before(epoch);
            let due = |strategy: Strategy, every: u64| match strategy {
                Strategy::No => false,
                Strategy::Steps => step.is_multiple_of(every) || ends,
                Strategy::Epoch => epoch_ends || ends,
            };
            if due(self.config.eval_strategy, self.config.eval_steps) && !stop {
                last_eval = self.evaluate(step, &mut state, folder, observer)?;
            }
            if due(self.config.save_strategy, self.config.save_steps) || stop {
                saved = Some(self.save(&state, folder, observer)?);
            }
            if stop && !ends {
                summary.interrupted = true;
                break;
            }
        }
        if !summary.interrupted {
            summary.accuracy_after = self.ask(state.global_step, observer)?.map(|accuracy| accuracy.share());
            summary.sample_after = self.sample(state.global_step, observer)?;
        }
        summary.steps = state.global_step;
        summary.eval_loss_after = last_eval;
        summary.first_loss = state.losses.first().map(|&l| f64::from(l));
        summary.last_loss = state.losses.last().map(|&l| f64::from(l));
        summary.tokens = state.tokens;
        summary.tokens_per_second = (state.tokens - tokens_at_start) as f64 / busy.max(1e-9);
        summary.measured_peak_bytes = memory::resident_peak_bytes();
        summary.plugin_calls_after_tracing = self.plugin_calls() - calls_before;
        summary.checkpoint = saved.clone();
        summary.losses = state.losses.clone();
        let points: Vec<(u64, f64)> = state.losses.iter().enumerate().map(|(i, &l)| (i as u64 + 1, f64::from(l))).collect();
        let curves =
            [Curve { label: "training loss", points: &points }, Curve { label: "held-out loss", points: &state.eval_losses }];
        loss_curve(&folder.curve(), &format!("{} on {}", self.config.tuner_type, self.config.model), &curves)?;
        folder.write_json("summary.json", &summary.to_json())?;
        folder.log(&json!({
            "last_model_checkpoint": saved, "global_step": state.global_step,
            "train_loss": summary.last_loss, "eval_loss": last_eval, "device": device.describe().name,
        }))?;
        Ok(Outcome { summary, folder: folder.path().to_path_buf(), checkpoint: saved })
    }

    /// One update: every micro-batch forward and backward, then the optimizer.
    fn update(&mut self, state: &mut TrainerState, interval: &mut Interval) -> Result<(f32, f32, u64, f64)> {
        let mut batches = Vec::with_capacity(self.config.gradient_accumulation_steps);
        let mut epoch = 0;
        for _ in 0..self.config.gradient_accumulation_steps {
            let micro = self.sampler.next_batch();
            epoch = micro.epoch;
            batches.push(self.train_batch(&micro.samples));
        }
        let total_tokens: usize = batches.iter().map(|b| b.trained_tokens()).sum();
        let total_sequences: usize = batches.iter().map(|b| b.sequences).sum();
        let first = state.sampler.step;
        let mut loss = 0.0f32;
        for (i, batch) in batches.iter().enumerate() {
            let rng = [self.config.seed as i32, (first + i as u64) as i32];
            let inputs = inputs(batch, total_tokens as f32, total_sequences as f32, rng);
            let outputs = self.programs.train.run(&mut self.store, &bindings(batch.tokens(), batch.sequences), &inputs)?;
            loss += outputs.scalar("loss")?;
            interval.add(&outputs);
            state.tokens += batch.tokens() as u64;
        }
        state.sampler = self.sampler.state();
        let done = state.global_step;
        let warmup = (self.config.warmup_ratio * self.total_steps as f64).ceil() as u64;
        let lr = self.config.learning_rate * self.config.lr_scheduler_type.factor(done, warmup, self.total_steps);
        let step = done + 1;
        let mut values = Inputs::default();
        for (name, value) in [("lr", lr), ("step", step as f64), ("weight-decay", self.config.weight_decay)] {
            values.set(name, HostTensor::scalar(value as f32));
        }
        let mut grad_norm = 0.0;
        for (every, program) in &mut self.programs.updates {
            if step.is_multiple_of(u64::from(*every)) {
                let outputs = program.run(&mut self.store, &bindings(1, 1), &values)?;
                grad_norm = outputs.scalar("grad_norm")?;
            }
        }
        state.global_step = step;
        interval.updates += 1;
        interval.loss += f64::from(loss);
        Ok((loss, grad_norm, epoch, lr))
    }

    #[expect(clippy::too_many_arguments, reason = "one call, one log line")]
    fn log(
        &self,
        folder: &RunFolder,
        interval: &mut Interval,
        step: u64,
        grad_norm: f32,
        lr: f64,
        epoch: u64,
        elapsed: f64,
        tokens_per_second: f64,
    ) -> Result<()> {
        let done = std::mem::take(interval);
        let updates = done.updates.max(1) as f64;
        let within =
            (self.sampler.state().step - self.sampler.steps_before(epoch)) as f64 / self.sampler.epoch_len(epoch).max(1) as f64;
        let per_step = elapsed / step.max(1) as f64;
        let mut line = json!({
            "loss": done.loss / updates,
            "grad_norm": grad_norm,
            "learning_rate": lr,
            "epoch": epoch as f64 + within,
            "global_step/max_steps": format!("{step}/{}", self.total_steps),
            "elapsed_time": elapsed,
            "remaining_time": per_step * (self.total_steps - step) as f64,
            "memory(GiB)": memory::resident_bytes().unwrap_or(0) as f64 / (1u64 << 30) as f64,
            "train_speed(s/it)": per_step,
            "tokens_per_second": tokens_per_second,
        });
        for (name, value) in done.metrics {
            line[name] = (value / updates).into();
        }
        folder.log(&line)
    }

    /// Mean loss over held-out tokens; `None` without held-out rows.
    fn evaluate(
        &mut self,
        step: u64,
        state: &mut TrainerState,
        folder: &RunFolder,
        observer: &mut dyn Observer,
    ) -> Result<Option<f64>> {
        let batches: Vec<_> = self.eval_batches().into_iter().map(collate).collect();
        self.programs.eval.refresh(&mut self.store)?;
        let (mut sum, mut weight) = (0.0f64, 0.0f64);
        for batch in batches.iter().filter(|b| b.trained_tokens() > 0) {
            let tokens = batch.trained_tokens() as f32;
            let inputs = inputs(batch, tokens, batch.sequences as f32, [0, 0]);
            let outputs = self.programs.eval.main.run(&mut self.store, &bindings(batch.tokens(), batch.sequences), &inputs)?;
            sum += f64::from(outputs.scalar("loss")?) * f64::from(tokens);
            weight += f64::from(tokens);
        }
        if weight == 0.0 {
            return Ok(None);
        }
        let loss = sum / weight;
        state.eval_losses.push((step, loss));
        folder.log(&json!({ "eval_loss": loss, "global_step/max_steps": format!("{step}/{}", self.total_steps) }))?;
        observer.on(Event::Evaluated { step, loss });
        Ok(Some(loss))
    }

    /// Exact-match accuracy; `None` where no row has an exact answer.
    fn ask(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Option<Accuracy>> {
        let Some(generator) = self.generator.as_mut().filter(|_| !self.data.probes.is_empty()) else { return Ok(None) };
        let accuracy = Accuracy::measure(generator, &mut self.store, &self.text, &self.data.probes)?;
        observer.on(Event::Answered { step, accuracy: &accuracy });
        Ok(Some(accuracy))
    }

    /// The sample question's answer.
    fn sample(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Option<String>> {
        let (Some(generator), Some(question)) = (&mut self.generator, &self.question) else { return Ok(None) };
        let greedy = Sampling::default();
        let go_on = |_: &str| ControlFlow::Continue(());
        let answer = answer(generator, &mut self.store, &self.text, question, SAMPLE_TOKENS, &greedy, go_on)?;
        let question = question.last().map_or("", |t| t.text.as_str());
        observer.on(Event::Sampled { step, question, answer: &answer });
        Ok(Some(answer))
    }

    fn save(&mut self, state: &TrainerState, folder: &RunFolder, observer: &mut dyn Observer) -> Result<PathBuf> {
        let path = folder.checkpoint(state.global_step);
        checkpoint::save(&path, &self.config, &mut self.model, &self.text, &self.store, &self.programs.slots, state)?;
        if let Some(keep) = self.config.save_total_limit {
            checkpoint::prune(folder.path(), keep)?;
        }
        observer.on(Event::Saved { path: &path });
        Ok(path)
    }

    /// Guest entries of all plugins so far. Writing an adapter asks the tuner for its file layout, which tracing has asked before.
    fn plugin_calls(&self) -> u64 {
        self.plugins.values().map(|p| p.calls().get()).sum()
    }

    fn summary_at_start(&self) -> Summary {
        let count = |shape: &[u64]| shape.iter().product::<u64>();
        Summary {
            command: self.config.command.clone(),
            model: self.config.model.clone(),
            accuracy_rows: self.data.probes.len(),
            trainable_parameters: self.programs.trainable.iter().map(|p| count(&p.shape)).sum(),
            base_parameters: self.model.base_parameters(),
            trace_ms: self.programs.trace_ms,
            compile_ms: self.programs.compile_ms,
            plugins: self.plugins.iter().map(|(name, p)| (name.clone(), p.digest().to_string())).collect(),
            graph_hash: self.programs.graph_hash.clone(),
            seed: self.config.seed,
            ..Summary::default()
        }
    }
}

impl Interval {
    fn add(&mut self, outputs: &Outputs) {
        for (name, value) in outputs.iter() {
            let (Some(name), HostTensor::F32 { data, .. }) = (name.strip_prefix("metric."), value) else { continue };
            let Some(&value) = data.first() else { continue };
            // Like the loss, a metric divides by totals over the update, so micro-batches add up.
            let value = f64::from(value);
            match self.metrics.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum += value,
                None if name != "loss" => self.metrics.push((name.to_string(), value)),
                None => {}
            }
        }
    }
}
