//! Adapters as files and as weights: what is merged computes the same, what is written is what PEFT writes.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use swift_formats::{Adapter, SafetensorsFile};
use swift_plugin::SiteKind;
use swift_tests::{Lab, Loaded, SMOLLM2, asset, golden, json, max_difference, numbers, tokens};

/// (path in a layer, inputs, outputs) of the tiny model.
const MODULES: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 48, 48),
    ("self_attn.k_proj", 48, 24),
    ("self_attn.v_proj", 48, 24),
    ("self_attn.o_proj", 48, 48),
    ("mlp.gate_proj", 48, 88),
    ("mlp.up_proj", 48, 88),
    ("mlp.down_proj", 88, 48),
];

/// A tiny model with an adapter that is not neutral: A and B random, magnitudes moved.
fn adapted(lab: &Lab, family: &str, tuner: &str) -> Loaded {
    let config = json!({ "r": 4, "lora_alpha": 8.0, "lora_dropout": 0.1, "init_lora_weights": false });
    let mut loaded = lab.open(&golden("families").join(family), Some((tuner, config)));
    let names: Vec<String> = loaded.model.adapter_params().into_iter().map(|(p, _)| p.name).collect();
    for name in names.iter().filter(|n| n.ends_with("magnitude_vector")) {
        let moved = loaded.param(name).iter().enumerate().map(|(i, m)| m * (1.0 + 0.1 * (i % 5) as f32)).collect();
        loaded.set(name, moved);
    }
    loaded
}

fn prompt() -> Vec<i32> {
    tokens(&json(golden("families/llama/golden.json"))[0]["ids"])
}

fn merge_equals_forward(family: &str, tuner: &str) {
    let lab = Lab::new(1);
    let plain = lab.open(&golden("families").join(family), None).logits(&lab, &prompt());
    let mut loaded = adapted(&lab, family, tuner);
    let with_adapter = loaded.logits(&lab, &prompt());
    assert!(max_difference(&plain, &with_adapter) > 0.05, "the adapter changes nothing");
    let linear = loaded.model.sites().iter().filter(|site| site.kind == SiteKind::Linear).count();
    let merged = loaded.model.merge(&lab.device, &mut loaded.store).unwrap();
    assert_eq!(merged, linear, "every linear layer but the head");
    assert!(loaded.model.adapter_params().is_empty());
    let off = max_difference(&with_adapter, &loaded.logits(&lab, &prompt()));
    assert!(off < 1e-4, "{tuner} on {family}: merged logits are {off} off");
}

#[test]
fn merging_lora_changes_no_output() {
    merge_equals_forward("llama", "lora");
    merge_equals_forward("llama-tied-bias", "lora");
    merge_equals_forward("gpt2", "lora");
}

#[test]
fn merging_dora_changes_no_output() {
    merge_equals_forward("llama", "dora");
    merge_equals_forward("llama-tied-bias", "dora");
    merge_equals_forward("gpt2", "dora");
}

#[test]
fn a_fresh_adapter_is_neutral() {
    let lab = Lab::new(1);
    let plain = lab.open(&golden("families/llama"), None).logits(&lab, &prompt());
    for tuner in ["lora", "dora"] {
        let fresh = lab.open(&golden("families/llama"), Some((tuner, json!({})))).logits(&lab, &prompt());
        let off = max_difference(&plain, &fresh);
        assert!(off < 1e-5, "{tuner}: {off}");
    }
}

/// Names and shapes of an adapter file.
fn contents(folder: &Path) -> BTreeMap<String, Vec<usize>> {
    Adapter::read(folder).unwrap().tensors.into_iter().map(|t| (t.name, t.shape)).collect()
}

#[test]
fn names_and_shapes_are_pefts() {
    let lab = Lab::new(1);
    for tuner in ["lora", "dora"] {
        let folder = tempfile::tempdir().unwrap();
        let loaded = adapted(&lab, "llama", tuner);
        loaded.model.save_adapter(&loaded.store, folder.path(), "base-model").unwrap();
        let mut want = BTreeMap::new();
        for layer in 0..2 {
            for (module, d_in, d_out) in MODULES {
                let prefix = format!("base_model.model.model.layers.{layer}.{module}");
                want.insert(format!("{prefix}.lora_A.weight"), vec![4, d_in]);
                want.insert(format!("{prefix}.lora_B.weight"), vec![d_out, 4]);
                if tuner == "dora" {
                    // PEFT saves the magnitude as a bare parameter.
                    want.insert(format!("{prefix}.lora_magnitude_vector"), vec![d_out]);
                }
            }
        }
        assert_eq!(contents(folder.path()), want, "{tuner}");

        let config = json(folder.path().join("adapter_config.json"));
        let mut modules: Vec<&str> = config["target_modules"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        modules.sort_unstable();
        assert_eq!(modules, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]);
        let want = [
            ("peft_type", json!("LORA")),
            ("task_type", json!("CAUSAL_LM")),
            ("base_model_name_or_path", json!("base-model")),
            ("r", json!(4)),
            ("lora_alpha", json!(8)),
            ("lora_dropout", json!(0.1)),
            ("use_dora", json!(tuner == "dora")),
            ("use_rslora", json!(false)),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(false)),
        ];
        for (key, value) in want {
            assert_eq!(config[key], value, "{tuner}: {key}");
        }
    }
}

#[test]
fn names_of_the_real_model_are_pefts() {
    let Some(path) = asset(SMOLLM2) else { return };
    let lab = Lab::default();
    for tuner in ["lora", "dora"] {
        let folder = tempfile::tempdir().unwrap();
        let loaded = lab.open(&path, Some((tuner, json!({ "r": 8 }))));
        loaded.model.save_adapter(&loaded.store, folder.path(), "base").unwrap();
        let golden = json(golden(&format!("smollm2_{tuner}.json")));
        // The golden file names parameters in memory; on disk the magnitude loses its `.weight`.
        let saved = |name: &str| name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector");
        let mut want: Vec<String> = golden["final_norm"].as_object().unwrap().keys().map(|n| saved(n)).collect();
        want.sort_unstable();
        let got: Vec<String> = contents(folder.path()).into_keys().collect();
        assert_eq!(got, want, "{tuner}");
    }
}

#[test]
fn adapters_survive_the_disk_bit_for_bit() {
    let lab = Lab::new(1);
    for tuner in ["lora", "dora"] {
        let folder = tempfile::tempdir().unwrap();
        let mut loaded = adapted(&lab, "llama", tuner);
        loaded.model.save_adapter(&loaded.store, folder.path(), "base").unwrap();
        let config = json!({ "r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0 });
        let mut again = lab.open(&golden("families/llama"), Some((tuner, config)));
        again.model.load_adapter(&mut again.store, folder.path()).unwrap();
        assert_eq!(loaded.logits(&lab, &prompt()), again.logits(&lab, &prompt()), "{tuner}");
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let lab = Lab::new(1);
    let folder = tempfile::tempdir().unwrap();
    let loaded = adapted(&lab, "llama", "dora");
    loaded.model.save_adapter(&loaded.store, folder.path(), "base").unwrap();
    let attempts = [("lora", 4, "does not know"), ("dora", 8, "has shape [4, ")];
    for (tuner, rank, words) in attempts {
        let mut other = lab.open(&golden("families/llama"), Some((tuner, json!({ "r": rank }))));
        let error = other.model.load_adapter(&mut other.store, folder.path()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn full_models_survive_the_disk() {
    // Tensors as they are, turned, and stacked.
    for family in ["llama-tied-bias", "gpt2", "stablelm-parallel"] {
        let lab = Lab::new(1);
        let folder = tempfile::tempdir().unwrap();
        let source = golden("families").join(family);
        let mut loaded = lab.open(&source, None);
        loaded.model.save_full(&loaded.store, folder.path()).unwrap();
        let want = json(source.join("golden.json"));
        let want: Vec<f32> = want[0]["values"].as_array().unwrap().iter().flat_map(numbers).map(|v| v as f32).collect();
        let got = lab.open(folder.path(), None).logits(&lab, &prompt());
        assert_eq!(got, loaded.logits(&lab, &prompt()));
        assert!(max_difference(&got, &want) < 2e-4);
        let names = |folder: &Path| SafetensorsFile::open(&folder.join("model.safetensors")).unwrap().names();
        let (mut old, mut new) = (names(&source), names(folder.path()));
        old.sort();
        new.sort();
        assert_eq!(old, new);
    }
}
