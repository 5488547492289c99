//! Root-mean-square norm and its gradients.

use swift_graph::op::{RmsNorm, RmsNormDx};
use swift_kernels::norm;

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// `y` and the inverse root of each row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    rows: usize,
    d: usize,
    eps: f32,
    unit_offset: bool,
    x: Ref,
    w: Option<Ref>,
    y: Ref,
    inv_rms: Ref,
}

impl Norm {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let (y, inv_rms) = (m.f32_mut(self.y), m.f32_mut(self.inv_rms));
        let w = self.w.map(|w| m.f32(w));
        norm::rms_norm(m.pool, self.rows, self.d, m.f32(self.x), w, self.eps, self.unit_offset, y, inv_rms);
        Ok(())
    }
}

fn rows(p: &Prepare<'_, '_>) -> Result<(usize, usize)> {
    let dims = p.dims(0)?;
    Ok(dims.split_last().map_or((1, 1), |(d, lead)| (lead.iter().product(), *d)))
}

pub(super) fn forward(op: &RmsNorm, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (rows, d) = rows(p)?;
    let (x, w) = (p.input(0)?, if op.weight { Some(p.input(1)?) } else { None });
    let (y, inv_rms) = (p.output(0)?, p.output(1)?);
    Ok(Kernel::Norm(Norm { rows, d, eps: op.eps.0 as f32, unit_offset: op.unit_offset, x, w, y, inv_rms }))
}

/// Gradient in x.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormDx {
    rows: usize,
    d: usize,
    unit_offset: bool,
    x: Ref,
    w: Option<Ref>,
    inv_rms: Ref,
    d_y: Ref,
    out: Ref,
}

impl NormDx {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let (x, inv_rms, d_y) = (m.f32(self.x), m.f32(self.inv_rms), m.f32(self.d_y));
        let w = self.w.map(|w| m.f32(w));
        norm::rms_norm_dx(m.pool, self.rows, self.d, x, w, inv_rms, d_y, self.unit_offset, m.f32_mut(self.out));
        Ok(())
    }
}

pub(super) fn dx(op: &RmsNormDx, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (rows, d) = rows(p)?;
    let at = 1 + usize::from(op.weight);
    let (x, w) = (p.input(0)?, if op.weight { Some(p.input(1)?) } else { None });
    let (inv_rms, d_y, out) = (p.input(at)?, p.input(at + 1)?, p.output(0)?);
    Ok(Kernel::NormDx(NormDx { rows, d, unit_offset: op.unit_offset, x, w, inv_rms, d_y, out }))
}

/// Gradient in the weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormDw {
    rows: usize,
    d: usize,
    x: Ref,
    inv_rms: Ref,
    d_y: Ref,
    out: Ref,
}

impl NormDw {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let (x, inv_rms, d_y) = (m.f32(self.x), m.f32(self.inv_rms), m.f32(self.d_y));
        norm::rms_norm_dw(m.pool, self.rows, self.d, x, inv_rms, d_y, m.f32_mut(self.out));
        Ok(())
    }
}

pub(super) fn dw(p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (rows, d) = rows(p)?;
    let (x, inv_rms, d_y, out) = (p.input(0)?, p.input(1)?, p.input(2)?, p.output(0)?);
    Ok(Kernel::NormDw(NormDw { rows, d, x, inv_rms, d_y, out }))
}
