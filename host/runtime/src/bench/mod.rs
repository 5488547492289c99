//! Every kernel family measured on this machine, beside what the machine can do at most.
//!
//! A case is a small graph, compiled as any other: what is measured is what a training run or a server gets, launches included. Of
//! the run of a case only the launches count, not the copies of its results. The figure is the median of several runs. What memory gives
//! moves from one second to the next where others use it, so what it bounds is run in turn with reading or copying as much as can be.

mod cache;
mod cases;
mod memory;
mod models;
mod optimizer;
mod pool;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use swift_graph::passes::{self, Options};
use swift_graph::plan::plan;
use swift_graph::{Bindings, Graph};
use swift_kernels::ceiling::{Ceilings, Stream, Streams};

use crate::{CpuDevice, Device, Error, Executable, Result, Store};
use cases::Case;

/// What can be measured on its own, in the order of the report.
pub const FAMILIES: [&str; 10] =
    ["gemm", "linear", "experts", "conv", "attention", "cross-entropy", "lora", "memory", "optimizer", "pool"];

/// Which ceiling a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// `f32` multiply-adds: GFLOP/s.
    Flops,
    /// Products of 8-bit integers and their sums: GOP/s.
    Int8,
    /// Reading memory: GB/s.
    Read,
    /// Reading and writing memory: GB/s.
    Copy,
    /// Reading and writing arrays of 64 MB: GB/s.
    CopyNear,
    /// A word to another thread and back: millions a second.
    Handoff,
}

impl Bound {
    /// Unit of rates and ceilings.
    pub fn unit(self) -> &'static str {
        match self {
            Bound::Flops => "GFLOP/s",
            Bound::Int8 => "GOP/s",
            Bound::Read | Bound::Copy | Bound::CopyNear => "GB/s",
            Bound::Handoff => "M/s",
        }
    }

    /// The ceiling in that unit.
    pub fn ceiling(self, ceilings: &Ceilings) -> f64 {
        let of = match self {
            Bound::Flops => ceilings.flops,
            Bound::Int8 => ceilings.int8_ops,
            Bound::Read => ceilings.read,
            Bound::Copy => ceilings.copy,
            Bound::CopyNear => ceilings.copy_near,
            Bound::Handoff => return ceilings.handoffs * 1e-6,
        };
        of * 1e-9
    }

    /// What is run in turn with a case.
    fn stream(self) -> Option<Stream> {
        match self {
            Bound::Read => Some(Stream::Read),
            Bound::Copy => Some(Stream::Copy),
            Bound::CopyNear => Some(Stream::CopyNear),
            Bound::Flops | Bound::Int8 | Bound::Handoff => None,
        }
    }
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// What was computed.
    pub op: String,
    /// Its sizes.
    pub shape: String,
    /// Storage of the weight, or of the data.
    pub format: String,
    /// Median seconds of a run.
    pub seconds: f64,
    /// In the unit of `bound`.
    pub rate: f64,
    /// What limits it.
    pub bound: Bound,
    /// The ceiling where it was measured in turn with the case: `rate` is the median share of it.
    pub beside: Option<f64>,
}

impl Measured {
    /// What the rate is held against: the ceiling of the same rounds, or else that of the machine.
    pub fn ceiling(&self, ceilings: &Ceilings) -> f64 {
        self.beside.unwrap_or_else(|| self.bound.ceiling(ceilings))
    }
}

/// Measures one family. A family takes a few seconds to a minute.
///
/// # Errors
/// When there is no such family, or memory runs out.
pub fn family(device: &CpuDevice, name: &str, report: &mut dyn FnMut(&Measured)) -> Result<()> {
    if !FAMILIES.contains(&name) {
        return Err(Error::Missing { kind: "family of kernels", name: name.to_string() });
    }
    if name == "pool" {
        pool::measure(device.pool(), report);
        return Ok(());
    }
    let mut streams = None;
    for build in cases::of(name) {
        report(&measure(device, build(device)?, &mut streams)?);
    }
    Ok(())
}

/// Least time spent on a case, after the first run: a hundred runs of a small layer, while what takes longer has [`RUNS`].
const BUDGET: Duration = Duration::from_millis(150);

/// The same for what memory bounds, with its ceiling: twenty rounds of a copy of 256 MB and a kernel as fast.
const STREAMED_BUDGET: Duration = Duration::from_millis(400);

/// Least runs of a case.
const RUNS: usize = 5;

fn compile(device: &CpuDevice, graph: Graph, store: &Store) -> Result<Box<dyn Executable>> {
    let graph = passes::optimize(graph, &Options::default())?;
    let dense = |p: swift_graph::ParamId| store.is_dense(&graph.params()[p.index()].name);
    let plan = plan(graph.clone(), &dense)?;
    device.compile(plan)
}

fn measure(device: &CpuDevice, case: Case, streams: &mut Option<Streams>) -> Result<Measured> {
    let Case { op, shape, format, graph, inputs, mut store, precision, amount, bound } = case;
    let mut executable = compile(device, graph, &store)?;
    executable.set_precision(precision);
    let mut run = || -> Result<f64> {
        executable.set_profiling(true);
        executable.run(&mut store, &Bindings::new(), &inputs)?;
        let seconds = executable.profile().map_or(0.0, |profile| profile.total().as_secs_f64());
        Ok(seconds.max(f64::MIN_POSITIVE))
    };
    run()?;
    let (mut seconds, mut shares) = (Vec::new(), Vec::new());
    let pool = device.pool();
    let mut beside = bound.stream().map(|stream| (stream, streams.get_or_insert_with(|| Streams::new(pool))));
    let budget = if beside.is_some() { STREAMED_BUDGET } else { BUDGET };
    let start = Instant::now();
    while seconds.len() < RUNS || start.elapsed() < budget {
        let ceiling = beside.as_mut().map(|(stream, streams)| streams.rate(pool, *stream));
        seconds.push(run()?);
        shares.extend(ceiling.map(|ceiling| amount / (seconds[seconds.len() - 1] * ceiling)));
    }
    let seconds = median(&mut seconds).expect("a case runs");
    let rate = amount / seconds * 1e-9;
    Ok(Measured { op, shape, format, seconds, rate, bound, beside: median(&mut shares).map(|share| rate / share) })
}

/// Of nothing there is none.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
