//! Tokenizers: text to ids and back, from GGUF vocabularies, `tokenizer.json`, `tokenizer.model`, or trained here.
//!
//! One wrapper hides where a vocabulary came from and which engine runs it: the `tokenizers` crate, or SentencePiece's own
//! algorithms for vocabularies that were made with them. Special tokens that occur in text are
//! recognised as such, as in Hugging Face and llama.cpp. Offsets are bytes of the input text.

mod bytes;
mod folder;
mod gguf;
mod pre;
mod sentencepiece;
mod stream;
mod train;

use std::collections::BTreeSet;

use sentencepiece::SentencePiece;
use serde_json::Value;
use swift_formats::Checkpoint;
use tokenizers::processors::PostProcessorWrapper;

pub use pre::PreTokenizer;
pub use stream::StreamDecoder;

use crate::{DataError, Result};

/// Largest configuration file beside it; chat templates and thousands of added tokens fit.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// What cuts text into ids.
#[derive(Debug, Clone)]
enum Engine {
    Crate(Box<tokenizers::Tokenizer>),
    SentencePiece(Box<SentencePiece>),
}

/// A tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    engine: Engine,
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

    /// A tokenizer from the content of a `tokenizer.json`; it names no bos, eos or padding token.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        // Serde errors of untagged enums say little, but the position helps.
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| DataError::tokenizer(None, error))?;
        Ok(Self::wrap(Engine::Crate(Box::new(inner))))
    }

    fn wrap(mut engine: Engine) -> Self {
        if let Engine::Crate(inner) = &mut engine {
            // Truncation and padding are decided here, never by what a file happened to be saved with.
            let _ = inner.with_truncation(None);
            inner.with_padding(None);
            keep_whitespace_in_offsets(inner);
        }
        Self { engine, bos: None, eos: None, pad: None, unknown: None, stops: BTreeSet::new(), prefix: None, suffix: None }
    }

    /// Names the special tokens by their text, for tokenizers made in code.
    pub fn with_special_tokens(mut self, bos: Option<&str>, eos: Option<&str>, pad: Option<&str>) -> Result<Self> {
        let id = |text: Option<&str>| match text {
            None => Ok(None),
            Some(text) => match self.token_id(text) {
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
        let mut ids = match &self.engine {
            Engine::Crate(inner) => {
                let encoding = inner.encode_fast(text, add_special).map_err(|error| DataError::tokenizer(None, error))?;
                encoding.get_ids().to_vec()
            }
            Engine::SentencePiece(engine) => engine.encode(text).ids,
        };
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
        match &self.engine {
            Engine::Crate(inner) => {
                let encoding = inner.encode(text, false).map_err(|error| DataError::tokenizer(None, error))?;
                Ok(TextEncoding { ids: encoding.get_ids().to_vec(), spans: encoding.get_offsets().to_vec() })
            }
            Engine::SentencePiece(engine) => Ok(engine.encode(text)),
        }
    }

    /// Text of ids. Bytes that are not UTF-8 become U+FFFD; unknown ids are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        match &self.engine {
            Engine::Crate(inner) => inner.decode(ids, skip_special).map_err(|error| DataError::tokenizer(None, error)),
            Engine::SentencePiece(engine) => Ok(engine.decode(ids, skip_special)),
        }
    }

    /// Number of ids: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        match &self.engine {
            Engine::Crate(inner) => {
                let added = inner.get_added_tokens_decoder().keys().max().map_or(0, |&id| id as usize + 1);
                inner.get_vocab_size(true).max(added)
            }
            Engine::SentencePiece(engine) => engine.vocab_size(),
        }
    }

    /// Id of a token by its exact text in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.engine {
            Engine::Crate(inner) => inner.token_to_id(token),
            Engine::SentencePiece(engine) => engine.text_id(token),
        }
    }

    /// Text in the vocabulary of an id; byte-level tokens are spelled in the byte alphabet.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.engine {
            Engine::Crate(inner) => inner.id_to_token(id),
            Engine::SentencePiece(engine) => engine.text(id).map(str::to_owned),
        }
    }

    /// Whether an id is a special token, which `decode` can skip.
    pub fn is_special(&self, id: u32) -> bool {
        match &self.engine {
            Engine::Crate(inner) => {
                let added = inner.get_added_vocabulary().get_added_tokens_decoder();
                added.get(&id).is_some_and(|token| token.special)
            }
            Engine::SentencePiece(engine) => engine.is_special(id),
        }
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

    /// The content of a `tokenizer.json` that gives this tokenizer, or for SentencePiece the nearest one.
    pub fn to_json(&self) -> Result<String> {
        let written = match &self.engine {
            Engine::Crate(inner) => inner.to_string(false),
            Engine::SentencePiece(engine) => engine.to_tokenizer().and_then(|inner| inner.to_string(false)),
        };
        written.map_err(|error| DataError::tokenizer(None, error))
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
