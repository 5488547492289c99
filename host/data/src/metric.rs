//! How near answers come to references: ROUGE-1, ROUGE-2, ROUGE-L and BLEU-4, as ms-swift's `--metric rouge` has them.
//!
//! There, `jieba` cuts texts into words, `rouge` (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", over sets of
//! n-grams, sentences ending at full stops) and `nltk` (Papineni et al. 2002, "BLEU", smoothed by method 3 of Chen, Cherry 2014) count.
//! Counting is the same here, oddities included. Words are the same where no Chinese is written: `jieba` looks Chinese words up in a
//! dictionary of 5 MB, which is not here; every Chinese character is a word instead, so scores of Chinese texts are comparable with
//! each other and not with ms-swift's.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// Keeps quotients of zero out of the harmonic mean, as `rouge` does; it is part of the scores.
const EPSILON: f64 = 1e-8;
/// Longest n-gram of BLEU.
const BLEU_ORDER: usize = 4;
/// Entries of `jieba`'s dictionary without Chinese characters.
const DICTIONARY: [&str; 5] = ["AT&T", "c++", "C++", "c#", "C#"];

/// Scores from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scores {
    /// Harmonic mean of precision and recall of words.
    pub rouge_1: f64,
    /// Of pairs of words.
    pub rouge_2: f64,
    /// Of words in longest common subsequences.
    pub rouge_l: f64,
    /// Geometric mean of the precisions of one to four words, less where the answer is shorter.
    pub bleu_4: f64,
}

impl Scores {
    /// Scores of an answer; `None` if one of the texts has no words.
    pub fn of(answer: &str, reference: &str) -> Option<Scores> {
        let (answer, reference) = (words(answer), words(reference));
        if answer.is_empty() || reference.is_empty() {
            return None;
        }
        let bleu_4 = bleu(&answer, &reference);
        let (answer, reference) = (sentences(&answer), sentences(&reference));
        let [rouge_1, rouge_2] = [1, 2].map(|n| rouge_n(&answer.concat(), &reference.concat(), n));
        Some(Scores { rouge_1, rouge_2, rouge_l: rouge_l(&answer, &reference), bleu_4 })
    }

    /// The mean of all.
    pub fn mean(all: &[Scores]) -> Scores {
        let mean = |of: fn(&Scores) -> f64| all.iter().map(of).sum::<f64>() / all.len().max(1) as f64;
        Scores {
            rouge_1: mean(|s| s.rouge_1),
            rouge_2: mean(|s| s.rouge_2),
            rouge_l: mean(|s| s.rouge_l),
            bleu_4: mean(|s| s.bleu_4),
        }
    }
}

fn is_chinese(c: char) -> bool {
    ('\u{4e00}'..='\u{9fd5}').contains(&c)
}

/// As Python sees it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Words, punctuation and line breaks in order, as `jieba` cuts a text without Chinese words; blanks are left out.
fn words(text: &str) -> Vec<&str> {
    let in_block = |c: char| is_chinese(c) || c.is_ascii_alphanumeric() || "+#&._%-".contains(c);
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match in_block(first) {
            true => rest.find(|c| !in_block(c)).unwrap_or(rest.len()),
            false if rest.starts_with("\r\n") => 2,
            false => first.len_utf8(),
        };
        let (piece, after) = rest.split_at(end);
        rest = after;
        match in_block(first) {
            true => cut_block(piece, &mut out),
            false if first != ' ' => out.push(piece),
            false => {}
        }
    }
    out
}

/// Cuts characters of words and numbers: Chinese ones each for itself, entries of the dictionary, then numbers and words, then what is
/// left between them.
fn cut_block<'a>(block: &'a str, out: &mut Vec<&'a str>) {
    let entry = |at: usize| DICTIONARY.iter().find(|entry| block[at..].starts_with(**entry)).map(|entry| entry.len());
    let chinese = |at: usize, c: char| is_chinese(c).then_some(c.len_utf8()).or_else(|| entry(at));
    let mut plain = 0;
    for (at, c) in block.char_indices().filter(|&(at, c)| chinese(at, c).is_some()) {
        cut_plain(&block[plain.min(at)..at], out);
        plain = at + chinese(at, c).unwrap_or_default();
        out.push(&block[at..plain]);
    }
    cut_plain(&block[plain..], out);
}

/// Cuts ASCII into matches of `[a-zA-Z0-9]+(?:\.\d+)?%?` and what lies between them.
fn cut_plain<'a>(mut text: &'a str, out: &mut Vec<&'a str>) {
    let run = |text: &str, of: fn(&u8) -> bool| text.bytes().take_while(of).count();
    while !text.is_empty() {
        let mut end = run(text, u8::is_ascii_alphanumeric);
        if end == 0 {
            end = run(text, |b| !b.is_ascii_alphanumeric());
        } else {
            if let Some(fraction) = text[end..].strip_prefix('.') {
                let digits = run(fraction, u8::is_ascii_digit);
                end += if digits > 0 { 1 + digits } else { 0 };
            }
            end += usize::from(text[end..].starts_with('%'));
        }
        let (word, rest) = text.split_at(end);
        out.push(word);
        text = rest;
    }
}

/// Words of sentences, which end at full stops, those within numbers too. Blanks between two full stops are a sentence of one empty word.
fn sentences(words: &[&str]) -> Vec<Vec<String>> {
    let joined = words.join(" ");
    let parts = joined.split('.').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let words: Vec<String> = part.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect();
            if words.is_empty() { vec![String::new()] } else { words }
        })
        .collect()
}

fn harmonic(overlap: usize, answer: usize, reference: usize) -> f64 {
    let share = |of: usize| if of == 0 { 0.0 } else { overlap as f64 / of as f64 };
    let (precision, recall) = (share(answer), share(reference));
    2.0 * (precision * recall / (precision + recall + EPSILON))
}

fn rouge_n(answer: &[String], reference: &[String], n: usize) -> f64 {
    let [answer, reference] = [answer, reference].map(|words| words.windows(n).collect::<HashSet<_>>());
    harmonic(answer.intersection(&reference).count(), answer.len(), reference.len())
}

/// The union over sentences of the words of their longest common subsequences.
fn rouge_l(answer: &[Vec<String>], reference: &[Vec<String>]) -> f64 {
    let mut common = HashSet::new();
    for ours in reference {
        answer.iter().for_each(|theirs| common.extend(common_subsequence(ours, theirs)));
    }
    let count = |sentences: &[Vec<String>]| sentences.iter().flatten().collect::<HashSet<_>>().len();
    harmonic(common.len(), count(answer), count(reference))
}

/// The longest common subsequence of two; of several, the one that `rouge` finds from the end.
fn common_subsequence<'a, T: PartialEq>(a: &'a [T], b: &[T]) -> Vec<&'a T> {
    /// Where the way back goes.
    #[derive(Clone, Copy)]
    enum Step {
        Both,
        First,
        Second,
    }
    let mut steps = vec![Step::Second; a.len() * b.len()];
    let mut above = vec![0u32; b.len() + 1];
    for (x, steps) in a.iter().zip(steps.chunks_mut(b.len().max(1))) {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(0);
        for (j, y) in b.iter().enumerate() {
            let (step, length) = match x == y {
                true => (Step::Both, above[j] + 1),
                false if above[j + 1] > row[j] => (Step::First, above[j + 1]),
                false => (Step::Second, row[j]),
            };
            steps[j] = step;
            row.push(length);
        }
        above = row;
    }
    let (mut i, mut j) = (a.len(), b.len());
    let mut found = Vec::new();
    while i > 0 && j > 0 {
        match steps[(i - 1) * b.len() + j - 1] {
            Step::Both => {
                found.push(&a[i - 1]);
                (i, j) = (i - 1, j - 1);
            }
            Step::First => i -= 1,
            Step::Second => j -= 1,
        }
    }
    found
}

fn counts<T: Eq + Hash>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    items.for_each(|item| *counts.entry(item).or_default() += 1);
    counts
}

fn bleu(answer: &[&str], reference: &[&str]) -> f64 {
    let mut missing = 1.0;
    let mut logarithms = 0.0;
    for n in 1..=BLEU_ORDER {
        let [ours, theirs] = [answer, reference].map(|words| counts(words.windows(n)));
        let matches: usize = ours.iter().map(|(words, &count)| count.min(theirs.get(words).copied().unwrap_or(0))).sum();
        let total = answer.len().saturating_sub(n - 1).max(1);
        if matches == 0 && n == 1 {
            return 0.0;
        }
        // Without a match, half of one, then a quarter.
        let matches = if matches > 0 {
            matches as f64
        } else {
            missing /= 2.0;
            missing
        };
        logarithms += (matches / total as f64).ln() / BLEU_ORDER as f64;
    }
    let brevity = if answer.len() > reference.len() { 1.0 } else { (1.0 - reference.len() as f64 / answer.len() as f64).exp() };
    brevity * logarithms.exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_as_by_jieba() {
        let cases: [(&str, &[&str]); 8] = [
            ("Hello, world!", &["Hello", ",", "world", "!"]),
            ("well-known  3.14% of v1.2.3", &["well", "-", "known", "3.14%", "of", "v1.2", ".", "3"]),
            ("AT&T writes C++ and c#.", &["AT&T", "writes", "C++", "and", "c#", "."]),
            ("one\r\ntwo\t\nthree", &["one", "\r\n", "two", "\t", "\n", "three"]),
            ("café... #1 --x_y", &["caf", "é", "...", "#", "1", "--", "x", "_", "y"]),
            ("我爱Python3。", &["我", "爱", "Python3", "。"]),
            ("100%", &["100%"]),
            ("  ", &[]),
        ];
        for (text, want) in cases {
            assert_eq!(words(text), want, "{text:?}");
        }
    }

    #[test]
    fn equal_texts_score_one_and_empty_ones_nothing() {
        let scores = Scores::of("a b c d e", "a b c d e").unwrap();
        for score in [scores.rouge_1, scores.rouge_2, scores.rouge_l, scores.bleu_4] {
            assert!((score - 1.0).abs() < 1e-7, "{scores:?}");
        }
        assert_eq!(Scores::of("", "a"), None);
        assert_eq!(Scores::of("a", " "), None);
        // Nothing but full stops is a text without sentences.
        assert_eq!(Scores::of(".", "a").unwrap(), Scores::default());
        assert_eq!(Scores::of("x", "y").unwrap(), Scores::default());
    }
}
