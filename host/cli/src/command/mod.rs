//! One file per command.

pub(crate) mod doctor;
pub(crate) mod estimate;
pub(crate) mod export;
pub(crate) mod infer;
pub(crate) mod logits;
pub(crate) mod plugin;
pub(crate) mod run;
pub(crate) mod train;
