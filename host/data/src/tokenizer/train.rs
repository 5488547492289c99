//! Training a byte-level BPE vocabulary, for models made from scratch.

use tokenizers::AddedToken;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::{Engine, PreTokenizer, Tokenizer};
use crate::{DataError, Result};

impl Tokenizer {
    /// Trains a byte-level BPE behind the pre-tokenizer `pre` on `texts`.
    ///
    /// Special tokens get the first ids, in the order given; the 256 bytes follow, then merges by falling frequency,
    /// ties by id. The same texts give the same vocabulary. Fewer than `vocab_size` tokens result when the texts hold
    /// no more pairs that occur twice.
    pub fn train_bpe<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        vocab_size: usize,
        special_tokens: &[&str],
        pre: PreTokenizer,
    ) -> Result<Self> {
        let smallest = 256 + special_tokens.len();
        if vocab_size < smallest {
            let reason = format!("a byte-level vocabulary with these special tokens needs at least {smallest} entries");
            return Err(DataError::tokenizer(None, reason));
        }
        let fail = |error| DataError::tokenizer(None, error);
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(pre.build().map_err(fail)?));
        inner.with_decoder(Some(ByteLevelDecoder::default()));
        let specials = special_tokens.iter().map(|token| AddedToken::from(*token, true)).collect();
        let mut trainer = TrainerWrapper::from(
            BpeTrainerBuilder::new()
                .show_progress(false)
                .vocab_size(vocab_size)
                .min_frequency(2)
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .special_tokens(specials)
                .build(),
        );
        let texts: Vec<&str> = texts.into_iter().collect();
        inner.train(&mut trainer, texts.into_iter()).map_err(fail)?;
        Ok(Self::wrap(Engine::Crate(Box::new(inner))))
    }
}
