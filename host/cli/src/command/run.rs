//! `run`: load plugins, see what kinds they are, do what the kinds call for.

use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use swift_plugin::Kind as PluginKind;
use swift_train::Question;

use crate::args::{InferArgs, ModelArgs, RunArgs, SamplerArg, TrainArgs};
use crate::command::{infer, train};
use crate::environment::Environment;
use crate::settings::Kind;

/// The main job.
pub(crate) fn run(environment: &Environment, args: &RunArgs) -> Result<ExitCode> {
    if args.plugin.is_empty() {
        bail!(
            "`run` needs a plugin\nhint: `--plugin dora`, or the path of a component; `swift-host plugin list` names those at hand"
        );
    }
    match assign(environment, args)? {
        Job::Train(train_args) => {
            let question = args.prompt.clone().map_or(Question::HeldOut, Question::Text);
            train::train(environment, Kind::Run, &train_args, question)
        }
        Job::Answer { model_plugin, samplers } => infer::infer(
            environment,
            &InferArgs {
                model: ModelArgs {
                    model: args.train.model.clone(),
                    model_plugin,
                    quantization: args.train.quantization.clone(),
                    ..ModelArgs::default()
                },
                prompt: args.prompt.clone(),
                system: args.train.system.clone(),
                sampler: samplers,
                max_new_tokens: Some(64),
                ..InferArgs::default()
            },
        ),
    }
}

/// What the plugins call for.
pub(crate) enum Job {
    /// Fine-tune with these flags.
    Train(Box<TrainArgs>),
    /// Answer a prompt.
    Answer {
        /// The model plugin as it was named; none for the one that takes the model.
        model_plugin: Option<String>,
        /// Sampler plugins.
        samplers: Vec<SamplerArg>,
    },
}

/// Puts each plugin where its kind belongs.
pub(crate) fn assign(environment: &Environment, args: &RunArgs) -> Result<Job> {
    let mut train = args.train.clone();
    let mut only_answers = !args.plugin.is_empty();
    let mut samplers = Vec::new();
    for name in &args.plugin {
        let arg: SamplerArg = name.parse().map_err(|e| anyhow!("`--plugin {name}`: {e}"))?;
        let plugin = environment.plugin(&arg.plugin)?;
        let configured = arg.config.as_object().is_some_and(|config| !config.is_empty());
        if configured && !plugin.kinds().contains(&PluginKind::Sampler) {
            bail!("`--plugin {name}`: only a sampler takes its configuration here; see `swift-host run --help` for the others'");
        }
        let kinds = plugin.kinds();
        let mut placed = false;
        for kind in kinds {
            let slot = match kind {
                PluginKind::Peft => &mut train.tuner_type,
                PluginKind::Loss => &mut train.loss_type,
                PluginKind::Optimizer => &mut train.optimizer,
                PluginKind::Model => &mut train.model_plugin,
                PluginKind::Dataset if train.dataset.is_empty() => {
                    train.dataset.push(name.clone());
                    (placed, only_answers) = (true, false);
                    continue;
                }
                PluginKind::Dataset => &mut train.dataset_plugin,
                PluginKind::Sampler => {
                    samplers.push(arg.clone());
                    placed = true;
                    continue;
                }
                PluginKind::Reward | PluginKind::Metric => continue,
            };
            if slot.as_ref().is_some_and(|taken| taken != name) {
                bail!("two {kind} plugins were given, `{}` and `{name}`; a run takes one", slot.as_deref().unwrap_or_default());
            }
            *slot = Some(name.clone());
            placed = true;
            only_answers &= *kind == PluginKind::Model;
        }
        if !placed {
            let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
            bail!("`{name}` is a {} plugin, which this version can inspect but not run", kinds.join(" and "));
        }
    }
    let trains = train.tuner_type.is_some() || !train.dataset.is_empty();
    if only_answers && !trains {
        return Ok(Job::Answer { model_plugin: train.model_plugin, samplers });
    }
    if let Some(sampler) = samplers.first() {
        bail!(
            "`{}` is a sampler, which has no part in training; `infer --sampler` uses it with what was trained",
            sampler.plugin
        );
    }
    Ok(Job::Train(Box::new(train)))
}
