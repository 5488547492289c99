//! From flags as typed to a resolved run: ms-swift's defaults, and an error for every flag that would have no effect.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};
use swift_formats::Checkpoint;
use swift_plugin::Plugin;
use swift_train::{Strategy, TrainConfig};

use crate::args::TrainArgs;
use crate::embedded;
use crate::environment::Environment;

/// Sequences per update that the default accumulation reaches.
const DEFAULT_TOTAL_BATCH: usize = 16;
/// Longest sequence where neither flag nor model says less.
const DEFAULT_MAX_LENGTH: usize = 2048;

/// Which command the flags belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `sft`.
    Sft,
    /// `pt`.
    Pt {
        /// Random weights.
        from_scratch: bool,
    },
    /// `run` and `estimate`: a model and a dataset are there even if none is named.
    Run,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Sft => "sft",
            Kind::Pt { .. } => "pt",
            Kind::Run => "run",
        }
    }
}

/// Resolves a training command.
pub(crate) fn resolve(kind: Kind, args: &TrainArgs, environment: &Environment, checkpoint: &Checkpoint) -> Result<TrainConfig> {
    let model = args.model.clone().unwrap_or_else(|| embedded::MODEL_NAME.to_string());
    let demo = kind == Kind::Run && args.model.is_none() && args.dataset.is_empty();
    let defaults = if demo { demo_defaults() } else { TrainArgs::default() };
    let (typed, args) = (args, &over(args, &defaults));
    let dataset = match (args.dataset.is_empty(), kind) {
        (false, _) => args.dataset.clone(),
        (true, Kind::Run) => vec!["synthetic".to_string()],
        (true, _) => bail!("`--dataset` is missing\nhint: give JSON or JSONL files, or `synthetic` for generated rows"),
    };
    let tuner_type = tuner_of(kind, args)?;
    let tuner = environment.plugin(&tuner_type)?;
    let full = matches!(tuner_type.as_str(), "full");
    let optimizer = Optimizer::of(args, environment)?;
    let quantization = args.quantization.resolve()?;
    if quantization.quant_method.is_some() {
        if full {
            bail!(
                "`--quant_method` has no effect on the tuner `full`, which trains the weights themselves\nhint: `--tuner_type lora`"
            );
        }
        if matches!(kind, Kind::Pt { from_scratch: true }) {
            bail!("`--quant_method` has no effect with `--from_scratch`, which loads no weights");
        }
    }
    let batch = args.per_device_train_batch_size.unwrap_or(1);
    let context = checkpoint.config()["max_position_embeddings"].as_u64().unwrap_or(u64::MAX) as usize;
    let save_strategy = strategy("save_strategy", args.save_strategy.as_deref(), Strategy::Steps)?;
    let save_steps = args.save_steps.unwrap_or(500);
    let held_out = args.split_dataset_ratio.unwrap_or(if kind == Kind::Run { 0.05 } else { 0.0 });
    let generated = dataset.iter().any(|d| !Path::new(d).exists() && !d.contains('.'));
    let has_eval = !args.val_dataset.is_empty() || held_out > 0.0 || (generated && !matches!(kind, Kind::Pt { .. }));
    let eval_default = if has_eval { save_strategy } else { Strategy::No };
    let eval_strategy = strategy("eval_strategy", args.eval_strategy.as_deref(), eval_default)?;
    if eval_strategy != Strategy::No && !has_eval {
        bail!("`--eval_strategy` needs held-out rows\nhint: add `--split_dataset_ratio 0.05` or `--val_dataset FILE`");
    }
    let idle = [
        ("save_steps", args.save_steps.is_some() && save_strategy != Strategy::Steps, "checkpoints are not written by steps"),
        ("save_total_limit", args.save_total_limit.is_some() && save_strategy == Strategy::No, "no checkpoint is written"),
        ("eval_steps", args.eval_steps.is_some() && eval_strategy != Strategy::Steps, "held-out rows are not evaluated by steps"),
        (
            "split_dataset_ratio",
            args.split_dataset_ratio.is_some_and(|r| r > 0.0) && !args.val_dataset.is_empty(),
            "`--val_dataset` holds the rows for evaluation",
        ),
    ];
    if let Some((flag, _, why)) = idle.iter().find(|(_, idle, _)| *idle) {
        bail!("`--{flag}` has no effect: {why}");
    }
    Ok(TrainConfig {
        command: kind.name().to_string(),
        model_plugin: match &args.model_plugin {
            Some(plugin) => plugin.clone(),
            None => environment.model_plugin_of(checkpoint)?,
        },
        quant_method: quantization.quant_method,
        quant_bits: quantization.quant_bits,
        bnb_4bit_quant_type: quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant: quantization.bnb_4bit_use_double_quant,
        from_scratch: matches!(kind, Kind::Pt { from_scratch: true }),
        tuner_config: tuner_config(args, typed, &tuner)?,
        tuner_type,
        loss_type: args.loss_type.clone().unwrap_or_else(|| "cross-entropy".into()),
        loss_config: json_flag("loss_config", args.loss_config.as_deref())?,
        optimizer_config: optimizer_config(args, &optimizer, environment)?,
        optim: optimizer.asked,
        optimizer: optimizer.plugin,
        dataset_plugin: args.dataset_plugin.clone(),
        dataset_config: json_flag("dataset_config", args.dataset_config.as_deref())?,
        dataset,
        val_dataset: args.val_dataset.clone(),
        split_dataset_ratio: held_out,
        system: args.system.clone(),
        loss_scale: args.loss_scale.clone().unwrap_or_else(|| match kind {
            Kind::Pt { .. } => "all".into(),
            _ => "default".into(),
        }),
        use_chat_template: !matches!(kind, Kind::Pt { .. }),
        max_length: args.max_length.unwrap_or_else(|| context.min(DEFAULT_MAX_LENGTH)),
        truncation_strategy: args.truncation_strategy.clone().unwrap_or_else(|| "delete".into()),
        packing: args.packing.unwrap_or(false),
        per_device_train_batch_size: batch,
        per_device_eval_batch_size: args.per_device_eval_batch_size.unwrap_or(1),
        gradient_accumulation_steps: args
            .gradient_accumulation_steps
            .unwrap_or_else(|| DEFAULT_TOTAL_BATCH.div_ceil(batch.max(1))),
        num_train_epochs: args.num_train_epochs.unwrap_or(3.0),
        max_steps: args.max_steps.unwrap_or(-1),
        learning_rate: args.learning_rate.unwrap_or(if full { 1e-5 } else { 1e-4 }),
        lr_scheduler_type: args.lr_scheduler_type.as_deref().unwrap_or("cosine").parse().map_err(|e: String| anyhow!(e))?,
        warmup_ratio: args.warmup_ratio.unwrap_or(0.0),
        weight_decay: args.weight_decay.unwrap_or(0.1),
        max_grad_norm: args.max_grad_norm.unwrap_or(1.0),
        seed: args.seed.unwrap_or(42),
        data_seed: args.data_seed.unwrap_or(42),
        logging_steps: args.logging_steps.unwrap_or(5),
        logging_first_step: args.logging_first_step.unwrap_or(true),
        save_strategy,
        save_steps,
        save_total_limit: args.save_total_limit,
        save_only_model: args.save_only_model.unwrap_or(false),
        eval_strategy,
        eval_steps: args.eval_steps.unwrap_or(save_steps),
        eval_limit: None,
        recompute: match args.gradient_checkpointing {
            None => "cheap".into(),
            Some(true) => "layers".into(),
            Some(false) => "none".into(),
        },
        output_dir: args.output_dir.clone().unwrap_or_else(|| {
            let name = Path::new(&model).file_stem().map_or_else(|| model.clone(), |n| n.to_string_lossy().into_owned());
            Path::new("output").join(name)
        }),
        add_version: args.add_version.unwrap_or(true),
        resume_from_checkpoint: args.resume_from_checkpoint.clone(),
        threads: environment.threads,
        model,
    })
}

/// What the main job uses when nothing is named: about a minute on two cores.
fn demo_defaults() -> TrainArgs {
    TrainArgs {
        per_device_train_batch_size: Some(32),
        gradient_accumulation_steps: Some(1),
        per_device_eval_batch_size: Some(32),
        max_steps: Some(1000),
        learning_rate: Some(3e-3),
        warmup_ratio: Some(0.05),
        lora_rank: Some(16),
        lora_dropout: Some(0.0),
        ..TrainArgs::default()
    }
}

/// `args`, with `defaults` where nothing was typed.
fn over(args: &TrainArgs, defaults: &TrainArgs) -> TrainArgs {
    TrainArgs {
        per_device_train_batch_size: args.per_device_train_batch_size.or(defaults.per_device_train_batch_size),
        gradient_accumulation_steps: args.gradient_accumulation_steps.or(defaults.gradient_accumulation_steps),
        per_device_eval_batch_size: args.per_device_eval_batch_size.or(defaults.per_device_eval_batch_size),
        max_steps: args.max_steps.or(if args.num_train_epochs.is_some() { None } else { defaults.max_steps }),
        learning_rate: args.learning_rate.or(defaults.learning_rate),
        warmup_ratio: args.warmup_ratio.or(defaults.warmup_ratio),
        lora_rank: args.lora_rank.or(defaults.lora_rank),
        lora_dropout: args.lora_dropout.or(defaults.lora_dropout),
        ..args.clone()
    }
}

fn tuner_of(kind: Kind, args: &TrainArgs) -> Result<String> {
    let default = if matches!(kind, Kind::Pt { from_scratch: true }) { "full" } else { "lora" };
    let named = args.tuner_type.clone();
    match (args.use_dora.unwrap_or(false), named.as_deref()) {
        (true, None | Some("lora") | Some("dora")) => Ok("dora".into()),
        (true, Some(other)) => bail!("`--use_dora` has no effect on the tuner `{other}`; leave one of the two out"),
        (false, _) => Ok(named.unwrap_or_else(|| default.into())),
    }
}

/// The tuner's configuration: the LoRA flags by PEFT's names where the plugin knows them, then `--tuner_config` on top. A flag that was
/// `typed` and that the plugin does not know is an error; a default is not.
fn tuner_config(args: &TrainArgs, typed: &TrainArgs, plugin: &Plugin) -> Result<Value> {
    let targets = if args.target_modules.is_empty() { vec!["all-linear".to_string()] } else { args.target_modules.clone() };
    let fields = [
        ("r", "lora_rank", typed.lora_rank.is_some(), json!(args.lora_rank.unwrap_or(8))),
        ("lora_alpha", "lora_alpha", typed.lora_alpha.is_some(), json!(args.lora_alpha.unwrap_or(32.0))),
        ("lora_dropout", "lora_dropout", typed.lora_dropout.is_some(), json!(args.lora_dropout.unwrap_or(0.05))),
        ("target_modules", "target_modules", !typed.target_modules.is_empty(), json!(targets)),
        ("use_rslora", "use_rslora", typed.use_rslora.is_some(), json!(args.use_rslora.unwrap_or(false))),
    ];
    let known = schema_fields(plugin, swift_plugin::Kind::Peft);
    let mut config = Map::new();
    for (field, flag, was_typed, value) in fields {
        if known.iter().any(|k| k == field) {
            config.insert(field.into(), value);
        } else if was_typed {
            bail!(
                "`--{flag}` has no effect on the tuner `{}`, which takes {}\nhint: `--tuner_config` sets its own fields",
                plugin.about().name,
                if known.is_empty() { "no configuration".to_string() } else { known.join(", ") }
            );
        }
    }
    merge(&mut config, json_flag("tuner_config", args.tuner_config.as_deref())?);
    Ok(Value::Object(config))
}

/// Names that transformers has for optimizers: what was asked for, the plugin, and whether its moments take 8 bits.
const OPTIMIZERS: [(&str, &str, bool); 5] = [
    ("adamw_torch", "adamw", false),
    ("adamw_torch_fused", "adamw", false),
    ("adamw_hf", "adamw", false),
    ("adamw_bnb_8bit", "adamw", true),
    ("adamw_8bit", "adamw", true),
];

/// An optimizer that was asked for.
struct Optimizer {
    asked: String,
    plugin: String,
    eight_bit: bool,
}

impl Optimizer {
    fn of(args: &TrainArgs, environment: &Environment) -> Result<Optimizer> {
        let asked = match (&args.optim, &args.optimizer) {
            (Some(optim), Some(optimizer)) => {
                bail!("`--optim {optim}` has no effect beside the optimizer plugin `{optimizer}`\nhint: leave one of the two out")
            }
            (Some(name), None) | (None, Some(name)) => name.as_str(),
            (None, None) => OPTIMIZERS[0].0,
        };
        let known = OPTIMIZERS.iter().find(|(name, ..)| args.optimizer.is_none() && *name == asked);
        if let Some((_, plugin, eight_bit)) = known {
            return Ok(Optimizer { asked: asked.into(), plugin: (*plugin).into(), eight_bit: *eight_bit });
        }
        let is_optimizer = |plugin: &Plugin| plugin.kinds().contains(&swift_plugin::Kind::Optimizer);
        let found = environment.plugin(asked);
        if args.optim.is_some() && !found.as_ref().is_ok_and(is_optimizer) {
            let bundled = environment.bundled().into_iter().map(|(name, _)| name);
            let plugins = bundled.filter(|name| environment.plugin(name).is_ok_and(|p| is_optimizer(&p)));
            let known: Vec<String> = OPTIMIZERS.iter().map(|(name, ..)| name.to_string()).chain(plugins).collect();
            bail!("`--optim {asked}`: known are {}, and the path of an optimizer plugin", known.join(", "));
        }
        found?;
        Ok(Optimizer { asked: asked.into(), plugin: asked.into(), eight_bit: false })
    }
}

fn optimizer_config(args: &TrainArgs, optimizer: &Optimizer, environment: &Environment) -> Result<Value> {
    let plugin = environment.plugin(&optimizer.plugin)?;
    let known = schema_fields(&plugin, swift_plugin::Kind::Optimizer);
    let fields =
        [("adam_beta1", args.adam_beta1, 0.9), ("adam_beta2", args.adam_beta2, 0.95), ("adam_epsilon", args.adam_epsilon, 1e-8)];
    let mut config = Map::new();
    for (name, typed, default) in fields {
        if known.iter().any(|k| k == name) {
            config.insert(name.into(), json!(typed.unwrap_or(default)));
        } else if typed.is_some() {
            bail!("`--{name}` has no effect on the optimizer `{}`", plugin.about().name);
        }
    }
    if optimizer.eight_bit {
        config.insert("eight_bit".into(), json!(true));
    }
    merge(&mut config, json_flag("optimizer_config", args.optimizer_config.as_deref())?);
    Ok(Value::Object(config))
}

/// Field names of a plugin's configuration schema.
fn schema_fields(plugin: &Plugin, kind: swift_plugin::Kind) -> Vec<String> {
    let item = plugin.about().items.iter().find(|i| i.kind == kind);
    let schema: Value = item.and_then(|i| serde_json::from_str(&i.config_schema).ok()).unwrap_or(Value::Null);
    schema["properties"].as_object().map(|p| p.keys().cloned().collect()).unwrap_or_default()
}

fn merge(config: &mut Map<String, Value>, over: Value) {
    if let Value::Object(over) = over {
        config.extend(over);
    }
}

fn json_flag(name: &str, text: Option<&str>) -> Result<Value> {
    let Some(text) = text else { return Ok(json!({})) };
    let value: Value = serde_json::from_str(text).with_context(|| format!("`--{name}` is not JSON"))?;
    if !value.is_object() {
        bail!("`--{name}` must be a JSON object, for example '{{\"r\": 8}}'");
    }
    Ok(value)
}

fn strategy(flag: &str, name: Option<&str>, default: Strategy) -> Result<Strategy> {
    match name {
        None => Ok(default),
        Some("no") => Ok(Strategy::No),
        Some("steps") => Ok(Strategy::Steps),
        Some("epoch") => Ok(Strategy::Epoch),
        Some(other) => bail!("`--{flag} {other}`: known are no, steps and epoch"),
    }
}
