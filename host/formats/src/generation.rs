//! What a model's authors recommend for sampling.
//!
//! Hugging Face folders say it in `generation_config.json`, GGUF files in `general.sampling.*`. Nothing is required; what is
//! there must make sense, or an error names the key.

use std::path::Path;

use serde_json::Value as Json;

use crate::json::MAX_CONFIG_BYTES;
use crate::{FormatError, Gguf, Result, read_json};

/// Name of the file in a folder.
pub const GENERATION_CONFIG: &str = "generation_config.json";

/// Recommended sampling; absent values are the engine's to choose.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generation {
    /// Whether to sample at all; without it the likeliest token is taken.
    pub do_sample: Option<bool>,
    /// Divisor of the logits; 0 for the likeliest token.
    pub temperature: Option<f64>,
    /// Sample among this many of the likeliest tokens; 0 for all.
    pub top_k: Option<u64>,
    /// Sample among the likeliest tokens that together have this probability, above 0 and up to 1.
    pub top_p: Option<f64>,
    /// Sample among tokens that have this share of the likeliest one's probability, from 0 to 1.
    pub min_p: Option<f64>,
    /// Divisor of positive logits of tokens that occurred, above 0.
    pub repetition_penalty: Option<f64>,
    /// Most tokens of an answer.
    pub max_new_tokens: Option<u64>,
    /// Tokens that end an answer, each once, in the order given.
    pub eos_token_ids: Vec<u32>,
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
}

impl Generation {
    /// What the folder's `generation_config.json` says; nothing, if there is none.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let file = folder.join(GENERATION_CONFIG);
        match file.is_file() {
            true => Self::from_json(&file, &read_json(&file, MAX_CONFIG_BYTES)?),
            false => Ok(Self::default()),
        }
    }

    /// What a GGUF file's metadata says.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let mut json = serde_json::Map::new();
        for (key, name) in [
            ("temperature", "temp"),
            ("top_p", "top_p"),
            ("min_p", "min_p"),
            ("repetition_penalty", "penalty_repeat"),
            ("top_k", "top_k"),
        ] {
            let value = file.get(&format!("general.sampling.{name}"));
            if let Some(value) = value.and_then(|value| value.as_f64().map(Json::from).or(value.as_u64().map(Json::from))) {
                json.insert(key.into(), value);
            }
        }
        let read = Self::from_json(file.path(), &Json::Object(json))?;
        // There is no word for sampling in these files but its temperature.
        Ok(Self { do_sample: read.temperature.map(|temperature| temperature > 0.0), ..read })
    }

    fn from_json(path: &Path, json: &Json) -> Result<Self> {
        if !json.is_object() {
            return Err(FormatError::invalid(path, "the generation configuration is not a JSON object"));
        }
        let invalid = |key: &str, wanted: &str| {
            let reason = format!("`{key}` is {}, not {wanted}; correct or remove it", json[key]);
            FormatError::invalid(path, reason)
        };
        let number = |key: &str, wanted: &str, fits: fn(f64) -> bool| match &json[key] {
            Json::Null => Ok(None),
            value => match value.as_f64().filter(|&value| value.is_finite() && fits(value)) {
                Some(value) => Ok(Some(value)),
                None => Err(invalid(key, wanted)),
            },
        };
        let count = |key: &str| match &json[key] {
            Json::Null => Ok(None),
            value => match value.as_u64() {
                Some(value) => Ok(Some(value)),
                None => Err(invalid(key, "a count")),
            },
        };
        // -1 stands for "none" in some published files.
        let id = |value: &Json| value.as_i64().and_then(|id| u32::try_from(id).ok());
        let is_id = |value: &Json| value.as_i64().is_some_and(|id| (-1..=i64::from(u32::MAX)).contains(&id));
        let ids = |key: &str| match &json[key] {
            Json::Null => Ok(Vec::new()),
            Json::Array(list) if list.iter().all(is_id) => Ok(list.iter().filter_map(id).collect()),
            value if is_id(value) => Ok(id(value).into_iter().collect()),
            _ => Err(invalid(key, "a token id or a list of them")),
        };
        let mut eos_token_ids: Vec<u32> = Vec::new();
        for id in ids("eos_token_id")? {
            if !eos_token_ids.contains(&id) {
                eos_token_ids.push(id);
            }
        }
        Ok(Self {
            do_sample: match &json["do_sample"] {
                Json::Null => None,
                Json::Bool(value) => Some(*value),
                _ => return Err(invalid("do_sample", "true or false")),
            },
            // 0 is what some write for greedy decoding.
            temperature: number("temperature", "a number from 0 up", |value| value >= 0.0)?,
            top_k: count("top_k")?,
            top_p: number("top_p", "a number above 0 and up to 1", |value| value > 0.0 && value <= 1.0)?,
            min_p: number("min_p", "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))?,
            repetition_penalty: number("repetition_penalty", "a number above 0", |value| value > 0.0)?,
            max_new_tokens: count("max_new_tokens")?,
            eos_token_ids,
            bos_token_id: ids("bos_token_id")?.first().copied(),
            pad_token_id: ids("pad_token_id")?.first().copied(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(json: Json) -> Result<Generation> {
        Generation::from_json(Path::new(GENERATION_CONFIG), &json)
    }

    #[test]
    fn recommendations_are_read() {
        let config = json!({
            "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05,
            "eos_token_id": [151645, 151643, 151645], "bos_token_id": 151643, "pad_token_id": -1, "transformers_version": "4.51.0",
        });
        let expected = Generation {
            do_sample: Some(true),
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            repetition_penalty: Some(1.05),
            eos_token_ids: vec![151645, 151643],
            bos_token_id: Some(151643),
            ..Generation::default()
        };
        assert_eq!(read(config).unwrap(), expected);
        assert_eq!(read(json!({})).unwrap(), Generation::default());
        assert_eq!(read(json!({"eos_token_id": 2})).unwrap().eos_token_ids, [2]);
    }

    #[test]
    fn nonsense_names_its_key() {
        for (key, value) in [
            ("do_sample", json!("yes")),
            ("temperature", json!(-1)),
            ("temperature", json!("0.7")),
            ("top_k", json!(2.5)),
            ("top_k", json!(-1)),
            ("top_p", json!(0)),
            ("top_p", json!(1.5)),
            ("min_p", json!([])),
            ("repetition_penalty", json!(0.0)),
            ("max_new_tokens", json!(-3)),
            ("eos_token_id", json!("</s>")),
            ("eos_token_id", json!([1, "x"])),
            ("pad_token_id", json!(4_294_967_296u64)),
        ] {
            let error = read(json!({key: value})).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(GENERATION_CONFIG), "{error}");
        }
        assert!(read(json!([])).is_err());
    }
}
