//! Rows by index. Indices are data, so they are checked in every run.

use swift_graph::op::ScatterRows;
use swift_kernels::layout::{self, Base};

use super::Kernel;
use super::identity::copy;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::{Error, Result};

/// Checks that indices are below `limit` and, unless `skip` allows them, not negative.
pub(super) fn check(op: &'static str, what: &'static str, indices: &[i32], limit: usize, skip: bool) -> Result<()> {
    let outside = |&i: &i32| usize::try_from(i).map_or(!skip, |i| i >= limit);
    match indices.iter().position(outside) {
        Some(at) => Err(Error::Index { op, what, value: i64::from(indices[at]), at, limit }),
        None => Ok(()),
    }
}

/// `out[i] = table[idx[i]]`, zeros where the index is negative.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gather {
    rows: usize,
    d: usize,
    table: Ref,
    idx: Ref,
    out: Ref,
}

impl Gather {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let idx = m.i32(self.idx);
        check("gather-rows", "index", idx, self.rows, true)?;
        layout::gather_rows(m.pool, self.rows, self.d, idx, m.bits(self.table), m.bits_mut(self.out));
        Ok(())
    }
}

pub(super) fn gather(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let dims = p.dims(0)?;
    let (table, idx, out) = (p.input(0)?, p.input(1)?, p.output(0)?);
    Ok(Kernel::Gather(Gather { rows: dims[0], d: dims[1..].iter().product(), table, idx, out }))
}

/// `out = base`, then `out[idx[i]] = rows[i]` or `+= rows[i]` where the index is not negative.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scatter {
    accumulate: bool,
    count: usize,
    d: usize,
    base: Ref,
    idx: Ref,
    rows: Ref,
    out: Ref,
}

impl Scatter {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let idx = m.i32(self.idx);
        check("scatter-rows", "index", idx, self.count, true)?;
        let in_place = m.same(self.base, self.out);
        if self.accumulate {
            let base = if in_place { Base::InPlace } else { Base::Other(m.f32(self.base)) };
            layout::scatter_add_rows(m.pool, self.count, self.d, base, idx, m.f32(self.rows), m.f32_mut(self.out));
            return Ok(());
        }
        if !in_place {
            copy(m, self.base, self.out);
        }
        if self.d > 0 {
            // In order on one thread: the last of equal indices wins.
            let (rows, out) = (m.bits(self.rows), m.bits_mut(self.out));
            for (row, &at) in rows.chunks_exact(self.d).zip(idx).filter(|(_, at)| **at >= 0) {
                out[at as usize * self.d..][..self.d].copy_from_slice(row);
            }
        }
        Ok(())
    }
}

pub(super) fn scatter(op: &ScatterRows, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    if op.accumulate && p.is_int(0) {
        return Err(p.unsupported("whole numbers are not added by index; cast them to f32"));
    }
    let dims = p.dims(0)?;
    let (base, idx, rows, out) = (p.input_in_place(0)?, p.input(1)?, p.input(2)?, p.output(0)?);
    let d = dims[1..].iter().product();
    Ok(Kernel::Scatter(Scatter { accumulate: op.accumulate, count: dims[0], d, base, idx, rows, out }))
}
