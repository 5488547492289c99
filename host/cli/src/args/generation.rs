//! Flags of the commands that run a model without training it.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, Subcommand, ValueEnum};
use swift_runtime::{Precision, Store};
use swift_serve::{Batching, CacheType};

use super::{QuantizationArgs, SamplerArg};

/// Which model.
#[derive(Clone, Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct ModelArgs {
    /// GGUF file, Hugging Face folder, or `swift-tiny`; with `--adapters` taken from there when not given.
    #[arg(long, help_heading = "Model", alias = "model_id_or_path")]
    pub(crate) model: Option<String>,
    /// Model plugin [default: by the model's architecture].
    #[arg(long, help_heading = "Model", value_name = "PLUGIN")]
    pub(crate) model_plugin: Option<String>,
    /// Adapter folder, for example a `checkpoint-N` of a run.
    #[arg(long, help_heading = "Model", value_name = "DIR", alias = "ckpt_dir")]
    pub(crate) adapters: Option<PathBuf>,
    /// Tuner plugin of the adapter [default: by its configuration].
    #[arg(long, help_heading = "Model", value_name = "PLUGIN")]
    pub(crate) tuner_type: Option<String>,
    #[command(flatten)]
    pub(crate) quantization: QuantizationArgs,
}

/// How answers are computed.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct ComputeArgs {
    /// Products with quantized weights: `int8` rounds activations to 8 bits and is several times faster, `exact` computes in f32
    /// [default: int8].
    #[arg(long, help_heading = "Generation", value_enum, value_name = "NAME")]
    pub(crate) precision: Option<PrecisionArg>,
    /// What keys and values are stored as.
    #[arg(long, help_heading = "Generation", value_enum, default_value_t, value_name = "TYPE")]
    pub(crate) kv_cache_dtype: CacheArg,
    /// How answers share runs of the model: by `throughput` all together, where rounding, of weights that are floats, depends on how many
    /// there are; by `reproducible` each by itself, which is slower and gives the same bits in any company.
    #[arg(long, help_heading = "Generation", value_enum, default_value_t, value_name = "NAME")]
    pub(crate) batching: BatchingArg,
}

/// `--batching`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BatchingArg {
    /// All together.
    #[default]
    Throughput,
    /// Each by itself.
    Reproducible,
}

impl From<BatchingArg> for Batching {
    fn from(arg: BatchingArg) -> Batching {
        match arg {
            BatchingArg::Throughput => Batching::Throughput,
            BatchingArg::Reproducible => Batching::Reproducible,
        }
    }
}

/// `--precision`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionArg {
    /// As training and evaluation compute.
    Exact,
    /// Activations in 8 bits.
    #[default]
    Int8,
}

impl ComputeArgs {
    /// The flags again, for another command.
    pub(crate) fn as_typed(self) -> Vec<String> {
        let name = |value: Option<PossibleValue>| value.map(|value| value.get_name().to_string());
        let flags = [
            ("--precision", self.precision.and_then(|precision| name(precision.to_possible_value()))),
            ("--kv_cache_dtype", name(self.kv_cache_dtype.to_possible_value())),
            ("--batching", name(self.batching.to_possible_value())),
        ];
        flags.into_iter().filter_map(|(flag, value)| Some([flag.to_string(), value?])).flatten().collect()
    }

    /// The precision, and what to tell a user who asks for one that changes nothing.
    pub(crate) fn precision(&self, store: &Store) -> (Precision, Option<&'static str>) {
        let asked = self.precision.unwrap_or_default();
        (asked.into(), self.precision.and_then(|asked| asked.idle(store)))
    }
}

impl PrecisionArg {
    /// Why asking for this precision has no effect on these weights, if it has none.
    pub(crate) fn idle(self, store: &Store) -> Option<&'static str> {
        (self == PrecisionArg::Int8 && !store.takes_int8()).then_some(
            "warning: `--precision int8` has no effect: no weight of this model is quantized to whole numbers; products are exact",
        )
    }
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Precision {
        match arg {
            PrecisionArg::Exact => Precision::Exact,
            PrecisionArg::Int8 => Precision::Int8,
        }
    }
}

/// `--kv_cache_dtype`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheArg {
    /// Single precision.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// 8 bits with a factor for each token of a head.
    Int8,
}

impl From<CacheArg> for CacheType {
    fn from(arg: CacheArg) -> CacheType {
        match arg {
            CacheArg::F32 => CacheType::F32,
            CacheArg::F16 => CacheType::F16,
            CacheArg::Int8 => CacheType::Int8,
        }
    }
}

/// `infer`.
#[derive(Clone, Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct InferArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Merge the adapter into the weights first, which are f32 then [default: false].
    #[arg(long, help_heading = "Model", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) merge_lora: Option<bool>,

    /// Answer this one question. Without it and without `--val_dataset`, a chat starts if standard input is a terminal, and is read
    /// as the question if not.
    #[arg(long, help_heading = "Input")]
    pub(crate) prompt: Option<String>,
    /// Answer the rows of JSON, JSONL or text files, each with an optional `#count`.
    #[arg(long, help_heading = "Input", num_args = 1.., value_name = "DATASET", conflicts_with = "prompt")]
    pub(crate) val_dataset: Vec<String>,
    /// Dataset plugin that maps rows [default: by the rows' keys].
    #[arg(long, help_heading = "Input", value_name = "PLUGIN")]
    pub(crate) dataset_plugin: Option<String>,
    /// System prompt, or a .txt file with it [default: that of the run which made the adapter or the model].
    #[arg(long, help_heading = "Input")]
    pub(crate) system: Option<String>,
    /// Answer the rows that the run of the adapter or the model held out, by its `args.json` [default: false].
    #[arg(long, help_heading = "Input", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) load_data_args: Option<bool>,
    /// Use the model's chat template; otherwise it continues plain text [default: as the adapter or the model was
    /// trained, else true].
    #[arg(long, help_heading = "Input", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) use_chat_template: Option<bool>,
    /// Another chat template: `chatml`, or a file that ends in .jinja [default: the model's].
    #[arg(long, help_heading = "Input", value_name = "TEMPLATE")]
    pub(crate) template: Option<String>,
    /// What templates of thinking models are told [default: nothing].
    #[arg(long, help_heading = "Input", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) enable_thinking: Option<bool>,
    /// Tokens of prompt and answer together at most [default: the model's context].
    #[arg(long, help_heading = "Input", value_name = "N")]
    pub(crate) max_length: Option<usize>,
    /// What happens to prompts that leave no room: `left` and `right` keep their end or beginning, `delete` leaves rows of a dataset out
    /// [default: an error].
    #[arg(long, help_heading = "Input", value_name = "NAME")]
    pub(crate) truncation_strategy: Option<String>,

    /// New tokens at most [default: what the context leaves].
    #[arg(long, help_heading = "Generation", value_name = "N")]
    pub(crate) max_new_tokens: Option<usize>,
    /// 0 is greedy [default: the model's `generation_config.json`, else greedy].
    #[arg(long, help_heading = "Generation", value_name = "X")]
    pub(crate) temperature: Option<f32>,
    /// Only the K likeliest tokens; 0 for all, 1 is greedy [default: as above].
    #[arg(long, help_heading = "Generation", value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Only the likeliest tokens that together reach P [default: as above].
    #[arg(long, help_heading = "Generation", value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Only tokens at least P times as likely as the likeliest [default: as above].
    #[arg(long, help_heading = "Generation", value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Divides the logits of tokens that already occurred [default: as above].
    #[arg(long, help_heading = "Generation", value_name = "X")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Taken off the logits of tokens that the answer already has [default: 0].
    #[arg(long, help_heading = "Generation", value_name = "X")]
    pub(crate) presence_penalty: Option<f32>,
    /// Taken off the logits for each time that the answer has the token [default: 0].
    #[arg(long, help_heading = "Generation", value_name = "X")]
    pub(crate) frequency_penalty: Option<f32>,
    /// Sampler plugin, with its configuration as `NAME:key=value,...` or `NAME:JSON`: `typical`, `eta`, `regex`, `json`, or a path. May be
    /// repeated.
    #[arg(long, help_heading = "Generation", value_name = "PLUGIN[:CONFIG]", alias = "plugin")]
    pub(crate) sampler: Vec<SamplerArg>,
    /// Texts that end an answer.
    #[arg(long, help_heading = "Generation", num_args = 1.., value_name = "TEXT")]
    pub(crate) stop_words: Vec<String>,
    /// Seed of the draws [default: 42].
    #[arg(long, help_heading = "Generation", value_name = "N")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Print tokens as they come [default: true, with `--val_dataset` false].
    #[arg(long, help_heading = "Generation", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) stream: Option<bool>,

    /// Rows answered at once; -1 for as many as 64 [default: 1].
    #[arg(long, help_heading = "Datasets", value_name = "N")]
    pub(crate) max_batch_size: Option<i64>,
    /// File to write [default: infer_result/TIME.jsonl in the adapter's, else the model's folder].
    #[arg(long, help_heading = "Datasets", value_name = "FILE")]
    pub(crate) result_path: Option<PathBuf>,
    /// Rows between writes [default: 1000].
    #[arg(long, help_heading = "Datasets", value_name = "N")]
    pub(crate) write_batch_size: Option<usize>,
    /// Judge the answers by the rows' own: `acc`, the share that is equal but for white space around it; `rouge`, means of ROUGE-1,
    /// ROUGE-2, ROUGE-L and BLEU-4 in percent. Every Chinese character counts as a word, so that the scores of Chinese answers differ
    /// from ms-swift's, which looks words up in a dictionary.
    #[arg(long, help_heading = "Datasets", value_name = "NAME")]
    pub(crate) metric: Option<String>,
    /// Record log-probabilities of the answers' tokens.
    #[arg(long, help_heading = "Datasets", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) logprobs: Option<bool>,
    /// And those of so many of the likeliest tokens at each place.
    #[arg(long, help_heading = "Datasets", value_name = "N", requires = "logprobs")]
    pub(crate) top_logprobs: Option<usize>,
}

/// `perplexity`.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Text files, read whole, or JSON and JSONL datasets, whose conversations are rendered with the chat template.
    #[arg(long, num_args = 1.., value_name = "FILE", required = true)]
    pub(crate) dataset: Vec<String>,
    /// Dataset plugin that maps rows [default: by the rows' keys].
    #[arg(long, value_name = "PLUGIN")]
    pub(crate) dataset_plugin: Option<String>,
    /// Tokens that the model sees at once [default: its context, at most 512].
    #[arg(long, value_name = "N")]
    pub(crate) max_length: Option<usize>,
    /// Tokens by which the context slides on; each token is scored once, with at least max_length - stride tokens before it
    /// [default: half of max_length].
    #[arg(long, value_name = "N")]
    pub(crate) stride: Option<usize>,
    /// Products with quantized weights: `exact` computes in f32, `int8` as generation does.
    #[arg(long, value_enum, default_value_t = PrecisionArg::Exact, value_name = "NAME")]
    pub(crate) precision: PrecisionArg,
    /// Score no more tokens than this.
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `embed`.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct EmbedArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A text. May be repeated.
    #[arg(long, value_name = "TEXT", required_unless_present = "file")]
    pub(crate) text: Vec<String>,
    /// A file with one text a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// `mean` of all tokens, `cls` the first token, or `last` the last token [default: as the model's authors say, else mean for encoders
    /// and last for decoders].
    #[arg(long, value_name = "NAME")]
    pub(crate) pooling: Option<String>,
    /// Scale vectors to length 1.
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value = "true", value_name = "BOOL")]
    pub(crate) normalize: bool,
    /// File to write [default: standard output].
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// `bench ...`
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Time to take in a prompt.
    Prefill(BenchArgs),
    /// Time of each further token.
    Decode(BenchArgs),
    /// Every kernel family, in percent of the measured ceilings of this machine.
    Kernels(BenchKernelsArgs),
}

/// `bench kernels`.
#[derive(Debug, Args)]
pub(crate) struct BenchKernelsArgs {
    /// Only this family: gemm, linear, attention, cross-entropy, lora, memory, optimizer or pool. May be repeated.
    ///
    /// Of `linear`, a shape that ends in `xN` is N weights, 1 GiB in all, of which each run reads every one from memory.
    #[arg(long, value_name = "FAMILY")]
    pub(crate) only: Vec<String>,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `bench prefill` and `bench decode`.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub(crate) prompt: usize,
    /// New tokens of each sequence.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) new: usize,
    /// Sequences at once.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) sequences: usize,
    /// Runs; the median counts.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) repeat: usize,
    /// Also print where the time went, by op.
    #[arg(long)]
    pub(crate) profile: bool,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
