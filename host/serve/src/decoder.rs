//! One compiled decoding graph and its cache.

use swift_graph::op;
use swift_graph::{Bindings, DType, Dim, Graph, SymbolId, Type};
use swift_plugin::Mode;
use swift_runtime::{Device, Elements, HostTensor, Inputs, Precision, Profile, Store, Tenant};

use crate::pages::PAGE;
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

/// Sizes of a decoder, and how it computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecoderOptions {
    /// Sequences at once.
    pub(crate) slots: usize,
    /// Tokens of a sequence.
    pub(crate) capacity: usize,
    /// Pages of the cache.
    pub(crate) pages: usize,
    /// Arithmetic of products with quantized weights.
    pub(crate) precision: Precision,
    /// What keys and values are stored as.
    pub(crate) cache: DType,
}

/// The model with a cache, as a function from packed tokens to logits.
pub(crate) struct Decoder {
    program: Program,
    options: DecoderOptions,
    /// Names this decoder among all that may write to the caches of a store.
    tenant: Tenant,
    /// With the table of pages, which changes little from run to run.
    inputs: Inputs,
    /// Of the last run. A fresh allocation of this size would cost more than the copy.
    logits: Vec<f32>,
    /// Logits of a row.
    vocab: u64,
}

impl Decoder {
    /// Traces and compiles decoding and reserves the cache.
    pub(crate) fn new(
        model: &mut AdaptedModel,
        device: &dyn Device,
        store: &mut Store,
        options: DecoderOptions,
    ) -> Result<Decoder> {
        let traced = model.trace(Mode::Decode)?;
        let mut g = Graph::default();
        let (head, _) = model.splice(&mut g, &traced, true, false)?;
        let rows = g.input("rows", Type::new(DType::S32, vec![Dim::symbol(SymbolId::SEQUENCES)]))?;
        let last = g.push(op::GatherRows, &[head.hidden, rows])?;
        let logits = g.linear(last, head.weight)?;
        let logits = crate::generate::capped(&mut g, logits, head.softcap)?;
        let vocab = g.ty(logits).shape.dims().last().and_then(Dim::as_fixed);
        let vocab = vocab.ok_or_else(|| ServeError::Request("the model does not say how large its vocabulary is".into()))?;
        g.outputs.push(("logits".into(), logits));
        g.set_cache_dtype(options.cache)?;
        let sizes = bindings(&options, 1, 1);
        for state in g.caches().into_iter().map(|id| &g.states()[id.index()]) {
            let shape = state.ty.shape.eval(&sizes)?;
            // An engine of other sizes may have used this store before.
            store.replace_cache(&state.name, state.ty.dtype, &shape)?;
        }
        let mut program = Program::compile(device, store, g)?;
        program.main.set_precision(options.precision);
        let (slots, columns) = (options.slots, columns(options.capacity));
        let inputs = Inputs::new().with("pages", HostTensor::i32([slots, columns], vec![0; slots * columns]));
        Ok(Decoder { program, options, tenant: Tenant::new(), inputs, logits: Vec::new(), vocab })
    }

    /// Tokens of a sequence that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.options.capacity
    }

    /// Logits of a row.
    pub(crate) fn vocab(&self) -> u64 {
        self.vocab
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
        bindings(&self.options, tokens, sequences)
    }

    /// Whether the caches of `store` hold what this decoder wrote to them last; it is to run next.
    pub(crate) fn keeps_cache(&self, store: &mut Store) -> bool {
        store.lend_caches(self.tenant)
    }

    /// Says where the tokens of a slot lie.
    pub(crate) fn set_pages(&mut self, slot: usize, pages: &[u32]) {
        let columns = columns(self.options.capacity);
        if let Some(HostTensor::I32 { data, .. }) = self.inputs.get_mut("pages") {
            let row = &mut data[slot * columns..][..columns];
            row.iter_mut().zip(pages).for_each(|(to, &page)| *to = page as i32);
        }
    }

    /// Runs the tokens; gives `[rows, vocab]` logits, which stay until the next run.
    pub(crate) fn run(&mut self, store: &mut Store, packed: Packed) -> Result<&[f32]> {
        let bindings = self.bindings(packed.ids.len(), packed.rows.len());
        let tokens = [("ids", packed.ids), ("positions", packed.positions), ("segments", packed.slots), ("rows", packed.rows)];
        for (name, values) in tokens {
            self.inputs.set(name, HostTensor::i32([values.len()], values));
        }
        self.logits.clear();
        self.program.main.run_with(store, &bindings, &self.inputs, &mut |output| {
            if let Elements::F32(logits) = output.data {
                self.logits.extend_from_slice(logits);
            }
        })?;
        Ok(&self.logits)
    }
}

/// Pages of a cache that hold so many tokens of a sequence.
pub(crate) fn columns(tokens: usize) -> usize {
    tokens.div_ceil(PAGE)
}

fn bindings(options: &DecoderOptions, tokens: usize, sequences: usize) -> Bindings {
    Bindings::new()
        .with(SymbolId::TOKENS, tokens as u64)
        .with(SymbolId::SEQUENCES, sequences as u64)
        .with(SymbolId::SLOTS, options.slots as u64)
        .with(SymbolId::CAPACITY, columns(options.capacity) as u64)
        .with(SymbolId::PAGES, options.pages as u64)
}
