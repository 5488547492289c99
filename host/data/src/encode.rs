//! Conversations to ids and labels.
//!
//! The whole conversation is rendered once and tokenized once, exactly as it will be at inference. Where a turn of the
//! assistant lies in that text is found by rendering shorter conversations: the text up to the turn with the generation
//! prompt is where it begins, the text including it is where it ends. A token is trained on if it *begins* inside such a
//! span, so a token that merges the end of the prompt with the first letter of the answer is not. Of what follows an
//! answer, its end-of-turn token belongs to the span and whitespace behind that does not.
//!
//! Some templates rewrite earlier turns (dropping their reasoning, say). Then the shorter text is no prefix of the whole,
//! and the turn's own text is searched in order instead; if it is not there either, the sample is refused.

use serde_json::{Map, Value, json};

use crate::tokenizer::TextEncoding;
use crate::{ChatTemplate, DataError, RenderOptions, Result, Tokenizer, Turn};

/// Label of a token that is not trained on, as everywhere in the field.
pub const IGNORE: i32 = -100;

/// Which turns are trained on (`loss_scale`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LossScale {
    /// All turns of the assistant.
    #[default]
    Default,
    /// Turns of the assistant after the last turn of the user.
    LastRound,
    /// Every token.
    All,
}

/// What becomes of samples that are too long (`truncation_strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncation {
    /// Drop the sample.
    #[default]
    Delete,
    /// Keep the end.
    Left,
    /// Keep the beginning.
    Right,
    /// Cut into samples of the greatest length; for plain text.
    Split,
}

/// A tokenized sample. All vectors are of equal length.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<i32>,
    /// The token itself where it is trained on, else [`IGNORE`]; not shifted.
    pub labels: Vec<i32>,
    /// Loss factor of each token; `None` if all are 1.
    pub weights: Option<Vec<f32>>,
}

impl Encoded {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tokens that contribute to the loss; the first of a sequence is never predicted.
    pub fn trained_tokens(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORE).count()
    }

    /// Loss factor of a token, 0 where it is not trained on.
    pub(crate) fn weight(&self, index: usize) -> f32 {
        match &self.weights {
            _ if self.labels[index] == IGNORE => 0.0,
            Some(weights) => weights[index],
            None => 1.0,
        }
    }

    fn slice(&self, range: std::ops::Range<usize>) -> Self {
        let mut part = Self {
            ids: self.ids[range.clone()].to_vec(),
            labels: self.labels[range.clone()].to_vec(),
            weights: self.weights.as_ref().map(|weights| weights[range].to_vec()),
        };
        if let Some(first) = part.labels.first_mut() {
            // Its predecessor is gone, so nothing predicts it.
            *first = IGNORE;
        }
        part
    }
}

/// Brings a sample to at most `max_length` tokens: none, one or (splitting) several samples.
pub fn truncate(sample: Encoded, max_length: usize, strategy: Truncation) -> Vec<Encoded> {
    let count = sample.len();
    if count <= max_length {
        return vec![sample];
    }
    if max_length == 0 {
        return Vec::new();
    }
    match strategy {
        Truncation::Delete => Vec::new(),
        Truncation::Left => vec![sample.slice(count - max_length..count)],
        Truncation::Right => vec![sample.slice(0..max_length)],
        Truncation::Split => {
            (0..count).step_by(max_length).map(|start| sample.slice(start..count.min(start + max_length))).collect()
        }
    }
}

/// Turns conversations and texts into samples.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    /// Tokenizer of the model.
    pub tokenizer: &'a Tokenizer,
    /// Chat template; without one (`use_chat_template false`) the texts of the turns follow each other and eos ends them.
    pub template: Option<&'a ChatTemplate>,
    /// Which turns are trained on.
    pub loss_scale: LossScale,
    /// Variables for the template, for example `enable_thinking`.
    pub variables: Option<&'a Map<String, Value>>,
}

/// A message for the template and the loss factor of its tokens.
struct Message {
    json: Value,
    text: String,
    weight: f32,
}

/// A byte range of the rendering and its loss factor.
type Span = (usize, usize, f32);

impl<'a> Encoder<'a> {
    /// An encoder that trains on all turns of the assistant.
    pub fn new(tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>) -> Self {
        Self { tokenizer, template, loss_scale: LossScale::Default, variables: None }
    }

    /// Encodes a conversation for supervised training.
    pub fn encode(&self, turns: &[Turn], tools: Option<&Value>) -> Result<Encoded> {
        let last_user = turns.iter().rposition(|turn| turn.role == "user").unwrap_or(0);
        self.encode_with(turns, tools, |index, turn| {
            let chosen = match self.loss_scale {
                LossScale::Default => turn.is_assistant(),
                LossScale::LastRound => turn.is_assistant() && index >= last_user,
                LossScale::All => true,
            };
            chosen && turn.train
        })
    }

    /// Encodes `prompt` followed by `answer`, training on the answer only: one side of a preference pair.
    pub fn encode_answer(&self, prompt: &[Turn], answer: &[Turn], tools: Option<&Value>) -> Result<Encoded> {
        let turns: Vec<Turn> = prompt.iter().chain(answer).cloned().collect();
        let encoder = Self { loss_scale: LossScale::Default, ..*self };
        encoder.encode_with(&turns, tools, |index, turn| index >= prompt.len() && turn.is_assistant() && turn.train)
    }

    /// Ids of a conversation that the model is to continue.
    pub fn encode_prompt(&self, turns: &[Turn], tools: Option<&Value>) -> Result<Vec<u32>> {
        let Some(template) = self.template else {
            let text: String = turns.iter().map(|turn| turn.text.as_str()).collect();
            return self.tokenizer.encode(&text, true);
        };
        let messages: Vec<Value> = messages(turns, template, |_, _| true)?.into_iter().map(|message| message.json).collect();
        self.tokenizer.encode(&self.render(template, &messages, tools, true)?, false)
    }

    /// Encodes plain text, all of it trained on, ended by eos.
    pub fn encode_text(&self, text: &str) -> Result<Encoded> {
        let encoding = self.tokenizer.encode_spans(text)?;
        Ok(self.finish_plain(encoding, &[(0, usize::MAX, 1.0)]))
    }

    fn encode_with(&self, turns: &[Turn], tools: Option<&Value>, trained: impl Fn(usize, &Turn) -> bool) -> Result<Encoded> {
        if turns.is_empty() {
            return Err(DataError::Sample("the conversation has no turns".into()));
        }
        if let Some(turn) = turns.iter().find(|turn| !turn.weight.is_finite()) {
            return Err(DataError::Sample(format!("the loss factor of a turn of `{}` is {}", turn.role, turn.weight)));
        }
        let Some(template) = self.template else { return self.encode_plain(turns, trained) };
        let messages = messages(turns, template, trained)?;
        let values: Vec<Value> = messages.iter().map(|message| message.json.clone()).collect();
        let text = self.render(template, &values, tools, false)?;
        let mut encoding = self.tokenizer.encode_spans(&text)?;
        if values.last().is_some_and(|message| message["role"] == "assistant") {
            self.drop_trailing_whitespace(&text, &mut encoding);
        }
        if self.loss_scale == LossScale::All {
            return Ok(label(&encoding, &[(0, usize::MAX, 1.0)]));
        }
        let mut spans = Vec::new();
        for index in (0..messages.len()).filter(|&index| messages[index].weight != 0.0) {
            let (start, end) = match self.span_by_prefix(template, &values, index, tools, &text) {
                Some(span) => span,
                None => span_by_text(&messages, index, &text)?,
            };
            spans.push((start, self.end_of_turn(&text, &encoding, start, end), messages[index].weight));
        }
        Ok(label(&encoding, &spans))
    }

    /// Without a template: texts one after another. Eos belongs to the last turn.
    fn encode_plain(&self, turns: &[Turn], trained: impl Fn(usize, &Turn) -> bool) -> Result<Encoded> {
        let mut text = String::new();
        let mut spans = Vec::new();
        for (index, turn) in turns.iter().enumerate() {
            let start = text.len();
            text += &turn.text;
            let end = if index + 1 == turns.len() { usize::MAX } else { text.len() };
            if trained(index, turn) && turn.weight != 0.0 {
                spans.push((start, end, turn.weight));
            }
        }
        Ok(self.finish_plain(self.tokenizer.encode_spans(&text)?, &spans))
    }

    fn finish_plain(&self, mut encoding: TextEncoding, spans: &[Span]) -> Encoded {
        let end = encoding.spans.last().map_or(0, |span| span.1);
        if let Some(eos) = self.tokenizer.eos_id() {
            encoding.ids.push(eos);
            encoding.spans.push((end, end + 1));
        }
        let mut sample = label(&encoding, spans);
        if let Some(bos) = self.tokenizer.prefix_id() {
            sample.ids.insert(0, bos as i32);
            sample.labels.insert(0, IGNORE);
            if let Some(weights) = &mut sample.weights {
                weights.insert(0, 0.0);
            }
        }
        sample
    }

    fn render(
        &self,
        template: &ChatTemplate,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        template.render(messages, RenderOptions { tools, add_generation_prompt, variables: self.variables })
    }

    /// Where a message lies, by rendering the conversation up to it. `None` if the template rewrites history or refuses
    /// the shorter conversation.
    fn span_by_prefix(
        &self,
        template: &ChatTemplate,
        messages: &[Value],
        index: usize,
        tools: Option<&Value>,
        text: &str,
    ) -> Option<(usize, usize)> {
        let prefix = |count: usize, prompt: bool| {
            let part = self.render(template, &messages[..count], tools, prompt).ok()?;
            text.starts_with(&part).then_some(part.len())
        };
        let assistant = messages[index]["role"] == "assistant";
        let start = prefix(index, assistant)?;
        let end = if index + 1 == messages.len() { text.len() } else { prefix(index + 1, false)? };
        (start < end).then_some((start, end))
    }

    /// Ends a span behind its last special token if only whitespace follows, else behind a special token that follows
    /// at once.
    fn end_of_turn(&self, text: &str, encoding: &TextEncoding, start: usize, end: usize) -> usize {
        let tokens = || encoding.ids.iter().zip(&encoding.spans);
        let blank = |&(from, to): &(usize, usize)| text.get(from..to).is_some_and(|part| part.trim().is_empty());
        let last = tokens()
            .rev()
            .filter(|(_, span)| span.0 >= start && span.0 < end)
            .find(|(id, span)| self.tokenizer.is_special(**id) || !blank(span));
        if let Some((&id, span)) = last
            && self.tokenizer.is_special(id)
        {
            return span.1;
        }
        match tokens().filter(|(_, span)| span.0 >= end).find(|(id, span)| self.tokenizer.is_special(**id) || !blank(span)) {
            Some((&id, span)) if self.tokenizer.stop_ids().contains(&id) => span.1,
            _ => end,
        }
    }

    /// Templates end a conversation with a line break behind the end-of-turn token; nothing ever predicts from it.
    fn drop_trailing_whitespace(&self, text: &str, encoding: &mut TextEncoding) {
        let keep = encoding
            .ids
            .iter()
            .zip(&encoding.spans)
            .rposition(|(&id, &(from, to))| {
                self.tokenizer.is_special(id) || !text.get(from..to).is_some_and(|part| part.trim().is_empty())
            })
            .filter(|&last| self.tokenizer.is_special(encoding.ids[last]));
        if let Some(last) = keep {
            encoding.ids.truncate(last + 1);
            encoding.spans.truncate(last + 1);
        }
    }
}

/// Finds a message by its own text, after all messages before it.
fn span_by_text(messages: &[Message], index: usize, text: &str) -> Result<(usize, usize)> {
    let mut cursor = 0;
    for (at, message) in messages.iter().enumerate().take(index + 1) {
        let wanted = message.text.trim();
        let found = text[cursor..].find(wanted).map(|start| (cursor + start, cursor + start + wanted.len()));
        match found {
            Some(span) if at == index && !wanted.is_empty() => return Ok(span),
            Some(span) => cursor = span.1,
            None => {}
        }
    }
    let start: String = messages[index].text.chars().take(40).collect();
    Err(DataError::Sample(format!("the chat template rewrites the turn that begins `{start}`, so it cannot be trained on")))
}

/// Labels the tokens that begin inside a span.
fn label(encoding: &TextEncoding, spans: &[Span]) -> Encoded {
    let ids: Vec<i32> = encoding.ids.iter().map(|&id| id as i32).collect();
    let mut labels = vec![IGNORE; ids.len()];
    let mut weights = vec![0.0; ids.len()];
    let mut plain = true;
    for (index, &(from, _)) in encoding.spans.iter().enumerate() {
        if let Some(&(.., weight)) = spans.iter().find(|(start, end, _)| (*start..*end).contains(&from)) {
            labels[index] = ids[index];
            weights[index] = weight;
            plain &= weight == 1.0;
        }
    }
    Encoded { ids, labels, weights: (!plain).then_some(weights) }
}

/// Messages as templates expect them. Consecutive tool calls become one message of the assistant.
fn messages(turns: &[Turn], template: &ChatTemplate, trained: impl Fn(usize, &Turn) -> bool) -> Result<Vec<Message>> {
    let mut out: Vec<Message> = Vec::with_capacity(turns.len());
    for (index, turn) in turns.iter().enumerate() {
        let weight = if trained(index, turn) { turn.weight } else { 0.0 };
        let role = if turn.role == "tool_response" { "tool" } else { turn.role.as_str() };
        if role != "tool_call" {
            let json = json!({ "role": role, "content": turn.text });
            out.push(Message { json, text: turn.text.clone(), weight });
            continue;
        }
        let call: Value = serde_json::from_str(&turn.text)
            .map_err(|error| DataError::Sample(format!("a `tool_call` is not valid JSON: {error}")))?;
        let continues = index > 0 && turns[index - 1].role == "tool_call";
        let previous = out.last_mut().filter(|_| continues);
        if template.knows_tool_calls() {
            let call = json!({ "type": "function", "function": call });
            match previous.and_then(|message| message.json["tool_calls"].as_array_mut()) {
                Some(calls) => calls.push(call),
                None => {
                    let json = json!({ "role": "assistant", "content": "", "tool_calls": [call] });
                    out.push(Message { json, text: turn.text.clone(), weight });
                }
            }
        } else {
            // The convention of Hermes, which most models have seen.
            let text = format!("<tool_call>\n{}\n</tool_call>", turn.text.trim());
            match previous {
                Some(message) => {
                    message.text = format!("{}\n{text}", message.text);
                    message.json["content"] = message.text.as_str().into();
                }
                None => {
                    let json = json!({ "role": "assistant", "content": text });
                    out.push(Message { json, text, weight });
                }
            }
        }
    }
    Ok(out)
}
