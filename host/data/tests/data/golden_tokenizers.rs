//! Ids of the reference libraries on strings that go wrong elsewhere; `../golden/make_tokenizers.py` made them.

use serde_json::Value;
use swift_data::{PreTokenizer, Tokenizer};
use swift_formats::{Gguf, gguf};

use crate::asset;

const TEXTS: &str = include_str!("../golden/texts.json");
const GOLDEN: &str = include_str!("../golden/tokenizers.json");

/// Compares a tokenizer with the golden ids `name`; returns what differs.
fn differences(tokenizer: &Tokenizer, name: &str, skip: fn(&str) -> bool) -> Vec<String> {
    let texts: Value = serde_json::from_str(TEXTS).unwrap();
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let mut wrong = Vec::new();
    for (group, expected) in golden[name].as_object().unwrap_or_else(|| panic!("no golden ids `{name}`")) {
        for (text, expected) in texts[group].as_array().unwrap().iter().zip(expected.as_array().unwrap()) {
            let text = text.as_str().unwrap();
            if skip(text) {
                continue;
            }
            let expected: Vec<u32> = expected.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let ids = tokenizer.encode_spans(text).unwrap();
            if ids.ids != expected {
                wrong.push(format!("{text:?}: {:?}, not {expected:?}", ids.ids));
            }
            let mut before = 0;
            for &(start, end) in &ids.spans {
                assert!(before <= start && start <= end && end <= text.len(), "{name} {text:?}: {:?}", ids.spans);
                assert!(text.is_char_boundary(start) && text.is_char_boundary(end), "{name} {text:?}: {:?}", ids.spans);
                before = start;
            }
        }
    }
    wrong
}

fn check(results: Vec<(String, Vec<String>)>) {
    let wrong: Vec<String> = results
        .into_iter()
        .filter(|(_, wrong)| !wrong.is_empty())
        .map(|(name, wrong)| format!("{name}: {} differ\n  {}", wrong.len(), wrong.join("\n  ")))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tokenizer_json_files_match_transformers() {
    let mut results = Vec::new();
    for name in [
        "tokenizers/qwen3",
        "tokenizers/llama3",
        "tokenizers/llama2",
        "tokenizers/gemma3",
        "tokenizers/deepseek_v3",
        "tokenizers/gptoss",
        "all-MiniLM-L6-v2",
    ] {
        let Some(folder) = asset(name) else { continue };
        let tokenizer = Tokenizer::from_folder(&folder).unwrap();
        results.push((name.to_owned(), differences(&tokenizer, &format!("hf:{name}"), |_| false)));
    }
    check(results);
}

#[test]
fn sentencepiece_models_match_the_library() {
    let mut results = Vec::new();
    for name in [
        "tokenizer.model.v1",
        "mistral_instruct_tokenizer_240216.model.v2",
        "mistral_instruct_tokenizer_240323.model.v3",
        "mistral_instruct_tokenizer_241114.model.v7",
    ] {
        let Some(file) = asset(&format!("spm/{name}")) else { continue };
        let tokenizer = Tokenizer::from_sentencepiece(&std::fs::read(file).unwrap(), &Value::Null).unwrap();
        results.push((name.to_owned(), differences(&tokenizer, &format!("sp:spm/{name}"), |_| false)));
    }
    check(results);
}

#[test]
fn gguf_vocabularies_match_the_libraries() {
    let mut results = Vec::new();
    let vocab = |name: &str| format!("vocab/ggml-vocab-{name}.gguf");
    let spm = [vocab("llama-spm"), vocab("phi-3"), vocab("baichuan"), vocab("nomic-bert-moe")];
    let bpe = [
        "SmolLM2-135M-Instruct.Q4_1.gguf".into(),
        "qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf".into(),
        vocab("gpt-2"),
        vocab("gpt-neox"),
        vocab("starcoder"),
        vocab("refact"),
        vocab("command-r"),
        vocab("mpt"),
        vocab("llama-bpe"),
        vocab("qwen2"),
        vocab("qwen35"),
        vocab("deepseek-coder"),
    ];
    let names = spm.iter().map(|name| ("spm", name)).chain(bpe.iter().map(|name| ("bpe", name)));
    for (kind, name) in names {
        let Some(path) = asset(name) else { continue };
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        results.push((name.clone(), differences(&tokenizer, &format!("{kind}:{name}"), |_| false)));
    }
    // One vocabulary in two formats: these GGUF files hold what the `tokenizer.json` files hold.
    for (file, golden) in [("gemma-3-270m.Q4_K_M.gguf", "hf:tokenizers/gemma3"), (&vocab("bert-bge"), "hf:all-MiniLM-L6-v2")] {
        let Some(path) = asset(file) else { continue };
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        // A mark of a space that stands in the text itself is one user-defined token in GGUF.
        results
            .push((format!("{file} and {golden}"), differences(&tokenizer, golden, |text| text == "\u{2581}\u{2581} \u{2581}")));
    }
    check(results);
}

/// A `tokenizer.json` written as GGUF and read behind the named pre-tokenizer gives the ids of the original.
#[test]
fn named_pre_tokenizers_are_those_of_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.gguf");
    let mut results = Vec::new();
    for (name, pre) in [
        ("qwen3", PreTokenizer::Qwen2),
        ("llama3", PreTokenizer::Llama3),
        ("deepseek_v3", PreTokenizer::DeepSeek3),
        ("gptoss", PreTokenizer::Gpt4o),
    ] {
        let Some(source) = asset(&format!("tokenizers/{name}")) else { continue };
        let metadata = Tokenizer::from_folder(&source).unwrap().gguf_metadata(pre, None).unwrap();
        gguf::write(&path, &metadata, &[]).unwrap();
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        results.push((name.to_owned(), differences(&tokenizer, &format!("hf:tokenizers/{name}"), |_| false)));
    }
    check(results);
}
