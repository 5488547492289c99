//! `bench`: speed of prefill and decode, beside what the machine can do.

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use swift_runtime::Ceilings;
use swift_serve::{Engine, EngineOptions, Request};

use crate::args::{BenchArgs, BenchCommand};
use crate::command::infer::{Opened, open};
use crate::command::kernels::kernels;
use crate::environment::Environment;

/// A prompt of about 20 tokens.
const SHORT_PROMPT: &str = "Name the three largest cities of Italy and say one thing about each of them.";

/// One measured phase.
struct Phase {
    tokens: usize,
    seconds: f64,
    bytes: u64,
    flops: u64,
    /// Share of the wall time that no kernel ran.
    outside: f64,
}

/// Measures and prints.
pub(crate) fn bench(environment: &Environment, command: &BenchCommand) -> Result<ExitCode> {
    let (args, decode) = match command {
        BenchCommand::Prefill(args) => (args, false),
        BenchCommand::Decode(args) => (args, true),
        BenchCommand::Kernels(args) => return kernels(environment, args),
    };
    if args.prompt == 0 || args.sequences == 0 || args.repeat == 0 || decode && args.new < 2 {
        bail!("`--prompt`, `--sequences` and `--repeat` must be at least 1, and `--new` at least 2");
    }
    let device = environment.cpu()?;
    let mut opened = open(environment, &device, &args.model)?;
    let vocab = opened.model.config()["vocab_size"].as_u64().unwrap_or(256).max(8);
    let (precision, idle) = args.compute.precision(&opened.store);
    idle.iter().for_each(|idle| eprintln!("{idle}"));
    let options = EngineOptions {
        chunk: args.prompt * args.sequences,
        precision,
        cache: args.compute.kv_cache_dtype.into(),
        batching: args.compute.batching.into(),
        // Every sequence has the same prompt, and every run.
        share_prefixes: false,
        ..EngineOptions::new(args.sequences, args.prompt + args.new + 1)
    };
    let Opened { model, store } = &mut opened;
    let mut engine = Engine::new(model, &device, store, options, None)?;
    // Any tokens do: time does not depend on which.
    let prompt: Vec<i32> = (0..args.prompt as u64).map(|i| (3 + i * 7919 % (vocab - 3)) as i32).collect();
    let mut runs = Vec::with_capacity(args.repeat);
    // The first run warms caches up, the last one is measured launch by launch.
    for run in 0..=args.repeat + 1 {
        let profiled = run > args.repeat;
        for _ in 0..args.sequences {
            engine.submit(Request::new(prompt.clone(), if decode { args.new } else { 1 }))?;
        }
        engine.set_profiling(profiled && !decode);
        let start = Instant::now();
        engine.step(store)?;
        let prefill = start.elapsed();
        let taken_in = engine.profile().cloned();
        engine.set_profiling(profiled && decode);
        let (start, mut steps) = (Instant::now(), 0);
        while !engine.is_idle() {
            engine.step(store)?;
            steps += 1;
        }
        let measured = (prefill, start.elapsed(), steps);
        match (run, profiled) {
            (0, _) => {}
            (_, false) => runs.push(measured),
            (_, true) => {
                let profile = taken_in.or(engine.profile().cloned()).unwrap_or_default();
                let wall = if decode { measured.1 } else { measured.0 };
                let bytes = profile.rows.values().map(|row| row.bytes).sum();
                let flops = profile.rows.values().map(|row| row.flops).sum();
                let outside = 1.0 - profile.total().as_secs_f64() / wall.as_secs_f64();
                let seconds = |of: &dyn Fn(&(Duration, Duration, usize)) -> Duration| {
                    let mut times: Vec<f64> = runs.iter().map(|r| of(r).as_secs_f64()).collect();
                    times.sort_by(f64::total_cmp);
                    times[times.len() / 2]
                };
                let prefill = seconds(&|r| r.0);
                let (tokens, time) = match decode {
                    true => (args.sequences * measured.2, seconds(&|r| r.1)),
                    false => (args.sequences * args.prompt, prefill),
                };
                let phase = Phase { tokens, seconds: time, bytes, flops, outside };
                let prefill_rate = (args.sequences * args.prompt) as f64 / prefill;
                let ceilings = device.ceilings();
                if args.profile {
                    eprintln!("{profile}");
                }
                let first = first_token(environment, args)?;
                report(args, decode, &phase, prefill_rate, &ceilings, first);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn report(args: &BenchArgs, decode: bool, phase: &Phase, prefill: f64, ceilings: &Ceilings, first: f64) {
    let rate = phase.tokens as f64 / phase.seconds;
    let (bytes, flops) = (phase.bytes as f64 / phase.seconds, phase.flops as f64 / phase.seconds);
    let (of_bytes, of_flops) = (bytes / ceilings.read, flops / ceilings.flops);
    let decode_rate = decode.then_some(rate);
    if args.json {
        let round = |x: f64| (x * 1000.0).round() / 1000.0;
        let mut out = json!({
            "prefill_tok_s": round(prefill),
            "decode_tok_s": decode_rate.map_or(Value::Null, |r| round(r).into()),
            "prompt": args.prompt, "new": if decode { args.new } else { 1 }, "sequences": args.sequences,
            "time_to_first_token_s": round(first),
            "gbytes_s": round(bytes / 1e9), "gflops": round(flops / 1e9),
            "ceiling_gbytes_s": round(ceilings.read / 1e9), "ceiling_gflops": round(ceilings.flops / 1e9),
            "share_of_bandwidth": round(of_bytes), "share_of_flops": round(of_flops),
            "share_outside_kernels": round(phase.outside),
        });
        if !decode && let Some(out) = out.as_object_mut() {
            out.remove("decode_tok_s");
        }
        outln!("{out}");
        return;
    }
    outln!("prefill        {prefill:>10.1} tok/s   {} tokens, {} sequences", args.prompt, args.sequences);
    if let Some(rate) = decode_rate {
        outln!("decode         {rate:>10.1} tok/s   {} tokens after the prompt", args.new - 1);
    }
    outln!("first token    {:>10.0} ms      from process start, 20-token prompt", first * 1e3);
    outln!("memory read    {:>10.1} GB/s    {:.0}% of {:.1}", bytes / 1e9, of_bytes * 100.0, ceilings.read / 1e9);
    outln!("arithmetic     {:>10.1} GFLOP/s {:.0}% of {:.1}", flops / 1e9, of_flops * 100.0, ceilings.flops / 1e9);
    outln!("outside kernels{:>10.1} %", phase.outside * 100.0);
}

/// Seconds from the start of a new process to its first token; the median of three.
fn first_token(environment: &Environment, args: &BenchArgs) -> Result<f64> {
    let program = std::env::current_exe().context("cannot find the program's own file")?;
    let mut times = Vec::with_capacity(3);
    for _ in 0..3 {
        let mut command = Command::new(&program);
        command.args(["infer", "--max_new_tokens", "1", "--max_length", "256", "--temperature", "0", "--prompt", SHORT_PROMPT]);
        command.arg("--threads").arg(environment.threads.to_string());
        let texts = [
            ("--model", &args.model.model),
            ("--model_plugin", &args.model.model_plugin),
            ("--tuner_type", &args.model.tuner_type),
        ];
        for (flag, value) in texts.into_iter().filter_map(|(f, v)| Some((f, v.as_ref()?))) {
            command.arg(flag).arg(value);
        }
        command.args(args.model.quantization.as_typed());
        command.args(args.compute.as_typed());
        if let Some(adapters) = &args.model.adapters {
            command.arg("--adapters").arg(adapters);
        }
        let start = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.context("cannot start the program again")?;
        let mut byte = [0];
        if let Some(out) = child.stdout.as_mut() {
            out.read_exact(&mut byte).context("the program, started again, gave no token")?;
        }
        times.push(start.elapsed().as_secs_f64());
        child.wait().context("cannot wait for the program")?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times[1])
}
