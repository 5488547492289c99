//! From one row of logits to a token.
//!
//! The order of transforms is that of `transformers` (`GenerationMixin._get_logits_processor`): bias, penalties, temperature, top-k,
//! top-p, min-p. Sampler plugins come between temperature and the cuts. Presence and frequency penalties, which it lacks, are OpenAI's and come with the repetition penalty. What is left is
//! drawn from by a number that is a function of (seed, stream, position) alone, so a request's tokens do not depend on what else is in
//! its batch.

use std::collections::HashMap;

use swift_formats::Generation;
use swift_graph::philox;

use crate::{Result, ServeError};

/// Tokens that are looked at first when only the likeliest are wanted; more are looked at as long as they are needed.
const FIRST_CANDIDATES: usize = 256;

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Only the `k` likeliest tokens, and those that tie with the last of them; 0 is all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 is all.
    pub top_p: f32,
    /// Only tokens at least this many times as likely as the likeliest; 0 is all.
    pub min_p: f32,
    /// Logits of tokens that occurred in prompt or answer are divided by this if positive and multiplied if not (Keskar et al. 2019,
    /// "CTRL", section 4.1); 1 is none.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens that occurred in the answer.
    pub presence_penalty: f32,
    /// Taken off the logits of tokens for each time that they occurred in the answer.
    pub frequency_penalty: f32,
    /// Added to logits, by token.
    pub logit_bias: Vec<(i32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 42,
        }
    }
}

/// What a sequence holds so far, for the penalties.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    /// Tokens of the prompt.
    pub prompt: &'a [i32],
    /// Tokens drawn so far.
    pub answer: &'a [i32],
}

impl Sampling {
    /// What the model's authors recommend, as ms-swift takes it: greedy unless they say `do_sample`; then a temperature of 1 and the 50
    /// likeliest tokens where they do not say otherwise, as in `transformers`.
    pub fn recommended(by: &Generation) -> Sampling {
        let number = |value: Option<f64>, default: f32| value.map_or(default, |x| x as f32);
        let greedy = Sampling { repetition_penalty: number(by.repetition_penalty, 1.0), ..Sampling::default() };
        if by.do_sample != Some(true) {
            return greedy;
        }
        Sampling {
            temperature: number(by.temperature, 1.0),
            top_k: by.top_k.unwrap_or(50) as usize,
            top_p: number(by.top_p, 1.0),
            min_p: number(by.min_p, 0.0),
            ..greedy
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// When a number is outside of its range; the message names it as the command line does.
    pub fn check(&self) -> Result<()> {
        let least = |name: &str, x: f32, fine: bool, range: &str| match fine && x.is_finite() {
            true => Ok(()),
            false => Err(ServeError::Request(format!("`{name}` is {x}; it must be {range}"))),
        };
        least("temperature", self.temperature, self.temperature >= 0.0, "at least 0")?;
        least("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p), "between 0 and 1")?;
        least("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1")?;
        least("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "greater than 0")?;
        least("presence_penalty", self.presence_penalty, true, "a finite number")?;
        least("frequency_penalty", self.frequency_penalty, true, "a finite number")?;
        self.logit_bias.iter().try_for_each(|&(_, bias)| least("logit_bias", bias, true, "a finite number"))
    }

    fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }

    fn changes_logits(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || !self.logit_bias.is_empty()
    }

    /// Draws a token. The draw is a function of the logits, the history and (seed, stream, position), so batching changes nothing.
    /// Logits that are no numbers are never drawn.
    pub fn draw(&self, logits: &[f32], history: History<'_>, stream: u64, position: u64) -> i32 {
        let changed = self.changes_logits().then(|| self.penalised(logits, history));
        let logits = changed.as_deref().unwrap_or(logits);
        self.draw_from(logits, self.temperature, stream, position)
    }

    /// Logits after bias, penalties and temperature, as sampler plugins get them.
    pub(crate) fn prepared(&self, logits: &[f32], history: History<'_>) -> Vec<f32> {
        let mut logits = self.penalised(logits, history);
        if !self.is_greedy() {
            logits.iter_mut().for_each(|x| *x /= self.temperature);
        }
        logits
    }

    /// Draws from what a plugin made of [`Sampling::prepared`] logits.
    pub(crate) fn draw_prepared(&self, logits: &[f32], stream: u64, position: u64) -> i32 {
        self.draw_from(logits, 1.0, stream, position)
    }

    fn draw_from(&self, logits: &[f32], temperature: f32, stream: u64, position: u64) -> i32 {
        if self.is_greedy() {
            return argmax(logits);
        }
        let kept = self.kept(logits, temperature);
        let total: f64 = kept.iter().map(|(_, w)| w).sum();
        let mut left = uniform(self.seed, stream, position) * total;
        for &(token, weight) in &kept {
            left -= weight;
            if left <= 0.0 {
                return token;
            }
        }
        kept.last().map_or(0, |&(token, _)| token)
    }

    /// The tokens that may be drawn with their probabilities, likeliest first. Greedy leaves one.
    pub fn distribution(&self, logits: &[f32], history: History<'_>) -> Vec<(i32, f64)> {
        let logits = self.penalised(logits, history);
        if self.is_greedy() {
            return vec![(argmax(&logits), 1.0)];
        }
        let mut kept = self.kept(&logits, self.temperature);
        let total: f64 = kept.iter().map(|(_, w)| w).sum();
        kept.iter_mut().for_each(|(_, w)| *w /= total);
        kept
    }

    /// Logits after bias and penalties.
    fn penalised(&self, logits: &[f32], history: History<'_>) -> Vec<f32> {
        let mut out = logits.to_vec();
        let slot = |out: &mut [f32], token: i32| usize::try_from(token).ok().filter(|&t| t < out.len());
        for &(token, bias) in &self.logit_bias {
            if let Some(at) = slot(&mut out, token) {
                out[at] += bias;
            }
        }
        if self.repetition_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0 {
            return out;
        }
        let mut counts: HashMap<i32, u32> = history.prompt.iter().map(|&token| (token, 0)).collect();
        for &token in history.answer {
            *counts.entry(token).or_default() += 1;
        }
        for (token, count) in counts {
            let Some(at) = slot(&mut out, token) else { continue };
            let x = out[at];
            let x = if x > 0.0 { x / self.repetition_penalty } else { x * self.repetition_penalty };
            let present = if count > 0 { self.presence_penalty } else { 0.0 };
            out[at] = x - present - self.frequency_penalty * count as f32;
        }
        out
    }

    /// Tokens that survive the cuts, likeliest first (equal ones by number), with weights relative to the likeliest.
    fn kept(&self, logits: &[f32], temperature: f32) -> Vec<(i32, f64)> {
        let value = |t: u32| {
            let x = logits[t as usize];
            if x.is_nan() { f32::NEG_INFINITY } else { x }
        };
        let order = |a: &u32, b: &u32| value(*b).total_cmp(&value(*a)).then(a.cmp(b));
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        if self.top_k > 0 && self.top_k < tokens.len() {
            let (_, &mut last, _) = tokens.select_nth_unstable_by(self.top_k - 1, order);
            let least = value(last);
            tokens.retain(|&t| value(t) >= least);
        }
        let top = tokens.iter().map(|&t| value(t)).fold(f32::NEG_INFINITY, f32::max);
        let temperature = f64::from(temperature);
        let weight = |t: u32| match top == f32::NEG_INFINITY {
            true => 1.0,
            false => ((f64::from(value(t)) - f64::from(top)) / temperature).exp(),
        };
        // In the order of tokens, so that the sum is the same however the rest is arranged.
        let total: f64 = match self.top_p < 1.0 {
            true => {
                tokens.sort_unstable();
                tokens.iter().map(|&t| weight(t)).sum()
            }
            false => f64::INFINITY,
        };
        // The likeliest are sorted, more and more of them until enough are.
        let enough = f64::from(self.top_p) * total;
        let mut sorted = if self.top_p < 1.0 { FIRST_CANDIDATES } else { tokens.len() };
        loop {
            if sorted < tokens.len() {
                tokens.select_nth_unstable_by(sorted, order);
            }
            let head = sorted.min(tokens.len());
            tokens[..head].sort_unstable_by(order);
            let mut sum = 0.0;
            let mut kept = Vec::with_capacity(head.min(FIRST_CANDIDATES));
            for &token in &tokens[..head] {
                let w = weight(token);
                if !kept.is_empty() && (sum >= enough || w < f64::from(self.min_p)) {
                    return self.renormalised_cut(kept);
                }
                sum += w;
                kept.push((token as i32, w));
            }
            if head == tokens.len() {
                return self.renormalised_cut(kept);
            }
            sorted *= 8;
        }
    }

    /// Drops what weighs nothing, unless everything does.
    fn renormalised_cut(&self, mut kept: Vec<(i32, f64)>) -> Vec<(i32, f64)> {
        let live = kept.iter().take_while(|(_, w)| *w > 0.0).count();
        kept.truncate(live.max(1));
        kept
    }
}

/// Natural logarithm of a token's probability under `logits`, and of the `top` likeliest tokens, likeliest first.
pub(crate) fn log_probabilities(logits: &[f32], token: i32, top: usize) -> (f32, Vec<(i32, f32)>) {
    let most = logits.iter().copied().filter(|x| !x.is_nan()).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().filter(|x| !x.is_nan()).map(|&x| f64::from(x - most).exp()).sum();
    let norm = f64::from(most) + sum.ln();
    let of = |t: usize| (f64::from(logits.get(t).copied().unwrap_or(f32::NEG_INFINITY)) - norm) as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by = |a: &u32, b: &u32| {
        let value = |t: u32| Some(logits[t as usize]).filter(|x| !x.is_nan()).unwrap_or(f32::NEG_INFINITY);
        value(*b).total_cmp(&value(*a)).then(a.cmp(b))
    };
    let top = top.min(order.len());
    if top > 0 && top < order.len() {
        order.select_nth_unstable_by(top, by);
    }
    order.truncate(top);
    order.sort_unstable_by(by);
    (of(usize::try_from(token).unwrap_or(usize::MAX)), order.into_iter().map(|t| (t as i32, of(t as usize))).collect())
}

/// First of the largest logits. The largest is found first, without a branch on each element.
fn argmax(logits: &[f32]) -> i32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = logits.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (most, &x) in lanes.iter_mut().zip(chunk) {
            *most = if x > *most { x } else { *most };
        }
    }
    let most = lanes.iter().chain(chunks.remainder()).copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&x| x == most).unwrap_or(0) as i32
}

/// A number in 0..1 from (seed, stream, position).
fn uniform(seed: u64, stream: u64, position: u64) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let counter = [position as u32, (position >> 32) as u32, stream as u32, (stream >> 32) as u32];
    let words = philox::philox(key, counter);
    let bits = (u64::from(words[0]) << 21) ^ u64::from(words[1] >> 11);
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const NONE: History<'_> = History { prompt: &[], answer: &[] };

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let draw = |logits: &[f32]| Sampling::default().draw(logits, NONE, 0, 0);
        assert_eq!(draw(&[0.0, 3.0, 3.0, -1.0]), 1);
        let mut long = vec![f32::NAN; 40];
        (long[35], long[37]) = (2.0, 2.0);
        assert_eq!(draw(&long), 35);
        assert_eq!(draw(&[f32::NAN, f32::NAN]), 0);
    }

    #[test]
    fn draws_follow_the_distribution_and_its_cuts() {
        let logits = [0.0f32, (3.0f32).ln(), f32::NEG_INFINITY, f32::NAN];
        let s = Sampling { temperature: 1.0, ..Sampling::default() };
        let ones = (0..4000).filter(|&i| s.draw(&logits, NONE, i, 7) == 1).count();
        assert!((2850..3150).contains(&ones), "{ones}");
        let top_p = Sampling { top_p: 0.5, ..s.clone() };
        let top_k = Sampling { top_k: 1, ..s };
        assert!((0..100).all(|i| top_p.draw(&logits, NONE, i, 0) == 1 && top_k.draw(&logits, NONE, i, 0) == 1));
    }

    #[test]
    fn many_candidates_are_cut_as_few_are() {
        // 3000 tokens of equal weight: 0.9 of them is far beyond the first candidates.
        let logits = vec![1.0f32; 3000];
        let s = Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::default() };
        assert_eq!(s.distribution(&logits, NONE).len(), 2700);
    }

    #[test]
    fn log_probabilities_are_a_softmax() {
        let logits = [1.0f32, 3.0, 2.0, f32::NAN];
        let (of, top) = log_probabilities(&logits, 0, 2);
        let norm = (1f64.exp() + 2f64.exp() + 3f64.exp()).ln();
        assert!((f64::from(of) - (1.0 - norm)).abs() < 1e-6);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
        assert!((f64::from(top[0].1) - (3.0 - norm)).abs() < 1e-6);
    }

    #[test]
    fn presence_and_frequency_count_the_answer_only() {
        let s = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() };
        let history = History { prompt: &[0, 0, 3], answer: &[1, 1, 2] };
        assert_eq!(s.penalised(&[1.0, 1.0, 1.0, 1.0], history), [1.0, 0.0, 0.25, 1.0]);
    }

    #[test]
    fn recommendations_are_taken_as_ms_swift_takes_them() {
        let quiet = Generation { temperature: Some(0.6), top_k: Some(20), ..Generation::default() };
        assert_eq!(Sampling::recommended(&quiet), Sampling::default());
        let sampled =
            Generation { do_sample: Some(true), top_p: Some(0.8), repetition_penalty: Some(1.1), ..Generation::default() };
        let want = Sampling { temperature: 1.0, top_k: 50, top_p: 0.8, repetition_penalty: 1.1, ..Sampling::default() };
        assert_eq!(Sampling::recommended(&sampled), want);
    }

    /// Probabilities after the logits processors of transformers; `sampling_golden.py` made them.
    #[test]
    fn cuts_are_those_of_transformers() {
        let golden: Value = serde_json::from_str(include_str!("sampling_golden.json")).unwrap();
        let floats = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>();
        let logits: Vec<f32> = floats(&golden["logits"]).iter().map(|&x| x as f32).collect();
        let prompt: Vec<i32> = floats(&golden["prompt"]).iter().map(|&x| x as i32).collect();
        for case in golden["cases"].as_array().unwrap() {
            let number = |key: &str, default: f64| case[key].as_f64().unwrap_or(default) as f32;
            let sampling = Sampling {
                temperature: number("temperature", 1.0),
                top_k: case["top_k"].as_u64().unwrap_or(0) as usize,
                top_p: number("top_p", 1.0),
                min_p: number("min_p", 0.0),
                repetition_penalty: number("repetition_penalty", 1.0),
                logit_bias: case["bias"].as_f64().map(|b| (3, b as f32)).into_iter().collect(),
                ..Sampling::default()
            };
            let mut got = vec![0.0; logits.len()];
            for (token, p) in sampling.distribution(&logits, History { prompt: &prompt[..4], answer: &prompt[4..] }) {
                got[token as usize] = p;
            }
            for (token, (got, want)) in got.iter().zip(floats(&case["probabilities"])).enumerate() {
                assert!((got - want).abs() < 2e-6, "{case}: token {token}: {got} {want}");
            }
        }
    }
}
