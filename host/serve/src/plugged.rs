//! Sampler plugins in the engine: transforms of logits that run as graphs, and matchers that are asked once a step for all rows.
//!
//! A transform runs on one row at a time, although its graph would take more: so it cannot mix the rows of different requests, and a
//! request's tokens do not depend on its neighbours.

use std::collections::BTreeMap;
use std::sync::Arc;

use swift_data::Tokenizer;
use swift_graph::{Bindings, DType, Dim, Graph, SymbolId, Type};
use swift_plugin::{MatcherGuest, Plugin};
use swift_runtime::{Device, HostTensor, Inputs, Store};

use crate::{History, Program, Result, Sampling, ServeError};

/// Names a sampler of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SamplerId(usize);

/// Tokens that may come: bits, lowest first; empty for any. Tokens past its end may not.
type Mask = Vec<u32>;

/// An answer that is about to get a token.
pub(crate) struct Row<'a> {
    /// Its slot, by which matchers know it.
    pub(crate) slot: usize,
    /// Names it among all answers of the engine: slots change hands.
    pub(crate) order: u64,
    /// Its samplers.
    pub(crate) samplers: &'a [SamplerId],
    /// The tokens that it got so far.
    pub(crate) answer: &'a [i32],
}

/// The samplers of an engine.
#[derive(Default)]
pub(crate) struct Samplers {
    plugged: Vec<Plugged>,
    /// The vocabulary as matchers see it; made for the first of them.
    vocab: Option<Arc<Vocabulary>>,
}

/// A sampler plugin with a configuration.
struct Plugged {
    plugin: Plugin,
    config: String,
    transform: Option<Program>,
    vocab: Option<Arc<Vocabulary>>,
    /// Gone after a failure; the next answer gets a new one.
    matcher: Option<MatcherGuest>,
    /// By slot, the answer that the matcher follows there and how many of its tokens it has seen.
    known: BTreeMap<usize, (u64, usize)>,
}

/// A vocabulary as matchers see it.
struct Vocabulary {
    bytes: Vec<Vec<u8>>,
    /// Tokens without bytes that end no answer: never wanted where a matcher rules, and not for it to tell apart.
    not_ends: Vec<u32>,
}

impl Vocabulary {
    fn new(tokenizer: &Tokenizer) -> Vocabulary {
        let bytes = tokenizer.token_bytes();
        let stops = tokenizer.stop_ids();
        let not_ends = (0..bytes.len() as u32).filter(|t| bytes[*t as usize].is_empty() && !stops.contains(t)).collect();
        Vocabulary { bytes, not_ends }
    }
}

impl Samplers {
    /// Traces and compiles the transform over `width` logits, and opens the matcher. Without a tokenizer a sampler that has a matcher
    /// is refused.
    pub(crate) fn add(
        &mut self,
        plugin: &Plugin,
        config: &str,
        width: u64,
        tokenizer: Option<&Tokenizer>,
        device: &dyn Device,
        store: &Store,
    ) -> Result<SamplerId> {
        if self.vocab.is_none() {
            self.vocab = tokenizer.map(|tokenizer| Arc::new(Vocabulary::new(tokenizer)));
        }
        self.plugged.push(Plugged::new(plugin, config, width, self.vocab.clone(), device, store)?);
        Ok(SamplerId(self.plugged.len() - 1))
    }

    /// Whether all of these are of this engine.
    pub(crate) fn know(&self, ids: &[SamplerId]) -> bool {
        ids.iter().all(|id| id.0 < self.plugged.len())
    }

    /// What may come in each row; every matcher is asked once. The errors are why answers end.
    pub(crate) fn masks(&mut self, rows: &[Row<'_>]) -> Vec<Result<Mask, String>> {
        let mut masks: Vec<Result<Mask, String>> = rows.iter().map(|_| Ok(Mask::new())).collect();
        for (id, plugged) in self.plugged.iter_mut().enumerate() {
            let asked: Vec<usize> = (0..rows.len()).filter(|&r| rows[r].samplers.contains(&SamplerId(id))).collect();
            if plugged.vocab.is_none() || asked.is_empty() {
                continue;
            }
            match plugged.advance(&asked.iter().map(|&r| &rows[r]).collect::<Vec<_>>()) {
                Ok(found) => asked.into_iter().zip(found).for_each(|(r, mask)| {
                    if let Ok(both) = &mut masks[r] {
                        intersect(both, mask);
                    }
                }),
                Err(error) => asked.into_iter().for_each(|r| masks[r] = Err(error.to_string())),
            }
        }
        masks
    }

    /// Draws a row's token: penalties and temperature, then the mask, then the transforms, then the cuts. The error is why there is none.
    pub(crate) fn draw(
        &mut self,
        store: &mut Store,
        row: &Row<'_>,
        mask: &[u32],
        logits: &[f32],
        draw: &Draw<'_>,
    ) -> Result<i32, String> {
        let mut logits = draw.sampling.prepared(logits, draw.history);
        if !mask.is_empty() && !forbid(&mut logits, mask) {
            let names: Vec<&str> = row.samplers.iter().map(|id| self.plugged[id.0].plugin.name()).collect();
            return Err(format!("`{}` allows no token, not even an end of the answer", names.join("` with `")));
        }
        for id in row.samplers {
            let plugged = &mut self.plugged[id.0];
            let Some(changed) = plugged.transform(store, &logits).map_err(|e| e.to_string())? else { continue };
            if !changed.iter().any(|x| x.is_finite()) {
                return Err(format!("the sampler `{}` leaves no token to draw", plugged.plugin.name()));
            }
            logits = changed;
        }
        Ok(draw.sampling.draw_prepared(&logits, draw.stream, draw.position))
    }
}

/// What a draw is a function of, beside the logits.
pub(crate) struct Draw<'a> {
    pub(crate) sampling: &'a Sampling,
    pub(crate) history: History<'a>,
    pub(crate) stream: u64,
    pub(crate) position: u64,
}

impl Plugged {
    fn new(
        plugin: &Plugin,
        config: &str,
        width: u64,
        vocab: Option<Arc<Vocabulary>>,
        device: &dyn Device,
        store: &Store,
    ) -> Result<Plugged> {
        let mut g = Graph::default();
        let logits = g.input("logits", Type::new(DType::F32, vec![Dim::symbol(SymbolId::SEQUENCES), Dim::fixed(width)]))?;
        let changed = plugin.sampler()?.trace(&mut g, logits, config)?;
        let transform = match changed == logits {
            true => None,
            false => {
                g.outputs.push(("logits".into(), changed));
                Some(Program::compile(device, store, g)?)
            }
        };
        let bytes = vocab.as_deref().map_or(&[][..], |v| &v.bytes);
        let matcher = plugin.matcher(config, bytes)?;
        if matcher.is_some() && vocab.is_none() {
            return Err(ServeError::Request(format!("the sampler `{}` has a matcher, which needs a tokenizer", plugin.name())));
        }
        let vocab = vocab.filter(|_| matcher.is_some());
        Ok(Plugged { plugin: plugin.clone(), config: config.into(), transform, vocab, matcher, known: BTreeMap::new() })
    }

    /// Masks of these rows, by one call. Answers that the matcher has not followed, because they were moved to another slot or an earlier
    /// matcher broke down, are begun there and told to it in a second. A failure ends the matcher.
    fn advance(&mut self, rows: &[&Row<'_>]) -> Result<Vec<Mask>> {
        let Some(vocab) = self.vocab.clone() else { return Ok(Vec::new()) };
        let mut known = std::mem::take(&mut self.known);
        let mut matcher = match self.matcher.take() {
            Some(matcher) => matcher,
            None => self.plugin.matcher(&self.config, &vocab.bytes)?.ok_or_else(|| {
                ServeError::Request(format!("the sampler `{}` had a matcher and has none any more", self.plugin.name()))
            })?,
        };
        let follows = |row: &Row<'_>| known.get(&row.slot) == Some(&(row.order, row.answer.len().wrapping_sub(1)));
        let tokens = |answer: &[i32]| answer.iter().map(|&token| token as u32).collect::<Vec<u32>>();
        let slots: Vec<u32> = rows.iter().map(|row| row.slot as u32).collect();
        let last = |row: &&Row<'_>| if follows(row) { tokens(&row.answer[row.answer.len() - 1..]) } else { Vec::new() };
        let mut masks = matcher.advance(&slots, &rows.iter().map(last).collect::<Vec<_>>())?;
        let resumed: Vec<usize> = (0..rows.len()).filter(|&r| !rows[r].answer.is_empty() && !follows(rows[r])).collect();
        if !resumed.is_empty() {
            let slots: Vec<u32> = resumed.iter().map(|&r| slots[r]).collect();
            let answers: Vec<Vec<u32>> = resumed.iter().map(|&r| tokens(rows[r].answer)).collect();
            for (r, mask) in resumed.into_iter().zip(matcher.advance(&slots, &answers)?) {
                masks[r] = mask;
            }
        }
        for mask in masks.iter_mut().filter(|mask| !mask.is_empty()) {
            for &token in &vocab.not_ends {
                mask[token as usize / 32] &= !(1 << (token % 32));
            }
        }
        known.extend(rows.iter().map(|row| (row.slot, (row.order, row.answer.len()))));
        (self.matcher, self.known) = (Some(matcher), known);
        Ok(masks)
    }

    /// The changed logits of one row; `None` without a transform.
    fn transform(&mut self, store: &mut Store, logits: &[f32]) -> Result<Option<Vec<f32>>> {
        let Some(program) = &mut self.transform else { return Ok(None) };
        let inputs = Inputs::new().with("logits", HostTensor::f32([1, logits.len()], logits.to_vec()));
        match program.main.run(store, &Bindings::new().with(SymbolId::SEQUENCES, 1), &inputs)?.take("logits")? {
            HostTensor::F32 { data, .. } => Ok(Some(data)),
            HostTensor::I32 { .. } => {
                Err(ServeError::Request(format!("the sampler `{}` gave no float logits", self.plugin.name())))
            }
        }
    }
}

/// Leaves in `both` what the two masks allow.
fn intersect(both: &mut Mask, mask: Mask) {
    match (both.is_empty(), mask.is_empty()) {
        (_, true) => {}
        (true, false) => *both = mask,
        (false, false) => both.iter_mut().zip(mask).for_each(|(a, b)| *a &= b),
    }
}

/// Takes the tokens off that may not come. Returns whether any is left.
fn forbid(logits: &mut [f32], mask: &[u32]) -> bool {
    let mut left = false;
    for (token, x) in logits.iter_mut().enumerate() {
        if mask.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1) {
            // A number that is none cannot be drawn; it would leave nothing where it is the only one allowed.
            *x = if x.is_finite() { *x } else { f32::MIN };
            left = true;
        } else {
            *x = f32::NEG_INFINITY;
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_leave_what_they_allow() {
        let mut logits = vec![1.0; 40];
        logits[33] = f32::NAN;
        assert!(forbid(&mut logits, &[0b101, 0b10]));
        let left: Vec<usize> = (0..40).filter(|&t| logits[t].is_finite()).collect();
        assert_eq!(left, [0, 2, 33]);
        assert!(!forbid(&mut logits, &[0, 0]));
        // Logits past the vocabulary belong to no token.
        let mut logits = vec![1.0; 40];
        assert!(forbid(&mut logits, &[u32::MAX]));
        assert!(logits[32..].iter().all(|x| *x == f32::NEG_INFINITY));
    }
}
