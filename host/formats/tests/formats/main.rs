//! Model files end to end: round trips, hostile input, and the real SmolLM2 file where it was fetched.

mod bitsandbytes;
mod checkpoint;
mod evil_gguf;
mod parts;
mod real_model;
