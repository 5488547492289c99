//! What a run leaves behind, in ms-swift's layout:
//!
//! ```text
//! <output_dir>/v<N>-<time>/  args.json  logging.jsonl  summary.json  images/train_loss.png  checkpoint-<step>/
//! ```

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{MemoryPlan, Result, TrainConfig, TrainError};

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes `v<N>-<time>` in the configured output folder, N one more than the highest there; without `add_version` the output
    /// folder itself.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create(config: &TrainConfig) -> Result<RunFolder> {
        let root = &config.output_dir;
        std::fs::create_dir_all(root).map_err(|e| TrainError::io(root, e))?;
        let mut path = root.clone();
        if config.add_version {
            let version = |name: String| name.strip_prefix('v')?.split('-').next()?.parse::<u32>().ok();
            let entries = std::fs::read_dir(root).map_err(|e| TrainError::io(root, e))?;
            let next = entries.flatten().filter_map(|e| version(e.file_name().into_string().ok()?)).max().map_or(0, |v| v + 1);
            path = root.join(format!("v{next}-{}", time_stamp(SystemTime::now())));
        }
        std::fs::create_dir_all(path.join("images")).map_err(|e| TrainError::io(&path, e))?;
        let folder = RunFolder { path };
        folder.write_json("args.json", &serde_json::to_value(config).unwrap_or(Value::Null))?;
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `checkpoint-<step>`.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.path.join(format!("checkpoint-{step}"))
    }

    /// The loss curve.
    pub fn curve(&self) -> PathBuf {
        self.path.join("images").join("train_loss.png")
    }

    /// Adds one line to `logging.jsonl`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn log(&self, line: &Value) -> Result<()> {
        let path = self.path.join("logging.jsonl");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut f| writeln!(f, "{line}")).map_err(|e| TrainError::io(&path, e))
    }

    /// Replaces a JSON file of the folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        write_json(&self.path.join(name), value)
    }
}

/// Replaces a JSON file atomically.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    swift_formats::write_file(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    })?;
    Ok(())
}

/// `YYYYmmdd-HHMMSS`, UTC. Civil-from-days after Hinnant's "chrono-compatible low-level date algorithms".
fn time_stamp(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = ((seconds / 86_400) as i64 + 719_468, seconds % 86_400);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// `summary.json`: what scripts read.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Command of the run.
    pub command: String,
    /// Model.
    pub model: String,
    /// Updates done.
    pub steps: u64,
    /// Whether the run was interrupted.
    pub interrupted: bool,
    /// Training loss of the first update.
    pub first_loss: Option<f64>,
    /// Training loss of the last update.
    pub last_loss: Option<f64>,
    /// Held-out loss before training.
    pub eval_loss_before: Option<f64>,
    /// Held-out loss after training.
    pub eval_loss_after: Option<f64>,
    /// Exact-match accuracy on held-out rows before, where rows have an exact answer.
    pub accuracy_before: Option<f64>,
    /// The same after.
    pub accuracy_after: Option<f64>,
    /// Held-out rows with an exact answer.
    pub accuracy_rows: usize,
    /// Answer to the sample question before.
    pub sample_before: Option<String>,
    /// The same after.
    pub sample_after: Option<String>,
    /// Training tokens per second, evaluation and checkpoints not counted.
    pub tokens_per_second: f64,
    /// Training tokens.
    pub tokens: u64,
    /// Trained parameters.
    pub trainable_parameters: u64,
    /// All parameters of the base.
    pub base_parameters: u64,
    /// Planned peak and its parts, in bytes.
    pub memory_plan: MemoryPlan,
    /// Planned peak in bytes.
    pub planned_peak_bytes: u64,
    /// Measured peak of resident bytes, where the system tells.
    pub measured_peak_bytes: Option<u64>,
    /// Milliseconds in plugins while tracing.
    pub trace_ms: f64,
    /// Milliseconds in passes, planning and compiling.
    pub compile_ms: f64,
    /// Plugin calls after tracing; the design says 0.
    pub plugin_calls_after_tracing: u64,
    /// SHA-256 of each plugin by name.
    pub plugins: BTreeMap<String, String>,
    /// Canonical hash of the training graph.
    pub graph_hash: String,
    /// Seed.
    pub seed: u64,
    /// Last checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Loss of every update.
    pub losses: Vec<f32>,
}

impl Summary {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_else(|e| json!({ "error": e.to_string() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_stamps_are_civil() {
        let at = |s| time_stamp(UNIX_EPOCH + Duration::from_secs(s));
        assert_eq!(at(0), "19700101-000000");
        assert_eq!(at(951_782_400), "20000229-000000");
        assert_eq!(at(1_795_478_399), "20261123-235959");
    }
}
