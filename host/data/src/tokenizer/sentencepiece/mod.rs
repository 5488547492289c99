//! SentencePiece vocabularies: `tokenizer.model`, and the GGUF kinds `llama` (BPE) and `t5` (unigram).
//!
//! Pieces, scores and normalization are SentencePiece's own, so that ids are those of the library that the models were trained
//! with. Around them stands what Hugging Face and llama.cpp add: special tokens are found in text first, the longest at each
//! place, and what lies between them is encoded alone.

mod export;
mod normalize;
mod prefixes;
mod proto;
mod segment;

use std::collections::{BTreeMap, HashMap};

use normalize::{CharsMap, Normalizer};
use prefixes::Prefixes;

use super::TextEncoding;

/// The mark that SentencePiece puts for a space.
pub(super) const SPACE_MARK: &str = "\u{2581}";

/// How pieces are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Algorithm {
    /// The cut of the greatest total score.
    #[default]
    Unigram,
    /// Merges of neighbours, the best score first.
    Bpe,
}

/// Type of a piece, by the same numbers in SentencePiece and ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl PieceKind {
    pub(super) fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether text can be cut into pieces of this kind.
    fn is_cut_from_text(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined | Self::Unused)
    }
}

/// What a model file says.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) algorithm: Algorithm,
    /// Text, score and kind of each id.
    pub(super) pieces: Vec<(String, f32, PieceKind)>,
    /// Characters without a piece become the pieces of their bytes.
    pub(super) byte_fallback: bool,
    pub(super) unknown: Option<u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
    /// SentencePiece's `precompiled_charsmap`.
    pub(super) charsmap: Vec<u8>,
    /// A text begins with the mark of a space.
    pub(super) dummy_prefix: bool,
    /// Runs of spaces become one, those around a text vanish.
    pub(super) collapse_spaces: bool,
    pub(super) escape_spaces: bool,
    /// The mark of a space ends words instead of beginning them.
    pub(super) space_is_suffix: bool,
    /// The mark in front belongs to the beginning of a text only, and not to what follows a special token.
    pub(super) prefix_once: bool,
}

impl Default for Spec {
    /// SentencePiece's own defaults.
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Unigram,
            pieces: Vec::new(),
            byte_fallback: false,
            unknown: Some(0),
            bos: Some(1),
            eos: Some(2),
            pad: None,
            charsmap: Vec::new(),
            dummy_prefix: true,
            collapse_spaces: true,
            escape_spaces: true,
            space_is_suffix: false,
            prefix_once: false,
        }
    }
}

/// A token that is found in text before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Added {
    pub(super) text: String,
    pub(super) id: u32,
    /// Left out when decoding without special tokens.
    pub(super) special: bool,
    /// Swallows spaces in front of it.
    pub(super) strip_left: bool,
    /// Swallows spaces behind it.
    pub(super) strip_right: bool,
}

/// A SentencePiece tokenizer.
#[derive(Debug, Clone)]
pub(super) struct SentencePiece {
    spec: Spec,
    ids: HashMap<Box<str>, u32>,
    normalizer: Normalizer,
    /// User-defined pieces that are not in `added`.
    user_defined: Prefixes,
    /// Pieces that a unigram model cuts text into.
    candidates: Prefixes,
    /// Ids of the 256 bytes, where there are such pieces.
    bytes: Vec<Option<u32>>,
    lowest: f32,
    highest: f32,
    added: BTreeMap<u32, Added>,
    added_texts: Prefixes,
}

impl SentencePiece {
    /// Reads a `tokenizer.model`.
    pub(super) fn read(bytes: &[u8]) -> Result<Spec, String> {
        proto::read(bytes)
    }

    /// A tokenizer of these pieces; `added` are found in text first.
    pub(super) fn new(spec: Spec, added: Vec<Added>) -> Result<Self, String> {
        let mut ids: HashMap<Box<str>, u32> = HashMap::with_capacity(spec.pieces.len());
        let mut bytes = vec![None; 256];
        let (mut lowest, mut highest) = (f32::INFINITY, f32::NEG_INFINITY);
        for ((text, score, kind), id) in spec.pieces.iter().zip(0u32..) {
            if !score.is_finite() {
                return Err(format!("the score of piece {id} is not a number"));
            }
            if ids.insert(text.as_str().into(), id).is_some() {
                return Err(format!("piece `{text}` appears twice in the vocabulary"));
            }
            match kind {
                PieceKind::Normal => (lowest, highest) = (lowest.min(*score), highest.max(*score)),
                PieceKind::Byte => {
                    let byte = byte_of(text).ok_or_else(|| format!("`{text}` is no byte piece"))?;
                    bytes[usize::from(byte)] = Some(id);
                }
                _ => {}
            }
        }
        // The numbers of a file may name ids that it does not have.
        let mut spec = spec;
        for id in [&mut spec.unknown, &mut spec.bos, &mut spec.eos, &mut spec.pad] {
            *id = id.filter(|&id| (id as usize) < spec.pieces.len());
        }
        let of_kind = |wanted: &dyn Fn(PieceKind) -> bool| {
            let chosen = spec.pieces.iter().zip(0u32..).filter(|((_, _, kind), _)| wanted(*kind));
            Prefixes::new(chosen.map(|((text, _, _), id)| (text.as_str().into(), id)))
        };
        let candidates = match spec.algorithm {
            Algorithm::Unigram => of_kind(&PieceKind::is_cut_from_text),
            Algorithm::Bpe => Prefixes::default(),
        };
        let normalizer = Normalizer {
            map: CharsMap::read(&spec.charsmap)?,
            dummy_prefix: spec.dummy_prefix,
            collapse_spaces: spec.collapse_spaces,
            escape_spaces: spec.escape_spaces,
            space_is_suffix: spec.space_is_suffix,
        };
        Ok(Self {
            user_defined: of_kind(&|kind| kind == PieceKind::UserDefined),
            candidates,
            normalizer,
            ids,
            bytes,
            lowest,
            highest,
            added_texts: Prefixes::new(added.iter().map(|token| (token.text.as_str().into(), token.id))),
            added: added.into_iter().map(|token| (token.id, token)).collect(),
            spec,
        })
    }

    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Ids and byte ranges of a text.
    pub(super) fn encode(&self, text: &str) -> TextEncoding {
        let mut out = TextEncoding::default();
        let (mut at, mut plain) = (0, 0);
        while !self.added_texts.is_empty() && at < text.len() {
            let Some((length, id)) = self.added_texts.longest(&text[at..]) else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
                continue;
            };
            let token = &self.added[&id];
            let (mut start, mut end) = (at, at + length);
            if token.strip_left {
                start = plain + text[plain..start].trim_end().len();
            }
            if token.strip_right {
                end = text.len() - text[end..].trim_start().len();
            }
            self.encode_plain(&text[plain..start], plain, &mut out);
            out.ids.push(id);
            out.spans.push((start, end));
            (at, plain) = (end, end);
        }
        self.encode_plain(&text[plain..], plain, &mut out);
        out
    }

    /// Encodes a text without special tokens that begins at byte `offset` of the whole.
    fn encode_plain(&self, text: &str, offset: usize, out: &mut TextEncoding) {
        if text.is_empty() {
            return;
        }
        let normalized = self.normalizer.run(text, &self.user_defined, offset == 0 || !self.spec.prefix_once);
        let cuts = match self.spec.algorithm {
            Algorithm::Bpe => self.bpe(&normalized.text),
            Algorithm::Unigram => self.unigram(&normalized.text),
        };
        let (mut start, mut after_unknown) = (0, false);
        for (end, id) in cuts {
            let span = (offset + normalized.origin[start], offset + normalized.origin[end]);
            let id = id.filter(|&id| Some(id) != self.spec.unknown);
            match id {
                Some(id) => {
                    out.ids.push(id);
                    out.spans.push(span);
                }
                None if self.spec.byte_fallback => {
                    for byte in normalized.text[start..end].bytes() {
                        if let Some(id) = self.bytes[usize::from(byte)].or(self.spec.unknown) {
                            out.ids.push(id);
                            out.spans.push(span);
                        }
                    }
                }
                // A run of unknown pieces is one token.
                None if after_unknown => {
                    if let Some(last) = out.spans.last_mut() {
                        last.1 = span.1;
                    }
                }
                None => {
                    if let Some(id) = self.spec.unknown {
                        out.ids.push(id);
                        out.spans.push(span);
                    }
                }
            }
            after_unknown = id.is_none() && !self.spec.byte_fallback;
            start = end;
        }
    }

    /// Text of ids; bytes that make no UTF-8 become U+FFFD each.
    pub(super) fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut out = String::new();
        let mut bytes: Vec<u8> = Vec::new();
        let flush = |bytes: &mut Vec<u8>, out: &mut String| {
            match std::str::from_utf8(bytes) {
                Ok(text) => out.push_str(text),
                Err(_) => out.extend(bytes.iter().map(|_| '\u{fffd}')),
            }
            bytes.clear();
        };
        for &id in ids {
            if self.is_special(id) && skip_special {
                continue;
            }
            let Some(text) = self.text(id) else { continue };
            let kind = self.spec.pieces.get(id as usize).map(|piece| piece.2);
            match byte_of(text).filter(|_| kind == Some(PieceKind::Byte)) {
                Some(byte) => bytes.push(byte),
                None => {
                    flush(&mut bytes, &mut out);
                    match self.added.contains_key(&id) {
                        true => out.push_str(text),
                        false => out.push_str(&text.replace(SPACE_MARK, " ")),
                    }
                }
            }
        }
        flush(&mut bytes, &mut out);
        if self.spec.dummy_prefix && !self.spec.space_is_suffix && out.starts_with(' ') {
            out.remove(0);
        }
        out
    }

    pub(super) fn vocab_size(&self) -> usize {
        let added = self.added.keys().next_back().map_or(0, |&id| id as usize + 1);
        self.spec.pieces.len().max(added)
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        match self.added.get(&id) {
            Some(token) => Some(&token.text),
            None => self.spec.pieces.get(id as usize).map(|piece| piece.0.as_str()),
        }
    }

    pub(super) fn text_id(&self, text: &str) -> Option<u32> {
        let added = || self.added.values().find(|token| token.text == text).map(|token| token.id);
        self.ids.get(text).copied().or_else(added)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        match self.added.get(&id) {
            Some(token) => token.special,
            None => self.spec.pieces.get(id as usize).is_some_and(|piece| piece.2 == PieceKind::Control),
        }
    }
}

/// The byte of a piece such as `<0x0A>`.
pub(super) fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}
