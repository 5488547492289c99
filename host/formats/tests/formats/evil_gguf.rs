//! GGUF files that lie. Each must give an error that names the file, without a panic or a large allocation.

use std::path::Path;

use swift_formats::Gguf;
use swift_formats::gguf::{self, Array, GgmlType, TensorSource, Value};

fn sample() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sample.gguf");
    let f32_type = GgmlType::from_id(0).unwrap();
    let q8 = GgmlType::from_id(8).unwrap();
    let metadata = [
        ("general.architecture".into(), "test".into()),
        ("a.u8".into(), Value::U8(1)),
        ("a.i8".into(), Value::I8(-1)),
        ("a.u16".into(), Value::U16(2)),
        ("a.i16".into(), Value::I16(-2)),
        ("a.u32".into(), Value::U32(3)),
        ("a.i32".into(), Value::I32(-3)),
        ("a.f32".into(), Value::F32(1e-5)),
        ("a.bool".into(), Value::Bool(true)),
        ("a.u64".into(), Value::U64(u64::MAX)),
        ("a.i64".into(), Value::I64(i64::MIN)),
        ("a.f64".into(), Value::F64(0.25)),
        ("b.strings".into(), Value::Array(Array::String(vec!["x".into(), "ü".into()]))),
        ("b.ints".into(), Value::Array(Array::I32(vec![1, -2]))),
        ("b.bools".into(), Value::Array(Array::Bool(vec![true, false]))),
        ("b.floats".into(), Value::Array(Array::F32(vec![]))),
    ];
    let weights: Vec<u8> = (0..68).collect();
    let tensors = [
        TensorSource { name: "norm", dims: &[3], kind: f32_type, data: &weights[..12] },
        TensorSource { name: "w", dims: &[32, 2], kind: q8, data: &weights },
    ];
    gguf::write(&path, &metadata, &tensors).unwrap();
    let read = Gguf::open(&path).unwrap();
    assert_eq!(read.metadata(), metadata);
    assert_eq!(read.version(), 3);
    assert_eq!(read.get("a.f32").unwrap().as_f64(), Some(1e-5));
    assert_eq!(read.bytes(read.tensor("w").unwrap()), weights);
    assert_eq!(read.tensor("w").unwrap().shape(), [2, 32]);
    std::fs::read(path).unwrap()
}

fn refuse(bytes: Vec<u8>, part: &str) {
    let error = Gguf::from_bytes(Path::new("evil.gguf"), bytes).unwrap_err().to_string();
    assert!(error.contains("evil.gguf") && error.contains(part), "wanted `{part}`: {error}");
}

/// A header by hand: `body` follows the two counts.
fn header(tensors: u64, metadata: u64, body: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(metadata.to_le_bytes());
    body.iter().for_each(|part| bytes.extend(*part));
    bytes
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}

fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn every_truncation_is_refused() {
    let whole = sample();
    // The last tensor is 68 bytes; what follows is padding, which may be missing.
    let end = whole.len() - (96 - 68);
    for cut in 0..end {
        assert!(Gguf::from_bytes(Path::new("evil.gguf"), whole[..cut].to_vec()).is_err(), "cut at {cut}");
    }
    assert!(Gguf::from_bytes(Path::new("evil.gguf"), whole[..end].to_vec()).is_ok());
}

#[test]
fn no_single_changed_byte_panics() {
    let whole = sample();
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            if let Ok(file) = Gguf::from_bytes(Path::new("evil.gguf"), bytes) {
                file.tensors().iter().for_each(|tensor| assert_eq!(file.bytes(tensor).len(), tensor.len));
            }
        }
    }
}

#[test]
fn lies_about_the_head_are_refused() {
    refuse(b"GGML\x03\0\0\0".to_vec(), "does not begin with");
    refuse(b"GGUF\x01\0\0\0".to_vec(), "version 1");
    refuse(b"GGUF\0\0\0\x03".to_vec(), "big-endian");
    refuse(b"GGUF\x63\x11\x22\x33".to_vec(), "unknown");
    refuse(header(u64::MAX, 0, &[]), "over the limits");
    refuse(header(0, u64::MAX, &[]), "over the limits");
    refuse(header(100_000, 0, &[]), "cut off");
}

#[test]
fn lies_in_metadata_are_refused() {
    let number = |value: u64| value.to_le_bytes();
    let array = |kind: u32, count: u64| [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes()].concat();
    refuse(header(0, 1, &[&number(u64::MAX)]), "over the limit");
    refuse(header(0, 1, &[&number(60_000)]), "cut off");
    refuse(header(0, 1, &[&number(2), b"\xff\xfe"]), "UTF-8");
    refuse(header(0, 1, &[&text("k"), &99u32.to_le_bytes()]), "type 99");
    refuse(header(0, 1, &[&text("k"), &7u32.to_le_bytes(), &[2]]), "boolean");
    refuse(header(0, 1, &[&text("k"), &array(8, u64::MAX)]), "over the limit");
    refuse(header(0, 1, &[&text("k"), &array(8, 1 << 24)]), "cut off");
    refuse(header(0, 1, &[&text("k"), &array(12, 1 << 24)]), "cut off");
    refuse(header(0, 1, &[&text("k"), &array(9, 1)]), "array of arrays");
    refuse(header(0, 1, &[&text("k"), &array(77, 1)]), "77");
    let entry = [text("k"), 0u32.to_le_bytes().to_vec(), vec![1]].concat();
    refuse(header(0, 2, &[&entry, &entry]), "twice");
    for alignment in [0u32, 3, 1 << 30] {
        let entry = [text("general.alignment"), 4u32.to_le_bytes().to_vec(), alignment.to_le_bytes().to_vec()].concat();
        refuse(header(0, 1, &[&entry]), "power of two");
    }
}

#[test]
fn lies_about_tensors_are_refused() {
    let data = [0u8; 256];
    let one = |tensor: &[u8]| header(1, 0, &[tensor, &data]);
    refuse(one(&tensor("t", &[], 0, 0)), "0 dimensions");
    refuse(one(&tensor("t", &[1; 5], 0, 0)), "5 dimensions");
    refuse(one(&tensor("t", &[0], 0, 0)), "impossible dimension 0");
    refuse(one(&tensor("t", &[u64::MAX, 2], 0, 0)), "impossible dimension");
    refuse(one(&tensor("t", &[1 << 62, 1], 0, 0)), "overflows");
    refuse(one(&tensor("t", &[8], 4, 0)), "unknown type number 4");
    refuse(one(&tensor("t", &[33], 8, 0)), "whole Q8_0 blocks");
    refuse(one(&tensor("t", &[8], 0, 4)), "not aligned");
    refuse(one(&tensor("t", &[8], 0, 1 << 20)), "cut off");
    refuse(one(&tensor("t", &[8], 0, u64::MAX - 31)), "cut off");
    refuse(one(&tensor("t", &[1 << 20], 0, 0)), "cut off");
    let pair = |second: &str, offset| [tensor("t", &[16], 0, 0), tensor(second, &[8], 0, offset)].concat();
    refuse(header(2, 0, &[&pair("t", 64), &data]), "twice");
    refuse(header(2, 0, &[&pair("u", 32), &data]), "overlap");
}

#[test]
fn the_writer_refuses_what_it_could_not_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let kind = GgmlType::from_id(8).unwrap();
    let write = |dims: &[usize], data: &[u8]| gguf::write(&path, &[], &[TensorSource { name: "t", dims, kind, data }]);
    assert!(write(&[32], &[0; 33]).is_err());
    assert!(write(&[31], &[0; 34]).is_err());
    assert!(write(&[usize::MAX, 32], &[0; 34]).is_err());
    assert!(gguf::write(&path, &[("general.alignment".into(), Value::U32(64))], &[]).is_err());
    assert!(!path.exists());
    write(&[32], &[0; 34]).unwrap();
}
