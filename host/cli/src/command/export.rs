//! `export`: a model, with its adapter merged in, as one file that other programs read.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use swift_data::PreTokenizer;
use swift_formats::NamedTensor;
use swift_formats::gguf::llama;
use swift_serve::WeightTensor;
use swift_train::text_of;

use crate::args::ExportArgs;
use crate::command::infer::open;
use crate::environment::Environment;

/// Writes a GGUF file, or a Hugging Face folder in f32.
pub(crate) fn export(environment: &Environment, args: &ExportArgs) -> Result<ExitCode> {
    if args.out.exists() && !args.exist_ok {
        bail!("`{}` exists already\nhint: `--exist_ok true` replaces it", args.out.display());
    }
    let device = environment.device()?;
    let mut opened = open(environment, &*device, &args.model)?;
    if args.model.adapters.is_some() {
        let merged = opened.model.merge(&*device, &mut opened.store)?;
        eprintln!("merged {merged} weights");
    }
    let gguf = args.out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if !gguf {
        if args.quant.is_some() {
            bail!("`--quant` is for GGUF files; give `--out` a name that ends in .gguf");
        }
        std::fs::create_dir_all(&args.out)?;
        opened.model.save_full(&opened.store, &args.out)?;
        match text_of(opened.model.checkpoint()) {
            Ok(text) => text.write(&args.out)?,
            Err(error) => eprintln!("warning: the folder gets no tokenizer: {error}"),
        }
    } else {
        write_gguf(&args.out, args.quant.as_deref().unwrap_or("f16"), &opened)?;
    }
    eprintln!("wrote `{}`", args.out.display());
    Ok(ExitCode::SUCCESS)
}

fn write_gguf(out: &Path, quant: &str, opened: &crate::command::infer::Opened) -> Result<()> {
    if !["f32", "f16", "bf16"].contains(&quant) {
        bail!("`--quant {quant}`: known are f32, f16 and bf16");
    }
    let text = text_of(opened.model.checkpoint())?;
    let template = text.template.as_ref().map(|t| t.source());
    let extra = text.tokenizer.gguf_metadata(PreTokenizer::SmolLm, template)?;
    let mut tensors = Vec::new();
    for WeightTensor { name, shape, data: values } in opened.model.tensors(&opened.store)? {
        // Vectors stay f32, as every GGUF writer keeps them.
        tensors.push(match quant {
            "f32" => NamedTensor::from_f32(name, shape, &values),
            _ if shape.len() < 2 => NamedTensor::from_f32(name, shape, &values),
            half => NamedTensor::half_from_f32(name, shape, &values, half == "bf16"),
        });
    }
    llama::write(out, opened.model.config(), &tensors, &extra)?;
    Ok(())
}
