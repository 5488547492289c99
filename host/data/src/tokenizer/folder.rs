//! The tokenizer of a folder in the Hugging Face layout.
//!
//! `tokenizer.json` wins; without it, `tokenizer.model` is read with SentencePiece's algorithms. `tokenizer_config.json` names
//! the special tokens and what is put around a text, `generation_config.json` what ends an answer.

use std::path::Path;

use serde_json::Value;
use swift_formats::{Generation, read_json};

use super::sentencepiece::{Added, Algorithm, PieceKind, SentencePiece};
use super::{Engine, MAX_CONFIG_BYTES, Tokenizer, token_text};
use crate::{DataError, Result};

/// Largest vocabulary file; those of 256k vocabularies reach 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

impl Tokenizer {
    /// The tokenizer of a folder: `tokenizer.json` or `tokenizer.model`, special tokens by `tokenizer_config.json`, and stop
    /// tokens by `generation_config.json`.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let config = folder.join("tokenizer_config.json");
        let config = if config.is_file() { read_json(&config, MAX_CONFIG_BYTES)? } else { Value::Null };
        let (json, model) = (folder.join("tokenizer.json"), folder.join("tokenizer.model"));
        let mut tokenizer = if json.is_file() {
            Self::from_json(&read(&json)?).map_err(|error| at(&json, error))?
        } else if model.is_file() {
            Self::from_sentencepiece(&read(&model)?, &config).map_err(|error| at(&model, error))?
        } else {
            return Err(DataError::tokenizer(Some(folder), "`tokenizer.json` is missing, and so is `tokenizer.model`"));
        };
        let id = |key: &str| token_text(&config[key]).and_then(|text| tokenizer.token_id(text));
        let [bos, eos, pad, unknown] = [id("bos_token"), id("eos_token"), id("pad_token"), id("unk_token")];
        tokenizer.bos = bos.or(tokenizer.bos);
        tokenizer.eos = eos.or(tokenizer.eos);
        tokenizer.pad = pad.or(tokenizer.pad);
        tokenizer.unknown = unknown.or(tokenizer.unknown);
        tokenizer.stops.extend(tokenizer.eos);
        tokenizer.stops.extend(Generation::from_folder(folder)?.eos_token_ids);
        Ok(tokenizer)
    }

    /// A tokenizer from the content of a `tokenizer.model` and of the `tokenizer_config.json` beside it (`Null` for none).
    pub fn from_sentencepiece(model: &[u8], config: &Value) -> Result<Self> {
        let fail = |reason: String| DataError::tokenizer(None, reason);
        // Lines of base64 and a rank: what tiktoken writes, and Llama 3's original release calls `tokenizer.model` as well.
        let first = model.split(|&byte| byte == b'\n').next().unwrap_or_default();
        if first.is_ascii() && first.len() < 4096 && first.contains(&b' ') && first.last().is_some_and(u8::is_ascii_digit) {
            return Err(fail("this is a tiktoken vocabulary; use the folder that has the model's `tokenizer.json`".into()));
        }
        let mut spec = SentencePiece::read(model).map_err(fail)?;
        // `legacy` models put a space behind every special token, as llama.cpp does; newer ones only at the beginning.
        spec.prefix_once = config["legacy"] != true;
        if let Some(prefix) = config["add_prefix_space"].as_bool() {
            spec.dummy_prefix = prefix;
        }
        let mut added: Vec<Added> = Vec::new();
        for ((text, _, kind), id) in spec.pieces.iter().zip(0u32..) {
            if matches!(kind, PieceKind::Control | PieceKind::Unknown) && !text.is_empty() {
                added.push(Added { text: text.clone(), id, special: true, strip_left: false, strip_right: false });
            }
        }
        for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
            let Ok(id) = id.parse::<u32>() else {
                return Err(fail(format!("`added_tokens_decoder` names the id `{id}`, which is no number")));
            };
            let Some(text) = token_text(token).filter(|text| !text.is_empty()) else {
                return Err(fail(format!("`added_tokens_decoder` gives no text for id {id}")));
            };
            let flag = |key: &str| token[key] == true;
            added.retain(|other| other.id != id && other.text != text);
            let (strip_left, strip_right) = (flag("lstrip"), flag("rstrip"));
            added.push(Added { text: text.to_owned(), id, special: flag("special"), strip_left, strip_right });
        }
        let class = config["tokenizer_class"].as_str().unwrap_or_default();
        // Without a word in the configuration, BPE models begin with bos (Llama, Mistral, Gemma) and T5 ends with eos.
        let adds_bos = config["add_bos_token"].as_bool().unwrap_or(spec.algorithm == Algorithm::Bpe);
        let adds_eos = config["add_eos_token"].as_bool().unwrap_or(class.contains("T5"));
        let engine = SentencePiece::new(spec, added).map_err(fail)?;
        let spec = engine.spec();
        let (bos, eos, pad, unknown) = (spec.bos, spec.eos, spec.pad, spec.unknown);
        let named = |key: &str, other: Option<u32>| token_text(&config[key]).and_then(|text| engine.text_id(text)).or(other);
        let (bos, eos) = (named("bos_token", bos), named("eos_token", eos));
        let mut tokenizer = Self::wrap(Engine::SentencePiece(Box::new(engine)));
        (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unknown) = (bos, eos, pad, unknown);
        tokenizer.prefix = bos.filter(|_| adds_bos);
        tokenizer.suffix = eos.filter(|_| adds_eos);
        tokenizer.stops.extend(eos);
        Ok(tokenizer)
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let size = file.metadata().map_err(|source| DataError::io("open", file, source))?.len();
    if size > MAX_TOKENIZER_BYTES {
        return Err(DataError::tokenizer(Some(file), format!("larger than {MAX_TOKENIZER_BYTES} bytes")));
    }
    std::fs::read(file).map_err(|source| DataError::io("read", file, source))
}

/// Names the file that an error of its content comes from.
fn at(file: &Path, error: DataError) -> DataError {
    match error {
        DataError::Tokenizer { reason, .. } => DataError::tokenizer(Some(file), reason),
        other => other,
    }
}
