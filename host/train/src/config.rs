//! Everything that decides a training run, resolved: no option left to a default elsewhere. Written to `args.json`, in ms-swift's
//! names, and enough to repeat the run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use swift_serve::Quantization;

use crate::Schedule;

/// When something is done during training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Never.
    No,
    /// Every so many steps.
    Steps,
    /// After each epoch.
    Epoch,
}

/// A resolved run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Command that was typed: `sft`, `pt` or `run`.
    pub command: String,
    /// Model: a GGUF file, a Hugging Face folder, or the name of the embedded one.
    pub model: String,
    /// Model plugin: a path or a bundled name.
    pub model_plugin: String,
    /// Quantization of the base while it is loaded: `bnb`, or none.
    #[serde(default)]
    pub quant_method: Option<String>,
    /// Bits of a quantized weight.
    #[serde(default)]
    pub quant_bits: Option<u32>,
    /// Levels of 4 bits: `nf4`.
    #[serde(default)]
    pub bnb_4bit_quant_type: Option<String>,
    /// Whether scales are rounded to 8 bits.
    #[serde(default)]
    pub bnb_4bit_use_double_quant: Option<bool>,
    /// Start from the model plugin's declared distributions instead of the checkpoint's weights.
    pub from_scratch: bool,
    /// Tuner plugin: a path or a bundled name.
    pub tuner_type: String,
    /// Its configuration.
    pub tuner_config: Value,
    /// Loss plugin.
    pub loss_type: String,
    /// Its configuration.
    pub loss_config: Value,
    /// Optimizer as it was asked for: a name of transformers', or a plugin's.
    #[serde(default)]
    pub optim: String,
    /// Optimizer plugin.
    pub optimizer: String,
    /// Its configuration.
    pub optimizer_config: Value,
    /// Dataset plugin; `None` chooses by the rows' keys.
    pub dataset_plugin: Option<String>,
    /// Its configuration.
    pub dataset_config: Value,
    /// Files, each with an optional `#count`, or the name of a generating dataset plugin.
    pub dataset: Vec<String>,
    /// Held-out files.
    pub val_dataset: Vec<String>,
    /// Share of rows held out when there is no `val_dataset`.
    pub split_dataset_ratio: f64,
    /// System prompt put before conversations that have none.
    pub system: Option<String>,
    /// Tokens trained on: `default`, `last_round` or `all`.
    pub loss_scale: String,
    /// Whether conversations go through the chat template; `pt` trains on plain text.
    pub use_chat_template: bool,
    /// Longest sequence in tokens.
    pub max_length: usize,
    /// What happens to longer ones: `delete`, `left` or `right`.
    pub truncation_strategy: String,
    /// Fill steps to `max_length` with several sequences.
    pub packing: bool,
    /// Sequences per micro-batch.
    pub per_device_train_batch_size: usize,
    /// Sequences per evaluation batch.
    pub per_device_eval_batch_size: usize,
    /// Micro-batches per update.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data, unless `max_steps` is given.
    pub num_train_epochs: f64,
    /// Updates; -1 leaves it to the epochs.
    pub max_steps: i64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate.
    pub lr_scheduler_type: Schedule,
    /// Share of updates spent warming up.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Global gradient norm that is not exceeded; 0 for none.
    pub max_grad_norm: f64,
    /// Seed of weights, dropout and sampling.
    pub seed: u64,
    /// Seed of the data order.
    pub data_seed: u64,
    /// Updates between log lines.
    pub logging_steps: u64,
    /// Whether the first update is logged.
    pub logging_first_step: bool,
    /// When checkpoints are written.
    pub save_strategy: Strategy,
    /// Updates between checkpoints.
    pub save_steps: u64,
    /// Checkpoints kept; `None` keeps all.
    pub save_total_limit: Option<usize>,
    /// Leave optimizer state out of checkpoints; they cannot be resumed then.
    pub save_only_model: bool,
    /// When held-out rows are evaluated.
    pub eval_strategy: Strategy,
    /// Updates between evaluations.
    pub eval_steps: u64,
    /// Held-out rows used at most by one evaluation.
    pub eval_limit: Option<usize>,
    /// What the backward pass computes again instead of keeping: `none`, `cheap` (norms, activations) or `layers` (all but the layers'
    /// inputs, which is what gradient checkpointing means elsewhere).
    pub recompute: String,
    /// Folder that run folders go into.
    pub output_dir: PathBuf,
    /// Put the run into a new folder `v<N>-<time>` of it.
    pub add_version: bool,
    /// Checkpoint folder to go on from.
    pub resume_from_checkpoint: Option<PathBuf>,
    /// CPU threads.
    pub threads: usize,
}

impl TrainConfig {
    /// How the base is quantized while it is loaded.
    pub fn quantization(&self) -> Option<Quantization> {
        let double = self.bnb_4bit_use_double_quant.unwrap_or(false);
        self.quant_method.as_ref().map(|_| Quantization { double })
    }
}
