//! What the binary carries, so that it does something useful with no file at all: the model `swift-tiny`.
//!
//! It was pretrained by this program; `assets/README.md` beside it has the recipe.

use std::path::Path;

use anyhow::{Context, Result};
use swift_formats::{Checkpoint, Gguf};

/// Name that `--model` takes for the embedded model.
pub(crate) const MODEL_NAME: &str = "swift-tiny";

static MODEL: &[u8] = include_bytes!("../assets/swift-tiny.gguf");

/// The embedded model.
pub(crate) fn model() -> Result<Checkpoint> {
    let file = Gguf::from_bytes(Path::new(MODEL_NAME), MODEL.to_vec())?;
    Checkpoint::from_gguf(file).context("the embedded model is broken; rebuild the program")
}
