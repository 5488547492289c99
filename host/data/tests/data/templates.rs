//! Chat templates against transformers: the same bytes from every published template on every kind of conversation, and templates that
//! mean harm.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use swift_data::{ChatTemplate, PreTokenizer, RenderOptions, Tokenizer};
use swift_formats::Gguf;

fn tokenizer() -> Tokenizer {
    let tokenizer = Tokenizer::train_bpe(["a"], 300, &["<s>", "</s>"], PreTokenizer::Gpt2).unwrap();
    tokenizer.with_special_tokens(Some("<s>"), Some("</s>"), None).unwrap()
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The source of a golden's name: a file, a tokenizer configuration with the name of a template, or a GGUF file.
fn source(assets: &Path, name: &str) -> Option<String> {
    let (file, named) = name.split_once('#').map_or((name, None), |(file, named)| (file, Some(named)));
    let path = assets.join(file);
    if !path.exists() {
        return None;
    }
    let Some(named) = named else {
        return match path.extension().is_some_and(|e| e == "gguf") {
            true => Gguf::open(&path).unwrap().get_str("tokenizer.chat_template").map(str::to_owned),
            false => Some(std::fs::read_to_string(path).unwrap()),
        };
    };
    let config: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let template = match &config["chat_template"] {
        Value::Array(list) => &list.iter().find(|entry| entry["name"] == named).unwrap()["template"],
        one => one,
    };
    Some(template.as_str().unwrap().to_owned())
}

fn render(template: &ChatTemplate, case: &Value) -> Result<String, String> {
    let options = RenderOptions {
        tools: Some(&case["tools"]).filter(|tools| !tools.is_null()),
        add_generation_prompt: case["add_generation_prompt"] == true,
        variables: case["variables"].as_object(),
    };
    template.render(case["messages"].as_array().unwrap(), options).map_err(|e| e.to_string())
}

/// Where Jinja2's `'...'|safe + text` escapes the text for HTML (`&#34;` for each quote of a tool's JSON), which the template's author can
/// hardly have meant and minijinja does not do.
const KNOWN: [&str; 1] = ["templates/meetkai-functionary-medium-v3.1.jinja"];

/// `make_templates.py` made the golden file with transformers.
#[test]
fn published_templates_render_as_in_transformers() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.assets");
    let golden: Value = serde_json::from_str(include_str!("../golden/templates.json")).unwrap();
    let (mut differ, mut compared, mut missing) = (Vec::new(), 0, Vec::new());
    for (name, golden_of) in golden["templates"].as_object().unwrap() {
        let Some(source) = source(&assets, name).filter(|source| golden_of["source"] == digest(source)) else {
            missing.push(name.as_str());
            continue;
        };
        let template = match ChatTemplate::new(&source, &tokenizer()) {
            Ok(template) => template,
            Err(error) => {
                differ.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (case, want) in golden["cases"].as_array().unwrap().iter().zip(golden_of["rendered"].as_array().unwrap()) {
            let what = case["name"].as_str().unwrap();
            if KNOWN.contains(&name.as_str()) && !case["tools"].is_null() {
                continue;
            }
            compared += 1;
            match (render(&template, case), want) {
                (_, Value::String(_)) | (Err(_), Value::Null) => {}
                (Ok(text), Value::Array(want)) if want[0] == text.len() && want[1] == digest(&text) => {}
                (Ok(text), Value::Array(want)) => {
                    differ.push(format!("{name}, {what}: {} bytes instead of {}: {text:?}", text.len(), want[0]));
                }
                (Ok(text), _) => differ.push(format!("{name}, {what}: rendered what the template refuses: {text:?}")),
                (Err(error), _) => differ.push(format!("{name}, {what}: {error}")),
            }
        }
    }
    if !missing.is_empty() {
        eprintln!("skipped: {} templates were not fetched: {}", missing.len(), missing.join(", "));
    }
    assert!(differ.is_empty(), "{} of {compared} renderings differ:\n{}", differ.len(), differ.join("\n"));
}

#[test]
fn hostile_templates_end_in_errors() {
    let tokenizer = tokenizer();
    let mut conversation = Map::new();
    conversation.insert("messages".into(), serde_json::json!([{ "role": "user", "content": "Hi" }]));
    let case = Value::Object(conversation);
    let cases = [
        // A panic of the interpreter.
        ("{{ [][::-1] }}", "broke down"),
        ("{{ ''[::-1] }}", "broke down"),
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "limit"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", ""),
        ("{% set x = 'abcdefghij' * 9000000 %}{{ x }}", "larger than"),
        ("{% set x = 'x' * 1000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}", "larger than"),
        ("{{ 'x' * 100000000000 }}", "too large"),
        ("{{ range(1000000000) | list | length }}", ""),
        ("{{ raise_exception('no\u{1b}[2J') }}", "no"),
        ("{{ messages | tojson(indent=1000000) | length }}{{ nothing.at.all }}", ""),
        ("{% include 'chat' %}", ""),
        ("{{ 1 // 0 }}", ""),
        ("{{ (9223372036854775807 * 9223372036854775807) ** 9 }}", ""),
        ("{% if", "does not parse"),
    ];
    for (source, word) in cases {
        let error = ChatTemplate::new(source, &tokenizer).map_err(|e| e.to_string()).and_then(|t| render(&t, &case)).unwrap_err();
        assert!(error.contains(word), "{source}: {error}");
    }
    // Parsers recurse: as deep as a source may be long, of every kind, with an end and without.
    for open in ["(", "[", "{% if x %}", "-", "not ", "x.", "x~", "x|f("] {
        let source = format!("{{{{ {} }}}}", open.repeat((63 << 10) / open.len()));
        let _ = ChatTemplate::new(&source, &tokenizer).and_then(|t| t.render(&[], RenderOptions::default()));
    }
    let long = "x".repeat(200 << 10);
    assert!(ChatTemplate::new(&long, &tokenizer).unwrap_err().to_string().contains("larger than"));
}

/// `chat_template.jinja` goes first, then `chat_template.json`, then the configuration, of whose list `default` is taken.
#[test]
fn folders_name_their_template_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let opened = || -> Option<String> {
        let template = ChatTemplate::from_folder(folder.path(), &tokenizer()).unwrap();
        template.map(|template| template.source().to_owned())
    };
    assert_eq!(opened(), None);
    write("tokenizer_config.json", r#"{"chat_template": null}"#);
    assert_eq!(opened(), None);
    write("tokenizer_config.json", r#"{"chat_template": "one"}"#);
    assert_eq!(opened().unwrap(), "one");
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]}"#;
    write("tokenizer_config.json", list);
    assert_eq!(opened().unwrap(), "plain");
    write("tokenizer_config.json", &list.replace("default", "rag"));
    assert_eq!(opened().unwrap(), "tools");
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(opened().unwrap(), "json");
    write("chat_template.jinja", "{{ messages[0]['content'] }}\n");
    assert_eq!(opened().unwrap(), "{{ messages[0]['content'] }}\n");
    let path: PathBuf = folder.path().join("chat_template.jinja");
    std::fs::write(path, "x".repeat(2 << 20)).unwrap();
    assert!(ChatTemplate::from_folder(folder.path(), &tokenizer()).unwrap_err().to_string().contains("larger than"));
}
