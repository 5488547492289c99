//! Variants of the llama architecture: outputs, every gradient, and full fine-tuning.

use serde_json::json;
use swift_tests::{Lab, Trainer, assert_close, golden, json, max_difference, norm, numbers, sequences, tokens};
use swift_train::grad_state;

fn check(family: &str) {
    let folder = golden("families").join(family);
    let lab = Lab::new(1);
    let mut plain = lab.open(&folder, None);
    let prompts = json(folder.join("golden.json"));
    for prompt in prompts.as_array().unwrap() {
        let want: Vec<f32> =
            prompt["values"].as_array().unwrap().iter().flat_map(|row| numbers(row).into_iter().map(|v| v as f32)).collect();
        let off = max_difference(&plain.logits(&lab, &tokens(&prompt["ids"])), &want);
        assert!(off < 2e-4, "{family}: logits are {off} off");
    }

    let want = json(folder.join("train.json"));
    let batch = sequences(&[tokens(&prompts[0]["ids"])]);
    let mut trainer = Trainer::new(&lab, lab.open(&folder, Some(("full", json!({})))), 0.0);
    assert_close("loss", trainer.backward(&batch), want["loss"].as_f64().unwrap(), 1e-4);
    let gradients = want["grad_norm"].as_object().unwrap();
    let trained: Vec<String> = trainer.programs.trainable.iter().map(|p| p.name.clone()).collect();
    let missing: Vec<&String> = gradients.keys().filter(|name| !trained.contains(name)).collect();
    assert!(missing.is_empty() && trained.len() == gradients.len(), "{family} trains {trained:?}, and not {missing:?}");
    for (name, value) in gradients {
        let state = trainer.loaded.store.read_state(&grad_state(name)).unwrap();
        let got = norm(state.floats().unwrap());
        assert!(got > 0.0, "{family}: `{name}` has no gradient");
        assert_close(&format!("{family}: gradient of {name}"), got, value.as_f64().unwrap(), 1e-3);
    }

    for (step, loss) in numbers(&want["losses"]).into_iter().enumerate() {
        // The first gradient is there already.
        if step > 0 {
            assert_close(&format!("{family}: loss of step {}", step + 1), trainer.backward(&batch), loss, 1e-3);
        }
        trainer.update(1e-3, 0.1);
    }
}

#[test]
fn llama() {
    check("llama");
}

#[test]
fn tied_embeddings_and_biases() {
    check("llama-tied-bias");
}

#[test]
fn llama3_rope() {
    check("llama3-rope");
}

#[test]
fn linear_rope() {
    check("llama-linear-rope");
}

#[test]
fn yarn_rope() {
    check("llama-yarn");
}
