//! Rules of the source tree that no compiler checks. Each failure lists what to mend.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use swift_tests::workspace;

/// Own crates that each crate may use, in the package or its tests; ARCHITECTURE.md says why.
const MAY_USE: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("formats", &[]),
    ("graph", &[]),
    ("data", &["formats"]),
    ("plugin", &["graph"]),
    ("runtime", &["graph", "kernels"]),
    ("serve", &["graph", "runtime", "plugin", "formats", "data"]),
    ("train", &["graph", "runtime", "plugin", "formats", "data", "serve"]),
    ("cli", &["graph", "runtime", "plugin", "formats", "data", "serve", "train"]),
];
/// Crates with unsafe code, and where in them it may be.
const UNSAFE: &[&str] = &["kernels/src", "host/runtime/src/buffer.rs", "host/runtime/src/cpu", "host/formats/src/mapped.rs"];
/// Longest source file in lines.
const MAX_LINES: usize = 800;

/// Every file below `folder` with this extension, build outputs left out.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            match path.is_dir() {
                true if name != "target" && !name.starts_with('.') => folders.push(path),
                false if path.extension().is_some_and(|e| e == extension) => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Own sources by their path in the repository.
fn sources() -> BTreeMap<String, String> {
    let root = workspace();
    let mut sources = BTreeMap::new();
    for folder in ["kernels", "host", "plugins", "tests", "benches"] {
        for path in files(&root.join(folder), "rs") {
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            sources.insert(name, std::fs::read_to_string(&path).unwrap());
        }
    }
    assert!(sources.len() > 100, "{} sources", sources.len());
    sources
}

#[track_caller]
fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

fn manifest(path: &Path) -> toml::Table {
    std::fs::read_to_string(path).unwrap().parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn dependencies_point_down() {
    let root = workspace();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let crates = std::fs::read_dir(root.join("host")).unwrap().map(|e| e.unwrap().path()).chain([root.join("kernels")]);
    for folder in crates.filter(|f| f.join("Cargo.toml").is_file()) {
        let name = folder.file_name().unwrap().to_str().unwrap().to_string();
        let Some((_, allowed)) = MAY_USE.iter().find(|(n, _)| *n == name) else {
            wrong.push(format!("crate {name} is in no layer"));
            continue;
        };
        seen.insert(name.clone());
        let manifest = manifest(&folder.join("Cargo.toml"));
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for used in manifest.get(table).and_then(|t| t.as_table()).into_iter().flat_map(|t| t.keys()) {
                if let Some(own) = used.strip_prefix("swift-").filter(|own| !allowed.contains(own)) {
                    wrong.push(format!("{name} uses {own}"));
                }
            }
        }
    }
    none("dependencies that point up or aside", wrong);
    assert_eq!(seen.len(), MAY_USE.len(), "{seen:?}");
}

#[test]
fn plugins_use_the_sdk_alone() {
    let root = workspace().join("plugins");
    let mut wrong = Vec::new();
    for path in files(&root, "toml").into_iter().filter(|p| p.ends_with("Cargo.toml")) {
        let folder = path.parent().unwrap().strip_prefix(&root).unwrap().to_path_buf();
        if folder.starts_with("sdk") || folder.starts_with("evil") || folder.as_os_str().is_empty() {
            continue;
        }
        let manifest = manifest(&path);
        let uses = manifest.get("dependencies").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.keys());
        // `blocks` is a library over the SDK, which anyone can write a family with.
        // Published crates that need no system are anyone's; each is named here, so that none comes by accident.
        let lent = |used: &&String| ["swift-sdk", "blocks", "regex-automata"].contains(&used.as_str());
        wrong.extend(uses.filter(|used| !lent(used)).map(|used| format!("{} uses {used}", folder.display())));
    }
    none("plugins with dependencies that a third party need not have", wrong);
}

#[test]
fn the_root_is_tidy() {
    let allowed = "Cargo.toml Cargo.lock README.md ARCHITECTURE.md LICENSE rustfmt.toml host kernels plugins wit tests benches target output";
    let names = std::fs::read_dir(workspace()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    none(
        "entries that the root should not have",
        names.filter(|n| !n.starts_with('.') && !allowed.split(' ').any(|a| a == n)).collect(),
    );
}

#[test]
fn files_are_short_and_named_for_what_they_hold() {
    let vague = ["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"];
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{name} has {lines} lines, {MAX_LINES} are allowed"));
        }
        if vague.iter().any(|v| name.ends_with(&format!("/{v}"))) {
            wrong.push(format!("{name} has a name that says nothing"));
        }
    }
    none("files to divide or rename", wrong);
}

#[test]
fn every_file_says_what_it_is_for() {
    // Generated bindings have nothing to say; unit tests belong to the file beside them.
    let exempt = |name: &str| name.ends_with("/bindings.rs") || name.ends_with("/tests.rs");
    let undocumented = |(name, text): (String, String)| (!exempt(&name) && !text.trim_start().starts_with("//!")).then_some(name);
    none("files without module documentation", sources().into_iter().filter_map(undocumented).collect());
}

#[test]
fn nothing_is_left_to_do() {
    // In pieces, so that this file does not find itself.
    let marks = ["todo", "unimplemented", "dbg"].map(|m| format!("{m}!("));
    let words = ["TO".to_string() + "DO", "FIX".to_string() + "ME", "XX".to_string() + "X"];
    let mut found = Vec::new();
    for (name, text) in sources() {
        for (i, line) in text.lines().enumerate() {
            if marks.iter().chain(&words).any(|m| line.contains(m.as_str())) {
                found.push(format!("{name}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    none("unfinished places", found);
}

/// A line without its comment and its strings, roughly.
fn code(line: &str) -> String {
    let mut out = String::new();
    for (i, part) in line.split('"').enumerate() {
        if i % 2 == 0 {
            if let Some((before, _)) = part.split_once("//") {
                out.push_str(before);
                break;
            }
            out.push_str(part);
        }
    }
    out
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

#[test]
fn unsafe_code_is_where_it_may_be_and_says_why_it_is_sound() {
    let mut wrong = Vec::new();
    for (name, text) in sources().into_iter().filter(|(n, _)| n.starts_with("kernels") || n.starts_with("host")) {
        let lines: Vec<&str> = text.lines().collect();
        // A file of intrinsics states one reason for all, in the lint's own terms.
        let whole_file_explained = text.contains("#![allow(\n    clippy::undocumented_unsafe_blocks,\n    reason = ");
        for (i, line) in lines.iter().enumerate() {
            let code = code(line);
            if whole_file_explained || !has_word(&code, "unsafe") || name.ends_with("/bindings.rs") {
                continue;
            }
            if !UNSAFE.iter().any(|place| name.starts_with(place)) {
                wrong.push(format!("{name}:{}: unsafe code has no place here", i + 1));
                continue;
            }
            // Functions and traits state their contract as `# Safety`; types of unsafe functions need none.
            let explained = |window: &[&str], mark: &str| window.iter().any(|l| l.contains(mark));
            let above = &lines[i.saturating_sub(12)..=i];
            let fine = match () {
                () if code.contains("unsafe fn(") || code.contains("unsafe_op") => true,
                () if code.contains("unsafe fn") || code.contains("unsafe trait") => {
                    let docs = &lines[i.saturating_sub(40)..i];
                    // Private functions may state it in a comment, for a whole group in the module's head.
                    explained(docs, "Safety") || explained(docs, "SAFETY") || explained(&lines[..lines.len().min(40)], "afety")
                }
                () => explained(above, "SAFETY"),
            };
            if !fine {
                wrong.push(format!("{name}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    none("unsafe code without a reason", wrong);
}

#[test]
fn other_crates_forbid_unsafe_code() {
    let mut wrong = Vec::new();
    for (crate_name, _) in MAY_USE.iter().filter(|(n, _)| !["kernels", "runtime", "formats"].contains(n)) {
        let folder = workspace().join("host").join(crate_name).join("src");
        let root = ["lib.rs", "main.rs"].map(|f| folder.join(f)).into_iter().find(|f| f.is_file()).unwrap();
        let text = std::fs::read_to_string(root).unwrap();
        // The generated bindings of the plugin host hold some.
        let denied = *crate_name == "plugin" && text.contains("#![deny(unsafe_code)]");
        if !text.contains("#![forbid(unsafe_code)]") && !denied {
            wrong.push(crate_name.to_string());
        }
    }
    none("crates that do not forbid unsafe code", wrong);
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let text = std::fs::read_to_string(workspace().join("Cargo.toml")).unwrap();
    let mut wrong = Vec::new();
    let mut explained = false;
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with('[') {
            (inside, explained) = (line == "[workspace.dependencies]", false);
        } else if line.starts_with('#') {
            explained = true;
        } else if line.trim().is_empty() {
            explained = false;
        } else if inside && !explained {
            wrong.push(line.to_string());
        }
    }
    none("dependencies without a comment above them", wrong);
}

#[test]
fn only_the_binary_prints_and_reads_its_surroundings() {
    let banned = ["println!", "eprintln!", "print!(", "eprint!(", "std::env::var", "env::args"];
    let mut wrong = Vec::new();
    let libraries = |n: &String| {
        n.starts_with("kernels/src") || (n.starts_with("host/") && n.contains("/src/") && !n.starts_with("host/cli"))
    };
    for (name, text) in sources().into_iter().filter(|(n, _)| libraries(n)) {
        // Tests at the end of a file, and files of tests, may print.
        let body = text.split("#[cfg(test)]").next().unwrap();
        if name.ends_with("tests.rs") || name.contains("/tests/") {
            continue;
        }
        for (i, line) in body.lines().enumerate().filter(|(_, l)| banned.iter().any(|b| code(l).contains(b))) {
            wrong.push(format!("{name}:{}: {}", i + 1, line.trim()));
        }
    }
    none("libraries that print or read the environment", wrong);
}

#[test]
fn golden_files_stay_small() {
    let root = workspace().join("tests/golden");
    let mut total = 0;
    for extension in ["json", "safetensors", "md"] {
        total += files(&root, extension).iter().map(|p| std::fs::metadata(p).unwrap().len()).sum::<u64>();
    }
    assert!(total < 16 << 20, "{total} bytes");
}
