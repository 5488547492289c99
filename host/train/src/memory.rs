//! What a run will take, and what the process takes.

use serde::Serialize;

/// Bytes of a run by what holds them. The sum is the planned peak.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// Resident before weights were touched: the program, plugins, tokenizer and tokenized data, measured, not planned. And what kernels
    /// will keep for their work.
    pub fixed: u64,
    /// Base weights in their stored format.
    pub weights: u64,
    /// Trained parameters, gradient sums and optimizer slots.
    pub training: u64,
    /// The largest arena of any executable: activations, gradients in flight, scratch.
    pub arena: u64,
    /// Tokens of the micro-batch that needs it.
    pub tokens: u64,
}

impl MemoryPlan {
    /// The planned peak.
    pub fn peak(&self) -> u64 {
        self.fixed + self.weights + self.training + self.arena
    }
}

/// Resident bytes of this process now, where the system tells.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// Largest resident bytes of this process so far, where the system tells.
pub fn resident_peak_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// A kB field of Linux's `/proc/self/status`.
fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
