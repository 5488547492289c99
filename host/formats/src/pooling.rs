//! How the authors of an embedding model make one vector out of those of all tokens.
//!
//! Folders of sentence-transformers say it in `1_Pooling/config.json`, GGUF files in `<architecture>.pooling_type`.

use std::path::Path;

use serde_json::Value as Json;

use crate::json::MAX_CONFIG_BYTES;
use crate::{Checkpoint, FormatError, Gguf, Result, read_json};

/// Where sentence-transformers keeps it in a folder.
const POOLING_CONFIG: &str = "1_Pooling/config.json";

/// What becomes of the vectors of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
}

impl Checkpoint {
    /// What the model's authors pool by; `None` if they do not say.
    ///
    /// # Errors
    /// When it is something that is not known here.
    pub fn pooling(&self) -> Result<Option<Pooling>> {
        if let Some(file) = self.gguf() {
            return from_gguf(file);
        }
        let path = self.path().join(POOLING_CONFIG);
        if path.is_file() { from_json(&path, &read_json(&path, MAX_CONFIG_BYTES)?) } else { Ok(None) }
    }
}

fn from_gguf(file: &Gguf) -> Result<Option<Pooling>> {
    let key = format!("{}.pooling_type", file.get_str("general.architecture").unwrap_or_default());
    let Some(value) = file.get(&key) else { return Ok(None) };
    match value.as_u64() {
        Some(0) => Ok(None),
        Some(1) => Ok(Some(Pooling::Mean)),
        Some(2) => Ok(Some(Pooling::First)),
        Some(3) => Ok(Some(Pooling::Last)),
        _ => {
            Err(FormatError::unsupported(file.path(), format!("`{key}` is {value:?}; known are 1 (mean), 2 (cls) and 3 (last)")))
        }
    }
}

fn from_json(path: &Path, json: &Json) -> Result<Option<Pooling>> {
    let asked: Vec<&str> = match json.as_object() {
        Some(object) => object.iter().filter(|(_, value)| **value == true).map(|(key, _)| key.as_str()).collect(),
        None => return Err(FormatError::invalid(path, "the pooling configuration is not a JSON object")),
    };
    let asked: Vec<&str> = asked.into_iter().filter_map(|key| key.strip_prefix("pooling_mode_")).collect();
    match asked.as_slice() {
        [] => Ok(None),
        ["mean_tokens"] => Ok(Some(Pooling::Mean)),
        ["cls_token"] => Ok(Some(Pooling::First)),
        ["lasttoken"] => Ok(Some(Pooling::Last)),
        other => {
            let reason =
                format!("it pools by {}; known are mean_tokens, cls_token and lasttoken, one of them", other.join(" and "));
            Err(FormatError::unsupported(path, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gguf::{self, Value};

    #[test]
    fn folders_and_files_say_how_to_pool() {
        let read = |json: Json| from_json(Path::new(POOLING_CONFIG), &json);
        let minilm =
            json!({ "word_embedding_dimension": 384, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true });
        assert_eq!(read(minilm).unwrap(), Some(Pooling::Mean));
        assert_eq!(read(json!({ "pooling_mode_cls_token": true, "include_prompt": true })).unwrap(), Some(Pooling::First));
        assert_eq!(read(json!({ "pooling_mode_lasttoken": true })).unwrap(), Some(Pooling::Last));
        assert_eq!(read(json!({})).unwrap(), None);
        for other in [
            json!({ "pooling_mode_max_tokens": true }),
            json!({ "pooling_mode_cls_token": true, "pooling_mode_max_tokens": true }),
        ] {
            let error = read(other).unwrap_err().to_string();
            assert!(error.contains("max_tokens") && error.contains("mean_tokens"), "{error}");
        }
        assert!(read(json!([])).is_err());

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let file = |kind: u32| {
            let metadata = [("general.architecture".into(), "bert".into()), ("bert.pooling_type".into(), Value::U32(kind))];
            gguf::write(&path, &metadata, &[]).unwrap();
            from_gguf(&Gguf::open(&path).unwrap())
        };
        let found = [0, 1, 2, 3].map(|kind| file(kind).unwrap());
        assert_eq!(found, [None, Some(Pooling::Mean), Some(Pooling::First), Some(Pooling::Last)]);
        assert!(file(4).unwrap_err().to_string().contains("`bert.pooling_type`"));
    }
}
