//! Adapters in the layout of Hugging Face PEFT: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! Writing checks that PEFT could load the result; reading checks the same, so a damaged adapter is refused before it
//! reaches a model. Values are `f32` in memory; 16-bit files are widened on reading.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

use crate::json::{MAX_CONFIG_BYTES, read_json};
use crate::{FormatError, NamedTensor, Result, SafetensorsFile, write_file, write_safetensors};

/// File name of an adapter's configuration.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// File name of an adapter's weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before every tensor name.
const PREFIX: &str = "base_model.model.";

/// One tensor of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterTensor {
    /// PEFT name, for example `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: Vec<f32>,
}

/// An adapter: configuration and tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// `adapter_config.json`.
    pub config: Value,
    /// Tensors, sorted by name after reading.
    pub tensors: Vec<AdapterTensor>,
}

impl Adapter {
    /// Reads an adapter folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let config_path = folder.join(ADAPTER_CONFIG);
        if !config_path.is_file() {
            return Err(FormatError::invalid(folder, format!("this is no adapter folder: `{ADAPTER_CONFIG}` is missing")));
        }
        let config = read_json(&config_path, MAX_CONFIG_BYTES)?;
        let weights = folder.join(ADAPTER_WEIGHTS);
        if !weights.is_file() {
            let pickled = folder.join("adapter_model.bin").exists();
            let hint = if pickled { "; save the adapter again with safe serialization, pickles are not read" } else { "" };
            return Err(FormatError::invalid(folder, format!("`{ADAPTER_WEIGHTS}` is missing{hint}")));
        }
        let file = SafetensorsFile::open(&weights)?;
        let mut names = file.names();
        names.sort_unstable();
        let mut tensors = Vec::with_capacity(names.len());
        for name in names {
            let view = file.tensor(&name)?;
            let Some(data) = view.to_f32() else {
                return Err(FormatError::unsupported(&weights, format!("tensor `{name}` is no tensor of floats")));
            };
            tensors.push(AdapterTensor { data, shape: view.shape, name });
        }
        let adapter = Self { config, tensors };
        adapter.check().map_err(|reason| FormatError::invalid(folder, reason))?;
        Ok(adapter)
    }

    /// Writes an adapter folder, creating it if needed. Weights are in place before the configuration that announces
    /// them, and each file is replaced atomically.
    pub fn write(&self, folder: &Path) -> Result<()> {
        self.check().map_err(|reason| FormatError::refused(folder, reason))?;
        std::fs::create_dir_all(folder).map_err(|source| FormatError::io("create", folder, source))?;
        let tensors: Vec<NamedTensor<'_>> = self
            .tensors
            .iter()
            .map(|tensor| NamedTensor::from_f32(tensor.name.clone(), tensor.shape.clone(), &tensor.data))
            .collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_safetensors(&folder.join(ADAPTER_WEIGHTS), &tensors, &metadata)?;
        write_file(&folder.join(ADAPTER_CONFIG), |out| {
            serde_json::to_writer_pretty(&mut *out, &self.config)?;
            out.write_all(b"\n")
        })
    }

    /// What PEFT requires; the error says what is wrong.
    fn check(&self) -> Result<(), String> {
        let kind = self.config["peft_type"].as_str().ok_or("the adapter configuration has no `peft_type`")?;
        let mut by_name = HashMap::new();
        for tensor in &self.tensors {
            let AdapterTensor { name, shape, data } = tensor;
            if !name.starts_with(PREFIX) {
                return Err(format!("adapter tensor `{name}` does not begin with `{PREFIX}`"));
            }
            let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
            if elements != Some(data.len()) {
                return Err(format!("adapter tensor `{name}` of shape {shape:?} has {} values", data.len()));
            }
            if by_name.insert(name.as_str(), shape.as_slice()).is_some() {
                return Err(format!("adapter tensor `{name}` appears twice"));
            }
        }
        if kind == "LORA" { self.check_lora(&by_name) } else { Ok(()) }
    }

    fn check_lora(&self, by_name: &HashMap<&str, &[usize]>) -> Result<(), String> {
        if self.config["r"].as_u64().is_none_or(|rank| rank == 0) {
            return Err("the adapter configuration has no positive `r`".into());
        }
        let targets = &self.config["target_modules"];
        if !(targets.is_string() || targets.as_array().is_some_and(|list| list.iter().all(Value::is_string))) {
            return Err("`target_modules` of the adapter configuration is neither text nor a list of texts".into());
        }
        for (name, shape) in by_name {
            for (own, other) in [(".lora_A.", ".lora_B."), (".lora_B.", ".lora_A.")] {
                if !name.contains(own) {
                    continue;
                }
                let partner = name.replace(own, other);
                let partner_shape =
                    by_name.get(partner.as_str()).ok_or_else(|| format!("adapter tensor `{name}` has no partner `{partner}`"))?;
                let (a, b) = if own == ".lora_A." { (*shape, *partner_shape) } else { (*partner_shape, *shape) };
                // Linear layers; convolutions carry trailing kernel dimensions on A, and B's are 1.
                if a.len() < 2 || b.len() < 2 || a[0] != b[1] || a[0] == 0 {
                    return Err(format!("`{name}`: A of shape {a:?} and B of shape {b:?} do not share a rank"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tensor(name: &str, shape: &[usize]) -> AdapterTensor {
        let count = shape.iter().product();
        AdapterTensor {
            name: format!("{PREFIX}model.layers.0.self_attn.q_proj.{name}"),
            shape: shape.to_vec(),
            data: (0..count).map(|i| i as f32 - 1.5).collect(),
        }
    }

    fn lora() -> Adapter {
        Adapter {
            config: json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}),
            tensors: vec![
                tensor("lora_A.weight", &[2, 6]),
                tensor("lora_B.weight", &[4, 2]),
                tensor("lora_magnitude_vector", &[4]),
            ],
        }
    }

    #[test]
    fn round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint-10");
        lora().write(&path).unwrap();
        lora().write(&path).unwrap();
        assert_eq!(Adapter::read(&path).unwrap(), lora());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 2);
    }

    #[test]
    fn what_peft_could_not_load_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refuse = |change: fn(&mut Adapter), part: &str| {
            let mut adapter = lora();
            change(&mut adapter);
            let error = adapter.write(folder.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refuse(|adapter| drop(adapter.tensors.remove(1)), "no partner");
        refuse(|adapter| adapter.tensors[1].shape = vec![2, 4], "share a rank");
        refuse(|adapter| adapter.tensors[0].shape = vec![usize::MAX, 2], "has 12 values");
        refuse(|adapter| adapter.tensors[0].name = "x.lora_A.weight".into(), "does not begin");
        refuse(|adapter| adapter.config["r"] = json!(0), "positive `r`");
        refuse(|adapter| adapter.config = json!([1]), "peft_type");
        assert!(Adapter::read(folder.path()).unwrap_err().to_string().contains(ADAPTER_CONFIG));
    }
}
