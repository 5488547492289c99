//! `run`: load plugins, see what kinds they are, do what the kinds call for.

use std::process::ExitCode;

use anyhow::{Result, bail};
use swift_plugin::Kind as PluginKind;
use swift_train::Question;

use crate::args::{InferArgs, ModelArgs, RunArgs, TrainArgs};
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
        Job::Answer { model_plugin } => infer::infer(
            environment,
            &InferArgs {
                model: ModelArgs {
                    model: args.train.model.clone(),
                    model_plugin: Some(model_plugin),
                    quantization: args.train.quantization.clone(),
                    ..ModelArgs::default()
                },
                prompt: args.prompt.clone(),
                system: args.train.system.clone(),
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
    /// Answer a prompt with this model plugin.
    Answer {
        /// The plugin as it was named.
        model_plugin: String,
    },
}

/// Puts each plugin where its kind belongs.
pub(crate) fn assign(environment: &Environment, args: &RunArgs) -> Result<Job> {
    let mut train = args.train.clone();
    let mut only_model = !args.plugin.is_empty();
    for name in &args.plugin {
        let plugin = environment.plugin(name)?;
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
                    (placed, only_model) = (true, false);
                    continue;
                }
                PluginKind::Dataset => &mut train.dataset_plugin,
                PluginKind::Reward | PluginKind::Sampler | PluginKind::Metric => continue,
            };
            if slot.as_ref().is_some_and(|taken| taken != name) {
                bail!("two {kind} plugins were given, `{}` and `{name}`; a run takes one", slot.as_deref().unwrap_or_default());
            }
            *slot = Some(name.clone());
            placed = true;
            only_model &= *kind == PluginKind::Model;
        }
        if !placed {
            let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
            bail!("`{name}` is a {} plugin, which this version can inspect but not run", kinds.join(" and "));
        }
    }
    let trains = train.tuner_type.is_some() || !train.dataset.is_empty();
    Ok(match &train.model_plugin {
        Some(plugin) if only_model && !trains => Job::Answer { model_plugin: plugin.clone() },
        _ => Job::Train(Box::new(train)),
    })
}
