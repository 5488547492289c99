//! `infer --val_dataset`: answers rows, several at once, into a JSONL file of ms-swift's shape.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use swift_data::{Sample, Scores, Tokenizer, Turn};
use swift_serve::{Token, Update};
use swift_train::{TrainConfig, held_out, read_dataset};

use crate::args::InferArgs;
use crate::command::infer::{Session, recorded};
use crate::environment::Environment;
use crate::progress::Interrupt;

/// Rows at once for `--max_batch_size -1`.
const MOST_AT_ONCE: usize = 64;
/// Rows between writes.
const WRITE_EVERY: usize = 1000;

/// A row, while it is being answered.
struct Row {
    messages: Vec<Turn>,
    labels: Option<String>,
    extra: Map<String, Value>,
    response: String,
    tokens: Vec<Token>,
    done: bool,
}

/// Answers all rows.
pub(crate) fn infer_dataset(environment: &Environment, mut session: Session, args: &InferArgs) -> Result<ExitCode> {
    let at_once = match args.max_batch_size.unwrap_or(1) {
        -1 => MOST_AT_ONCE,
        n if (1..=1024).contains(&n) => n as usize,
        n => bail!("`--max_batch_size {n}` must be between 1 and 1024, or -1"),
    };
    let write_every = args.write_batch_size.unwrap_or(WRITE_EVERY).max(1);
    let stream = args.stream.unwrap_or(false);
    if stream && at_once > 1 {
        bail!("`--stream` shows one answer at a time; leave `--max_batch_size` at 1");
    }
    let metric = args.metric.as_deref().map(Metric::parse).transpose()?;
    let read = samples(environment, args)?;
    let logprobs = args.logprobs.unwrap_or(false).then(|| args.top_logprobs.unwrap_or(0));
    let (mut rows, mut requests) = (Vec::with_capacity(read.len()), Vec::with_capacity(read.len()));
    let read_rows = read.len();
    for (i, sample) in read.into_iter().enumerate() {
        let row = row(sample);
        let prompt = session.prompt(&row.messages, row.extra.get("tools").filter(|t| !t.is_null()))?;
        if session.leaves_out(&prompt) {
            continue;
        }
        let mut request = session.request(prompt).with_context(|| format!("row {}", i + 1))?;
        (request.logprobs, request.stream) = (logprobs, i as u64);
        requests.push(request);
        rows.push(row);
    }
    if rows.is_empty() {
        bail!("all {read_rows} rows are longer than the context");
    }
    let path = args.result_path.clone().unwrap_or_else(|| default_path(args, session.model_path()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    }
    let mut engine = session.engine_for(&requests, at_once.min(requests.len()))?;
    let file = File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    let mut out = BufWriter::new(file);
    let bar = ProgressBar::new(rows.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} [{elapsed} < {eta}]") {
        bar.set_style(style);
    }
    let mut of = HashMap::new();
    for (i, request) in requests.into_iter().enumerate() {
        of.insert(session.submit(&mut engine, request)?, i);
    }
    let tokenizer = session.text.tokenizer.clone();
    let (mut written, mut finished, mut tokens) = (0, 0, 0u64);
    let interrupt = Interrupt::install("the next tokens")?;
    let (mut stopped, mut failed) = (false, None);
    while !engine.is_idle() && !stopped {
        let updates: Vec<Update> = engine.step(session.store())?;
        for update in updates {
            let Some(&i) = of.get(&update.request) else { continue };
            if let Some(failure) = update.failure {
                failed.get_or_insert((i, failure));
                continue;
            }
            let row = &mut rows[i];
            row.response.push_str(&update.text);
            if stream {
                out!("{}{}", update.text, if update.finished.is_some() { "\n" } else { "" });
            }
            tokens += u64::from(update.token.is_some());
            if logprobs.is_some() {
                row.tokens.extend(update.token);
            }
            if update.finished.is_some() {
                (row.done, finished) = (true, finished + 1);
                bar.set_position(finished);
                bar.set_message(format!("{:.0} tok/s", tokens as f64 / bar.elapsed().as_secs_f64().max(1e-3)));
            }
        }
        // In the order of the rows, whatever the order of the answers.
        let ready = rows[written..].iter().take_while(|row| row.done).count();
        stopped = interrupt.pressed() || failed.is_some();
        if ready >= write_every || engine.is_idle() || stopped {
            for row in &mut rows[written..written + ready] {
                writeln!(out, "{}", line(row, logprobs.is_some(), &tokenizer)?).context("cannot write answers")?;
                row.tokens = Vec::new();
            }
            out.flush().with_context(|| format!("cannot write `{}`", path.display()))?;
            written += ready;
        }
    }
    bar.finish_and_clear();
    eprintln!("{written} answers in `{}`", path.display());
    if let Some((i, failure)) = failed {
        bail!("row {}: {failure}", i + 1);
    }
    if rows.len() < read_rows {
        eprintln!("{} rows were left out: they are longer than the context", read_rows - rows.len());
    }
    if stopped && written < rows.len() {
        eprintln!("interrupted before the other {} rows", rows.len() - written);
        return Ok(Interrupt::exit_code());
    }
    if let Some(metric) = metric {
        outln!("{}", metric.judge(&rows)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// The rows of the files named, or those that the run held out which made the adapter or the model.
fn samples(environment: &Environment, args: &InferArgs) -> Result<Vec<Sample>> {
    if !args.load_data_args.unwrap_or(false) {
        let mut rows = Vec::new();
        for name in &args.val_dataset {
            rows.extend(read_dataset(name, args.dataset_plugin.as_deref(), environment)?);
        }
        if rows.is_empty() {
            bail!("{} holds no rows", args.val_dataset.join(", "));
        }
        return Ok(rows);
    }
    let mut recorded = recorded(&args.model)?;
    if !args.val_dataset.is_empty() {
        recorded["val_dataset"] = json!(args.val_dataset);
    }
    if let Some(plugin) = &args.dataset_plugin {
        recorded["dataset_plugin"] = json!(plugin);
    }
    let config: TrainConfig = serde_json::from_value(recorded).context("the run's `args.json` is not of this program")?;
    let rows = held_out(&config, environment)?;
    if rows.is_empty() {
        bail!("the run held no rows out\nhint: name some with `--val_dataset`");
    }
    Ok(rows)
}

/// How answers are judged by the rows' own.
#[derive(Clone, Copy)]
enum Metric {
    Acc,
    Rouge,
}

impl Metric {
    fn parse(name: &str) -> Result<Metric> {
        match name {
            "acc" => Ok(Metric::Acc),
            "rouge" => Ok(Metric::Rouge),
            other => bail!("`--metric {other}`: known are acc and rouge; others can be computed from the file of answers"),
        }
    }

    /// The scores of all rows that know an answer.
    fn judge(self, rows: &[Row]) -> Result<Value> {
        let known: Vec<(&Row, &String)> = rows.iter().filter_map(|row| Some((row, row.labels.as_ref()?))).collect();
        if known.is_empty() {
            bail!("`--metric` compares answers with the rows' own, and no row has one");
        }
        Ok(match self {
            Metric::Acc => {
                let right = known.iter().filter(|(row, label)| row.response.trim() == label.trim()).count();
                json!({ "acc": right as f64 / known.len() as f64, "rows": known.len() })
            }
            Metric::Rouge => {
                // Texts without words are left out, as in ms-swift.
                let scores: Vec<Scores> = known.iter().filter_map(|(row, label)| Scores::of(&row.response, label)).collect();
                let Scores { rouge_1, rouge_2, rouge_l, bleu_4 } = Scores::mean(&scores);
                let [rouge_1, rouge_2, rouge_l, bleu_4] =
                    [rouge_1, rouge_2, rouge_l, bleu_4].map(|score| (score * 1e8).round() / 1e6);
                json!({ "rouge-1": rouge_1, "rouge-2": rouge_2, "rouge-l": rouge_l, "bleu-4": bleu_4, "rows": scores.len() })
            }
        })
    }
}

/// The conversation up to the last answer, which becomes the label; of two answers, the chosen one.
fn row(sample: Sample) -> Row {
    let Sample { turns: mut messages, chosen, rejected, mut extra, .. } = sample;
    messages.extend(chosen);
    let labels = messages.pop_if(|turn| turn.role == "assistant").map(|turn| turn.text);
    match rejected.as_slice() {
        [] => {}
        [turn] => drop(extra.insert("rejected_response".into(), json!(turn.text))),
        turns => drop(extra.insert("rejected_response".into(), turns.iter().map(message).collect())),
    }
    Row { messages, labels, extra, response: String::new(), tokens: Vec::new(), done: false }
}

/// As rows have it.
fn message(turn: &Turn) -> Value {
    json!({ "role": turn.role, "content": turn.text })
}

/// `{"response", "labels", "logprobs", "messages", ...}`.
fn line(row: &Row, logprobs: bool, tokenizer: &Tokenizer) -> Result<Value> {
    let answer = Turn::new("assistant", row.response.as_str());
    let messages: Vec<Value> = row.messages.iter().chain([&answer]).map(message).collect();
    let mut line = json!({
        "response": row.response,
        "labels": row.labels,
        "logprobs": if logprobs { token_logprobs(&row.tokens, tokenizer)? } else { Value::Null },
        "messages": messages,
    });
    for (key, value) in &row.extra {
        if line.get(key).is_none() {
            line[key] = value.clone();
        }
    }
    Ok(line)
}

/// OpenAI's `{"content": [{"token", "logprob", "bytes", "top_logprobs"}]}`.
fn token_logprobs(tokens: &[Token], tokenizer: &Tokenizer) -> Result<Value> {
    let entry = |id: i32, logprob: f32| -> Result<Value> {
        let text = tokenizer.decode(&[id as u32], false)?;
        Ok(json!({ "token": text, "logprob": logprob, "bytes": text.as_bytes() }))
    };
    let mut content = Vec::with_capacity(tokens.len());
    for token in tokens {
        let Some((logprob, top)) = &token.logprobs else { continue };
        let mut value = entry(token.id, *logprob)?;
        value["top_logprobs"] = top.iter().map(|&(id, logprob)| entry(id, logprob)).collect::<Result<_>>()?;
        content.push(value);
    }
    Ok(json!({ "content": content }))
}

/// `infer_result/<seconds>.jsonl` beside what answered.
fn default_path(args: &InferArgs, model: &Path) -> PathBuf {
    let beside = args.model.adapters.clone().unwrap_or_else(|| match model.is_dir() {
        true => model.to_path_buf(),
        false => PathBuf::from("output"),
    });
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    beside.join("infer_result").join(format!("{time}.jsonl"))
}
