//! `sft` and `pt`, and the training half of `run`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use swift_train::{Outcome, Question, Run, RunFolder};

use crate::args::TrainArgs;
use crate::environment::Environment;
use crate::progress::{Interrupt, Progress, bytes};
use crate::settings::{self, Kind};

/// Trains and reports.
pub(crate) fn train(environment: &Environment, kind: Kind, args: &TrainArgs, question: Question) -> Result<ExitCode> {
    let interrupt = Interrupt::install("this update")?;
    let model = args.model.as_deref().unwrap_or(crate::embedded::MODEL_NAME);
    let checkpoint = match kind {
        Kind::Pt { from_scratch: true } => environment.model_config(model)?,
        _ => environment.model(model)?,
    };
    let config = settings::resolve(kind, args, environment, &checkpoint)?;
    if config.from_scratch && !Path::new(model).join("tokenizer.json").exists() {
        let size = checkpoint.config()["vocab_size"].as_u64().context("the configuration has no `vocab_size`")? as usize;
        eprintln!("`{model}` has no tokenizer; training one of {size} tokens on the dataset");
        swift_train::train_tokenizer(&config, environment, size, Path::new(model))?;
    }
    let device = environment.device()?;
    let mut run = Run::prepare(config, checkpoint, environment, &*device, question)?;
    let plan = run.memory_plan()?;
    describe(&run);
    eprintln!(
        "memory plan {}: weights {}, training {}, arena {} at {} tokens, fixed {}",
        bytes(plan.peak()),
        bytes(plan.weights),
        bytes(plan.training),
        bytes(plan.arena),
        plan.tokens,
        bytes(plan.fixed)
    );
    let folder = RunFolder::create(run.config())?;
    let mut progress = Progress::new(run.total_steps(), interrupt);
    run.set_profiling(args.profile);
    let outcome = run.train(&*device, &folder, &mut progress)?;
    progress.finish();
    for (program, table) in run.profiles() {
        eprintln!("\n{program}\n{table}");
    }
    report(&outcome);
    Ok(if outcome.summary.interrupted { Interrupt::exit_code() } else { ExitCode::SUCCESS })
}

fn describe(run: &Run) {
    let config = run.config();
    let (train, held_out, dropped) = run.rows();
    let trained: u64 = run.programs().trainable.iter().map(|p| p.shape.iter().product::<u64>()).sum();
    eprintln!(
        "{} on {}: {trained} trained parameters, {train} rows, {held_out} held out, {} updates",
        config.tuner_type,
        config.model,
        run.total_steps()
    );
    if dropped > 0 {
        eprintln!(
            "warning: {dropped} rows were dropped (longer than `--max_length {}` or nothing to train on)",
            config.max_length
        );
    }
    eprintln!("traced in {:.0} ms, compiled in {:.0} ms", run.programs().trace_ms, run.programs().compile_ms);
}

fn report(outcome: &Outcome) {
    let s = &outcome.summary;
    let arrow = |name: &str, before: Option<f64>, after: Option<f64>, percent: bool| {
        let show = |v: Option<f64>| match v {
            Some(v) if percent => format!("{:.1}%", v * 100.0),
            Some(v) => format!("{v:.4}"),
            None => "-".to_string(),
        };
        if before.is_some() || after.is_some() {
            eprintln!("{name:<22}{} -> {}", show(before), show(after));
        }
    };
    eprintln!();
    arrow("training loss", s.first_loss, s.last_loss, false);
    arrow("held-out loss", s.eval_loss_before, s.eval_loss_after, false);
    arrow(&format!("exact match ({} rows)", s.accuracy_rows), s.accuracy_before, s.accuracy_after, true);
    eprintln!("{:<22}{:.0} tokens/s", "speed", s.tokens_per_second);
    let measured = s.measured_peak_bytes.map_or("unknown".to_string(), bytes);
    eprintln!("{:<22}planned {}, measured {measured}", "peak memory", bytes(s.planned_peak_bytes));
    eprintln!("{:<22}{} after tracing", "plugin calls", s.plugin_calls_after_tracing);
    if let Some(checkpoint) = &outcome.checkpoint {
        eprintln!("{:<22}{}", "checkpoint", checkpoint.display());
    }
    eprintln!("{:<22}{}", "loss curve", outcome.folder.join("images/train_loss.png").display());
    if s.interrupted
        && let Some(checkpoint) = &outcome.checkpoint
    {
        eprintln!("interrupted after {} updates; go on with `--resume_from_checkpoint {}`", s.steps, checkpoint.display());
    }
    outln!("{}", outcome.folder.display());
}
