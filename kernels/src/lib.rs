//! Hand-written CPU kernels: slices, shapes and strides in, slices out.
//!
//! The crate knows no tensors, graphs, files or environment variables. Every
//! kernel takes a [`pool::Pool`], which carries both the worker threads and the
//! instruction set to use, so that tests can force a lower level.
//!
//! Contracts shared by every family:
//! * Activations are `f32`, row-major. Weights are [`format::Weight`]s.
//! * `scalar.rs` of a family is its specification; the wide versions are held
//!   to it by the parity tests beside them. They are `avx2.rs` and `avx512.rs`,
//!   `amx.rs` where a matrix unit pays, or one `vector.rs` over the vector types of `simd`, compiled per level, NEON included.
//! * Results are bitwise independent of the number of threads: an output element
//!   is computed by one task, in an order fixed by the shapes.
//! * Wrong lengths are programmer mistakes and panic at the caller's line.

pub mod adam;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod ceiling;
pub mod conv;
pub mod cross_entropy;
pub mod dynamic8;
pub mod elementwise;
pub mod format;
pub mod gemm;
pub mod glu;
pub mod isa;
pub mod layout;
pub mod linear;
pub mod lora;
pub mod norm;
pub mod pages;
pub mod panels;
pub mod pool;
pub mod quant;
pub mod random;
pub mod reduce;
pub mod rope;
pub mod topk;

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod simd;
#[cfg(target_arch = "x86_64")]
mod split;
mod stream;
