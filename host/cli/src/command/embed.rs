//! `embed`: texts to vectors.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;
use swift_formats::Pooling;
use swift_serve::Embedder;
use swift_train::text_of;

use crate::args::EmbedArgs;
use crate::command::infer::open;
use crate::environment::Environment;

/// Writes `{"text", "tokens", "embedding"}` for each text.
pub(crate) fn embed(environment: &Environment, args: &EmbedArgs) -> Result<ExitCode> {
    let device = environment.device()?;
    let mut opened = open(environment, &*device, &args.model)?;
    let tokenizer = text_of(opened.model.checkpoint())?.tokenizer;
    let pooling = match args.pooling.as_deref() {
        Some("mean") => Pooling::Mean,
        Some("cls") => Pooling::First,
        Some("last") => Pooling::Last,
        Some(other) => bail!("`--pooling {other}`: known are mean, cls and last"),
        None => {
            let recommended = opened.model.checkpoint().pooling().context("give `--pooling`")?;
            recommended.unwrap_or(if opened.model.is_encoder() { Pooling::Mean } else { Pooling::Last })
        }
    };
    let mut texts = args.text.clone();
    if let Some(file) = &args.file {
        let lines = std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
        texts.extend(lines.lines().filter(|line| !line.trim().is_empty()).map(str::to_string));
    }
    let mut embedder = Embedder::new(&mut opened.model, &*device, &mut opened.store)?;
    let mut lines = String::new();
    for text in &texts {
        let tokens: Vec<i32> = tokenizer.encode(text, true)?.into_iter().map(|id| id as i32).collect();
        let hidden = embedder.hidden(&mut opened.store, &tokens)?;
        let mut vector = pool(hidden.floats()?, tokens.len(), pooling);
        if args.normalize {
            let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
        let _ = writeln!(lines, "{}", json!({ "text": text, "tokens": tokens.len(), "embedding": vector }));
    }
    match &args.out {
        None => out!("{lines}"),
        Some(path) => {
            swift_formats::write_file(path, |out| out.write_all(lines.as_bytes()))?;
            eprintln!("{} vectors in `{}`", texts.len(), path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One vector from `[tokens, d]`.
fn pool(hidden: &[f32], tokens: usize, pooling: Pooling) -> Vec<f32> {
    let d = hidden.len() / tokens.max(1);
    match pooling {
        Pooling::First => hidden[..d].to_vec(),
        Pooling::Last => hidden[hidden.len() - d..].to_vec(),
        Pooling::Mean => {
            let column = |c: usize| hidden.iter().skip(c).step_by(d).map(|&x| f64::from(x)).sum::<f64>() / tokens as f64;
            (0..d).map(|c| column(c) as f32).collect()
        }
    }
}
