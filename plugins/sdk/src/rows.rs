//! Reading rows of chat datasets: columns under any of several names, messages in any of the usual spellings, preference columns.

use std::collections::BTreeSet;

use crate::dataset::{Part, Sample, Turn};
use crate::{Error, Json, Result};

/// A row, and which of its columns have been read; the others end in [`Sample::extra`].
pub struct Row<'a> {
    columns: &'a serde_json::Map<String, Json>,
    used: BTreeSet<&'a str>,
}

impl<'a> Row<'a> {
    /// Opens a row.
    ///
    /// # Errors
    /// If it is not an object.
    pub fn new(row: &'a Json) -> Result<Row<'a>> {
        let columns = row.as_object().ok_or_else(|| Error::missing("the row is not an object of columns"))?;
        Ok(Row { columns, used: BTreeSet::new() })
    }

    /// The first of the columns that is there and not null.
    pub fn column(&mut self, names: &[&str]) -> Option<&'a Json> {
        let (name, value) = names.iter().find_map(|n| self.columns.get_key_value(*n).filter(|(_, v)| !v.is_null()))?;
        self.used.insert(name);
        Some(value)
    }

    /// The same for a column of text.
    ///
    /// # Errors
    /// If the column holds something else.
    pub fn text(&mut self, names: &[&str]) -> Result<Option<String>> {
        self.column(names).map(|value| text(value).ok_or_else(|| not_text(names[0], value))).transpose()
    }

    /// Names of the columns, for messages.
    pub fn names(&self) -> String {
        self.columns.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
    }

    /// The row's sample. With preference columns, the answer in `turns` is the chosen one:
    /// `rejected_response` (text or messages), `rejected_messages`, or `chosen` and `rejected` (text or messages).
    ///
    /// # Errors
    /// If chosen and rejected do not answer the same prompt, or there is nothing to answer.
    pub fn finish(mut self, mut turns: Vec<Turn>) -> Result<Sample> {
        if let Some(chosen) = self.column(&["chosen"]) {
            match chosen {
                Json::Array(_) => turns = messages(chosen)?,
                other => turns.push(Turn::text("assistant", text(other).ok_or_else(|| not_text("chosen", other))?)),
            }
        }
        let rejected = self.column(&["rejected_messages", "rejected_response", "rejected"]);
        let label = self.column(&["label"]).and_then(Json::as_bool);
        let mut sample = match rejected {
            None => Sample::new(turns),
            Some(rejected) => preference(turns, rejected)?,
        };
        sample.label = label;
        let extra = self.columns.iter().filter(|(name, _)| !self.used.contains(name.as_str()));
        sample.extra = Json::Object(extra.map(|(name, value)| (name.clone(), value.clone())).collect()).to_string();
        Ok(sample)
    }
}

/// Splits off what both answers share.
fn preference(turns: Vec<Turn>, rejected: &Json) -> Result<Sample> {
    let last_user = turns.iter().rposition(|t| t.role != "assistant").map_or(0, |i| i + 1);
    let (prompt, chosen) = turns.split_at(last_user);
    let rejected = match rejected {
        Json::Array(_) => {
            let all = messages(rejected)?;
            // Either the whole conversation or only the answer.
            let shared = all.iter().zip(&turns).take_while(|(a, b)| a.role == b.role && plain(a) == plain(b)).count();
            all[shared.min(last_user)..].to_vec()
        }
        other => vec![Turn::text("assistant", text(other).ok_or_else(|| not_text("rejected_response", other))?)],
    };
    if chosen.is_empty() || rejected.is_empty() {
        return Err(Error::missing("a preference row needs a chosen and a rejected answer"));
    }
    if rejected.iter().any(|t| t.role == "user" || t.role == "system") {
        return Err(Error::missing("the rejected messages do not start with the chosen ones' prompt"));
    }
    let mut sample = Sample::new(prompt.to_vec());
    (sample.chosen, sample.rejected) = (chosen.to_vec(), rejected);
    Ok(sample)
}

fn plain(turn: &Turn) -> String {
    let texts = turn.parts.iter().map(|part| if let Part::Text(text) = part { text.as_str() } else { "" });
    texts.collect()
}

/// Text, or a number or boolean in its JSON spelling.
fn text(value: &Json) -> Option<String> {
    match value {
        Json::String(s) => Some(s.clone()),
        Json::Number(_) | Json::Bool(_) => Some(value.to_string()),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

fn not_text(name: &str, value: &Json) -> Error {
    let kind = match value {
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
        _ => "null",
    };
    Error::missing(format!("column `{name}` is {kind}, not text"))
}

/// A list of messages: `{"role", "content"}`, sharegpt's `{"from", "value"}`, or pairs `{"human", "assistant"}`. A message's
/// own `loss` (boolean) and `loss_scale` (number) are kept. Content is text or OpenAI's list of parts.
///
/// # Errors
/// With the number of the message that is something else.
pub fn messages(list: &Json) -> Result<Vec<Turn>> {
    let list = list.as_array().ok_or_else(|| Error::missing("the messages are not a list"))?;
    let mut turns = Vec::new();
    for (number, message) in list.iter().enumerate() {
        let read = message_turns(message).ok_or_else(|| {
            Error::missing(format!("message {number} has neither `role` and `content` nor `from` and `value`: {message}"))
        })?;
        turns.extend(read);
    }
    if turns.is_empty() {
        return Err(Error::missing("the list of messages is empty"));
    }
    Ok(turns)
}

fn message_turns(message: &Json) -> Option<Vec<Turn>> {
    let get = |names: &[&str]| names.iter().find_map(|n| message.get(*n));
    let Some(role) = get(&["role", "from"]) else {
        // One exchange per entry.
        let (user, assistant) = (text(get(&["human", "user"])?)?, text(get(&["assistant", "gpt"])?)?);
        return Some(vec![Turn::text("user", user), Turn::text("assistant", assistant)]);
    };
    let parts = match get(&["content", "value"]) {
        None | Some(Json::Null) => vec![Part::Text(String::new())],
        Some(Json::Array(parts)) => parts.iter().map(part).collect::<Option<Vec<_>>>()?,
        Some(content) => vec![Part::Text(text(content)?)],
    };
    let role = match role.as_str()? {
        "human" => "user",
        "gpt" | "bot" => "assistant",
        "function_call" => "tool_call",
        "observation" | "tool_response" => "tool",
        other => other,
    };
    let trained = role == "assistant" || role == "tool_call";
    let train = message.get("loss").and_then(Json::as_bool).unwrap_or(trained);
    let weight = message.get("loss_scale").and_then(Json::as_f64).unwrap_or(1.0) as f32;
    Some(vec![Turn { role: role.into(), parts, train, weight }])
}

/// One entry of OpenAI's content list.
fn part(entry: &Json) -> Option<Part> {
    let source = |key: &str| match entry.get(key)? {
        Json::Object(object) => Some(object.get("url")?.as_str()?.to_string()),
        other => text(other),
    };
    match entry.get("type")?.as_str()? {
        "text" => source("text").map(Part::Text),
        "image_url" => source("image_url").map(Part::Image),
        kind @ "image" => source(kind).map(Part::Image),
        kind @ "audio" => source(kind).map(Part::Audio),
        kind @ "video" => source(kind).map(Part::Video),
        _ => None,
    }
}
