//! Checkpoints of both kinds, written by us and read back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use swift_formats::gguf::{self, llama};
use swift_formats::{Checkpoint, Format, FormatError, Gguf, Kind, NamedTensor, TensorView, write_safetensors};

fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "vocab_size": 6,
        "max_position_embeddings": 128, "tie_word_embeddings": true,
    })
}

/// A tensor whose every element is different.
fn weight(name: &str, shape: &[usize]) -> NamedTensor<'static> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| i as f32 + name.len() as f32 / 64.0).collect();
    NamedTensor::from_f32(name, shape.to_vec(), &values)
}

fn weights() -> Vec<NamedTensor<'static>> {
    let layer = |part: &str| format!("model.layers.0.{part}.weight");
    let query = TensorView {
        format: Format::Q8_0,
        shape: vec![32, 32],
        data: (0..32 * 34).map(|i| (i % 97) as u8).collect::<Vec<u8>>().into(),
    };
    vec![
        weight("model.embed_tokens.weight", &[6, 32]),
        weight(&layer("input_layernorm"), &[32]),
        NamedTensor { name: layer("self_attn.q_proj"), view: query },
        weight(&layer("self_attn.k_proj"), &[16, 32]),
        weight(&layer("self_attn.v_proj"), &[16, 32]),
        weight(&layer("self_attn.o_proj"), &[32, 32]),
        weight(&layer("post_attention_layernorm"), &[32]),
        weight(&layer("mlp.gate_proj"), &[64, 32]),
        weight(&layer("mlp.up_proj"), &[64, 32]),
        weight(&layer("mlp.down_proj"), &[32, 64]),
        weight("model.norm.weight", &[32]),
    ]
}

#[test]
fn llama_gguf_round_trips_through_the_row_permutation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    llama::write(&path, &config(), &weights(), &[("general.name".into(), "tiny".into())]).unwrap();
    let read = Checkpoint::open(&path).unwrap();
    assert_eq!(read.kind(), Kind::Gguf);
    for (key, value) in config().as_object().unwrap() {
        assert_eq!(&read.config()[key], value, "{key}");
    }
    assert_eq!(read.names().len(), weights().len());
    for tensor in weights() {
        let view = read.tensor(&tensor.name).unwrap();
        assert_eq!((view.format, &view.shape), (tensor.view.format, &tensor.view.shape), "{}", tensor.name);
        assert_eq!(view.data, tensor.view.data, "{}", tensor.name);
    }
    // In the file itself, row 1 of the first query head is Hugging Face row d/2 = 8.
    let file = Gguf::open(&path).unwrap();
    let stored = file.bytes(file.tensor("blk.0.attn_q.weight").unwrap());
    assert_eq!(stored[34..68], weights()[2].view.data[8 * 34..9 * 34]);
    assert!(matches!(read.tensor("lm_head.weight"), Err(FormatError::MissingTensor { .. })));
    assert_eq!(Checkpoint::open(folder.path()).unwrap().kind(), Kind::Gguf);
}

#[test]
fn llama3_scaling_survives_gguf() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let mut config = config();
    config["rope_parameters"] = json!({
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    });
    llama::write(&path, &config, &weights(), &[]).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().config()["rope_parameters"], config["rope_parameters"]);
}

#[test]
fn other_architectures_and_types_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    gguf::write(&path, &[("general.architecture".into(), "rwkv7".into())], &[]).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("rwkv7"), "{error}");

    let mut tensors = weights();
    let view = &mut tensors[9].view;
    (view.format, view.shape) = (Format::Q4_1, vec![32, 64]);
    view.data = vec![0; 64 * 20].into();
    llama::write(&path, &config(), &tensors, &[]).unwrap();
    // Turn the Q4_1 tensor into MXFP4 by changing its type number; both are blocks of 32 and 17 < 20 bytes.
    let mut bytes = fs::read(&path).unwrap();
    let name = b"blk.0.ffn_down.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 16;
    assert_eq!(bytes[at], 3);
    bytes[at] = 39;
    fs::write(&path, bytes).unwrap();
    let read = Checkpoint::open(&path).unwrap();
    let error = read.tensor("model.layers.0.mlp.down_proj.weight").unwrap_err().to_string();
    assert!(error.contains("MXFP4"), "{error}");
}

fn plain() -> Vec<NamedTensor<'static>> {
    let mut tensors = weights();
    tensors[2] = weight("model.layers.0.self_attn.q_proj.weight", &[32, 32]);
    tensors
}

fn write_json(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn folders_open_whole_or_sharded() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    write_json(&root.join("config.json"), &config());
    write_safetensors(&root.join("model.safetensors"), &plain(), &BTreeMap::new()).unwrap();
    let whole = Checkpoint::open(root).unwrap();
    assert_eq!(whole.kind(), Kind::HuggingFace);

    let sharded = tempfile::tempdir().unwrap();
    let root = sharded.path();
    write_json(&root.join("config.json"), &config());
    let tensors = plain();
    let mut map = json!({});
    for (file, part) in [("a.safetensors", &tensors[..4]), ("b.safetensors", &tensors[4..])] {
        write_safetensors(&root.join(file), part, &BTreeMap::new()).unwrap();
        part.iter().for_each(|tensor| map[&tensor.name] = json!(file));
    }
    let index = root.join("model.safetensors.index.json");
    write_json(&index, &json!({"metadata": {}, "weight_map": map}));
    let read = Checkpoint::open(root).unwrap();
    for tensor in &tensors {
        assert!(read.contains(&tensor.name));
        assert_eq!(read.tensor(&tensor.name).unwrap().data, whole.tensor(&tensor.name).unwrap().data);
    }

    fs::remove_file(root.join("b.safetensors")).unwrap();
    let error = Checkpoint::open(root).unwrap_err().to_string();
    assert!(error.contains("`b.safetensors`, which is not beside it") && error.contains(&tensors[4].name), "{error}");

    for escape in ["../a.safetensors", "/etc/passwd", "..", "", "x\\..\\y"] {
        write_json(&index, &json!({"weight_map": {"w": escape}}));
        assert!(Checkpoint::open(root).unwrap_err().to_string().contains("names no file"), "{escape}");
    }
    write_json(&index, &json!({"weight_map": {"absent": "a.safetensors"}}));
    assert!(Checkpoint::open(root).unwrap_err().to_string().contains("absent"));
    write_json(&index, &json!([]));
    assert!(Checkpoint::open(root).unwrap_err().to_string().contains("weight_map"));
}

#[test]
fn broken_folders_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let refuse = |part: &str| {
        let error = Checkpoint::open(root).unwrap_err().to_string();
        assert!(error.contains(part), "wanted `{part}`: {error}");
    };
    refuse("config.json");
    fs::write(root.join("config.json"), "{\"model_type\": ").unwrap();
    refuse("not valid JSON");
    fs::write(root.join("config.json"), "[".repeat(1 << 20)).unwrap();
    refuse("not valid JSON");
    fs::write(root.join("config.json"), "\u{feff}[]").unwrap();
    refuse("not a JSON object");
    write_json(&root.join("config.json"), &config());
    refuse("model.safetensors");
    fs::write(root.join("pytorch_model.bin"), "x").unwrap();
    refuse("pickled");
    fs::write(root.join("model.safetensors"), "").unwrap();
    refuse("too few");
    let error = Checkpoint::open(root.join("pytorch_model.bin")).unwrap_err().to_string();
    assert!(error.contains("no GGUF file"), "{error}");
    assert!(Checkpoint::open(root.join("nothing")).unwrap_err().to_string().contains("nothing"));
}
