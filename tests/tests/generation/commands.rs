//! `infer --val_dataset`, `perplexity`, `embed` and `bench`.

use serde_json::Value;
use swift_tests::{rows, swift_host};

#[test]
fn datasets_are_answered_into_a_file_of_ms_swifts_shape() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 5);
    let text = std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
    let extra = text.replacen("{\"messages\"", "{\"solution\":\"7\",\"messages\"", 1);
    std::fs::write(dir.path().join("rows.jsonl"), &extra).unwrap();
    let line =
        "infer --model swift-tiny --val_dataset rows.jsonl --max_new_tokens 6 --max_batch_size 3 --result_path out/answers.jsonl";
    let ran = swift_host(dir.path(), &format!("{line} --logprobs --top_logprobs 2")).ok();
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("5 answers"), "{}", ran.stderr);
    let written = std::fs::read_to_string(dir.path().join("out/answers.jsonl")).unwrap();
    let answers: Vec<Value> = written.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let asked: Vec<Value> = extra.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), asked.len());
    for (answer, asked) in answers.iter().zip(&asked) {
        assert_eq!(answer["labels"], asked["messages"][1]["content"]);
        assert_eq!(answer["messages"][0], asked["messages"][0]);
        assert_eq!(answer["messages"][1]["role"], "assistant");
        assert_eq!(answer["messages"][1]["content"], answer["response"]);
        for token in answer["logprobs"]["content"].as_array().unwrap() {
            assert!(token["logprob"].as_f64().unwrap() <= 0.0);
            let top = token["top_logprobs"].as_array().unwrap();
            assert_eq!(top.len(), 2);
            assert_eq!(top[0]["token"], token["token"], "greedy takes the likeliest");
        }
    }
    assert_eq!(answers[0]["solution"], "7");
    swift_host(dir.path(), &format!("{line} --stream")).refused(&["--stream", "max_batch_size"]);
}

#[test]
fn flags_of_generation_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &[&str]); 8] = [
        ("infer --model swift-tiny --prompt hi --top_p 0.5", &["--top_p", "no effect", "--temperature"]),
        ("infer --model swift-tiny --prompt hi --temperature 1 --top_p 1.5", &["top_p", "1.5"]),
        ("infer --model swift-tiny --prompt hi --max_length 100000", &["--max_length"]),
        ("infer --model swift-tiny --prompt hi --result_path x.jsonl", &["--val_dataset"]),
        ("infer --model swift-tiny --val_dataset nowhere.jsonl", &["nowhere.jsonl"]),
        ("perplexity --model swift-tiny --dataset nowhere.txt", &["nowhere.txt"]),
        ("embed --model swift-tiny --text hi --pooling middle", &["middle", "mean"]),
        ("bench decode --model swift-tiny --new 1", &["--new"]),
    ];
    for (line, words) in cases {
        swift_host(dir.path(), line).refused(words);
    }
}

#[test]
fn perplexity_does_not_depend_on_how_the_context_slides_over_a_short_text() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("text.txt"), "Once upon a time there was a number, and its name was seven.\n".repeat(6))
        .unwrap();
    let of = |flags: &str| -> Value {
        let line = format!("perplexity --model swift-tiny --dataset text.txt --json {flags}");
        serde_json::from_str(&swift_host(dir.path(), &line).ok().stdout).unwrap()
    };
    let whole = of("");
    let (tokens, nll) = (whole["tokens"].as_u64().unwrap(), whole["nll"].as_f64().unwrap());
    assert!((whole["perplexity"].as_f64().unwrap().ln() - nll).abs() < 1e-9);
    let slid = of("--max_length 64 --stride 1");
    assert_eq!(slid["tokens"], tokens);
    assert!((slid["nll"].as_f64().unwrap() - nll).abs() < 0.5 * nll, "{slid} {whole}");
    assert_eq!(of("--max_tokens 10")["tokens"], 10);
}

#[test]
fn vectors_have_length_one_and_know_their_text() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("texts.txt"), "one apple\ntwo pears\n\n").unwrap();
    let line = "embed --model swift-tiny --file texts.txt --pooling mean";
    let lines: Vec<Value> = swift_host(dir.path(), line).ok().stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.iter().map(|l| l["text"].as_str().unwrap()).collect::<Vec<_>>(), ["one apple", "two pears"]);
    for line in &lines {
        let length: f64 = line["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap().powi(2)).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
}

#[test]
fn benchmarks_report_what_they_promise() {
    let dir = tempfile::tempdir().unwrap();
    for what in ["prefill", "decode"] {
        let line = format!("bench {what} --model swift-tiny --prompt 16 --new 8 --repeat 1 --sequences 2 --json");
        let report: Value = serde_json::from_str(&swift_host(dir.path(), &line).ok().stdout).unwrap();
        assert!(report["prefill_tok_s"].as_f64().unwrap() > 0.0, "{report}");
        assert_eq!(report.get("decode_tok_s").is_some(), what == "decode", "{report}");
        for key in ["time_to_first_token_s", "ceiling_gbytes_s", "ceiling_gflops", "gbytes_s"] {
            assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
        }
    }
}
