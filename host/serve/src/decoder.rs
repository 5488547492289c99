//! One compiled decoding graph and its cache.

use swift_graph::op;
use swift_graph::{Bindings, DType, Dim, Graph, SymbolId, Type};
use swift_plugin::Mode;
use swift_runtime::{Device, HostTensor, Inputs, Profile, Store};

use crate::{AdaptedModel, Program, Result, ServeError};

/// Tokens of one run, packed: those of a sequence stand together, in the order of their positions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed {
    /// Token of each row.
    pub(crate) ids: Vec<i32>,
    /// Its position in its sequence.
    pub(crate) positions: Vec<i32>,
    /// Its cache slot.
    pub(crate) slots: Vec<i32>,
    /// Rows whose logits are wanted.
    pub(crate) rows: Vec<i32>,
}

/// The model with a cache, as a function from packed tokens to logits.
pub(crate) struct Decoder {
    program: Program,
    slots: usize,
    capacity: usize,
}

impl Decoder {
    /// Traces and compiles decoding for `slots` sequences of at most `capacity` tokens, and reserves the cache.
    pub(crate) fn new(
        model: &mut AdaptedModel,
        device: &dyn Device,
        store: &mut Store,
        slots: usize,
        capacity: usize,
    ) -> Result<Decoder> {
        let traced = model.trace(Mode::Decode)?;
        let mut g = Graph::default();
        let (head, _) = model.splice(&mut g, &traced, true, false)?;
        let rows = g.input("rows", Type::new(DType::S32, vec![Dim::symbol(SymbolId::SEQUENCES)]))?;
        let last = g.push(op::GatherRows, &[head.hidden, rows])?;
        let logits = g.linear(last, head.weight)?;
        let logits = crate::generate::capped(&mut g, logits, head.softcap)?;
        g.outputs.push(("logits".into(), logits));
        let sizes = bindings(1, 1, slots, capacity);
        for state in g.caches().into_iter().map(|id| &g.states()[id.index()]) {
            store.ensure_cache(&state.name, state.ty.dtype, &state.ty.shape.eval(&sizes)?)?;
        }
        Ok(Decoder { program: Program::compile(device, store, g)?, slots, capacity })
    }

    /// Tokens of a sequence that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Computes again what depends on weights alone.
    pub(crate) fn refresh(&mut self, store: &mut Store) -> Result<()> {
        self.program.refresh(store)
    }

    /// Arena bytes of a run of `tokens` tokens that ends in `sequences` rows of logits.
    pub(crate) fn peak_bytes(&self, tokens: usize, sequences: usize) -> Result<usize> {
        Ok(self.program.main.peak_bytes(&self.bindings(tokens, sequences))?)
    }

    /// Starts or stops to measure launches.
    pub(crate) fn set_profiling(&mut self, on: bool) {
        self.program.main.set_profiling(on);
    }

    /// What was measured.
    pub(crate) fn profile(&self) -> Option<&Profile> {
        self.program.main.profile()
    }

    fn bindings(&self, tokens: usize, sequences: usize) -> Bindings {
        bindings(tokens, sequences, self.slots, self.capacity)
    }

    /// Runs the tokens; returns `[rows, vocab]` logits.
    pub(crate) fn run(&mut self, store: &mut Store, packed: Packed) -> Result<Vec<f32>> {
        let bindings = self.bindings(packed.ids.len(), packed.rows.len());
        let mut inputs = Inputs::default();
        let tokens = [("ids", packed.ids), ("positions", packed.positions), ("segments", packed.slots), ("rows", packed.rows)];
        for (name, values) in tokens {
            inputs.set(name, HostTensor::i32([values.len()], values));
        }
        // Every slot has pages of its own.
        let pages = columns(self.capacity);
        inputs.set("pages", HostTensor::i32([self.slots, pages], (0..(self.slots * pages) as i32).collect()));
        match self.program.main.run(store, &bindings, &inputs)?.take("logits")? {
            HostTensor::F32 { data, .. } => Ok(data),
            HostTensor::I32 { .. } => Err(ServeError::Request("the decoding graph gave no float logits".into())),
        }
    }
}

/// Pages of a cache that hold a sequence.
fn columns(capacity: usize) -> usize {
    capacity.div_ceil(op::CachedAttention::PAGE as usize)
}

fn bindings(tokens: usize, sequences: usize, slots: usize, capacity: usize) -> Bindings {
    Bindings::new()
        .with(SymbolId::TOKENS, tokens as u64)
        .with(SymbolId::SEQUENCES, sequences as u64)
        .with(SymbolId::SLOTS, slots as u64)
        .with(SymbolId::CAPACITY, columns(capacity) as u64)
        .with(SymbolId::PAGES, (slots * columns(capacity)) as u64)
}
