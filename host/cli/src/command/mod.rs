//! One file per command.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod doctor;
pub(crate) mod embed;
pub(crate) mod estimate;
pub(crate) mod export;
pub(crate) mod infer;
pub(crate) mod infer_dataset;
pub(crate) mod kernels;
pub(crate) mod logits;
pub(crate) mod perplexity;
pub(crate) mod plugin;
pub(crate) mod run;
pub(crate) mod train;
