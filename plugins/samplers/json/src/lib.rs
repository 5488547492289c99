//! Answers that are JSON: a pushdown automaton over bytes, RFC 8259.
//!
//! Text between tokens is held short on purpose: models that may put any number of spaces anywhere sometimes never stop.

use swift_sdk::prelude::*;

config! {
    /// What the answer is.
    pub enum Root {
        /// One object.
        Object = "object",
        /// One array.
        Array = "array",
        /// Any value.
        Any = "any",
    }
}

config! {
    /// Lets only answers through that are one JSON value.
    pub struct Json {
        /// What that value is.
        root: Root = Root::Object,
        /// Most white space in a row, line breaks and indentation included.
        max_space: u32 = 32,
        /// Deepest nesting, at most 64.
        max_depth: u32 = 32,
    }
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Expect {
    /// A value.
    Value,
    /// A value, or the end of an empty array.
    ValueOrEnd,
    /// A key, or the end of an empty object.
    KeyOrEnd,
    /// A key.
    Key,
    /// The colon after a key.
    Colon,
    /// A comma or the end of what is open; white space once everything is closed.
    Comma,
    /// The rest of a string, and whether it is a key.
    Text(bool),
    /// What a backslash escapes.
    Escape(bool),
    /// So many hexadecimal digits of an escape.
    Hex(bool, u8),
    /// So many further bytes of a character, the first of which lies in this range.
    Utf8(bool, u8, u8, u8),
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
    Number(Digits),
}

/// How far a number has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Digits {
    Sign,
    Zero,
    Whole,
    Point,
    Fraction,
    E,
    ExponentSign,
    Exponent,
}

impl Digits {
    fn is_number(self) -> bool {
        matches!(self, Digits::Zero | Digits::Whole | Digits::Fraction | Digits::Exponent)
    }

    fn step(self, byte: u8) -> Option<Digits> {
        use Digits as D;
        Some(match (self, byte) {
            (D::Sign, b'0') => D::Zero,
            (D::Sign, b'1'..=b'9') | (D::Whole, b'0'..=b'9') => D::Whole,
            (D::Zero | D::Whole, b'.') => D::Point,
            (D::Point | D::Fraction, b'0'..=b'9') => D::Fraction,
            (D::Zero | D::Whole | D::Fraction, b'e' | b'E') => D::E,
            (D::E, b'+' | b'-') => D::ExponentSign,
            (D::E | D::ExponentSign | D::Exponent, b'0'..=b'9') => D::Exponent,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    expect: Expect,
    /// Bit i: whether the thing open at depth i is an object.
    objects: u64,
    depth: u32,
    /// White space since the last token.
    space: u32,
}

impl State {
    fn to(self, expect: Expect) -> Option<State> {
        Some(State { expect, space: 0, ..self })
    }

    fn open(self, object: bool, most: u32) -> Option<State> {
        if self.depth >= most {
            return None;
        }
        let objects = self.objects & !(1 << self.depth) | u64::from(object) << self.depth;
        let expect = if object { Expect::KeyOrEnd } else { Expect::ValueOrEnd };
        Some(State { expect, objects, depth: self.depth + 1, space: 0 })
    }

    fn close(self, object: bool) -> Option<State> {
        let depth = self.depth.checked_sub(1)?;
        if (self.objects >> depth & 1 == 1) != object {
            return None;
        }
        // What was closed leaves no trace, so that states which mean the same are the same.
        Some(State { expect: Expect::Comma, objects: self.objects & !(1 << depth), depth, space: 0 })
    }

    fn value(self, byte: u8, most: u32) -> Option<State> {
        match byte {
            b'{' => self.open(true, most),
            b'[' => self.open(false, most),
            b'"' => self.to(Expect::Text(false)),
            b't' => self.to(Expect::Word(b"rue")),
            b'f' => self.to(Expect::Word(b"alse")),
            b'n' => self.to(Expect::Word(b"ull")),
            b'-' => self.to(Expect::Number(Digits::Sign)),
            b'0'..=b'9' => self.to(Expect::Number(Digits::Sign.step(byte)?)),
            _ => None,
        }
    }

    fn text(self, key: bool, byte: u8) -> Option<State> {
        match byte {
            b'"' => self.to(if key { Expect::Colon } else { Expect::Comma }),
            b'\\' => self.to(Expect::Escape(key)),
            0x20..=0x7f => Some(self),
            // The second byte's range keeps out what UTF-8 does not have: overlong forms, surrogates, beyond U+10FFFF.
            0xc2..=0xdf => self.to(Expect::Utf8(key, 1, 0x80, 0xbf)),
            0xe0 => self.to(Expect::Utf8(key, 2, 0xa0, 0xbf)),
            0xed => self.to(Expect::Utf8(key, 2, 0x80, 0x9f)),
            0xe1..=0xef => self.to(Expect::Utf8(key, 2, 0x80, 0xbf)),
            0xf0 => self.to(Expect::Utf8(key, 3, 0x90, 0xbf)),
            0xf1..=0xf3 => self.to(Expect::Utf8(key, 3, 0x80, 0xbf)),
            0xf4 => self.to(Expect::Utf8(key, 3, 0x80, 0x8f)),
            _ => None,
        }
    }

    /// After a whole value.
    fn comma(self, byte: u8) -> Option<State> {
        let in_object = self.depth > 0 && self.objects >> (self.depth - 1) & 1 == 1;
        match byte {
            b',' if self.depth > 0 => self.to(if in_object { Expect::Key } else { Expect::Value }),
            b'}' => self.close(true),
            b']' => self.close(false),
            _ => None,
        }
    }
}

/// The language that a configuration describes.
struct Grammar(Json);

impl Automaton for Grammar {
    type State = State;

    fn start(&self) -> State {
        State { expect: Expect::Value, objects: 0, depth: 0, space: 0 }
    }

    fn step(&self, state: &State, byte: u8) -> Option<State> {
        let state = *state;
        let Json { root, max_space, max_depth: most } = self.0;
        let begins = state == self.start();
        let spaced = match state.expect {
            Expect::Comma => state.depth > 0,
            Expect::Value => !begins,
            Expect::ValueOrEnd | Expect::KeyOrEnd | Expect::Key | Expect::Colon => true,
            _ => false,
        };
        if spaced && matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
            return (state.space < max_space).then_some(State { space: state.space + 1, ..state });
        }
        match state.expect {
            Expect::Value if begins => match root {
                Root::Object if byte != b'{' => None,
                Root::Array if byte != b'[' => None,
                _ => state.value(byte, most),
            },
            Expect::Value => state.value(byte, most),
            Expect::ValueOrEnd if byte == b']' => state.close(false),
            Expect::ValueOrEnd => state.value(byte, most),
            Expect::KeyOrEnd if byte == b'}' => state.close(true),
            Expect::KeyOrEnd | Expect::Key if byte == b'"' => state.to(Expect::Text(true)),
            Expect::Colon if byte == b':' => state.to(Expect::Value),
            Expect::Comma => state.comma(byte),
            Expect::Text(key) => state.text(key, byte),
            Expect::Escape(key) if byte == b'u' => state.to(Expect::Hex(key, 4)),
            Expect::Escape(key) if b"\"\\/bfnrt".contains(&byte) => state.to(Expect::Text(key)),
            Expect::Hex(key, left) if byte.is_ascii_hexdigit() => {
                state.to(if left == 1 { Expect::Text(key) } else { Expect::Hex(key, left - 1) })
            }
            Expect::Utf8(key, left, low, high) if (low..=high).contains(&byte) => {
                state.to(if left == 1 { Expect::Text(key) } else { Expect::Utf8(key, left - 1, 0x80, 0xbf) })
            }
            Expect::Word(rest) if rest.first() == Some(&byte) => {
                state.to(if rest.len() == 1 { Expect::Comma } else { Expect::Word(&rest[1..]) })
            }
            Expect::Number(digits) => match digits.step(byte) {
                Some(digits) => state.to(Expect::Number(digits)),
                // The first byte after a number belongs to what follows.
                None if digits.is_number() => self.step(&State { expect: Expect::Comma, ..state }, byte),
                None => None,
            },
            _ => None,
        }
    }

    fn is_end(&self, state: &State) -> bool {
        let whole = match state.expect {
            Expect::Comma => true,
            Expect::Number(digits) => digits.is_number(),
            _ => false,
        };
        whole && state.depth == 0
    }
}

impl Sampler for Json {
    fn check(&self) -> Result<()> {
        if (1..=64).contains(&self.max_depth) { Ok(()) } else { Err(Error::config("`max_depth` must be between 1 and 64")) }
    }

    fn matcher(&self, vocabulary: Vocabulary) -> Result<Option<Box<dyn Matcher>>> {
        Ok(Some(Box::new(Constraint::new(Grammar(self.clone()), vocabulary))))
    }
}

plugin! { sampler "json": Json }

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes of a text are let through, and whether it may end there.
    fn read(config: &Json, text: &[u8]) -> (usize, bool) {
        let json = Grammar(config.clone());
        let mut state = json.start();
        for (at, &byte) in text.iter().enumerate() {
            match json.step(&state, byte) {
                Some(next) => state = next,
                None => return (at, false),
            }
        }
        (text.len(), json.is_end(&state))
    }

    #[test]
    fn json_is_let_through_and_nothing_else() {
        let any = Json { root: Root::Any, ..Json::default() };
        for text in [
            "{}",
            "[]",
            "[1, -0.5e+10, 0, 12E3]",
            r#"{"a": [true, false, null], "b\né\u00e9": {"c": "x\"y"}}"#,
            "0",
            "-3.25",
            "{\n  \"k\" : [ ],\n  \"é€😀\" : \"\"\n}",
            r#""text""#,
            "null",
            "[[[[]]]]",
        ] {
            assert_eq!(read(&any, text.as_bytes()), (text.len(), true), "{text}");
            assert!(swift_sdk::serde_json::from_str::<swift_sdk::Json>(text).is_ok(), "{text}");
        }
        for text in [
            "{,",
            "{a",
            "[1,]",
            "01",
            "-a",
            "1.e",
            "+1",
            "nul1",
            r#"{"a" 1"#,
            r#"{"a":}"#,
            "\"\n",
            r#""\x"#,
            "]",
            "{]",
            "[}",
            "1 ",
            " 1",
            "{} ",
            "tru]",
            "[1 2",
            "\"\u{7f}\"\"",
        ] {
            assert!(read(&any, text.as_bytes()).0 < text.len(), "{text}");
        }
        for bad in [&b"\"\xff"[..], b"\"\xc0\x80", b"\"\xed\xa0", b"\"\xf4\x90", b"\"\xe0\x80"] {
            assert!(read(&any, bad).0 < bad.len(), "{bad:?}");
        }
    }

    #[test]
    fn roots_depth_and_space_are_bounded() {
        let object = Json { max_depth: 3, max_space: 2, ..Json::default() };
        assert_eq!(read(&object, b"[").0, 0);
        assert_eq!(read(&object, br#"{"a":[[[1]]]}"#).0, 7);
        assert_eq!(read(&object, b"{   }").0, 3);
        assert_eq!(read(&Json { root: Root::Array, ..Json::default() }, b"[{}]"), (4, true));
    }
}
