//! What a dataset row means, after a dataset plugin has mapped it.

use serde_json::{Map, Value};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// `system`, `user`, `assistant`, `tool_call`, `tool_response` (or `tool`).
    pub role: String,
    /// Text of the turn; the JSON of the call for `tool_call`.
    pub text: String,
    /// Whether the dataset lets this turn be trained on. Turns that are not the assistant's are never trained on unless
    /// the whole text is.
    pub train: bool,
    /// Factor of this turn's loss; 1 unless the dataset says otherwise.
    pub weight: f32,
}

impl Turn {
    /// A turn that may be trained on, with weight 1.
    pub fn new(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), text: text.into(), train: true, weight: 1.0 }
    }

    /// Whether the model wrote this turn: an answer or a tool call.
    pub fn is_assistant(&self) -> bool {
        matches!(self.role.as_str(), "assistant" | "tool_call")
    }
}

/// One training sample.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// The conversation; for preferences, what both answers follow.
    pub turns: Vec<Turn>,
    /// Preferred continuation, if this is a preference pair.
    pub chosen: Vec<Turn>,
    /// Rejected continuation, if this is a preference pair.
    pub rejected: Vec<Turn>,
    /// Whether the answer is desirable, for unpaired preferences.
    pub label: Option<bool>,
    /// Further columns of the row: `tools`, `channel`, `solution` and whatever a reward or loss asks for.
    pub extra: Map<String, Value>,
}
