//! Checkpoints in bitsandbytes' 4-bit layout.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use swift_formats::{Checkpoint, Format};

const NAME: &str = "model.layers.0.mlp.up_proj.weight";
/// As bitsandbytes writes them, apart from those that are tested.
const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// What lies in a file, by name.
#[derive(Clone)]
struct Tensors(HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn put(&mut self, part: &str, dtype: Dtype, shape: &[usize], data: Vec<u8>) {
        self.0.insert(format!("{NAME}{part}"), (dtype, shape.to_vec(), data));
    }

    fn floats(&mut self, part: &str, values: &[f32]) {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.put(part, Dtype::F32, &[values.len()], data);
    }

    fn state(&mut self, kind: &str, state: &Value) {
        let text = state.to_string().into_bytes();
        self.put(&format!(".quant_state.bitsandbytes__{kind}"), Dtype::U8, &[text.len()], text);
    }

    /// Opens a folder that holds these.
    fn open(&self, folder: &Path) -> Checkpoint {
        std::fs::write(folder.join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
        let views =
            self.0.iter().map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
        Checkpoint::open(folder).unwrap()
    }

    fn refused(&self, words: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        let error = self.open(folder.path()).tensor(NAME).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "`{word}` in: {error}");
        }
    }
}

fn codes(shape: [usize; 2]) -> Vec<u8> {
    (0..shape[0] * shape[1] / 2).map(|i| (i * 37 % 256) as u8).collect()
}

/// A weight with plain scales `1, 2, 3, ...`.
fn plain(shape: [usize; 2], block: usize) -> Tensors {
    let mut tensors = Tensors(HashMap::new());
    let codes = codes(shape);
    tensors.put("", Dtype::U8, &[codes.len(), 1], codes);
    let scales: Vec<f32> = (0..(shape[0] * shape[1]).div_ceil(block)).map(|i| i as f32 + 1.0).collect();
    tensors.floats(".absmax", &scales);
    tensors.floats(".quant_map", &LEVELS);
    tensors.state("nf4", &json!({"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": shape}));
    tensors
}

/// The blocks that the weight must become.
fn blocks(shape: [usize; 2], scale: impl Fn(usize) -> f32) -> Vec<u8> {
    let codes = codes(shape);
    let block = |(i, codes): (usize, &[u8])| [&scale(i).to_le_bytes(), codes].concat();
    codes.chunks(32).enumerate().flat_map(block).collect()
}

#[test]
fn nf4_keeps_its_codes_and_gets_its_scales_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let model = plain([3, 128], 64).open(folder.path());
    assert_eq!(model.names(), [NAME], "what lies beside a weight is part of it");
    assert!(model.is_quantized(NAME));
    let view = model.tensor(NAME).unwrap();
    assert_eq!((view.format, view.shape.as_slice()), (Format::Nf4, &[3, 128][..]));
    assert_eq!(view.data[..], blocks([3, 128], |i| i as f32 + 1.0));
    // A scale for twice as many values is written twice.
    let model = plain([3, 128], 128).open(folder.path());
    assert_eq!(model.tensor(NAME).unwrap().data[..], blocks([3, 128], |i| (i / 2) as f32 + 1.0));
}

#[test]
fn nested_scales_are_multiplied_out() {
    let mut tensors = plain([10, 64], 64);
    let levels: Vec<f32> = (0..256).map(|i| (i as f32 - 128.0) / 128.0).collect();
    tensors.put(".absmax", Dtype::U8, &[10], (0..10).map(|i| 100 + 7 * i).collect());
    tensors.floats(".nested_absmax", &[0.5, 0.25, 2.0]);
    tensors.floats(".nested_quant_map", &levels);
    let mut state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [10, 64]});
    state["nested_blocksize"] = json!(4);
    state["nested_offset"] = json!(0.75);
    state["nested_dtype"] = json!("float32");
    tensors.state("nf4", &state);
    let folder = tempfile::tempdir().unwrap();
    let view = tensors.open(folder.path());
    let scale = |i: usize| levels[100 + 7 * i] * [0.5, 0.25, 2.0][i / 4] + 0.75;
    assert_eq!(view.tensor(NAME).unwrap().data[..], blocks([10, 64], scale));

    let mut short = tensors.clone();
    short.floats(".nested_absmax", &[0.5, 0.25]);
    short.refused(&[NAME, "nested_absmax", "2 values, not 3"]);
    state["nested_offset"] = Value::Null;
    tensors.state("nf4", &state);
    tensors.refused(&[NAME, "nested_offset"]);
}

#[test]
fn what_is_no_block_of_64_in_a_row_becomes_floats() {
    let folder = tempfile::tempdir().unwrap();
    for (shape, block) in [([4, 96], 64), ([4, 64], 32)] {
        let model = plain(shape, block).open(folder.path());
        let view = model.tensor(NAME).unwrap();
        assert_eq!(view.format, Format::F32);
        let codes = codes(shape);
        let value = |i: usize| {
            let code = if i.is_multiple_of(2) { codes[i / 2] >> 4 } else { codes[i / 2] & 15 };
            LEVELS[usize::from(code)] * ((i / block) as f32 + 1.0)
        };
        assert_eq!(view.to_f32().unwrap(), (0..shape[0] * shape[1]).map(value).collect::<Vec<f32>>());
    }
}

#[test]
fn other_levels_become_floats() {
    let mut tensors = plain([2, 64], 64);
    let levels: Vec<f32> = (0..16).map(|i| i as f32 / 8.0).collect();
    tensors.floats(".quant_map", &levels);
    tensors.0.remove(&format!("{NAME}.quant_state.bitsandbytes__nf4"));
    tensors.state("fp4", &json!({"quant_type": "fp4", "blocksize": 64, "dtype": "float32", "shape": [2, 64]}));
    let folder = tempfile::tempdir().unwrap();
    let values = tensors.open(folder.path()).tensor(NAME).unwrap().to_f32().unwrap();
    let codes = codes([2, 64]);
    assert_eq!((values[0], values[65]), (levels[usize::from(codes[0] >> 4)], 2.0 * levels[usize::from(codes[32] & 15)]));
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let part = |part: &str| format!("{NAME}.{part}");
    for missing in ["absmax", "quant_map"] {
        let mut tensors = plain([2, 64], 64);
        tensors.0.remove(&part(missing));
        tensors.refused(&["has no tensor", missing]);
    }
    let mut tensors = plain([2, 64], 64);
    tensors.floats(".absmax", &[1.0]);
    tensors.refused(&[NAME, "absmax", "1 values, not 2"]);
    for (state, word) in [
        (json!({"blocksize": 64, "shape": [2, 65]}), "[2, 65]"),
        (json!({"blocksize": 64, "shape": [u64::MAX, 3]}), "do not hold the shape"),
        (json!({"blocksize": 64, "shape": "large"}), "shape"),
        (json!({"blocksize": 0, "shape": [2, 64]}), "blocksize"),
        (json!({"shape": [2, 64]}), "blocksize"),
        (json!([]), "shape"),
    ] {
        let mut tensors = plain([2, 64], 64);
        tensors.state("nf4", &state);
        tensors.refused(&[NAME, word]);
    }
    let mut tensors = plain([2, 64], 64);
    tensors.put(".quant_state.bitsandbytes__nf4", Dtype::U8, &[1], vec![b'{']);
    tensors.refused(&[NAME, "not JSON"]);
}
