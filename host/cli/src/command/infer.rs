//! `infer`: one prompt, one answer.

use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use swift_data::Turn;
use swift_formats::read_json;
use swift_runtime::{Device, Store};
use swift_serve::{AdaptedModel, Generator, Sampling};
use swift_train::{answer, text_of};

use crate::args::InferArgs;
use crate::embedded;
use crate::environment::Environment;

/// Largest `adapter_config.json` or `args.json` that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Cache capacity where the model's context is longer.
const MAX_CAPACITY: usize = 4096;

/// A model with its weights in a device's store.
pub(crate) struct Opened {
    /// Model and adapter method.
    pub(crate) model: AdaptedModel,
    /// Their weights.
    pub(crate) store: Store,
}

/// Opens a model, with an adapter if one is given. The adapter folder knows its base model and its method.
pub(crate) fn open(
    environment: &Environment,
    device: &dyn Device,
    model: Option<&str>,
    model_plugin: Option<&str>,
    adapters: Option<&Path>,
    tuner: Option<&str>,
) -> Result<Opened> {
    let adapter = adapters.map(|folder| AdapterSource::read(folder, tuner)).transpose()?;
    let base = adapter.as_ref().and_then(|a| a.base.clone());
    let name = model.map(str::to_string).or(base).unwrap_or_else(|| embedded::MODEL_NAME.into());
    let checkpoint = environment.model(&name)?;
    let plugin = match model_plugin {
        Some(plugin) => plugin.to_string(),
        None => environment.model_plugin_of(&checkpoint)?,
    };
    let mut opened = AdaptedModel::open(checkpoint, &environment.plugin(&plugin)?)?;
    let mut store = device.store();
    match &adapter {
        None => opened.load(&mut store, 0)?,
        Some(source) => {
            opened.adapt(&environment.plugin(&source.tuner)?, &source.config.to_string())?;
            opened.load(&mut store, 0)?;
            opened.load_adapter(&mut store, adapters.unwrap_or(Path::new(".")))?;
        }
    }
    Ok(Opened { model: opened, store })
}

/// What an adapter folder says of itself.
struct AdapterSource {
    tuner: String,
    config: Value,
    base: Option<String>,
}

impl AdapterSource {
    /// `args.json` of our own checkpoints has the tuner's own configuration; a PEFT folder is mapped from `adapter_config.json`.
    fn read(folder: &Path, tuner: Option<&str>) -> Result<AdapterSource> {
        let args = folder.join("args.json");
        if args.is_file() {
            let args = read_json(&args, MAX_CONFIG_BYTES)?;
            let name = tuner.or(args["tuner_type"].as_str());
            let name = name.ok_or_else(|| anyhow!("`{}` names no tuner; say which with `--tuner_type`", folder.display()))?;
            return Ok(AdapterSource {
                tuner: name.into(),
                config: args["tuner_config"].clone(),
                base: args["model"].as_str().map(str::to_string),
            });
        }
        let path = folder.join(swift_formats::ADAPTER_CONFIG);
        if !path.is_file() {
            bail!(
                "`{}` is no adapter folder: it has neither `args.json` nor `{}`",
                folder.display(),
                swift_formats::ADAPTER_CONFIG
            );
        }
        let peft = read_json(&path, MAX_CONFIG_BYTES)?;
        let named = match (peft["peft_type"].as_str(), peft["use_dora"].as_bool()) {
            (Some("LORA"), Some(true)) => Some("dora"),
            (Some("LORA"), _) => Some("lora"),
            _ => None,
        };
        let name = tuner.or(named).ok_or_else(|| {
            anyhow!("`{}` is of PEFT type {}; name its plugin with `--tuner_type`", folder.display(), peft["peft_type"])
        })?;
        let targets = match &peft["target_modules"] {
            Value::String(one) => json!([one]),
            other => other.clone(),
        };
        let config = json!({
            "r": peft["r"], "lora_alpha": peft["lora_alpha"], "lora_dropout": 0.0, "target_modules": targets,
            "use_rslora": peft["use_rslora"].as_bool().unwrap_or(false),
        });
        let base = peft["base_model_name_or_path"].as_str().filter(|b| Path::new(b).exists() || *b == embedded::MODEL_NAME);
        Ok(AdapterSource { tuner: name.into(), config, base: base.map(str::to_string) })
    }
}

/// Answers the prompt on standard output.
pub(crate) fn infer(environment: &Environment, args: &InferArgs) -> Result<ExitCode> {
    let device = environment.device()?;
    let (model, plugin, tuner) = (args.model.as_deref(), args.model_plugin.as_deref(), args.tuner_type.as_deref());
    let mut opened = open(environment, &*device, model, plugin, args.adapters.as_deref(), tuner)?;
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if std::io::stdin().is_terminal() => bail!("no `--prompt` was given, and standard input is a terminal"),
        None => {
            let mut text = String::new();
            std::io::stdin().take(16 << 20).read_to_string(&mut text).context("cannot read standard input")?;
            text.trim_end().to_string()
        }
    };
    if !(0.0..=1.0).contains(&args.top_p) || !args.temperature.is_finite() || args.temperature < 0.0 {
        bail!("`--top_p` must be between 0 and 1 and `--temperature` at least 0");
    }
    let text = text_of(opened.model.checkpoint())?;
    let context = opened.model.config()["max_position_embeddings"].as_u64().unwrap_or(u64::MAX) as usize;
    let length = text.tokenizer.encode(&prompt, false)?.len() + 256;
    let capacity = (length + args.max_new_tokens).min(context.min(MAX_CAPACITY.max(length)));
    let mut generator = Generator::new(&mut opened.model, &*device, &mut opened.store, 1, capacity)?;
    let system = args.system.iter().map(|s| Turn::new("system", s));
    let turns: Vec<Turn> = system.chain([Turn::new("user", prompt)]).collect();
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    let mut out = std::io::stdout().lock();
    let made = answer(&mut generator, &mut opened.store, &text, &turns, args.max_new_tokens, &sampling, |piece| {
        // A closed pipe ends the answer quietly.
        let fine = !args.stream || write!(out, "{piece}").and_then(|()| out.flush()).is_ok();
        if fine { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let end = if args.stream { writeln!(out) } else { writeln!(out, "{made}") };
    Ok(if end.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
