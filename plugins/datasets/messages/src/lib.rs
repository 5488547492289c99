//! Chat rows in the forms that ms-swift accepts: `messages`, sharegpt's `conversations`, and query with response and history.
//! Rows with a rejected answer become preference samples; columns that none of this reads go along in `extra`.

use swift_sdk::prelude::*;
use swift_sdk::rows::{Row, messages};

config! {
    /// Chat data: messages, conversations, or query and response.
    pub struct Messages {
        /// Set before conversations that have no system message.
        system: Option<String> = None,
    }
}

const QUERY: &[&str] = &["query", "prompt", "instruction", "question", "problem", "input"];
const RESPONSE: &[&str] = &["response", "answer", "output", "target", "targets", "solution", "completion", "text", "content"];

impl Messages {
    fn turns(&self, row: &mut Row) -> Result<Vec<Turn>> {
        if let Some(list) = row.column(&["messages", "conversations", "conversation"]) {
            return messages(list);
        }
        let mut turns = Vec::new();
        for pair in row.column(&["history"]).and_then(Json::as_array).into_iter().flatten() {
            let [Some(user), Some(assistant)] = [0, 1].map(|i| pair.get(i).and_then(Json::as_str)) else {
                return Err(Error::missing("`history` must hold pairs [query, response] of text"));
            };
            turns.extend([Turn::text("user", user), Turn::text("assistant", assistant)]);
        }
        // A prompt column may itself hold messages, next to `chosen` and `rejected`.
        if let Some(list @ Json::Array(_)) = row.column(&["prompt"]) {
            turns.extend(messages(list)?);
        } else {
            turns.extend(row.text(QUERY)?.map(|query| Turn::text("user", query)));
        }
        turns.extend(row.text(RESPONSE)?.map(|response| Turn::text("assistant", response)));
        Ok(turns)
    }
}

impl Dataset for Messages {
    fn map_row(&self, row: &Json) -> Result<Vec<Sample>> {
        let mut row = Row::new(row)?;
        let mut turns = self.turns(&mut row)?;
        let system = row.text(&["system", "system_prompt"])?.or_else(|| self.system.clone());
        let columns = row.names();
        let mut sample = row.finish(std::mem::take(&mut turns))?;
        if sample.turns.is_empty() && sample.chosen.is_empty() {
            return Err(Error::missing(format!("no column holds a conversation; the row has {columns}"))
                .hint("`messages`, `conversations`, or `query` and `response`"));
        }
        if let Some(system) = system.filter(|_| sample.turns.first().is_none_or(|t| t.role != "system")) {
            sample.turns.insert(0, Turn::text("system", system));
        }
        Ok(vec![sample])
    }
}

plugin! { dataset "messages": Messages }

#[cfg(test)]
mod tests {
    use swift_sdk::serde_json::json;

    use super::*;

    /// Roles and texts of the turns, and of chosen and rejected.
    fn map(row: Json) -> Result<[Vec<String>; 3]> {
        let sample = Messages::default().map_row(&row)?.remove(0);
        let show = |turns: &[Turn]| turns.iter().map(|t| format!("{}: {:?} {}", t.role, t.parts, t.train)).collect();
        Ok([show(&sample.turns), show(&sample.chosen), show(&sample.rejected)])
    }

    #[test]
    fn all_forms_give_the_same_conversation() {
        let want =
            map(json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})).expect("maps");
        assert_eq!(want[0], [r#"user: [Part::Text("a")] false"#, r#"assistant: [Part::Text("b")] true"#]);
        for row in [
            json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
            json!({"conversation": [{"human": "a", "assistant": "b"}]}),
            json!({"query": "a", "response": "b", "history": []}),
            json!({"prompt": "a", "completion": "b", "messages": null}),
        ] {
            assert_eq!(map(row).expect("maps"), want);
        }
    }

    #[test]
    fn preference_rows_split_at_the_answer() {
        let want = map(json!({"query": "a", "response": "b", "rejected_response": "c"})).expect("maps");
        assert_eq!([want[0].len(), want[1].len(), want[2].len()], [1, 1, 1]);
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        for row in [
            json!({"prompt": "a", "chosen": "b", "rejected": "c"}),
            json!({"chosen": [message("user", "a"), message("assistant", "b")], "rejected": [message("user", "a"), message("assistant", "c")]}),
            json!({"messages": [message("user", "a"), message("assistant", "b")], "rejected_response": [message("assistant", "c")]}),
        ] {
            assert_eq!(map(row).expect("maps"), want);
        }
        assert!(map(json!({"prompt": "a", "rejected": "c"})).is_err());
    }

    #[test]
    fn bad_rows_say_why() {
        let message = |row| map(row).expect_err("is refused").message;
        assert!(message(json!({"foo": 1})).contains("`foo`"));
        assert!(message(json!({"messages": [{"role": "user", "content": "a"}, {"who": "x"}]})).contains("message 1"));
        assert!(message(json!({"query": ["a"], "response": "b"})).contains("a list"));
        assert!(message(json!([1])).contains("not an object"));
    }
}
