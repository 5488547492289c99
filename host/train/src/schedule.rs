//! Learning-rate schedules as functions of the step, with Hugging Face's names and shapes.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine from 1 to 0.
    Cosine,
    /// A straight line from 1 to 0.
    Linear,
    /// Always 1.
    Constant,
    /// 1 after warm-up.
    ConstantWithWarmup,
}

impl Schedule {
    const NAMES: [(&'static str, Schedule); 4] = [
        ("cosine", Schedule::Cosine),
        ("linear", Schedule::Linear),
        ("constant", Schedule::Constant),
        ("constant_with_warmup", Schedule::ConstantWithWarmup),
    ];

    /// Factor of the peak learning rate for the update that follows `done` finished updates, of `total`. Warm-up rises linearly
    /// from 0 over `warmup` updates; `constant` ignores it, as in Hugging Face.
    pub fn factor(self, done: u64, warmup: u64, total: u64) -> f64 {
        if self == Schedule::Constant {
            return 1.0;
        }
        if done < warmup {
            return done as f64 / warmup.max(1) as f64;
        }
        let progress = (done - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            Schedule::Linear => (1.0 - progress).max(0.0),
            Schedule::Constant | Schedule::ConstantWithWarmup => 1.0,
        }
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(name: &str) -> Result<Schedule, String> {
        Schedule::NAMES
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, s)| *s)
            .ok_or_else(|| format!("there is no schedule `{name}`; known: {}", Schedule::NAMES.map(|(n, _)| n).join(", ")))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Schedule::NAMES.iter().find(|(_, s)| s == self).map_or("", |(n, _)| n);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_rises_and_cosine_falls_to_zero() {
        assert_eq!(Schedule::Cosine.factor(0, 10, 100), 0.0);
        assert_eq!(Schedule::Cosine.factor(5, 10, 100), 0.5);
        assert_eq!(Schedule::Cosine.factor(10, 10, 100), 1.0);
        assert!((Schedule::Cosine.factor(55, 10, 100) - 0.5).abs() < 1e-12);
        assert!(Schedule::Cosine.factor(100, 10, 100) < 1e-12);
    }

    #[test]
    fn without_warm_up_the_first_update_runs_at_the_peak() {
        for s in ["cosine", "linear", "constant", "constant_with_warmup"] {
            assert_eq!(s.parse::<Schedule>().unwrap().factor(0, 0, 10), 1.0);
        }
        assert!("cosin".parse::<Schedule>().unwrap_err().contains("cosine"));
    }
}
