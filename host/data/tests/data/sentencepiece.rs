//! `tokenizer.model` files: tiny models with every setting that matters, and ids of the library that trained them
//! (`../golden/make_sentencepiece.py`).

use serde_json::{Value, json};
use swift_data::Tokenizer;

const TEXTS: &str = include_str!("../golden/texts.json");
const GOLDEN: &str = include_str!("../golden/sentencepiece.json");

fn golden() -> Value {
    serde_json::from_str(GOLDEN).unwrap()
}

fn model(case: &Value) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |char: u8| alphabet.iter().position(|&other| other == char).unwrap() as u32;
    let text: Vec<u8> = case["model"].as_str().unwrap().bytes().filter(|&char| char != b'=').collect();
    let mut out = Vec::new();
    for group in text.chunks(4) {
        let bits = group.iter().fold(0, |bits, &char| bits << 6 | digit(char)) << (6 * (4 - group.len()));
        out.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    out
}

#[test]
fn ids_are_those_of_the_library() {
    let texts: Value = serde_json::from_str(TEXTS).unwrap();
    let mut wrong = Vec::new();
    for (name, case) in golden().as_object().unwrap() {
        let tokenizer = Tokenizer::from_sentencepiece(&model(case), &Value::Null).unwrap();
        assert_eq!(tokenizer.vocab_size() as u64, case["vocab"].as_u64().unwrap());
        for (text, expected) in texts["plain"].as_array().unwrap().iter().zip(case["ids"].as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let ids = tokenizer.encode(text, false).unwrap();
            if json!(ids) != *expected {
                wrong.push(format!("{name} {text:?}: {ids:?}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn folders_with_only_a_model_open() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::write(root.join("tokenizer.model"), model(&golden()["bpe-llama"])).unwrap();
    let plain = Tokenizer::from_folder(root).unwrap();
    let size = plain.vocab_size() as u32;
    assert_eq!((plain.bos_id(), plain.eos_id(), plain.pad_id(), plain.unknown_id()), (Some(1), Some(2), Some(3), Some(0)));
    let ids = plain.encode("hello", false).unwrap();
    assert_eq!(plain.encode("hello", true).unwrap(), [&[1][..], &ids].concat());
    let text = "the  cat\n\n <s> ü世🙂 ";
    assert_eq!(plain.decode(&plain.encode(text, false).unwrap(), false).unwrap(), text);
    assert!(plain.encode(text, false).unwrap().contains(&1));

    let config = json!({
        "add_bos_token": false, "add_eos_token": true, "legacy": true, "eos_token": "<end>",
        "added_tokens_decoder": {size.to_string(): {"content": "<end>", "special": true, "lstrip": false, "rstrip": true}},
    });
    std::fs::write(root.join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = Tokenizer::from_folder(root).unwrap();
    assert_eq!(tokenizer.eos_id(), Some(size));
    assert_eq!(tokenizer.stop_ids(), [size]);
    // The space after `<end>` is swallowed; then, as in legacy models, comes the mark that begins a text.
    let expected = [&ids[..], &[size], &ids].concat();
    assert_eq!(tokenizer.encode("hello<end> hello", false).unwrap(), expected);
    assert_eq!(tokenizer.encode("hello", true).unwrap(), [&ids[..], &[size]].concat());
    assert!(tokenizer.is_special(size) && !tokenizer.is_special(ids[0]));

    // Written as `tokenizer.json`, it cuts ordinary text the same.
    std::fs::write(root.join("tokenizer.json"), tokenizer.to_json().unwrap()).unwrap();
    let written = Tokenizer::from_folder(root).unwrap();
    for text in ["hello world", "the quick brown fox  jumps", "ü世🙂"] {
        assert_eq!(written.encode(text, false).unwrap(), tokenizer.encode(text, false).unwrap(), "{text}");
    }
    let unigram = Tokenizer::from_sentencepiece(&model(&golden()["unigram"]), &Value::Null).unwrap();
    let written = Tokenizer::from_json(unigram.to_json().unwrap().as_bytes()).unwrap();
    for text in ["hello world", "the quick brown fox  jumps"] {
        assert_eq!(written.encode(text, false).unwrap(), unigram.encode(text, false).unwrap(), "{text}");
    }
}

#[test]
fn damaged_models_never_panic() {
    let texts: Value = serde_json::from_str(TEXTS).unwrap();
    let text: String = texts["plain"].as_array().unwrap().iter().filter_map(Value::as_str).take(40).collect();
    for name in ["unigram", "bpe-user"] {
        let whole = model(&golden()[name]);
        // Every part of the file, but not every byte: the normalizer's trie lies at the end.
        for at in (0..whole.len()).step_by(13) {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                if let Ok(tokenizer) = Tokenizer::from_sentencepiece(&bytes, &Value::Null) {
                    let ids = tokenizer.encode(&text, true).unwrap();
                    tokenizer.decode(&ids, false).unwrap();
                }
            }
            let _ = Tokenizer::from_sentencepiece(&whole[..at], &Value::Null);
        }
    }
}
