//! The bytes of single tokens, for those who decide token by token what text may become.

use std::collections::HashMap;

use tokenizers::DecoderWrapper;

use super::sentencepiece::byte_of;
use super::{Engine, Tokenizer};

/// SentencePiece's mark of a space.
const SPACE_MARK: char = '\u{2581}';
/// WordPiece's mark of a token that goes on a word.
const GOES_ON: &str = "##";

/// How a vocabulary spells text.
enum Spelling {
    /// A character for each byte, as GPT-2's.
    Bytes(HashMap<char, u8>),
    /// A mark for spaces, and pieces such as `<0x0A>` for bytes.
    Marks,
    /// Words, and parts that go them on.
    Words,
    /// As it is.
    Plain,
}

impl Spelling {
    fn of(decoder: Option<&DecoderWrapper>) -> Spelling {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Spelling::Bytes(byte_alphabet()),
            Some(DecoderWrapper::WordPiece(_)) => Spelling::Words,
            Some(DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_) | DecoderWrapper::Replace(_)) => Spelling::Marks,
            Some(DecoderWrapper::Sequence(sequence)) => {
                let each = sequence.get_decoders().iter().map(|decoder| Spelling::of(Some(decoder)));
                each.into_iter().find(|spelling| !matches!(spelling, Spelling::Plain)).unwrap_or(Spelling::Plain)
            }
            _ => Spelling::Plain,
        }
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            // A token with a character of no byte was added as plain text.
            Spelling::Bytes(alphabet) => {
                let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Spelling::Marks => match byte_of(token) {
                Some(byte) => vec![byte],
                None => token.replace(SPACE_MARK, " ").into_bytes(),
            },
            Spelling::Words => match token.strip_prefix(GOES_ON) {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {token}").into_bytes(),
            },
            Spelling::Plain => token.as_bytes().to_vec(),
        }
    }
}

/// GPT-2's: printable Latin-1 characters stand for themselves, the other bytes for characters from U+0100 on, in order.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = '\u{100}';
    (0..=255u8)
        .map(|byte| {
            if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
                return (char::from(byte), byte);
            }
            let stands = next;
            next = char::from_u32(u32::from(next) + 1).unwrap_or(next);
            (stands, byte)
        })
        .collect()
}

impl Tokenizer {
    /// The bytes of text that each token stands for, by id. Special tokens, tokens that end an answer and ids without a token stand for
    /// none.
    pub fn token_bytes(&self) -> Vec<Vec<u8>> {
        let spelling = match &self.engine {
            Engine::Crate(inner) => Spelling::of(inner.get_decoder()),
            Engine::SentencePiece(_) => Spelling::Marks,
        };
        let added = match &self.engine {
            Engine::Crate(inner) => inner.get_added_tokens_decoder(),
            Engine::SentencePiece(_) => Default::default(),
        };
        let bytes = |id: u32| match added.get(&id) {
            Some(token) if token.special => Vec::new(),
            Some(token) => token.content.as_bytes().to_vec(),
            None if self.stops.contains(&id) || self.is_special(id) => Vec::new(),
            None => self.token(id).map_or_else(Vec::new, |token| spelling.bytes(&token)),
        };
        (0..self.vocab_size() as u32).map(|id| if self.stops.contains(&id) { Vec::new() } else { bytes(id) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_byte_level_vocabulary_put_together_are_the_text() {
        let texts = ["Grüße, 世界! 😀\tdone\n", "one two two two"];
        let tokenizer = Tokenizer::train_bpe(texts, 300, &["<s>", "</s>"], crate::PreTokenizer::Gpt2).unwrap();
        let tokenizer = tokenizer.with_special_tokens(Some("<s>"), Some("</s>"), None).unwrap();
        let bytes = tokenizer.token_bytes();
        for text in texts {
            let ids = tokenizer.encode(text, false).unwrap();
            let joined: Vec<u8> = ids.iter().flat_map(|&id| bytes[id as usize].clone()).collect();
            assert_eq!(joined, text.as_bytes());
        }
        let end = tokenizer.eos_id().unwrap() as usize;
        assert!(bytes[end].is_empty());
        // Every single byte is some token.
        assert!((0..=255u8).all(|byte| bytes.contains(&vec![byte])));
    }

    #[test]
    fn marks_and_parts_of_words_are_read() {
        let cases =
            [(Spelling::Marks, "\u{2581}a\u{2581}", " a "), (Spelling::Marks, "<0x0A>", "\n"), (Spelling::Words, "##ing", "ing")];
        for (spelling, token, want) in cases {
            assert_eq!(spelling.bytes(token), want.as_bytes());
        }
        assert_eq!(Spelling::Words.bytes("word"), b" word");
    }
}
