//! Fused elementwise programs: a straight-line list of operations, run tile by tile in cache.
//!
//! A [`Program`] is in single-assignment form: instruction `i` writes register `i`.
//! A register holds one tile of a logical `[rows, cols]` matrix (mostly [`TILE`] floats, fewer where
//! many are live, so that all of them fit the first-level cache); values that do not depend on
//! the tile are one number, computed once per task. Inputs may be broadcast, outputs are full. Simple
//! operations that follow each other (sums, products, signs, bounds) are one pass over the tile, in vector
//! registers; a program that is one pass streams from memory to memory. Of others the operands of the next
//! tile are fetched while one is computed, a part after each pass, so that memory and arithmetic overlap.
//!
//! The operations overwrite their outputs. Error of the vector code against the correctly
//! rounded result is at most `2e-6` relative, except for `Sin`, `Cos` (`2e-6` absolute) and
//! `GeluErf`, `GeluTanh`, `Sigmoid`, `Silu` far in their negative tails, where it is `2e-6` of
//! `max(1, |x|)` times the larger of the result and the smallest normal number, or, for
//! `GeluErf`, of `|x|`. Infinities and NaN behave as in `std`: `Min` and `Max` return the
//! operand that is a number, comparisons with NaN are false, `Ne` is true.
//! `Pow` and `Rem` run in scalar code at every level: they are rare and `std` is exact.
//!
//! Every element is computed by the same instructions wherever it lies in its tile, so
//! results depend neither on the number of threads nor on the tiling.

mod chain;
mod program;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

pub use program::{Binary, Broadcast, Instr, InvalidProgram, Program, Unary};
pub(crate) use scalar::erf;

use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::stream;
use program::{Link, PASS, Place, Plan, Register};

/// Most floats of one register tile, except in programs of one pass: what an instruction costs beside its loop is small against 8 KiB.
pub const TILE: usize = 2048;

/// Floats of all live tiles: most of a first-level cache of 32 KiB, or two thirds of one of 48.
const LIVE: usize = 8 * 1024;

/// Floats of a cache line.
const LINE: usize = 16;

/// Elements that are worth a task of their own.
const GRAIN: usize = 32 * 1024;

/// An input of [`run`].
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// Integers, converted on load.
    I32(&'a [i32]),
}

/// An input of [`run_raw`].
#[derive(Clone, Copy, Debug)]
pub enum OperandPtr {
    /// Floats.
    F32(*const f32),
    /// Integers, converted on load.
    I32(*const i32),
}

impl OperandPtr {
    /// Where it begins, as if of floats.
    fn address(self) -> *const f32 {
        match self {
            OperandPtr::F32(data) => data,
            OperandPtr::I32(data) => data.cast(),
        }
    }

    /// The same operand, `offset` elements further.
    ///
    /// # Safety
    /// As [`pointer::add`].
    unsafe fn add(self, offset: usize) -> OperandPtr {
        // SAFETY: promised by the caller.
        unsafe {
            match self {
                OperandPtr::F32(data) => OperandPtr::F32(data.add(offset)),
                OperandPtr::I32(data) => OperandPtr::I32(data.add(offset)),
            }
        }
    }
}

/// Runs `program` over a `[rows, cols]` matrix.
///
/// # Panics
/// When the program is invalid or a slice does not have the length that its broadcast says.
#[track_caller]
pub fn run(pool: &Pool, program: &Program, rows: usize, cols: usize, inputs: &[Operand<'_>], outputs: &mut [&mut [f32]]) {
    if let Err(error) = program.validate() {
        panic!("{error}");
    }
    assert_eq!(inputs.len(), program.inputs.len(), "number of inputs");
    assert_eq!(outputs.len(), program.outputs.len(), "number of outputs");
    let inputs: Vec<OperandPtr> = inputs
        .iter()
        .zip(&program.inputs)
        .map(|(input, broadcast)| {
            let (len, pointer) = match input {
                Operand::F32(data) => (data.len(), OperandPtr::F32(data.as_ptr())),
                Operand::I32(data) => (data.len(), OperandPtr::I32(data.as_ptr())),
            };
            assert_eq!(len, broadcast.len(rows, cols), "length of an input");
            pointer
        })
        .collect();
    let outputs: Vec<*mut f32> = outputs
        .iter_mut()
        .map(|output| {
            assert_eq!(output.len(), rows * cols, "length of an output");
            output.as_mut_ptr()
        })
        .collect();
    // SAFETY: validated, lengths checked, and the borrows exclude aliasing.
    unsafe { run_raw(pool, program, rows, cols, &inputs, &outputs) }
}

/// Runs a validated `program` over buffers given by pointers, in place where they coincide.
///
/// # Safety
/// `program.validate()` is `Ok`; there is one pointer for each input and output; input `i` is
/// readable for `program.inputs[i].len(rows, cols)` elements and each output writable for
/// `rows * cols`; outputs do not overlap each other, and an input overlaps an output only if
/// it is `Full` and both pointers are equal.
pub unsafe fn run_raw(pool: &Pool, program: &Program, rows: usize, cols: usize, inputs: &[OperandPtr], outputs: &[*mut f32]) {
    if rows * cols == 0 || outputs.is_empty() {
        return;
    }
    let flat = program.inputs.iter().all(|input| matches!(input, Broadcast::Full | Broadcast::Scalar));
    let (rows, cols) = if flat { (1, rows * cols) } else { (rows, cols) };
    let plan = Plan::new(program);
    let tile = if plan.streams() { LIVE } else { (LIVE / plan.live.max(1)).clamp(8 * LINE, TILE) / LINE * LINE };
    // Tiles across are about equal, and of whole lines.
    let tile_cols = cols.div_ceil(cols.div_ceil(tile)).next_multiple_of(LINE).min(cols);
    let tile_rows = (tile / cols).clamp(1, rows);
    let (down, across) = (rows.div_ceil(tile_rows), cols.div_ceil(tile_cols));
    let per_task = GRAIN.div_ceil(tile_rows * tile_cols);
    let tiles = down * across;
    let isa = pool.isa();
    let read: Vec<*const f32> = inputs.iter().map(|input| input.address()).collect();
    // Tiles begin at whole lines if rows do.
    let lines = rows == 1 || cols.is_multiple_of(LINE);
    let past: Vec<bool> = outputs.iter().map(|&out| lines && stream::is_large(isa, rows * cols, out, &read)).collect();
    let run = Run { program, plan: &plan, isa, tile, cols, inputs, outputs, past: &past };
    let area = |index: usize| {
        let (row, col) = (index / across * tile_rows, index % across * tile_cols);
        Area { index, row, rows: tile_rows.min(rows - row), col, cols: tile_cols.min(cols - col) }
    };
    pool.run(tiles.div_ceil(per_task), &|task| {
        let run = &run;
        // Two tiles more, for results on their way to memory.
        with_scratch((plan.slots + 2) * tile, |scratch| {
            let mut registers = vec![Register::new(std::ptr::null(), false); program.instrs.len()];
            // SAFETY: the scratch has a tile for every slot of the plan, registers one entry for each
            // instruction; the rest is promised by the caller.
            unsafe { run.invariants(scratch, &mut registers) };
            let end = tiles.min((task + 1) * per_task);
            let mut last = None;
            for index in task * per_task..end {
                let next = (index + 1 < end).then(|| area(index + 1));
                // SAFETY: the area lies inside the matrix and tiles do not overlap; as above.
                unsafe { run.tile(area(index), Around { last, next }, scratch, &mut registers) };
                last = Some(area(index));
            }
            if let Some(last) = last {
                // SAFETY: the last tile of the task, which was computed.
                unsafe { run.hand_over(last, scratch, 0, 1) };
            }
        });
        if run.past.contains(&true) {
            stream::fence();
        }
    });
}

/// Neighbours of a tile, whose memory traffic goes on while it is computed.
#[derive(Clone, Copy)]
struct Around {
    /// Its result is handed over.
    last: Option<Area>,
    /// Its operands are fetched.
    next: Option<Area>,
}

/// One tile of the matrix. Either it has one row or it spans all columns, so its elements
/// are contiguous.
#[derive(Clone, Copy)]
struct Area {
    /// Number of the tile.
    index: usize,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

/// What the tasks of a run share.
struct Run<'a> {
    program: &'a Program,
    plan: &'a Plan,
    isa: Isa,
    /// Floats of a slot.
    tile: usize,
    cols: usize,
    inputs: &'a [OperandPtr],
    outputs: &'a [*mut f32],
    /// Outputs that are stored past the caches.
    past: &'a [bool],
}

// SAFETY: tasks read shared inputs and write disjoint tiles of the outputs.
unsafe impl Sync for Run<'_> {}

impl Run<'_> {
    /// Computes the registers that are the same for every tile.
    ///
    /// # Safety
    /// As [`Run::tile`].
    unsafe fn invariants(&self, scratch: &mut [f32], registers: &mut [Register]) {
        let area = Area { index: 0, row: 0, rows: 1, col: 0, cols: LINE };
        for index in 0..self.program.instrs.len() {
            if self.plan.invariant[index] {
                // SAFETY: an invariant instruction reads constants, scalars and invariant
                // registers only, all of which exist whatever the area.
                unsafe { self.step(index, area, scratch, registers) };
            }
        }
    }

    /// Where a tile's result is kept until it is handed over; tiles take turns.
    fn held<'s>(&self, area: Area, scratch: &'s mut [f32]) -> &'s mut [f32] {
        let turn = area.index % 2;
        &mut scratch[(self.plan.slots + turn) * self.tile..][..self.tile]
    }

    /// Stores part `part` of `parts` of the result of `area` past the caches, if it is kept.
    ///
    /// # Safety
    /// As [`Run::tile`], for an area that was computed.
    unsafe fn hand_over(&self, area: Area, scratch: &mut [f32], part: usize, parts: usize) {
        if let (Some(Place::Output(output)), false) = (self.plan.places.last(), self.plan.streams())
            && self.past[*output]
        {
            let (start, len) = (area.row * self.cols + area.col, area.rows * area.cols);
            let lines = len.div_ceil(LINE).div_ceil(parts);
            let from = (part * lines * LINE).min(len);
            let count = (lines * LINE).min(len - from);
            let source = &self.held(area, scratch)[from..][..count];
            // SAFETY: a part of the tile, which is inside the output.
            unsafe { stream::copy(self.isa, source.as_ptr(), self.outputs[*output].add(start + from), count, source.as_ptr()) };
        }
    }

    /// Computes one tile of all outputs, and in between hands over the last one and fetches the next.
    ///
    /// # Safety
    /// `area` lies inside the matrix and is written by no other task; `scratch` holds
    /// `plan.slots + 2` tiles; `registers` has one entry for each instruction, and those of
    /// invariant instructions are set.
    unsafe fn tile(&self, area: Area, around: Around, scratch: &mut [f32], registers: &mut [Register]) {
        let mut step = 0;
        for index in 0..self.program.instrs.len() {
            if !self.plan.invariant[index] {
                // SAFETY: as promised to this function.
                unsafe { self.step(index, area, scratch, registers) };
                if self.plan.computes(index) && !self.plan.streams() {
                    if let Some(last) = around.last {
                        // SAFETY: as promised to this function.
                        unsafe { self.hand_over(last, scratch, step, self.plan.steps) };
                    }
                    if let Some(next) = around.next {
                        self.fetch(next, step);
                    }
                    step += 1;
                }
            }
        }
        let (start, len) = (area.row * self.cols + area.col, area.rows * area.cols);
        for (index, (&register, &output)) in self.program.outputs.iter().zip(self.outputs).enumerate() {
            let source = registers[usize::from(register)];
            let is_last = self.plan.places.last() == Some(&Place::Output(index));
            // SAFETY: the tile is inside the output; the source is a scratch tile or, when the
            // last instruction wrote its output directly, the destination itself.
            unsafe {
                let out = output.add(start);
                if source.mask == 0 {
                    scalar::fill(OperandPtr::F32(source.data), out, len);
                } else if self.past[index] {
                    if !is_last {
                        stream::copy(self.isa, source.data, out, len, source.data);
                    }
                } else if !std::ptr::eq(source.data, out) {
                    std::ptr::copy(source.data, out, len);
                }
            }
        }
    }

    /// Fetches the part of the operands of `area` that is due after so many steps.
    fn fetch(&self, area: Area, step: usize) {
        let (start, lines) = (area.row * self.cols + area.col, (area.rows * area.cols).div_ceil(LINE));
        let part = lines.div_ceil(self.plan.steps);
        for (input, _) in self.inputs.iter().zip(&self.program.inputs).filter(|(_, span)| **span == Broadcast::Full) {
            for line in part * step..lines.min(part * (step + 1)) {
                stream::prefetch(input.address().wrapping_add(start + line * LINE));
            }
        }
    }

    /// Runs instruction `index` for one tile and notes where its register is.
    ///
    /// # Safety
    /// As [`Run::tile`], and the registers that the instruction reads are set.
    unsafe fn step(&self, index: usize, area: Area, scratch: &mut [f32], registers: &mut [Register]) {
        let (isa, tile) = (self.isa, self.tile);
        let past = matches!(self.plan.places[index], Place::Output(output) if self.past[output] && self.plan.streams());
        let len = area.rows * area.cols;
        let start = area.row * self.cols + area.col;
        let out = match self.plan.places[index] {
            Place::Joined => return,
            Place::Slot(slot) => scratch[slot * tile..][..tile].as_mut_ptr(),
            // To be stored past the caches while the next tile is computed.
            Place::Output(output) if self.past[output] && !self.plan.streams() => self.held(area, scratch).as_mut_ptr(),
            // SAFETY: the tile is inside the output.
            Place::Output(output) => unsafe { self.outputs[output].add(start) },
            Place::Input => {
                if let Instr::Load { input } = self.program.instrs[index]
                    && let OperandPtr::F32(data) = self.inputs[usize::from(input)]
                {
                    // SAFETY: a full input has an element for each of the matrix.
                    registers[index] = Register::new(unsafe { data.add(start) }, false);
                    return;
                }
                // An integer input: its slot is kept beside the place, see `Plan`.
                scratch[self.plan.fallback[index] * tile..][..tile].as_mut_ptr()
            }
        };
        // SAFETY: `out` has room for a tile, operands are tiles of the same area, and they
        // overlap `out` only when they are equal.
        unsafe {
            match self.program.instrs[index] {
                _ if self.plan.passes.before(index).is_some() => self.pass(index, past, registers, out, len),
                Instr::Load { input } => {
                    let input = usize::from(input);
                    let data = self.inputs[input];
                    match self.program.inputs[input] {
                        Broadcast::Full => scalar::load(data.add(start), out, len),
                        Broadcast::Scalar => scalar::fill(data, out, len),
                        Broadcast::Col => {
                            for row in 0..area.rows {
                                let out = out.add(row * area.cols);
                                scalar::load(data.add(area.col), out, area.cols);
                            }
                        }
                        Broadcast::Row => {
                            for row in 0..area.rows {
                                let out = out.add(row * area.cols);
                                scalar::fill(data.add(area.row + row), out, area.cols);
                            }
                        }
                    }
                }
                Instr::Const(value) => {
                    scalar::fill(OperandPtr::F32(&raw const value), out, len);
                }
                Instr::Unary(op, x) => unary(isa, op, past, registers[usize::from(x)].data, out, len),
                Instr::Binary(op, a, b) => {
                    let (a, b) = (registers[usize::from(a)], registers[usize::from(b)]);
                    binary(isa, op, past, a, b, out, len);
                }
                Instr::Select(cond, a, b) => {
                    select(isa, [cond, a, b].map(|register| registers[usize::from(register)]), out, len);
                }
            }
        }
        registers[index] = Register::new(out, self.plan.invariant[index]);
    }

    /// Computes the instructions that end with `index` in one pass.
    ///
    /// # Safety
    /// As [`chain::run`], for the registers that they read.
    unsafe fn pass(&self, index: usize, past: bool, registers: &[Register], out: *mut f32, len: usize) {
        let mut steps = [const { (Link::Unary(Unary::Neg), Register::NONE) }; PASS];
        let (mut head, mut begin) = (Register::NONE, PASS);
        for at in self.plan.passes.of(index) {
            begin -= 1;
            let (link, first) = program::link(&self.program.instrs[at], self.plan.passes.before(at)).expect("the plan joined it");
            head = registers[usize::from(first)];
            let operand = if let Link::Binary(_, operand) = link { registers[usize::from(operand)] } else { Register::NONE };
            steps[begin] = (link, operand);
        }
        // SAFETY: promised by the caller.
        unsafe { chain::run(self.isa, past, head, &steps[begin..], out, len) };
    }
}

/// `x[i] = op(x[i])` on the calling thread, for kernels that do it while `x` is in cache.
pub(crate) fn apply(isa: Isa, op: Unary, x: &mut [f32]) {
    // SAFETY: both are the same slice; the pool of the caller vouches for the instruction set.
    unsafe { unary(isa, op, false, x.as_ptr(), x.as_mut_ptr(), x.len()) };
}

/// # Safety
/// `x` is readable and `out` writable for `len` floats; they are equal or do not overlap.
unsafe fn unary(isa: Isa, op: Unary, past: bool, x: *const f32, out: *mut f32, len: usize) {
    // SAFETY: promised by the caller; the pool vouches for the instruction set.
    unsafe {
        match isa {
            #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
            _ if isa.is_wide() => vector::unary(isa, op, past, x, out, len),
            _ => scalar::unary(op, x, out, len),
        }
    }
}

/// # Safety
/// As [`unary`], for both operands.
unsafe fn binary(isa: Isa, op: Binary, past: bool, a: Register, b: Register, out: *mut f32, len: usize) {
    // SAFETY: promised by the caller; the pool vouches for the instruction set.
    unsafe {
        match isa {
            #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
            _ if isa.is_wide() => vector::binary(isa, op, past, a, b, out, len),
            _ => scalar::binary(op, a, b, out, len),
        }
    }
}

/// # Safety
/// As [`unary`], for all operands.
unsafe fn select(isa: Isa, operands: [Register; 3], out: *mut f32, len: usize) {
    // SAFETY: promised by the caller; the pool vouches for the instruction set.
    unsafe {
        match isa {
            #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
            _ if isa.is_wide() => vector::select(isa, operands, out, len),
            _ => scalar::select(operands, out, len),
        }
    }
}
