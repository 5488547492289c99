//! Exact-match accuracy of generated answers.

use std::collections::HashSet;
use std::ops::ControlFlow;

use swift_data::{Encoder, Turn};
use swift_runtime::Store;
use swift_serve::{Generator, Sampling};

use crate::{Probe, Result, Text, TrainError};

/// How many answers were right.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// Questions answered exactly.
    pub right: usize,
    /// Questions asked.
    pub asked: usize,
    /// Given answers, in question order.
    pub answers: Vec<String>,
}

impl Accuracy {
    /// Share of right answers, 0 to 1.
    pub fn share(&self) -> f64 {
        self.right as f64 / self.asked.max(1) as f64
    }

    /// Asks every probe greedily and compares what comes, trimmed, with the exact answer.
    ///
    /// # Errors
    /// When a prompt does not fit the generator's cache.
    pub fn measure(generator: &mut Generator, store: &mut Store, text: &Text, probes: &[Probe]) -> Result<Accuracy> {
        let prompts = probes.iter().map(|p| prompt_ids(text, &p.turns)).collect::<Result<Vec<_>>>()?;
        let longest = probes.iter().map(|p| text.tokenizer.encode(&p.answer, false).map_or(16, |t| t.len())).max().unwrap_or(16);
        let stops = stop_ids(text);
        let made =
            generator.generate(store, &prompts, longest + 4, &stops, &Sampling::default(), |_, _| ControlFlow::Continue(()))?;
        let answers = made.iter().map(|g| decode(text, &g.tokens)).collect::<Result<Vec<_>>>()?;
        let right = answers.iter().zip(probes).filter(|(a, p)| a.trim() == p.answer.trim()).count();
        Ok(Accuracy { right, asked: probes.len(), answers })
    }
}

/// Tokens of a conversation, ready for the assistant's answer; plain text where there is no chat template.
pub(crate) fn prompt_ids(text: &Text, turns: &[Turn]) -> Result<Vec<i32>> {
    let ids = Encoder::new(&text.tokenizer, text.template.as_ref()).encode_prompt(turns, None)?;
    Ok(ids.into_iter().map(|id| id as i32).collect())
}

fn stop_ids(text: &Text) -> HashSet<i32> {
    text.tokenizer.stop_ids().into_iter().map(|id| id as i32).collect()
}

fn decode(text: &Text, tokens: &[i32]) -> Result<String> {
    let ids: Vec<u32> = tokens.iter().map(|&t| t as u32).collect();
    Ok(text.tokenizer.decode(&ids, true)?)
}

/// Answers one conversation. `on_text` hears the answer as it grows and may end it.
///
/// # Errors
/// When the prompt does not fit the generator's cache.
pub fn answer(
    generator: &mut Generator,
    store: &mut Store,
    text: &Text,
    turns: &[Turn],
    max_new_tokens: usize,
    sampling: &Sampling,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<String> {
    let prompt = prompt_ids(text, turns)?;
    let mut stream = swift_data::StreamDecoder::new(true);
    let mut failed: Option<TrainError> = None;
    let made = generator.generate(store, &[prompt], max_new_tokens, &stop_ids(text), sampling, |_, token| {
        match stream.push(&text.tokenizer, token as u32) {
            Ok(piece) => on_text(&piece),
            Err(error) => {
                failed = Some(error.into());
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let rest = stream.finish(&text.tokenizer)?;
    if !rest.is_empty() && on_text(&rest).is_break() {
        return decode(text, &made[0].tokens);
    }
    decode(text, &made[0].tokens)
}
