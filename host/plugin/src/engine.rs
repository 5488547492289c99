//! The two WASM engines.
//!
//! *Trace* runs what happens once per run: deterministic, counted in fuel. *Data* runs what happens per batch: faster, bounded by the
//! clock. Both are compile-time settings of WASM code, hence two engines. Neither can do anything but compute: no threads, no
//! async, no GC, and nothing of WASI is ever linked.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use wasmtime::{Cache, CacheConfig, Config, Engine, OptLevel};

use crate::{Error, LimitConfig, Result};

/// Length of an epoch. Deadlines are rounded up to it.
const TICK: Duration = Duration::from_millis(10);
/// Address space reserved per linear memory. The default of gigabytes fails in containers with limits on virtual memory.
const RESERVATION: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct Engines {
    trace: Engine,
    data: Engine,
    ticker: OnceLock<()>,
    cached: bool,
}

/// Which engine a guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plane {
    Trace,
    Data,
}

impl Engines {
    pub(crate) fn new(cache_dir: Option<&Path>, limits: &LimitConfig) -> Result<Engines> {
        let cache = cache_dir.map(open_cache).transpose()?;
        let mut trace = base(limits, cache.clone());
        trace.consume_fuel(true).cranelift_nan_canonicalization(true);
        let mut data = base(limits, cache);
        data.epoch_interruption(true);
        let engine = |config: &Config| Engine::new(config).map_err(|e| Error::Engine(e.to_string()));
        Ok(Engines { trace: engine(&trace)?, data: engine(&data)?, ticker: OnceLock::new(), cached: cache_dir.is_some() })
    }

    pub(crate) fn get(&self, plane: Plane) -> &Engine {
        match plane {
            Plane::Trace => &self.trace,
            Plane::Data => {
                self.ticker.get_or_init(|| tick(&self.data));
                &self.data
            }
        }
    }

    /// Whether compiled code is kept on disk.
    pub(crate) fn cached(&self) -> bool {
        self.cached
    }
}

/// Ticks for a duration, at least two so that a call gets at least one whole tick.
pub(crate) fn ticks(ms: u64) -> u64 {
    ms.div_ceil(TICK.as_millis() as u64) + 1
}

/// Advances the engine's epoch until the engine is gone.
fn tick(engine: &Engine) {
    let weak = engine.weak();
    let spawned = std::thread::Builder::new().name("plugin-epoch".into()).spawn(move || {
        while let Some(engine) = weak.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    });
    // Without the thread data calls have no deadline; they are still bounded in memory.
    drop(spawned);
}

fn base(limits: &LimitConfig, cache: Option<Cache>) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .concurrency_support(false)
        .wasm_relaxed_simd(false)
        .wasm_backtrace_max_frames(None)
        .max_wasm_stack(usize::try_from(limits.stack).unwrap_or(1 << 20).clamp(64 << 10, 64 << 20))
        .memory_reservation(RESERVATION)
        .memory_reservation_for_growth(RESERVATION)
        .cranelift_opt_level(OptLevel::Speed)
        .cache(cache);
    config
}

/// wasmtime's own cache: keyed by a hash of bytes, compiler version and settings. Its files are native code, so the folder is
/// readable by its owner only and never shared.
fn open_cache(dir: &Path) -> Result<Cache> {
    let io = |source| Error::Io { path: dir.to_path_buf(), source };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(dir).map_err(io)?;
    let dir = dir.canonicalize().map_err(io)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if std::fs::metadata(&dir).map_err(io)?.permissions().mode() & 0o002 != 0 {
            let message =
                format!("compile cache `{}` is writable by everyone; its files would run as native code", dir.display());
            return Err(Error::Engine(message));
        }
    }
    let mut config = CacheConfig::new();
    config.with_directory(&dir);
    Cache::new(config).map_err(|e| Error::Engine(format!("compile cache in `{}`: {e}", dir.display())))
}
