//! `env`: logging and random numbers for plugins. No clock, no network, no files.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::bindings::host::env::{Host, Level as WitLevel};
use crate::error::clean;
use crate::guest::Ctx;
use crate::limits::LimitHit;

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the plugin's author.
    Debug,
    /// For users.
    Info,
    /// Something is wrong.
    Warn,
}

type Sink = dyn Fn(&str, Level, &str) + Send + Sync;

/// Where log lines go: (plugin, level, text without control characters).
#[derive(Clone)]
pub struct LogSink(Arc<Sink>);

impl LogSink {
    /// A sink that calls `f`.
    pub fn new(f: impl Fn(&str, Level, &str) + Send + Sync + 'static) -> LogSink {
        LogSink(Arc::new(f))
    }
}

impl Default for LogSink {
    /// Drops every line.
    fn default() -> LogSink {
        LogSink::new(|_, _, _| {})
    }
}

impl fmt::Debug for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSink")
    }
}

/// One call's log.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) plugin: String,
    pub(crate) sink: LogSink,
    pub(crate) lines: u64,
    /// Last warning, which is a panic's message if the call ends in one.
    pub(crate) last_warning: Option<String>,
}

impl Host for Ctx {
    fn log(&mut self, level: WitLevel, text: String) -> wasmtime::Result<()> {
        self.count()?;
        self.log.lines += 1;
        let text = clean(&text, self.limits.string_bytes);
        let level = match level {
            WitLevel::Debug => Level::Debug,
            WitLevel::Info => Level::Info,
            WitLevel::Warn => Level::Warn,
        };
        if self.log.lines <= self.limits.log_lines {
            (self.log.sink.0)(&self.log.plugin, level, &text);
        } else if self.log.lines == self.limits.log_lines + 1 {
            let note = format!("further lines of this call are dropped (limit `log-lines` = {})", self.limits.log_lines);
            (self.log.sink.0)(&self.log.plugin, Level::Warn, &note);
        }
        if level == Level::Warn {
            self.log.last_warning = Some(text);
        }
        Ok(())
    }

    fn random(&mut self, seed_name: String, n: u32) -> wasmtime::Result<Vec<f32>> {
        self.count()?;
        let bytes = u64::from(n) * 4;
        LimitHit::check("constant-bytes", self.limits.constant_bytes, bytes, || format!("{n} random numbers at once"))?;
        Ok(uniform(self.seed, &seed_name, n))
    }
}

/// `n` numbers in [0, 1): the top 24 bits of a SHA-256 counter stream over (seed, name). Slow and simple; plugins need a handful.
fn uniform(seed: u64, name: &str, n: u32) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(n as usize);
    for block in 0u64.. {
        if numbers.len() == n as usize {
            break;
        }
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(block.to_le_bytes());
        hash.update(name.as_bytes());
        let words = hash.finalize();
        let (words, _) = words.as_slice().as_chunks::<4>();
        let room = n as usize - numbers.len();
        numbers.extend(words.iter().take(room).map(|w| (u32::from_le_bytes(*w) >> 8) as f32 / (1u32 << 24) as f32));
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::uniform;

    #[test]
    fn streams_depend_on_seed_and_name_only() {
        let a = uniform(7, "a", 20);
        assert_eq!(a[..5], uniform(7, "a", 5)[..]);
        assert_ne!(a, uniform(8, "a", 20));
        assert_ne!(a, uniform(7, "b", 20));
        assert!(a.iter().all(|x| (0.0..1.0).contains(x)));
    }
}
