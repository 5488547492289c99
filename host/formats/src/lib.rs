//! Model and adapter files: GGUF, safetensors, Hugging Face folders, PEFT adapters.
//!
//! This crate owns bytes on disk and nothing above them: it knows names, shapes and storage formats, never what a layer
//! computes. Weight files are mapped, not read, and a tensor is handed out as the bytes of its storage format.
//!
//! Every file is treated as hostile. Counts, lengths, offsets and products are checked before they are used, what is
//! allocated while reading is bounded by the size of the file, limits are named constants, and each refusal says which
//! file, at which byte, and why. Nothing here panics on input.
//!
//! Files are written beside their target and renamed over it, so a failure never destroys what was there.
//!
//! `unsafe` appears in `mapped.rs` alone, around `mmap` and `madvise`.

mod adapter;
mod atomic;
mod bitsandbytes;
mod checkpoint;
mod error;
mod float8;
mod generation;
pub mod gguf;
mod json;
mod mapped;
mod pooling;
mod safetensors;
mod tensor;

pub use adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, AdapterTensor};
pub use atomic::{replace, write_file};
pub use checkpoint::{Checkpoint, Kind};
pub use error::FormatError;
pub use generation::{GENERATION_CONFIG, Generation};
pub use gguf::Gguf;
pub use json::read_json;
pub use pooling::Pooling;
pub use safetensors::{LateTensor, NamedBytes, SafetensorsFile, write_safetensors, write_safetensors_late};
pub use tensor::{Format, NamedTensor, TensorView};

/// Result of this crate.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;
