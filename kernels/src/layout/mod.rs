//! Moving elements: permutations, strided views (slice, concatenate, pad, expand) and rows.
//!
//! Mostly portable code at every level: these kernels only move bytes, and the inner loops are
//! `memcpy` or cache-blocked transposes.

mod rows;
mod strided;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

pub(crate) use rows::copy_rows;
pub use rows::{Base, gather_rows, scatter_add_rows};
pub use strided::{MAX_RANK, View, copy_strided, fill, permute_copy};
