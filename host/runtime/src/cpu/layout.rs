//! Ops that move elements: all are strided copies of four-byte elements, after a fill where there is a border.

use swift_graph::op::{Concat, Expand, Pad, Permute, Slice};
use swift_kernels::layout::{self, MAX_RANK, View};

use super::Kernel;
use super::leaf::{Fill, bits};
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// A copy between strided views, each element once.
#[derive(Debug)]
pub(crate) struct Copy {
    rank: usize,
    dims: [usize; MAX_RANK],
    from: [usize; MAX_RANK],
    to: [usize; MAX_RANK],
    from_offset: usize,
    to_offset: usize,
    src: Ref,
    dst: Ref,
}

/// Copies into one output.
#[derive(Debug)]
pub(crate) struct Copies {
    fill: Option<Fill>,
    parts: Box<[Copy]>,
}

impl Copy {
    fn new(p: &Prepare<'_, '_>, dims: &[usize], (src, from): (Ref, &[usize]), (dst, to): (Ref, &[usize])) -> Result<Copy> {
        let rank = dims.len();
        if rank > MAX_RANK {
            return Err(p.unsupported(format!("{rank} axes are more than {MAX_RANK}")));
        }
        let fixed = |values: &[usize]| {
            let mut array = [0; MAX_RANK];
            array[..rank].copy_from_slice(values);
            array
        };
        let (dims, from, to) = (fixed(dims), fixed(from), fixed(to));
        Ok(Copy { rank, dims, from, to, from_offset: 0, to_offset: 0, src, dst })
    }

    /// Repeats `src` of sizes `from` (each equal to `to`'s, or 1) along the axes of `to`.
    pub(super) fn expand(p: &Prepare<'_, '_>, from: &[usize], to: &[usize], src: Ref, dst: Ref) -> Result<Copy> {
        let lead = to.len() - from.len();
        let inner = dense(from);
        let strides: Vec<usize> =
            (0..to.len()).map(|i| if i < lead || from[i - lead] != to[i] { 0 } else { inner[i - lead] }).collect();
        Copy::new(p, to, (src, &strides), (dst, &dense(to)))
    }

    /// `dst` axis `i` is `src` axis `axes[i]`.
    pub(super) fn permute(p: &Prepare<'_, '_>, dims: &[usize], axes: &[usize], src: Ref, dst: Ref) -> Result<Copy> {
        let from = dense(dims);
        let out: Vec<usize> = axes.iter().map(|&a| dims[a]).collect();
        let strides: Vec<usize> = axes.iter().map(|&a| from[a]).collect();
        Copy::new(p, &out, (src, &strides), (dst, &dense(&out)))
    }

    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let from = View { strides: &self.from[..self.rank], offset: self.from_offset };
        let to = View { strides: &self.to[..self.rank], offset: self.to_offset };
        layout::copy_strided(m.pool, &self.dims[..self.rank], m.bits(self.src), from, m.bits_mut(self.dst), to);
        Ok(())
    }
}

impl Copies {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        if let Some(fill) = &self.fill {
            fill.run(m)?;
        }
        self.parts.iter().try_for_each(|part| part.run(m))
    }
}

/// Row-major strides.
fn dense(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis];
    }
    strides
}

fn copies(parts: Vec<Copy>) -> Result<Kernel> {
    Ok(Kernel::Copies(Copies { fill: None, parts: parts.into() }))
}

pub(super) fn permute(op: &Permute, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (src, dst) = (p.input(0)?, p.output(0)?);
    copies(vec![Copy::permute(p, &p.dims(0)?, &op.axes, src, dst)?])
}

pub(super) fn expand(_: &Expand, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (src, dst) = (p.input(0)?, p.output(0)?);
    copies(vec![Copy::expand(p, &p.dims(0)?, &p.out_dims(0)?, src, dst)?])
}

pub(super) fn slice(op: &Slice, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (dims, out) = (p.dims(0)?, p.out_dims(0)?);
    let start = op.start.eval(p.scope.bindings)? as usize;
    if start.checked_add(out[op.axis]).is_none_or(|end| end > dims[op.axis]) {
        let (len, size) = (out[op.axis], dims[op.axis]);
        return Err(p.unsupported(format!("{len} elements from {start} on do not lie in an axis of {size}")));
    }
    let (src, dst) = (p.input(0)?, p.output(0)?);
    let strides = dense(&dims);
    let mut copy = Copy::new(p, &out, (src, &strides), (dst, &dense(&out)))?;
    copy.from_offset = start * strides[op.axis];
    copies(vec![copy])
}

pub(super) fn concat(op: &Concat, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let dst = p.output(0)?;
    let to = dense(&p.out_dims(0)?);
    let mut at = 0;
    let mut parts = Vec::with_capacity(p.node.inputs.len());
    for i in 0..p.node.inputs.len() {
        let (dims, src) = (p.dims(i)?, p.input(i)?);
        let mut copy = Copy::new(p, &dims, (src, &dense(&dims)), (dst, &to))?;
        copy.to_offset = at * to[op.axis];
        at += dims[op.axis];
        parts.push(copy);
    }
    copies(parts)
}

pub(super) fn pad(op: &Pad, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (dims, src, dst) = (p.dims(0)?, p.input(0)?, p.output(0)?);
    let to = dense(&p.out_dims(0)?);
    let mut copy = Copy::new(p, &dims, (src, &dense(&dims)), (dst, &to))?;
    copy.to_offset = op.lo.iter().zip(&to).map(|(&lo, stride)| lo as usize * stride).sum();
    let fill = Fill { out: dst, bits: bits(op.value.0, p.node.ty().dtype) };
    Ok(Kernel::Copies(Copies { fill: Some(fill), parts: Box::new([copy]) }))
}
