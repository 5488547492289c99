//! From a launch and a binding of the symbols to a kernel with sizes and operands: what every op's `prepare` is written against.
//!
//! Preparing happens once for each binding, so it may allocate; running a prepared launch should not.

use swift_graph::plan::{Launch, Layout, Place, Plan};
use swift_graph::{Bindings, Node, NodeId, OpRule, StateId, Target, Type};

use swift_kernels::dynamic8;
use swift_kernels::linear::int8;

use super::attention::cache_words;
use super::dynamic8::PackedRef;
use super::memory::{Ref, WeightRef, WeightSource};
use crate::{Error, Precision, Result};

/// Buffers and scratch parts start at whole cache lines.
const LINE: usize = 16;

/// Numbers the bases of a plan: constants, inputs, parameters, states, arena buffers, scratch of each launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables {
    pub(super) inputs: usize,
    pub(super) params: usize,
    pub(super) states: usize,
    pub(super) buffers: usize,
    pub(super) scratch: usize,
    pub(super) len: usize,
}

impl Tables {
    pub(super) fn new(plan: &Plan, constants: usize) -> Tables {
        let g = &plan.graph;
        let inputs = constants;
        let params = inputs + g.inputs().len();
        let states = params + g.params().len();
        let buffers = states + g.states().len();
        let scratch = buffers + plan.buffers.len();
        Tables { inputs, params, states, buffers, scratch, len: scratch + plan.launches.len() }
    }
}

/// How the launches of one binding use a base.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Use {
    /// Some launch reads or writes it.
    pub(super) used: bool,
    /// As elements of four bytes, not as a weight in its storage format.
    pub(super) plain: bool,
    /// It is written.
    pub(super) written: bool,
    /// Launches that read it as a weight, and how many of them read panels if there are any.
    pub(super) weights: u32,
    pub(super) panels: u32,
    /// Some launch multiplies with it, which is worth repacking it for.
    pub(super) multiplied: bool,
}

/// What all launches of one binding share while they are prepared.
pub(super) struct Scope<'a> {
    pub(super) plan: &'a Plan,
    pub(super) bindings: &'a Bindings,
    pub(super) tables: Tables,
    /// Constant base of each node that has one.
    pub(super) constants: &'a [Option<u32>],
    /// Elements of each base; scratch grows while its launch is prepared.
    pub(super) lens: Vec<usize>,
    pub(super) uses: Vec<Use>,
    pub(super) precision: Precision,
    /// Words for the largest activations that are rounded to 8 bits.
    pub(super) rounded_words: usize,
    /// The last of them, while nothing has written there since.
    rounded: Option<Ref>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        bindings: &'a Bindings,
        tables: Tables,
        constants: &'a [Option<u32>],
        constant_lens: impl Iterator<Item = usize>,
        precision: Precision,
    ) -> Result<Scope<'a>> {
        let g = &plan.graph;
        let mut lens: Vec<usize> = constant_lens.collect();
        for input in g.inputs() {
            // An input that this plan does not read may have symbols that this run does not bind.
            lens.push(input.ty.shape.eval(bindings).map_or(0, |s| s.iter().product()));
        }
        lens.extend(g.params().iter().map(|p| p.shape.iter().product::<u64>() as usize));
        let caches = g.caches();
        for (i, state) in g.states().iter().enumerate() {
            let words = |shape: Vec<usize>| match (caches.contains(&StateId(i as u32)), state.map) {
                (true, _) => cache_words(state.ty.dtype, &shape).unwrap_or(0),
                (false, None) => shape.iter().product(),
                (false, Some(_)) => dynamic8::words(shape.iter().product()),
            };
            lens.push(state.ty.shape.eval(bindings).map_or(0, words));
        }
        for buffer in &plan.buffers {
            lens.push(buffer.elements.eval(bindings)? as usize);
        }
        lens.resize(tables.len, 0);
        let uses = vec![Use::default(); tables.len];
        Ok(Scope { plan, bindings, tables, constants, lens, uses, precision, rounded_words: 0, rounded: None })
    }

    /// Sizes of a node's value.
    pub(super) fn dims(&self, node: NodeId) -> Result<Vec<usize>> {
        Ok(self.plan.graph.ty(node).shape.eval(self.bindings)?)
    }

    /// The operand that holds a node's value.
    pub(super) fn value(&mut self, node: NodeId) -> Result<Ref> {
        let len = self.dims(node)?.iter().product();
        let mut root = node;
        let base = loop {
            break match self.plan.places[root.index()] {
                Place::Alias(to) if to < root => {
                    root = to;
                    continue;
                }
                Place::Arena(b) => self.tables.buffers + b.0 as usize,
                Place::Param(p) => self.tables.params + p.index(),
                Place::State(s) if self.plan.graph.states()[s.index()].map.is_some() => {
                    return Err(self.broken(node, "its value is kept in 8 bits"));
                }
                Place::State(s) => self.tables.states + s.index(),
                Place::Input(i) => self.tables.inputs + i.index(),
                Place::Constant => match self.constants[root.index()] {
                    Some(base) => base as usize,
                    None => return Err(self.broken(root, "it is no constant")),
                },
                Place::Alias(_) | Place::Unused => return Err(self.broken(node, "its value has no place")),
            };
        };
        if len > self.lens[base] {
            return Err(self.broken(node, format!("{len} elements do not fit a place of {}", self.lens[base])));
        }
        self.uses[base].used = true;
        self.uses[base].plain = true;
        Ok(Ref { base: base as u32, offset: 0, len })
    }

    /// The storage that an effect writes.
    pub(super) fn target(&mut self, target: Target) -> Ref {
        let base = match target {
            Target::Param(p) => self.tables.params + p.index(),
            Target::State(s) => self.tables.states + s.index(),
        };
        self.uses[base] = Use { used: true, plain: true, written: true, ..self.uses[base] };
        self.wrote(base as u32);
        Ref { base: base as u32, offset: 0, len: self.lens[base] }
    }

    /// Rounded activations of this base are out of date.
    fn wrote(&mut self, base: u32) {
        self.rounded = self.rounded.filter(|x| x.base != base);
    }

    pub(super) fn broken(&self, node: NodeId, message: impl Into<String>) -> Error {
        Error::Plan { node: node.0, op: self.plan.graph.node(node).op.name(), message: message.into() }
    }

    fn is_writable(&self, base: u32) -> bool {
        base as usize >= self.tables.params
    }
}

/// An operand that a launch reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    operand: Ref,
    /// The kernel allows it to be an output.
    in_place: bool,
}

/// One launch while it is prepared.
pub(super) struct Prepare<'s, 'a> {
    pub(super) scope: &'s mut Scope<'a>,
    pub(super) launch: &'a Launch,
    pub(super) node: &'a Node,
    index: usize,
    pub(super) reads: Vec<Read>,
    pub(super) writes: Vec<Ref>,
    /// Bytes of all operands but `weight`, whose format is only known in a run.
    pub(super) bytes: u64,
    /// Parameter that is read in its storage format.
    pub(super) weight: Option<u32>,
}

impl<'s, 'a> Prepare<'s, 'a> {
    pub(super) fn new(scope: &'s mut Scope<'a>, index: usize) -> Prepare<'s, 'a> {
        let launch = &scope.plan.launches[index];
        let node = scope.plan.graph.node(launch.node);
        Prepare { scope, launch, node, index, reads: Vec::new(), writes: Vec::new(), bytes: 0, weight: None }
    }

    /// Sizes of input `i`.
    pub(super) fn dims(&self, i: usize) -> Result<Vec<usize>> {
        self.scope.dims(self.node.inputs[i])
    }

    /// Sizes of output `i`.
    pub(super) fn out_dims(&self, i: usize) -> Result<Vec<usize>> {
        Ok(self.node.outputs[i].shape.eval(self.scope.bindings)?)
    }

    /// Whether input `i` holds whole numbers.
    pub(super) fn is_int(&self, i: usize) -> bool {
        self.scope.plan.graph.ty(self.node.inputs[i]).dtype.is_int()
    }

    /// Input `i`, which no output may overlap.
    pub(super) fn input(&mut self, i: usize) -> Result<Ref> {
        self.read(i, false)
    }

    /// Input `i`, which an output may be written over.
    pub(super) fn input_in_place(&mut self, i: usize) -> Result<Ref> {
        self.read(i, true)
    }

    fn read(&mut self, i: usize, in_place: bool) -> Result<Ref> {
        let operand = self.scope.value(self.node.inputs[i])?;
        self.bytes += 4 * operand.len as u64;
        self.reads.push(Read { operand, in_place });
        Ok(operand)
    }

    /// Input `i` as a weight `[rows, cols]`: a parameter in its storage format, or floats.
    pub(super) fn weight(&mut self, i: usize) -> Result<WeightRef> {
        let dims = self.dims(i)?;
        let (rows, cols) = match dims.as_slice() {
            [rows, cols] => (*rows, *cols),
            other => (1, other.iter().product()),
        };
        self.matrix(i, rows, cols)
    }

    /// As [`Prepare::weight`], of a launch that looks rows up, in panels if somebody else multiplies with them.
    pub(super) fn table(&mut self, i: usize) -> Result<WeightRef> {
        let weight = self.weight(i)?;
        Ok(self.in_panels(weight, 2, false))
    }

    /// As [`Prepare::weight`], of a launch that multiplies with it in panels, if its format has any.
    pub(super) fn factor(&mut self, i: usize) -> Result<WeightRef> {
        let weight = self.weight(i)?;
        Ok(self.in_panels(weight, 2, true))
    }

    /// As [`Prepare::factor`], of a stack of `count` matrices `[rows, cols]`, which have panels of their own.
    pub(super) fn stack(&mut self, i: usize, [count, rows, cols]: [usize; 3]) -> Result<WeightRef> {
        let weight = self.matrix(i, count * rows, cols)?;
        Ok(self.in_panels(weight, 3, true))
    }

    /// As [`Prepare::weight`], with sizes of the caller's choice.
    pub(super) fn matrix(&mut self, i: usize, rows: usize, cols: usize) -> Result<WeightRef> {
        let mut root = self.node.inputs[i];
        while let Place::Alias(to) = self.scope.plan.places[root.index()] {
            root = to;
        }
        let source = match self.scope.plan.places[root.index()] {
            Place::Param(p) => {
                let base = self.scope.tables.params + p.index();
                if self.scope.lens[base] != rows * cols {
                    return Err(self.scope.broken(root, format!("the parameter is no matrix of {rows} x {cols}")));
                }
                self.scope.uses[base].used = true;
                self.scope.uses[base].weights += 1;
                self.weight = Some(p.0);
                self.reads.push(Read { operand: Ref { base: base as u32, offset: 0, len: rows * cols }, in_place: false });
                WeightSource::Param(p.0)
            }
            _ => WeightSource::Dense(self.input(i)?),
        };
        Ok(WeightRef { source, rows, cols, panels: false })
    }

    /// Plans for `x`, `[m, weight.cols]`, in 8 bits, if the precision and the weight allow. Says whether the last call planned for the
    /// same `x`, with the same values.
    pub(super) fn rounding(&mut self, m: usize, x: Ref, weight: &WeightRef) -> Option<bool> {
        if !self.rounds(weight) {
            return None;
        }
        self.scope.rounded_words = self.scope.rounded_words.max(int8::quantized_words(m, weight.cols));
        Some(self.scope.rounded.replace(x) == Some(x))
    }

    /// Whether activations are rounded for this weight if it has panels.
    pub(super) fn rounds(&self, weight: &WeightRef) -> bool {
        let whole = weight.cols.is_multiple_of(32) && matches!(weight.source, WeightSource::Param(_));
        self.scope.precision == Precision::Int8 && whole
    }

    /// Plans for a weight of so many dimensions in panels, unless it is taken in another shape than its own.
    fn in_panels(&mut self, weight: WeightRef, rank: usize, multiplied: bool) -> WeightRef {
        let WeightSource::Param(p) = weight.source else { return weight };
        let shape = &self.scope.plan.graph.params()[p as usize].shape;
        let own = shape.len() == rank && shape.last() == Some(&(weight.cols as u64));
        let uses = &mut self.scope.uses[self.scope.tables.params + p as usize];
        uses.panels += u32::from(own);
        uses.multiplied |= own && multiplied;
        WeightRef { panels: own, ..weight }
    }

    /// Output `i`, or scratch of its size when nobody reads it.
    pub(super) fn output(&mut self, i: usize) -> Result<Ref> {
        match self.launch.outputs.get(i).copied().flatten() {
            Some(node) => {
                let operand = self.scope.value(node)?;
                if !self.scope.is_writable(operand.base) {
                    return Err(self.scope.broken(node, "an input or constant cannot be written"));
                }
                self.scope.uses[operand.base as usize].written = true;
                self.scope.wrote(operand.base);
                self.bytes += 4 * operand.len as u64;
                self.writes.push(operand);
                Ok(operand)
            }
            None => {
                let len = self.out_dims(i)?.iter().product();
                Ok(self.scratch(len))
            }
        }
    }

    /// Output `i`, if anybody reads it.
    pub(super) fn wanted_output(&mut self, i: usize) -> Result<Option<Ref>> {
        if self.launch.outputs.get(i).copied().flatten().is_some() { self.output(i).map(Some) } else { Ok(None) }
    }

    /// `len` elements that hold anything before the launch and nothing after it.
    pub(super) fn scratch(&mut self, len: usize) -> Ref {
        let base = self.scope.tables.scratch + self.index;
        let offset = self.scope.lens[base];
        self.scope.lens[base] = offset + len.next_multiple_of(LINE);
        self.scope.uses[base].used = true;
        Ref { base: base as u32, offset, len }
    }

    /// A state in 8 bits that the op reads, and may write in place; `None` if it is kept otherwise.
    pub(super) fn packed_state(&mut self, id: StateId) -> Result<Option<PackedRef>> {
        let info = &self.scope.plan.graph.states()[id.index()];
        let Some(map) = info.map else { return Ok(None) };
        let len = info.ty.shape.eval(self.scope.bindings)?.iter().product();
        let words = self.state(id);
        self.bytes += 8 * words.len as u64;
        Ok(Some(PackedRef { map, len, words }))
    }

    /// A state that the op reads and writes in place.
    pub(super) fn state(&mut self, id: StateId) -> Ref {
        let operand = self.scope.target(Target::State(id));
        self.writes.push(operand);
        operand
    }

    /// The op does not run with these sizes or attributes.
    pub(super) fn unsupported(&self, message: impl Into<String>) -> Error {
        let g = &self.scope.plan.graph;
        Error::Unsupported { op: self.node.op.name(), scope: g.scope_path(self.node.scope), message: message.into() }
    }

    /// Arithmetic of the launch, as the graph counts it.
    pub(super) fn flops(&self) -> Result<u64> {
        let g = &self.scope.plan.graph;
        let inputs: Vec<Type> = self.node.inputs.iter().map(|&i| g.ty(i).clone()).collect();
        Ok(self.node.op.flops(&inputs, &self.node.outputs)?.eval(self.scope.bindings)?)
    }

    /// What [`verify`] needs to know of the launch.
    pub(super) fn into_operands(self) -> Operands {
        Operands { node: self.launch.node, reads: self.reads, writes: self.writes }
    }
}

/// Operands of a prepared launch.
pub(super) struct Operands {
    node: NodeId,
    reads: Vec<Read>,
    writes: Vec<Ref>,
}

/// Checks the invariant of [`super::memory`] for one launch, once buffers have places.
pub(super) fn verify(scope: &Scope<'_>, layout: &Layout, operands: &Operands) -> Result<()> {
    let t = &scope.tables;
    // Bytes in the arena, or in a memory that no other base shares.
    let span = |r: &Ref| {
        let base = r.base as usize;
        let (space, start) = if base >= t.scratch {
            (0, layout.scratch[base - t.scratch])
        } else if base >= t.buffers {
            (0, layout.offsets[base - t.buffers])
        } else {
            (base + 1, 0)
        };
        let start = start + 4 * r.offset;
        (space, start, start + 4 * r.len)
    };
    let overlap = |a: &Ref, b: &Ref| {
        let ((sa, a0, a1), (sb, b0, b1)) = (span(a), span(b));
        sa == sb && a0 < b1 && b0 < a1
    };
    for (i, write) in operands.writes.iter().enumerate() {
        let (space, start, end) = span(write);
        if space == 0 && (end > layout.bytes || !start.is_multiple_of(4)) {
            return Err(scope.broken(operands.node, "an output lies outside the arena"));
        }
        if operands.writes[..i].iter().any(|other| overlap(write, other)) {
            return Err(scope.broken(operands.node, "two outputs overlap"));
        }
        let torn = |read: &&Read| overlap(write, &read.operand) && !(read.in_place && span(&read.operand).1 == start);
        if let Some(read) = operands.reads.iter().find(torn) {
            let message =
                format!("an output {write:?} overlaps an input {:?} that its kernel does not work in place on", read.operand);
            return Err(scope.broken(operands.node, message));
        }
    }
    let outside = |r: &Ref| span(r).0 == 0 && span(r).2 > layout.bytes;
    if operands.reads.iter().any(|read| outside(&read.operand)) {
        return Err(scope.broken(operands.node, "an input lies outside the arena"));
    }
    Ok(())
}
