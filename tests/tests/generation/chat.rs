//! The interactive chat, driven through a pseudo-terminal by util-linux's `script`. Nothing is timed: every input waits for the
//! output that must precede it.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use swift_tests::command;

/// Longest wait for output; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);
/// What ends every answer.
const RULE: &str = "--------------------------------------------------";

struct Terminal {
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    /// Where the last expectation ended.
    at: usize,
}

impl Terminal {
    /// `None` where there is no `script`.
    fn new(line: &str) -> Option<Terminal> {
        let dir = std::env::temp_dir();
        let program = command(&dir, line);
        let words = std::iter::once(program.get_program()).chain(program.get_args());
        let typed: Vec<String> = words.map(|w| format!("'{}'", w.to_str().expect("plain words"))).collect();
        // In place of the shell: one that stays would die of a Ctrl-C that the program took as its own business.
        let line = format!("exec {}", typed.join(" "));
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-f", "-c", &line, "/dev/null"]).current_dir(&dir);
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let (input, mut from) = (child.stdin.take()?, child.stdout.take()?);
        let (send, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = from.read(&mut buffer) {
                if n == 0 || send.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Some(Terminal { child, input, output, seen: Vec::new(), at: 0 })
    }

    /// Waits for `text` and returns what came before it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        loop {
            let rest = String::from_utf8_lossy(&self.seen[self.at..]).into_owned();
            if let Some(found) = rest.find(text) {
                // Whole up to here, so that counting bytes of the replaced text is safe only for what the program wrote as UTF-8.
                let before = rest[..found].to_string();
                self.at += self.seen[self.at..].windows(text.len()).position(|w| w == text.as_bytes()).unwrap() + text.len();
                return before;
            }
            match self.output.recv_timeout(PATIENCE) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(error) => panic!("`{text}` did not come ({error}):\n{}", String::from_utf8_lossy(&self.seen)),
            }
        }
    }

    /// Waits for any output.
    #[track_caller]
    fn expect_more(&mut self) {
        while self.seen.len() == self.at {
            self.seen.extend(self.output.recv_timeout(PATIENCE).expect("output comes"));
        }
    }

    fn send(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush()).expect("the terminal takes input");
    }

    fn exit_code(mut self) -> Option<i32> {
        self.child.wait().expect("the program ends").code()
    }
}

#[test]
fn a_chat_answers_forgets_and_ends() {
    let Some(mut t) = Terminal::new("infer --model swift-tiny --max_new_tokens 12") else {
        return eprintln!("skipped: there is no `script`");
    };
    t.expect("<<< ");
    t.send("Hello\n");
    let first = t.expect(RULE);
    t.expect("<<< ");
    t.send("clear\n");
    t.expect("<<< ");
    t.send("Hello\n");
    assert_eq!(t.expect(RULE), first, "`clear` leaves nothing behind");
    t.expect("<<< ");
    t.send("multi-line\n");
    t.expect("<<<[M] ");
    t.send("one\ntwo#\n");
    t.expect(RULE);
    t.expect("<<<[M] ");
    t.send("single-line\n");
    t.expect("<<< ");
    t.send("reset-system\n");
    t.expect("<<<[S] ");
    t.send("Be brief.\n");
    t.expect("<<< ");
    // Ctrl-C where nothing is answered neither ends the program nor the line discipline.
    t.send("\u{3}");
    t.expect("ends the chat");
    t.expect("<<< ");
    t.send("exit\n");
    assert_eq!(t.exit_code(), Some(0));
}

#[test]
fn ctrl_c_ends_the_answer_and_not_the_chat() {
    // At this temperature hardly any answer ends by itself before the context does.
    let Some(mut t) = Terminal::new("infer --model swift-tiny --temperature 50 --max_length 500") else {
        return eprintln!("skipped: there is no `script`");
    };
    t.expect("<<< ");
    for _ in 0..3 {
        t.send("Hello\n");
        t.expect("Hello\r\n");
        // A terminal drops what was typed and not read when Ctrl-C comes, so the answer must have begun.
        t.expect_more();
        t.send("\u{3}");
        t.expect(RULE);
        t.expect("<<< ");
        t.send("clear\n");
        t.expect("<<< ");
    }
    t.send("quit\n");
    assert_eq!(t.exit_code(), Some(0));
}
