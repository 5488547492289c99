//! The binary `swift-host`: glue between the command line and the crates below it.
#![forbid(unsafe_code)]

/// `println!` that ends the program quietly when nobody reads on, as `swift-host doctor | head` does.
macro_rules! outln {
    ($($arg:tt)*) => { $crate::write_out(format_args!("{}\n", format_args!($($arg)*))) };
}

/// `print!`, likewise.
macro_rules! out {
    ($($arg:tt)*) => { $crate::write_out(format_args!($($arg)*)) };
}

mod args;
mod command;
mod embedded;
mod environment;
mod progress;
mod settings;

use std::process::ExitCode;

use args::{Cli, Command};
use environment::Environment;

fn main() -> ExitCode {
    let cli = args::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes data to standard output.
fn write_out(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        let quiet = error.kind() == std::io::ErrorKind::BrokenPipe;
        if !quiet {
            eprintln!("error: cannot write to standard output: {error}");
        }
        std::process::exit(i32::from(!quiet));
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    let environment = Environment::new(cli)?;
    match &cli.command {
        Command::Run(args) => command::run::run(&environment, args),
        Command::Sft(args) => command::train::train(&environment, settings::Kind::Sft, args, swift_train::Question::None),
        Command::Pt(args) => {
            let kind = settings::Kind::Pt { from_scratch: args.from_scratch };
            command::train::train(&environment, kind, &args.train, swift_train::Question::None)
        }
        Command::Infer(args) => command::infer::infer(&environment, args),
        Command::Logits(args) => command::logits::logits(&environment, args),
        Command::Perplexity(args) => command::perplexity::perplexity(&environment, args),
        Command::Embed(args) => command::embed::embed(&environment, args),
        Command::Bench(args) => command::bench::bench(&environment, args),
        Command::Export(args) => command::export::export(&environment, args),
        Command::Estimate(args) => command::estimate::estimate(&environment, args),
        Command::Plugin(args) => command::plugin::plugin(&environment, args),
        Command::Doctor => command::doctor::doctor(&environment),
    }
}
