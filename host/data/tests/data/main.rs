//! Tokenizers, templates, labels and batches, against real files where they were fetched.

mod conversations;
mod golden_tokenizers;
mod sentencepiece;
mod templates;
mod tokenizers;

use std::path::{Path, PathBuf};

use swift_formats::Checkpoint;

/// A fetched file, or `None` with a visible message.
fn asset(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.assets").join(name);
    if !path.exists() {
        eprintln!("skipped: `{}` was not fetched", path.display());
        return None;
    }
    Some(path)
}

fn smollm2() -> Option<Checkpoint> {
    asset("SmolLM2-135M-Instruct.Q4_1.gguf").map(|path| Checkpoint::open(path).unwrap())
}
