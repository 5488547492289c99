//! Checkpoint folders: what is served (adapter or full model) beside what a run needs to go on (optimizer slots, position).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use swift_data::SamplerState;
use swift_formats::{LateTensor, NamedBytes, SafetensorsFile, read_json, write_safetensors_late};
use swift_runtime::Store;
use swift_serve::AdaptedModel;

use crate::record::write_json;
use crate::{Result, Text, TrainConfig, TrainError};

const STATE_FILE: &str = "trainer_state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Largest `trainer_state.json` that is read; it holds one number per update.
const MAX_STATE_BYTES: u64 = 256 << 20;

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    /// Updates done.
    pub(crate) global_step: u64,
    /// Micro-batches handed out.
    pub(crate) sampler: SamplerState,
    /// Graph that was trained; another graph cannot be resumed.
    pub(crate) graph_hash: String,
    /// Updates the schedule was made for.
    pub(crate) max_steps: u64,
    /// Training tokens so far.
    pub(crate) tokens: u64,
    /// Loss of every update so far.
    pub(crate) losses: Vec<f32>,
    /// (update, loss) of every evaluation so far.
    pub(crate) eval_losses: Vec<(u64, f64)>,
}

/// Writes a checkpoint. The folder appears under its final name only once it is complete.
pub(crate) fn save(
    folder: &Path,
    config: &TrainConfig,
    model: &mut AdaptedModel,
    text: &Text,
    store: &Store,
    slots: &[String],
    state: &TrainerState,
) -> Result<()> {
    let part = folder.with_extension("part");
    if part.exists() {
        std::fs::remove_dir_all(&part).map_err(|e| TrainError::io(&part, e))?;
    }
    std::fs::create_dir_all(&part).map_err(|e| TrainError::io(&part, e))?;
    if model.trained_base().is_empty() {
        model.save_adapter(store, &part, &config.model)?;
    } else {
        model.save_full(store, &part)?;
        text.write(&part)?;
        if !model.adapter_params().is_empty() {
            model.save_adapter(store, &part, &config.model)?;
        }
    }
    write_json(&part.join("args.json"), &serde_json::to_value(config).unwrap_or_default())?;
    if !config.save_only_model {
        let (mut tensors, mut codes) = (Vec::with_capacity(slots.len()), Vec::new());
        for name in slots {
            if let Some(state) = store.packed_state(name) {
                codes.push(NamedBytes { name, shape: state.shape, data: state.codes });
                let (shape, values) = (vec![state.absmax.len()], Box::new(|| state.absmax.into()));
                tensors.push(LateTensor { name: scales(name), shape, values });
            } else {
                let (shape, values) = store.state(name)?;
                tensors.push(LateTensor { name: name.clone(), shape: shape.to_vec(), values: Box::new(|| values.into()) });
            }
        }
        write_safetensors_late(&part.join(OPTIMIZER_FILE), &tensors, &codes, &BTreeMap::new())?;
        write_json(&part.join(STATE_FILE), &serde_json::to_value(state).unwrap_or_default())?;
    }
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(|e| TrainError::io(folder, e))?;
    }
    std::fs::rename(&part, folder).map_err(|e| TrainError::io(folder, e))
}

/// Name of the tensor that holds the scales of a slot in 8 bits.
fn scales(slot: &str) -> String {
    format!("{slot}.absmax")
}

/// Puts a checkpoint's weights and slots into the store and returns where the run was.
pub(crate) fn resume(
    folder: &Path,
    model: &mut AdaptedModel,
    store: &mut Store,
    slots: &[String],
    graph_hash: &str,
) -> Result<TrainerState> {
    let refuse = |reason: String| TrainError::Resume { path: folder.to_path_buf(), reason };
    if !folder.is_dir() {
        return Err(refuse("there is no such folder".into()));
    }
    let path = folder.join(STATE_FILE);
    if !path.is_file() {
        return Err(refuse(format!("`{STATE_FILE}` is missing; was it saved with `--save_only_model`?")));
    }
    let state: TrainerState =
        serde_json::from_value(read_json(&path, MAX_STATE_BYTES)?).map_err(|e| refuse(format!("`{STATE_FILE}`: {e}")))?;
    if state.graph_hash != graph_hash {
        return Err(refuse("it was made by another model, tuner or loss: the graph hashes differ".into()));
    }
    if model.trained_base().is_empty() {
        model.load_adapter(store, folder)?;
    } else {
        model.load_full(store, folder)?;
        if !model.adapter_params().is_empty() {
            model.load_adapter(store, folder)?;
        }
    }
    let file = SafetensorsFile::open(&folder.join(OPTIMIZER_FILE))?;
    let other = |name: &str| refuse(format!("`{OPTIMIZER_FILE}` does not hold `{name}` as this run's optimizer keeps it"));
    for name in slots {
        if store.packed_state(name).is_some() {
            let (shape, codes) = file.bytes(name)?.ok_or_else(|| other(name))?;
            let absmax = file.tensor(&scales(name))?.to_f32().ok_or_else(|| other(name))?;
            store.write_packed_state(name, shape, codes, &absmax)?;
        } else {
            if file.bytes(name)?.is_some() {
                return Err(other(name));
            }
            let view = file.tensor(name)?;
            let values = view.to_f32().ok_or_else(|| other(name))?;
            store.write_state(name, view.shape.clone(), &values)?;
        }
    }
    Ok(state)
}

/// Removes the oldest checkpoints of a run folder beyond `keep`.
pub(crate) fn prune(run: &Path, keep: usize) -> Result<()> {
    let step = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok();
    let entries = std::fs::read_dir(run).map_err(|e| TrainError::io(run, e))?;
    let mut found: Vec<(u64, PathBuf)> = entries.flatten().map(|e| e.path()).filter_map(|p| Some((step(&p)?, p))).collect();
    found.sort();
    let excess = found.len().saturating_sub(keep.max(1));
    for (_, path) in found.into_iter().take(excess) {
        std::fs::remove_dir_all(&path).map_err(|e| TrainError::io(&path, e))?;
    }
    Ok(())
}
