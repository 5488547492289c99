//! Progress on standard error, and Ctrl-C.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use swift_train::{Event, Observer, resident_bytes};

/// Exit code of an interrupted run, as shells use for SIGINT.
const INTERRUPTED: u8 = 130;

/// Whether Ctrl-C was pressed. The second press ends the process at once.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes over Ctrl-C; `after` says when the program stops.
    pub(crate) fn install(after: &'static str) -> Result<Interrupt> {
        let pressed = Arc::new(AtomicBool::new(false));
        let flag = pressed.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(INTERRUPTED.into());
            }
            eprintln!("\nstopping after {after}; press Ctrl-C again to stop at once without saving");
        })
        .context("cannot take over Ctrl-C")?;
        Ok(Interrupt(pressed))
    }

    pub(crate) fn pressed(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// What a run that stopped for it ends with.
    pub(crate) fn exit_code() -> ExitCode {
        ExitCode::from(INTERRUPTED)
    }
}

/// A progress bar with loss, speed, time left and memory; plain lines where standard error is no terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    interrupt: Interrupt,
}

impl Progress {
    /// A bar of `total` updates.
    pub(crate) fn new(total: u64, interrupt: Interrupt) -> Progress {
        let bar = ProgressBar::new(total);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} [{elapsed} < {eta}]");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress { bar, interrupt }
    }

    /// Leaves the bar as it is.
    pub(crate) fn finish(&self) {
        self.bar.abandon();
    }

    fn line(&self, text: &str) {
        // `println` of a hidden bar prints nothing.
        if self.bar.is_hidden() { eprintln!("{text}") } else { self.bar.println(text) }
    }
}

impl Observer for Progress {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Step { step, total, loss, tokens_per_second } => {
                let memory = resident_bytes().map_or_else(String::new, |b| format!(" {}", bytes(b)));
                self.bar.set_position(step);
                self.bar.set_message(format!("loss {loss:.4} {tokens_per_second:.0} tok/s{memory}"));
                let every = (total / 10).max(1);
                if self.bar.is_hidden() && (step == 1 || step % every == 0) {
                    eprintln!("step {step}/{total} loss {loss:.4} {tokens_per_second:.0} tok/s{memory}");
                }
            }
            Event::Evaluated { step, loss } => self.line(&format!("step {step}: held-out loss {loss:.4}")),
            Event::Answered { step, accuracy } => self.line(&format!(
                "step {step}: {} of {} held-out answers exact ({:.1}%)",
                accuracy.right,
                accuracy.asked,
                accuracy.share() * 100.0
            )),
            Event::Sampled { step, question, answer } => {
                self.line(&format!("step {step}: sample\n  {}\n  -> {}", shorten(question), shorten(answer)));
            }
            Event::Saved { path } => self.line(&format!("saved {}", path.display())),
            Event::Resumed { step } => {
                self.bar.set_position(step);
                self.bar.reset_eta();
                self.line(&format!("going on after {step} updates"));
            }
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupt.pressed()
    }
}

/// One line of at most 300 characters, safe for a terminal.
fn shorten(text: &str) -> String {
    let mut line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    if text.trim().chars().count() > 300 {
        line.push_str(" ...");
    }
    line
}

/// `1.2 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n >= 1024.0 * 1024.0 * 1024.0 => format!("{:.2} GiB", n / (1024.0 * 1024.0 * 1024.0)),
        n if n >= 1024.0 * 1024.0 => format!("{:.1} MiB", n / (1024.0 * 1024.0)),
        n => format!("{:.0} KiB", n / 1024.0),
    }
}
