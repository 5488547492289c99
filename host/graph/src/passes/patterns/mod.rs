//! Rewrites of several nodes into one with a kernel of its own, one file per pattern. None changes a value beyond rounding.

mod activation;
mod adam;
mod dora_norm;
mod epilogue;
mod glu;
mod low_rank;

pub use activation::activation;
pub use adam::adam;
pub use dora_norm::dora_norm;
pub use epilogue::epilogue;
pub use glu::glu;
pub use low_rank::low_rank;
