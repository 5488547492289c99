//! What tuners share to read and write adapters like Hugging Face PEFT: layer selection, starting values, names and
//! `adapter_config.json` (checked against PEFT 0.21).

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use crate::tuner::{AdaptedSite, ExportPlan};
use crate::{Error, ErrorCode, Field, Init, Json, Result, SiteInfo};

/// `target_modules`: "all-linear" (every linear layer but the head), one name, or a list of names. A name selects the layers whose
/// path is it or ends with it after a dot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// Every linear layer but the head.
    #[default]
    AllLinear,
    /// Layers by path suffix.
    Named(Vec<String>),
}

impl Targets {
    /// Whether the layer is among them.
    pub fn take(&self, site: &SiteInfo) -> bool {
        site.is_linear()
            && match self {
                Targets::AllLinear => true,
                Targets::Named(names) => names
                    .iter()
                    .any(|name| site.path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))),
            }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Targets, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            One(String),
            Many(Vec<String>),
        }
        let names = match Form::deserialize(from)? {
            Form::One(name) => vec![name],
            Form::Many(names) => names,
        };
        Ok(if names == ["all-linear"] { Targets::AllLinear } else { Targets::Named(names) })
    }
}

impl Serialize for Targets {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Targets::AllLinear => "all-linear".serialize(to),
            Targets::Named(names) => names.serialize(to),
        }
    }
}

impl Field for Targets {
    fn field_schema() -> Json {
        json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

/// `init_lora_weights`: how A and B start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraInit {
    /// `true`: A uniform like a linear layer (Kaiming with slope √5), B zero.
    #[default]
    Standard,
    /// `false`: both uniform, so that the adapter is not neutral at the start. For tests.
    Random,
    /// `"gaussian"`: A normal with deviation 1/r, B zero.
    Gaussian,
}

impl LoraInit {
    /// Start of A.
    pub fn a(self, rank: u64) -> Init {
        match self {
            LoraInit::Standard | LoraInit::Random => Init::KaimingUniform(5f32.sqrt()),
            LoraInit::Gaussian => Init::Normal(1.0 / rank as f32),
        }
    }

    /// Start of B.
    pub fn b(self) -> Init {
        match self {
            LoraInit::Standard | LoraInit::Gaussian => Init::Zeros,
            LoraInit::Random => Init::KaimingUniform(5f32.sqrt()),
        }
    }
}

impl<'de> Deserialize<'de> for LoraInit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<LoraInit, D::Error> {
        match Json::deserialize(from)? {
            Json::Bool(true) => Ok(LoraInit::Standard),
            Json::Bool(false) => Ok(LoraInit::Random),
            Json::String(s) if s == "true" => Ok(LoraInit::Standard),
            Json::String(s) if s == "false" => Ok(LoraInit::Random),
            Json::String(s) if s == "gaussian" => Ok(LoraInit::Gaussian),
            other => {
                Err(serde::de::Error::custom(format!("`init_lora_weights` is {other}; it can be true, false or \"gaussian\"")))
            }
        }
    }
}

impl Serialize for LoraInit {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            LoraInit::Standard => true.serialize(to),
            LoraInit::Random => false.serialize(to),
            LoraInit::Gaussian => "gaussian".serialize(to),
        }
    }
}

impl Field for LoraInit {
    fn field_schema() -> Json {
        json!({ "enum": [true, false, "gaussian"] })
    }
}

/// Refuses ranks and dropout rates that make no sense.
///
/// # Errors
/// With the value and its range.
pub fn check(rank: u64, dropout: f64) -> Result<()> {
    if rank == 0 {
        return Err(Error::config("`r` is 0").hint("the rank is at least 1; 8 is usual"));
    }
    if !(0.0..1.0).contains(&dropout) {
        return Err(Error::config(format!("`lora_dropout` is {dropout}")).hint("it is at least 0 and below 1"));
    }
    Ok(())
}

/// The configuration fields that PEFT stores under the same names: `fields!(self: r, lora_alpha)`.
#[doc(hidden)]
#[macro_export]
macro_rules! hf_peft_fields {
    ($config:ident : $($field:ident),*) => {
        $crate::serde_json::json!({ $(stringify!($field): $config.$field),* })
    };
}
pub use crate::hf_peft_fields as fields;

/// The adapter's files as PEFT's `save_pretrained` writes them: `base_model.model.<path>.<param>.weight`, where a
/// magnitude vector goes without `.weight`. `fields` replaces the defaults of PEFT's `LoraConfig`.
///
/// # Errors
/// For a layout other than "hf-peft".
pub fn export(layout: &str, sites: &[AdaptedSite], fields: Json) -> Result<ExportPlan> {
    if layout != "hf-peft" {
        return Err(Error::new(ErrorCode::UnsupportedOp, format!("there is no layout `{layout}`")).hint("use `hf-peft`"));
    }
    let targets: BTreeSet<&str> = sites.iter().map(|site| site.info.name()).collect();
    let mut config = json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": {},
        "arrow_config": null,
        "auto_mapping": null,
        "base_model_name_or_path": null,
        "bias": "none",
        "corda_config": null,
        "ensure_weight_tying": false,
        "eva_config": null,
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": false,
        "lora_dropout": 0.0,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": null,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": 8,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "target_parameters": null,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": null,
        "use_dora": false,
        "use_qalora": false,
        "use_rslora": false,
    });
    if let (Json::Object(config), Json::Object(fields)) = (&mut config, fields) {
        config.extend(fields);
        // PEFT writes whole numbers as such.
        if let Some(alpha) = config["lora_alpha"].as_f64().filter(|alpha| alpha.fract() == 0.0) {
            config["lora_alpha"] = json!(alpha as i64);
        }
    }
    let mut plan = ExportPlan::new(config);
    for site in sites {
        for param in &site.params {
            let suffix = if param == "lora_magnitude_vector" { "" } else { ".weight" };
            plan.tensor(site, param, format!("base_model.model.{}.{param}{suffix}", site.info.path));
        }
    }
    Ok(plan)
}
