//! Text of a growing answer, cut where a stop string begins.

use swift_data::{StreamDecoder, Tokenizer};

use crate::Result;

/// Decodes tokens as they come and holds back what may be the beginning of a stop string.
#[derive(Clone, Debug)]
pub(crate) struct AnswerText {
    decoder: StreamDecoder,
    stops: Vec<String>,
    held: String,
}

/// Text that became certain.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    /// May be empty: in the middle of a character, or while text is held back.
    pub(crate) text: String,
    /// Whether a stop string came; the text ends before it.
    pub(crate) stopped: bool,
}

impl AnswerText {
    /// Empty stop strings are ignored.
    pub(crate) fn new(stops: &[String]) -> AnswerText {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        AnswerText { decoder: StreamDecoder::new(true), stops, held: String::new() }
    }

    /// Adds a token.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, token: i32) -> Result<Piece> {
        let text = self.decoder.push(tokenizer, token as u32)?;
        Ok(self.add(&text))
    }

    /// Ends the answer and gives out what was held back.
    pub(crate) fn finish(&mut self, tokenizer: &Tokenizer) -> Result<Piece> {
        let text = self.decoder.finish(tokenizer)?;
        let mut piece = self.add(&text);
        if !piece.stopped {
            piece.text.push_str(&std::mem::take(&mut self.held));
        }
        Ok(piece)
    }

    fn add(&mut self, text: &str) -> Piece {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(at, _)| at).skip(1).filter(|&length| length <= text.len());
    lengths.filter(|&length| text.as_bytes().ends_with(&stop.as_bytes()[..length])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(stops: &[&str]) -> AnswerText {
        AnswerText::new(&stops.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn stop_strings_are_found_over_several_pieces() {
        let mut a = answer(&["STOP", "END."]);
        let pieces: Vec<String> = ["one S", "TO", "S", "T"].iter().map(|t| a.add(t).text).collect();
        assert_eq!(pieces, ["one ", "", "STO", ""]);
        assert_eq!(a.add("OP two"), Piece { text: String::new(), stopped: true });
    }

    #[test]
    fn the_first_stop_string_wins_and_what_precedes_it_is_given_out() {
        let mut a = answer(&["cd", "b"]);
        assert_eq!(a.add("abcd"), Piece { text: "a".into(), stopped: true });
    }

    #[test]
    fn without_stop_strings_nothing_is_held_back() {
        let mut a = answer(&["", "é€"]);
        assert_eq!(a.add("x é").text, "x ");
        assert_eq!(a.add("e").text, "ée");
        assert_eq!(answer(&[]).add("all").text, "all");
    }
}
