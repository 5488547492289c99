//! Samplers: how the next token is drawn. A transform changes logits, and is traced once; a matcher says after each token which may
//! come next. A sampler has either or both.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::marker::PhantomData;

use crate::bindings::export_world;
use crate::bindings::swift::tensor::graph as raw_graph;
use crate::{Config, Error, ErrorCode, Result, Value, enter, trace};

export_world!(
    sampler "package swift:sdk-sampler; world sampler { export swift:plugin/sampler@0.1.0; }",
    "swift:sdk-sampler/sampler",
    "swift_sdk::sampler",
    "__export_sampler"
);

use exports::swift::plugin::sampler::{Guest, GuestMatcher, Matcher as Handle};

/// A sampler.
pub trait Sampler: Config {
    /// Refuses values that make no sense together or out of range.
    ///
    /// # Errors
    /// With what is wrong and what would be right.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// New logits of the same shape from f32 `[rows, vocab]`. They come after bias, penalties and temperature; minus infinity is never
    /// drawn. Rows belong to different requests and may not mix. The default changes nothing.
    fn transform(&self, logits: &Value) -> Value {
        logits.clone()
    }

    /// The matcher for a vocabulary, if the sampler has one: often a [`Constraint`].
    ///
    /// # Errors
    /// When the configuration makes no matcher.
    fn matcher(&self, vocabulary: Vocabulary) -> Result<Option<Box<dyn Matcher>>> {
        let _ = vocabulary;
        Ok(None)
    }
}

/// Says which tokens may come, for many rows at once.
pub trait Matcher: 'static {
    /// What may follow in a row after the tokens that it took since it was last asked about; with none, the row begins anew.
    ///
    /// # Errors
    /// For a row or token that cannot be.
    fn advance(&mut self, row: u32, last: &[u32]) -> Result<Mask>;
}

/// The bytes of every token. Tokens without bytes are no text: those end an answer.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    tokens: Vec<Vec<u8>>,
}

impl Vocabulary {
    /// From the bytes of each token.
    pub fn new(tokens: Vec<Vec<u8>>) -> Vocabulary {
        Vocabulary { tokens }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The bytes of a token; none for those that end an answer.
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.tokens.get(token as usize).map_or(&[], Vec::as_slice)
    }
}

/// A set of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask(Vec<u32>);

impl Mask {
    /// Every token, at no cost.
    pub fn all() -> Mask {
        Mask(Vec::new())
    }

    /// No token of `vocab`.
    pub fn none(vocab: usize) -> Mask {
        Mask(vec![0; vocab.div_ceil(32)])
    }

    /// Adds a token to a set made by [`Mask::none`].
    pub fn allow(&mut self, token: u32) {
        if let Some(word) = self.0.get_mut(token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }

    /// Whether a token is in it.
    pub fn allows(&self, token: u32) -> bool {
        self.0.is_empty() || self.0.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

/// A language, read byte by byte: what a [`Constraint`] holds answers to.
pub trait Automaton: 'static {
    /// How far a text has come.
    type State: Clone + Eq + Hash + 'static;

    /// Before the first byte.
    fn start(&self) -> Self::State;

    /// After a further byte; none when no text of the language goes on so.
    fn step(&self, state: &Self::State, byte: u8) -> Option<Self::State>;

    /// Whether the text may end here.
    fn is_end(&self, state: &Self::State) -> bool;
}

/// Sets of tokens that are kept, one a state.
const KEPT_MASKS: usize = 256;

/// A matcher that lets through what an automaton reads. Tokens are tried in the order of their bytes, so that what several begin with
/// is read once, and the set of a state is kept.
pub struct Constraint<A: Automaton> {
    automaton: A,
    vocabulary: Vocabulary,
    /// Tokens ordered by their bytes, each with the number of bytes it shares with the one before it.
    order: Vec<(u32, u32)>,
    rows: BTreeMap<u32, A::State>,
    masks: HashMap<A::State, Mask>,
}

impl<A: Automaton> Constraint<A> {
    /// Orders the vocabulary.
    pub fn new(automaton: A, vocabulary: Vocabulary) -> Constraint<A> {
        let mut tokens: Vec<u32> = (0..vocabulary.len() as u32).collect();
        tokens.sort_by(|&a, &b| vocabulary.bytes(a).cmp(vocabulary.bytes(b)));
        let mut before: &[u8] = &[];
        let mut order = Vec::with_capacity(tokens.len());
        for token in tokens {
            let bytes = vocabulary.bytes(token);
            order.push((token, before.iter().zip(bytes).take_while(|(a, b)| a == b).count() as u32));
            before = bytes;
        }
        Constraint { automaton, vocabulary, order, rows: BTreeMap::new(), masks: HashMap::new() }
    }

    fn mask(&self, start: &A::State) -> Mask {
        let mut mask = Mask::none(self.vocabulary.len());
        // States after 0, 1, ... bytes of the current token, and how many bytes of it could be read before it failed.
        let mut path = vec![start.clone()];
        let mut failed: Option<usize> = None;
        for &(token, shared) in &self.order {
            let shared = shared as usize;
            if failed.is_some_and(|at| shared > at) {
                continue;
            }
            path.truncate(shared + 1);
            failed = None;
            let bytes = self.vocabulary.bytes(token);
            for (at, &byte) in bytes.iter().enumerate().skip(path.len() - 1) {
                match self.automaton.step(&path[at], byte) {
                    Some(next) => path.push(next),
                    None => {
                        failed = Some(at);
                        break;
                    }
                }
            }
            if failed.is_none() && (!bytes.is_empty() || self.automaton.is_end(start)) {
                mask.allow(token);
            }
        }
        mask
    }
}

impl<A: Automaton> Matcher for Constraint<A> {
    fn advance(&mut self, row: u32, last: &[u32]) -> Result<Mask> {
        let mut state = match self.rows.get(&row) {
            Some(state) if !last.is_empty() => state.clone(),
            _ => self.automaton.start(),
        };
        for &token in last {
            for &byte in self.vocabulary.bytes(token) {
                let Some(next) = self.automaton.step(&state, byte) else {
                    return Err(Error::new(ErrorCode::Other, format!("row {row} took token {token}, which was not allowed")));
                };
                state = next;
            }
        }
        let known = self.masks.get(&state).cloned();
        let mask = known.unwrap_or_else(|| self.mask(&state));
        if self.masks.len() >= KEPT_MASKS {
            self.masks.clear();
        }
        self.masks.insert(state.clone(), mask.clone());
        self.rows.insert(row, state);
        Ok(mask)
    }
}

#[doc(hidden)]
pub struct Exported<T>(PhantomData<T>);

/// The host's handle on a matcher of a plugin of type `T`.
#[doc(hidden)]
pub struct ExportedMatcher<T> {
    matcher: RefCell<Box<dyn Matcher>>,
    plugin: PhantomData<T>,
}

fn parse<T: Sampler>(config: &str) -> Result<T> {
    enter();
    let sampler = T::parse(config)?;
    sampler.check()?;
    Ok(sampler)
}

impl<T: Sampler> Guest for Exported<T> {
    type Matcher = ExportedMatcher<T>;

    fn trace(g: &raw_graph::Builder, logits: &raw_graph::Value, config: String) -> Result<raw_graph::Value> {
        let sampler = parse::<T>(&config)?;
        let output = trace::run(g, || sampler.transform(&Value::own(logits.dup())).into_raw())?;
        output.ok_or_else(|| Error::new(ErrorCode::Internal, "the sampler gave no logits"))
    }
}

impl<T: Sampler> GuestMatcher for ExportedMatcher<T> {
    fn open(config: String, vocab: Vec<Vec<u8>>) -> Result<Handle> {
        let matcher = parse::<T>(&config)?.matcher(Vocabulary::new(vocab))?;
        let Some(matcher) = matcher else {
            // The host takes this code to mean that there is none.
            return Err(Error::new(ErrorCode::UnsupportedOp, "this sampler has no matcher"));
        };
        Ok(Handle::new(ExportedMatcher::<T> { matcher: RefCell::new(matcher), plugin: PhantomData }))
    }

    fn advance(&self, rows: Vec<u32>, last: Vec<Vec<u32>>) -> Result<Vec<Vec<u32>>> {
        enter();
        let mut matcher = self.matcher.borrow_mut();
        rows.iter().zip(&last).map(|(&row, last)| Ok(matcher.advance(row, last)?.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any number of `ab`.
    struct Pairs;

    impl Automaton for Pairs {
        type State = bool;

        fn start(&self) -> bool {
            false
        }

        fn step(&self, half: &bool, byte: u8) -> Option<bool> {
            (byte == if *half { b'b' } else { b'a' }).then_some(!half)
        }

        fn is_end(&self, half: &bool) -> bool {
            !half
        }
    }

    #[test]
    fn a_constraint_allows_what_can_still_become_a_text() {
        let tokens = ["", "a", "b", "ab", "aa", "aba", "abb", "abab", "c", "ba", "abac", "bab"];
        let vocabulary = Vocabulary::new(tokens.iter().map(|t| t.as_bytes().to_vec()).collect());
        let mut constraint = Constraint::new(Pairs, vocabulary);
        let allowed =
            |mask: Mask| (0..tokens.len() as u32).filter(|&t| mask.allows(t)).map(|t| tokens[t as usize]).collect::<Vec<_>>();
        assert_eq!(allowed(constraint.advance(7, &[]).unwrap()), ["", "a", "ab", "aba", "abab"]);
        assert_eq!(allowed(constraint.advance(7, &[5]).unwrap()), ["b", "ba", "bab"]);
        // Another row, and the first one anew.
        assert_eq!(allowed(constraint.advance(8, &[]).unwrap()), ["", "a", "ab", "aba", "abab"]);
        assert_eq!(allowed(constraint.advance(7, &[2, 3]).unwrap()), ["", "a", "ab", "aba", "abab"]);
        assert!(constraint.advance(7, &[8]).is_err());
        assert_eq!(allowed(constraint.advance(7, &[]).unwrap()).len(), 5);
    }
}
