//! From dataset names to tokenized units, through dataset plugins.
//!
//! A unit is what must stay together in one micro-batch: one sequence, or a (chosen, rejected) pair.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use swift_data::{
    CHATML, ChatTemplate, DatasetSource, Encoded, Encoder, LossScale, PreTokenizer, Sample, Tokenizer, Truncation, Turn, truncate,
};
use swift_formats::Checkpoint;
use swift_plugin::Plugin;

use crate::{Result, TrainConfig, TrainError};

/// Rows handed to a dataset plugin in one call.
const ROWS_PER_CALL: usize = 256;
/// Rows that a generating dataset makes for training when no `#count` is given.
const GENERATED_ROWS: usize = 4000;
/// Rows that it makes for evaluation.
const GENERATED_HELD_OUT: usize = 200;

/// Finds plugins by path or bundled name.
pub trait Plugins {
    /// Loads a plugin.
    ///
    /// # Errors
    /// When there is none of this name, or it is refused.
    fn load(&self, name: &str) -> Result<Plugin>;
}

/// A model's tokenizer and chat template.
pub struct Text {
    /// Tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, or ChatML where it brings none but knows the tokens.
    pub template: Option<ChatTemplate>,
}

/// Reads tokenizer and template of a checkpoint.
///
/// # Errors
/// When the vocabulary or the template is broken.
pub fn text_of(checkpoint: &Checkpoint) -> Result<Text> {
    let tokenizer = Arc::new(Tokenizer::open(checkpoint)?);
    let template = match ChatTemplate::open(checkpoint, &tokenizer)? {
        Some(template) => Some(template),
        None if tokenizer.token_id("<|im_start|>").is_some() => Some(ChatTemplate::new(CHATML, &tokenizer)?),
        None => None,
    };
    Ok(Text { tokenizer, template })
}

impl Text {
    /// Writes `tokenizer.json`, `tokenizer_config.json` and, where there is one, `chat_template.jinja` into a model's folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: &str| swift_formats::write_file(&folder.join(name), |out| out.write_all(text.as_bytes()));
        write("tokenizer.json", &self.tokenizer.to_json()?)?;
        if let Some(template) = &self.template {
            write("chat_template.jinja", template.source())?;
        }
        let special = |id: Option<u32>| id.and_then(|i| self.tokenizer.token(i));
        let marks = serde_json::json!({
            "bos_token": special(self.tokenizer.bos_id()),
            "eos_token": special(self.tokenizer.eos_id()),
            "pad_token": special(self.tokenizer.pad_id()),
        });
        crate::record::write_json(&folder.join("tokenizer_config.json"), &marks)
    }
}

/// Special tokens of a vocabulary trained here: padding and document border, then ChatML's turn marks.
const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Trains a byte-level BPE (digits apart) on the run's own texts and writes `tokenizer.json` and `tokenizer_config.json` into
/// `folder`: what pretraining from scratch needs when the model's folder has no tokenizer.
///
/// # Errors
/// When the dataset cannot be read or the folder not be written.
pub fn train_tokenizer(config: &TrainConfig, plugins: &dyn Plugins, vocab_size: usize, folder: &Path) -> Result<()> {
    let mut texts = Vec::new();
    for name in &config.dataset {
        let (rows, _) = samples(config, name, plugins, false, &mut Vec::new())?;
        texts.extend(rows.into_iter().flat_map(|row| row.turns).map(|turn| turn.text));
    }
    let tokenizer = Tokenizer::train_bpe(texts.iter().map(String::as_str), vocab_size, &SPECIAL_TOKENS, PreTokenizer::SmolLm)?;
    let json = tokenizer.to_json()?;
    swift_formats::write_file(&folder.join("tokenizer.json"), |out| out.write_all(json.as_bytes()))?;
    let marks = serde_json::json!({ "bos_token": null, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>" });
    crate::record::write_json(&folder.join("tokenizer_config.json"), &marks)
}

/// A held-out question with an exact answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The conversation up to the answer.
    pub turns: Vec<Turn>,
    /// The answer.
    pub answer: String,
}

/// Sequences that stay together.
pub(crate) type Unit = Vec<Encoded>;

/// Tokenized data of a run.
pub(crate) struct Data {
    pub(crate) train: Vec<Unit>,
    pub(crate) eval: Vec<Unit>,
    pub(crate) probes: Vec<Probe>,
    /// The first held-out (or else first training) conversation up to its answer: what samples before and after are made from.
    pub(crate) question: Vec<Turn>,
    /// Rows that were too long and dropped.
    pub(crate) dropped: usize,
    /// (name, digest) of the dataset plugins used.
    pub(crate) plugins: Vec<Plugin>,
}

/// Loads, maps, splits and tokenizes.
pub(crate) fn load(config: &TrainConfig, text: &Text, plugins: &dyn Plugins, paired: bool) -> Result<Data> {
    let mut used = Vec::new();
    let (train, mut eval) = split(config, plugins, paired, &mut used)?;
    if let Some(limit) = config.eval_limit {
        eval.truncate(limit);
    }
    let probes = eval.iter().filter_map(probe).collect();
    let question = eval.first().or(train.first()).map_or_else(Vec::new, |s| question(config, s));
    let mut dropped = 0;
    let mut encode = |rows: &[Sample]| -> Result<Vec<Unit>> {
        let mut units = Vec::with_capacity(rows.len());
        for row in rows {
            let made = units_of(config, text, row, paired)?;
            dropped += usize::from(made.is_empty());
            units.extend(made);
        }
        Ok(units)
    };
    let (train, eval) = (encode(&train)?, encode(&eval)?);
    if train.is_empty() {
        return Err(TrainError::Dataset(format!(
            "no training row is left of {}: {dropped} were longer than `--max_length {}` or held nothing to train on",
            config.dataset.join(", "),
            config.max_length
        )));
    }
    Ok(Data { train, eval, probes, question, dropped, plugins: used })
}

/// Rows to train on, and rows held out.
fn split(
    config: &TrainConfig,
    plugins: &dyn Plugins,
    paired: bool,
    used: &mut Vec<Plugin>,
) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    for name in &config.dataset {
        let (rows, held_out) = samples(config, name, plugins, paired, used)?;
        train.extend(rows);
        eval.extend(held_out);
    }
    if !config.val_dataset.is_empty() {
        eval.clear();
        for name in &config.val_dataset {
            eval.extend(samples(config, name, plugins, paired, used)?.0);
        }
    } else if eval.is_empty() && config.split_dataset_ratio > 0.0 {
        let (keep, held) = swift_data::split_held_out(train.len(), config.split_dataset_ratio, config.data_seed)?;
        eval = held.iter().map(|&i| train[i].clone()).collect();
        train = keep.iter().map(|&i| train[i].clone()).collect();
    }
    Ok((train, eval))
}

/// The conversations that a run of this configuration holds out, all of them.
///
/// # Errors
/// When a dataset cannot be read.
pub fn held_out(config: &TrainConfig, plugins: &dyn Plugins) -> Result<Vec<Sample>> {
    let sources = config.dataset.iter().chain(&config.val_dataset);
    let sources = sources.map(|name| Ok(DatasetSource::parse(name)?)).collect::<Result<Vec<_>>>()?;
    // A dataset that makes its rows makes others for a loss that compares answers.
    let paired = sources.iter().any(|source| !source.path.exists())
        && plugins.load(&config.loss_type)?.loss()?.needs(&config.loss_config.to_string())?.paired;
    Ok(split(config, plugins, paired, &mut Vec::new())?.1)
}

/// Rows of one dataset, and held-out rows where the dataset makes them itself.
fn samples(
    config: &TrainConfig,
    name: &str,
    plugins: &dyn Plugins,
    paired: bool,
    used: &mut Vec<Plugin>,
) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let source = DatasetSource::parse(name)?;
    let settings = config.dataset_config.to_string();
    if !source.path.exists() {
        let plugin_name = source.path.to_string_lossy();
        if looks_like_a_file(&source.path) {
            return Err(TrainError::Dataset(format!("`{}` does not exist", source.path.display())));
        }
        let plugin = plugins.load(&plugin_name)?;
        let mut guest = plugin.dataset()?;
        let mut make = |split: &str, count: usize| -> Result<Vec<Sample>> {
            let mut rows = Vec::with_capacity(count);
            while rows.len() < count {
                let batch = (count - rows.len()).min(ROWS_PER_CALL) as u32;
                let made = guest.generate(&settings, split, rows.len() as u64, batch)?;
                if made.is_empty() {
                    break;
                }
                rows.extend(made.into_iter().map(sample));
            }
            Ok(rows)
        };
        let count = source.count.unwrap_or(GENERATED_ROWS);
        let made = match (config.use_chat_template, paired) {
            (true, true) => (make("preference", count)?, Vec::new()),
            (true, false) => (make("train", count)?, make("heldout", GENERATED_HELD_OUT)?),
            (false, _) => (make("pretrain", count)?, Vec::new()),
        };
        used.push(plugin);
        return Ok(made);
    }
    let (mapped, plugin) = map_file(&source, Some(config.data_seed), config.dataset_plugin.as_deref(), &settings, plugins)?;
    used.push(plugin);
    Ok((mapped, Vec::new()))
}

/// Rows of a file, in order, through a dataset plugin: the one named, or a bundled one by the rows' keys.
fn map_file(
    source: &DatasetSource,
    seed: Option<u64>,
    plugin: Option<&str>,
    settings: &str,
    plugins: &dyn Plugins,
) -> Result<(Vec<Sample>, Plugin)> {
    let rows: Vec<String> = source.read(seed)?.into_iter().map(|row| row.json).collect();
    let plugin = plugins.load(match plugin {
        Some(plugin) => plugin,
        None => mapper_of(rows.first().map_or("", String::as_str)),
    })?;
    let mut guest = plugin.dataset()?;
    let mut mapped = Vec::with_capacity(rows.len());
    for batch in rows.chunks(ROWS_PER_CALL) {
        mapped.extend(guest.map_rows(settings, batch)?.into_iter().map(sample));
    }
    Ok((mapped, plugin))
}

/// Reads rows that are not trained on, `path` or `path#count`: the first ones, in order.
///
/// # Errors
/// When the file cannot be read or its rows are not understood.
pub fn read_dataset(name: &str, plugin: Option<&str>, plugins: &dyn Plugins) -> Result<Vec<Sample>> {
    let source = DatasetSource::parse(name)?;
    if !source.path.is_file() {
        return Err(TrainError::Dataset(format!("`{}` does not exist", source.path.display())));
    }
    Ok(map_file(&source, None, plugin, "{}", plugins)?.0)
}

fn looks_like_a_file(path: &Path) -> bool {
    path.extension().is_some() || path.components().count() > 1
}

/// The bundled plugin for rows with these keys.
fn mapper_of(row: &str) -> &'static str {
    match serde_json::from_str::<Value>(row) {
        Ok(row) if row.get("instruction").is_some() => "alpaca",
        _ => "messages",
    }
}

fn sample(s: swift_plugin::Sample) -> Sample {
    let turns = |turns: Vec<swift_plugin::Turn>| {
        let turn = |t: swift_plugin::Turn| Turn { text: t.text(), role: t.role, train: t.train, weight: t.weight };
        turns.into_iter().map(turn).collect()
    };
    Sample {
        turns: turns(s.turns),
        chosen: turns(s.chosen),
        rejected: turns(s.rejected),
        label: s.label,
        extra: match serde_json::from_str(&s.extra) {
            Ok(Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        },
    }
}

fn probe(sample: &Sample) -> Option<Probe> {
    let answer = sample.extra.get("answer")?.as_str()?.to_string();
    Some(Probe { turns: before_answer(&sample.turns).to_vec(), answer })
}

fn before_answer(turns: &[Turn]) -> &[Turn] {
    &turns[..turns.iter().rposition(|t| t.is_assistant()).unwrap_or(turns.len())]
}

fn question(config: &TrainConfig, sample: &Sample) -> Vec<Turn> {
    with_system(config, before_answer(&sample.turns))
}

fn units_of(config: &TrainConfig, text: &Text, sample: &Sample, paired: bool) -> Result<Vec<Unit>> {
    let template = if config.use_chat_template { text.template.as_ref() } else { None };
    if config.use_chat_template && template.is_none() {
        return Err(TrainError::Config("the model brings no chat template; use `pt`, or a model that has one".into()));
    }
    let mut encoder = Encoder::new(&text.tokenizer, template);
    encoder.loss_scale = loss_scale(&config.loss_scale)?;
    let strategy = truncation(&config.truncation_strategy)?;
    let tools = sample.extra.get("tools").filter(|t| !t.is_null());
    let prompt = with_system(config, &sample.turns);
    let fit = |sequence: Encoded| truncate(sequence, config.max_length, strategy).into_iter().filter(|s| s.trained_tokens() > 0);
    if paired {
        if sample.chosen.is_empty() || sample.rejected.is_empty() {
            return Err(TrainError::Dataset("the loss compares answers, but a row has no chosen and rejected answer".into()));
        }
        let sides = [&sample.chosen, &sample.rejected].map(|answer| encoder.encode_answer(&prompt, answer, tools));
        let [chosen, rejected] = sides;
        let pair: Unit = fit(chosen?).take(1).chain(fit(rejected?).take(1)).collect();
        return Ok(if pair.len() == 2 { vec![pair] } else { Vec::new() });
    }
    let turns: Vec<Turn> = prompt.iter().chain(&sample.chosen).cloned().collect();
    Ok(fit(encoder.encode(&turns, tools)?).map(|s| vec![s]).collect())
}

fn with_system(config: &TrainConfig, turns: &[Turn]) -> Vec<Turn> {
    match &config.system {
        Some(system) if turns.first().is_none_or(|t| t.role != "system") => {
            std::iter::once(Turn::new("system", system)).chain(turns.iter().cloned()).collect()
        }
        _ => turns.to_vec(),
    }
}

fn loss_scale(name: &str) -> Result<LossScale> {
    match name {
        "default" => Ok(LossScale::Default),
        "last_round" => Ok(LossScale::LastRound),
        "all" => Ok(LossScale::All),
        other => Err(TrainError::Config(format!("`--loss_scale {other}`: known are default, last_round and all"))),
    }
}

fn truncation(name: &str) -> Result<Truncation> {
    match name {
        "delete" => Ok(Truncation::Delete),
        "left" => Ok(Truncation::Left),
        "right" => Ok(Truncation::Right),
        "split" => Ok(Truncation::Split),
        other => Err(TrainError::Config(format!("`--truncation_strategy {other}`: known are delete, left, right and split"))),
    }
}
