//! Text of a growing sequence of ids, piece by piece.
//!
//! A character can be split over several tokens, and some decoders treat the first token of a text differently, so a
//! token cannot be decoded alone. As in Hugging Face's text-generation-inference, a short window is decoded twice, with
//! and without the new tokens, and the difference is given out once it ends in a whole character.

use super::Tokenizer;
use crate::Result;

/// A character of UTF-8 has at most four bytes and so at most four byte tokens; beyond that the bytes are invalid and
/// waiting longer would hold text back for ever.
const MAX_PENDING: usize = 4;

/// State of one stream. It holds no tokenizer, so it can be kept with a sequence.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    /// Ids of the window: `given` of them were given out, the rest are pending.
    window: Vec<u32>,
    given: usize,
    skip_special: bool,
}

impl StreamDecoder {
    /// A new stream that drops special tokens, or not.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, ..Self::default() }
    }

    /// Adds a token and returns the text that became certain, often empty in the middle of a character.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.window.push(id);
        self.take(tokenizer, self.window.len() - self.given >= MAX_PENDING)
    }

    /// Ends the stream and returns what is left, with U+FFFD for an unfinished character.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let rest = self.take(tokenizer, true)?;
        (self.window, self.given) = (Vec::new(), 0);
        Ok(rest)
    }

    fn take(&mut self, tokenizer: &Tokenizer, force: bool) -> Result<String> {
        let before = tokenizer.decode(&self.window[..self.given], self.skip_special)?;
        let after = tokenizer.decode(&self.window, self.skip_special)?;
        if !force && after.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        // The window begins at a token boundary where text was whole, so `before` is a prefix; if a decoder's cleanup
        // changed it after all, the common part is the best that can be said.
        let common = after.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
        let cut = (0..=common).rev().find(|&at| after.is_char_boundary(at)).unwrap_or(0);
        self.window.drain(..self.given);
        self.given = self.window.len();
        Ok(after[cut..].to_owned())
    }
}
