//! A SentencePiece vocabulary as `tokenizer.json`, for folders that are written.
//!
//! Merges are made from scores as `transformers` makes them. The file then means what it means there, which differs from
//! SentencePiece in rare places (graphemes in the character map, pieces marked as unused).

use std::collections::HashMap;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::precompiled::Precompiled;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Sequence as NormalizerSequence, Strip as StripNormalizer};
use tokenizers::{AddedToken, ModelWrapper};

use super::{Algorithm, PieceKind, SPACE_MARK, SentencePiece};

impl SentencePiece {
    /// The nearest tokenizer of the `tokenizers` crate.
    pub(in crate::tokenizer) fn to_tokenizer(&self) -> tokenizers::Result<tokenizers::Tokenizer> {
        let spec = &self.spec;
        let model: ModelWrapper = match spec.algorithm {
            Algorithm::Bpe => {
                let vocab: Vocab = spec.pieces.iter().zip(0u32..).map(|((text, _, _), id)| (text.clone(), id)).collect();
                let mut builder =
                    BPE::builder().vocab_and_merges(vocab, self.merges()).byte_fallback(spec.byte_fallback).fuse_unk(true);
                if let Some(unknown) = spec.unknown.and_then(|id| self.text(id)) {
                    builder = builder.unk_token(unknown.to_owned());
                }
                builder.build()?.into()
            }
            Algorithm::Unigram => {
                let vocab = spec.pieces.iter().map(|(text, score, _)| (text.clone(), f64::from(*score))).collect();
                Unigram::from(vocab, spec.unknown.map(|id| id as usize), spec.byte_fallback)?.into()
            }
        };
        let mut inner = tokenizers::Tokenizer::new(model);
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        if !spec.charsmap.is_empty() {
            let map = Precompiled::from(&spec.charsmap).map_err(|error| format!("the character map: {error:?}"))?;
            normalizers.push(map.into());
        }
        if spec.collapse_spaces {
            normalizers.push(StripNormalizer::new(true, true).into());
            normalizers.push(Replace::new(ReplacePattern::Regex(" {2,}".into()), " ")?.into());
        }
        let mut decoders = vec![Replace::new(SPACE_MARK, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
        if spec.dummy_prefix {
            normalizers.push(Prepend::new(SPACE_MARK.into()).into());
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        if spec.escape_spaces {
            normalizers.push(Replace::new(" ", SPACE_MARK)?.into());
        }
        inner.with_normalizer(Some(NormalizerSequence::new(normalizers)));
        inner.with_decoder(Some(DecoderSequence::new(decoders)));
        // Ids beyond the pieces follow from the order, so these are added one by one in the order of their ids.
        for token in self.added.values() {
            let added = AddedToken::from(token.text.as_str(), token.special)
                .normalized(false)
                .lstrip(token.strip_left)
                .rstrip(token.strip_right);
            match token.special {
                true => inner.add_special_tokens(&[added]),
                false => inner.add_tokens(&[added]),
            };
        }
        for (text, _, _) in spec.pieces.iter().filter(|piece| piece.2 == PieceKind::UserDefined && !piece.0.is_empty()) {
            inner.add_tokens(&[AddedToken::from(text.as_str(), false).normalized(false)]);
        }
        Ok(inner)
    }

    /// Every way to cut a piece into two pieces, the best score first; equal scores keep the order of ids.
    fn merges(&self) -> Merges {
        let pieces = &self.spec.pieces;
        let ids: &HashMap<Box<str>, u32> = &self.ids;
        let mut found: Vec<(f32, u32, u32, u32)> = Vec::new();
        for ((text, score, kind), id) in pieces.iter().zip(0u32..) {
            if !kind.is_cut_from_text() {
                continue;
            }
            for (cut, _) in text.char_indices().skip(1) {
                if let (Some(&left), Some(&right)) = (ids.get(&text[..cut]), ids.get(&text[cut..])) {
                    found.push((*score, id, left, right));
                }
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
        let text = |id: u32| pieces[id as usize].0.clone();
        found.into_iter().map(|(_, _, left, right)| (text(left), text(right))).collect()
    }
}
