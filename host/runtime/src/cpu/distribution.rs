//! Reductions of a head's distribution, and of two heads'. Tiles live in the launch's scratch.

use swift_graph::op::{self, Bend, LinearDivergence, LinearDivergenceBackward, LinearStatistic, LinearStatisticBackward};
use swift_kernels::cross_entropy::distribution::{self, Head};

use super::Kernel;
use super::memory::{Memory, Ref, WeightRef};
use super::prepare::Prepare;
use crate::Result;

/// Hidden states, weight, and how logits are bent.
#[derive(Clone, Copy, Debug)]
struct HeadRef {
    x: Ref,
    weight: WeightRef,
    softcap: Option<f32>,
    temperature: f32,
}

impl HeadRef {
    fn of<'m>(&self, m: &'m Memory<'_>) -> Head<'m> {
        Head { x: m.f32(self.x), w: m.factor(&self.weight), softcap: self.softcap, temperature: self.temperature }
    }
}

/// The head whose hidden states are input `first`.
fn head(p: &mut Prepare<'_, '_>, first: usize, bend: &Bend) -> Result<HeadRef> {
    let (x, weight) = (p.input(first)?, p.factor(first + 1)?);
    if weight.rows == 0 || weight.cols == 0 {
        return Err(p.unsupported(format!("the weight is empty: {} x {}", weight.rows, weight.cols)));
    }
    Ok(HeadRef { x, weight, softcap: bend.softcap.map(|c| c.0 as f32), temperature: bend.temperature.0 as f32 })
}

fn which(statistic: op::Statistic) -> distribution::Statistic {
    match statistic {
        op::Statistic::Entropy => distribution::Statistic::Entropy,
        op::Statistic::Mean => distribution::Statistic::Mean,
    }
}

/// A number for each row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statistic {
    statistic: distribution::Statistic,
    n: usize,
    head: HeadRef,
    value: Ref,
    lse: Ref,
    scratch: Ref,
}

impl Statistic {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let (value, lse, scratch) = (m.f32_mut(self.value), m.f32_mut(self.lse), m.f32_mut(self.scratch));
        distribution::statistic(m.pool, self.statistic, self.n, &self.head.of(m), value, lse, scratch);
        Ok(())
    }
}

pub(super) fn statistic(op: &LinearStatistic, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let n = p.dims(0)?[0];
    let head = head(p, 0, &op.bend)?;
    let (value, lse) = (p.output(0)?, p.output(1)?);
    let scratch = p.scratch(distribution::scratch_len(n, head.weight.rows, &[head.weight.cols], false));
    Ok(Kernel::Statistic(Statistic { statistic: which(op.statistic), n, head, value, lse, scratch }))
}

/// Its gradients in x and in the weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatisticGradient {
    statistic: distribution::Statistic,
    n: usize,
    head: HeadRef,
    value: Ref,
    lse: Ref,
    d_value: Ref,
    d_x: Ref,
    d_w: Option<Ref>,
    scratch: Ref,
}

impl StatisticGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let (value, lse, d_value) = (m.f32(self.value), m.f32(self.lse), m.f32(self.d_value));
        let (d_x, d_w, scratch) = (m.f32_mut(self.d_x), self.d_w.map(|r| m.f32_mut(r)), m.f32_mut(self.scratch));
        let head = self.head.of(m);
        distribution::statistic_backward(m.pool, self.statistic, self.n, &head, value, lse, d_value, d_x, d_w, scratch);
        Ok(())
    }
}

pub(super) fn statistic_backward(op: &LinearStatisticBackward, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let n = p.dims(0)?[0];
    let head = head(p, 0, &op.forward.bend)?;
    let (value, lse, d_value) = (p.input(2)?, p.input(3)?, p.input(4)?);
    let d_x = p.output(0)?;
    let d_w = if op.weight_grad { p.wanted_output(1)? } else { None };
    let scratch = p.scratch(distribution::scratch_len(n, head.weight.rows, &[head.weight.cols], op.weight_grad));
    let statistic = which(op.forward.statistic);
    Ok(Kernel::StatisticGradient(StatisticGradient { statistic, n, head, value, lse, d_value, d_x, d_w, scratch }))
}

/// Divergence of two heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Divergence {
    alpha: f32,
    n: usize,
    heads: [HeadRef; 2],
    value: Ref,
    lse: [Ref; 2],
    share: Ref,
    scratch: Ref,
}

impl Divergence {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let [p, q] = self.heads.map(|head| head.of(m));
        let (value, lse, share) = (m.f32_mut(self.value), self.lse.map(|r| m.f32_mut(r)), m.f32_mut(self.share));
        distribution::divergence(m.pool, self.alpha, self.n, [&p, &q], value, lse, share, m.f32_mut(self.scratch));
        Ok(())
    }
}

fn pair(op: &LinearDivergence, p: &mut Prepare<'_, '_>, trained: bool) -> Result<(usize, [HeadRef; 2], Ref)> {
    let n = p.dims(0)?[0];
    let heads = [head(p, 0, &op.bends[0])?, head(p, 2, &op.bends[1])?];
    let widths = heads.map(|head| head.weight.cols);
    let scratch = p.scratch(distribution::scratch_len(n, heads[0].weight.rows, &widths, trained));
    Ok((n, heads, scratch))
}

pub(super) fn divergence(op: &LinearDivergence, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (n, heads, scratch) = pair(op, p, false)?;
    let (value, lse, share) = (p.output(0)?, [p.output(1)?, p.output(2)?], p.output(3)?);
    Ok(Kernel::Divergence(Divergence { alpha: op.alpha.0 as f32, n, heads, value, lse, share, scratch }))
}

/// Its gradients in the first head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DivergenceGradient {
    alpha: f32,
    n: usize,
    heads: [HeadRef; 2],
    lse: [Ref; 2],
    share: Ref,
    d_value: Ref,
    d_x: Ref,
    d_w: Option<Ref>,
    scratch: Ref,
}

impl DivergenceGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let [p, q] = self.heads.map(|head| head.of(m));
        let (lse, share, d_value) = (self.lse.map(|r| m.f32(r)), m.f32(self.share), m.f32(self.d_value));
        let (d_x, d_w, scratch) = (m.f32_mut(self.d_x), self.d_w.map(|r| m.f32_mut(r)), m.f32_mut(self.scratch));
        distribution::divergence_backward(m.pool, self.alpha, self.n, [&p, &q], lse, share, d_value, d_x, d_w, scratch);
        Ok(())
    }
}

pub(super) fn divergence_backward(op: &LinearDivergenceBackward, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let (n, heads, scratch) = pair(&op.forward, p, op.weight_grad)?;
    let (lse, share, d_value) = ([p.input(4)?, p.input(5)?], p.input(6)?, p.input(7)?);
    let d_x = p.output(0)?;
    let d_w = if op.weight_grad { p.wanted_output(1)? } else { None };
    let alpha = op.forward.alpha.0 as f32;
    Ok(Kernel::DivergenceGradient(DivergenceGradient { alpha, n, heads, lse, share, d_value, d_x, d_w, scratch }))
}
