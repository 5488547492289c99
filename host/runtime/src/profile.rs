//! Where the time of runs went, by op.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Totals of one op.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProfileRow {
    /// Launches.
    pub calls: u64,
    /// Wall time.
    pub time: Duration,
    /// Bytes of operands read and written; weights count in their storage format.
    pub bytes: u64,
    /// Arithmetic, as the graph's ops count it.
    pub flops: u64,
}

/// Totals of all launches since profiling was switched on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// By op name.
    pub rows: BTreeMap<&'static str, ProfileRow>,
}

impl Profile {
    pub(crate) fn add(&mut self, op: &'static str, time: Duration, bytes: u64, flops: u64) {
        let row = self.rows.entry(op).or_default();
        row.calls += 1;
        row.time += time;
        row.bytes += bytes;
        row.flops += flops;
    }

    /// Wall time of all launches.
    pub fn total(&self) -> Duration {
        self.rows.values().map(|row| row.time).sum()
    }
}

/// A table, most expensive op first.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total().as_secs_f64().max(f64::MIN_POSITIVE);
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_by_key(|(_, row)| std::cmp::Reverse(row.time));
        writeln!(f, "{:<30} {:>8} {:>10} {:>6} {:>8} {:>8}", "op", "calls", "ms", "%", "GB/s", "GFLOP/s")?;
        for (op, row) in rows {
            let seconds = row.time.as_secs_f64();
            let rate = |amount: u64| amount as f64 / seconds.max(f64::MIN_POSITIVE) / 1e9;
            writeln!(
                f,
                "{op:<30} {:>8} {:>10.2} {:>6.1} {:>8.2} {:>8.1}",
                row.calls,
                seconds * 1e3,
                100.0 * seconds / total,
                rate(row.bytes),
                rate(row.flops)
            )?;
        }
        Ok(())
    }
}
