//! Where the bases of a prepared plan lie: found once, and again only when something moved.
//!
//! A step of generation takes a few milliseconds and has hundreds of weights, so it must not look each of them up by name. A store says
//! by its revision whether its tensors still lie where they did ([`Store::revision`]); inputs change with every run.

use std::cell::Cell;
use std::collections::BTreeSet;

use swift_graph::plan::{Layout, Plan};
use swift_graph::{Bindings, DType, StateId};
use swift_kernels::format::{Format, Weight};
use swift_kernels::pool::Pool;

use super::leaf::Constant;
use super::memory::{Memory, PanelBytes, ParamBytes, Rounded};
use super::prepare::{Tables, Use};
use crate::store::{Revision, Storage};
use crate::{Error, HostTensor, Inputs, Result, Store};

/// What bases are bound from.
pub(super) struct Sources<'a> {
    pub(super) plan: &'a Plan,
    pub(super) tables: &'a Tables,
    pub(super) caches: &'a BTreeSet<StateId>,
    pub(super) constants: &'a [Constant],
    pub(super) bindings: &'a Bindings,
}

/// An input that the plan uses.
pub(super) struct InputSlot {
    /// Index of the input.
    pub(super) input: usize,
    pub(super) base: usize,
    pub(super) dims: Vec<usize>,
}

/// Pointers of all bases, and the bytes of parameters.
pub(super) struct Bound {
    bases: Vec<*mut u8>,
    params: Vec<ParamBytes>,
    /// The store's revision that constants, parameters and states were bound at.
    revision: Option<Revision>,
    /// Start of the arena that buffers and scratch were bound at.
    arena: *mut u8,
}

// SAFETY: the pointers are used only by a run, which borrows what they point into, after it has checked that they are up to date.
unsafe impl Send for Bound {}

impl Bound {
    /// Nothing bound yet, of so many bases.
    pub(super) fn new(bases: usize) -> Bound {
        Bound { bases: vec![std::ptr::null_mut(); bases], params: Vec::new(), revision: None, arena: std::ptr::null_mut() }
    }

    /// Checks and binds the constants, weights and states that the plan uses, unless they lie where they lay.
    pub(super) fn bind_store(
        &mut self,
        from: &Sources<'_>,
        uses: &[Use],
        lens: &[usize],
        pool: &Pool,
        store: &mut Store,
    ) -> Result<()> {
        if self.revision == Some(store.revision()) {
            return Ok(());
        }
        self.revision = None;
        let (g, tables) = (&from.plan.graph, from.tables);
        for (base, constant) in self.bases.iter_mut().zip(from.constants) {
            // Never written: `Prepare::output` refuses to.
            *base = constant.as_ptr().cast_mut();
        }
        repack(from, uses, pool, store)?;
        self.params.clear();
        for (i, info) in g.params().iter().enumerate() {
            let base = tables.params + i;
            let uses = uses[base];
            let mut bytes = ParamBytes { format: Format::F32, data: std::ptr::null(), bytes: 0, panels: None };
            if uses.used {
                let tensor = store.weight_mut(&info.name)?;
                if !tensor.shape.iter().map(|&d| d as u64).eq(info.shape.iter().copied()) {
                    let message = format!("has shape {:?}, the graph takes {:?}", tensor.shape, info.shape);
                    return Err(Error::tensor("weight", &info.name, message));
                }
                if uses.panels > 0
                    && (uses.multiplied || tensor.has_panels())
                    && let Some(Weight { data, .. }) = tensor.panels(pool)?
                {
                    bytes.panels = Some(PanelBytes { data: data.as_ptr(), bytes: data.len() });
                }
                let raw = uses.plain || uses.weights > uses.panels || bytes.panels.is_none();
                match &mut tensor.storage {
                    Storage::Owned(buffer) => {
                        self.bases[base] = buffer.as_mut_ptr();
                        bytes = ParamBytes { data: buffer.as_ptr(), bytes: buffer.bytes(), ..bytes };
                    }
                    Storage::Shared(format, ..) if uses.written => {
                        let message = format!("is frozen ({format:?}) and would be written; make it trainable first");
                        return Err(Error::tensor("weight", &info.name, message));
                    }
                    Storage::Shared(format, ..) if uses.plain && *format != Format::F32 => {
                        return Err(Error::tensor("weight", &info.name, format!("is {format:?} where the plan reads f32")));
                    }
                    // Asking for the bytes would bring them back into memory.
                    Storage::Shared(format, data, _) if !raw => {
                        bytes = ParamBytes { format: *format, bytes: data.count(), ..bytes };
                    }
                    Storage::Shared(format, data, _) => {
                        let data = data.as_slice();
                        // Never written: `written` was refused above.
                        self.bases[base] = data.as_ptr().cast_mut();
                        bytes = ParamBytes { format: *format, data: data.as_ptr(), bytes: data.len(), ..bytes };
                    }
                }
            }
            self.params.push(bytes);
        }
        for (i, info) in g.states().iter().enumerate() {
            let base = tables.states + i;
            if uses[base].used {
                let shape = info.ty.shape.eval(from.bindings)?;
                let buffer = if from.caches.contains(&StateId(i as u32)) {
                    store.ensure_cache(&info.name, info.ty.dtype, &shape)?;
                    store.cache_mut(&info.name)?
                } else {
                    store.ensure(info, &shape)?;
                    store.words_mut(info)?
                };
                debug_assert_eq!(buffer.bytes(), lens[base] * 4, "the shape was checked");
                self.bases[base] = buffer.as_mut_ptr();
            }
        }
        // States that did not exist exist now.
        self.revision = Some(store.revision());
        Ok(())
    }

    /// Checks and binds the inputs that the plan uses.
    pub(super) fn bind_inputs(&mut self, from: &Sources<'_>, slots: &[InputSlot], inputs: &Inputs) -> Result<()> {
        let known = from.plan.graph.inputs();
        for slot in slots {
            let info = &known[slot.input];
            let tensor = inputs.get(&info.name).ok_or_else(|| Error::MissingInput {
                name: info.name.clone(),
                known: known.iter().map(|i| i.name.as_str()).collect::<Vec<_>>().join(", "),
            })?;
            let int = info.ty.dtype.is_int();
            if tensor.shape() != slot.dims || matches!(tensor, HostTensor::I32 { .. }) != int {
                let dtype = if int { DType::S32 } else { DType::F32 };
                let want = format!("{}{:?}", dtype.name(), slot.dims);
                return Err(Error::BadInput { name: info.name.clone(), got: tensor.to_string(), want });
            }
            // Never written: `Prepare::output` refuses to.
            self.bases[slot.base] = tensor.as_ptr().cast_mut();
        }
        Ok(())
    }

    /// Binds buffers and scratch.
    pub(super) fn bind_arena(&mut self, tables: &Tables, layout: &Layout, start: *mut u8) {
        if self.arena == start {
            return;
        }
        let offsets = layout.offsets.iter().chain(&layout.scratch);
        for (base, &offset) in self.bases[tables.buffers..].iter_mut().zip(offsets) {
            *base = start.wrapping_add(offset);
        }
        self.arena = start;
    }

    /// What launches run on. Activations in 8 bits lie `rounded_at` bytes into the arena.
    pub(super) fn memory<'a>(&'a self, pool: &'a Pool, rounded_at: usize, rounded_words: usize) -> Memory<'a> {
        let words = self.arena.wrapping_add(rounded_at).cast();
        let rounded = Rounded { words, len: rounded_words, held: Cell::new(None) };
        Memory { pool, bases: &self.bases, params: &self.params, rounded }
    }
}

/// Repacks the weights that launches read in panels, and lets their bytes go; before anything is bound, since bytes that somebody else
/// still reads are then found elsewhere.
fn repack(from: &Sources<'_>, uses: &[Use], pool: &Pool, store: &mut Store) -> Result<()> {
    let names = from.plan.graph.params().iter().zip(&uses[from.tables.params..]);
    let names: Vec<&str> = names.filter(|(_, uses)| uses.multiplied).map(|(info, _)| info.name.as_str()).collect();
    let mut repacked = Vec::new();
    for name in names {
        let weight = store.weight(name)?;
        if !weight.has_panels() && weight.panels(pool)?.is_some() {
            store.release(name)?;
            repacked.push(name);
        }
    }
    // Reading one mapped weight brought pages of its neighbours back, which had been let go.
    repacked.into_iter().try_for_each(|name| store.release(name))
}
