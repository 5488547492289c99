//! Batched products of computed values.

use swift_graph::op::MatMul;
use swift_kernels::gemm::{BatchStrides, MatRef, gemm_batched};

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// `out[i] = a[i] b[i]`; a `b` without batch axes is used for all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    shared_b: bool,
    a: Ref,
    b: Ref,
    out: Ref,
}

impl Product {
    pub(super) fn run(&self, memory: &Memory<'_>) -> Result<()> {
        let &Product { batch, m, n, k, .. } = self;
        let matrix = |r: Ref, rows: usize, cols: usize, transposed: bool| {
            let data = memory.f32(r);
            if transposed { MatRef::new(data, rows).transposed() } else { MatRef::new(data, cols) }
        };
        let a = matrix(self.a, m, k, self.transpose_a);
        let b = matrix(self.b, k, n, self.transpose_b);
        let strides = BatchStrides { a: m * k, b: if self.shared_b { 0 } else { k * n }, c: m * n };
        gemm_batched(memory.pool, batch, m, n, k, 1.0, a, b, memory.f32_mut(self.out), n, 0.0, strides);
        Ok(())
    }
}

pub(super) fn prepare(op: &MatMul, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (a_dims, b_dims, out) = (p.dims(0)?, p.dims(1)?, p.out_dims(0)?);
    let rank = out.len();
    let (mut m, n) = (out[rank - 2], out[rank - 1]);
    let k = a_dims[if op.transpose_a { rank - 2 } else { rank - 1 }];
    let mut batch = out[..rank - 2].iter().product();
    let mut shared_b = b_dims.len() == 2;
    if shared_b && !op.transpose_a {
        // One tall product.
        m *= batch;
        batch = 1;
        shared_b = false;
    }
    let (a, b, out) = (p.input(0)?, p.input(1)?, p.output(0)?);
    Ok(Kernel::Product(Product { batch, m, n, k, transpose_a: op.transpose_a, transpose_b: op.transpose_b, shared_b, a, b, out }))
}
