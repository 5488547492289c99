//! `logits`: the model's raw output, for comparison with other software.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, bail};
use swift_formats::{NamedTensor, write_safetensors};
use swift_runtime::HostTensor;
use swift_train::text_of;

use crate::args::LogitsArgs;
use crate::command::infer::open;
use crate::environment::Environment;

/// Writes `logits`, `[tokens, vocab]` f32.
pub(crate) fn logits(environment: &Environment, args: &LogitsArgs) -> Result<ExitCode> {
    let device = environment.device()?;
    let mut opened = open(environment, &*device, &args.model)?;
    let tokens = match &args.text {
        Some(text) => {
            let tokenizer = text_of(opened.model.checkpoint())?.tokenizer;
            tokenizer.encode(text, true)?.into_iter().map(|id| id as i32).collect()
        }
        None => args.tokens.clone(),
    };
    let HostTensor::F32 { shape, data } = swift_serve::logits(&mut opened.model, &*device, &mut opened.store, &tokens)? else {
        bail!("the model's output is not a float tensor");
    };
    let ids = tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let metadata = BTreeMap::from([("tokens".to_string(), ids)]);
    write_safetensors(&args.out, &[NamedTensor::from_f32("logits", shape.clone(), &data)], &metadata)?;
    eprintln!("{} logits of {} tokens in `{}`", data.len(), shape[0], args.out.display());
    Ok(ExitCode::SUCCESS)
}
