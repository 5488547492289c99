//! Table lookup by token id, in the table's storage format, and its gradient.

use swift_kernels::layout::{self, Base};
use swift_kernels::quant;

use super::Kernel;
use super::gather::check;
use super::memory::{Memory, Ref, WeightRef};
use super::prepare::Prepare;
use crate::Result;

/// `out[i] = table[ids[i]]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Embed {
    table: WeightRef,
    ids: Ref,
    out: Ref,
}

impl Embed {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let ids = m.i32(self.ids);
        check("embed", "token id", ids, self.table.rows, false)?;
        quant::gather_rows(m.pool, &m.factor(&self.table), ids, m.f32_mut(self.out));
        Ok(())
    }
}

pub(super) fn forward(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    Ok(Kernel::Embed(Embed { table: p.table(0)?, ids: p.input(1)?, out: p.output(0)? }))
}

/// `out = 0`, then `out[ids[i]] += d_y[i]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmbedGradient {
    vocab: usize,
    d: usize,
    d_y: Ref,
    ids: Ref,
    out: Ref,
}

impl EmbedGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let ids = m.i32(self.ids);
        check("embed-dw", "token id", ids, self.vocab, false)?;
        layout::scatter_add_rows(m.pool, self.vocab, self.d, Base::Zero, ids, m.f32(self.d_y), m.f32_mut(self.out));
        Ok(())
    }
}

pub(super) fn dw(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let out_dims = p.out_dims(0)?;
    let (d_y, ids, out) = (p.input(0)?, p.input(1)?, p.output(0)?);
    Ok(Kernel::EmbedGradient(EmbedGradient { vocab: out_dims[0], d: out_dims[1], d_y, ids, out }))
}
