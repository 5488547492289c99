//! Labels of conversations, against chat templates of several kinds.

use serde_json::{Map, Value, json};
use swift_data::{
    CHATML, ChatTemplate, Encoded, Encoder, IGNORE, LossScale, Sampler, SamplerOptions, Tokenizer, Truncation, Turn, collate,
    truncate,
};

use crate::{asset, smollm2};

fn tokenizer() -> Tokenizer {
    let texts = ["Hello there, hello there. How are you? I am fine, thank you.\n\n\n\n"];
    Tokenizer::train_bpe(texts, 300, &["<|endoftext|>", "<|im_start|>", "<|im_end|>"], swift_data::PreTokenizer::Gpt2)
        .unwrap()
        .with_special_tokens(Some("<|im_start|>"), Some("<|im_end|>"), None)
        .unwrap()
}

fn turns() -> Vec<Turn> {
    vec![
        Turn::new("system", "Be kind."),
        Turn::new("user", "Yes"),
        Turn::new("assistant", "Yes"),
        Turn::new("user", "How are you?"),
        Turn::new("assistant", "I am fine, thank you."),
    ]
}

/// Text of the trained tokens, with `|` between runs.
fn trained(tokenizer: &Tokenizer, sample: &Encoded) -> String {
    let mut runs: Vec<Vec<u32>> = vec![];
    let mut open = false;
    for (&id, &label) in sample.ids.iter().zip(&sample.labels) {
        assert!(label == IGNORE || label == id);
        if label != IGNORE {
            if !open {
                runs.push(vec![]);
            }
            runs.last_mut().unwrap().push(id as u32);
        }
        open = label != IGNORE;
    }
    runs.iter().map(|ids| tokenizer.decode(ids, false).unwrap()).collect::<Vec<_>>().join("|")
}

fn text(tokenizer: &Tokenizer, sample: &Encoded) -> String {
    let ids: Vec<u32> = sample.ids.iter().map(|&id| id as u32).collect();
    tokenizer.decode(&ids, false).unwrap()
}

#[test]
fn answers_and_their_end_of_turn_are_trained_on() {
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(CHATML, &tokenizer).unwrap();
    let mut encoder = Encoder::new(&tokenizer, Some(&template));
    let sample = encoder.encode(&turns(), None).unwrap();
    assert_eq!(trained(&tokenizer, &sample), "Yes<|im_end|>|I am fine, thank you.<|im_end|>");
    assert!(text(&tokenizer, &sample).ends_with("you.<|im_end|>"));
    assert_eq!(sample.weights, None);

    encoder.loss_scale = LossScale::LastRound;
    let last = encoder.encode(&turns(), None).unwrap();
    assert_eq!(trained(&tokenizer, &last), "I am fine, thank you.<|im_end|>");
    assert_eq!(last.ids, sample.ids);
    encoder.loss_scale = LossScale::All;
    let all = encoder.encode(&turns(), None).unwrap();
    assert_eq!(all.labels, all.ids);
    let answer = encoder.encode_answer(&turns()[..4], &turns()[4..], None).unwrap();
    assert_eq!(answer, last);

    let prompt = encoder.encode_prompt(&turns()[..4], None).unwrap();
    let prompt: Vec<i32> = prompt.into_iter().map(|id| id as i32).collect();
    assert!(tokenizer.decode(&[prompt[prompt.len() - 1] as u32], false).unwrap().ends_with('\n'));
    assert_eq!(sample.ids[..prompt.len() - 1], prompt[..prompt.len() - 1]);
}

#[test]
fn turns_can_be_left_out_or_weighted() {
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(CHATML, &tokenizer).unwrap();
    let encoder = Encoder::new(&tokenizer, Some(&template));
    let mut turns = turns();
    turns[2].train = false;
    turns[4].weight = 0.5;
    let sample = encoder.encode(&turns, None).unwrap();
    assert_eq!(trained(&tokenizer, &sample), "I am fine, thank you.<|im_end|>");
    let weights = sample.weights.as_ref().unwrap();
    assert!(weights.iter().zip(&sample.labels).all(|(&w, &l)| w == if l == IGNORE { 0.0 } else { 0.5 }));
    assert!(collate([&sample]).weights.contains(&0.5));
    turns[4].weight = f32::NAN;
    assert!(encoder.encode(&turns, None).is_err());
    assert!(encoder.encode(&[], None).is_err());
}

#[test]
fn a_token_that_merges_prompt_and_answer_is_not_trained_on() {
    let tokenizer = tokenizer();
    // The prompt ends in a line break and the answer begins with one: the two are one token of this vocabulary.
    assert_eq!(tokenizer.encode("\n\n", false).unwrap().len(), 1);
    let template = ChatTemplate::new(CHATML, &tokenizer).unwrap();
    let turns = [Turn::new("user", "you?"), Turn::new("assistant", "\n\nfine")];
    let sample = Encoder::new(&tokenizer, Some(&template)).encode(&turns, None).unwrap();
    assert_eq!(trained(&tokenizer, &sample), "\nfine<|im_end|>");
}

#[test]
fn templates_that_rewrite_history_fall_back_to_the_text() {
    let tokenizer = tokenizer();
    // Reasoning is dropped from all but the last turn, as Qwen 3 and DeepSeek R1 do; empty conversations are refused.
    let source = "{{ messages[0]['role'] and '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let template = ChatTemplate::new(source, &tokenizer).unwrap();
    let encoder = Encoder::new(&tokenizer, Some(&template));
    let sample = encoder.encode(&turns(), None).unwrap();
    let expected = "Yes<|im_end|>|<think>\n\n</think>\nI am fine, thank you.<|im_end|>";
    assert_eq!(trained(&tokenizer, &sample), expected);

    let lost =
        ChatTemplate::new("{% for m in messages %}{{ m.content | upper }}{{ loop.length }}{% endfor %}", &tokenizer).unwrap();
    let error = Encoder::new(&tokenizer, Some(&lost)).encode(&turns(), None).unwrap_err().to_string();
    assert!(error.contains("rewrites the turn"), "{error}");
}

#[test]
fn tool_calls_are_the_assistants() {
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(CHATML, &tokenizer).unwrap();
    let encoder = Encoder::new(&tokenizer, Some(&template));
    let mut turns = vec![
        Turn::new("user", "How?"),
        Turn::new("tool_call", r#"{"name": "a", "arguments": {}}"#),
        Turn::new("tool_call", r#"{"name": "b", "arguments": {}}"#),
        Turn::new("tool_response", "42"),
        Turn::new("assistant", "fine"),
    ];
    let sample = encoder.encode(&turns, None).unwrap();
    let call = |name: &str| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{}}}}\n</tool_call>");
    let expected = format!("{}\n{}<|im_end|>|fine<|im_end|>", call("a"), call("b"));
    assert_eq!(trained(&tokenizer, &sample), expected);

    let structured = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let template = ChatTemplate::new(structured, &tokenizer).unwrap();
    let sample = Encoder::new(&tokenizer, Some(&template)).encode(&turns, None).unwrap();
    let expected = r#"{"name": "a", "arguments": {}}{"name": "b", "arguments": {}}<|im_end|>|fine<|im_end|>"#;
    assert_eq!(trained(&tokenizer, &sample), expected);
    turns[1].text = "{".into();
    assert!(encoder.encode(&turns, None).unwrap_err().to_string().contains("tool_call"));
}

#[test]
fn plain_text_is_trained_on_whole() {
    let tokenizer = tokenizer();
    let encoder = Encoder::new(&tokenizer, None);
    let sample = encoder.encode_text("Hello there").unwrap();
    assert_eq!(trained(&tokenizer, &sample), "Hello there<|im_end|>");
    let turns = [Turn::new("user", "Hello"), Turn::new("assistant", " there")];
    let sample = encoder.encode(&turns, None).unwrap();
    assert_eq!(text(&tokenizer, &sample), "Hello there<|im_end|>");
    assert!(trained(&tokenizer, &sample).ends_with("there<|im_end|>"));
}

#[test]
fn long_samples_are_cut_as_asked() {
    let ids: Vec<i32> = (0..10).collect();
    let sample = || Encoded { ids: ids.clone(), labels: ids.clone(), weights: None };
    assert_eq!(truncate(sample(), 10, Truncation::Delete), [sample()]);
    assert!(truncate(sample(), 9, Truncation::Delete).is_empty());
    let left = &truncate(sample(), 3, Truncation::Left)[0];
    assert_eq!((&left.ids[..], &left.labels[..]), (&[7, 8, 9][..], &[IGNORE, 8, 9][..]));
    assert_eq!(truncate(sample(), 3, Truncation::Right)[0].ids, [0, 1, 2]);
    let parts = truncate(sample(), 4, Truncation::Split);
    assert_eq!(parts.iter().map(Encoded::len).collect::<Vec<_>>(), [4, 4, 2]);
    assert!(truncate(sample(), 0, Truncation::Split).is_empty());
}

#[test]
fn smollm2_renders_and_labels_real_conversations() {
    let Some(model) = smollm2() else { return };
    let tokenizer = Tokenizer::open(&model).unwrap();
    let template = ChatTemplate::open(&model, &tokenizer).unwrap().unwrap();
    let encoder = Encoder::new(&tokenizer, Some(&template));
    let turns = [Turn::new("user", "What is 2+2?"), Turn::new("assistant", "4"), Turn::new("user", "Sure?")];
    let sample = encoder.encode(&turns[..2], None).unwrap();
    let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>";
    assert_eq!(text(&tokenizer, &sample), expected);
    assert_eq!(trained(&tokenizer, &sample), "4<|im_end|>");

    let Some(path) = asset("llamafactory-data/alpaca_en_demo.json") else { return };
    let rows = swift_data::Rows::open(&path).unwrap();
    let mut samples = Vec::new();
    for row in rows.take(200) {
        let row = row.unwrap().value();
        let part = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let turns = [Turn::new("user", part("instruction") + &part("input")), Turn::new("assistant", part("output"))];
        let sample = encoder.encode(&turns, None).unwrap();
        // Some answers of this set begin or end with whitespace, which the template keeps.
        assert_eq!(trained(&tokenizer, &sample), part("output") + "<|im_end|>");
        samples.push(sample);
    }
    let lengths = samples.iter().map(Encoded::len).collect();
    let grouping = swift_data::Grouping::Bins { length: 2048, batch: 1, window: 100 };
    let options = SamplerOptions { grouping, seed: 1, shuffle: true, drop_last: false };
    let batch = Sampler::new(lengths, options).unwrap().next_batch();
    let packed = collate(batch.samples.iter().map(|&sample| &samples[sample]));
    assert!(packed.tokens() <= 2048 && packed.sequences == batch.samples.len() && packed.sequences > 1);
}

#[test]
fn every_demo_file_is_read() {
    let Some(folder) = asset("llamafactory-data") else { return };
    for (name, count) in [
        ("alpaca_en_demo.json", 999),
        ("alpaca_zh_demo.json", 1000),
        ("identity.json", 91),
        ("dpo_en_demo.json", 300),
        ("kto_en_demo.json", 300),
        ("glaive_toolcall_zh_demo.json", 300),
        ("reason_tool_use_demo_50.jsonl", 50),
        ("v1_sft_demo.jsonl", 500),
        ("c4_demo.jsonl", 300),
    ] {
        let rows: Vec<_> = swift_data::Rows::open(&folder.join(name)).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(rows.len(), count, "{name}");
    }
    assert!(swift_data::Rows::open(&folder.join("wiki_demo.txt")).unwrap().all(|row| row.is_ok()));
}

#[test]
fn variables_reach_the_template() {
    let tokenizer = tokenizer();
    let source = "{{ 'on' if enable_thinking else 'off' }} {{ 'none' if tools is none else tools | length }}";
    let template = ChatTemplate::new(source, &tokenizer).unwrap();
    let mut variables = Map::new();
    variables.insert("enable_thinking".into(), Value::Bool(true));
    let mut encoder = Encoder::new(&tokenizer, Some(&template));
    let prompt = |encoder: &Encoder<'_>, tools: Option<&Value>| {
        tokenizer.decode(&encoder.encode_prompt(&[Turn::new("user", "x")], tools).unwrap(), false).unwrap()
    };
    assert_eq!(prompt(&encoder, None), "off none");
    encoder.variables = Some(&variables);
    assert_eq!(prompt(&encoder, Some(&json!([{}, {}]))), "on 2");
}

/// Published templates (`templates` beside the vocabularies of `vocabularies_match_llama_cpp`): all render and label a plain conversation.
#[test]
fn published_templates_render() {
    let Some(folder) = asset("vocab/templates") else { return };
    let tokenizer = tokenizer();
    let turns = [Turn::new("user", "How are you?"), Turn::new("assistant", "I am fine, thank you.")];
    let (mut count, mut trouble) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = std::fs::read_to_string(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        count += 1;
        if name.contains("firefunction") {
            continue; // It wants variables `functions` and `datetime` that no one else passes.
        }
        let template = match ChatTemplate::new(&source, &tokenizer) {
            Ok(template) => template,
            Err(error) => {
                trouble.push(format!("{name}: {error}"));
                continue;
            }
        };
        match Encoder::new(&tokenizer, Some(&template)).encode(&turns, None) {
            Err(error) => trouble.push(format!("{name}: {error}")),
            Ok(sample) => {
                let trained = trained(&tokenizer, &sample);
                if !trained.contains("fine, thank you.") || trained.contains("How") {
                    trouble.push(format!("{name}: {trained:?}"));
                }
            }
        }
    }
    assert!(count > 60);
    assert!(trouble.is_empty(), "{} of {count}:\n{}", trouble.len(), trouble.join("\n"));
}
