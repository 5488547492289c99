//! Copies where the planner could not alias, and dense views of stored parameters.

use swift_kernels::quant;

use super::Kernel;
use super::memory::{Memory, Ref, WeightRef};
use super::prepare::Prepare;
use crate::Result;

/// Elements of one task.
const GRAIN: usize = 1 << 16;

/// The same elements elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(super) src: Ref,
    pub(super) dst: Ref,
}

impl Move {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        if !m.same(self.src, self.dst) {
            copy(m, self.src, self.dst);
        }
        Ok(())
    }
}

/// Puts the addend of a product where its output goes, if it is not there already. Gives the factor of what the output then holds.
pub(super) fn place_addend(m: &Memory<'_>, addend: Option<Ref>, out: Ref) -> Result<f32> {
    let Some(src) = addend else { return Ok(0.0) };
    Move { src, dst: out }.run(m)?;
    Ok(1.0)
}

/// Copies all elements of `src` to `dst`, which does not overlap it.
pub(super) fn copy(m: &Memory<'_>, src: Ref, dst: Ref) {
    let src = m.bits(src);
    m.pool.run_pieces(m.bits_mut(dst), GRAIN, |i, out| out.copy_from_slice(&src[i * GRAIN..][..out.len()]));
}

/// A parameter as floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dequantize {
    weight: WeightRef,
    out: Ref,
}

impl Dequantize {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let weight = m.factor(&self.weight);
        quant::dequantize_rows(m.pool, &weight, 0..weight.rows, m.f32_mut(self.out));
        Ok(())
    }
}

/// Reshape and stop-grad.
pub(super) fn prepare(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    Ok(Kernel::Move(Move { src: p.input_in_place(0)?, dst: p.output(0)? }))
}

pub(super) fn read(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let dims = p.dims(0)?;
    let weight = match dims.as_slice() {
        [_, _] => p.table(0)?,
        dims => {
            let cols = dims.last().copied().unwrap_or(1);
            p.matrix(0, dims.iter().product::<usize>() / cols.max(1), cols)?
        }
    };
    Ok(Kernel::Dequantize(Dequantize { weight, out: p.output(0)? }))
}
