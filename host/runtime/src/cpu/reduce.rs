//! Reductions and softmax. The kernel reduces one axis; neighbouring axes are one, and scattered ones are moved to the end first.

use swift_graph::op::{Reduce, ReduceOp, SegmentReduce};
use swift_kernels::reduce;

use super::Kernel;
use super::gather::check;
use super::layout::Copy;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

fn kernel_op(op: ReduceOp) -> reduce::Reduce {
    match op {
        ReduceOp::Sum => reduce::Reduce::Sum,
        ReduceOp::Mean => reduce::Reduce::Mean,
        ReduceOp::Max => reduce::Reduce::Max,
        ReduceOp::Min => reduce::Reduce::Min,
        ReduceOp::Prod => reduce::Reduce::Prod,
        ReduceOp::LogSumExp => reduce::Reduce::LogSumExp,
    }
}

/// `[outer, len, inner]` to `[outer, inner]`.
#[derive(Debug)]
pub(crate) struct Reduction {
    op: reduce::Reduce,
    outer: usize,
    len: usize,
    inner: usize,
    permute: Option<Copy>,
    x: Ref,
    out: Ref,
}

impl Reduction {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        if let Some(permute) = &self.permute {
            permute.run(m)?;
        }
        reduce::reduce(m.pool, self.op, self.outer, self.len, self.inner, m.f32(self.x), m.f32_mut(self.out));
        Ok(())
    }
}

pub(super) fn prepare(op: &Reduce, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let dims = p.dims(0)?;
    let mut x = p.input(0)?;
    // Axes of one element change nothing wherever they are.
    let (axes, kept): (Vec<usize>, Vec<usize>) =
        (0..dims.len()).filter(|&axis| dims[axis] != 1).partition(|axis| op.axes.contains(axis));
    let product = |axes: &[usize]| axes.iter().map(|&axis| dims[axis]).product::<usize>();
    let len = product(&axes);
    let (first, last) = (axes.first().copied().unwrap_or(dims.len()), axes.last().copied().unwrap_or(dims.len()));
    let (outer, inner): (Vec<usize>, Vec<usize>) = kept.iter().partition(|&&axis| axis < first);
    let (outer, inner, permute) = if inner.iter().all(|&axis| axis > last) {
        (product(&outer), product(&inner), None)
    } else {
        let order: Vec<usize> =
            (0..dims.len()).filter(|&axis| dims[axis] == 1).chain(kept.iter().chain(&axes).copied()).collect();
        let to = p.scratch(x.len);
        let permute = Copy::permute(p, &dims, &order, x, to)?;
        x = to;
        (product(&kept), 1, Some(permute))
    };
    Ok(Kernel::Reduction(Reduction { op: kernel_op(op.op), outer, len, inner, permute, x, out: p.output(0)? }))
}

/// Softmax of rows, or its gradient from `y` and `d_y`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Softmax {
    rows: usize,
    cols: usize,
    x: Ref,
    d_y: Option<Ref>,
    out: Ref,
}

impl Softmax {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let (x, out) = (m.f32(self.x), m.f32_mut(self.out));
        match self.d_y {
            None => reduce::softmax(m.pool, self.rows, self.cols, x, out),
            Some(d_y) => reduce::softmax_dx(m.pool, self.rows, self.cols, x, m.f32(d_y), out),
        }
        Ok(())
    }
}

pub(super) fn softmax(gradient: bool, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let dims = p.dims(0)?;
    let (cols, lead) = dims.split_last().map_or((1, &[][..]), |(c, lead)| (*c, lead));
    let (x, d_y) = (p.input(0)?, if gradient { Some(p.input(1)?) } else { None });
    Ok(Kernel::Softmax(Softmax { rows: lead.iter().product(), cols, x, d_y, out: p.output(0)? }))
}

/// Rows by segment number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segments {
    op: reduce::Reduce,
    n: usize,
    d: usize,
    count: usize,
    x: Ref,
    segments: Ref,
    out: Ref,
}

impl Segments {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let segments = m.i32(self.segments);
        check("segment-reduce", "segment", segments, self.count, true)?;
        reduce::segment_reduce(m.pool, self.op, self.n, self.d, m.f32(self.x), segments, self.count, m.f32_mut(self.out));
        // The kernel gives an empty sum's logarithm, the graph says 0.
        if self.op == reduce::Reduce::LogSumExp {
            let mut empty = vec![true; self.count];
            segments.iter().filter(|&&s| s >= 0).for_each(|&s| empty[s as usize] = false);
            let rows = m.f32_mut(self.out).chunks_exact_mut(self.d.max(1));
            rows.zip(empty).filter(|(_, empty)| *empty).for_each(|(row, _)| row.fill(0.0));
        }
        Ok(())
    }
}

pub(super) fn segment_reduce(op: &SegmentReduce, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let dims = p.dims(0)?;
    let count = op.count.eval(p.scope.bindings)? as usize;
    let (x, segments, out) = (p.input(0)?, p.input(1)?, p.output(0)?);
    let d = dims[1..].iter().product();
    Ok(Kernel::Segments(Segments { op: kernel_op(op.op), n: dims[0], d, count, x, segments, out }))
}
