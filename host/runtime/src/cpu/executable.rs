//! A compiled plan: prepares its launches for a binding, binds memory, and runs them in order.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use swift_graph::plan::{Layout, Plan};
use swift_graph::{Bindings, NodeId, OpRule, StateId};

use super::bind::{Bound, InputSlot, Sources};
use super::elementwise::accumulate;
use super::identity::Move;
use super::leaf::{Constant, constant};
use super::linear::{Linear, Linears};
use super::memory::{Memory, Ref};
use super::prepare::{Operands, Prepare, Scope, Tables, Use, verify};
use super::{Kernel, Shared, prepare_launch};
use crate::buffer::Buffer;
use crate::{Elements, Executable, Inputs, OutputView, Precision, Profile, Result, Store};

/// Bindings whose launches are kept. Training sees a handful of batch lengths between repeats, decoding one.
const KEPT: usize = 8;

/// A plan on the CPU.
pub(super) struct CpuExecutable {
    shared: Arc<Shared>,
    plan: Plan,
    caches: BTreeSet<StateId>,
    tables: Tables,
    /// Constant base of each node that has one.
    constant_of: Vec<Option<u32>>,
    constants: Vec<Constant>,
    /// Most recent first.
    prepared: VecDeque<(Bindings, Prepared)>,
    profile: Option<Profile>,
    precision: Precision,
}

/// A call, and what it costs.
struct Step {
    kernel: Kernel,
    op: &'static str,
    /// All operands but `weights`.
    bytes: u64,
    weights: [Option<u32>; Linears::MOST],
    flops: u64,
}

impl Step {
    /// Bytes of the parameters that are read in their storage format.
    fn weight_bytes(&self, memory: &Memory<'_>) -> u64 {
        self.weights.iter().flatten().map(|&param| memory.param_bytes(param) as u64).sum()
    }
}

/// Makes one step of products that may run as one.
fn joined(steps: Vec<Step>) -> Vec<Step> {
    let mut out: Vec<Step> = Vec::with_capacity(steps.len());
    let mut linears: Vec<Linear> = Vec::new();
    for step in steps {
        match &step.kernel {
            Kernel::Linear(next) if linears.len() < Linears::MOST && linears.last().is_some_and(|last| last.joins(next)) => {
                if let Some(group) = out.last_mut() {
                    group.weights[linears.len()] = step.weights[0];
                    (group.bytes, group.flops) = (group.bytes + step.bytes, group.flops + step.flops);
                    linears.push(*next);
                    group.kernel = Kernel::Linears(Linears::new(linears.clone()));
                    continue;
                }
            }
            Kernel::Linear(first) => linears = vec![*first],
            _ => linears.clear(),
        }
        out.push(step);
    }
    out
}

/// A named result.
struct Output {
    name: String,
    value: Ref,
    dims: Vec<usize>,
    int: bool,
}

/// All launches under one binding.
struct Prepared {
    steps: Vec<Step>,
    layout: Layout,
    /// Words past the layout for activations in 8 bits.
    rounded_words: usize,
    uses: Vec<Use>,
    lens: Vec<usize>,
    inputs: Vec<InputSlot>,
    outputs: Vec<Output>,
    /// Where the last run found everything.
    bound: Bound,
}

impl Prepared {
    /// Where activations in 8 bits begin: at a cache line, past the layout.
    fn rounded_at(&self) -> usize {
        self.layout.bytes.next_multiple_of(64)
    }

    /// Bytes of arena.
    fn bytes(&self) -> usize {
        if self.rounded_words == 0 { self.layout.bytes } else { self.rounded_at() + 4 * self.rounded_words }
    }
}

impl CpuExecutable {
    pub(super) fn new(shared: Arc<Shared>, plan: Plan) -> Result<CpuExecutable> {
        let mut constants = Vec::new();
        let mut constant_of = vec![None; plan.graph.len()];
        for id in plan.graph.ids() {
            if plan.places[id.index()] == swift_graph::plan::Place::Constant
                && let Some(data) = constant(plan.graph.node(id))?
            {
                constant_of[id.index()] = Some(constants.len() as u32);
                constants.push(data);
            }
        }
        let tables = Tables::new(&plan, constants.len());
        let caches = plan.graph.caches();
        let (prepared, precision) = (VecDeque::new(), Precision::default());
        Ok(CpuExecutable { shared, plan, caches, tables, constant_of, constants, prepared, profile: None, precision })
    }

    fn prepare(&self, bindings: &Bindings) -> Result<Prepared> {
        let plan = &self.plan;
        let lens = self.constants.iter().map(Constant::len);
        let mut scope = Scope::new(plan, bindings, self.tables, &self.constant_of, lens, self.precision)?;
        let mut steps = Vec::with_capacity(plan.launches.len());
        let mut operands: Vec<Operands> = Vec::with_capacity(plan.launches.len());
        let mut at = vec![u32::MAX; plan.graph.len()];
        for (index, launch) in plan.launches.iter().enumerate() {
            at[launch.node.index()] = index as u32;
            let mut p = Prepare::new(&mut scope, index);
            let kernel = prepare_launch(&mut p)?;
            let weights = [p.weight, None, None, None];
            steps.push(Step { kernel, op: p.node.op.name(), bytes: p.bytes, weights, flops: p.flops()? });
            operands.push(p.into_operands());
            for &effect in &launch.effects {
                steps.push(write(&mut scope, effect)?);
            }
        }
        let scratch_of = |node: NodeId| 4 * scope.lens[self.tables.scratch + at[node.index()] as usize];
        let layout = plan.layout(bindings, &|launch| Ok(scratch_of(launch.node)))?;
        for operands in &operands {
            verify(&scope, &layout, operands)?;
        }
        let mut outputs = Vec::with_capacity(plan.graph.outputs.len());
        for (name, node) in &plan.graph.outputs {
            let (value, dims) = (scope.value(*node)?, scope.dims(*node)?);
            outputs.push(Output { name: name.clone(), value, dims, int: plan.graph.ty(*node).dtype.is_int() });
        }
        let mut inputs = Vec::new();
        for (i, info) in plan.graph.inputs().iter().enumerate() {
            let base = self.tables.inputs + i;
            if scope.uses[base].used {
                inputs.push(InputSlot { input: i, base, dims: info.ty.shape.eval(bindings)? });
            }
        }
        let steps = joined(steps);
        let (uses, lens, rounded_words) = (scope.uses, scope.lens, scope.rounded_words);
        let bound = Bound::new(self.tables.len);
        Ok(Prepared { steps, layout, rounded_words, uses, lens, inputs, outputs, bound })
    }

    /// Moves the entry of `bindings` to the front, preparing it if need be.
    fn ready(&mut self, bindings: &Bindings) -> Result<()> {
        let entry = match self.prepared.iter().position(|(b, _)| b == bindings) {
            Some(0) => return Ok(()),
            Some(at) => self.prepared.remove(at),
            None => None,
        };
        let entry = match entry {
            Some(entry) => entry,
            None => (bindings.clone(), self.prepare(bindings)?),
        };
        self.prepared.truncate(KEPT - 1);
        self.prepared.push_front(entry);
        Ok(())
    }
}

/// The step that carries out an effect.
fn write(scope: &mut Scope<'_>, effect: usize) -> Result<Step> {
    let effect = &scope.plan.graph.effects[effect];
    let src = scope.value(effect.value)?;
    if let Some(kernel) = super::dynamic8::write(scope, effect.target, src) {
        return Ok(Step { kernel, op: "write", bytes: 5 * src.len as u64, weights: [None; Linears::MOST], flops: 0 });
    }
    let (src, dst) = (scope.value(effect.value)?, scope.target(effect.target));
    if src.len != dst.len {
        return Err(scope.broken(effect.value, format!("an effect writes {} elements to {}", src.len, dst.len)));
    }
    let bytes = 4 * dst.len as u64;
    Ok(match effect.accumulate {
        true => Step {
            kernel: accumulate(dst, src),
            op: "accumulate",
            bytes: 3 * bytes,
            weights: [None; Linears::MOST],
            flops: dst.len as u64,
        },
        false => Step {
            kernel: Kernel::Move(Move { src, dst }),
            op: "write",
            bytes: 2 * bytes,
            weights: [None; Linears::MOST],
            flops: 0,
        },
    })
}

impl Executable for CpuExecutable {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn run_with(
        &mut self,
        store: &mut Store,
        bindings: &Bindings,
        inputs: &Inputs,
        read: &mut dyn FnMut(OutputView<'_>),
    ) -> Result<()> {
        self.ready(bindings)?;
        let prepared = &mut self.prepared[0].1;
        let sources =
            Sources { plan: &self.plan, tables: &self.tables, caches: &self.caches, constants: &self.constants, bindings };
        prepared.bound.bind_store(&sources, &prepared.uses, &prepared.lens, &self.shared.pool, store)?;
        prepared.bound.bind_inputs(&sources, &prepared.inputs, inputs)?;
        let mut arena = self.shared.arena.lock().unwrap_or_else(PoisonError::into_inner);
        if arena.bytes() < prepared.bytes() {
            // Nothing survives a run in the arena, so the old one goes first.
            *arena = Buffer::zeroed(0, "the arena")?;
            *arena = Buffer::zeroed(prepared.bytes(), "the arena")?;
        }
        prepared.bound.bind_arena(&self.tables, &prepared.layout, arena.as_mut_ptr());
        let memory = prepared.bound.memory(&self.shared.pool, prepared.rounded_at(), prepared.rounded_words);
        match &mut self.profile {
            None => prepared.steps.iter().try_for_each(|step| step.kernel.run(&memory))?,
            Some(profile) => {
                for step in &prepared.steps {
                    let start = Instant::now();
                    step.kernel.run(&memory)?;
                    profile.add(step.op, start.elapsed(), step.bytes + step.weight_bytes(&memory), step.flops);
                }
            }
        }
        for Output { name, value, dims, int } in &prepared.outputs {
            let data = if *int { Elements::I32(memory.i32(*value)) } else { Elements::F32(memory.f32(*value)) };
            read(OutputView { name, shape: dims, data });
        }
        Ok(())
    }

    fn set_precision(&mut self, precision: Precision) {
        if precision != self.precision {
            self.precision = precision;
            self.prepared.clear();
        }
    }

    fn peak_bytes(&self, bindings: &Bindings) -> Result<usize> {
        match self.prepared.iter().find(|(b, _)| b == bindings) {
            Some((_, prepared)) => Ok(prepared.bytes()),
            None => Ok(self.prepare(bindings)?.bytes()),
        }
    }

    fn set_profiling(&mut self, on: bool) {
        self.profile = on.then(Profile::default);
    }

    fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }
}
