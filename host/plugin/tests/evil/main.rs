//! The evil suite: plugins and files that do everything wrong. Each is refused with a message that says what, where and what would be
//! right, and the host goes on: after every attack an honest guest still works.
//!
//! `files` attacks with bytes, `small` with hand-written components, `guest` with `plugins/evil`, which is built here once.

mod files;
mod guest;
mod small;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use swift_plugin::build::{ToolchainOptions, build_guest};
use swift_plugin::{Grants, HostConfig, LimitConfig, Plugin, PluginHost};

/// Limits small enough that attacks end quickly.
fn tight() -> LimitConfig {
    LimitConfig {
        fuel: 200_000_000,
        epoch_ms: 1000,
        memory: 64 << 20,
        host_calls: 200_000,
        hostcall_bytes: 16 << 20,
        nodes: 100_000,
        constant_bytes: 16 << 20,
        ..LimitConfig::default()
    }
}

/// Scratch space of this test binary.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn host_with(limits: LimitConfig) -> PluginHost {
    PluginHost::new(HostConfig {
        cache_dir: Some(scratch("compiled")),
        limits,
        grants: Grants::default(),
        ..HostConfig::default()
    })
    .unwrap()
}

/// The evil component, or nothing where there is no guest toolchain; the note says so.
fn evil_bytes() -> Option<&'static [u8]> {
    static BYTES: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/evil");
        // Shares the compiled standard library with the bundled plugins.
        let target = source.join("../target");
        let options = ToolchainOptions { target_dir: Some(target), quiet: true, ..ToolchainOptions::default() };
        match build_guest(&source, &scratch("guests"), &options) {
            Ok(built) => Some(std::fs::read(&built[0].path).unwrap()),
            Err(e) => {
                assert!(e.to_string().contains("rustup target add"), "the evil plugin does not build: {e}");
                eprintln!("skipped: {e}");
                None
            }
        }
    });
    bytes.as_deref()
}

/// The evil plugin under tight limits, loaded once.
fn evil() -> Option<Plugin> {
    static PLUGIN: OnceLock<Option<Plugin>> = OnceLock::new();
    PLUGIN.get_or_init(|| evil_bytes().map(|bytes| host_with(tight()).load_bytes("evil", bytes).unwrap())).clone()
}

/// Holds a refusal to what it has to say. `--nocapture` shows every one of them, to be read and counted.
#[track_caller]
fn contains(message: &str, wanted: &[&str]) {
    for want in wanted {
        assert!(message.contains(want), "`{want}` is not in: {message}");
    }
    assert!(!message.chars().any(char::is_control), "control characters in: {message:?}");
    println!("refused: {message}");
}
