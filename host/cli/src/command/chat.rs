//! A chat in the terminal, with ms-swift's commands.

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, bail};
use swift_data::Turn;
use swift_serve::Engine;

use crate::command::infer::{Session, system_prompt};

/// What Ctrl-C finds the program doing.
const ASKING: u8 = 0;
const ANSWERING: u8 = 1;
const STOPPING: u8 = 2;

/// Ctrl-C ends an answer, never the chat.
#[derive(Clone)]
struct Interrupt(Arc<AtomicU8>);

impl Interrupt {
    fn install() -> Result<Interrupt> {
        let state = Arc::new(AtomicU8::new(ASKING));
        let seen = state.clone();
        ctrlc::set_handler(move || {
            if seen.compare_exchange(ANSWERING, STOPPING, Ordering::SeqCst, Ordering::SeqCst) == Err(ASKING) {
                // The terminal has thrown the line away.
                eprint!("\n`exit` or Ctrl-D ends the chat\n<<< ");
            }
        })
        .context("cannot take over Ctrl-C")?;
        Ok(Interrupt(state))
    }

    fn stops(&self) -> bool {
        self.0.load(Ordering::SeqCst) == STOPPING
    }

    fn set(&self, state: u8) {
        self.0.store(state, Ordering::SeqCst);
    }
}

/// A line of the user.
enum Entry {
    Text(String),
    Clear,
    ResetSystem(Option<String>),
    Exit,
}

/// Reads entries; keeps whether they may have several lines.
struct Input {
    multi_line: bool,
}

impl Input {
    fn next(&mut self) -> Result<Entry> {
        loop {
            let Some(text) = self.read(if self.multi_line { "<<<[M] " } else { "<<< " }, self.multi_line)? else {
                return Ok(Entry::Exit);
            };
            match text.trim().to_lowercase().as_str() {
                "" => {}
                "exit" | "quit" => return Ok(Entry::Exit),
                "clear" => return Ok(Entry::Clear),
                "multi-line" => {
                    self.multi_line = true;
                    outln!("End a text with `#`; `single-line` goes back");
                }
                "single-line" => self.multi_line = false,
                "reset-system" => {
                    let Some(system) = self.read("<<<[S] ", self.multi_line)? else { return Ok(Entry::Exit) };
                    let system = system.trim();
                    return Ok(Entry::ResetSystem((!system.is_empty()).then(|| system.to_string())));
                }
                _ => return Ok(Entry::Text(text)),
            }
        }
    }

    /// One line, or lines up to one that ends with `#`. `None` at the end of the input.
    fn read(&self, mark: &str, multi_line: bool) -> Result<Option<String>> {
        out!("{mark}");
        let mut text = String::new();
        loop {
            let start = text.len();
            if std::io::stdin().lock().read_line(&mut text).context("cannot read standard input")? == 0 {
                outln!("");
                return Ok((!text.trim().is_empty()).then_some(text));
            }
            let line = text[start..].trim_end();
            let known = ["multi-line", "single-line", "clear", "reset-system", "exit", "quit"];
            let command = start == 0 && known.contains(&line.to_lowercase().as_str());
            if !multi_line || command || line.ends_with('#') {
                break;
            }
        }
        let text = text.trim_end();
        let text = if multi_line { text.strip_suffix('#').unwrap_or(text) } else { text };
        Ok(Some(text.trim_end().to_string()))
    }
}

/// Talks until the user leaves.
pub(crate) fn chat(mut session: Session, stream: bool) -> Result<ExitCode> {
    let mut engine = session.chat_engine()?;
    let interrupt = Interrupt::install()?;
    outln!("`exit` or `quit` ends the chat, Ctrl-C an answer; `clear` forgets what was said;");
    outln!("`reset-system` sets the system prompt and forgets; `multi-line` takes texts of several lines");
    let mut history: Vec<Turn> = Vec::new();
    let mut input = Input { multi_line: false };
    loop {
        match input.next()? {
            Entry::Exit => return Ok(ExitCode::SUCCESS),
            Entry::Clear => history.clear(),
            Entry::ResetSystem(system) => {
                history.clear();
                session.system = system.as_deref().map(system_prompt).transpose()?;
            }
            Entry::Text(text) => {
                history.push(Turn::new("user", text));
                interrupt.set(ANSWERING);
                let answer = answer(&mut session, &mut engine, &history, stream, &interrupt);
                interrupt.set(ASKING);
                match answer {
                    Ok(answer) => history.push(Turn::new("assistant", answer)),
                    Err(error) => {
                        history.pop();
                        eprintln!("error: {error:#}\nhint: `clear` forgets what was said");
                    }
                }
                outln!("{}", "-".repeat(50));
            }
        }
    }
}

/// Answers and prints. What was said before an interruption counts as the answer.
fn answer(session: &mut Session, engine: &mut Engine, history: &[Turn], stream: bool, interrupt: &Interrupt) -> Result<String> {
    let request = session.request(session.prompt(history, None)?)?;
    session.submit(engine, request)?;
    let plain = !std::io::stdout().is_terminal();
    let (mut answer, mut failure) = (String::new(), None);
    let mut out = std::io::stdout().lock();
    let mut written = Ok(());
    engine.drain(session.store(), |update| {
        answer.push_str(&update.text);
        failure = update.failure.clone();
        if stream && !update.text.is_empty() {
            written = write!(out, "{}", shown(&update.text, plain)).and_then(|()| out.flush());
        }
        if interrupt.stops() || written.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    written.context("cannot write to standard output")?;
    if stream { writeln!(out) } else { writeln!(out, "{}", shown(&answer, plain)) }.context("cannot write to standard output")?;
    if let Some(failure) = failure {
        bail!("{failure}");
    }
    Ok(answer)
}

/// A model's text without what would command a terminal.
fn shown(text: &str, plain: bool) -> String {
    text.chars().filter(|c| plain || !c.is_control() || matches!(c, '\n' | '\t')).collect()
}
