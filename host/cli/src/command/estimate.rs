//! `estimate`: the memory plan of a run, before it starts.

use std::process::ExitCode;

use anyhow::{Result, bail};
use swift_train::{Question, Run};

use crate::args::RunArgs;
use crate::command::run::{Job, assign};
use crate::environment::Environment;
use crate::progress::bytes;
use crate::settings::{self, Kind};

/// Prints the plan as JSON on standard output and as a table on standard error.
pub(crate) fn estimate(environment: &Environment, args: &RunArgs) -> Result<ExitCode> {
    let Job::Train(train) = assign(environment, args)? else {
        bail!("only training runs have a memory plan; add a tuner, for example `--plugin lora`");
    };
    let model = train.model.as_deref().unwrap_or(crate::embedded::MODEL_NAME);
    let checkpoint = environment.model(model)?;
    let config = settings::resolve(Kind::Run, &train, environment, &checkpoint)?;
    let device = environment.device()?;
    let run = Run::prepare(config, checkpoint, environment, &*device, Question::None)?;
    let plan = run.memory_plan()?;
    for (name, value) in [("weights", plan.weights), ("training", plan.training), ("arena", plan.arena), ("fixed", plan.fixed)] {
        eprintln!("{name:<10}{:>12}", bytes(value));
    }
    eprintln!("{:<10}{:>12}   largest micro-batch: {} tokens", "peak", bytes(plan.peak()), plan.tokens);
    for (what, size) in run.largest_buffers(8)? {
        eprintln!("  {:>12}  {what}", bytes(size));
    }
    let mut json = serde_json::to_value(&plan)?;
    json["peak"] = plan.peak().into();
    outln!("{json}");
    Ok(ExitCode::SUCCESS)
}
