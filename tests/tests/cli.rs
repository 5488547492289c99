//! The command line: what it refuses and how it says so, what goes to standard output, and that failure leaves files alone.

use std::path::{Path, PathBuf};

use swift_tests::{golden, json, rows, swift_host, workspace};

/// The file that the program embeds.
fn tiny() -> PathBuf {
    workspace().join("host/cli/assets/swift-tiny.gguf")
}

/// Path, size and content of every file below, to see whether anything changed.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            match path.is_dir() {
                true => {
                    files.push((path.clone(), Vec::new()));
                    folders.push(path);
                }
                false => files.push((path.clone(), std::fs::read(&path).unwrap())),
            }
        }
    }
    files.sort();
    files
}

/// Every line is refused with its words, and the folder stays as it was.
#[track_caller]
fn refuses(dir: &Path, cases: &[(&str, &[&str])]) {
    let before = snapshot(dir);
    for (line, words) in cases {
        swift_host(dir, line).refused(words);
        assert!(snapshot(dir) == before, "`{line}` changed files");
    }
}

#[test]
fn what_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 4);
    let odd = dir.path().join("odd");
    std::fs::create_dir(&odd).unwrap();
    std::fs::copy(golden("families/llama/model.safetensors"), odd.join("model.safetensors")).unwrap();
    std::fs::write(odd.join("config.json"), r#"{"model_type": "perceiver", "vocab_size": 128}"#).unwrap();
    refuses(
        dir.path(),
        &[
            ("logits --model odd --tokens 1,2 --out x", &["`perceiver`", "supported are", "gemma3_text, ", "qwen2, ", "hint"]),
            ("sft --model nowhere.gguf --dataset rows.jsonl", &["`nowhere.gguf`", "hint", "swift-tiny"]),
            ("sft --model swift-tiny --dataset nowhere.jsonl", &["`nowhere.jsonl`", "does not exist"]),
            ("sft --model swift-tiny", &["--dataset", "hint"]),
            ("run --plugin dorra", &["dorra", "dora", "lora", "adamw", "llama"]),
            ("run --plugin ./nowhere.wasm", &["nowhere.wasm"]),
            ("infer --model swift-tiny --adapters nowhere --prompt hi", &["nowhere"]),
            ("sft --model swift-tiny --dataset rows.jsonl --resume_from_checkpoint nowhere", &["nowhere", "cannot resume"]),
            ("plugin build .", &["Cargo.toml"]),
        ],
    );
}

#[test]
fn broken_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 4);
    let model = std::fs::read(tiny()).unwrap();
    std::fs::write(dir.path().join("half.gguf"), &model[..model.len() / 2]).unwrap();
    std::fs::write(dir.path().join("noise.gguf"), vec![7u8; 4096]).unwrap();
    std::fs::write(dir.path().join("noise.wasm"), b"\0asm no component").unwrap();
    std::fs::write(dir.path().join("broken.jsonl"), "{\"query\":\"a\",\"response\":\"b\"}\n\n{\"query\": oops}\n").unwrap();
    std::fs::write(dir.path().join("empty.jsonl"), "").unwrap();
    std::fs::write(dir.path().join("odd.jsonl"), "{\"colour\":\"red\"}\n").unwrap();
    refuses(
        dir.path(),
        &[
            ("infer --model half.gguf --prompt hi", &["half.gguf"]),
            ("infer --model noise.gguf --prompt hi", &["noise.gguf"]),
            ("run --plugin noise.wasm", &["noise.wasm"]),
            ("plugin inspect ./noise.wasm", &["noise.wasm"]),
            ("sft --model swift-tiny --dataset broken.jsonl", &["broken.jsonl", "line 3"]),
            ("sft --model swift-tiny --dataset empty.jsonl", &["empty.jsonl"]),
            ("sft --model swift-tiny --dataset odd.jsonl", &["colour"]),
            ("sft --model swift-tiny --dataset rows.jsonl --max_length 2", &["max_length"]),
        ],
    );
}

#[test]
fn flags_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 4);
    let mut cases: Vec<(String, Vec<&str>)> = Vec::new();
    let sft = |rest: &str| format!("sft --model swift-tiny --dataset rows.jsonl {rest}");
    // Misspelt: what was meant is suggested.
    cases.push((sft("--lora_rnk 4"), vec!["--lora_rank"]));
    cases.push(("snt --model x".into(), vec!["sft"]));
    // Without effect.
    cases.push((sft("--tuner_type full --use_dora"), vec!["--use_dora", "no effect"]));
    cases.push((sft("--tuner_type full --lora_rank 4"), vec!["--lora_rank", "no effect"]));
    cases.push((sft("--eval_strategy steps"), vec!["--eval_strategy", "held-out"]));
    cases.push((sft("--save_strategy no --save_steps 5"), vec!["--save_steps", "no effect"]));
    cases.push((sft("--eval_steps 5"), vec!["--eval_steps", "no effect"]));
    cases.push((sft("--val_dataset rows.jsonl --split_dataset_ratio 0.5"), vec!["--split_dataset_ratio", "no effect"]));
    cases.push(("export --model swift-tiny --out folder --quant f16".into(), vec!["--quant"]));
    cases.push((sft("--quant_bits 4"), vec!["--quant_bits", "no effect", "--quant_method bnb"]));
    cases.push((sft("--tuner_type full --quant_method bnb --quant_bits 4"), vec!["--quant_method", "no effect", "full"]));
    // Not there, or not for this model.
    cases.push((sft("--quant_method bnb"), vec!["--quant_bits 4"]));
    cases.push((sft("--quant_method bnb --quant_bits 8"), vec!["--quant_bits 8", "known is 4"]));
    cases.push((sft("--quant_method hqq --quant_bits 4"), vec!["hqq", "bnb"]));
    cases.push((sft("--quant_method bnb --quant_bits 4 --bnb_4bit_quant_type fp4"), vec!["fp4", "nf4"]));
    cases.push((sft("--quant_method bnb --quant_bits 4"), vec!["rows of 352 values", "64"]));
    cases.push(("infer --model swift-tiny --prompt hi --bnb_4bit_use_double_quant false".into(), vec!["no effect"]));
    // Out of range, or no such name.
    cases.push((sft("--lora_rank 0"), vec!["`r` is 0"]));
    cases.push((sft("--tuner_config [1]"), vec!["--tuner_config"]));
    cases.push((sft("--tuner_config {\"rank\":4}"), vec!["rank"]));
    cases.push((sft("--lr_scheduler_type cosin"), vec!["cosin", "cosine"]));
    cases.push((sft("--truncation_strategy middle"), vec!["middle", "left"]));
    cases.push((sft("--max_steps 0"), vec!["max_steps"]));
    cases.push((sft("--per_device_train_batch_size 0"), vec!["per_device_train_batch_size"]));
    cases.push((sft("--learning_rate=-1"), vec!["learning_rate"]));
    cases.push((sft("--threads 0"), vec!["--threads"]));
    cases.push((sft("--limit fule=3"), vec!["fule"]));
    cases.push((sft("--target_modules nothing_proj"), vec!["no layer", "q_proj"]));
    cases.push((sft("--plugin lora"), vec!["--plugin"]));
    cases.push(("run --plugin lora --plugin dora".into(), vec!["two", "dora"]));
    cases.push(("bench kernels --only gem".into(), vec!["gem", "attention"]));
    cases.push(("logits --model swift-tiny --tokens 1,99999999 --out x.safetensors".into(), vec!["99999999"]));
    let cases: Vec<(&str, &[&str])> = cases.iter().map(|(line, words)| (line.as_str(), words.as_slice())).collect();
    refuses(dir.path(), &cases);
}

#[test]
fn only_data_goes_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 8);
    let run = |line: &str| swift_host(dir.path(), line).ok();
    let list = run("plugin list");
    let listed: Vec<&str> = list.stdout.lines().filter_map(|l| l.split_whitespace().next()).collect();
    let bundled = ["adamw", "alpaca", "cross-entropy", "dora", "dpo", "full", "gemma3", "llama", "lora", "messages", "synthetic"];
    assert!(bundled.iter().all(|name| listed.contains(name)), "{listed:?}");

    let inspected: serde_json::Value = serde_json::from_str(&run("plugin inspect dora --json").stdout).unwrap();
    assert!(inspected.to_string().contains("lora_alpha"), "the configuration's schema is shown: {inspected}");

    let plan = run("estimate --plugin lora --model swift-tiny --dataset rows.jsonl --max_steps 2");
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).unwrap();
    let parts: u64 = ["weights", "training", "arena", "fixed"].iter().map(|k| plan[k].as_u64().unwrap()).sum();
    assert_eq!(plan["peak"].as_u64(), Some(parts));

    let answer = run("infer --model swift-tiny --prompt Hello --max_new_tokens 4");
    assert!(answer.stdout.ends_with('\n') && answer.stderr.is_empty(), "{answer:?}");
    let again = run("infer --model swift-tiny --prompt Hello --max_new_tokens 4 --stream false");
    assert_eq!(answer.stdout, again.stdout);

    let graph = run("plugin trace dora");
    assert!(graph.stdout.contains("lora_A"), "{}", &graph.stdout[..graph.stdout.len().min(500)]);
    assert!(run("plugin trace lora --dot").stdout.starts_with("digraph"));
    let doctor = run("doctor").stdout;
    assert!(["kernels", "threads", "fuel", "swift-tiny"].iter().all(|word| doctor.contains(word)), "{doctor}");
}

#[test]
fn help_reads_well() {
    let dir = tempfile::tempdir().unwrap();
    let commands = "run,sft,pt,infer,logits,perplexity,embed,export,estimate,doctor,bench,bench prefill,bench decode,bench kernels,plugin,plugin list,plugin inspect,plugin trace,plugin build";
    let main = swift_host(dir.path(), "--help").ok().stdout;
    for command in commands.split(',') {
        let help = swift_host(dir.path(), &format!("{command} --help")).ok().stdout;
        assert!(help.contains("Usage: swift-host") && !help.starts_with("Usage"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 110), "{command}: a line is too long");
        assert!(command.contains(' ') || main.contains(&format!("  {command} ")), "`{command}` is not in the main help");
    }
    let sft = swift_host(dir.path(), "sft --help").ok().stdout;
    for flag in "model dataset tuner_type lora_rank learning_rate output_dir resume_from_checkpoint".split(' ') {
        assert!(sft.contains(&format!("--{flag} ")), "{flag}");
    }
}

#[test]
fn both_spellings_of_a_flag_work() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 4);
    let line = "sft --model swift-tiny --dataset rows.jsonl --lora-rank 2 --max-steps=1 --gradient-accumulation-steps 1 --output-dir out";
    let folder = swift_host(dir.path(), line).ok().stdout;
    let args = json(dir.path().join(folder.trim_end()).join("args.json"));
    assert_eq!((args["tuner_config"]["r"].as_u64(), args["max_steps"].as_i64()), (Some(2), Some(1)));
}

#[test]
fn failure_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 4);
    std::fs::write(dir.path().join("kept.gguf"), "kept").unwrap();
    std::fs::write(dir.path().join("kept.safetensors"), "kept").unwrap();
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    std::fs::write(dir.path().join("folder/config.json"), "kept").unwrap();
    refuses(
        dir.path(),
        &[
            ("export --model swift-tiny --out kept.gguf", &["exists already", "--exist_ok"]),
            ("export --model swift-tiny --out folder", &["exists already"]),
            ("export --model swift-tiny --out kept.gguf --exist_ok --quant q9", &["q9"]),
            ("logits --model nowhere --tokens 1 --out kept.safetensors", &["nowhere"]),
            ("sft --model swift-tiny --dataset nowhere.jsonl --output_dir folder", &["nowhere"]),
            ("sft --model swift-tiny --dataset rows.jsonl --output_dir rows.jsonl --max_steps 1", &["rows.jsonl"]),
        ],
    );
}

#[test]
fn exported_models_answer_like_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 8);
    let run = |line: &str| swift_host(dir.path(), line).ok().stdout;
    let line = "sft --model swift-tiny --dataset rows.jsonl --tuner_type dora --learning_rate 1e-2 --max_steps 3 \
                --gradient_accumulation_steps 2 --output_dir out";
    let adapter = format!("{}/checkpoint-3", run(line).trim_end());
    run(&format!("export --adapters {adapter} --out merged.gguf --quant f32"));
    run(&format!("export --adapters {adapter} --out merged"));
    let read = |name: &str| {
        let file = swift_formats::SafetensorsFile::open(&dir.path().join(name)).unwrap();
        file.tensor("logits").unwrap().to_f32().unwrap()
    };
    run("logits --model swift-tiny --tokens 5,6,7,8 --out base.safetensors");
    run(&format!("logits --model swift-tiny --adapters {adapter} --tokens 5,6,7,8 --out adapter.safetensors"));
    let want = read("adapter.safetensors");
    assert!(swift_tests::max_difference(&want, &read("base.safetensors")) > 1e-3, "training changed nothing");
    for merged in ["merged.gguf", "merged"] {
        run(&format!("logits --model {merged} --tokens 5,6,7,8 --out out.safetensors"));
        let off = swift_tests::max_difference(&want, &read("out.safetensors"));
        assert!(off < 1e-3, "{merged}: {off}");
    }
    let ask = "--prompt Hello --max_new_tokens 8";
    let want = run(&format!("infer --adapters {adapter} {ask}"));
    for merged in ["merged.gguf", "merged"] {
        assert_eq!(run(&format!("infer --model {merged} {ask}")), want, "{merged}");
    }
}

#[test]
fn logits_are_written_for_every_family() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("families")).unwrap() {
        let folder = entry.unwrap().path();
        let prompt = &json(folder.join("golden.json"))[0];
        let ids: Vec<String> = swift_tests::tokens(&prompt["ids"]).iter().map(ToString::to_string).collect();
        let line = format!("logits --model {} --tokens {} --out out.safetensors", folder.display(), ids.join(","));
        if prompt["output"] != "logits" {
            swift_host(dir.path(), &line).refused(&["no vocabulary", "hidden states"]);
            continue;
        }
        swift_host(dir.path(), &line).ok();
        let file = swift_formats::SafetensorsFile::open(&dir.path().join("out.safetensors")).unwrap();
        let view = file.tensor("logits").unwrap();
        let want: Vec<f32> =
            prompt["values"].as_array().unwrap().iter().flat_map(swift_tests::numbers).map(|x| x as f32).collect();
        assert_eq!(view.shape, [ids.len(), want.len() / ids.len()]);
        let off = swift_tests::max_difference(&view.to_f32().unwrap(), &want);
        assert!(off < 2e-4, "{}: {off}", folder.display());
    }
}

#[test]
fn kernels_can_be_forced() {
    let dir = tempfile::tempdir().unwrap();
    let folder = golden("families/llama");
    let line = |out: &str| format!("logits --model {} --tokens 5,17,100 --out {out}", folder.display());
    for isa in ["scalar", "avx2"] {
        let ran = swift_tests::command(dir.path(), &line(isa)).env("SWIFT_HOST_ISA", isa).output().unwrap();
        assert!(ran.status.success(), "{isa}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    let ran = swift_tests::command(dir.path(), &line("no")).env("SWIFT_HOST_ISA", "mmx").output().unwrap();
    swift_tests::Ran::from(ran).refused(&["SWIFT_HOST_ISA", "mmx"]);
}
