//! A real quantized model: tokens, logits, generation, and adapters over ten steps.

use std::collections::HashSet;
use std::ops::ControlFlow;

use serde_json::json;
use swift_formats::SafetensorsFile;
use swift_serve::{Generator, Sampling};
use swift_tests::{Lab, SMOLLM2, Trainer, assert_close, asset, golden, json, norm, numbers, sequences, tokens};

/// `log softmax(row)[token]`, in f64.
fn log_probability(row: &[f32], token: i32) -> f64 {
    let top = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
    let sum: f64 = row.iter().map(|&l| (f64::from(l) - top).exp()).sum();
    f64::from(row[token as usize]) - top - sum.ln()
}

#[test]
fn texts_become_the_same_tokens() {
    let Some(path) = asset(SMOLLM2) else { return };
    let checkpoint = swift_formats::Checkpoint::open(path).unwrap();
    let text = swift_train::text_of(&checkpoint).unwrap();
    for row in json(golden("smollm2_logits.json")).as_array().unwrap() {
        let ids = text.tokenizer.encode(row["text"].as_str().unwrap(), true).unwrap();
        let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
        assert_eq!(ids, tokens(&row["ids"]), "{}", row["text"]);
    }
}

#[test]
fn logits_and_probabilities_are_equal() {
    let Some(path) = asset(SMOLLM2) else { return };
    let lab = Lab::default();
    let mut model = lab.open(&path, None);
    let (mut worst_logit, mut worst_probability) = (0.0f64, 0.0f64);
    for row in json(golden("smollm2_logits.json")).as_array().unwrap() {
        let ids = tokens(&row["ids"]);
        let logits = model.logits(&lab, &ids);
        let rows: Vec<&[f32]> = logits.chunks(logits.len() / ids.len()).collect();
        for (i, want) in numbers(&row["next_token_logprob"]).into_iter().enumerate() {
            worst_probability = worst_probability.max((log_probability(rows[i], ids[i + 1]) - want).abs());
        }
        let last = rows[ids.len() - 1];
        let mut order: Vec<usize> = (0..last.len()).collect();
        order.sort_by(|&a, &b| last[b].total_cmp(&last[a]));
        for (rank, want) in row["last_top10"].as_array().unwrap().iter().enumerate() {
            let (token, value) = (want[0].as_u64().unwrap() as usize, want[1].as_f64().unwrap());
            worst_logit = worst_logit.max((f64::from(last[token]) - value).abs());
            // Neighbours that are closer than the tolerance may change places.
            assert!((f64::from(last[order[rank]]) - value).abs() < 1e-3, "{}: rank {rank} is token {}", row["text"], order[rank]);
        }
    }
    println!("largest difference: logits {worst_logit:.1e}, log-probabilities {worst_probability:.1e}");
    assert!(worst_logit < 1e-3 && worst_probability < 1e-3, "{worst_logit} {worst_probability}");
}

#[test]
fn greedy_continuations_are_equal() {
    let Some(path) = asset(SMOLLM2) else { return };
    let lab = Lab::default();
    let mut loaded = lab.open(&path, None);
    let rows = json(golden("smollm2_logits.json"));
    let rows = rows.as_array().unwrap();
    let prompts: Vec<Vec<i32>> = rows.iter().map(|row| tokens(&row["ids"])).collect();
    // Fewer slots than prompts, so that one waits for a free slot while others go on.
    let mut generator = Generator::new(&mut loaded.model, &lab.device, &mut loaded.store, 3, 64).unwrap();
    let go_on = |_, _| ControlFlow::Continue(());
    let made = generator.generate(&mut loaded.store, &prompts, 16, &HashSet::new(), &Sampling::default(), go_on).unwrap();
    for (row, made) in rows.iter().zip(made) {
        let want = tokens(&row["greedy16"]);
        // transformers stops at an end token, this run does not.
        assert_eq!(made.tokens[..want.len()], want, "{}", row["text"]);
    }
}

/// Ten steps of a method from the given A matrices, beside PEFT's.
fn ten_steps(name: &str, tuner: &str, rslora: bool) {
    let Some(path) = asset(SMOLLM2) else { return };
    let want = json(golden(&format!("smollm2_{name}.json")));
    let lab = Lab::default();
    let config = json!({ "r": 8, "lora_alpha": 32.0, "lora_dropout": 0.0, "target_modules": "all-linear", "use_rslora": rslora });
    let mut loaded = lab.open(&path, Some((tuner, config)));
    let start = SafetensorsFile::open(&golden("smollm2_lora_a_init.safetensors")).unwrap();
    let names = start.names();
    for name in &names {
        loaded.set(&parameter(name), start.tensor(name).unwrap().to_f32().unwrap());
    }
    let batch: Vec<Vec<i32>> = want["input_ids"].as_array().unwrap().iter().map(tokens).collect();
    let batch = sequences(&batch);
    let mut trainer = Trainer::new(&lab, loaded, 1.0);
    let (losses, norms) = (numbers(&want["loss"]), numbers(&want["grad_norm"]));
    for (step, (loss, grad_norm)) in losses.iter().zip(&norms).enumerate() {
        // Rounding grows from step to step: 2e-4 at the first, 5e-3 at the tenth.
        let allowed = 2e-4 * (5e-3f64 / 2e-4).powf(step as f64 / 9.0);
        let got = trainer.backward(&batch);
        let got_norm = trainer.update(1e-3, 0.1);
        println!("{name} step {}: loss {got:.6} ({loss:.6}), gradient {got_norm:.5} ({grad_norm:.5})", step + 1);
        assert_close(&format!("loss of step {}", step + 1), got, *loss, allowed);
        assert_close(&format!("gradient norm of step {}", step + 1), got_norm, *grad_norm, 1e-2);
    }
    let finals = want["final_norm"].as_object().unwrap();
    assert_eq!(finals.len(), trainer.programs.trainable.len(), "other tensors are trained");
    for (name, value) in finals {
        assert_close(name, norm(&trainer.loaded.param(&parameter(name))), value.as_f64().unwrap(), 2e-2);
    }
}

/// `base_model.model.<path>.lora_A.weight` is `<path>.lora_A` here.
fn parameter(peft: &str) -> String {
    let inner = peft.strip_prefix("base_model.model.").expect("a PEFT name");
    inner.strip_suffix(".weight").unwrap_or(inner).to_string()
}

#[test]
fn lora_learns_like_peft() {
    ten_steps("lora", "lora", false);
}

#[test]
fn dora_learns_like_peft() {
    ten_steps("dora", "dora", false);
}

#[test]
fn rslora_learns_like_peft() {
    ten_steps("rslora", "lora", true);
}
