//! Against numbers that other software computed; `golden/README.md` says which and how.

mod encoder;
mod families;
mod gguf;
mod metrics;
mod nf4;
mod quantized;
mod smollm2;
mod storage;
