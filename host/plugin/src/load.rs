//! Loading: bytes to a compiled, type-checked, identified plugin.
//!
//! Order: size, digest, full validation parse, shape of the file, imports, manifest, compilation. Nothing reaches the compiler that has
//! not passed all before it. Precompiled code (`.cwasm`) is never accepted: it is native code.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};
use wasmtime::component::{Component, HasSelf, InstancePre, Linker};

use crate::bindings::{Everything, guest};
use crate::decl::{About, Item, Kind};
use crate::engine::{Engines, Plane};
use crate::env::LogSink;
use crate::error::clean;
use crate::guest::{CallCount, Ctx, Guest, Recipe};
use crate::limits::LimitConfig;
use crate::manifest::{Grants, Manifest, SECTION};
use crate::{Error, Result};

/// How a host treats plugins.
#[derive(Clone, Debug, Default)]
pub struct HostConfig {
    /// Folder for compiled code; none compiles every time. It must belong to this user alone.
    pub cache_dir: Option<PathBuf>,
    /// Upper bounds for every plugin.
    pub limits: LimitConfig,
    /// What plugins may be given if their manifest asks for it.
    pub grants: Grants,
    /// Seed of `env.random`.
    pub seed: u64,
    /// Where plugins' log lines go.
    pub log: LogSink,
}

/// Loads plugins. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PluginHost {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    engines: Engines,
    config: HostConfig,
}

/// A loaded plugin. Cheap to clone; guests made from it are independent of each other.
#[derive(Clone, Debug)]
pub struct Plugin {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host: Arc<Shared>,
    name: String,
    digest: String,
    bytes: Vec<u8>,
    kinds: Vec<Kind>,
    imports: Vec<String>,
    exports: Vec<String>,
    manifests: Vec<Manifest>,
    limits: Arc<LimitConfig>,
    grants: Grants,
    about: About,
    count: CallCount,
    trace: OnceLock<Compiled>,
    data: OnceLock<Compiled>,
}

struct Compiled {
    pre: InstancePre<Ctx>,
    took: Duration,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Compiled({:?})", self.took)
    }
}

impl PluginHost {
    /// A host with two fresh engines.
    ///
    /// # Errors
    /// When the engines refuse the settings or the cache folder cannot be used.
    pub fn new(config: HostConfig) -> Result<PluginHost> {
        let engines = Engines::new(config.cache_dir.as_deref(), &config.limits)?;
        Ok(PluginHost { shared: Arc::new(Shared { engines, config }) })
    }

    /// Loads a component file, and the manifest beside it if there is one.
    ///
    /// # Errors
    /// When the file cannot be read or is refused.
    pub fn load_file(&self, path: &Path) -> Result<Plugin> {
        self.load_pinned(path, None)
    }

    /// Loads a component file that must have this SHA-256.
    ///
    /// # Errors
    /// When the file cannot be read, is another one, or is refused.
    pub fn load_pinned(&self, path: &Path, sha256: Option<&str>) -> Result<Plugin> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Io { path, source }
        };
        let name = path.file_stem().map_or_else(|| "plugin".into(), |s| s.to_string_lossy().into_owned());
        let name = clean(&name, 100);
        let size = std::fs::metadata(path).map_err(io(path))?.len();
        self.check_size(&name, size)?;
        let bytes = std::fs::read(path).map_err(io(path))?;
        let beside = path.with_extension("toml");
        let manifest = if beside.is_file() {
            let text = std::fs::read_to_string(&beside).map_err(io(&beside))?;
            Some(Manifest::parse(&name, &text)?)
        } else {
            None
        };
        self.load(name, bytes, manifest, sha256)
    }

    /// Loads a component from memory.
    ///
    /// # Errors
    /// When it is refused.
    pub fn load_bytes(&self, name: &str, bytes: &[u8]) -> Result<Plugin> {
        self.load(clean(name, 100), bytes.to_vec(), None, None)
    }

    fn check_size(&self, plugin: &str, size: u64) -> Result<()> {
        let limit = self.shared.config.limits.component_bytes;
        if size <= limit {
            return Ok(());
        }
        Err(Error::Limit {
            plugin: plugin.to_string(),
            function: "load",
            scope: String::new(),
            name: "component-bytes",
            limit,
            message: format!("the file has {size} bytes"),
        })
    }

    fn load(&self, name: String, bytes: Vec<u8>, beside: Option<Manifest>, pin: Option<&str>) -> Result<Plugin> {
        self.check_size(&name, bytes.len() as u64)?;
        let digest = hex(&Sha256::digest(&bytes));
        let pinned = beside.as_ref().and_then(|m| m.plugin.sha256.as_deref());
        for wanted in [pin, pinned].into_iter().flatten() {
            if !wanted.eq_ignore_ascii_case(&digest) {
                return Err(Error::Digest { plugin: name, wanted: clean(wanted, 100), got: digest });
            }
        }
        let outline = Outline::read(&name, &bytes)?;
        outline.check_imports(&name)?;
        let kinds = outline.kinds(&name)?;
        let mut manifests: Vec<Manifest> = beside.into_iter().collect();
        if let Some(text) = &outline.manifest {
            let embedded = Manifest::parse(&name, text)?;
            if embedded.plugin.sha256.is_some() {
                let message = "an embedded manifest cannot hold the file's own sha256; put it beside the file".to_string();
                return Err(Error::Manifest { plugin: name, message });
            }
            manifests.push(embedded);
        }
        let (mut limits, mut grants) = (self.shared.config.limits.clone(), self.shared.config.grants);
        for manifest in &manifests {
            manifest.check_kinds(&name, &kinds)?;
            let bad = |message| Error::Manifest { plugin: name.clone(), message };
            limits = limits.lowered(&manifest.limits).map_err(bad)?;
            grants = grants.and(manifest.grants);
        }
        let mut inner = Inner {
            host: self.shared.clone(),
            name,
            digest,
            bytes,
            kinds,
            imports: outline.imports,
            exports: outline.exports,
            manifests,
            limits: Arc::new(limits),
            grants,
            about: About { name: String::new(), version: String::new(), license: String::new(), items: Vec::new() },
            count: CallCount::default(),
            trace: OnceLock::new(),
            data: OnceLock::new(),
        };
        inner.about = inner.ask_about()?;
        Ok(Plugin { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn plane(&self) -> Plane {
        if self.kinds.iter().any(|k| k.traces()) { Plane::Trace } else { Plane::Data }
    }

    fn compiled(&self, plane: Plane) -> Result<&Compiled> {
        let slot = match plane {
            Plane::Trace => &self.trace,
            Plane::Data => &self.data,
        };
        if let Some(done) = slot.get() {
            return Ok(done);
        }
        let start = Instant::now();
        let engine = self.host.engines.get(plane);
        let unusable = |e: wasmtime::Error| {
            // The whole chain: wasmtime's outermost message rarely says which import or export it is about.
            let reason = e.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
            Error::NotAComponent { plugin: self.name.clone(), reason: clean(&reason, 1000) }
        };
        let component = Component::from_binary(engine, &self.bytes).map_err(unusable)?;
        let mut linker: Linker<Ctx> = Linker::new(engine);
        Everything::add_to_linker::<_, HasSelf<Ctx>>(&mut linker, |ctx| ctx).map_err(unusable)?;
        let pre = linker.instantiate_pre(&component).map_err(unusable)?;
        self.check_exports(&pre).map_err(unusable)?;
        Ok(slot.get_or_init(|| Compiled { pre, took: start.elapsed() }))
    }

    /// Type-checks every exported interface that this host calls.
    fn check_exports(&self, pre: &InstancePre<Ctx>) -> wasmtime::Result<()> {
        guest::about::GuestIndices::new(pre)?;
        for kind in &self.kinds {
            // Looking the functions up is the check.
            match kind {
                Kind::Model => guest::model::GuestIndices::new(pre).map(|_| ())?,
                Kind::Dataset => guest::dataset::GuestIndices::new(pre).map(|_| ())?,
                Kind::Peft => guest::peft::GuestIndices::new(pre).map(|_| ())?,
                Kind::Loss => guest::loss::GuestIndices::new(pre).map(|_| ())?,
                Kind::Optimizer => guest::optimizer::GuestIndices::new(pre).map(|_| ())?,
                Kind::Sampler => guest::sampler::GuestIndices::new(pre).map(|_| ())?,
                Kind::Reward | Kind::Metric => {}
            }
        }
        Ok(())
    }

    fn guest(&self, plane: Plane) -> Result<Guest> {
        Guest::new(Recipe {
            plugin: self.name.clone(),
            pre: self.compiled(plane)?.pre.clone(),
            plane,
            limits: self.limits.clone(),
            grants: self.grants,
            log: self.host.config.log.clone(),
            seed: self.host.config.seed,
            count: self.count.clone(),
        })
    }

    fn ask_about(&self) -> Result<About> {
        let mut guest = self.guest(self.plane())?;
        let indices = guest::about::GuestIndices::new(&self.compiled(self.plane())?.pre);
        let indices = indices.map_err(|e| Error::NotAComponent { plugin: self.name.clone(), reason: e.to_string() })?;
        let about = guest.load(|store, instance| indices.load(store, instance))?;
        let info = guest.call("about.get", |store| about.call_get(store))?;
        self.check_about(&guest, info)
    }

    fn check_about(&self, guest: &Guest, info: crate::decl::WitInfo) -> Result<About> {
        const FUNCTION: &str = "about.get";
        let limit = self.limits.string_bytes;
        if info.name.is_empty() || info.items.len() > 1000 {
            return Err(guest.answer(FUNCTION, "it needs a name and at most 1000 items"));
        }
        let mut items = Vec::with_capacity(info.items.len());
        for item in info.items {
            let Some(kind) = Kind::parse(&item.kind) else {
                return Err(guest.answer(FUNCTION, format!("item `{}` has the unknown kind `{}`", item.id, item.kind)));
            };
            if !self.kinds.contains(&kind) {
                let message = format!("item `{}` is a {kind}, but the component exports no `{kind}`", item.id);
                return Err(guest.answer(FUNCTION, message));
            }
            let word =
                !item.id.is_empty() && item.id.len() <= 100 && item.id.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
            if !word {
                return Err(guest.answer(FUNCTION, format!("the id `{}` is no plain word", item.id)));
            }
            let config_schema = item.config_schema;
            items.push(Item { kind, id: item.id, summary: clean(&item.summary, limit), config_schema });
        }
        if let Some(kind) = self.kinds.iter().find(|k| !items.iter().any(|i| i.kind == **k)) {
            return Err(guest.answer(FUNCTION, format!("the component exports `{kind}`, but no item says so")));
        }
        Ok(About {
            name: clean(&info.name, limit),
            version: clean(&info.version, 100),
            license: clean(&info.license, 100),
            items,
        })
    }
}

impl Plugin {
    /// Name of the file, without extension.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What the component says of itself.
    pub fn about(&self) -> &About {
        &self.inner.about
    }

    /// SHA-256 of the file in hex.
    pub fn digest(&self) -> &str {
        &self.inner.digest
    }

    /// What the component exports.
    pub fn kinds(&self) -> &[Kind] {
        &self.inner.kinds
    }

    /// The first item of a kind.
    pub fn item(&self, kind: Kind) -> Option<&Item> {
        self.inner.about.items.iter().find(|i| i.kind == kind)
    }

    /// How often its guests have been entered.
    pub fn calls(&self) -> CallCount {
        self.inner.count.clone()
    }

    /// Effective limits.
    pub fn limits(&self) -> &LimitConfig {
        &self.inner.limits
    }

    /// Effective grants.
    pub fn grants(&self) -> Grants {
        self.inner.grants
    }

    /// Imported interfaces, sorted.
    pub fn imports(&self) -> &[String] {
        &self.inner.imports
    }

    /// Exported interfaces, sorted.
    pub fn exports(&self) -> &[String] {
        &self.inner.exports
    }

    /// Its manifests: beside the file, then embedded.
    pub fn manifests(&self) -> &[Manifest] {
        &self.inner.manifests
    }

    /// Size of the file.
    pub fn bytes(&self) -> usize {
        self.inner.bytes.len()
    }

    /// Time spent compiling, cache hits included, and whether there is a cache.
    pub fn compile_time(&self) -> (Duration, bool) {
        let took = [&self.inner.trace, &self.inner.data].into_iter().filter_map(|c| c.get()).map(|c| c.took).sum();
        (took, self.inner.host.engines.cached())
    }

    /// A guest for `kind` on its own plane, and its typed caller.
    pub(crate) fn guest<I, G>(
        &self,
        kind: Kind,
        indices: impl FnOnce(&InstancePre<Ctx>) -> wasmtime::Result<I>,
        load: impl FnOnce(I, &mut wasmtime::Store<Ctx>, &wasmtime::component::Instance) -> wasmtime::Result<G>,
    ) -> Result<(Guest, G)> {
        self.guest_on(if kind.traces() { Plane::Trace } else { Plane::Data }, kind, indices, load)
    }

    /// A guest for `kind` on a plane, and its typed caller.
    pub(crate) fn guest_on<I, G>(
        &self,
        plane: Plane,
        kind: Kind,
        indices: impl FnOnce(&InstancePre<Ctx>) -> wasmtime::Result<I>,
        load: impl FnOnce(I, &mut wasmtime::Store<Ctx>, &wasmtime::component::Instance) -> wasmtime::Result<G>,
    ) -> Result<(Guest, G)> {
        if !self.inner.kinds.contains(&kind) {
            let has = self.inner.kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", ");
            return Err(Error::Kind { plugin: self.inner.name.clone(), wanted: kind.name(), has });
        }
        let pre = &self.inner.compiled(plane)?.pre;
        let indices =
            indices(pre).map_err(|e| Error::NotAComponent { plugin: self.inner.name.clone(), reason: e.to_string() })?;
        let mut guest = self.inner.guest(plane)?;
        let typed = guest.load(|store, instance| load(indices, store, instance))?;
        Ok((guest, typed))
    }
}

/// What the outermost component's sections say.
struct Outline {
    imports: Vec<String>,
    exports: Vec<String>,
    manifest: Option<String>,
}

/// Interfaces that any plugin may import.
const OPEN: &[&str] = &["swift:tensor/types", "swift:plugin/env", "swift:plugin/decl", "swift:plugin/sample-types"];
/// Interfaces that only traced plugins may import.
const TRACED: &[&str] = &["swift:tensor/graph", "swift:tensor/lm-head", "swift:plugin/trace-host"];

impl Outline {
    /// Validates the whole file and collects the outermost imports, exports and manifest.
    fn read(plugin: &str, bytes: &[u8]) -> Result<Outline> {
        let refuse = |reason: String| Error::NotAComponent { plugin: plugin.to_string(), reason };
        if bytes.len() < 8 || !bytes.starts_with(b"\0asm") {
            let native = bytes.starts_with(b"\x7fELF");
            return Err(refuse(match (native, bytes.len()) {
                (true, _) => "it is native or precompiled code, which is never loaded; give the `.wasm` component".into(),
                (_, 0) => "the file is empty".into(),
                _ => "it does not start like a WASM file".into(),
            }));
        }
        if Parser::is_core_wasm(bytes) {
            return Err(refuse("it is a core module; `swift-host plugin build` makes a component of a guest crate".into()));
        }
        let parser = |e: wasmparser::BinaryReaderError| {
            let short = e.message().contains("unexpected end") || e.message().contains("unexpected EOF");
            let what = if short { "the file is truncated" } else { "the file is damaged" };
            refuse(format!("{what}: {} at byte {}", clean(e.message(), 300), e.offset()))
        };
        // Off, because the engines run neither: async, threads and 64-bit memories.
        let features = WasmFeatures::default() - WasmFeatures::THREADS - WasmFeatures::MEMORY64 - WasmFeatures::CM_ASYNC;
        Validator::new_with_features(features).validate_all(bytes).map_err(parser)?;
        let mut outline = Outline { imports: Vec::new(), exports: Vec::new(), manifest: None };
        let mut depth = 0usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(parser)? {
                Payload::Version { encoding: Encoding::Component, .. } | Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                Payload::ComponentImportSection(section) if depth == 1 => {
                    for import in section {
                        outline.imports.push(clean(import.map_err(parser)?.name.name, 200));
                    }
                }
                Payload::ComponentExportSection(section) if depth == 1 => {
                    for export in section {
                        outline.exports.push(clean(export.map_err(parser)?.name.name, 200));
                    }
                }
                Payload::CustomSection(section) if depth == 1 && section.name() == SECTION => {
                    if outline.manifest.is_some() {
                        return Err(Error::Manifest {
                            plugin: plugin.into(),
                            message: "there are two embedded manifests".into(),
                        });
                    }
                    let text = std::str::from_utf8(section.data());
                    let text =
                        text.map_err(|_| Error::Manifest { plugin: plugin.into(), message: "it is no UTF-8 text".into() })?;
                    outline.manifest = Some(text.to_string());
                }
                _ => {}
            }
        }
        outline.imports.sort();
        outline.exports.sort();
        Ok(outline)
    }

    fn check_imports(&self, plugin: &str) -> Result<()> {
        let traces = self.exports.iter().filter_map(|e| exported_kind(e)).any(Kind::traces);
        for import in &self.imports {
            let refuse = |reason: String| Err(Error::Import { plugin: plugin.to_string(), import: import.clone(), reason });
            let (interface, version) = import.split_once('@').unwrap_or((import, ""));
            if interface.starts_with("wasi:") {
                return refuse(
                    "plugins get no WASI: no files, network, clock or environment. Build for wasm32-unknown-unknown \
                     (Python: `componentize-py --stub-wasi`)"
                        .into(),
                );
            }
            if !OPEN.contains(&interface) && !TRACED.contains(&interface) {
                return refuse("this host has no such interface".into());
            }
            if !version.starts_with("0.1.") {
                return refuse(format!("this host has version 0.1 of `{interface}`"));
            }
            if TRACED.contains(&interface) && !traces {
                return refuse("only plugins that trace graphs get it, and this one exports none of them".into());
            }
        }
        Ok(())
    }

    /// The kinds among the exports.
    fn kinds(&self, plugin: &str) -> Result<Vec<Kind>> {
        let refuse = |reason: &str| Err(Error::NotAComponent { plugin: plugin.to_string(), reason: reason.to_string() });
        if !self.exports.iter().any(|e| e.starts_with("swift:plugin/about@0.1.")) {
            return refuse("it does not export `swift:plugin/about@0.1.0`, so it is a component but no plugin for this host");
        }
        let kinds: Vec<Kind> =
            Kind::ALL.into_iter().filter(|k| self.exports.iter().any(|e| exported_kind(e) == Some(*k))).collect();
        if kinds.is_empty() {
            return refuse("it exports no kind of plugin (model, dataset, peft, loss, optimizer, ...)");
        }
        Ok(kinds)
    }
}

fn exported_kind(export: &str) -> Option<Kind> {
    let (name, version) = export.strip_prefix("swift:plugin/")?.split_once('@')?;
    Kind::parse(name).filter(|_| version.starts_with("0.1."))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
