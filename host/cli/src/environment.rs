//! The only place that looks at the environment and the machine: plugin folders, caches, devices, limits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use swift_formats::Checkpoint;
use swift_plugin::{Grants, HostConfig, Level, LimitConfig, LogSink, Plugin, PluginHost, Size};
use swift_runtime::{CpuDevice, CpuOptions, Device};
use swift_train::{Plugins, TrainError};

use crate::args::Cli;
use crate::embedded;

/// Forces the kernels' instruction set: `scalar`, `avx2`, `avx512`, `amx` or `neon`.
pub(crate) const ISA_VARIABLE: &str = "SWIFT_HOST_ISA";
/// Folders searched for plugins before the program's own, separated like `PATH`.
pub(crate) const PLUGIN_VARIABLE: &str = "SWIFT_HOST_PLUGINS";

/// Plugins, devices and models as this invocation sees them.
pub(crate) struct Environment {
    host: PluginHost,
    folders: Vec<PathBuf>,
    /// Threads to compute with.
    pub(crate) threads: usize,
    isa: Option<swift_runtime::Isa>,
}

impl Environment {
    /// Reads the environment and the global flags.
    pub(crate) fn new(cli: &Cli) -> Result<Environment> {
        let mut limits = LimitConfig::default();
        for limit in &cli.limits {
            let (name, value) = limit.split_once('=').ok_or_else(|| anyhow!("`--limit {limit}` is not NAME=VALUE"))?;
            let size = Size::parse(value).map_err(|e| anyhow!("`--limit {limit}`: {e}"))?;
            limits.set(name, size.0).map_err(|e| anyhow!("`--limit {limit}`: {e}"))?;
        }
        let mut grants = Grants::default();
        for grant in &cli.grants {
            match grant.as_str() {
                "materialize-logits" => grants.materialize_logits = true,
                other => bail!("there is no right `{other}`; there is: materialize-logits"),
            }
        }
        let log = LogSink::new(|plugin, level, text| {
            if level > Level::Debug {
                eprintln!("{plugin}: {text}");
            }
        });
        let config = HostConfig { cache_dir: cache_dir(), limits, grants, log, ..HostConfig::default() };
        let isa = match std::env::var(ISA_VARIABLE) {
            Ok(name) => Some(name.parse().map_err(|e| anyhow!("{ISA_VARIABLE}={name}: {e}"))?),
            Err(_) => None,
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = cli.threads.unwrap_or(cores);
        if threads == 0 || threads > 1024 {
            bail!("`--threads {threads}` must be between 1 and 1024");
        }
        Ok(Environment { host: PluginHost::new(config)?, folders: plugin_folders(), threads, isa })
    }

    /// The device to compute on.
    pub(crate) fn device(&self) -> Result<Box<dyn Device>> {
        Ok(Box::new(self.cpu()?))
    }

    /// The processor, for what only a processor has.
    pub(crate) fn cpu(&self) -> Result<CpuDevice> {
        Ok(CpuDevice::new(CpuOptions { threads: self.threads, isa: self.isa })?)
    }

    /// A plugin by path or bundled name.
    pub(crate) fn plugin(&self, name: &str) -> Result<Plugin> {
        let path = self.plugin_path(name)?;
        self.host.load_file(&path).with_context(|| format!("plugin `{}`", path.display()))
    }

    /// Where a plugin lies.
    fn plugin_path(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(name);
        if path.components().count() > 1 || path.exists() && !path.is_dir() {
            return Ok(path.to_path_buf());
        }
        let file = if path.extension().is_some() { name.to_string() } else { format!("{name}.wasm") };
        let found = self.folders.iter().map(|f| f.join(&file)).find(|p| p.is_file());
        found.ok_or_else(|| {
            let known: Vec<String> = self.bundled().into_iter().map(|(name, _)| name).collect();
            let known = if known.is_empty() { "none are installed".to_string() } else { known.join(", ") };
            let folders: Vec<String> = self.folders.iter().map(|f| f.display().to_string()).collect();
            anyhow!(
                "there is no plugin `{name}`: no such file, and the bundled plugins are {known} (in {})\nhint: `swift-host plugin build plugins --out {}` builds them from the sources",
                folders.join(", "),
                folders.last().map_or("plugins", String::as_str),
            )
        })
    }

    /// Plugins that can be named without a path, sorted.
    pub(crate) fn bundled(&self) -> Vec<(String, PathBuf)> {
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        for folder in &self.folders {
            for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()) {
                let Some(name) = path.file_stem().and_then(|n| n.to_str()) else { continue };
                if path.extension().is_some_and(|e| e == "wasm") && !found.iter().any(|(n, _)| n == name) {
                    found.push((name.to_string(), path));
                }
            }
        }
        found.sort();
        found
    }

    /// The name of the model plugin that takes a checkpoint.
    pub(crate) fn model_plugin_of(&self, checkpoint: &Checkpoint) -> Result<String> {
        let found = self.host.model_plugin(&self.bundled(), checkpoint.config());
        found.map_err(|e| anyhow!("`{}`: {e}\nhint: `--model_plugin` names a plugin of your own", checkpoint.path().display()))
    }

    /// A model by path, or the embedded one by name.
    pub(crate) fn model(&self, name: &str) -> Result<Arc<Checkpoint>> {
        if name == embedded::MODEL_NAME && !Path::new(name).exists() {
            return Ok(Arc::new(embedded::model()?));
        }
        if !Path::new(name).exists() {
            bail!(
                "there is no model at `{name}`\nhint: give a GGUF file, a Hugging Face folder, or `{}`, the embedded model",
                embedded::MODEL_NAME
            );
        }
        Ok(Arc::new(Checkpoint::open(name)?))
    }
}

impl Environment {
    /// A folder's configuration, with or without weights: what pretraining from scratch starts from.
    pub(crate) fn model_config(&self, folder: &str) -> Result<Arc<Checkpoint>> {
        if !Path::new(folder).join("config.json").is_file() {
            bail!(
                "`{folder}` has no `config.json`\nhint: pretraining from scratch takes a folder with a Hugging Face configuration"
            );
        }
        Ok(Arc::new(Checkpoint::open_config(Path::new(folder))?))
    }
}

impl Plugins for Environment {
    fn load(&self, name: &str) -> swift_train::Result<Plugin> {
        self.plugin(name).map_err(|e| TrainError::Config(format!("{e:#}")))
    }
}

fn cache_dir() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("swift-host"))
}

fn plugin_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os(PLUGIN_VARIABLE).map(|v| std::env::split_paths(&v).collect()).unwrap_or_default();
    if let Some(home) = std::env::var_os("HOME") {
        folders.push(PathBuf::from(home).join(".local/share/swift-host/plugins"));
    }
    if let Ok(program) = std::env::current_exe()
        && let Some(folder) = program.parent()
    {
        folders.push(folder.join("plugins"));
    }
    folders
}
