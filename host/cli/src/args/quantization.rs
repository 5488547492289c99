//! Flags that quantize a model while it is loaded, and what they may be.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;
use swift_serve::Quantization;

/// ms-swift's flags; 4-bit NF4 is what there is.
#[derive(Clone, Debug, Default, Args)]
#[command(rename_all = "snake_case")]
pub(crate) struct QuantizationArgs {
    /// Quantize linear layers while the model is loaded: `bnb` (bitsandbytes' NF4) [default: not].
    #[arg(long, help_heading = "Model", value_name = "METHOD")]
    pub(crate) quant_method: Option<String>,
    /// Bits of a quantized weight: 4.
    #[arg(long, help_heading = "Model", value_name = "N")]
    pub(crate) quant_bits: Option<u32>,
    /// Levels that 4 bits stand for [default: nf4].
    #[arg(long, help_heading = "Model", value_name = "TYPE")]
    pub(crate) bnb_4bit_quant_type: Option<String>,
    /// Round the scales of blocks to 8 bits too [default: true].
    #[arg(long, help_heading = "Model", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) bnb_4bit_use_double_quant: Option<bool>,
}

impl QuantizationArgs {
    /// What `args.json` of a run says, for its adapter's base.
    pub(crate) fn recorded(args: &Value) -> QuantizationArgs {
        let text = |key: &str| args[key].as_str().map(str::to_string);
        QuantizationArgs {
            quant_method: text("quant_method"),
            quant_bits: args["quant_bits"].as_u64().and_then(|bits| u32::try_from(bits).ok()),
            bnb_4bit_quant_type: text("bnb_4bit_quant_type"),
            bnb_4bit_use_double_quant: args["bnb_4bit_use_double_quant"].as_bool(),
        }
    }

    /// The flags that were typed, with their values.
    pub(crate) fn as_typed(&self) -> Vec<String> {
        let flags = [
            ("quant_method", self.quant_method.clone()),
            ("quant_bits", self.quant_bits.map(|bits| bits.to_string())),
            ("bnb_4bit_quant_type", self.bnb_4bit_quant_type.clone()),
            ("bnb_4bit_use_double_quant", self.bnb_4bit_use_double_quant.map(|double| double.to_string())),
        ];
        flags.into_iter().filter_map(|(flag, value)| Some([format!("--{flag}"), value?])).flatten().collect()
    }

    /// The flags with their defaults; an error where one could not take effect.
    pub(crate) fn resolve(&self) -> Result<QuantizationArgs> {
        match self.quant_method.as_deref() {
            None => match self.as_typed().first() {
                Some(flag) => bail!("`{flag}` has no effect without `--quant_method bnb`"),
                None => return Ok(self.clone()),
            },
            Some("bnb") => {}
            Some(other) => bail!("`--quant_method {other}`: known is bnb"),
        }
        match self.quant_bits {
            Some(4) => {}
            Some(bits) => bail!("`--quant_bits {bits}`: known is 4"),
            None => bail!("`--quant_method bnb` needs `--quant_bits 4`"),
        }
        let kind = self.bnb_4bit_quant_type.as_deref().unwrap_or("nf4");
        if kind != "nf4" {
            bail!("`--bnb_4bit_quant_type {kind}`: known is nf4");
        }
        Ok(QuantizationArgs {
            bnb_4bit_quant_type: Some(kind.to_string()),
            bnb_4bit_use_double_quant: Some(self.bnb_4bit_use_double_quant.unwrap_or(true)),
            ..self.clone()
        })
    }

    /// What the model is told.
    pub(crate) fn quantization(&self) -> Result<Option<Quantization>> {
        let resolved = self.resolve()?;
        Ok(resolved.quant_method.is_some().then(|| Quantization { double: resolved.bnb_4bit_use_double_quant.unwrap_or(true) }))
    }
}
