//! Which model plugin takes a checkpoint: the one whose configuration schema lists the checkpoint's `model_type`.

use std::path::PathBuf;

use serde_json::Value;

use crate::decl::Kind;
use crate::error::clean;
use crate::load::{Plugin, PluginHost};
use crate::{Error, Result};

/// Ends of class names in `architectures`, for configurations without a `model_type`.
const CLASS_ENDS: [&str; 5] = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "Model"];

impl Plugin {
    /// The values of `model_type` that the model in this plugin takes; empty when it is no model or does not say.
    pub fn model_types(&self) -> Vec<String> {
        let schema = self.item(Kind::Model).and_then(|item| serde_json::from_str::<Value>(&item.config_schema).ok());
        let listed = schema.as_ref().and_then(|schema| schema["properties"]["model_type"]["enum"].as_array());
        listed.into_iter().flatten().filter_map(|word| Some(clean(word.as_str()?, 100))).collect()
    }
}

impl PluginHost {
    /// The name of the plugin among `installed` (names and files) that takes a checkpoint's configuration. A plugin that carries the
    /// `model_type`'s own name, with dashes, is taken without a look at the others.
    ///
    /// # Errors
    /// When the configuration names no family or no plugin takes it; the message lists what is supported.
    pub fn model_plugin(&self, installed: &[(String, PathBuf)], config: &Value) -> Result<String> {
        let Some(family) = family(config) else {
            return Err(Error::Model("the configuration has neither `model_type` nor `architectures`".into()));
        };
        let own_name = family.replace('_', "-");
        if installed.iter().any(|(name, _)| *name == own_name) {
            return Ok(own_name);
        }
        let mut known = Vec::new();
        for (name, path) in installed {
            // A broken neighbour is no reason to refuse this model.
            let Ok(plugin) = self.load_file(path) else { continue };
            let types = plugin.model_types();
            if types.iter().any(|taken| same_family(taken, &family)) {
                return Ok(name.clone());
            }
            known.extend(types);
        }
        known.sort();
        known.dedup();
        let known =
            if known.is_empty() { "no model plugin is installed".into() } else { format!("supported are {}", known.join(", ")) };
        Err(Error::Model(format!("no plugin takes models of type `{family}`; {known}")))
    }
}

/// `model_type`, else the family in the first of `architectures`.
fn family(config: &Value) -> Option<String> {
    if let Some(model_type) = config["model_type"].as_str() {
        return Some(model_type.to_string());
    }
    let class = config["architectures"][0].as_str()?;
    let stem = CLASS_ENDS.iter().find_map(|end| class.strip_suffix(end)).unwrap_or(class);
    Some(stem.to_lowercase())
}

/// Equal but for case and separators: "GPTNeoX" of a class name is "gpt_neox".
fn same_family(a: &str, b: &str) -> bool {
    let letters = |s: &str| s.chars().filter(|c| c.is_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect::<String>();
    letters(a) == letters(b)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn class_names_stand_in_for_a_missing_type() {
        assert_eq!(family(&json!({ "model_type": "qwen2_moe", "architectures": ["X"] })).unwrap(), "qwen2_moe");
        let by_class = family(&json!({ "architectures": ["GPTNeoXForCausalLM"] })).unwrap();
        assert!(same_family("gpt_neox", &by_class) && !same_family("gpt2", &by_class));
        assert_eq!(family(&json!({ "architectures": ["BertModel"] })).unwrap(), "bert");
        assert_eq!(family(&json!({})), None);
    }
}
