//! Every family: outputs, every gradient, and full fine-tuning, beside the reference library; and adapters by the names people use.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde_json::{Value, json};
use swift_serve::{Generator, Sampling};
use swift_tests::{Lab, Trainer, assert_close, golden, json, max_difference, norm, numbers, sequences, tokens};
use swift_train::grad_state;

pub(crate) fn values(prompt: &Value) -> Vec<f32> {
    prompt["values"].as_array().unwrap().iter().flat_map(|row| numbers(row).into_iter().map(|v| v as f32)).collect()
}

fn check(family: &str) {
    outputs(family);
    training(family);
    adapters(family);
}

/// Logits of whole prompts, and of prompts that arrive token by token through a cache.
fn outputs(family: &str) {
    let folder = golden("families").join(family);
    let lab = Lab::new(1);
    let mut plain = lab.open(&folder, None);
    let prompts = json(folder.join("golden.json"));
    for prompt in prompts.as_array().unwrap() {
        let off = max_difference(&plain.logits(&lab, &tokens(&prompt["ids"])), &values(prompt));
        assert!(off < 2e-4, "{family}: logits are {off} off");
    }
    if family == "llama-dynamic" {
        // Keys stay turned by the base of their time, there as here, so that a cache does not give what the whole sequence gives.
        return;
    }
    // The first greedy token after each prompt is the reference's, with both prompts in one cache.
    let ids: Vec<Vec<i32>> = prompts.as_array().unwrap().iter().map(|prompt| tokens(&prompt["ids"])).collect();
    let mut generator = Generator::new(&mut plain.model, &lab.device, &mut plain.store, 2, 32).unwrap();
    let go_on = |_, _| ControlFlow::Continue(());
    let made = generator.generate(&mut plain.store, &ids, 4, &Default::default(), &Sampling::default(), go_on).unwrap();
    for (prompt, (ids, made)) in prompts.as_array().unwrap().iter().zip(ids.iter().zip(made)) {
        let last = numbers(prompt["values"].as_array().unwrap().last().unwrap());
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        assert_eq!(made.tokens[0], best as i32, "{family}: another token comes first");
        // What the cache gave must be what the whole sequence gives.
        let mut whole = ids.clone();
        for token in made.tokens {
            let logits = plain.logits(&lab, &whole);
            let row = &logits[logits.len() - last.len()..];
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            assert!(row[token as usize] > top - 1e-3, "{family}: token {token} of the cache is not the best of {whole:?}");
            whole.push(token);
        }
    }
}

/// The reference's name of a parameter: GPT-NeoX's head was renamed, and gate and up projections of experts are one tensor.
fn reference_name(name: &str) -> String {
    if name == "embed_out.weight" {
        return "lm_head.weight".into();
    }
    let name = name.replace(".block_sparse_moe.", ".mlp.");
    let Some((module, expert_part)) = name.split_once(".experts.") else { return name };
    match expert_part.trim_end_matches(".weight") {
        "down_proj" | "w2" => format!("{module}.experts.down_proj"),
        _ => format!("{module}.experts.gate_up_proj"),
    }
}

fn training(family: &str) {
    let folder = golden("families").join(family);
    let lab = Lab::new(1);
    let prompts = json(folder.join("golden.json"));
    let want = json(folder.join("train.json"));
    let batch = sequences(&[tokens(&prompts[0]["ids"])]);
    let mut trainer = Trainer::new(&lab, lab.open(&folder, Some(("full", json!({})))), 0.0);
    assert_close("loss", trainer.backward(&batch), want["loss"].as_f64().unwrap(), 1e-4);
    let gradients = want["grad_norm"].as_object().unwrap();
    let mut squares: BTreeMap<String, f64> = BTreeMap::new();
    for param in &trainer.programs.trainable {
        let state = trainer.loaded.store.read_state(&grad_state(&param.name)).unwrap();
        let values = state.floats().unwrap();
        if family.starts_with("stablelm") && param.name.contains("_layernorm.weight") && param.shape.len() == 2 {
            // One norm a head in the reference.
            let module = param.name.trim_end_matches(".weight");
            for (head, row) in values.chunks_exact(param.shape[1] as usize).enumerate() {
                squares.insert(format!("{module}.norms.{head}.weight"), norm(row).powi(2));
            }
            continue;
        }
        *squares.entry(reference_name(&param.name)).or_default() += norm(values).powi(2);
    }
    let missing: Vec<&String> = gradients.keys().filter(|name| !squares.contains_key(*name)).collect();
    assert!(missing.is_empty() && squares.len() == gradients.len(), "{family} trains {:?}, and not {missing:?}", squares.keys());
    for (name, want) in gradients {
        let (got, want) = (squares[name].sqrt(), want.as_f64().unwrap());
        // A bias of keys moves all scores of a query alike: its gradient is nothing but rounding.
        if want < 1e-6 {
            assert!(got < 1e-6, "{family}: gradient of {name} is {got} instead of {want}");
            continue;
        }
        assert_close(&format!("{family}: gradient of {name}"), got, want, 1e-3);
    }

    for (step, loss) in numbers(&want["losses"]).into_iter().enumerate() {
        // The first gradient is there already.
        if step > 0 {
            assert_close(&format!("{family}: loss of step {}", step + 1), trainer.backward(&batch), loss, 1e-3);
        }
        trainer.update(1e-3, 0.1);
    }
}

/// "all-linear" takes every linear layer of every block, and each learns.
fn adapters(family: &str) {
    let folder = golden("families").join(family);
    let lab = Lab::new(1);
    let prompts = json(folder.join("golden.json"));
    let batch = sequences(&[tokens(&prompts[0]["ids"])]);
    for tuner in ["lora", "dora"] {
        let config = json!({ "r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0, "target_modules": "all-linear" });
        let mut trainer = Trainer::new(&lab, lab.open(&folder, Some((tuner, config))), 0.0);
        let linear = trainer.loaded.model.sites().iter().filter(|site| site.kind == swift_plugin::SiteKind::Linear).count();
        let a_matrices = trainer.programs.trainable.iter().filter(|p| p.name.ends_with(".lora_A")).count();
        assert!(linear >= 4 && a_matrices == linear, "{family}: {tuner} takes {a_matrices} of {linear} linear layers");
        let first = trainer.backward(&batch);
        for param in trainer.programs.trainable.clone().iter().filter(|p| p.name.ends_with(".lora_B")) {
            let state = trainer.loaded.store.read_state(&grad_state(&param.name)).unwrap();
            assert!(norm(state.floats().unwrap()) > 0.0, "{family}: {tuner} gives `{}` no gradient", param.name);
        }
        trainer.update(1e-2, 0.0);
        let second = trainer.backward(&batch);
        assert!(second < first, "{family}: {tuner} does not learn, {first} then {second}");
    }
}

macro_rules! families {
    ($($name:ident: $folder:literal;)*) => {
        $(#[test]
        fn $name() {
            check($folder);
        })*
    };
}

families! {
    llama: "llama";
    llama_with_tied_embeddings_and_biases: "llama-tied-bias";
    llama3_rope: "llama3-rope";
    linear_rope: "llama-linear-rope";
    dynamic_rope: "llama-dynamic";
    yarn_rope: "llama-yarn";
    mistral: "mistral";
    qwen2: "qwen2";
    qwen2_with_windows: "qwen2-window";
    qwen3: "qwen3";
    gemma: "gemma";
    gemma2: "gemma2";
    gemma3: "gemma3";
    gemma3_with_scaled_rope: "gemma3-scaled";
    phi3: "phi3";
    phi3_with_long_rope: "phi3-longrope";
    phi4_mini: "phi4-mini";
    glm: "glm";
    glm4: "glm4";
    gpt2: "gpt2";
    gpt_neox: "gpt-neox";
    gpt_neox_in_series: "gpt-neox-serial";
    stablelm: "stablelm";
    stablelm_in_parallel: "stablelm-parallel";
    mixtral: "mixtral";
    qwen2_moe: "qwen2-moe";
    qwen3_moe: "qwen3-moe";
    deepseek_v2: "deepseek-v2";
    deepseek_v2_lite: "deepseek-v2-lite";
    deepseek_v3: "deepseek-v3";
    deepseek_v3_with_groups: "deepseek-v3-groups";
    chatglm: "chatglm";
    baichuan: "baichuan";
}
