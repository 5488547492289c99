//! What whole-system tests share: where things lie, the binary, and models and training steps without it.
//!
//! Tests of numbers ([`Lab`], [`Trainer`]) call the library crates; tests of behaviour ([`swift_host`]) run the binary as a user would.
//! Everything here panics with what is missing: a test has no better use for an error.
#![forbid(unsafe_code)]

mod binary;
mod lab;

pub use binary::{Ran, binary, command, plugins, rows, swift_host};
pub use lab::{Lab, Loaded, Trainer, sequences};

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The real model.
pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// Real rows.
pub const ALPACA: &str = "alpaca_en_demo.json";

/// The repository.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

/// A golden file.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A file that `tests/assets/fetch` brings; `None`, said on standard error, where it was not fetched.
pub fn asset(name: &str) -> Option<PathBuf> {
    let path = workspace().join(".assets").join(name);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("SKIPPED: `{}` is missing; `bash tests/assets/fetch` brings it", path.display());
    None
}

/// A JSON file.
#[track_caller]
pub fn json(path: impl AsRef<Path>) -> Value {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The numbers of a JSON array.
#[track_caller]
pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// The token ids of a JSON array.
#[track_caller]
pub fn tokens(value: &Value) -> Vec<i32> {
    value.as_array().expect("an array").iter().map(|v| v.as_i64().expect("a token") as i32).collect()
}

/// Fails unless `got` is within `relative` of `want`.
#[track_caller]
pub fn assert_close(what: &str, got: f64, want: f64, relative: f64) {
    let off = (got - want).abs() / want.abs().max(1e-12);
    assert!(off <= relative, "{what}: {got} instead of {want}, {off:.2e} off where {relative:.0e} is allowed");
}

/// Euclidean norm.
pub fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Largest absolute difference.
#[track_caller]
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
