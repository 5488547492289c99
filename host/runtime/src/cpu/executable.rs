//! A compiled plan: prepares its launches for a binding, binds memory, and runs them in order.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use swift_graph::plan::{Layout, Plan};
use swift_graph::{Bindings, DType, NodeId, OpRule, StateId};
use swift_kernels::format::Format;
use swift_kernels::linear::int8;

use super::elementwise::accumulate;
use super::identity::Move;
use super::leaf::{Constant, constant};
use super::memory::{Memory, PanelBytes, ParamBytes, Ref, Rounded};
use super::prepare::{Operands, Prepare, Scope, Tables, Use, verify};
use super::{Kernel, Shared, prepare_launch};
use crate::buffer::Buffer;
use crate::store::Storage;
use crate::{Error, Executable, HostTensor, Inputs, Outputs, Precision, Profile, Result, Store};

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
    /// All operands but `weight`.
    bytes: u64,
    weight: Option<u32>,
    flops: u64,
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
    outputs: Vec<Output>,
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
            steps.push(Step { kernel, op: p.node.op.name(), bytes: p.bytes, weight: p.weight, flops: p.flops()? });
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
        Ok(Prepared { steps, layout, rounded_words: scope.rounded_words, uses: scope.uses, lens: scope.lens, outputs })
    }

    /// Checks and binds the inputs that the plan uses.
    fn bind_inputs(&self, prepared: &Prepared, bindings: &Bindings, inputs: &Inputs, bases: &mut [*mut u8]) -> Result<()> {
        for (i, info) in self.plan.graph.inputs().iter().enumerate() {
            let base = self.tables.inputs + i;
            if !prepared.uses[base].used {
                continue;
            }
            let tensor = inputs.get(&info.name).ok_or_else(|| Error::MissingInput {
                name: info.name.clone(),
                known: self.plan.graph.inputs().iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", "),
            })?;
            let dims = info.ty.shape.eval(bindings)?;
            let int = info.ty.dtype.is_int();
            if tensor.shape() != dims || matches!(tensor, HostTensor::I32 { .. }) != int {
                let dtype = if int { DType::S32 } else { DType::F32 };
                let want = format!("{}{dims:?}", dtype.name());
                return Err(Error::BadInput { name: info.name.clone(), got: tensor.to_string(), want });
            }
            debug_assert_eq!(tensor.elements(), prepared.lens[base], "the shape was checked");
            // Never written: `Prepare::output` refuses to.
            bases[base] = tensor.as_ptr().cast_mut();
        }
        Ok(())
    }

    /// Checks and binds the weights and states that the plan uses.
    fn bind_store(
        &self,
        prepared: &Prepared,
        bindings: &Bindings,
        store: &mut Store,
        bases: &mut [*mut u8],
        params: &mut Vec<ParamBytes>,
    ) -> Result<()> {
        let g = &self.plan.graph;
        for (i, info) in g.params().iter().enumerate() {
            let base = self.tables.params + i;
            let uses = prepared.uses[base];
            let mut bytes = ParamBytes { format: Format::F32, data: std::ptr::null(), bytes: 0, panels: None };
            if uses.used {
                let tensor = store.weight_mut(&info.name)?;
                if !tensor.shape.iter().map(|&d| d as u64).eq(info.shape.iter().copied()) {
                    let message = format!("has shape {:?}, the graph takes {:?}", tensor.shape, info.shape);
                    return Err(Error::tensor("weight", &info.name, message));
                }
                if uses.panels
                    && let Some(panels) = tensor.panels(&self.shared.pool)?
                {
                    let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
                    let len = int8::repacked_bytes(tensor.format(), rows, cols).expect("it was repacked");
                    bytes.panels = Some(PanelBytes { rows, cols, data: panels.as_ptr(), bytes: len });
                }
                match &mut tensor.storage {
                    Storage::Owned(buffer) => {
                        bases[base] = buffer.as_mut_ptr();
                        bytes = ParamBytes { data: buffer.as_ptr(), bytes: buffer.bytes(), ..bytes };
                    }
                    Storage::Shared(format, ..) if uses.written => {
                        let message = format!("is frozen ({format:?}) and would be written; make it trainable first");
                        return Err(Error::tensor("weight", &info.name, message));
                    }
                    Storage::Shared(format, ..) if uses.plain && *format != Format::F32 => {
                        return Err(Error::tensor("weight", &info.name, format!("is {format:?} where the plan reads f32")));
                    }
                    Storage::Shared(format, data, _) => {
                        let data = data.as_slice();
                        // Never written: `written` was refused above.
                        bases[base] = data.as_ptr().cast_mut();
                        bytes = ParamBytes { format: *format, data: data.as_ptr(), bytes: data.len(), ..bytes };
                    }
                }
            }
            params.push(bytes);
        }
        let caches = &self.caches;
        for (i, info) in g.states().iter().enumerate() {
            let base = self.tables.states + i;
            if prepared.uses[base].used {
                let shape = info.ty.shape.eval(bindings)?;
                let buffer = if caches.contains(&StateId(i as u32)) {
                    store.ensure_cache(&info.name, info.ty.dtype, &shape)?;
                    store.cache_mut(&info.name)?
                } else {
                    store.ensure_state(&info.name, &shape)?;
                    store.state_mut(&info.name)?
                };
                debug_assert_eq!(buffer.bytes(), prepared.lens[base] * 4, "the shape was checked");
                bases[base] = buffer.as_mut_ptr();
            }
        }
        Ok(())
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
    let (src, dst) = (scope.value(effect.value)?, scope.target(effect.target));
    if src.len != dst.len {
        return Err(scope.broken(effect.value, format!("an effect writes {} elements to {}", src.len, dst.len)));
    }
    let bytes = 4 * dst.len as u64;
    Ok(match effect.accumulate {
        true => Step { kernel: accumulate(dst, src), op: "accumulate", bytes: 3 * bytes, weight: None, flops: dst.len as u64 },
        false => Step { kernel: Kernel::Move(Move { src, dst }), op: "write", bytes: 2 * bytes, weight: None, flops: 0 },
    })
}

impl Executable for CpuExecutable {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn run(&mut self, store: &mut Store, bindings: &Bindings, inputs: &Inputs) -> Result<Outputs> {
        self.ready(bindings)?;
        let prepared = &self.prepared[0].1;
        let mut bases = vec![std::ptr::null_mut(); self.tables.len];
        let mut params = Vec::with_capacity(self.plan.graph.params().len());
        for (base, constant) in bases.iter_mut().zip(&self.constants) {
            // Never written: `Prepare::output` refuses to.
            *base = constant.as_ptr().cast_mut();
        }
        self.bind_inputs(prepared, bindings, inputs, &mut bases)?;
        self.bind_store(prepared, bindings, store, &mut bases, &mut params)?;
        let mut arena = self.shared.arena.lock().unwrap_or_else(PoisonError::into_inner);
        if arena.bytes() < prepared.bytes() {
            // Nothing survives a run in the arena, so the old one goes first.
            *arena = Buffer::zeroed(0, "the arena")?;
            *arena = Buffer::zeroed(prepared.bytes(), "the arena")?;
        }
        let start = arena.as_mut_ptr();
        let offsets = prepared.layout.offsets.iter().chain(&prepared.layout.scratch);
        for (base, &offset) in bases[self.tables.buffers..].iter_mut().zip(offsets) {
            *base = start.wrapping_add(offset);
        }
        let words = start.wrapping_add(prepared.rounded_at()).cast();
        let rounded = Rounded { words, len: prepared.rounded_words, held: Cell::new(None) };
        let memory = Memory { pool: &self.shared.pool, bases: &bases, params: &params, rounded };
        match &mut self.profile {
            None => prepared.steps.iter().try_for_each(|step| step.kernel.run(&memory))?,
            Some(profile) => {
                for step in &prepared.steps {
                    let start = Instant::now();
                    step.kernel.run(&memory)?;
                    let weight = step.weight.map_or(0, |p| params[p as usize].bytes as u64);
                    profile.add(step.op, start.elapsed(), step.bytes + weight, step.flops);
                }
            }
        }
        let mut outputs = Outputs::default();
        for output in &prepared.outputs {
            let shape = output.dims.clone();
            let tensor = match output.int {
                true => HostTensor::I32 { shape, data: memory.i32(output.value).to_vec() },
                false => HostTensor::F32 { shape, data: memory.f32(output.value).to_vec() },
            };
            outputs.push(&output.name, tensor);
        }
        Ok(outputs)
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
