//! Building guests: a cargo crate or workspace to components.
//!
//! The rustup target is tried first, then Debian's `rustc-web`, whose standard library is compiled on the way. Where neither is
//! there the error says which command to run. Guests are built without the host's flags, so that a host built for one CPU does not leak
//! into a component.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::component::encode;
use crate::{Error, Result};

const TARGET: &str = "wasm32-unknown-unknown";
/// What to run where no toolchain is found.
const HELP: &str = "run `rustup target add wasm32-unknown-unknown`, or on Debian \
                    `apt-get install -y --no-install-recommends rustc-web cargo-web rust-web-src`";

/// Where to look for a guest toolchain. The default looks in the process's `PATH` and in `/usr/bin`.
#[derive(Clone, Debug)]
pub struct ToolchainOptions {
    /// rustup's compiler, and the owner of `rust-lld`.
    pub rustc: PathBuf,
    /// The cargo that goes with it.
    pub cargo: PathBuf,
    /// Folder of Debian's `rustc` and `cargo`.
    pub system_bin: PathBuf,
    /// Linker for the system compiler; none: `rust-lld` of `rustc`, else `wasm-ld` or `lld` in `system_bin`.
    pub linker: Option<PathBuf>,
    /// Folder of intermediate files; none: `target` in the guest's folder.
    pub target_dir: Option<PathBuf>,
    /// Do not touch the network.
    pub offline: bool,
    /// Keep cargo's progress to itself; errors are in the error.
    pub quiet: bool,
}

impl Default for ToolchainOptions {
    fn default() -> ToolchainOptions {
        ToolchainOptions {
            rustc: "rustc".into(),
            cargo: "cargo".into(),
            system_bin: "/usr/bin".into(),
            linker: None,
            target_dir: None,
            offline: false,
            quiet: false,
        }
    }
}

/// A component that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Name of the crate's library, with dashes.
    pub name: String,
    /// The component file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Whether `plugin.toml` of the crate was embedded.
    pub manifest: bool,
}

/// A way to build for WASM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// rustup's compiler with the target installed.
    Rustup {
        /// cargo.
        cargo: PathBuf,
    },
    /// A system compiler that builds the standard library itself.
    System {
        /// cargo.
        cargo: PathBuf,
        /// rustc.
        rustc: PathBuf,
        /// A linker that knows WASM.
        linker: PathBuf,
    },
}

impl Toolchain {
    /// The first toolchain that is complete.
    ///
    /// # Errors
    /// When there is none; the message says what to install.
    pub fn find(options: &ToolchainOptions) -> Result<Toolchain> {
        let libdir = print(&options.rustc, &["--print", "target-libdir", "--target", TARGET]);
        if libdir.is_some_and(|dir| has_core(Path::new(&dir))) {
            return Ok(Toolchain::Rustup { cargo: options.cargo.clone() });
        }
        let (rustc, cargo) = (options.system_bin.join("rustc"), options.system_bin.join("cargo"));
        let source = print(&rustc, &["--print", "sysroot"]).map(|s| Path::new(&s).join("lib/rustlib/src/rust/library/std"));
        let mut lacking = Vec::new();
        if !cargo.is_file() || source.is_none() {
            lacking.push(format!("no compiler in `{}`", options.system_bin.display()));
        } else if !source.is_some_and(|s| s.is_dir()) {
            lacking.push(format!("`{}` has no library source", rustc.display()));
        }
        let linker = find_linker(options);
        if linker.is_none() {
            lacking.push("no linker for WASM (`rust-lld`, `wasm-ld`)".into());
        }
        match linker {
            Some(linker) if lacking.is_empty() => Ok(Toolchain::System { cargo, rustc, linker }),
            _ => {
                let message = format!("`rustc` has no target {TARGET}, and {}; {HELP}", lacking.join(", "));
                Err(Error::Build { path: PathBuf::from(TARGET), message })
            }
        }
    }

    fn command(&self) -> Command {
        match self {
            Toolchain::Rustup { cargo } => {
                let mut command = Command::new(cargo);
                command.args(["build", "--release", "--target", TARGET]);
                command
            }
            Toolchain::System { cargo, rustc, linker } => {
                let mut command = Command::new(cargo);
                command
                    .args(["build", "--release", "--target", TARGET, "-Zbuild-std=std,panic_abort"])
                    .env("RUSTC", rustc)
                    // Debian's compiler is a stable one; building the library needs its unstable flag.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
                    .env_remove("RUSTUP_TOOLCHAIN");
                command
            }
        }
    }
}

/// Builds the guest crate or workspace in `dir` and writes one component per library into `out_dir`. A crate's `plugin.toml` becomes its
/// manifest.
///
/// # Errors
/// When there is no toolchain, cargo fails (its messages are in the error), or a library is no plugin.
pub fn build_guest(dir: &Path, out_dir: &Path, options: &ToolchainOptions) -> Result<Vec<Built>> {
    let failed = |message: String| Error::Build { path: dir.to_path_buf(), message };
    if !dir.join("Cargo.toml").is_file() {
        return Err(failed("there is no `Cargo.toml`; give the folder of a plugin crate or of a workspace of them".into()));
    }
    let toolchain = Toolchain::find(options)?;
    let mut command = toolchain.command();
    command.arg("--message-format=json-render-diagnostics").current_dir(dir).stdin(Stdio::null());
    if options.offline {
        command.arg("--offline");
    }
    if let Some(target_dir) = &options.target_dir {
        let target_dir = std::path::absolute(target_dir).map_err(|source| Error::Io { path: target_dir.clone(), source })?;
        command.arg("--target-dir").arg(target_dir);
    }
    // Settings of the build that this process may itself be part of.
    for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC_WRAPPER"] {
        command.env_remove(name);
    }
    command.stdout(Stdio::piped()).stderr(if options.quiet { Stdio::piped() } else { Stdio::inherit() });
    let output = command.spawn().and_then(std::process::Child::wait_with_output);
    let output = output.map_err(|e| failed(format!("cargo does not start: {e}; {HELP}")))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        return Err(failed(if tail.is_empty() {
            "cargo failed; its messages are above".into()
        } else {
            format!("cargo failed:\n{tail}")
        }));
    }
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { path, source }
    };
    std::fs::create_dir_all(out_dir).map_err(io(out_dir))?;
    let mut built = Vec::new();
    for artifact in artifacts(&String::from_utf8_lossy(&output.stdout)) {
        let module = std::fs::read(&artifact.module).map_err(io(&artifact.module))?;
        let manifest_path = artifact.crate_dir.join("plugin.toml");
        let manifest = if manifest_path.is_file() {
            Some(std::fs::read_to_string(&manifest_path).map_err(io(&manifest_path))?)
        } else {
            None
        };
        let component = encode(&artifact.name, &module, manifest.as_deref())?;
        let path = out_dir.join(format!("{}.wasm", artifact.name));
        // Written aside and renamed, so that a running host never sees half a file.
        let aside = out_dir.join(format!(".{}.wasm.{}", artifact.name, std::process::id()));
        std::fs::write(&aside, &component).map_err(io(&aside))?;
        std::fs::rename(&aside, &path).map_err(io(&path))?;
        built.push(Built { name: artifact.name, path, bytes: component.len() as u64, manifest: manifest.is_some() });
    }
    if built.is_empty() {
        return Err(failed("no library came out; a plugin crate needs `crate-type = [\"cdylib\"]` under `[lib]`".into()));
    }
    built.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(built)
}

struct Artifact {
    name: String,
    module: PathBuf,
    crate_dir: PathBuf,
}

/// The dynamic libraries among cargo's messages.
fn artifacts(messages: &str) -> Vec<Artifact> {
    let mut found = Vec::new();
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        let dynamic = message["target"]["crate_types"].as_array().is_some_and(|t| t.iter().any(|t| t == "cdylib"));
        if message["reason"] != "compiler-artifact" || !dynamic {
            continue;
        }
        let module =
            message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str).find(|f| f.ends_with(".wasm"));
        let (Some(module), Some(name), Some(manifest)) =
            (module, message["target"]["name"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        let crate_dir = Path::new(manifest).parent().map_or_else(PathBuf::new, Path::to_path_buf);
        found.push(Artifact { name: name.replace('_', "-"), module: module.into(), crate_dir });
    }
    found
}

/// First line of a program's output, if it ran well.
fn print(program: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    if output.status.success() { text.lines().next().map(str::to_string) } else { None }
}

fn has_core(libdir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(libdir) else { return false };
    entries.flatten().any(|e| e.file_name().to_string_lossy().starts_with("libcore-"))
}

fn find_linker(options: &ToolchainOptions) -> Option<PathBuf> {
    if let Some(linker) = &options.linker {
        return linker.is_file().then(|| linker.clone());
    }
    let sysroot = print(&options.rustc, &["--print", "sysroot"]).map(PathBuf::from);
    let rustlib = sysroot.and_then(|s| std::fs::read_dir(s.join("lib/rustlib")).ok());
    let shipped = rustlib.into_iter().flatten().flatten().map(|e| e.path().join("bin/rust-lld"));
    let system = ["rust-lld", "wasm-ld", "wasm-ld-19", "wasm-ld-16", "wasm-ld-14"].map(|n| options.system_bin.join(n));
    shipped.chain(system).find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_messages_name_the_libraries() {
        let lines = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/g/a/Cargo.toml","target":{"name":"cross_entropy","crate_types":["cdylib"]},"filenames":["/t/x.d","/t/cross_entropy.wasm"]}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/g/s/Cargo.toml","target":{"name":"sdk","crate_types":["lib"]},"filenames":["/t/libsdk.rlib"]}"#,
            "\nnoise\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = artifacts(lines);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].crate_dir.as_path()), ("cross-entropy", Path::new("/g/a")));
    }

    #[test]
    fn a_missing_toolchain_says_what_to_run() {
        let nowhere = PathBuf::from("/nonexistent");
        let options = ToolchainOptions { rustc: nowhere.join("rustc"), system_bin: nowhere, ..ToolchainOptions::default() };
        let message = Toolchain::find(&options).unwrap_err().to_string();
        assert!(message.contains("rustup target add wasm32-unknown-unknown") && message.contains("rustc-web"), "{message}");
    }
}
