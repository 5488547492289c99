//! Hugging Face folders in the forms that people have: one file or shards, weights in 32, 16 and 8 bits.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use swift_formats::{Checkpoint, NamedTensor};
use swift_tests::{Lab, golden, json as read_json, max_difference, tokens};
use tempfile::TempDir;

use crate::families::values;

/// A tensor of a file.
struct Stored {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: Vec<u8>,
}

fn llama() -> std::path::PathBuf {
    golden("families").join("llama")
}

fn float32(name: &str, shape: &[usize], values: &[f32]) -> Stored {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Stored { name: name.into(), shape: shape.to_vec(), dtype: Dtype::F32, bytes }
}

/// The tiny llama's tensors, each stored as `change` says.
fn tensors(change: impl Fn(&str, &[usize], &[f32]) -> Vec<Stored>) -> Vec<Stored> {
    let model = Checkpoint::open(llama()).unwrap();
    let stored = model.names().iter().flat_map(|name| {
        let view = model.tensor(name).unwrap();
        change(name, &view.shape, &view.to_f32().unwrap())
    });
    stored.collect()
}

fn write(path: &Path, tensors: &[Stored]) {
    let views = tensors.iter().map(|t| (&t.name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A model folder; with more than one shard, the tensors go round.
fn folder(tensors: Vec<Stored>, shards: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::copy(llama().join("config.json"), root.join("config.json")).unwrap();
    if shards == 1 {
        write(&root.join("model.safetensors"), &tensors);
        return folder;
    }
    let file = |shard: usize| format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
    let mut map = HashMap::new();
    let mut parts: Vec<Vec<Stored>> = (0..shards).map(|_| Vec::new()).collect();
    for (i, tensor) in tensors.into_iter().enumerate() {
        map.insert(tensor.name.clone(), file(i % shards));
        parts[i % shards].push(tensor);
    }
    parts.iter().enumerate().for_each(|(shard, part)| write(&root.join(file(shard)), part));
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    std::fs::write(root.join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

fn logits(folder: &TempDir) -> Vec<f32> {
    let lab = Lab::new(1);
    lab.open(folder.path(), None).logits(&lab, &tokens(&read_json(llama().join("golden.json"))[0]["ids"]))
}

#[test]
fn shards_are_one_model() {
    let as_is = || tensors(|name, shape, values| vec![float32(name, shape, values)]);
    let (whole, sharded) = (logits(&folder(as_is(), 1)), logits(&folder(as_is(), 3)));
    assert_eq!(whole, sharded);
    let want = values(&read_json(llama().join("golden.json"))[0]);
    assert!(max_difference(&sharded, &want) < 2e-4);
}

#[test]
fn weights_in_16_bits_are_what_they_say() {
    for (dtype, brain) in [(Dtype::F16, false), (Dtype::BF16, true)] {
        let half = |name: &str, shape: &[usize], values: &[f32]| NamedTensor::half_from_f32(name, shape.to_vec(), values, brain);
        let stored = || {
            tensors(|name, shape, values| {
                let bytes = half(name, shape, values).view.data.into_owned();
                vec![Stored { name: name.into(), shape: shape.to_vec(), dtype, bytes }]
            })
        };
        let rounded =
            tensors(|name, shape, values| vec![float32(name, shape, &half(name, shape, values).view.to_f32().unwrap())]);
        let want = logits(&folder(rounded, 1));
        for shards in [1, 2] {
            let off = max_difference(&logits(&folder(stored(), shards)), &want);
            assert!(off < 1e-5, "{dtype:?} in {shards} files: {off}");
        }
    }
}

/// The value of an `F8_E4M3` byte, of which 0x7f and 0xff are none.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let magnitude = if exponent == 0 { mantissa / 64.0 } else { (1.0 + mantissa) * 2f32.powi(exponent - 7) };
    if byte >= 0x80 { -magnitude } else { magnitude }
}

fn bf16(value: f32) -> f32 {
    NamedTensor::half_from_f32("x", vec![1], &[value], true).view.to_f32().unwrap()[0]
}

#[test]
fn weights_in_8_bits_are_multiplied_with_their_scales() {
    // One scale for each row, in 32 bits; the product is a bf16.
    let bytes: Vec<u8> = (0..=255).filter(|byte| byte & 0x7f != 0x7f).collect();
    let nearest =
        |value: f32| *bytes.iter().min_by(|a, b| (e4m3(**a) - value).abs().total_cmp(&(e4m3(**b) - value).abs())).unwrap();
    let rounded = |shape: &[usize], values: &[f32]| {
        let rows: Vec<(f32, Vec<u8>)> = values
            .chunks(shape[1])
            .map(|row| {
                let scale = row.iter().fold(0.0f32, |most, value| most.max(value.abs())) / 448.0;
                (scale, row.iter().map(|value| nearest(value / scale)).collect())
            })
            .collect();
        rows
    };
    let is_linear = |name: &str| name.ends_with("_proj.weight");
    let stored = tensors(|name, shape, values| {
        if !is_linear(name) {
            return vec![float32(name, shape, values)];
        }
        let (scales, rows): (Vec<f32>, Vec<Vec<u8>>) = rounded(shape, values).into_iter().unzip();
        let weight = Stored { name: name.into(), shape: shape.to_vec(), dtype: Dtype::F8_E4M3, bytes: rows.concat() };
        vec![weight, float32(&format!("{name}_scale"), &[shape[0], 1], &scales)]
    });
    let decoded = tensors(|name, shape, values| {
        if !is_linear(name) {
            return vec![float32(name, shape, values)];
        }
        let rows = rounded(shape, values);
        let values: Vec<f32> =
            rows.iter().flat_map(|(scale, row)| row.iter().map(move |byte| bf16(e4m3(*byte) * scale))).collect();
        vec![float32(name, shape, &values)]
    });
    let off = max_difference(&logits(&folder(stored, 2)), &logits(&folder(decoded, 1)));
    assert!(off < 1e-5, "{off}");
}
