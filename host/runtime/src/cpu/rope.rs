//! Rotary position embedding; works in place.

use swift_graph::op::{Rope as RopeOp, RopeLayout};
use swift_kernels::rope::{Layout, Rope, rope_raw};

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// Heads `[n, heads, head_dim]` turned by position.
#[derive(Debug)]
pub(crate) struct Rotation {
    n: usize,
    heads: usize,
    head_dim: usize,
    inv_freq: Box<[f32]>,
    layout: Layout,
    attn_scale: f32,
    inverse: bool,
    /// Row of the positions for each pair.
    rows: Box<[u8]>,
    x: Ref,
    positions: Ref,
    out: Ref,
}

impl Rotation {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let rope = Rope {
            n: self.n,
            heads: self.heads,
            head_dim: self.head_dim,
            rotary_dim: 2 * self.inv_freq.len(),
            layout: self.layout,
            inv_freq: &self.inv_freq,
            attn_scale: self.attn_scale,
            inverse: self.inverse,
            rows: &self.rows,
        };
        // SAFETY: both have n * heads * head_dim elements and are equal or disjoint; checked when the launch was prepared.
        unsafe { rope_raw(m.pool, rope, m.i32(self.positions), m.ptr(self.x), m.ptr(self.out)) };
        Ok(())
    }
}

pub(super) fn prepare(op: &RopeOp, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let dims = p.dims(0)?;
    let layout = match op.layout {
        RopeLayout::Halves => Layout::Halves,
        RopeLayout::Interleaved => Layout::Interleaved,
    };
    let inv_freq = op.inv_freq.iter().map(|f| f.0 as f32).collect();
    let (x, positions, out) = (p.input_in_place(0)?, p.input(1)?, p.output(0)?);
    let (n, heads, head_dim) = (dims[0], dims[1], dims[2]);
    let attn_scale = op.attn_scale.0 as f32;
    let inverse = op.inverse;
    let rows = op.row_of_pair(p.dims(1)?[0]).into();
    Ok(Kernel::Rotation(Rotation { n, heads, head_dim, inv_freq, layout, attn_scale, inverse, rows, x, positions, out }))
}
