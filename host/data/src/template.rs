//! Chat templates: Jinja as `transformers` renders it.
//!
//! What a template sees: `messages`, `tools`, `add_generation_prompt`, the special tokens as `bos_token`, `eos_token`,
//! `pad_token` and `unk_token`, further variables that the caller passes, `raise_exception`, Python's string, list and
//! dictionary methods, and `tojson` with Python's spacing. Blocks are trimmed as in `transformers`.
//!
//! There is no clock, so that a prompt is the same today and tomorrow. Templates that ask whether `strftime_now` is defined
//! are told that it is not, and take their own fixed date; for those that call it unasked it is always 26 July 2024, the
//! date that Llama 3.2's template falls back to.
//!
//! A template comes out of a model file, so it runs with limits on its size, on instructions, on recursion and on its
//! output, and where the interpreter itself breaks down, that is an error of the template. `{% generation %}` marks of assistant text are accepted and ignored; spans are found another way.

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Once;

use minijinja::value::{Kwargs, Value as JinjaValue, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Map, Value};
use swift_formats::{Checkpoint, Gguf, read_json};

use crate::tokenizer::MAX_CONFIG_BYTES;
use crate::{DataError, Result, Tokenizer};

/// ChatML, for models that bring no template.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
    message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Largest template source; the longest published ones have some 17 kB. The parser recurses once for a byte at worst.
const MAX_SOURCE_BYTES: usize = 64 << 10;
/// Stack for that: address space, of which honest templates touch a few pages.
const PARSER_STACK: usize = 256 << 20;
/// Instructions of one rendering; a conversation of a thousand turns takes about a hundred thousand.
const FUEL: u64 = 5_000_000;
/// Nesting of includes, macros and calls.
const RECURSION: usize = 64;
/// Largest rendering.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Name of the only template of an environment.
const NAME: &str = "chat";

/// What to render besides the messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct RenderOptions<'a> {
    /// Tool definitions, a JSON list.
    pub tools: Option<&'a Value>,
    /// Whether to end with what precedes an assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables, for example `enable_thinking`.
    pub variables: Option<&'a Map<String, Value>>,
}

/// A parsed chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    specials: [(&'static str, Option<String>); 4],
}

impl ChatTemplate {
    /// Parses a template; special tokens are those of the tokenizer.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(DataError::Template(format!("the source is larger than {MAX_SOURCE_BYTES} bytes")));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<JinjaValue, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
        environment.add_filter("trim", |value: JinjaValue, chars: Option<String>| {
            let text = python_text(&value).unwrap_or_else(|| value.to_string());
            match chars {
                Some(chars) => text.trim_matches(|char| chars.contains(char)).to_owned(),
                None => text.trim().to_owned(),
            }
        });
        environment.add_filter("string", |value: JinjaValue| python_text(&value).unwrap_or_else(|| value.to_string()));
        environment.set_formatter(|out, state, value| match python_text(value) {
            Some(text) => Ok(out.write_str(&text)?),
            None => minijinja::escape_formatter(out, state, value),
        });
        if source.contains("strftime_now") && !source.contains("strftime_now is ") {
            environment.add_function("strftime_now", fixed_date);
        }
        parsed(|| environment.add_template_owned(NAME, without_generation_marks(source)))
            .map_err(|message| DataError::Template(format!("the interpreter broke down over it: {message}")))?
            .map_err(|error| DataError::Template(format!("does not parse: {}", describe(&error))))?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
        let specials = [
            ("bos_token", text(tokenizer.bos_id())),
            ("eos_token", text(tokenizer.eos_id())),
            ("pad_token", text(tokenizer.pad_id())),
            ("unk_token", text(tokenizer.unknown_id())),
        ];
        Ok(Self { environment, source: source.to_owned(), specials })
    }

    /// The template of a checkpoint; `None` if it brings none (see [`CHATML`]).
    pub fn open(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        match checkpoint.gguf() {
            Some(file) => Self::from_gguf(file, tokenizer),
            None => Self::from_folder(checkpoint.path(), tokenizer),
        }
    }

    /// The template in a GGUF file's metadata.
    pub fn from_gguf(file: &Gguf, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        file.get_str("tokenizer.chat_template").map(|source| Self::new(source, tokenizer)).transpose()
    }

    /// The template of a Hugging Face folder: `chat_template.jinja`, else `chat_template.json`, else
    /// `tokenizer_config.json`. Of several named templates the one called `default` is taken.
    pub fn from_folder(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let plain = folder.join("chat_template.jinja");
        if plain.is_file() {
            let size = plain.metadata().map_err(|source| DataError::io("open", &plain, source))?.len();
            if size > MAX_SOURCE_BYTES as u64 {
                return Err(DataError::Template(format!("`{}` is larger than {MAX_SOURCE_BYTES} bytes", plain.display())));
            }
            let source = std::fs::read_to_string(&plain).map_err(|source| DataError::io("read", &plain, source))?;
            return Self::new(&source, tokenizer).map(Some);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let file = folder.join(name);
            if !file.is_file() {
                continue;
            }
            let config = read_json(&file, MAX_CONFIG_BYTES)?;
            let found = match &config["chat_template"] {
                Value::String(source) => Some(source.as_str()),
                Value::Array(named) => {
                    let default = named.iter().find(|entry| entry["name"] == "default").or(named.first());
                    default.and_then(|entry| entry["template"].as_str())
                }
                _ => None,
            };
            if let Some(source) = found {
                return Self::new(source, tokenizer).map(Some);
            }
        }
        Ok(None)
    }

    /// The source as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template renders structured tool calls itself.
    pub fn knows_tool_calls(&self) -> bool {
        self.source.contains("tool_calls")
    }

    /// Renders messages, each an object with `role` and `content`.
    pub fn render(&self, messages: &[Value], options: RenderOptions<'_>) -> Result<String> {
        let mut context: Vec<(&str, JinjaValue)> = vec![
            ("messages", JinjaValue::from_serialize(messages)),
            ("add_generation_prompt", options.add_generation_prompt.into()),
            // `transformers` passes none, not an absent variable; templates test it with `is not none`.
            ("tools", options.tools.map_or_else(|| ().into(), JinjaValue::from_serialize)),
            ("documents", ().into()),
        ];
        for (name, text) in &self.specials {
            if let Some(text) = text {
                context.push((name, text.as_str().into()));
            }
        }
        for (name, value) in options.variables.into_iter().flatten() {
            context.push((name, JinjaValue::from_serialize(value)));
        }
        let template = self.environment.get_template(NAME).map_err(|error| DataError::Template(describe(&error)))?;
        let mut out = Bounded::default();
        let rendered = caught(|| template.render_captured_to(JinjaValue::from_iter(context), &mut out).map(drop));
        if out.full {
            return Err(DataError::Template(format!("the rendering is larger than {MAX_OUTPUT_BYTES} bytes")));
        }
        match rendered {
            Ok(rendered) => rendered.map_err(|error| DataError::Template(describe(&error)))?,
            Err(message) => return Err(DataError::Template(format!("the interpreter broke down over it: {message}"))),
        }
        String::from_utf8(out.bytes).map_err(|_| DataError::Template("the rendering is not UTF-8".into()))
    }
}

/// Takes a rendering up to its largest size.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.full |= self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES;
        if self.full {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs the parser on a stack of its own.
fn parsed<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let parser = std::thread::Builder::new().name("template".into()).stack_size(PARSER_STACK);
        let running = parser.spawn_scoped(scope, || caught(f)).map_err(|error| format!("no thread for the parser: {error}"))?;
        running.join().unwrap_or_else(|_| Err("the parser's thread ended".into()))
    })
}

/// Runs what may panic, without a word on standard error, and gives the panic's message.
fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                others(panic);
            }
        }));
    });
    QUIET.set(true);
    // What the closure leaves half done is dropped by its caller.
    let out = std::panic::catch_unwind(AssertUnwindSafe(f));
    QUIET.set(false);
    out.map_err(|panic| match panic.downcast_ref::<String>() {
        Some(message) => message.clone(),
        None => panic.downcast_ref::<&str>().map_or_else(String::new, ToString::to_string),
    })
}

/// One line that says what went wrong and where in the template.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let hint = if error.kind() == ErrorKind::OutOfFuel { " (the limit is 5 million instructions)" } else { "" };
    match error.line() {
        Some(line) => format!("{what}{hint} (template line {line})"),
        None => format!("{what}{hint}"),
    }
}

/// Turns `{% generation %}` and `{% endgeneration %}` into comments, which keep the whitespace control of the tags.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + length];
        out.push_str(&rest[..start]);
        let name = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        if matches!(name, "generation" | "endgeneration") {
            let open = if tag.starts_with('-') { "{#-" } else { "{#" };
            let close = if tag.ends_with('-') { "-#}" } else { "#}" };
            out.push_str(open);
            out.push_str(close);
        } else {
            out.push_str(&rest[start..start + length + 2]);
        }
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

/// As in Python, where none is not iterable but an undefined variable is (and is empty).
fn is_iterable(value: &JinjaValue) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
}

/// `strftime` of 26 July 2024, midnight.
fn fixed_date(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        out.push_str(match chars.next() {
            Some('Y') => "2024",
            Some('y') => "24",
            Some('m') => "07",
            Some('B') => "July",
            Some('b') => "Jul",
            Some('d') => "26",
            Some('A') => "Friday",
            Some('a') => "Fri",
            Some('H' | 'M' | 'S') => "00",
            Some('%') => "%",
            other => {
                let letter = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now: `%{letter}` is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(out)
}

/// `tojson` as `transformers` defines it: `json.dumps` with its `ensure_ascii` (false there), `indent`, `separators` and `sort_keys`.
fn to_json(value: JinjaValue, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut value =
        serde_json::to_value(&value).map_err(|error| Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))?;
    if sort == Some(true) {
        value.sort_all_objects();
    }
    let separators = match separators.as_deref() {
        Some([item, key]) => Some([item.clone(), key.clone()]),
        None => None,
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: `separators` are two texts")),
    };
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = vec![b' '; width.min(16)];
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(&spaces)))
        }
        None => {
            let separators = separators.unwrap_or_else(|| [", ".into(), ": ".into()]);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter { separators }))
        }
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")))?;
    let text = String::from_utf8(out).map_err(|_| Error::new(ErrorKind::BadSerialization, "tojson: not UTF-8"))?;
    if ascii != Some(true) {
        return Ok(text);
    }
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        match char.is_ascii() {
            true => plain.push(char),
            false => char.encode_utf16(&mut [0; 2]).iter().for_each(|unit| plain.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    Ok(plain)
}

/// What Python prints for a value: lists and dictionaries by the `repr` of what they hold.
fn python_text(value: &JinjaValue) -> Option<String> {
    let mut out = String::new();
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map).then(|| repr(value, &mut out)).map(|()| out)
}

fn repr(value: &JinjaValue, out: &mut String) {
    let list = |items: &mut dyn Iterator<Item = JinjaValue>, out: &mut String| {
        for (i, item) in items.enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            repr(&item, out);
        }
    };
    match value.kind() {
        ValueKind::Seq => {
            out.push('[');
            list(&mut value.try_iter().into_iter().flatten(), out);
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            out.push(quote);
            for char in text.chars() {
                match char {
                    '\\' => out.push_str("\\\\"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    c if c == quote => out.extend(['\\', c]),
                    c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                    c => out.push(c),
                }
            }
            out.push(quote);
        }
        // `True`, `None` and numbers, which the interpreter spells as Python does.
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        _ => out.push_str(&value.to_string()),
    }
}

/// Python's separators, by default `", "` and `": "`.
struct PythonFormatter {
    separators: [String; 2],
}

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.separators[0].as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.separators[0].as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(self.separators[1].as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokenizer() -> Tokenizer {
        let tokenizer = Tokenizer::train_bpe(["a"], 300, &["<s>", "</s>"], crate::PreTokenizer::Gpt2).unwrap();
        tokenizer.with_special_tokens(Some("<s>"), Some("</s>"), None).unwrap()
    }

    fn render(source: &str, messages: Value, prompt: bool) -> Result<String> {
        let template = ChatTemplate::new(source, &tokenizer())?;
        let options = RenderOptions { add_generation_prompt: prompt, ..RenderOptions::default() };
        template.render(messages.as_array().unwrap(), options)
    }

    fn hello() -> Value {
        json!([{"role": "user", "content": " Hi <b>"}, {"role": "assistant", "content": "Yes"}])
    }

    #[test]
    fn chatml() {
        let text = render(CHATML, hello(), true).unwrap();
        let expected = "<|im_start|>user\n Hi <b><|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_exist() {
        let source = "{{ bos_token }}\n{%- for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m['content'].strip().upper() }}]\n    {% endif %}\n{% endfor %}\n{{ eos_token }}{{ nothing }}";
        assert_eq!(render(source, hello(), false).unwrap(), "<s>[HI <B>]\n</s>");
        let source = "{% for k, v in messages[0].items() %}{{ k }}={{ v.split(' ')[-1] }};{% endfor %}{{ messages[-1].get('x') is none }}{{ 'a,b'.split(',') | tojson }}";
        assert_eq!(render(source, hello(), false).unwrap(), "role=user;content=<b>;True[\"a\", \"b\"]");
    }

    #[test]
    fn tojson_is_pythons() {
        let source = "{{ messages | tojson }}";
        let text = render(source, json!([{"a": [1, 2.5, true, null], "b": {"ü": "<'&\"\n"}}]), false).unwrap();
        assert_eq!(text, r#"[{"a": [1, 2.5, true, null], "b": {"ü": "<'&\"\n"}}]"#);
        let text = render("{{ messages[0] | tojson(indent=4) }}", json!([{"a": [1], "b": {}}]), false).unwrap();
        assert_eq!(text, "{\n    \"a\": [\n        1\n    ],\n    \"b\": {}\n}");
    }

    #[test]
    fn generation_marks_are_ignored_with_their_whitespace_control() {
        let source = "a\n{%- generation -%}\n b {% endgeneration %}\nc{% if true %}d{% endif %}";
        assert_eq!(render(source, hello(), false).unwrap(), "ab c".to_owned() + "d");
    }

    #[test]
    fn templates_have_no_clock_and_may_refuse() {
        let source = "{% if strftime_now is defined %}now{% else %}fixed{% endif %}";
        assert_eq!(render(source, hello(), false).unwrap(), "fixed");
        let source = "{{ strftime_now('%d %b %Y') }} {{ tools is iterable }}{{ none is iterable }}{{ 'x' is iterable }}";
        assert_eq!(render(source, hello(), false).unwrap(), "26 Jul 2024 FalseFalseTrue");
        let error = render("\n{{ raise_exception('roles must alternate') }}", hello(), false).unwrap_err().to_string();
        assert!(error.contains("roles must alternate") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn hostile_templates_end() {
        let spin = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a * b %}{% endfor %}{% endfor %}";
        assert!(render(spin, hello(), false).unwrap_err().to_string().contains("fuel"));
        let recurse = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
        assert!(render(recurse, hello(), false).is_err());
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(render(&deep, hello(), false).is_err());
        let huge = "{{ 'a' * 99999999999 }}";
        assert!(render(huge, hello(), false).is_err());
        assert!(render(&"x".repeat(MAX_SOURCE_BYTES + 1), hello(), false).is_err());
        assert!(render("{% include '/etc/passwd' %}", hello(), false).is_err());
        assert!(render("{% for %}", hello(), false).unwrap_err().to_string().contains("does not parse"));
    }

    #[test]
    fn folders_hold_templates_in_three_places() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let source = || ChatTemplate::from_folder(root, &tokenizer()).unwrap().map(|template| template.source);
        assert_eq!(source(), None);
        let named = json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        std::fs::write(root.join("tokenizer_config.json"), named.to_string()).unwrap();
        assert_eq!(source().as_deref(), Some("d"));
        std::fs::write(root.join("chat_template.json"), r#"{"chat_template": "j"}"#).unwrap();
        assert_eq!(source().as_deref(), Some("j"));
        std::fs::write(root.join("chat_template.jinja"), "x").unwrap();
        assert_eq!(source().as_deref(), Some("x"));
    }
}
