//! Tokenizers: text to ids and back, from GGUF vocabularies, `tokenizer.json`, or trained here.
//!
//! One wrapper over the `tokenizers` crate hides where a vocabulary came from. Special tokens that occur in text are
//! recognised as such, as in Hugging Face and llama.cpp. Offsets are bytes of the input text.

mod gguf;
mod stream;
mod train;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use swift_formats::{Checkpoint, read_json};
use tokenizers::processors::PostProcessorWrapper;

pub use gguf::PreTokenizer;
pub use stream::StreamDecoder;

use crate::{DataError, Result};

/// Largest `tokenizer.json`; those of 256k vocabularies reach 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Largest configuration file beside it; chat templates and thousands of added tokens fit.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unknown: Option<u32>,
    stops: BTreeSet<u32>,
    /// Put before a text that is encoded with special tokens. Only for GGUF; `tokenizer.json` has a post-processor.
    prefix: Option<u32>,
    /// Put after it.
    suffix: Option<u32>,
}

/// Ids with the byte range of the text that each stands for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextEncoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte range of each token. Tokens that share one character share its range.
    pub spans: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// The tokenizer of a checkpoint: its GGUF vocabulary or its folder's `tokenizer.json`.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let mut tokenizer = match checkpoint.gguf() {
            Some(file) => Self::from_gguf(file)?,
            None => Self::from_folder(checkpoint.path())?,
        };
        let config = checkpoint.config();
        let id = |key: &str| ids_of(&config[key]).first().copied();
        tokenizer.bos = tokenizer.bos.or(id("bos_token_id"));
        tokenizer.eos = tokenizer.eos.or(id("eos_token_id"));
        tokenizer.pad = tokenizer.pad.or(id("pad_token_id"));
        tokenizer.stops.extend(tokenizer.eos);
        tokenizer.stops.extend(ids_of(&config["eos_token_id"]));
        Ok(tokenizer)
    }

    /// The tokenizer of a Hugging Face folder: `tokenizer.json`, special tokens by `tokenizer_config.json`, and stop
    /// tokens by `generation_config.json`.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let file = folder.join("tokenizer.json");
        if !file.is_file() {
            let hint = if folder.join("tokenizer.model").exists() {
                "only `tokenizer.model` exists; convert it to `tokenizer.json`"
            } else {
                "`tokenizer.json` is missing"
            };
            return Err(DataError::tokenizer(Some(folder), hint));
        }
        let size = file.metadata().map_err(|source| DataError::io("open", &file, source))?.len();
        if size > MAX_TOKENIZER_BYTES {
            return Err(DataError::tokenizer(Some(&file), format!("larger than {MAX_TOKENIZER_BYTES} bytes")));
        }
        let bytes = std::fs::read(&file).map_err(|source| DataError::io("read", &file, source))?;
        let mut tokenizer = Self::from_json(&bytes).map_err(|error| match error {
            DataError::Tokenizer { reason, .. } => DataError::tokenizer(Some(&file), reason),
            other => other,
        })?;
        let config = folder.join("tokenizer_config.json");
        if config.is_file() {
            let config = read_json(&config, MAX_CONFIG_BYTES)?;
            let id = |key: &str| token_text(&config[key]).and_then(|text| tokenizer.inner.token_to_id(text));
            let found = (id("bos_token"), id("eos_token"), id("pad_token"), id("unk_token"));
            (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unknown) = found;
            tokenizer.stops.extend(tokenizer.eos);
        }
        let generation = folder.join("generation_config.json");
        if generation.is_file() {
            let generation = read_json(&generation, MAX_CONFIG_BYTES)?;
            tokenizer.stops.extend(ids_of(&generation["eos_token_id"]));
        }
        Ok(tokenizer)
    }

    /// A tokenizer from the content of a `tokenizer.json`; it names no bos, eos or padding token.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        // Serde errors of untagged enums say little, but the position helps.
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| DataError::tokenizer(None, error))?;
        Ok(Self::wrap(inner))
    }

    fn wrap(mut inner: tokenizers::Tokenizer) -> Self {
        // Truncation and padding are decided here, never by what a file happened to be saved with.
        let _ = inner.with_truncation(None);
        inner.with_padding(None);
        keep_whitespace_in_offsets(&mut inner);
        Self { inner, bos: None, eos: None, pad: None, unknown: None, stops: BTreeSet::new(), prefix: None, suffix: None }
    }

    /// Names the special tokens by their text, for tokenizers made in code.
    pub fn with_special_tokens(mut self, bos: Option<&str>, eos: Option<&str>, pad: Option<&str>) -> Result<Self> {
        let id = |text: Option<&str>| match text {
            None => Ok(None),
            Some(text) => match self.inner.token_to_id(text) {
                Some(id) => Ok(Some(id)),
                None => Err(DataError::tokenizer(None, format!("`{text}` is not in the vocabulary"))),
            },
        };
        let (bos, eos, pad) = (id(bos)?, id(eos)?, id(pad)?);
        self.stops.extend(eos);
        (self.bos, self.eos, self.pad) = (bos, eos, pad);
        Ok(self)
    }

    /// Ids of a text. With `add_special`, the tokens that the model wants around a text (bos, where it uses one).
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|error| DataError::tokenizer(None, error))?;
        let mut ids = encoding.get_ids().to_vec();
        if add_special {
            if let Some(prefix) = self.prefix {
                ids.insert(0, prefix);
            }
            ids.extend(self.suffix);
        }
        Ok(ids)
    }

    /// Ids of a text with their byte ranges, without added special tokens.
    pub fn encode_spans(&self, text: &str) -> Result<TextEncoding> {
        let encoding = self.inner.encode(text, false).map_err(|error| DataError::tokenizer(None, error))?;
        Ok(TextEncoding { ids: encoding.get_ids().to_vec(), spans: encoding.get_offsets().to_vec() })
    }

    /// Text of ids. Bytes that are not UTF-8 become U+FFFD; unknown ids are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|error| DataError::tokenizer(None, error))
    }

    /// Number of ids: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        let added = self.inner.get_added_tokens_decoder().keys().max().map_or(0, |&id| id as usize + 1);
        self.inner.get_vocab_size(true).max(added)
    }

    /// Id of a token by its exact text in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Text in the vocabulary of an id; byte-level tokens are spelled in the byte alphabet.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is a special token, which `decode` can skip.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// Beginning of sequence.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The token that the model wants in front of every text, if it wants one.
    pub fn prefix_id(&self) -> Option<u32> {
        self.prefix.or_else(|| {
            let wrapped = self.encode("", true).ok()?;
            wrapped.first().copied().filter(|&id| Some(id) == self.bos)
        })
    }

    /// Padding.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// Unknown text.
    pub fn unknown_id(&self) -> Option<u32> {
        self.unknown
    }

    /// Ids that end generation, in ascending order: eos and what the model's generation settings add.
    pub fn stop_ids(&self) -> Vec<u32> {
        self.stops.iter().copied().collect()
    }

    /// The content of a `tokenizer.json` that gives this tokenizer.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|error| DataError::tokenizer(None, error))
    }
}

/// Post-processors of byte-level tokenizers may trim whitespace from offsets; labels need every byte covered.
fn keep_whitespace_in_offsets(inner: &mut tokenizers::Tokenizer) {
    fn untrim(processor: &mut PostProcessorWrapper) {
        match processor {
            PostProcessorWrapper::ByteLevel(bytes) => bytes.trim_offsets = false,
            PostProcessorWrapper::Roberta(roberta) => roberta.trim_offsets = false,
            PostProcessorWrapper::Sequence(sequence) => sequence.as_mut().iter_mut().for_each(untrim),
            PostProcessorWrapper::Bert(_) | PostProcessorWrapper::Template(_) => {}
        }
    }
    if let Some(mut processor) = inner.get_post_processor().cloned() {
        untrim(&mut processor);
        inner.with_post_processor(Some(processor));
    }
}

/// Text of a special token: plain, or an object as saved by `transformers`.
pub(crate) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// One id or a list of ids.
fn ids_of(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        other => id(other).into_iter().collect(),
    }
}
