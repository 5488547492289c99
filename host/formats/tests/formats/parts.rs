//! Models in several files, and weights in 8-bit floats.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::json;
use swift_formats::gguf::{self, GgmlType, TensorSource, Value};
use swift_formats::{Checkpoint, Format, Generation, Gguf, SafetensorsFile};

/// Writes part `no` of `count` with one tensor.
fn part(folder: &Path, no: u16, count: u16, tensor: &str) {
    let metadata = [
        ("general.architecture".to_owned(), Value::from("test")),
        ("split.no".to_owned(), Value::U16(no)),
        ("split.count".to_owned(), Value::U16(count)),
        ("split.tensors.count".to_owned(), Value::I32(3)),
    ];
    let data = [no as u8 + 1; 12];
    let source = TensorSource { name: tensor, dims: &[3], kind: GgmlType::from_id(0).unwrap(), data: &data };
    let path = folder.join(format!("m-{:05}-of-{:05}.gguf", no + 1, 3));
    gguf::write(&path, if no == 0 { &metadata } else { &metadata[1..] }, &[source]).unwrap();
}

#[test]
fn split_models_open_by_their_first_part() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let first = root.join("m-00001-of-00003.gguf");
    for (no, name) in ["a", "b", "c"].into_iter().enumerate() {
        part(root, no as u16, 3, name);
    }
    let model = Gguf::open(&first).unwrap();
    let names: Vec<&str> = model.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    for (tensor, byte) in model.tensors().iter().zip(1u8..) {
        assert_eq!(model.bytes(tensor), [byte; 12]);
    }
    let sizes: u64 = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(model.total_bytes() as u64, sizes);
    // A folder of parts is one model; that its architecture is not read is the next thing to be said.
    assert!(Checkpoint::open(root).unwrap_err().to_string().contains("architecture"));

    let refuse = |part: &str| {
        let error = Gguf::open(&first).unwrap_err().to_string();
        assert!(error.contains(part), "wanted `{part}`: {error}");
    };
    let second = root.join("m-00002-of-00003.gguf");
    let error = Gguf::open(&second).unwrap_err().to_string();
    assert!(error.contains("part 2 of 3") && error.contains("m-00001-of-00003.gguf"), "{error}");
    part(root, 1, 3, "a");
    refuse("also in an earlier part");
    part(root, 1, 4, "b");
    refuse("metadata says otherwise");
    let whole = fs::read(&second).unwrap();
    fs::write(&second, &whole[..whole.len() - 40]).unwrap();
    refuse("m-00002-of-00003.gguf");
    fs::remove_file(&second).unwrap();
    refuse("m-00002-of-00003.gguf");
    let renamed = root.join("model.gguf");
    fs::rename(&first, &renamed).unwrap();
    let error = Gguf::open(&renamed).unwrap_err().to_string();
    assert!(error.contains("-00001-of-00003.gguf"), "{error}");
    // One part too few for what the metadata counts.
    for no in 0..2 {
        let metadata = [
            ("split.no".to_owned(), Value::U16(no)),
            ("split.count".to_owned(), Value::U16(2)),
            ("split.tensors.count".to_owned(), Value::I32(9)),
        ];
        gguf::write(&root.join(format!("n-{:05}-of-00002.gguf", no + 1)), &metadata, &[]).unwrap();
    }
    let error = Gguf::open(&root.join("n-00001-of-00002.gguf")).unwrap_err().to_string();
    assert!(error.contains("0 tensors, not the 9"), "{error}");
    let metadata = [("split.count".to_owned(), Value::U64(u64::MAX))];
    gguf::write(&renamed, &metadata, &[]).unwrap();
    assert!(Gguf::open(&renamed).unwrap_err().to_string().contains("over the limit"));
}

fn safetensors(path: &Path, tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let end = data.len() + bytes.len();
        header.insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), end]}));
        data.extend(bytes);
    }
    let header = serde_json::Value::Object(header).to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()).unwrap();
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn eight_bit_floats_are_decoded_with_their_scales() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("config.json"), "{}").unwrap();
    let file = root.join("model.safetensors");
    let bytes = vec![0x38, 0x3c, 0x40, 0xb8, 0x01, 0x7e];
    safetensors(
        &file,
        &[
            ("rows", "F8_E4M3", vec![2, 3], bytes.clone()),
            ("rows_scale", "F32", vec![2, 1], floats(&[2.0, 0.5])),
            ("tensor", "F8_E4M3", vec![2, 3], bytes.clone()),
            ("tensor_scale", "F32", vec![], floats(&[4.0])),
            ("bare", "F8_E5M2", vec![2, 3], bytes.clone()),
            ("blocks", "F8_E4M3", vec![1, 130], vec![0x38; 130]),
            ("blocks_scale_inv", "F32", vec![1, 2], floats(&[3.0, 5.0])),
            ("wrong", "F8_E4M3", vec![2, 3], bytes),
            ("wrong_scale", "F32", vec![5], floats(&[1.0; 5])),
            ("integers", "I8", vec![2], vec![1, 2]),
        ],
    );
    let model = Checkpoint::open(root).unwrap();
    let read = |name: &str| model.tensor(name).unwrap();
    assert_eq!(read("rows").format, Format::BF16);
    assert_eq!(read("rows").to_f32().unwrap(), [2.0, 3.0, 4.0, -0.5, 0.0009765625, 224.0]);
    assert_eq!(read("tensor").to_f32().unwrap(), [4.0, 6.0, 8.0, -4.0, 0.0078125, 1792.0]);
    assert_eq!(read("bare").to_f32().unwrap()[..3], [0.5, 1.0, 2.0]);
    let blocks = read("blocks").to_f32().unwrap();
    assert!(blocks[..128].iter().all(|&value| value == 3.0) && blocks[128..] == [5.0, 5.0]);
    let error = model.tensor("wrong").unwrap_err().to_string();
    assert!(error.contains("wrong_scale") && error.contains("[5]"), "{error}");
    let error = model.tensor("integers").unwrap_err().to_string();
    assert!(error.contains("integers") && error.contains("I8"), "{error}");
    assert_eq!(SafetensorsFile::open(&file).unwrap().tensor("rows").unwrap().to_f32().unwrap()[..2], [1.0, 1.5]);
    assert_eq!(model.generation().unwrap(), Generation::default());
    fs::write(root.join("generation_config.json"), r#"{"temperature": 0.7, "eos_token_id": [1, 2]}"#).unwrap();
    assert_eq!(model.generation().unwrap().eos_token_ids, [1, 2]);
}

#[test]
fn files_recommend_sampling_by_their_temperature() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let read = |metadata: &[(&str, Value)]| {
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (format!("general.sampling.{key}"), value.clone())).collect();
        gguf::write(&path, &metadata, &[]).unwrap();
        Generation::from_gguf(&Gguf::open(&path).unwrap())
    };
    let (temperature, top_k) = (("temp", Value::F32(0.6)), ("top_k", Value::I32(20)));
    let want = Generation { do_sample: Some(true), temperature: Some(0.6), top_k: Some(20), ..Generation::default() };
    assert_eq!(read(&[temperature, top_k.clone()]).unwrap(), want);
    assert_eq!(read(&[top_k]).unwrap().do_sample, None);
    assert_eq!(read(&[("temp", Value::F32(0.0))]).unwrap().do_sample, Some(false));
    let error = read(&[("top_p", Value::F32(2.0))]).unwrap_err().to_string();
    assert!(error.contains("`top_p` is 2.0"), "{error}");
}

/// Opening reads the headers, reading a tensor its own pages: files may be larger than the memory there is.
#[test]
fn files_are_mapped_and_read_where_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("config.json"), "{}").unwrap();
    // A terabyte, of which the disk holds the header and the last page.
    let (large, small) = (1usize << 40, 16);
    let header = json!({
        "large": { "dtype": "F32", "shape": [large / 4], "data_offsets": [0, large] },
        "small": { "dtype": "F32", "shape": [small / 4], "data_offsets": [large, large + small] },
    });
    let header = header.to_string();
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let file = fs::File::create(root.join("model.safetensors")).unwrap();
    let end = (start.len() + large) as u64;
    let written = file.write_all_at(&start, 0).and_then(|()| file.write_all_at(&floats(&[1.0, 2.0, 3.0, 4.0]), end));
    if let Err(error) = written {
        return eprintln!("skipped: this file system has no sparse files of that size ({error})");
    }
    let model = Checkpoint::open(root).unwrap();
    assert_eq!(model.total_bytes() as u64, end + small as u64);
    assert_eq!(model.tensor("small").unwrap().to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(model.tensor("large").unwrap().data.len(), large);
}
