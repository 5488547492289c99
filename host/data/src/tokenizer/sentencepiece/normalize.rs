//! SentencePiece's normalization: a map of strings to strings, and marks for spaces.
//!
//! The map (`precompiled_charsmap`) is a double-array trie of Darts over UTF-8 bytes, followed by replacement texts that end
//! in NUL. At every position the longest key wins; without one, a character stays as it is. User-defined pieces are taken
//! over untouched. The trie comes from a file, so each step through it is checked.

use super::SPACE_MARK;
use super::prefixes::Prefixes;

/// A parsed character map.
#[derive(Debug, Clone, Default)]
pub(super) struct CharsMap {
    trie: Vec<u32>,
    texts: String,
}

impl CharsMap {
    /// Reads the map; an empty one maps nothing.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let damaged = || "the character map is damaged".to_owned();
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
        let size = u32::from_le_bytes(*size) as usize;
        if !size.is_multiple_of(4) || size > rest.len() {
            return Err(damaged());
        }
        let (trie, texts) = rest.split_at(size);
        let trie = trie.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
        let texts = String::from_utf8(texts.to_vec()).map_err(|_| damaged())?;
        Ok(Self { trie, texts })
    }

    /// The longest key at the start of `text`: its length in bytes and what replaces it.
    fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let offset = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let mut at = offset(*self.trie.first()?);
        let mut found = None;
        for (index, &byte) in text.as_bytes().iter().enumerate() {
            at ^= u32::from(byte);
            let Some(&unit) = self.trie.get(at as usize) else { break };
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if unit >> 8 & 1 == 1
                && let Some(&leaf) = self.trie.get(at as usize)
                && text.is_char_boundary(index + 1)
                && let Some(rest) = self.texts.get((leaf & !(1 << 31)) as usize..)
            {
                found = Some((index + 1, rest.split('\0').next().unwrap_or_default()));
            }
        }
        found
    }
}

/// How text is brought into the form that pieces are cut from.
#[derive(Debug, Clone, Default)]
pub(super) struct Normalizer {
    pub(super) map: CharsMap,
    pub(super) dummy_prefix: bool,
    pub(super) collapse_spaces: bool,
    pub(super) escape_spaces: bool,
    pub(super) space_is_suffix: bool,
}

/// Normalized text, and for each of its bytes and its end the byte of the input that it comes from.
#[derive(Debug, Default)]
pub(super) struct Normalized {
    pub(super) text: String,
    pub(super) origin: Vec<usize>,
}

impl Normalized {
    fn push(&mut self, text: &str, origin: usize) {
        self.text.push_str(text);
        self.origin.resize(self.text.len(), origin);
    }
}

impl Normalizer {
    /// Normalizes `text`. `prefix` says whether this text may get the mark of a space in front, or behind.
    pub(super) fn run(&self, text: &str, user_defined: &Prefixes, prefix: bool) -> Normalized {
        let mut out = Normalized::default();
        let space = if self.escape_spaces { SPACE_MARK } else { " " };
        let mut at = 0;
        if self.collapse_spaces {
            while let (" ", length) = self.step(&text[at..], user_defined) {
                at += length;
            }
        }
        if at == text.len() {
            out.origin.push(at);
            return out;
        }
        let prefix = prefix && self.dummy_prefix;
        if prefix && !self.space_is_suffix {
            out.push(space, at);
        }
        let mut after_space = self.collapse_spaces;
        while at < text.len() {
            let (mut piece, length) = self.step(&text[at..], user_defined);
            if after_space {
                piece = piece.trim_start_matches(' ');
            }
            if !piece.is_empty() {
                for part in piece.split_inclusive(' ') {
                    match part.strip_suffix(' ') {
                        Some(word) => {
                            out.push(word, at);
                            out.push(space, at);
                        }
                        None => out.push(part, at),
                    }
                }
                after_space = self.collapse_spaces && piece.ends_with(' ');
            }
            at += length;
        }
        if self.collapse_spaces {
            while out.text.ends_with(space) {
                let length = out.text.len() - space.len();
                at = out.origin[length];
                out.text.truncate(length);
                out.origin.truncate(length);
            }
        }
        if prefix && self.space_is_suffix {
            out.push(space, at);
        }
        out.origin.push(at);
        out
    }

    /// What the start of `text` becomes, and how many bytes of it that takes. Nothing at the end of the text.
    fn step<'a>(&'a self, text: &'a str, user_defined: &Prefixes) -> (&'a str, usize) {
        if let Some((length, _)) = user_defined.longest(text) {
            return (&text[..length], length);
        }
        match self.map.longest(text) {
            Some((length, replacement)) => (replacement, length),
            None => {
                let length = text.chars().next().map_or(0, char::len_utf8);
                (&text[..length], length)
            }
        }
    }
}
