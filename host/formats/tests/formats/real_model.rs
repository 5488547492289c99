//! The SmolLM2-135M file, where `.assets` holds it.

use std::path::{Path, PathBuf};

use serde_json::json;
use swift_formats::{Checkpoint, Format};

fn smollm2() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.assets/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.is_file() {
        eprintln!("skipped: `{}` was not fetched", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn smollm2_opens_as_a_llama() {
    let Some(path) = smollm2() else { return };
    let model = Checkpoint::open(path).unwrap();
    let config = model.config();
    for (key, value) in [
        ("model_type", json!("llama")),
        ("hidden_size", json!(576)),
        ("intermediate_size", json!(1536)),
        ("num_hidden_layers", json!(30)),
        ("num_attention_heads", json!(9)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(64)),
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(100000.0)),
        ("vocab_size", json!(49152)),
        ("max_position_embeddings", json!(8192)),
        ("tie_word_embeddings", json!(true)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!(2)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(model.names().len(), 272);
    let elements: usize = model.names().iter().map(|name| model.tensor(name).unwrap().elements()).sum();
    assert_eq!(elements, 134_515_008);
    let embedding = model.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!((embedding.format, embedding.shape.as_slice()), (Format::Q8_0, &[49152, 576][..]));
    let query = model.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!(query.format, Format::Q4_1);
    let raw = model.gguf().unwrap();
    let stored = raw.bytes(raw.tensor("blk.0.attn_q.weight").unwrap());
    let row = 576 / 32 * 20;
    // Second head, Hugging Face row 33 = 1·d/2 + 1, is stored as row 2·1 + 1.
    assert_eq!(query.data[(64 + 33) * row..(64 + 34) * row], stored[(64 + 3) * row..(64 + 4) * row]);
    assert!(query.to_f32().unwrap().iter().all(|value| value.is_finite()));
}

/// Names, shapes and configurations of other architectures, whether or not their formats are computed with.
#[test]
fn other_architectures_have_their_configurations() {
    let cases = [
        (
            "qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf",
            "self_attn.q_proj.bias",
            json!({ "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-6, "vocab_size": 151936 }),
        ),
        (
            "gemma-3-270m.Q4_K_M.gguf",
            "self_attn.q_norm.weight",
            json!({ "model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
                "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "rms_norm_eps": 1e-6, "vocab_size": 262144,
                "sliding_window": 512, "query_pre_attn_scalar": 256, "tie_word_embeddings": true }),
        ),
    ];
    for (file, part, want) in cases {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.assets").join(file);
        if !path.is_file() {
            eprintln!("skipped: `{}` was not fetched", path.display());
            continue;
        }
        let model = Checkpoint::open(path).unwrap();
        for (key, value) in want.as_object().unwrap() {
            assert_eq!(&model.config()[key], value, "{file}: {key}");
        }
        assert_eq!(model.names().len(), model.gguf().unwrap().tensors().len(), "{file}: every tensor has a name");
        let vector = model.tensor(&format!("model.layers.3.{part}")).unwrap().to_f32().unwrap();
        assert!(vector.iter().all(|v| v.is_finite()), "{file}");
        if file.starts_with("gemma") {
            // Stored as 1 + w; the reference holds w.
            let stored = model.gguf().unwrap();
            let info = stored.tensor("blk.3.attn_q_norm.weight").unwrap();
            let bytes = stored.bytes(info);
            let first = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            assert_eq!(vector[0], first - 1.0);
        }
    }
}
