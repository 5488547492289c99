//! Ids, decoding, streaming, training and round trips of vocabularies.

use swift_data::{PreTokenizer, StreamDecoder, Tokenizer};
use swift_formats::{Gguf, gguf};

use crate::smollm2;

/// Ids that `transformers` gave (`make_golden.py` of the golden values of SmolLM2).
const GOLDEN: [(&str, &[u32]); 4] = [
    ("The capital of France is", &[504, 3575, 282, 4649, 314]),
    (
        "A tensor is an array of numbers with a shape; a gradient says how the loss moves when one of them moves.",
        &[
            49, 13104, 314, 354, 5079, 282, 2966, 351, 253, 3040, 43, 253, 14684, 1921, 638, 260, 2184, 7488, 645, 582, 282, 601,
            7488, 30,
        ],
    ),
    (
        "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
        &[1604, 803, 24, 81, 28, 278, 727, 472, 1003, 253, 1232, 278, 198, 198, 3272, 24, 2104, 24, 34, 28, 216, 35, 1292],
    ),
    (
        "今天天气很好，我们去公园散步吧。",
        &[
            15076, 228, 18614, 119, 18614, 119, 177, 125, 238, 29157, 226, 48392, 138, 12831, 19805, 235, 15076, 122, 44652, 136,
            17086, 122, 23022, 251, 15683, 113, 34978, 115, 16357, 117, 19076,
        ],
    ),
];

#[test]
fn smollm2_ids_match_transformers() {
    let Some(model) = smollm2() else { return };
    let tokenizer = Tokenizer::open(&model).unwrap();
    for (text, ids) in GOLDEN {
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text}");
        assert_eq!(tokenizer.decode(ids, false).unwrap(), text);
    }
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(1), Some(2), Some(2)));
    assert_eq!(tokenizer.stop_ids(), [2]);
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(504));
    let chat = "<|im_start|>user\nHi 123\n\n  you<|im_end|>\n";
    let ids = tokenizer.encode(chat, false).unwrap();
    assert_eq!((ids[0], ids.iter().filter(|&&id| id == 2).count()), (1, 1));
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), chat);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "user\nHi 123\n\n  you\n");
}

#[test]
fn spans_cover_the_text_and_streams_give_it_back() {
    let Some(model) = smollm2() else { return };
    let tokenizer = Tokenizer::open(&model).unwrap();
    let text = "  Grüße,\n\n\n世界! 🙂🙃 <|im_end|>\tx ";
    let encoding = tokenizer.encode_spans(text).unwrap();
    assert_eq!(encoding.ids, tokenizer.encode(text, false).unwrap());
    let mut end = 0;
    for &(from, to) in &encoding.spans {
        assert!(from <= end && from < to && to >= end, "{:?}", encoding.spans);
        end = to;
    }
    assert_eq!(end, text.len());
    let mut stream = StreamDecoder::new(false);
    let mut out = String::new();
    for &id in &encoding.ids {
        let piece = stream.push(&tokenizer, id).unwrap();
        assert!(!piece.contains('\u{fffd}'));
        out += &piece;
    }
    out += &stream.finish(&tokenizer).unwrap();
    assert_eq!(out, text);
}

#[test]
fn trained_vocabularies_survive_json_and_gguf() {
    let texts = ["the cat sat on the mat", "the dog sat on the log", "ünïcödé the the 1234"];
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let train = || Tokenizer::train_bpe(texts, 265, &specials, swift_data::PreTokenizer::Gpt2).unwrap();
    let tokenizer = train().with_special_tokens(Some("<|im_start|>"), Some("<|im_end|>"), None).unwrap();
    assert_eq!(tokenizer.to_json().unwrap(), train().to_json().unwrap());
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_id("<|im_end|>")), (265, Some(2)));
    let text = "the catalogue ü 🙂<|im_end|>";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);

    let json = Tokenizer::from_json(tokenizer.to_json().unwrap().as_bytes()).unwrap();
    assert_eq!(json.encode(text, false).unwrap(), ids);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.gguf");
    gguf::write(&path, &tokenizer.gguf_metadata(PreTokenizer::Gpt2, Some("{{ x }}")).unwrap(), &[]).unwrap();
    let read = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    assert_eq!(read.encode(text, true).unwrap(), ids);
    assert_eq!((read.bos_id(), read.eos_id(), read.vocab_size()), (Some(1), Some(2), 265));
}

#[test]
fn folders_name_special_tokens_in_their_configurations() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let refuse = |part: &str| {
        let error = Tokenizer::from_folder(root).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse("missing");
    std::fs::write(root.join("tokenizer.model"), "x").unwrap();
    refuse("tokenizer.model");
    std::fs::write(root.join("tokenizer.model"), "IQ== 0\nIg== 1\n").unwrap();
    refuse("tiktoken");
    std::fs::write(root.join("tokenizer.json"), r#"{"version": "1.0", "model": {"type": "BPE"}"#).unwrap();
    refuse("tokenizer.json");
    let tokenizer = Tokenizer::train_bpe(["abc abc"], 270, &["<s>", "</s>", "<end>"], swift_data::PreTokenizer::Gpt2).unwrap();
    std::fs::write(root.join("tokenizer.json"), tokenizer.to_json().unwrap()).unwrap();
    let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": null}"#;
    std::fs::write(root.join("tokenizer_config.json"), config).unwrap();
    std::fs::write(root.join("generation_config.json"), r#"{"eos_token_id": [1, 2, -1]}"#).unwrap();
    let read = Tokenizer::from_folder(root).unwrap();
    assert_eq!((read.bos_id(), read.eos_id(), read.pad_id()), (Some(0), Some(1), None));
    assert_eq!(read.stop_ids(), [1, 2]);
}

#[test]
fn hostile_vocabularies_are_refused() {
    use gguf::{Array, Value};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.gguf");
    let strings = |list: &[&str]| Value::Array(Array::String(list.iter().map(|text| text.to_string()).collect()));
    let base = || {
        vec![
            ("tokenizer.ggml.model".to_owned(), Value::from("gpt2")),
            ("tokenizer.ggml.tokens".to_owned(), strings(&["a", "b", "ab"])),
            ("tokenizer.ggml.merges".to_owned(), strings(&["a b"])),
        ]
    };
    let open = |metadata: &[(String, Value)]| {
        gguf::write(&path, metadata, &[]).unwrap();
        Tokenizer::from_gguf(&Gguf::open(&path).unwrap())
    };
    assert_eq!(open(&base()).unwrap().encode("ab", true).unwrap(), [2]);
    let cases: [(&str, Value, &str); 10] = [
        ("model", "rwkv".into(), "rwkv"),
        ("model", "bert".into(), "unknown token"),
        ("model", "llama".into(), "scores"),
        ("tokens", strings(&["a", "b", "a"]), "twice"),
        ("tokens", strings(&[]), "between"),
        ("tokens", Value::U8(1), "missing"),
        ("merges", strings(&["ab"]), "two tokens"),
        ("merges", strings(&["a z"]), "vocab"),
        ("pre", "superbpe".into(), "superbpe"),
        ("eos_token_id", Value::U32(3), "outside"),
    ];
    for (key, value, part) in cases {
        let mut metadata = base();
        let key = format!("tokenizer.ggml.{key}");
        metadata.retain(|(existing, _)| *existing != key);
        metadata.push((key.clone(), value));
        let error = open(&metadata).expect_err(&key).to_string();
        assert!(error.contains(part), "{key}: {error}");
    }
}

/// Golden tokenizations of llama.cpp, which lie as `.inp` and `.out` beside its vocabularies (`tests/assets/fetch-vocabularies`).
#[test]
fn vocabularies_match_llama_cpp() {
    let names = [
        "gpt-2",
        "llama-bpe",
        "qwen2",
        "qwen35",
        "llama-spm",
        "phi-3",
        "deepseek-llm",
        "deepseek-coder",
        "falcon",
        "mpt",
        "starcoder",
        "refact",
        "command-r",
        "bert-bge",
    ];
    for name in names {
        let Some(path) = crate::asset(&format!("vocab/ggml-vocab-{name}.gguf")) else { continue };
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let beside = |extension: &str| std::fs::read_to_string(format!("{}{extension}", path.display())).unwrap();
        let (inputs, outputs) = (beside(".inp"), beside(".out"));
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        assert!(inputs.len() > 40 && inputs.len() == outputs.lines().count() + 1, "{}", inputs.len());
        let mut wrong = Vec::new();
        for (input, output) in inputs.iter().zip(outputs.lines()) {
            let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let ids = tokenizer.encode(input, false).unwrap();
            // The model's own file brings text into NFC first; llama.cpp does not.
            if name == "qwen35" && input.contains(['\u{300}', '\u{301}']) {
                continue;
            }
            if name != "bert-bge" {
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), *input, "{name}");
            }
            if ids != expected {
                wrong.push(format!("{input:?}: {ids:?}, not {expected:?}"));
            }
        }
        assert!(wrong.is_empty(), "{name}: {} of {} differ\n{}", wrong.len(), inputs.len(), wrong.join("\n"));
    }
}
