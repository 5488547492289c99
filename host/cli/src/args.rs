//! The command line as typed. Flags carry ms-swift's names; `--lora-rank` and `--lora_rank` are the same flag.

mod generation;
mod quantization;
mod refused;
mod sampler;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub(crate) use generation::{
    BenchArgs, BenchCommand, BenchKernelsArgs, ComputeArgs, EmbedArgs, InferArgs, ModelArgs, PerplexityArgs,
};
pub(crate) use quantization::QuantizationArgs;
pub(crate) use sampler::SamplerArg;

/// Fine-tunes, aligns, evaluates and serves large models; every method is a sandboxed WebAssembly plugin.
#[derive(Debug, Parser)]
#[command(name = "swift-host", version, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// CPU threads [default: all cores].
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Plugin limit as NAME=VALUE, for example `fuel=4000000000`; `doctor` lists the names. May be repeated.
    #[arg(long = "limit", global = true, value_name = "NAME=VALUE")]
    pub(crate) limits: Vec<String>,
    /// Right given to plugins that ask for it, for example `materialize-logits`. May be repeated.
    #[arg(long = "grant", global = true, value_name = "RIGHT")]
    pub(crate) grants: Vec<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Load a plugin and do what its kind calls for: a tuner, loss, optimizer or dataset fine-tunes, a model or sampler answers.
    Run(Box<RunArgs>),
    /// Supervised fine-tuning with ms-swift's flags.
    Sft(Box<TrainArgs>),
    /// Pretraining on plain text: `sft` without chat template, on every token.
    Pt(Box<PtArgs>),
    /// Chat in the terminal, answer one prompt, or answer a dataset into a JSONL file.
    Infer(Box<InferArgs>),
    /// Write the logits of a token sequence, `[tokens, vocab]` f32, to a safetensors file.
    Logits(LogitsArgs),
    /// How well a model predicts a text: e to the mean negative log-likelihood of a token.
    Perplexity(PerplexityArgs),
    /// Write a vector for each text to a JSONL file or standard output.
    Embed(EmbedArgs),
    /// Measure speed against what this machine can do.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Write a model, with its adapter merged in, as a GGUF file or a Hugging Face folder.
    Export(ExportArgs),
    /// Show the memory plan of a run before it starts; takes the flags of `run`, without a plugin those of `sft`.
    Estimate(Box<RunArgs>),
    /// Plugins: list, inspect, trace and build them.
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Show what this machine has, which kernels will run, and all limits.
    Doctor,
}

/// `plugin ...`
#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// List the plugins that can be named without a path.
    List,
    /// Show what a component is: kinds, interfaces, limits, digest.
    Inspect {
        /// Path or bundled name.
        plugin: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the graph that a plugin traces, as text or DOT.
    Trace {
        /// Path or bundled name.
        plugin: String,
        /// Model to trace it with.
        #[arg(long, default_value = crate::embedded::MODEL_NAME)]
        model: String,
        /// Graphviz instead of text.
        #[arg(long)]
        dot: bool,
    },
    /// Build a guest crate, or a workspace of them, into components.
    Build {
        /// Folder with a `Cargo.toml`.
        dir: PathBuf,
        /// Where components go [default: DIR/dist].
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

/// `run` and `estimate`.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct RunArgs {
    /// Plugin: a path to a component, or a bundled name such as `dora`. May be repeated for a tuner, a loss and so on. A sampler takes
    /// its configuration as `infer --sampler` does.
    #[arg(long, value_name = "PLUGIN")]
    pub(crate) plugin: Vec<String>,
    /// Question to ask before and after training; with a model or sampler plugin, the prompt.
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) train: TrainArgs,
}

/// `pt`.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct PtArgs {
    /// Start from random weights; the model's configuration still comes from `--model`.
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub(crate) from_scratch: bool,
    #[command(flatten)]
    pub(crate) train: TrainArgs,
}

/// Flags of every training command.
#[derive(Clone, Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct TrainArgs {
    /// GGUF file, Hugging Face folder, or `swift-tiny`, the embedded model.
    #[arg(long, help_heading = "Model", alias = "model_id_or_path")]
    pub(crate) model: Option<String>,
    /// Model plugin [default: by the model's architecture].
    #[arg(long, help_heading = "Model", value_name = "PLUGIN")]
    pub(crate) model_plugin: Option<String>,
    #[command(flatten)]
    pub(crate) quantization: QuantizationArgs,

    /// Tuner plugin: `lora`, `dora`, `full`, or a path [default: lora].
    #[arg(long, help_heading = "Tuner", alias = "train_type", alias = "sft_type", value_name = "PLUGIN")]
    pub(crate) tuner_type: Option<String>,
    /// LoRA rank [default: 8].
    #[arg(long, help_heading = "Tuner", value_name = "N")]
    pub(crate) lora_rank: Option<u32>,
    /// LoRA scale numerator [default: 32].
    #[arg(long, help_heading = "Tuner", value_name = "X")]
    pub(crate) lora_alpha: Option<f64>,
    /// Dropout before the LoRA branch [default: 0.05].
    #[arg(long, help_heading = "Tuner", value_name = "P")]
    pub(crate) lora_dropout: Option<f64>,
    /// Modules to adapt: `all-linear`, or name endings [default: all-linear].
    #[arg(long, help_heading = "Tuner", num_args = 1.., value_name = "NAME")]
    pub(crate) target_modules: Vec<String>,
    /// Scale by alpha/sqrt(rank) instead of alpha/rank [default: false].
    #[arg(long, help_heading = "Tuner", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) use_rslora: Option<bool>,
    /// Same as `--tuner_type dora` [default: false].
    #[arg(long, help_heading = "Tuner", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) use_dora: Option<bool>,
    /// Configuration of the tuner plugin, JSON; wins over the flags above.
    #[arg(long, help_heading = "Tuner", value_name = "JSON")]
    pub(crate) tuner_config: Option<String>,

    /// Loss plugin [default: cross-entropy].
    #[arg(long, help_heading = "Loss and optimizer", alias = "loss_name", value_name = "PLUGIN")]
    pub(crate) loss_type: Option<String>,
    /// Configuration of the loss plugin, JSON.
    #[arg(long, help_heading = "Loss and optimizer", value_name = "JSON")]
    pub(crate) loss_config: Option<String>,
    /// Optimizer by the names of transformers: `adamw_torch`, `adamw_torch_fused` and `adamw_hf` are AdamW, `adamw_bnb_8bit` and
    /// `adamw_8bit` AdamW with moments in 8 bits; or an optimizer plugin [default: adamw_torch].
    #[arg(long, help_heading = "Loss and optimizer", value_name = "NAME")]
    pub(crate) optim: Option<String>,
    /// Optimizer plugin, in the place of `--optim`.
    #[arg(long, help_heading = "Loss and optimizer", value_name = "PLUGIN")]
    pub(crate) optimizer: Option<String>,
    /// Configuration of the optimizer plugin, JSON.
    #[arg(long, help_heading = "Loss and optimizer", value_name = "JSON")]
    pub(crate) optimizer_config: Option<String>,
    /// Peak learning rate [default: 1e-4, full 1e-5].
    #[arg(long, help_heading = "Loss and optimizer", value_name = "X")]
    pub(crate) learning_rate: Option<f64>,
    /// `cosine`, `linear`, `constant` or `constant_with_warmup` [default: cosine].
    #[arg(long, help_heading = "Loss and optimizer", value_name = "NAME")]
    pub(crate) lr_scheduler_type: Option<String>,
    /// Share of updates spent warming up [default: 0].
    #[arg(long, help_heading = "Loss and optimizer", value_name = "X")]
    pub(crate) warmup_ratio: Option<f64>,
    /// Decoupled weight decay [default: 0.1].
    #[arg(long, help_heading = "Loss and optimizer", value_name = "X")]
    pub(crate) weight_decay: Option<f64>,
    /// AdamW's first decay rate [default: 0.9].
    #[arg(long, help_heading = "Loss and optimizer", value_name = "X")]
    pub adam_beta1: Option<f64>,
    /// AdamW's second decay rate [default: 0.95].
    #[arg(long, help_heading = "Loss and optimizer", value_name = "X")]
    pub adam_beta2: Option<f64>,
    /// AdamW's epsilon [default: 1e-8].
    #[arg(long, help_heading = "Loss and optimizer", value_name = "X")]
    pub(crate) adam_epsilon: Option<f64>,
    /// Gradient norm that is not exceeded, 0 for none [default: 1].
    #[arg(long, help_heading = "Loss and optimizer", value_name = "X")]
    pub(crate) max_grad_norm: Option<f64>,

    /// JSON or JSONL files, each with an optional `#count`, or the name of a generating dataset plugin such as `synthetic`.
    #[arg(long, help_heading = "Data", num_args = 1.., value_name = "DATASET")]
    pub(crate) dataset: Vec<String>,
    /// Held-out files.
    #[arg(long, help_heading = "Data", num_args = 1.., value_name = "DATASET")]
    pub(crate) val_dataset: Vec<String>,
    /// Share of rows held out for evaluation [default: 0; `run` 0.05].
    #[arg(long, help_heading = "Data", value_name = "X")]
    pub(crate) split_dataset_ratio: Option<f64>,
    /// Dataset plugin that maps rows [default: by the rows' keys].
    #[arg(long, help_heading = "Data", value_name = "PLUGIN")]
    pub(crate) dataset_plugin: Option<String>,
    /// Configuration of the dataset plugin, JSON.
    #[arg(long, help_heading = "Data", value_name = "JSON")]
    pub(crate) dataset_config: Option<String>,
    /// System prompt for conversations that have none.
    #[arg(long, help_heading = "Data")]
    pub(crate) system: Option<String>,
    /// Tokens trained on: `default` (assistant turns), `last_round` or `all` [default: default; `pt` all].
    #[arg(long, help_heading = "Data", value_name = "NAME")]
    pub(crate) loss_scale: Option<String>,
    /// Longest sequence in tokens [default: the model's, at most 2048].
    #[arg(long, help_heading = "Data", value_name = "N")]
    pub(crate) max_length: Option<usize>,
    /// What happens to longer sequences: `delete`, `left` or `right` [default: delete].
    #[arg(long, help_heading = "Data", value_name = "NAME")]
    pub(crate) truncation_strategy: Option<String>,
    /// Fill steps to `max_length` with several sequences, without attention between them [default: false].
    #[arg(long, help_heading = "Data", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) packing: Option<bool>,

    /// Sequences per micro-batch [default: 1].
    #[arg(long, help_heading = "Steps", value_name = "N")]
    pub(crate) per_device_train_batch_size: Option<usize>,
    /// Sequences per evaluation batch [default: 1].
    #[arg(long, help_heading = "Steps", value_name = "N")]
    pub(crate) per_device_eval_batch_size: Option<usize>,
    /// Micro-batches per update [default: until 16 sequences].
    #[arg(long, help_heading = "Steps", value_name = "N")]
    pub(crate) gradient_accumulation_steps: Option<usize>,
    /// Passes over the data [default: 3].
    #[arg(long, help_heading = "Steps", value_name = "X")]
    pub(crate) num_train_epochs: Option<f64>,
    /// Updates; -1 leaves it to the epochs [default: -1].
    #[arg(long, help_heading = "Steps", value_name = "N", allow_negative_numbers = true)]
    pub(crate) max_steps: Option<i64>,
    /// Seed of weights, dropout and sampling [default: 42].
    #[arg(long, help_heading = "Steps", value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Seed of the data order [default: 42].
    #[arg(long, help_heading = "Steps", value_name = "N")]
    pub(crate) data_seed: Option<u64>,
    /// `true` keeps only the layers' inputs for the backward pass, `false` keeps everything; cheap values alone are computed again
    /// when not given.
    #[arg(long, help_heading = "Steps", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) gradient_checkpointing: Option<bool>,

    /// Folder that run folders go into [default: output/MODEL].
    #[arg(long, help_heading = "Output", value_name = "DIR")]
    pub(crate) output_dir: Option<PathBuf>,
    /// Put the run into a new folder `v<N>-<time>` [default: true].
    #[arg(long, help_heading = "Output", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) add_version: Option<bool>,
    /// Print where the time of training steps went, by op.
    #[arg(long, help_heading = "Output")]
    pub(crate) profile: bool,
    /// Updates between log lines [default: 5].
    #[arg(long, help_heading = "Output", value_name = "N")]
    pub(crate) logging_steps: Option<u64>,
    /// Whether the first update is logged [default: true].
    #[arg(long, help_heading = "Output", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) logging_first_step: Option<bool>,
    /// When checkpoints are written: `no`, `steps` or `epoch` [default: steps].
    #[arg(long, help_heading = "Output", value_name = "NAME")]
    pub(crate) save_strategy: Option<String>,
    /// Updates between checkpoints [default: 500].
    #[arg(long, help_heading = "Output", value_name = "N")]
    pub(crate) save_steps: Option<u64>,
    /// Checkpoints kept [default: all].
    #[arg(long, help_heading = "Output", value_name = "N")]
    pub(crate) save_total_limit: Option<usize>,
    /// Leave optimizer state out; such checkpoints cannot be resumed [default: false].
    #[arg(long, help_heading = "Output", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) save_only_model: Option<bool>,
    /// When held-out rows are evaluated: `no`, `steps` or `epoch` [default: as `save_strategy`, `no` without held-out rows].
    #[arg(long, help_heading = "Output", value_name = "NAME")]
    pub(crate) eval_strategy: Option<String>,
    /// Updates between evaluations [default: as `save_steps`].
    #[arg(long, help_heading = "Output", value_name = "N")]
    pub(crate) eval_steps: Option<u64>,
    /// Checkpoint folder to go on from.
    #[arg(long, help_heading = "Output", value_name = "DIR")]
    pub(crate) resume_from_checkpoint: Option<PathBuf>,
}

/// `logits`.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Token ids, separated by commas.
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "ID,...", required_unless_present = "text")]
    pub(crate) tokens: Vec<i32>,
    /// Text to take the token ids from, instead.
    #[arg(long, conflicts_with = "tokens")]
    pub(crate) text: Option<String>,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// `export`.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// `f32`, `f16` or `bf16` for GGUF [default: f16].
    #[arg(long, value_name = "TYPE")]
    pub(crate) quant: Option<String>,
    /// File that ends in .gguf, or a folder.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// Replace what is there.
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub(crate) exist_ok: bool,
}

/// Reads a command line. A number may be negative wherever one is taken, so that one out of range is refused by what reads it and not
/// as a flag of that name; and flags of ms-swift that this program cannot have are refused with the reason.
///
/// # Errors
/// When the line is not understood; also for `--help` and `--version`, which clap answers that way.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = negative_numbers(Cli::command());
    let matches = command.try_get_matches_from_mut(normalise(args)).map_err(|error| {
        let unknown = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(flag)) if error.kind() == ErrorKind::UnknownArgument => flag.clone(),
            _ => return error,
        };
        match refused::reason(unknown.trim_start_matches('-')) {
            Some(reason) => command.error(ErrorKind::UnknownArgument, format!("`{unknown}`: {reason}")),
            None => error,
        }
    })?;
    Cli::from_arg_matches(&matches)
}

fn negative_numbers(command: clap::Command) -> clap::Command {
    let takes_one = |arg: clap::Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(takes_one).mut_subcommands(negative_numbers)
}

/// Spells flags with underscores, so that `--lora-rank 8`, `--lora_rank 8` and `--lora-rank=8` are one flag.
fn normalise(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut literal = false;
    let spell = |arg: OsString| {
        literal |= arg == "--";
        match arg.to_str() {
            Some(text) if !literal && text.starts_with("--") && text.len() > 2 => {
                let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
                OsString::from(format!("--{}{value}", name[2..].replace('-', "_")))
            }
            _ => arg,
        }
    };
    args.map(spell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        super::parse(std::iter::once("swift-host").chain(line.split(' ')).map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        negative_numbers(Cli::command()).debug_assert();
    }

    #[test]
    fn negative_numbers_are_values() {
        let line = "infer --temperature -1 --presence_penalty -0.5 --top_p -0.001";
        let Command::Infer(args) = parse(line).unwrap().command else { panic!("not infer") };
        assert_eq!((args.temperature, args.presence_penalty, args.top_p), (Some(-1.0), Some(-0.5), Some(-0.001)));
        // What can only be a count says so itself.
        let message = parse("infer --top_k -1").unwrap_err().to_string();
        assert!(message.contains("'-1'") && message.contains("--top_k"), "{message}");
        assert!(parse("infer -5").is_err());
    }

    #[test]
    fn flags_that_cannot_be_had_say_why() {
        for (line, word) in [
            ("infer --vllm_max_model_len 4096", "engine of its own"),
            ("infer --infer-backend vllm", "engine of its own"),
            ("sft --attn_impl flash_attn", "one implementation"),
            ("infer --num_beams 4", "beam search"),
        ] {
            let message = parse(line).unwrap_err().to_string();
            assert!(message.contains(word), "{line}: {message}");
        }
    }

    #[test]
    fn both_spellings_are_one_flag() {
        for line in ["sft --lora_rank 4 --use_rslora true", "sft --lora-rank=4 --use-rslora"] {
            let Command::Sft(args) = parse(line).unwrap().command else { panic!("not sft") };
            assert_eq!((args.lora_rank, args.use_rslora), (Some(4), Some(true)));
        }
    }

    #[test]
    fn a_misspelt_flag_is_refused_with_a_suggestion() {
        let message = parse("sft --lora_rnk 4").unwrap_err().to_string();
        assert!(message.contains("--lora_rank"), "{message}");
    }
}
