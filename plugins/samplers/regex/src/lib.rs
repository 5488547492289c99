//! Answers that match a regular expression from beginning to end, in the syntax of Rust's `regex` crate.

use std::collections::HashMap;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use swift_sdk::prelude::*;

config! {
    /// Lets only answers through that match a regular expression.
    pub struct Regex {
        /// The expression; it matches the whole answer.
        pattern: String = String::new(),
    }
}

/// Largest automaton, in bytes. Counted repetitions of Unicode classes are what makes them large.
const LARGEST: usize = 64 << 20;

struct Pattern {
    dfa: dense::DFA<Vec<u32>>,
    start: StateID,
    /// By state: whether some text matches from there.
    live: Vec<bool>,
}

impl Pattern {
    fn new(pattern: &str) -> Result<Pattern> {
        let bad = |e: &dyn std::fmt::Display| Error::config(format!("`pattern` makes no automaton: {e}"));
        let config = dense::Config::new()
            // All matches, not the first: an answer may go on where a shorter one would do.
            .match_kind(MatchKind::All)
            .start_kind(StartKind::Anchored)
            .dfa_size_limit(Some(LARGEST))
            .determinize_size_limit(Some(LARGEST));
        let nfa = thompson::Config::new().nfa_size_limit(Some(LARGEST));
        let built = dense::Builder::new().configure(config).thompson(nfa).build(pattern);
        let dfa = built.map_err(|e| match std::error::Error::source(&e) {
            Some(cause) => bad(&format!("{e}: {cause}")),
            None => bad(&e),
        })?;
        let start = dfa.start_state(&start::Config::new().anchored(Anchored::Yes)).map_err(|e| bad(&e))?;
        let mut pattern = Pattern { dfa, start, live: Vec::new() };
        pattern.find_live();
        if pattern.is_live(start) { Ok(pattern) } else { Err(Error::config("`pattern` matches nothing")) }
    }

    /// Walks forward over all states and back from those where a text may end. The automaton says that a text matched one byte late,
    /// so "not dead" alone would let that byte through.
    fn find_live(&mut self) {
        let mut leads_from: HashMap<StateID, Vec<StateID>> = HashMap::from([(self.start, Vec::new())]);
        let mut unseen = vec![self.start];
        while let Some(state) = unseen.pop() {
            for class in self.dfa.byte_classes().representatives(0..=255) {
                let Some(byte) = class.as_u8() else { continue };
                let next = self.dfa.next_state(state, byte);
                leads_from.entry(next).or_insert_with(|| {
                    unseen.push(next);
                    Vec::new()
                });
                leads_from.entry(next).or_default().push(state);
            }
        }
        let mut found: Vec<StateID> = leads_from.keys().copied().filter(|state| self.is_end(state)).collect();
        self.live = vec![false; leads_from.keys().map(|&state| self.index(state) + 1).max().unwrap_or(0)];
        while let Some(state) = found.pop() {
            let at = self.index(state);
            if !std::mem::replace(&mut self.live[at], true) {
                found.extend(&leads_from[&state]);
            }
        }
    }

    fn index(&self, state: StateID) -> usize {
        state.as_usize() >> self.dfa.stride2()
    }

    fn is_live(&self, state: StateID) -> bool {
        self.live[self.index(state)]
    }
}

impl Automaton for Pattern {
    type State = StateID;

    fn start(&self) -> StateID {
        self.start
    }

    fn step(&self, state: &StateID, byte: u8) -> Option<StateID> {
        let next = self.dfa.next_state(*state, byte);
        self.is_live(next).then_some(next)
    }

    fn is_end(&self, state: &StateID) -> bool {
        self.dfa.is_match_state(self.dfa.next_eoi_state(*state))
    }
}

impl Sampler for Regex {
    fn check(&self) -> Result<()> {
        if self.pattern.is_empty() { Err(Error::config("`pattern` is missing").hint("for example `(yes|no)`")) } else { Ok(()) }
    }

    fn matcher(&self, vocabulary: Vocabulary) -> Result<Option<Box<dyn Matcher>>> {
        Ok(Some(Box::new(Constraint::new(Pattern::new(&self.pattern)?, vocabulary))))
    }
}

plugin! { sampler "regex": Regex }

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the pattern reads a text to its end, whether it could go on, and whether it may end there.
    fn read(pattern: &str, text: &str) -> Option<bool> {
        let pattern = Pattern::new(pattern).unwrap();
        let end = text.bytes().try_fold(pattern.start(), |state, byte| pattern.step(&state, byte))?;
        Some(pattern.is_end(&end))
    }

    #[test]
    fn prefixes_live_and_only_whole_matches_end() {
        assert_eq!(read("(yes|no|yesterday)", "ye"), Some(false));
        assert_eq!(read("(yes|no|yesterday)", "yes"), Some(true));
        assert_eq!(read("(yes|no|yesterday)", "yest"), Some(false));
        assert_eq!(read("(yes|no|yesterday)", "yesx"), None);
        assert_eq!(read(r"-?[0-9]{1,3}(\.[0-9]+)?", "-12."), Some(false));
        assert_eq!(read(r"-?[0-9]{1,3}(\.[0-9]+)?", "-1234"), None);
        assert_eq!(read("é.", "\u{e9}"), Some(false));
        assert_eq!(read("é.", "é€"), Some(true));
        assert_eq!(read("", ""), Some(true));
    }

    #[test]
    fn patterns_that_make_no_automaton_say_why() {
        for pattern in ["(", r"\w{50000}", r"a[^\s\S]"] {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
    }
}
