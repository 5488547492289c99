//! Choice along the last axis, and elements of it by index.

use swift_graph::op::TopK as TopKOp;
use swift_kernels::topk;

use super::Kernel;
use super::gather::check;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// Indices of the `k` largest of each row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopK {
    rows: usize,
    cols: usize,
    k: usize,
    x: Ref,
    out: Ref,
}

impl TopK {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        topk::top_k(m.pool, self.rows, self.cols, self.k, m.f32(self.x), m.i32_mut(self.out));
        Ok(())
    }
}

/// Rows over the last axis, and its size.
fn rows(dims: &[usize]) -> (usize, usize) {
    dims.split_last().map_or((1, 1), |(cols, lead)| (lead.iter().product(), *cols))
}

pub(super) fn top_k(op: &TopKOp, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let ((rows, cols), k) = (rows(&p.dims(0)?), op.k as usize);
    if k > cols || i32::try_from(cols).is_err() {
        return Err(p.unsupported(format!("the {k} largest of {cols} elements")));
    }
    Ok(Kernel::TopK(TopK { rows, cols, k, x: p.input(0)?, out: p.output(0)? }))
}

/// `out[r, j] = x[r, idx[r, j]]`, or with `scatter` `out[r, idx[r, j]] += x[r, j]` over zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByIndex {
    scatter: bool,
    rows: usize,
    cols: usize,
    k: usize,
    x: Ref,
    idx: Ref,
    out: Ref,
}

impl ByIndex {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let &ByIndex { scatter, rows, cols, k, .. } = self;
        let idx = m.i32(self.idx);
        check(if scatter { "scatter-last" } else { "gather-last" }, "index", idx, cols, true)?;
        if scatter {
            topk::scatter_last(m.pool, rows, cols, k, m.f32(self.x), idx, m.f32_mut(self.out));
        } else {
            topk::gather_last(m.pool, rows, cols, k, m.bits(self.x), idx, m.bits_mut(self.out));
        }
        Ok(())
    }
}

pub(super) fn gather(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let ((rows, cols), (_, k)) = (rows(&p.dims(0)?), rows(&p.dims(1)?));
    Ok(Kernel::ByIndex(ByIndex { scatter: false, rows, cols, k, x: p.input(0)?, idx: p.input(1)?, out: p.output(0)? }))
}

pub(super) fn scatter(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let ((rows, k), (_, cols)) = (rows(&p.dims(0)?), rows(&p.out_dims(0)?));
    Ok(Kernel::ByIndex(ByIndex { scatter: true, rows, cols, k, x: p.input(0)?, idx: p.input(1)?, out: p.output(0)? }))
}
