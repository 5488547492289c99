//! Values without inputs: constants that are made once at compile time, and fills whose size is only known with the bindings.

use std::sync::Arc;

use swift_graph::op::{ConstantData, Full, Iota};
use swift_graph::{Bindings, DType, Node, Op};
use swift_kernels::layout;

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// Elements of a constant.
#[derive(Debug)]
pub(super) enum Constant {
    /// Shared with the graph.
    Float(Arc<[f32]>),
    /// Shared with the graph.
    Int(Arc<[i32]>),
    /// Made here.
    Bits(Vec<u32>),
}

impl Constant {
    pub(super) fn as_ptr(&self) -> *const u8 {
        match self {
            Constant::Float(data) => data.as_ptr().cast(),
            Constant::Int(data) => data.as_ptr().cast(),
            Constant::Bits(data) => data.as_ptr().cast(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Constant::Float(data) => data.len(),
            Constant::Int(data) => data.len(),
            Constant::Bits(data) => data.len(),
        }
    }
}

/// The four bytes that hold `value` as `dtype`.
pub(super) fn bits(value: f64, dtype: DType) -> u32 {
    if dtype.is_int() { (value as i32).cast_unsigned() } else { (value as f32).to_bits() }
}

/// The elements of a constant node of known size; `None` for every other op.
pub(super) fn constant(node: &Node) -> Result<Option<Constant>> {
    Ok(match &node.op {
        Op::Constant(c) => Some(match &c.data {
            ConstantData::Float(data) => Constant::Float(Arc::clone(data)),
            ConstantData::Int(data) if c.dtype == DType::Bool => {
                Constant::Bits(data.iter().map(|&x| (x as f32).to_bits()).collect())
            }
            ConstantData::Int(data) => Constant::Int(Arc::clone(data)),
        }),
        Op::Full(full) => {
            let len: usize = full.ty.shape.eval(&Bindings::new())?.iter().product();
            Some(Constant::Bits(vec![bits(full.value.0, full.ty.dtype); len]))
        }
        Op::Iota(iota) => {
            let dims = iota.ty.shape.eval(&Bindings::new())?;
            let mut data = vec![0; dims.iter().product()];
            count(iota.ty.dtype, dims[iota.axis], dims[iota.axis + 1..].iter().product(), &mut data);
            Some(Constant::Bits(data))
        }
        _ => None,
    })
}

/// One number everywhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(super) out: Ref,
    pub(super) bits: u32,
}

impl Fill {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        layout::fill(m.pool, self.bits, m.bits_mut(self.out));
        Ok(())
    }
}

/// The index along an axis of `len`, repeated `inner` times each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    out: Ref,
    dtype: DType,
    len: usize,
    inner: usize,
}

impl Count {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        count(self.dtype, self.len, self.inner, m.bits_mut(self.out));
        Ok(())
    }
}

fn count(dtype: DType, len: usize, inner: usize, out: &mut [u32]) {
    for (row, out) in out.chunks_exact_mut(inner.max(1)).enumerate() {
        out.fill(bits((row % len) as f64, dtype));
    }
}

pub(super) fn full(op: &Full, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    Ok(Kernel::Fill(Fill { out: p.output(0)?, bits: bits(op.value.0, op.ty.dtype) }))
}

pub(super) fn iota(op: &Iota, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let dims = p.out_dims(0)?;
    let inner = dims[op.axis + 1..].iter().product();
    Ok(Kernel::Count(Count { out: p.output(0)?, dtype: op.ty.dtype, len: dims[op.axis], inner }))
}
