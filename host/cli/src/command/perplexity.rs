//! `perplexity`: how well a model predicts a text.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::json;
use swift_data::Encoder;
use swift_serve::Scorer;
use swift_train::{read_dataset, text_of};

use crate::args::PerplexityArgs;
use crate::command::infer::{context_of, open};
use crate::environment::Environment;

/// Context where `--max_length` is not given and the model's is longer.
const DEFAULT_LENGTH: usize = 512;

/// Slides a context over the tokens of all texts; each token is scored once.
pub(crate) fn perplexity(environment: &Environment, args: &PerplexityArgs) -> Result<ExitCode> {
    let device = environment.device()?;
    let mut opened = open(environment, &*device, &args.model)?;
    let text = text_of(opened.model.checkpoint())?;
    let length = args.max_length.unwrap_or(context_of(&opened.model).min(DEFAULT_LENGTH));
    let stride = args.stride.unwrap_or((length / 2).max(1));
    if length < 2 || stride == 0 || stride >= length {
        bail!(
            "a context of {length} tokens cannot slide by {stride}; `--max_length` must be larger than `--stride`, which must be at least 1"
        );
    }
    let mut texts: Vec<Vec<i32>> = Vec::new();
    for name in &args.dataset {
        let path = Path::new(name);
        if path.extension().is_some_and(|e| e == "json" || e == "jsonl" || e == "ndjson") || !path.is_file() {
            let encoder = Encoder::new(&text.tokenizer, text.template.as_ref());
            for row in read_dataset(name, args.dataset_plugin.as_deref(), environment)? {
                // Of two answers, the chosen one.
                let turns = [row.turns, row.chosen].concat();
                texts.push(encoder.encode(&turns, row.extra.get("tools"))?.ids);
            }
        } else {
            let content = std::fs::read_to_string(path).with_context(|| format!("cannot read `{name}`"))?;
            texts.push(text.tokenizer.encode(&content, true)?.into_iter().map(|id| id as i32).collect());
        }
    }
    let mut room = args.max_tokens.unwrap_or(usize::MAX);
    let total: usize = texts.iter().map(|t| t.len().saturating_sub(1)).sum::<usize>().min(room);
    if total == 0 {
        bail!("there is nothing to predict in {}", args.dataset.join(", "));
    }
    args.precision.idle(&opened.store).iter().for_each(|idle| eprintln!("{idle}"));
    let mut scorer = Scorer::new(&mut opened.model, &*device, &mut opened.store, args.precision.into())?;
    let bar = ProgressBar::new(total as u64);
    let (mut sum, mut count) = (0f64, 0usize);
    for tokens in &texts {
        let mut next = 1;
        while next < tokens.len() && room > 0 {
            // The first window scores everything in it, later ones what is new.
            let end = (if next == 1 { length } else { next + stride }).min(tokens.len()).min(next.saturating_add(room));
            let start = end.saturating_sub(length);
            let losses = scorer.score(&mut opened.store, &tokens[start..end], next - start)?;
            sum += losses.iter().map(|&x| f64::from(x)).sum::<f64>();
            (count, room) = (count + losses.len(), room - losses.len());
            bar.inc(losses.len() as u64);
            next = end;
        }
    }
    bar.finish_and_clear();
    let nll = sum / count as f64;
    if args.json {
        outln!("{}", json!({ "perplexity": nll.exp(), "nll": nll, "tokens": count, "max_length": length, "stride": stride }));
    } else {
        outln!("perplexity {:.4} over {count} tokens ({nll:.5} nats a token; context {length}, stride {stride})", nll.exp());
    }
    Ok(ExitCode::SUCCESS)
}
