//! Vocabularies in GGUF metadata, both ways.
//!
//! `tokenizer.ggml.model` says the algorithm: `gpt2` is byte-level BPE with explicit merges behind a named pre-tokenizer,
//! `llama` is SentencePiece BPE, `t5` SentencePiece unigram, `bert` WordPiece. llama.cpp's `llama-vocab.cpp` is the reference
//! for what each key means and for its default.

use serde_json::Value as Json;
use swift_formats::Gguf;
use swift_formats::gguf::{Array, Value};
use tokenizers::AddedToken;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

use super::pre::{PreTokenizer, Preset};
use super::sentencepiece::{Added, Algorithm, PieceKind, SPACE_MARK, SentencePiece, Spec};
use super::{Engine, Tokenizer};
use crate::{DataError, Result};

/// Token types of ggml.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Most tokens of a vocabulary; the largest released ones have 262144.
const MAX_VOCAB: usize = 1 << 22;

/// Tokens that end a turn, by their text; for files that name no end-of-turn token.
const TURN_ENDS: [&str; 7] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<end_of_utterance>", "<turn|>"];

/// The tokenizer's part of a file's metadata, checked.
struct Metadata<'a> {
    file: &'a Gguf,
    tokens: &'a [String],
    types: Vec<i64>,
}

/// What is put around a text unless the file says otherwise.
struct Defaults {
    bos: bool,
    eos: bool,
    separator: bool,
}

impl<'a> Metadata<'a> {
    fn read(file: &'a Gguf) -> Result<Self> {
        let fail = |reason: String| DataError::tokenizer(Some(file.path()), reason);
        let tokens = file
            .get("tokenizer.ggml.tokens")
            .and_then(Value::as_strings)
            .ok_or_else(|| fail("metadata `tokenizer.ggml.tokens` is missing or no list of texts".into()))?;
        if tokens.is_empty() || tokens.len() > MAX_VOCAB {
            return Err(fail(format!("{} tokens are not between 1 and {MAX_VOCAB}", tokens.len())));
        }
        let types = match file.get("tokenizer.ggml.token_type").and_then(Value::as_ints) {
            Some(types) if types.len() == tokens.len() => types,
            Some(types) => return Err(fail(format!("{} token types for {} tokens", types.len(), tokens.len()))),
            None => vec![NORMAL; tokens.len()],
        };
        Ok(Self { file, tokens, types })
    }

    fn fail(&self, reason: impl ToString) -> DataError {
        DataError::tokenizer(Some(self.file.path()), reason)
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.file.get(&format!("tokenizer.ggml.{name}"))
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_bool)
    }

    /// The token of `tokenizer.ggml.{name}_token_id`.
    fn id(&self, name: &str) -> Result<Option<u32>> {
        match self.get(&format!("{name}_token_id")).and_then(Value::as_u64) {
            Some(id) if id < self.tokens.len() as u64 => Ok(Some(id as u32)),
            // llama.cpp writes the largest integer for "none".
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(id) => Err(self.fail(format!("`{name}_token_id` {id} is outside of the vocabulary"))),
            None => Ok(None),
        }
    }

    fn text_id(&self, text: &str) -> Option<u32> {
        self.tokens.iter().position(|token| token == text).map(|id| id as u32)
    }

    fn vocab(&self) -> Result<Vocab> {
        let vocab: Vocab = self.tokens.iter().cloned().zip(0u32..).collect();
        match vocab.len() == self.tokens.len() {
            true => Ok(vocab),
            false => Err(self.fail("a token appears twice in the vocabulary")),
        }
    }

    fn of_type(&self, kinds: &[i64]) -> impl Iterator<Item = (&'a str, u32)> {
        let chosen = self.tokens.iter().zip(&self.types).zip(0u32..);
        chosen.filter(|((token, kind), _)| kinds.contains(kind) && !token.is_empty()).map(|((token, _), id)| (token.as_str(), id))
    }

    /// Tells the engine which tokens are found in text first.
    fn add_tokens(&self, inner: &mut tokenizers::Tokenizer) {
        let added = |kinds: &[i64], special: bool| -> Vec<AddedToken> {
            self.of_type(kinds).map(|(token, _)| AddedToken::from(token, special).normalized(false)).collect()
        };
        inner.add_special_tokens(&added(&[CONTROL, UNKNOWN], true));
        inner.add_tokens(&added(&[USER_DEFINED], false));
    }

    fn byte_level(&self) -> Result<(Engine, Defaults)> {
        // Files of 2023 name none; what these families do is known.
        let unnamed = match self.file.get_str("general.architecture") {
            Some("gptneox") => "olmo",
            Some("gpt2") => "gpt-2",
            _ => "default",
        };
        let name = self.file.get_str("tokenizer.ggml.pre").unwrap_or(unnamed);
        let preset = Preset::from_name(name).ok_or_else(|| {
            self.fail(format!("pre-tokenizer `{name}` is not known; use the folder with the model's `tokenizer.json`"))
        })?;
        let merges = self
            .get("merges")
            .and_then(Value::as_strings)
            .ok_or_else(|| self.fail("metadata `tokenizer.ggml.merges` is missing"))?;
        let mut inner = byte_level(self.vocab()?, merges, preset).map_err(|error| self.fail(error))?;
        self.add_tokens(&mut inner);
        Ok((Engine::Crate(Box::new(inner)), Defaults { bos: preset.adds_bos, eos: false, separator: false }))
    }

    fn sentencepiece(&self, algorithm: Algorithm) -> Result<(Engine, Defaults)> {
        let scores = self
            .get("scores")
            .and_then(Value::as_floats)
            .filter(|scores| scores.len() == self.tokens.len())
            .ok_or_else(|| self.fail("metadata `tokenizer.ggml.scores` does not match the tokens"))?;
        let mut pieces = Vec::with_capacity(self.tokens.len());
        for (id, ((text, &kind), &score)) in self.tokens.iter().zip(&self.types).zip(scores).enumerate() {
            let kind = PieceKind::from_number(kind).unwrap_or(PieceKind::Unused);
            // Empty texts occur where a vocabulary was filled up to a round size; they must stay distinct.
            let text = if text.is_empty() { format!("[EMPTY_{id}]") } else { text.clone() };
            pieces.push((text, score, kind));
        }
        let is_bpe = algorithm == Algorithm::Bpe;
        let charsmap = match self.get("precompiled_charsmap") {
            Some(Value::Array(Array::U8(bytes))) => bytes.clone(),
            Some(Value::Array(Array::I8(bytes))) => bytes.iter().map(|&byte| byte as u8).collect(),
            _ => Vec::new(),
        };
        let spec = Spec {
            algorithm,
            byte_fallback: pieces.iter().any(|piece| piece.2 == PieceKind::Byte),
            pieces,
            unknown: self.id("unknown")?.or_else(|| self.of_type(&[UNKNOWN]).next().map(|(_, id)| id)),
            bos: self.id("bos")?,
            eos: self.id("eos")?,
            pad: self.id("padding")?,
            charsmap,
            dummy_prefix: self.flag("add_space_prefix").unwrap_or(true),
            collapse_spaces: self.flag("remove_extra_whitespaces").unwrap_or(false),
            escape_spaces: true,
            space_is_suffix: false,
            prefix_once: false,
        };
        let added = |kinds: &[i64], special: bool| {
            let token =
                move |(text, id): (&str, u32)| Added { text: text.into(), id, special, strip_left: false, strip_right: false };
            self.of_type(kinds).map(token).collect::<Vec<_>>()
        };
        let mut found = added(&[CONTROL, UNKNOWN], true);
        found.extend(added(&[USER_DEFINED], false));
        let engine = SentencePiece::new(spec, found).map_err(|reason| self.fail(reason))?;
        let defaults = Defaults { bos: is_bpe, eos: !is_bpe, separator: false };
        Ok((Engine::SentencePiece(Box::new(engine)), defaults))
    }

    /// WordPiece. GGUF marks the beginning of words where the original marks their continuation with `##`.
    fn word_piece(&self) -> Result<(Engine, Defaults)> {
        let original = |token: &String| match token.strip_prefix(SPACE_MARK) {
            Some(word) => word.to_owned(),
            None if token.starts_with('[') && token.ends_with(']') => token.clone(),
            None => format!("##{token}"),
        };
        let texts: Vec<String> = self.tokens.iter().map(original).collect();
        let vocab: Vocab = texts.iter().cloned().zip(0u32..).collect();
        if vocab.len() != texts.len() {
            return Err(self.fail("a token appears twice in the vocabulary"));
        }
        let unknown = self.id("unknown")?.map_or("[UNK]", |id| texts[id as usize].as_str()).to_owned();
        if !vocab.contains_key(&unknown) {
            return Err(self.fail(format!("the unknown token `{unknown}` is not in the vocabulary")));
        }
        let model = WordPiece::builder().vocab(vocab).unk_token(unknown).build().map_err(|error| self.fail(error))?;
        let lowercase = self.flag("normalizer.lowercase").unwrap_or(true);
        let strip_accents = self.flag("normalizer.strip_accents").unwrap_or(lowercase);
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(Some(BertNormalizer::new(true, true, Some(strip_accents), lowercase)));
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        inner.with_decoder(Some(WordPieceDecoder::default()));
        let specials = self.of_type(&[CONTROL, UNKNOWN]).map(|(_, id)| texts[id as usize].as_str());
        // Older files mark no token; these five are special in every BERT.
        let named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].into_iter().filter(|name| self.text_id(name).is_some());
        let mut specials: Vec<&str> = specials.chain(named).collect();
        specials.sort_unstable();
        specials.dedup();
        let specials: Vec<AddedToken> = specials.into_iter().map(|text| AddedToken::from(text, true).normalized(false)).collect();
        inner.add_special_tokens(&specials);
        Ok((Engine::Crate(Box::new(inner)), Defaults { bos: true, eos: false, separator: true }))
    }
}

impl Tokenizer {
    /// The tokenizer in a GGUF file's metadata.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let metadata = Metadata::read(file)?;
        let (engine, defaults) = match file.get_str("tokenizer.ggml.model") {
            Some("gpt2") => metadata.byte_level()?,
            Some("llama") => metadata.sentencepiece(Algorithm::Bpe)?,
            Some("t5") => metadata.sentencepiece(Algorithm::Unigram)?,
            Some("bert") => metadata.word_piece()?,
            Some(other) => {
                let reason = format!(
                    "vocabulary model `{other}` is not read, only gpt2, llama, t5 and bert; use the folder with the model's \
                     `tokenizer.json`"
                );
                return Err(metadata.fail(reason));
            }
            None => return Err(metadata.fail("metadata `tokenizer.ggml.model` is missing")),
        };
        let id = |name: &str| metadata.id(name);
        let mut tokenizer = Self::wrap(engine);
        (tokenizer.bos, tokenizer.eos) = (id("bos")?, id("eos")?);
        (tokenizer.pad, tokenizer.unknown) = (id("padding")?, id("unknown")?);
        // Both spellings are found in files; the first is llama.cpp's own.
        let mut separator = id("seperator")?.or(id("separator")?);
        if defaults.separator {
            tokenizer.bos = tokenizer.bos.or(id("cls")?).or_else(|| metadata.text_id("[CLS]"));
            tokenizer.unknown = tokenizer.unknown.or_else(|| metadata.text_id("[UNK]"));
            separator = separator.or_else(|| metadata.text_id("[SEP]"));
        }
        let adds = |name: &str, default: bool| metadata.flag(name).unwrap_or(default);
        tokenizer.prefix = tokenizer.bos.filter(|_| adds("add_bos_token", defaults.bos));
        let eos = tokenizer.eos.filter(|_| adds("add_eos_token", defaults.eos));
        tokenizer.suffix = separator.filter(|_| adds("add_sep_token", defaults.separator)).or(eos);
        let turn_end = id("eot")?;
        tokenizer.stops.extend([tokenizer.eos, turn_end, id("eom")?].into_iter().flatten());
        if turn_end.is_none() {
            let ends = metadata.of_type(&[CONTROL, USER_DEFINED]).filter(|(text, _)| TURN_ENDS.contains(text));
            tokenizer.stops.extend(ends.map(|(_, id)| id));
        }
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

fn byte_level(vocab: Vocab, merges: &[String], preset: Preset) -> tokenizers::Result<tokenizers::Tokenizer> {
    let merges: Merges = merges
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(tokenizers::Error::from(format!("merge `{merge}` is not two tokens"))),
        })
        .collect::<tokenizers::Result<_>>()?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(preset.whole_words).build()?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(preset.pre.build()?));
    inner.with_decoder(Some(ByteLevelDecoder::default()));
    if preset.composes {
        inner.with_normalizer(Some(NFC));
    }
    Ok(inner)
}
