//! Training runs of the program: what they leave, and that they can be repeated, spread over threads, resumed and interrupted without
//! changing a bit of their losses.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use swift_tests::{ALPACA, Ran, SMOLLM2, asset, command, json, rows, swift_host};

/// Six updates of two micro-batches with dropout, so that seeds, order and accumulation all matter.
const RUN: &str = "sft --model swift-tiny --dataset rows.jsonl --lora_dropout 0.2 --learning_rate 1e-3 \
                   --per_device_train_batch_size 3 --gradient_accumulation_steps 2 --max_steps 6 --save_steps 3";

/// Folder and summary of a run.
#[track_caller]
fn train(dir: &Path, line: &str) -> (PathBuf, Value) {
    finished(dir, &swift_host(dir, line).ok())
}

#[track_caller]
fn finished(dir: &Path, ran: &Ran) -> (PathBuf, Value) {
    let folder = dir.join(ran.stdout.trim_end());
    assert_eq!(ran.stdout.lines().count(), 1, "standard output is one folder, not:\n{}", ran.stdout);
    let summary = json(folder.join("summary.json"));
    (folder, summary)
}

/// Losses by their bits.
#[track_caller]
fn losses(summary: &Value) -> Vec<u32> {
    let losses: Vec<u32> = swift_tests::numbers(&summary["losses"]).iter().map(|&l| (l as f32).to_bits()).collect();
    assert_eq!(losses.len() as u64, summary["steps"].as_u64().unwrap());
    losses
}

fn adapter(folder: &Path, step: u64) -> Vec<u8> {
    std::fs::read(folder.join(format!("checkpoint-{step}/adapter_model.safetensors"))).unwrap()
}

fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_same_seed_gives_the_same_losses_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 24);
    for tuner in ["lora", "dora"] {
        let run = |rest: &str| train(dir.path(), &format!("{RUN} --tuner_type {tuner} --output_dir {tuner} {rest}"));
        let (folder, once) = run("--threads 2");
        let (again_folder, again) = run("--threads 2");
        assert_ne!(folder, again_folder);
        assert_eq!(losses(&once), losses(&again), "{tuner}: the same command twice");
        let (single_folder, single) = run("--threads 1");
        assert_eq!(losses(&once), losses(&single), "{tuner}: one thread instead of two");
        assert_eq!(adapter(&folder, 6), adapter(&again_folder, 6), "{tuner}");
        assert_eq!(adapter(&folder, 6), adapter(&single_folder, 6), "{tuner}");
        let (_, other) = run("--seed 43");
        assert_ne!(losses(&once), losses(&other), "{tuner}: the seed must matter");
        let (_, other) = run("--data_seed 43");
        assert_ne!(losses(&once), losses(&other), "{tuner}: the data order must matter");
    }
}

#[test]
fn a_resumed_run_equals_one_that_was_never_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 15); // An epoch ends within the run.
    for tuner in ["dora", "full"] {
        // The LoRA flag is for LoRA's family.
        let run = RUN.replace("--lora_dropout 0.2", if tuner == "full" { "" } else { "--lora_dropout 0.2" });
        let run = format!("{run} --tuner_type {tuner} --output_dir {tuner}");
        let (whole, summary) = train(dir.path(), &run);
        let middle = whole.join("checkpoint-3");
        let (resumed, resumed_summary) = train(dir.path(), &format!("{run} --resume_from_checkpoint {}", middle.display()));
        assert_eq!(losses(&summary), losses(&resumed_summary), "{tuner}");
        let weights = |folder: &Path| match tuner {
            "full" => std::fs::read(folder.join("checkpoint-6/model.safetensors")).unwrap(),
            _ => adapter(folder, 6),
        };
        assert_eq!(weights(&whole), weights(&resumed), "{tuner}");
        // Nothing is left to do, and another method's checkpoint is no start.
        let end = whole.join("checkpoint-6");
        swift_host(dir.path(), &format!("{run} --resume_from_checkpoint {}", end.display()))
            .refused(&["6 of 6 updates", "--max_steps"]);
        let other = if tuner == "full" { "lora" } else { "full" };
        let other =
            run.replace("--lora_dropout 0.2", "").replace(&format!("--tuner_type {tuner}"), &format!("--tuner_type {other}"));
        swift_host(dir.path(), &format!("{other} --resume_from_checkpoint {}", middle.display())).refused(&["cannot resume"]);
    }
}

#[test]
fn a_run_leaves_its_folder_and_its_figures() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 24);
    let line = format!("{RUN} --tuner_type dora --output_dir out --logging_steps 2 --split_dataset_ratio 0.25");
    let (folder, summary) = train(dir.path(), &line);
    let name = folder.file_name().unwrap().to_str().unwrap().to_string();
    assert!(name.starts_with("v0-") && folder.parent().unwrap().ends_with("out"), "{}", folder.display());
    let want = ["args.json", "checkpoint-3", "checkpoint-6", "images", "logging.jsonl", "summary.json"];
    assert_eq!(names(&folder), want.map(String::from).into());
    let checkpoint =
        ["adapter_config.json", "adapter_model.safetensors", "args.json", "optimizer.safetensors", "trainer_state.json"];
    assert_eq!(names(&folder.join("checkpoint-6")), checkpoint.map(String::from).into());
    let curve = std::fs::read(folder.join("images/train_loss.png")).unwrap();
    assert!(curve.starts_with(b"\x89PNG\r\n") && curve.len() > 2000);

    let args = json(folder.join("args.json"));
    let want = [("tuner_type", "dora"), ("lr_scheduler_type", "cosine"), ("model", "swift-tiny")];
    assert!(want.iter().all(|(key, value)| args[key] == *value), "{args}");
    assert_eq!((args["max_steps"].as_i64(), args["seed"].as_u64()), (Some(6), Some(42)));

    let log = std::fs::read_to_string(folder.join("logging.jsonl")).unwrap();
    let log: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps: Vec<&str> =
        log.iter().filter(|l| l["loss"].is_number()).filter_map(|l| l["global_step/max_steps"].as_str()).collect();
    assert_eq!(steps, ["1/6", "2/6", "4/6", "6/6"]);
    assert_eq!(
        log.iter().filter(|l| l["eval_loss"].is_number() && l["loss"].is_null()).count(),
        4,
        "start, 3, 6, and the last line"
    );
    for key in ["grad_norm", "learning_rate", "epoch", "elapsed_time", "tokens_per_second", "memory(GiB)"] {
        assert!(log.iter().any(|l| l[key].is_number()), "no line has `{key}`");
    }

    for key in [
        "first_loss",
        "last_loss",
        "eval_loss_before",
        "eval_loss_after",
        "tokens_per_second",
        "planned_peak_bytes",
        "measured_peak_bytes",
        "trace_ms",
        "compile_ms",
        "trainable_parameters",
        "base_parameters",
    ] {
        assert!(summary[key].as_f64().is_some_and(|v| v > 0.0), "`{key}` is {}", summary[key]);
    }
    assert_eq!(summary["plugin_calls_after_tracing"], 0);
    assert_eq!((summary["seed"].as_u64(), summary["interrupted"].as_bool()), (Some(42), Some(false)));
    let hex = |v: &Value| v.as_str().is_some_and(|s| s.len() >= 16 && s.bytes().all(|b| b.is_ascii_hexdigit()));
    assert!(hex(&summary["graph_hash"]), "{}", summary["graph_hash"]);
    let plugins = summary["plugins"].as_object().unwrap();
    let used: BTreeSet<&str> = plugins.keys().map(String::as_str).collect();
    assert_eq!(used, ["adamw", "cross-entropy", "dora", "llama", "messages"].into());
    assert!(plugins.values().all(hex), "{plugins:?}");

    // A second run goes beside the first and leaves it alone.
    let before = std::fs::read(folder.join("args.json")).unwrap();
    let (second, _) = train(dir.path(), &line);
    assert!(second.file_name().unwrap().to_str().unwrap().starts_with("v1-"));
    assert_eq!(std::fs::read(folder.join("args.json")).unwrap(), before);
}

#[test]
fn generated_rows_are_asked_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let line = "sft --model swift-tiny --dataset synthetic#64 --tuner_type lora --per_device_train_batch_size 16 \
                --gradient_accumulation_steps 1 --max_steps 2 --eval_strategy no --output_dir out";
    let (_, summary) = train(dir.path(), line);
    assert!(summary["accuracy_rows"].as_u64().unwrap() > 0);
    for key in ["accuracy_before", "accuracy_after"] {
        assert!(summary[key].as_f64().is_some_and(|v| (0.0..=1.0).contains(&v)), "{key}: {}", summary[key]);
    }
    assert_eq!(summary["plugin_calls_after_tracing"], 0);
}

#[test]
fn preferences_are_learned_from_the_reference_on() {
    let dir = tempfile::tempdir().unwrap();
    let row = |i: usize| {
        format!(
            "{{\"query\":\"Is {i} even?\",\"response\":\"{}\",\"rejected_response\":\"{}\"}}\n",
            i.is_multiple_of(2),
            !i.is_multiple_of(2)
        )
    };
    std::fs::write(dir.path().join("pairs.jsonl"), (0..8).map(row).collect::<String>()).unwrap();
    let line = "sft --model swift-tiny --dataset pairs.jsonl --tuner_type lora --lora_dropout 0 --loss_type dpo --learning_rate 1e-3 \
                --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --max_steps 4 --output_dir out";
    let (_, summary) = train(dir.path(), line);
    let (first, last) = (summary["first_loss"].as_f64().unwrap(), summary["last_loss"].as_f64().unwrap());
    // A fresh adapter is the reference: every margin is 0 and the loss log 2.
    assert!((first - std::f64::consts::LN_2).abs() < 1e-4, "{first}");
    assert!(last < first, "{first} -> {last}");
}

#[test]
fn an_optimizer_in_8_bits_learns_as_one_in_floats_and_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 24);
    let run = RUN.replace("--lora_dropout 0.2", "--tuner_type full");
    let with = |optim: &str, rest: &str| train(dir.path(), &format!("{run} --optim {optim} --output_dir {optim} {rest}"));
    let (floats, whole) = with("adamw_torch_fused", "");
    let (small, rounded) = with("adamw_bnb_8bit", "");
    for (folder, name, eight_bit) in [(&floats, "adamw_torch_fused", None), (&small, "adamw_bnb_8bit", Some(true))] {
        let args = json(folder.join("args.json"));
        assert_eq!((args["optim"].as_str(), args["optimizer"].as_str()), (Some(name), Some("adamw")));
        assert_eq!(args["optimizer_config"]["eight_bit"].as_bool(), eight_bit);
    }
    let curve = |summary: &Value| swift_tests::numbers(&summary["losses"]);
    let (a, b) = (curve(&whole), curve(&rounded));
    assert!(a[0] == b[0] && a != b && b[5] < b[0], "{a:?} {b:?}");
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 0.02 * a), "{a:?} {b:?}");
    // Both moments of all but the smallest parameters: 8 bytes an element become 2.
    let parameters = whole["trainable_parameters"].as_f64().unwrap();
    let planned = |summary: &Value| summary["memory_plan"]["training"].as_f64().unwrap();
    let file = |folder: &Path| std::fs::metadata(folder.join("checkpoint-6/optimizer.safetensors")).unwrap().len() as f64;
    assert!(planned(&whole) - planned(&rounded) > 4.0 * parameters, "{} {}", planned(&whole), planned(&rounded));
    assert!(file(&small) < 0.3 * file(&floats));

    let (resumed, rest) = with("adamw_bnb_8bit", &format!("--resume_from_checkpoint {}", small.join("checkpoint-3").display()));
    assert_eq!(losses(&rounded), losses(&rest));
    for name in ["optimizer.safetensors", "model.safetensors"] {
        let read = |folder: &Path| std::fs::read(folder.join("checkpoint-6").join(name)).unwrap();
        assert!(read(&small) == read(&resumed), "{name}");
    }
    let (_, single) = with("adamw_8bit", "--threads 1");
    assert_eq!(losses(&rounded), losses(&single));
    let other =
        format!("{run} --optim adamw_hf --output_dir x --resume_from_checkpoint {}", small.join("checkpoint-3").display());
    swift_host(dir.path(), &other).refused(&["optimizer.safetensors", "this run's optimizer"]);
}

#[test]
fn optimizers_go_by_the_names_of_transformers_or_of_plugins() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 12);
    let estimate = |line: &str| swift_host(dir.path(), &format!("estimate --model swift-tiny --dataset rows.jsonl {line}"));
    for name in ["adamw", "adamw_torch", "adamw_hf", "adamw_8bit"] {
        estimate(&format!("--optim {name} --max_steps 2")).ok();
    }
    estimate("--optim sgd --max_steps 2").refused(&["--optim sgd", "adamw_torch", "adamw_bnb_8bit", "adamw,"]);
    // A plugin, but not of the kind.
    estimate("--optim lora --max_steps 2").refused(&["--optim lora", "adamw_torch"]);
    estimate("--optim adamw_torch --optimizer adamw").refused(&["--optim adamw_torch", "leave one of the two out"]);
    estimate("--optim adamw --optimizer_config {\"eight_bit\":true} --max_steps 2").ok();
}

#[test]
fn old_checkpoints_go_and_optimizer_state_can_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 12);
    let run = RUN.replace("--save_steps 3", "--save_steps 1");
    let (folder, _) = train(dir.path(), &format!("{run} --output_dir out --save_total_limit 2 --save_only_model"));
    let checkpoints: BTreeSet<String> = names(&folder).into_iter().filter(|n| n.starts_with("checkpoint")).collect();
    assert_eq!(checkpoints, ["checkpoint-5", "checkpoint-6"].map(String::from).into());
    assert!(!folder.join("checkpoint-6/optimizer.safetensors").exists());
    let resume = format!("{run} --output_dir out --resume_from_checkpoint {}", folder.join("checkpoint-5").display());
    swift_host(dir.path(), &resume).refused(&["save_only_model"]);
}

#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    rows(dir.path(), 12);
    let run = RUN.replace("--max_steps 6", "--max_steps 20000");
    let mut child = command(dir.path(), &format!("{run} --output_dir out"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("step 1/20000") {
        assert!(errors.read_line(&mut said).unwrap() > 0, "the program ended:\n{said}");
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    errors.read_to_string(&mut said).unwrap();
    let output = child.wait_with_output().unwrap();
    let ran = Ran { stderr: said, ..Ran::from(output) };
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    let (folder, summary) = finished(dir.path(), &ran);
    assert_eq!(summary["interrupted"], true);
    let step = summary["steps"].as_u64().unwrap();
    let flag = ran.stderr.split("--resume_from_checkpoint ").nth(1).expect("the way to go on is named");
    let checkpoint = dir.path().join(flag.split(['`', '\n']).next().unwrap());
    assert_eq!(checkpoint, folder.join(format!("checkpoint-{step}")));

    let again = run.replace("--max_steps 20000", &format!("--max_steps {}", step + 2));
    let (_, resumed) = train(dir.path(), &format!("{again} --output_dir out --resume_from_checkpoint {}", checkpoint.display()));
    let (before, after) = (losses(&summary), losses(&resumed));
    assert_eq!((after.len() as u64, &after[..before.len()]), (step + 2, &before[..]));
}

#[test]
fn the_real_model_stays_within_its_memory_plan() {
    let (Some(model), Some(dataset)) = (asset(SMOLLM2), asset(ALPACA)) else { return };
    let dir = tempfile::tempdir().unwrap();
    let line = format!(
        "sft --model {} --dataset {}#64 --tuner_type dora --max_steps 3 --per_device_train_batch_size 2 \
         --gradient_accumulation_steps 1 --max_length 512 --packing --output_dir out",
        model.display(),
        dataset.display()
    );
    let (_, summary) = train(dir.path(), &line);
    let bytes = |key: &str| summary[key].as_f64().unwrap_or_else(|| panic!("no {key}"));
    let (planned, measured) = (bytes("planned_peak_bytes"), bytes("measured_peak_bytes"));
    println!("planned {:.1} MiB, measured {:.1} MiB", planned / 1048576.0, measured / 1048576.0);
    println!("traced in {} ms, compiled in {} ms", summary["trace_ms"], summary["compile_ms"]);
    assert!((measured / planned - 1.0).abs() < 0.05, "planned {planned}, measured {measured}: {}", summary["memory_plan"]);
    assert_eq!(summary["plugin_calls_after_tracing"], 0);
}
