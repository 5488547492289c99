//! Vocabularies in GGUF metadata, both ways.
//!
//! `tokenizer.ggml.model` says the algorithm: `gpt2` is byte-level BPE with explicit merges, `llama` is SentencePiece
//! BPE, where the score of a piece is the priority of the merge that makes it. `tokenizer.ggml.pre` says how text is cut
//! before BPE; llama.cpp's `llama-vocab.cpp` is the reference for what each name means.

use serde_json::Value as Json;
use swift_formats::Gguf;
use swift_formats::gguf::{Array, Value};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::{Prepend, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizerSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::Tokenizer;
use crate::{DataError, Result};

/// Token types of ggml.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The mark that SentencePiece puts for a space.
const SPACE_MARK: &str = "\u{2581}";

/// Most tokens of a vocabulary; the largest released ones have 262144.
const MAX_VOCAB: usize = 1 << 22;

const LLAMA3_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before byte-level BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreTokenizer {
    /// GPT-2's pattern.
    Gpt2,
    /// Single digits, then GPT-2's pattern.
    SmolLm,
    /// Llama 3's pattern; whole words of the vocabulary win over merges.
    Llama3,
    /// Qwen 2's pattern, after Unicode NFC.
    Qwen2,
}

impl PreTokenizer {
    /// The name in `tokenizer.ggml.pre`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::SmolLm => "smollm",
            Self::Llama3 => "llama-bpe",
            Self::Qwen2 => "qwen2",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        match name {
            "gpt-2" | "default" => Some(Self::Gpt2),
            "smollm" => Some(Self::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Some(Self::Llama3),
            "qwen2" => Some(Self::Qwen2),
            _ => None,
        }
    }

    pub(super) fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let split = |pattern: &str| Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false);
        let bytes = PreTokenizerWrapper::from(ByteLevel::new(false, true, false));
        let gpt2 = PreTokenizerWrapper::from(ByteLevel::new(false, true, true));
        Ok(match self {
            Self::Gpt2 => gpt2,
            Self::SmolLm => PreTokenizerSequence::new(vec![Digits::new(true).into(), gpt2]).into(),
            Self::Llama3 => PreTokenizerSequence::new(vec![split(LLAMA3_PATTERN)?.into(), bytes]).into(),
            Self::Qwen2 => PreTokenizerSequence::new(vec![split(QWEN2_PATTERN)?.into(), bytes]).into(),
        })
    }
}

impl Tokenizer {
    /// The tokenizer in a GGUF file's metadata.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let fail = |reason: String| DataError::tokenizer(Some(file.path()), reason);
        let from_crate = |error: tokenizers::Error| DataError::tokenizer(Some(file.path()), error);
        let key = |name: &str| file.get(&format!("tokenizer.ggml.{name}"));
        let tokens = key("tokens")
            .and_then(Value::as_strings)
            .ok_or_else(|| fail("metadata `tokenizer.ggml.tokens` is missing or no list of texts".into()))?;
        if tokens.is_empty() || tokens.len() > MAX_VOCAB {
            return Err(fail(format!("{} tokens are not between 1 and {MAX_VOCAB}", tokens.len())));
        }
        let types = match key("token_type").and_then(Value::as_ints) {
            Some(types) if types.len() == tokens.len() => types,
            Some(types) => return Err(fail(format!("{} token types for {} tokens", types.len(), tokens.len()))),
            None => vec![NORMAL; tokens.len()],
        };
        let vocab: Vocab = tokens.iter().cloned().zip(0u32..).collect();
        if vocab.len() != tokens.len() {
            return Err(fail("a token appears twice in the vocabulary".into()));
        }
        let flag = |name: &str| key(name).and_then(Value::as_bool);
        let id = |name: &str| -> Result<Option<u32>> {
            match key(&format!("{name}_token_id")).and_then(Value::as_u64) {
                Some(id) if id < tokens.len() as u64 => Ok(Some(id as u32)),
                // llama.cpp writes the largest integer for "none".
                Some(id) if id == u64::from(u32::MAX) => Ok(None),
                Some(id) => Err(fail(format!("`{name}_token_id` {id} is outside of the vocabulary"))),
                None => Ok(None),
            }
        };
        let unknown = id("unknown")?;

        let (mut inner, adds_bos) = match file.get_str("tokenizer.ggml.model") {
            Some("gpt2") => {
                let name = file.get_str("tokenizer.ggml.pre").unwrap_or("default");
                let pre = PreTokenizer::from_name(name).ok_or_else(|| {
                    fail(format!("pre-tokenizer `{name}` is not known; gpt-2, smollm, llama-bpe and qwen2 are"))
                })?;
                let merges = key("merges")
                    .and_then(Value::as_strings)
                    .ok_or_else(|| fail("metadata `tokenizer.ggml.merges` is missing".into()))?;
                let inner = byte_level(vocab, merges, pre).map_err(from_crate)?;
                (inner, pre == PreTokenizer::Llama3)
            }
            Some("llama") => {
                let scores = key("scores")
                    .and_then(Value::as_floats)
                    .filter(|scores| scores.len() == tokens.len())
                    .ok_or_else(|| fail("metadata `tokenizer.ggml.scores` does not match the tokens".into()))?;
                let merges = merges_by_score(&vocab, tokens, &types, scores);
                let unknown = unknown.map(|id| tokens[id as usize].clone());
                let inner = sentencepiece(vocab, merges, unknown, flag("add_space_prefix").unwrap_or(true));
                (inner.map_err(from_crate)?, true)
            }
            Some(other) => {
                return Err(fail(format!("vocabulary model `{other}` is not read; `gpt2` and `llama` are")));
            }
            None => return Err(fail("metadata `tokenizer.ggml.model` is missing".into())),
        };

        let added = |kinds: &[i64], special: bool| -> Vec<AddedToken> {
            let chosen = tokens.iter().zip(&types).filter(|(token, kind)| kinds.contains(kind) && !token.is_empty());
            chosen.map(|(token, _)| AddedToken::from(token.as_str(), special).normalized(false)).collect()
        };
        inner.add_special_tokens(&added(&[CONTROL, UNKNOWN], true));
        inner.add_tokens(&added(&[USER_DEFINED], false));

        let mut tokenizer = Self::wrap(inner);
        (tokenizer.bos, tokenizer.eos) = (id("bos")?, id("eos")?);
        (tokenizer.pad, tokenizer.unknown) = (id("padding")?, unknown);
        tokenizer.prefix = tokenizer.bos.filter(|_| flag("add_bos_token").unwrap_or(adds_bos));
        tokenizer.suffix = tokenizer.eos.filter(|_| flag("add_eos_token").unwrap_or(false));
        tokenizer.stops.extend([id("eos")?, id("eot")?, id("eom")?].into_iter().flatten());
        Ok(tokenizer)
    }

    /// Metadata that gives this tokenizer back from GGUF. Only byte-level BPE can be written so; `pre` is the
    /// pre-tokenizer it was made with ([`PreTokenizer::Gpt2`] for those trained here).
    pub fn gguf_metadata(&self, pre: PreTokenizer, chat_template: Option<&str>) -> Result<Vec<(String, Value)>> {
        let fail = |reason: &str| DataError::tokenizer(None, reason);
        let json: Json = serde_json::from_str(&self.to_json()?).map_err(|error| DataError::tokenizer(None, error))?;
        let model = &json["model"];
        let byte_level = json["decoder"]["type"] == "ByteLevel";
        let (Some(vocab), Some(merges), true) = (model["vocab"].as_object(), model["merges"].as_array(), byte_level) else {
            return Err(fail("only byte-level BPE is written as GGUF"));
        };
        let size = self.vocab_size();
        let mut tokens: Vec<Option<(String, i64)>> = vec![None; size];
        let mut put = |id: Option<u64>, text: &str, kind: i64| {
            match id.and_then(|id| tokens.get_mut(id as usize)) {
                Some(slot) => *slot = Some((text.to_owned(), kind)),
                None => return Err(fail("an id lies outside of the vocabulary")),
            }
            Ok(())
        };
        for (text, id) in vocab {
            put(id.as_u64(), text, NORMAL)?;
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
            put(token["id"].as_u64(), token["content"].as_str().unwrap_or_default(), kind)?;
        }
        // Type 5 marks ids that no text maps to.
        let (tokens, types): (Vec<String>, Vec<i32>) = tokens
            .into_iter()
            .enumerate()
            .map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), 5)))
            .map(|(text, kind)| (text, kind as i32))
            .unzip();
        let merges = merges
            .iter()
            .map(|pair| match pair {
                Json::String(pair) => Some(pair.clone()),
                Json::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
                _ => None,
            })
            .collect::<Option<Vec<String>>>()
            .ok_or_else(|| fail("a merge is not a pair"))?;
        let mut metadata = vec![
            ("tokenizer.ggml.model".to_owned(), "gpt2".into()),
            ("tokenizer.ggml.pre".to_owned(), pre.name().into()),
            ("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::String(tokens))),
            ("tokenizer.ggml.token_type".to_owned(), Value::Array(Array::I32(types))),
            ("tokenizer.ggml.merges".to_owned(), Value::Array(Array::String(merges))),
            ("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(self.prefix.is_some())),
        ];
        for (name, id) in [("bos", self.bos), ("eos", self.eos), ("padding", self.pad), ("unknown", self.unknown)] {
            if let Some(id) = id {
                metadata.push((format!("tokenizer.ggml.{name}_token_id"), Value::U32(id)));
            }
        }
        if let Some(template) = chat_template {
            metadata.push(("tokenizer.chat_template".to_owned(), template.into()));
        }
        Ok(metadata)
    }
}

fn byte_level(vocab: Vocab, merges: &[String], pre: PreTokenizer) -> tokenizers::Result<tokenizers::Tokenizer> {
    let merges: Merges = merges
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(tokenizers::Error::from(format!("merge `{merge}` is not two tokens"))),
        })
        .collect::<tokenizers::Result<_>>()?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre == PreTokenizer::Llama3).build()?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(pre.build()?));
    inner.with_decoder(Some(ByteLevelDecoder::default()));
    if pre == PreTokenizer::Qwen2 {
        inner.with_normalizer(Some(NFC));
    }
    Ok(inner)
}

/// Merges of a SentencePiece BPE model: every way to cut a piece into two pieces, the best score first; as in
/// `transformers` (`SentencePieceExtractor`), equal scores keep the order of ids.
fn merges_by_score(vocab: &Vocab, tokens: &[String], types: &[i64], scores: &[f32]) -> Merges {
    let mut found: Vec<(f32, u32, u32, u32)> = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        if !matches!(types[id], NORMAL | USER_DEFINED) || scores[id].is_nan() {
            continue;
        }
        for (cut, _) in token.char_indices().skip(1) {
            if let (Some(&left), Some(&right)) = (vocab.get(&token[..cut]), vocab.get(&token[cut..])) {
                found.push((scores[id], id as u32, left, right));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    found.into_iter().map(|(_, _, left, right)| (tokens[left as usize].clone(), tokens[right as usize].clone())).collect()
}

fn sentencepiece(
    vocab: Vocab,
    merges: Merges,
    unknown: Option<String>,
    space_prefix: bool,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut builder = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown);
    }
    let mut inner = tokenizers::Tokenizer::new(builder.build()?);
    let mark_spaces = Replace::new(" ", SPACE_MARK)?;
    let mut normalizers = vec![mark_spaces.into()];
    let mut decoders = vec![Replace::new(SPACE_MARK, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if space_prefix {
        normalizers.insert(0, Prepend::new(SPACE_MARK.into()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_normalizer(Some(NormalizerSequence::new(normalizers)));
    inner.with_decoder(Some(DecoderSequence::new(decoders)));
    Ok(inner)
}
