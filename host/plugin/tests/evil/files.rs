//! Bytes that are no plugin, and files that are not the ones that were pinned.

use swift_plugin::{Error, LimitConfig};

use super::small::{alive, component};
use super::{contains, evil_bytes, host_with, tight};

#[test]
fn what_is_no_component_is_refused() {
    let host = host_with(tight());
    let refused = |bytes: &[u8]| host.load_bytes("junk", bytes).expect_err("it must be refused").to_string();
    contains(&refused(b""), &["plugin `junk` is no usable component", "empty"]);
    contains(&refused(b"hello, world; this is text"), &["does not start like a WASM file"]);
    contains(&refused(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0"), &["native or precompiled code, which is never loaded"]);
    contains(&refused(b"\0asm"), &["does not start like a WASM file"]);
    contains(&refused(&wat::parse_str("(module)").unwrap()), &["core module", "plugin build"]);
    contains(&refused(&wat::parse_str("(component)").unwrap()), &["does not export `swift:plugin/about@0.1.0`"]);
    contains(&refused(b"\0asm\x0d\0\x01\0\x01\xff\xff\xff\xff\x0f"), &["no usable component"]);
    contains(&refused(b"\0asm\x99\0\x01\0"), &["no usable component"]);
    alive(&host);
}

#[test]
fn truncated_files_are_refused() {
    let host = host_with(tight());
    let small = component("");
    let mut files = vec![small];
    files.extend(evil_bytes().map(<[u8]>::to_vec));
    for whole in files {
        for part in 1..40 {
            let bytes = &whole[..whole.len() * part / 40];
            let message = host.load_bytes("cut", bytes).expect_err("a part of a file must be refused").to_string();
            contains(&message, &["plugin `cut`"]);
        }
    }
    let cut = component("");
    contains(&host.load_bytes("cut", &cut[..cut.len() - 3]).unwrap_err().to_string(), &["truncated"]);
    alive(&host);
}

#[test]
fn damaged_files_never_take_the_host_down() {
    let host = host_with(LimitConfig { epoch_ms: 20, ..tight() });
    let whole = component("");
    let mut state = 1u64;
    let mut refused = 0;
    for _ in 0..150 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            // Knuth's MMIX generator.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] ^= 1 << (state >> 29 & 7);
        }
        match host.load_bytes("damaged", &bytes) {
            Ok(plugin) => drop(plugin.dataset().and_then(|mut d| d.generate("", "train", 0, 1))),
            Err(e) => {
                refused += 1;
                contains(&e.to_string(), &["damaged"]);
            }
        }
    }
    assert!(refused > 75, "only {refused} of 150 damaged files were refused");
    alive(&host);
}

#[test]
fn size_and_digest_are_checked_before_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.wasm");
    std::fs::write(&path, component("")).unwrap();
    let host = host_with(LimitConfig { component_bytes: 100, ..tight() });
    contains(&host.load_file(&path).unwrap_err().to_string(), &["limit `component-bytes` = 100"]);
    let host = host_with(tight());
    let plugin = host.load_file(&path).unwrap();
    assert!(host.load_pinned(&path, Some(plugin.digest())).is_ok());
    let other = "0".repeat(64);
    let error = host.load_pinned(&path, Some(&other)).unwrap_err();
    assert!(matches!(error, Error::Digest { .. }));
    contains(&error.to_string(), &["is pinned", plugin.digest()]);
    // The same through a manifest beside the file.
    let manifest = |sha: &str| {
        format!(
            "[plugin]\nid = \"a.b\"\nversion = \"1.0.0\"\napi = \"swift:plugin@0.1\"\nsha256 = \"{sha}\"\n[limits]\nrows = 7\n"
        )
    };
    std::fs::write(dir.path().join("small.toml"), manifest(plugin.digest())).unwrap();
    assert_eq!(host.load_file(&path).unwrap().limits().rows, 7);
    std::fs::write(dir.path().join("small.toml"), manifest(&other)).unwrap();
    contains(&host.load_file(&path).unwrap_err().to_string(), &["is pinned"]);
    let missing = host.load_file(&dir.path().join("none.wasm")).unwrap_err().to_string();
    contains(&missing, &["none.wasm"]);
    alive(&host);
}

#[cfg(unix)]
#[test]
fn a_cache_that_others_can_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    use swift_plugin::{HostConfig, PluginHost};
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let config = HostConfig { cache_dir: Some(dir.path().to_path_buf()), ..HostConfig::default() };
    contains(&PluginHost::new(config).unwrap_err().to_string(), &["writable by everyone"]);
}
