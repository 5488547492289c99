//! NF4 from both ends: a base that is rounded while it is loaded, and the same base as bitsandbytes stores it.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use swift_formats::Checkpoint;
use swift_runtime::{Format, decode, encode};
use swift_serve::Quantization;
use swift_tests::{Lab, Trainer, golden, max_difference, sequences};

/// `[out, in]` of a layer's matrices; rows are whole blocks of 64.
const LINEAR: [(&str, [usize; 2]); 7] = [
    ("self_attn.q_proj", [64, 64]),
    ("self_attn.k_proj", [32, 64]),
    ("self_attn.v_proj", [32, 64]),
    ("self_attn.o_proj", [64, 64]),
    ("mlp.gate_proj", [128, 64]),
    ("mlp.up_proj", [128, 64]),
    ("mlp.down_proj", [64, 128]),
];

const PROMPT: [i32; 12] = [1, 5, 17, 99, 3, 64, 8, 120, 31, 2, 77, 40];

/// A tiny llama's parameters.
fn parameters() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut shapes = vec![("model.embed_tokens.weight".to_string(), vec![128, 64]), ("model.norm.weight".into(), vec![64])];
    for layer in 0..2 {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        shapes.extend(LINEAR.map(|(part, shape)| (name(part), shape.to_vec())));
        shapes.extend(["input_layernorm", "post_attention_layernorm"].map(|part| (name(part), vec![64])));
    }
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values = |shape: &[usize], next: &mut dyn FnMut() -> f32| match shape.len() {
        1 => vec![1.0; shape[0]],
        _ => (0..shape.iter().product()).map(|_| 0.2 * next()).collect(),
    };
    shapes.into_iter().map(|(name, shape)| (name, shape.clone(), values(&shape, &mut next))).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn write(folder: &Path, tensors: &Tensors) {
    let mut config = swift_tests::json(golden("families/llama/config.json"));
    let sizes = json!({ "hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tie_word_embeddings": true });
    config.as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

fn write_floats(folder: &Path) {
    let stored = |(name, shape, values): (String, _, Vec<f32>)| (name, (Dtype::F32, shape, bytes(&values)));
    write(folder, &parameters().into_iter().map(stored).collect());
}

/// Linear layers in bitsandbytes' layout, the rest as it is.
fn write_bitsandbytes(folder: &Path) {
    let mut tensors = Tensors::new();
    for (name, shape, values) in parameters() {
        if shape.len() < 2 || name.contains("embed") {
            tensors.insert(name, (Dtype::F32, shape, bytes(&values)));
            continue;
        }
        let blocks = encode(Format::Nf4, &values);
        let codes: Vec<u8> = blocks.chunks(36).flat_map(|block| block[4..].to_vec()).collect();
        let scales: Vec<u8> = blocks.chunks(36).flat_map(|block| block[..4].to_vec()).collect();
        // A scale of one, and each level as the high and the low nibble of a byte.
        let levels = [&1f32.to_le_bytes()[..], &[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef], &[0; 24]].concat();
        let state = json!({ "quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": shape }).to_string().into_bytes();
        tensors.insert(format!("{name}.absmax"), (Dtype::F32, vec![scales.len() / 4], scales));
        tensors.insert(format!("{name}.quant_map"), (Dtype::F32, vec![16], bytes(&decode(Format::Nf4, &levels)[..16])));
        tensors.insert(format!("{name}.quant_state.bitsandbytes__nf4"), (Dtype::U8, vec![state.len()], state));
        tensors.insert(name, (Dtype::U8, vec![codes.len(), 1], codes));
    }
    write(folder, &tensors);
}

#[test]
fn a_base_rounded_on_loading_is_the_base_that_bitsandbytes_stores() {
    let (floats, stored) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_floats(floats.path());
    write_bitsandbytes(stored.path());
    let lab = Lab::new(1);
    let plain = lab.open(floats.path(), None).logits(&lab, &PROMPT);
    let mut loaded = lab.open(stored.path(), None);
    let layer = |part: &str| format!("model.layers.1.{part}.weight");
    for (part, _) in LINEAR {
        assert_eq!(loaded.store.weight_info(&layer(part)).unwrap().1, Format::Nf4, "{part}");
    }
    let logits = loaded.logits(&lab, &PROMPT);
    let rounded = |double| lab.open_rounded(floats.path(), Quantization { double }, None).logits(&lab, &PROMPT);
    assert_eq!(rounded(false), logits);
    let off = max_difference(&plain, &logits);
    let largest = plain.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    assert!(off > 1e-3 && off < 0.5 * largest, "rounding moves logits of up to {largest} by {off}");
    let off = max_difference(&rounded(true), &logits);
    assert!(off > 0.0 && off < 0.05, "rounding the scales too moves logits by {off}");
}

#[test]
fn an_adapter_learns_on_a_rounded_base_and_the_base_stays() {
    let folder = tempfile::tempdir().unwrap();
    write_floats(folder.path());
    let lab = Lab::new(2);
    let config = json!({ "r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0 });
    let loaded = lab.open_rounded(folder.path(), Quantization { double: true }, Some(("lora", config)));
    let name = "model.layers.0.mlp.down_proj.weight";
    let before = loaded.param(name);
    let mut trainer = Trainer::new(&lab, loaded, 1.0);
    let batch = sequences(&[PROMPT.to_vec(), PROMPT.iter().rev().copied().collect()]);
    let losses: Vec<f64> = (0..30)
        .map(|_| {
            let loss = trainer.backward(&batch);
            trainer.update(1e-2, 0.0);
            loss
        })
        .collect();
    assert!(losses[29] < 0.8 * losses[0], "{losses:?}");
    assert_eq!(trainer.loaded.param(name), before);
    assert_eq!(trainer.loaded.store.weight_info(name).unwrap().1, Format::Nf4);
}

#[test]
fn what_cannot_be_rounded_is_named() {
    let lab = Lab::new(1);
    let double = Quantization { double: false };
    let refusal = |folder: &Path| -> String {
        let checkpoint = Checkpoint::open(folder).unwrap();
        lab.model(checkpoint).quantize(double).unwrap_err().to_string()
    };
    let odd = refusal(&golden("families/llama"));
    assert!(odd.contains("rows of 48 values") && odd.contains("q_proj"), "{odd}");
    let stored = tempfile::tempdir().unwrap();
    write_bitsandbytes(stored.path());
    let twice = refusal(stored.path());
    assert!(twice.contains("already") && twice.contains("q_proj"), "{twice}");
}
