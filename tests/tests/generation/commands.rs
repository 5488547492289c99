//! `infer --val_dataset`, `perplexity`, `embed` and `bench`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use swift_data::Scores;
use swift_formats::Checkpoint;
use swift_tests::{Ran, asset, command, golden, json as read_json, numbers, rows, swift_host};
use swift_train::text_of;

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
fn ctrl_c_keeps_the_answers_there_are() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 3000);
    let line =
        "infer --model swift-tiny --val_dataset rows.jsonl --max_new_tokens 64 --write_batch_size 4 --result_path answers.jsonl";
    let mut child = command(dir.path(), line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let answers = || std::fs::read_to_string(dir.path().join("answers.jsonl")).unwrap_or_default();
    while answers().lines().count() < 4 {
        assert!(child.try_wait().unwrap().is_none(), "the program ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    let (answers, said) = (answers(), &ran.stderr);
    assert!(answers.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|row| row["response"].is_string())));
    let written = answers.lines().count();
    assert!(written >= 4 && said.contains(&format!("{written} answers in")), "{written}: {said}");
    assert!(said.contains(&format!("interrupted before the other {} rows", 3000 - written)), "{said}");
}

#[test]
fn flags_of_generation_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &[&str]); 22] = [
        // Numbers out of range are that, and no flags.
        ("infer --model swift-tiny --prompt hi --temperature -1", &["`temperature` is -1", "at least 0"]),
        ("infer --model swift-tiny --prompt hi --temperature 1 --min_p -0.1", &["`min_p` is -0.1"]),
        ("infer --model swift-tiny --prompt hi --repetition_penalty -2", &["`repetition_penalty` is -2"]),
        ("infer --model swift-tiny --prompt hi --max_new_tokens -4", &["--max_new_tokens", "-4"]),
        // Flags of ms-swift that cannot be had.
        ("infer --model swift-tiny --infer_backend vllm", &["--infer_backend", "engine of its own"]),
        ("infer --model swift-tiny --vllm_gpu_memory_utilization 0.9", &["--vllm_gpu_memory_utilization", "--max_batch_size"]),
        ("infer --model swift-tiny --attn_impl flash_attn", &["--attn_impl", "one implementation"]),
        ("infer --model swift-tiny --num_beams 4", &["--num_beams", "beam search"]),
        ("infer --model swift-tiny --reranker_use_activation true", &["rerankers"]),
        ("infer --model swift-tiny --load_args true", &["args.json"]),
        // Flags without effect or with a value that is not known.
        ("infer --model swift-tiny --prompt hi --merge_lora true", &["--merge_lora", "--adapters"]),
        ("infer --model swift-tiny --load_data_args true", &["--load_data_args", "--adapters"]),
        ("infer --model swift-tiny --prompt hi --template qwen2_5", &["--template", "chatml"]),
        ("infer --model swift-tiny --prompt hi --truncation_strategy middle", &["middle", "left"]),
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

/// Answers of a dataset, line by line.
fn answers(dir: &Path, flags: &str) -> (Vec<Value>, swift_tests::Ran) {
    let ran = swift_host(dir, &format!("infer --max_new_tokens 4 --result_path answers.jsonl {flags}")).ok();
    let text = std::fs::read_to_string(dir.join("answers.jsonl")).unwrap();
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), ran)
}

#[test]
fn long_prompts_are_cut_or_left_out_as_said() {
    let dir = tempfile::tempdir().unwrap();
    let long = "number ".repeat(60);
    let row = |text: &str| format!("{}\n", serde_json::json!({ "query": text, "response": "7" }));
    std::fs::write(dir.path().join("rows.jsonl"), row("one") + &row(&long) + &row("two")).unwrap();
    let line = "--model swift-tiny --val_dataset rows.jsonl --max_length 48";
    let refused = swift_host(dir.path(), &format!("infer {line} --result_path answers.jsonl"));
    refused.refused(&["row 2", "the context holds 48", "--truncation_strategy"]);
    let (left, _) = answers(dir.path(), &format!("{line} --truncation_strategy left"));
    assert_eq!(left.len(), 3);
    assert_eq!(left[1]["messages"][0]["content"].as_str().unwrap(), long);
    let (kept, ran) = answers(dir.path(), &format!("{line} --truncation_strategy delete --metric acc"));
    assert_eq!(kept.iter().map(|a| a["messages"][0]["content"].as_str().unwrap()).collect::<Vec<_>>(), ["one", "two"]);
    assert!(ran.stderr.contains("1 rows were left out"), "{}", ran.stderr);
    let share: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(share["rows"], 2);
    let right = kept.iter().filter(|a| a["response"].as_str().unwrap().trim() == "7").count();
    assert_eq!(share["acc"].as_f64().unwrap(), right as f64 / 2.0);
}

#[test]
fn the_run_of_an_adapter_or_a_full_model_is_taken_up() {
    for (tuner, flag) in [("lora", "--adapters"), ("full", "--model")] {
        let dir = tempfile::tempdir().unwrap();
        rows(dir.path(), 10);
        let sft = format!(
            "sft --model swift-tiny --dataset rows.jsonl --split_dataset_ratio 0.3 --max_steps 2 --learning_rate 1e-2 \
             --gradient_accumulation_steps 1 --output_dir out --system Count. --tuner_type {tuner}"
        );
        let trained = format!("{flag} {}/checkpoint-2", swift_host(dir.path(), &sft).ok().stdout.trim_end());
        // The rows that it held out, in order.
        let (held, _) = answers(dir.path(), &format!("{trained} --load_data_args true"));
        let asked: Vec<Value> = std::fs::read_to_string(dir.path().join("rows.jsonl"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["messages"][0].clone())
            .collect();
        assert_eq!(held.len(), 3);
        let mut places = held.iter().map(|a| asked.iter().position(|m| *m == a["messages"][0]).expect("a row of the dataset"));
        assert!(places.clone().is_sorted() && places.all(|at| at < 10));
        // Its system prompt is the default, and another wins: so say the log-probabilities.
        std::fs::write(dir.path().join("one.jsonl"), "{\"query\":\"Hello\"}\n").unwrap();
        let line = format!("--val_dataset one.jsonl --logprobs --precision exact {trained}");
        let ask = |flags: &str| answers(dir.path(), &format!("{line} {flags}")).0.remove(0);
        let answer = ask("");
        assert_eq!(ask("--system Count.")["logprobs"], answer["logprobs"], "{tuner}");
        assert_ne!(ask("--system Other.")["logprobs"], answer["logprobs"], "{tuner}");
        if tuner == "lora" {
            // Merged, it answers alike.
            assert_eq!(ask("--merge_lora true")["response"], answer["response"]);
        }
    }
}

#[test]
fn preferences_are_answered_and_judged_by_the_chosen_answer() {
    let dir = tempfile::tempdir().unwrap();
    let sft = "sft --model swift-tiny --dataset synthetic#20 --split_dataset_ratio 0.2 --loss_type dpo --max_steps 1 \
               --gradient_accumulation_steps 1 --output_dir out";
    let adapter = format!("{}/checkpoint-1", swift_host(dir.path(), sft).ok().stdout.trim_end());
    // The pairs that the run held out, not rows that the dataset makes for other losses.
    let (held, ran) = answers(dir.path(), &format!("--adapters {adapter} --load_data_args true --metric rouge"));
    assert_eq!(held.len(), 4);
    for answer in &held {
        let (chosen, rejected) = (answer["labels"].as_str().unwrap(), answer["rejected_response"].as_str().unwrap());
        assert!(!chosen.is_empty() && chosen != rejected, "{answer}");
        assert_eq!(answer["messages"].as_array().unwrap().last().unwrap()["content"], answer["response"]);
    }
    let scores: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(scores["rows"].as_u64().unwrap() <= 4, "{scores}");
}

#[test]
fn answers_are_scored_by_rouge_and_bleu() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 4);
    let line = "--model swift-tiny --val_dataset rows.jsonl --metric rouge";
    let (answers, ran) = answers(dir.path(), line);
    let scores: Value = serde_json::from_str(&ran.stdout).unwrap();
    let texts = answers.iter().map(|a| (a["response"].as_str().unwrap(), a["labels"].as_str().unwrap()));
    let each: Vec<Scores> = texts.filter_map(|(response, label)| Scores::of(response, label)).collect();
    let mean = Scores::mean(&each);
    assert_eq!(scores["rows"], each.len());
    for (name, want) in [("rouge-1", mean.rouge_1), ("rouge-2", mean.rouge_2), ("rouge-l", mean.rouge_l), ("bleu-4", mean.bleu_4)]
    {
        assert!((scores[name].as_f64().unwrap() - 100.0 * want).abs() < 1e-6, "{name}: {scores} {mean:?}");
    }
    swift_host(dir.path(), "infer --model swift-tiny --val_dataset rows.jsonl --metric bertscore")
        .refused(&["bertscore", "acc and rouge"]);
}

#[test]
fn what_the_authors_recommend_is_the_default() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 4);
    let sft = "sft --model swift-tiny --dataset rows.jsonl --tuner_type full --max_steps 1 --learning_rate 0 \
               --gradient_accumulation_steps 1 --output_dir out";
    let model = format!("{}/checkpoint-1", swift_host(dir.path(), sft).ok().stdout.trim_end());
    let recommend = |config: Value| {
        std::fs::write(dir.path().join(&model).join("generation_config.json"), config.to_string()).unwrap();
    };
    let run = |flags: &str| swift_host(dir.path(), &format!("infer --model {model} --max_new_tokens 24 --prompt Hello {flags}"));
    let ask = |flags: &str| run(flags).ok().stdout;
    let greedy = ask("");
    let hot = "--temperature 3 --top_k 30 --top_p 0.99 --repetition_penalty 1.2";
    let want = ask(hot);
    assert!(want != greedy, "{greedy:?}");
    let cuts = json!({ "temperature": 3.0, "top_k": 30, "top_p": 0.99, "repetition_penalty": 1.2 });
    let mut sampled = cuts.clone();
    sampled["do_sample"] = true.into();
    recommend(sampled);
    assert_eq!(ask(""), want);
    // Flags win, each for itself.
    assert_eq!(ask("--top_k 1 --repetition_penalty 1"), greedy);
    assert!(ask("--seed 7") != want);
    // Without a word that it should be sampled, it is when asked for, within the same cuts.
    recommend(cuts);
    assert_eq!(ask("--repetition_penalty 1"), greedy);
    assert_eq!(ask("--temperature 3"), want);
    // Any token of a list ends an answer.
    let checkpoint = Checkpoint::open(dir.path().join(&model)).unwrap();
    let ids = text_of(&checkpoint).unwrap().tokenizer.encode(greedy.trim_end(), false).unwrap();
    recommend(json!({ "eos_token_id": [5, ids[2]] }));
    let short = ask("");
    assert!(greedy.starts_with(short.trim_end_matches('\n')) && short.len() < greedy.len(), "{short:?} {greedy:?}");
    recommend(json!({ "top_p": "high" }));
    run("").refused(&["generation_config.json", "`top_p`"]);
}

#[test]
fn templates_can_be_changed_and_told_things() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("mine.jinja"),
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %} no{% endif %}",
    )
    .unwrap();
    let ask = |flags: &str| swift_host(dir.path(), &format!("infer --model swift-tiny --max_new_tokens 8 {flags}")).ok().stdout;
    let plain = ask("--use_chat_template false --prompt Hello");
    assert_eq!(ask("--template mine.jinja --prompt Hello"), plain);
    assert_eq!(ask("--template mine.jinja --prompt Hello --enable_thinking true"), plain);
    std::fs::write(dir.path().join("no.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %} no").unwrap();
    assert_eq!(ask("--template mine.jinja --prompt Hello --enable_thinking false"), ask("--template no.jinja --prompt Hello"));
    swift_host(dir.path(), "infer --model swift-tiny --template none.jinja --prompt hi").refused(&["none.jinja"]);
}

#[test]
fn a_precision_that_changes_nothing_is_said_to() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("text.txt"), "one two three four five six").unwrap();
    let lines = [
        "infer --model swift-tiny --prompt hi --max_new_tokens 2",
        "perplexity --model swift-tiny --dataset text.txt",
        "bench decode --model swift-tiny --prompt 4 --new 2 --repeat 1",
    ];
    for line in lines {
        let warned = |flags: &str| swift_host(dir.path(), &format!("{line} {flags}")).ok().stderr.contains("has no effect");
        assert!(warned("--precision int8"), "{line}");
        assert!(!warned("") && !warned("--precision exact"), "{line}");
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

/// `make_sentences.py` made the vectors.
#[test]
fn sentences_have_the_vectors_of_sentence_transformers() {
    let Some(model) = asset("all-MiniLM-L6-v2/model.safetensors") else { return };
    let model = model.parent().unwrap();
    let golden = read_json(golden("sentences.json"));
    let dir = tempfile::tempdir().unwrap();
    let texts: Vec<&str> = golden.as_array().unwrap().iter().map(|row| row["text"].as_str().unwrap()).collect();
    std::fs::write(dir.path().join("texts.txt"), texts.join("\n")).unwrap();
    let embed = |model: &Path, flags: &str| -> Vec<Value> {
        let line = format!("embed --model {} --file texts.txt {flags}", model.display());
        swift_host(dir.path(), &line).ok().stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    for pooling in ["mean", "cls", "last"] {
        for (got, want) in embed(model, &format!("--pooling {pooling}")).iter().zip(golden.as_array().unwrap()) {
            assert_eq!(got["tokens"], want["ids"].as_array().unwrap().len());
            let vector = numbers(&got["embedding"]);
            for (i, want) in numbers(&want[pooling]).into_iter().enumerate() {
                assert!((vector[i] - want).abs() < 2e-6, "{pooling} of {}: {} instead of {want}", got["text"], vector[i]);
            }
        }
    }
    // What the folder says is the default.
    let copy = dir.path().join("copy");
    std::fs::create_dir_all(copy.join("1_Pooling")).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(model.join(file), copy.join(file)).unwrap();
    }
    let pool = |mode: &str| {
        std::fs::write(copy.join("1_Pooling/config.json"), json!({ format!("pooling_mode_{mode}"): true }).to_string()).unwrap();
    };
    for (mode, pooling) in [("cls_token", "cls"), ("lasttoken", "last"), ("mean_tokens", "mean")] {
        pool(mode);
        assert_eq!(embed(&copy, ""), embed(&copy, &format!("--pooling {pooling}")), "{mode}");
    }
    pool("max_tokens");
    swift_host(dir.path(), "embed --model copy --text hi").refused(&["max_tokens", "1_Pooling", "--pooling"]);
}

#[test]
fn answers_drawn_by_seed_are_the_same_in_any_company() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 7);
    let all =
        "--model swift-tiny --val_dataset rows.jsonl --max_new_tokens 12 --temperature 1.5 --batching reproducible --logprobs";
    let texts = |flags: &str| -> Vec<Value> {
        let line = format!("infer {all} --result_path answers.jsonl {flags}");
        swift_host(dir.path(), &line).ok();
        let text = std::fs::read_to_string(dir.path().join("answers.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect()
    };
    let alone = texts("--max_batch_size 1");
    assert_eq!(texts("--max_batch_size 4"), alone);
    assert_eq!(texts("--max_batch_size -1 --write_batch_size 1"), alone);
    let other = texts("--max_batch_size 4 --seed 5");
    assert!(alone.iter().zip(&other).any(|(a, b)| a["response"] != b["response"]));
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
