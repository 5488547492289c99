//! `plugin list|inspect|trace|build`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;
use swift_formats::Checkpoint;
use swift_graph::{Graph, dump, hash};
use swift_plugin::build::{self, ToolchainOptions};
use swift_plugin::{Kind, Mode, ParamInfo, StepBinding, inspect as describe};
use swift_serve::AdaptedModel;

use crate::args::PluginCommand;
use crate::embedded;
use crate::environment::Environment;

/// Dispatches.
pub(crate) fn plugin(environment: &Environment, command: &PluginCommand) -> Result<ExitCode> {
    match command {
        PluginCommand::List => list(environment),
        PluginCommand::Inspect { plugin, json } => inspect(environment, plugin, *json),
        PluginCommand::Trace { plugin, model, dot } => trace(environment, plugin, model, *dot),
        PluginCommand::Build { dir, out } => {
            let out = out.clone().unwrap_or_else(|| dir.join("dist"));
            let built = build::build_guest(dir, &out, &ToolchainOptions::default())?;
            for component in &built {
                outln!("{}", component.path.display());
            }
            eprintln!("{} components", built.len());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(environment: &Environment) -> Result<ExitCode> {
    for (name, path) in environment.bundled() {
        match environment.plugin(&name) {
            Ok(plugin) => {
                let kinds: Vec<String> = plugin.kinds().iter().map(ToString::to_string).collect();
                let summary = plugin.about().items.first().map_or("", |i| i.summary.as_str());
                outln!("{name:<16}{:<11}{summary}", kinds.join(","));
            }
            Err(error) => eprintln!("warning: `{}`: {error:#}", path.display()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(environment: &Environment, name: &str, as_json: bool) -> Result<ExitCode> {
    let plugin = environment.plugin(name)?;
    if as_json {
        outln!("{}", serde_json::to_string_pretty(&describe::json(&plugin))?);
    } else {
        out!("{}", describe::text(&plugin));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a plugin of each kind adds to a graph, on a real model where it needs one.
fn trace(environment: &Environment, name: &str, model: &str, dot: bool) -> Result<ExitCode> {
    let plugin = environment.plugin(name)?;
    let kind = *plugin.kinds().iter().find(|k| k.hosted()).context("the plugin exports nothing that this version traces")?;
    let checkpoint = environment.model(model)?;
    let graph = match kind {
        Kind::Model => AdaptedModel::open(checkpoint, &plugin)?.trace(Mode::Train)?.graph,
        Kind::Peft | Kind::Loss => {
            let model_plugin = environment.plugin(&environment.model_plugin_of(&checkpoint)?)?;
            let mut opened = AdaptedModel::open(checkpoint, &model_plugin)?;
            let tuner = if kind == Kind::Peft { plugin.clone() } else { environment.plugin("lora")? };
            opened.adapt(&tuner, "{}")?;
            let loss = if kind == Kind::Loss { plugin.clone() } else { environment.plugin("cross-entropy")? };
            swift_train::forward(&mut opened, &mut loss.loss()?, "{}")?
        }
        Kind::Optimizer => optimizer(&plugin)?,
        Kind::Sampler => sampler(&plugin, &checkpoint)?,
        Kind::Dataset | Kind::Reward | Kind::Metric => bail!("a {kind} plugin maps text; it has no graph"),
    };
    if dot {
        out!("{}", dump::dot(&graph));
    } else {
        out!("{}", dump::text(&graph));
        let calls = json!({ "nodes": graph.len(), "hash": hash::digest(&graph), "model": model });
        eprintln!("{calls}");
    }
    if model == embedded::MODEL_NAME {
        eprintln!("traced with `{model}`; `--model` takes another");
    }
    Ok(ExitCode::SUCCESS)
}

/// The transform of logits, which may be none.
fn sampler(plugin: &swift_plugin::Plugin, checkpoint: &Checkpoint) -> Result<Graph> {
    use swift_graph::{DType, Dim, SymbolId, Type};
    let width = checkpoint.config()["vocab_size"].as_u64().context("the model's configuration has no `vocab_size`")?;
    let mut g = Graph::default();
    let logits = g.input("logits", Type::new(DType::F32, vec![Dim::symbol(SymbolId::SEQUENCES), Dim::fixed(width)]))?;
    let changed = plugin.sampler()?.trace(&mut g, logits, "{}")?;
    g.outputs.push(("logits".into(), changed));
    Ok(g)
}

/// The update of one matrix.
fn optimizer(plugin: &swift_plugin::Plugin) -> Result<Graph> {
    use swift_graph::{DType, Shape, Type};
    let mut guest = plugin.optimizer()?;
    let info = ParamInfo { name: "weight".into(), shape: vec![64, 64], tags: Vec::new() };
    let plan = guest.plan("{}", &info)?;
    let mut g = Graph::default();
    let matrix = || Type::f32(Shape::fixed(&[64, 64]));
    let (grad, weight) = (g.input("grad", matrix())?, g.input("weight", matrix())?);
    let mut slots = Vec::new();
    for slot in &plan.slots {
        slots.push((slot.name.clone(), g.declare_state(&slot.name, Type::f32(Shape::fixed(&slot.shape)))?));
    }
    let mut scalars = Vec::new();
    for name in ["lr", "step", "weight-decay", "grad-norm"] {
        scalars.push((name.to_string(), g.input(name, Type::scalar(DType::F32))?));
    }
    for program in &plan.programs {
        let binding = StepBinding { info: info.clone(), grad, weight, slots: slots.clone(), scalars: scalars.clone() };
        if let Some(new) = guest.trace(&mut g, &program.name, &binding, "{}")? {
            g.outputs.push((program.name.clone(), new));
        }
    }
    Ok(g)
}
