//! Where operands lie during a run, and the only place that turns them into slices.
//!
//! A prepared launch names operands by [`Ref`]: a *base* (a constant, an input, a parameter, a state, an arena buffer or a launch's
//! scratch) and a length. Bases become pointers once a run, so a prepared launch survives growing arenas and replaced weights.
//!
//! **Invariant** (checked by [`super::prepare`] for every binding and by [`super::bind`] for every run): a base that a launch
//! uses is valid for the elements of all its refs and aligned to four bytes; outputs of one launch overlap neither each other nor its
//! inputs, unless the kernel said that it works in place, and then both start at the same byte; only arena buffers, scratch, states
//! and owned f32 parameters are written. Launches run one after the other, and slices do not outlive theirs.

use std::cell::Cell;

use swift_kernels::elementwise::OperandPtr;
use swift_kernels::format::{Format, Layout, Weight};
use swift_kernels::linear::int8;
use swift_kernels::pool::Pool;

/// `len` elements of four bytes in a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ref {
    /// Index of the base.
    pub(super) base: u32,
    /// First element.
    pub(super) offset: usize,
    /// Elements.
    pub(super) len: usize,
}

/// A matrix that may be a parameter in its storage format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightRef {
    pub(super) source: WeightSource,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// The launch takes it in panels, if it has any.
    pub(super) panels: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum WeightSource {
    /// Index of the parameter.
    Param(u32),
    /// Floats.
    Dense(Ref),
}

/// Bytes of a parameter during a run; nothing for parameters that the plan does not use, or uses in panels only.
#[derive(Clone, Copy)]
pub(super) struct ParamBytes {
    pub(super) format: Format,
    pub(super) data: *const u8,
    pub(super) bytes: usize,
    /// The same weight in panels, if it has any and the run uses them.
    pub(super) panels: Option<PanelBytes>,
}

/// A parameter in panels.
#[derive(Clone, Copy)]
pub(super) struct PanelBytes {
    pub(super) data: *const u8,
    pub(super) bytes: usize,
}

/// Room for activations in 8 bits, and whose they are.
pub(super) struct Rounded {
    /// Aligned to four bytes; past the arena's buffers.
    pub(super) words: *mut u32,
    pub(super) len: usize,
    pub(super) held: Cell<Option<Ref>>,
}

/// What launches run on.
pub(crate) struct Memory<'a> {
    /// Threads and instruction set.
    pub(crate) pool: &'a Pool,
    pub(super) bases: &'a [*mut u8],
    pub(super) params: &'a [ParamBytes],
    pub(super) rounded: Rounded,
}

impl Memory<'_> {
    fn at<T>(&self, r: Ref) -> *mut T {
        const { assert!(size_of::<T>() == 4) };
        // SAFETY: the ref lies inside its base, by the module's invariant.
        unsafe { self.bases[r.base as usize].cast::<T>().add(r.offset) }
    }

    pub(crate) fn f32(&self, r: Ref) -> &[f32] {
        // SAFETY: valid, aligned and not written while the launch reads it, by the module's invariant.
        unsafe { std::slice::from_raw_parts(self.at(r), r.len) }
    }

    pub(crate) fn i32(&self, r: Ref) -> &[i32] {
        // SAFETY: as `f32`; every bit pattern is a number.
        unsafe { std::slice::from_raw_parts(self.at(r), r.len) }
    }

    /// Elements of any type, for kernels that only move them.
    pub(crate) fn bits(&self, r: Ref) -> &[u32] {
        // SAFETY: as `i32`.
        unsafe { std::slice::from_raw_parts(self.at(r), r.len) }
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "outputs of a launch are disjoint from its other operands, by the module's invariant"
    )]
    pub(crate) fn f32_mut(&self, r: Ref) -> &mut [f32] {
        // SAFETY: valid and aligned, and nothing else of the launch overlaps it, by the module's invariant; a kernel that works in
        // place asks `same` first and then makes only this slice.
        unsafe { std::slice::from_raw_parts_mut(self.at(r), r.len) }
    }

    #[expect(clippy::mut_from_ref, reason = "as `f32_mut`")]
    pub(crate) fn i32_mut(&self, r: Ref) -> &mut [i32] {
        // SAFETY: as `f32_mut`.
        unsafe { std::slice::from_raw_parts_mut(self.at(r), r.len) }
    }

    #[expect(clippy::mut_from_ref, reason = "as `f32_mut`")]
    pub(crate) fn bits_mut(&self, r: Ref) -> &mut [u32] {
        // SAFETY: as `f32_mut`.
        unsafe { std::slice::from_raw_parts_mut(self.at(r), r.len) }
    }

    /// Whether two operands are the same bytes.
    pub(crate) fn same(&self, a: Ref, b: Ref) -> bool {
        self.at::<u32>(a) == self.at::<u32>(b)
    }

    /// Bytes of a parameter in its storage format.
    pub(super) fn param_bytes(&self, param: u32) -> usize {
        self.params[param as usize].bytes
    }

    /// The operand of an elementwise program.
    pub(super) fn operand(&self, r: Ref, int: bool) -> OperandPtr {
        if int { OperandPtr::I32(self.at(r)) } else { OperandPtr::F32(self.at(r)) }
    }

    /// The output of a kernel that takes pointers.
    pub(super) fn ptr(&self, r: Ref) -> *mut f32 {
        self.at(r)
    }

    /// A weight in panels, if it has any.
    pub(crate) fn panels(&self, w: &WeightRef) -> Option<Weight<'_>> {
        let WeightSource::Param(p) = w.source else { return None };
        let p = self.params[p as usize];
        let panels = p.panels.filter(|_| w.panels)?;
        // SAFETY: bytes of the store, which is borrowed for the run, and never written.
        let data = unsafe { std::slice::from_raw_parts(panels.data, panels.bytes) };
        Some(Weight { format: p.format, layout: Layout::Panels, rows: w.rows, cols: w.cols, data })
    }

    /// The weight of a launch that takes it as it is: in panels if it has any, else in rows.
    pub(crate) fn factor(&self, w: &WeightRef) -> Weight<'_> {
        self.panels(w).unwrap_or_else(|| self.weight(w))
    }

    /// Forgets the rounded activations: the next launch reads others, or the same place with other values.
    pub(crate) fn forget_rounded(&self) {
        self.rounded.held.set(None);
    }

    /// `x`, `[m, k]`, rounded to 8 bits, unless the last call already did.
    pub(crate) fn rounded(&self, m: usize, k: usize, x: Ref) -> &[u32] {
        let len = int8::quantized_words(m, k);
        assert!(len <= self.rounded.len, "room for the largest activations was prepared");
        if self.rounded.held.get() != Some(x) {
            // SAFETY: `len` words past all buffers, by the check; slices of earlier launches are gone.
            let words = unsafe { std::slice::from_raw_parts_mut(self.rounded.words, len) };
            int8::quantize_rows(self.pool, m, k, self.f32(x), words);
            self.rounded.held.set(Some(x));
        }
        // SAFETY: as above, and written now.
        unsafe { std::slice::from_raw_parts(self.rounded.words, len) }
    }

    /// The rows of the weight that [`super::prepare::Prepare::weight`] planned for.
    pub(crate) fn weight(&self, w: &WeightRef) -> Weight<'_> {
        let (format, data) = match w.source {
            WeightSource::Param(p) => {
                let p = self.params[p as usize];
                assert!(!p.data.is_null(), "a launch reads the bytes of a weight that is bound in panels only");
                // SAFETY: bytes of the store, which is borrowed for the run; not written by a launch that reads them.
                (p.format, unsafe { std::slice::from_raw_parts(p.data, p.bytes) })
            }
            WeightSource::Dense(r) => {
                // SAFETY: as `f32`.
                (Format::F32, unsafe { std::slice::from_raw_parts(self.at::<f32>(r).cast::<u8>(), r.len * 4) })
            }
        };
        Weight { format, layout: Layout::Rows, rows: w.rows, cols: w.cols, data }
    }
}
