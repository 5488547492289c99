//! The built program, run as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What a run of the program left.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Fails unless the program succeeded.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "the program failed:\n{}", self.stderr);
        self
    }

    /// Fails unless the program refused, quietly on standard output, without a panic, and said each of `words`.
    #[track_caller]
    pub fn refused(self, words: &[&str]) -> Ran {
        assert!(matches!(self.code, Some(1 | 2)), "exit code {:?}:\n{}", self.code, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        assert_eq!(self.stdout, "", "a refusal wrote to standard output");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in:\n{}", self.stderr);
        }
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).expect("the program writes UTF-8");
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// The folder of this build, `target/<profile>`.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its file");
    test.ancestors().nth(2).expect("tests lie in `deps` of a profile").to_path_buf()
}

/// The binary, from this build or else from the release build.
#[track_caller]
pub fn binary() -> PathBuf {
    let places = [profile_dir(), crate::workspace().join("target/release")].map(|folder| folder.join("swift-host"));
    let found = places.iter().find(|path| path.is_file()).cloned();
    found.expect("there is no `swift-host`; run `cargo build --release -p swift-cli` first")
}

/// The folder of bundled plugins beside the binary.
#[track_caller]
pub fn plugins() -> PathBuf {
    let folder = binary().with_file_name("plugins");
    assert!(
        folder.join("lora.wasm").is_file(),
        "there are no plugins; run `swift-host plugin build plugins --out {}`",
        folder.display()
    );
    folder
}

/// Compiled plugins are kept here, apart from the user's.
pub(crate) fn cache() -> PathBuf {
    profile_dir().join("test-cache")
}

/// The program in folder `dir`, with the words of `line` as arguments.
#[track_caller]
pub fn command(dir: &Path, line: &str) -> Command {
    plugins();
    let mut command = Command::new(binary());
    command.current_dir(dir).args(line.split_whitespace()).stdin(Stdio::null());
    command.env("XDG_CACHE_HOME", cache()).env_remove("SWIFT_HOST_ISA").env_remove("SWIFT_HOST_PLUGINS");
    command
}

/// Runs the program in folder `dir`, with the words of `line` as arguments.
#[track_caller]
pub fn swift_host(dir: &Path, line: &str) -> Ran {
    command(dir, line).output().expect("the program starts").into()
}

/// Writes `rows.jsonl` with `count` short conversations of different lengths into `dir`.
pub fn rows(dir: &Path, count: usize) {
    let row = |i: usize| {
        let (question, answer) = (format!("What is {i} plus {}?", i * 7), format!("It is {}{}.", i * 8, " indeed".repeat(i % 5)));
        serde_json::json!({ "messages": [{ "role": "user", "content": question }, { "role": "assistant", "content": answer }] })
    };
    let text: String = (0..count).map(|i| format!("{}\n", row(i))).collect();
    std::fs::write(dir.join("rows.jsonl"), text).expect("the folder can be written");
}
