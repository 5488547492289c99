//! `doctor`: what this machine has, and what will run on it.

use std::process::ExitCode;

use anyhow::Result;
use swift_plugin::LimitConfig;

use crate::environment::{Environment, ISA_VARIABLE, PLUGIN_VARIABLE};
use crate::progress::bytes;

/// Prints a report on standard output.
pub(crate) fn doctor(environment: &Environment) -> Result<ExitCode> {
    let info = environment.device()?.describe();
    outln!("swift-host {}", env!("CARGO_PKG_VERSION"));
    outln!("processor      {}", info.name);
    outln!("threads        {}", info.threads);
    outln!("kernels        {} ({ISA_VARIABLE}=scalar|avx2|avx512|amx forces a level)", info.isa);
    outln!("available      {}", swift_runtime::Isa::available().map(|isa| isa.to_string()).collect::<Vec<_>>().join(", "));
    if let Some(total) = info.memory_total {
        let free = info.memory_available.map_or("unknown".into(), bytes);
        outln!("memory         {} of which {free} available", bytes(total));
    }
    outln!("accelerators   none are supported by this version");
    let bundled = environment.bundled();
    let names: Vec<&str> = bundled.iter().map(|(n, _)| n.as_str()).collect();
    outln!("plugins        {} ({PLUGIN_VARIABLE} adds folders)", if names.is_empty() { "none".into() } else { names.join(", ") });
    outln!("embedded model {}", crate::embedded::MODEL_NAME);
    outln!("\nplugin limits (`--limit NAME=VALUE`)");
    for (name, value) in LimitConfig::default().entries() {
        outln!("  {name:<22}{value}");
    }
    Ok(ExitCode::SUCCESS)
}
